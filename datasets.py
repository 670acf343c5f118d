"""Images and labels as uint8 arrays, and what happens to a batch on the device.

`load` reads a data set that is there; it never downloads. `python datasets.py cifar10` prepares
CIFAR-10 once with TensorFlow Datasets (extra `prepare`), `python datasets.py imagenet2012` the
archives of ImageNet; reading them afterwards needs no TensorFlow. ImageNet is too large for memory:
imagenet.py reads it.
"""

import hashlib
import json
import os
import shlex
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

SPLITS = {"cifar10": ("train", "test"), "imagenet2012": ("train", "validation")}
ARCHIVES = {"ILSVRC2012_img_train.tar": 147_897_477_120, "ILSVRC2012_img_val.tar": 6_744_924_160}


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
        train_images, test_images: uint8, (number, height, width, channels).
        train_labels, test_labels: int32, (number,), from 0 to `num_classes` − 1.
        num_classes: number of classes.
        mean, std: what `scale` subtracts and divides by.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int = 10
    mean: ClassVar[Any] = 127.5
    std: ClassVar[Any] = 127.5

    @property
    def num_train(self) -> int:
        return len(self.train_images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train_images.shape[1:]


def load(name: str, data_dir: Path | None = None, cache_dir: Path | None = None) -> Dataset:
    """Loads a data set, from its cache of decoded images where that is sound.

    Args:
        name: "digits" (scikit-learn's, needs no files) or "cifar10".
        data_dir: the TFDS directory that holds it; default `$TFDS_DATA_DIR`, else
            ~/tensorflow_datasets.
        cache_dir: where decoded images are kept; default `$XDG_CACHE_HOME/bop_optax`, else
            ~/.cache/bop_optax.

    Raises:
        ValueError: for an unknown name.
        FileNotFoundError: where the data is missing, only half there, or of a format that does
            not read without TensorFlow; the message says how to prepare it.
        OSError: where a record does not decode.
    """
    if name == "digits":
        return digits()
    if name == "cifar10":
        return _tfds(name, data_dir, cache_dir)
    raise ValueError(f"unknown data set {name!r}: choose digits or cifar10")


def digits() -> Dataset:
    """The 1,797 handwritten digits, 8×8, that scikit-learn carries: 1,437 to train, 360 to test.

    The split is one fixed permutation. Grey levels 0 to 16 are scaled to 0 to 255.

    References:
        Alpaydin, Kaynak. Optical Recognition of Handwritten Digits. UCI, 1998.
    """
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    images = np.rint(data.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = data.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:360], order[360:]
    return Dataset(images[train], labels[train], images[test], labels[test])


def hold_out(data: Dataset, number: int) -> Dataset:
    """Validation: `number` training images, of one fixed permutation, take the test images' place.

    Hyperparameters are chosen on them, and the test images are left for what is reported.

    Raises:
        ValueError: unless some training images are held out and some are left.
    """
    images, labels = data.train_images, data.train_labels
    if not 0 < number < len(images):
        raise ValueError(
            f"--held-out must be from 1 to {len(images) - 1}, fewer than the training images, "
            f"got {number}"
        )
    order = np.random.default_rng(0).permutation(len(images))
    held, kept = order[:number], np.sort(order[number:])
    return replace(
        data,
        train_images=images[kept],
        train_labels=labels[kept],
        test_images=images[held],
        test_labels=labels[held],
    )


def augment(key: jax.Array, images: jax.Array, pad: int, flip: bool) -> jax.Array:
    """Shifts each image by up to `pad` pixels and mirrors half of them (section 5.2).

    Pads with black, crops at random to the old size, then flips left to right at random, each image
    by its own draw. Runs inside the compiled step.

    Args:
        key: a PRNG key.
        images: (batch, height, width, channels), uint8.
        pad: pixels on each side; 0 does not shift.
        flip: whether to mirror.

    Returns:
        Images of the same shape and dtype.
    """
    crop_key, flip_key = jax.random.split(key)
    if pad:
        batch, *shape = images.shape
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        corners = jax.random.randint(crop_key, (batch, 2), 0, 2 * pad + 1)
        images = jax.vmap(lambda i, c: jax.lax.dynamic_slice(i, (c[0], c[1], 0), shape))(
            padded, corners
        )
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(images.shape[0], 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def scale(images: jax.Array, mean: Any = 127.5, std: Any = 127.5) -> jax.Array:
    """Maps uint8 images to float32, (x − mean) / std; by default to [−1, 1].

    Args:
        images: (..., channels), uint8.
        mean, std: a number, or one for each channel, from 0 to 255.
    """
    mean, std = np.float32(mean), np.float32(std)
    return jnp.asarray(images, jnp.float32) / std - mean / std


# ---- TensorFlow Datasets ----------------------------------------------------------------------


def prepare(name: Literal["cifar10", "imagenet2012"], /, data_dir: Path | None = None) -> None:
    """Prepares a data set, once. Needs TensorFlow (extra `prepare`).

    Args:
        name: The data set. CIFAR-10: 170 MB to download, 140 MB prepared, about 3 minutes.
            ImageNet: 155 GB to fetch by hand, 155 GB prepared, 1 to 3 hours (an estimate).
        data_dir: TFDS directory to write to. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    """
    data_dir = data_directory(data_dir)
    try:
        find(name, data_dir)
    except FileNotFoundError as missing:
        print(missing.args[0].splitlines()[0], file=sys.stderr)
    else:
        print(f"{name} is in {data_dir} already.")
        return
    if name == "imagenet2012":
        _check_archives(data_dir)
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    again = tfds.download.DownloadConfig(
        download_mode=tfds.download.GenerateMode.REUSE_CACHE_IF_EXISTS
    )
    builder.download_and_prepare(download_config=again)
    print(f"{name} is in {builder.data_dir}.")


def _check_archives(data_dir: Path) -> None:
    """TFDS leaves out the split whose archive is missing, with no more than a warning."""
    for archive, size in ARCHIVES.items():
        path = data_dir / "downloads" / "manual" / archive
        there = path.stat().st_size if path.is_file() else 0
        if there < size:
            state = f"has {there:,} of {size:,} bytes" if there else "is missing"
            raise FileNotFoundError(f"{path} {state}." + how_to_prepare("imagenet2012", data_dir))


def data_directory(data_dir: Path | None) -> Path:
    """The TFDS directory: `data_dir`, else `$TFDS_DATA_DIR`, else ~/tensorflow_datasets."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def how_to_prepare(name: str, data_dir: Path) -> str:
    """The end of an error's message: the steps that put a data set into `data_dir`."""
    folder = shlex.quote(str(data_dir))
    fetch, this = "", "this downloads it, and"
    if name == "imagenet2012":
        fetch = (
            "\nFetch its two archives by hand, with an account of https://image-net.org:"
            f"\n  ILSVRC2012_img_train.tar (147.9 GB) and ILSVRC2012_img_val.tar (6.7 GB) into"
            f"\n  {shlex.quote(str(data_dir / 'downloads' / 'manual'))}"
        )
        this = "155 GB of disk beside the archives, 1 to 3 hours by estimate; this"
    return (
        f"{fetch}\nPrepare it, once ({this} needs TensorFlow):"
        f"\n  pip install -e '.[prepare]' && python datasets.py {name} --data-dir {folder}"
        "\nor point --data-dir at a TFDS directory that holds it as array_record."
    )


def find(name: str, data_dir: Path) -> tuple[Path, dict[str, int]]:
    """The prepared folder of the newest version, every shard in place, and each split's number."""
    versions = [p.parent for p in (data_dir / name).glob("*/dataset_info.json")]
    if not versions:
        raise FileNotFoundError(
            f"{name} is not prepared in {data_dir}: no {name}/VERSION/dataset_info.json there."
            + how_to_prepare(name, data_dir)
        )
    folder = max(versions, key=_version)
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        lengths = {s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]}
        file_format = info.get("fileFormat", "tfrecord")
    except (ValueError, KeyError, TypeError) as error:
        raise FileNotFoundError(
            f"{folder}/dataset_info.json is damaged ({error})." + how_to_prepare(name, data_dir)
        ) from error
    if file_format != "array_record":
        raise FileNotFoundError(
            f"{folder} holds {file_format} files, which do not read without TensorFlow."
            + how_to_prepare(name, data_dir / "array_record")
        )
    shards = {
        f"{name}-{split}.array_record-{i:05d}-of-{len(lengths.get(split, [])):05d}"
        for split in SPLITS[name]
        for i in range(max(len(lengths.get(split, [])), 1))
    }
    missing = sorted(s for s in shards | {"features.json"} if not (folder / s).is_file())
    if missing:
        raise FileNotFoundError(
            f"{folder} is only half prepared: {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            + " missing."
            + how_to_prepare(name, data_dir)
        )
    return folder, {split: sum(lengths[split]) for split in SPLITS[name]}


def _version(folder: Path) -> list[int]:
    return [int(part) if part.isdigit() else -1 for part in folder.name.split(".")]


def _tfds(name: str, data_dir: Path | None, cache_dir: Path | None) -> Dataset:
    data_dir = data_directory(data_dir)
    folder, numbers = find(name, data_dir)
    stamps = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir())]
    stamp = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
    cache_dir = cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "bop_optax")
    cache = cache_dir.expanduser() / f"{name}-{stamp}.npz"
    arrays = _read_cache(cache, numbers)
    if arrays is None:
        print(f"Decoding {name} into {cache} (once) ...", file=sys.stderr)
        try:
            arrays = {k: v for s, n in numbers.items() for k, v in _decode(folder, s, n).items()}
        except Exception as error:  # array_record, PIL and TFDS each raise their own
            raise OSError(
                f"{folder} is damaged: {error}." + how_to_prepare(name, data_dir)
            ) from error
        _write_cache(cache, arrays)
    return Dataset(**arrays)


def _decode(folder: Path, split: str, number: int) -> dict[str, Any]:
    import absl.logging
    import tensorflow_datasets as tfds

    absl.logging.set_verbosity("error")  # TFDS advises OpenCV at every start
    builder: Any = tfds.builder_from_directory(str(folder))
    source = builder.as_data_source(split)
    if len(source) != number:
        raise OSError(f"{split} has {len(source)} records, dataset_info.json says {number}")
    parts = np.array_split(np.arange(number), max(number // 500, 1))
    with ThreadPoolExecutor() as pool:  # PIL decodes outside the interpreter's lock
        decoded = pool.map(lambda part: [source[int(i)] for i in part], parts)
        records = [record for part in decoded for record in part]
    return {
        f"{split}_images": np.stack([r["image"] for r in records]),
        f"{split}_labels": np.array([r["label"] for r in records], np.int32),
    }


def _read_cache(cache: Path, numbers: dict[str, int]) -> dict[str, Any] | None:
    """The cached arrays, or None where there are none to trust: zip checks a CRC of each array."""
    if not cache.exists():
        return None
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        for split, number in numbers.items():
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            if images.dtype != np.uint8 or not len(images) == number == len(labels):
                raise ValueError(f"{split} has {images.dtype} images of shape {images.shape}")
        return arrays
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        NotImplementedError,
        zipfile.BadZipFile,
    ) as error:
        print(f"{cache} is damaged ({error}): building it again.", file=sys.stderr)
        return None


def _write_cache(cache: Path, arrays: dict[str, np.ndarray]) -> None:
    """Written aside and renamed, so that a killed process leaves no half cache."""
    partial = cache.with_suffix(f".{os.getpid()}.tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        partial.replace(cache)
    except OSError as error:
        print(
            f"{cache} cannot be written ({error}): the next start decodes again.", file=sys.stderr
        )
        with suppress(OSError):
            partial.unlink()


if __name__ == "__main__":
    import tyro

    try:
        tyro.cli(prepare)
    except (OSError, ImportError) as error:
        sys.exit(f"datasets.py: {error}")
