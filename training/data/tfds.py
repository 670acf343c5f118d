"""Finds data sets that TensorFlow Datasets (TFDS) prepared, and reads CIFAR-10.

Nothing is downloaded here: `python -m training.data.prepare` prepares a data set once, with
TensorFlow; reading it needs no TensorFlow.
"""

import hashlib
import json
import os
import shlex
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from training.data.memory import Dataset
from training.machine import cache_folder, expanded
from training.messages import warn

TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # of the names of files
FEATURES = {  # the classes of the two data sets
    f"tensorflow_datasets.core.features.{module}"
    for module in (
        "class_label_feature.ClassLabel",
        "features_dict.FeaturesDict",
        "image_feature.Image",
        "text_feature.Text",
    )
}
SPLITS = {"cifar10": ("train", "test"), "imagenet2012": ("train", "validation")}


def data_directory(data_dir: Path | None) -> Path:
    """The TFDS directory: `data_dir`, else `$TFDS_DATA_DIR`, else ~/tensorflow_datasets."""
    return expanded(Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))


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
        this = "155 GB of disk besides the archives, 1 to 3 hours by estimate; this"
    return (
        f"{fetch}\nPrepare it, once ({this} needs TensorFlow):"
        f"\n  pip install -e '.[prepare]' && "
        f"python -m training.data.prepare {name} --data-dir {folder}"
        "\nor point --data-dir at a TFDS directory that holds it as array_record."
    )


def find(name: str, data_dir: Path) -> tuple[Path, dict[str, int]]:
    """Finds a prepared data set: the newest version of which every shard is in place.

    Args:
        name: "cifar10" or "imagenet2012".
        data_dir: TFDS directory.

    Returns:
        Its folder, and the number of records of each split.

    Raises:
        FileNotFoundError: if the data is missing, incomplete, or of a format that does not read
            without TensorFlow, and if its description names other Python classes than TFDS's
            features, since reading would import them; the message names the steps that prepare it.
    """
    versions = [p.parent for p in (data_dir / name).glob("*/dataset_info.json")]
    if not versions:
        raise FileNotFoundError(
            f"{name} is not prepared in {data_dir}: no {name}/VERSION/dataset_info.json there."
            + how_to_prepare(name, data_dir)
        )
    faults = []
    for folder in sorted(versions, key=_version, reverse=True):
        try:
            return folder, _numbers(name, folder, data_dir)
        except FileNotFoundError as error:
            faults.append(error)
    raise faults[0]


def _numbers(name: str, folder: Path, data_dir: Path) -> dict[str, int]:
    """The number of records of each split in a folder; FileNotFoundError if it is not sound."""
    try:
        info = json.loads((folder / "dataset_info.json").read_bytes())
        lengths = {s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]}
        templates = {s.get("filepathTemplate", TEMPLATE) for s in info["splits"]}
        file_format = info.get("fileFormat", "tfrecord")
        if templates != {TEMPLATE} or info["name"] != name:
            raise ValueError(f"it names other files: {info['name']}, {', '.join(templates)}")
        if min((min(n, default=0) for n in lengths.values()), default=0) < 0:
            raise ValueError("a shard has fewer than no records")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
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
    try:
        foreign = _classes(json.loads((folder / "features.json").read_bytes())) - FEATURES
        if foreign:
            raise ValueError(f"it names {', '.join(sorted(foreign))}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise FileNotFoundError(
            f"{folder} is damaged (features.json: {error}): delete it."
            + how_to_prepare(name, data_dir)
        ) from error
    return {split: sum(lengths[split]) for split in SPLITS[name]}


def _classes(features: Any) -> set[str]:
    """The Python classes that a features.json names; TFDS imports the module of each."""
    if isinstance(features, list):
        return set().union(*map(_classes, features))
    if not isinstance(features, dict):
        return set()
    own = {str(value) for key, value in features.items() if key in ("pythonClassName", "type")}
    return own.union(*map(_classes, features.values()))


def _version(folder: Path) -> list[int]:
    return [int(part) if part.isdigit() else -1 for part in folder.name.split(".")]


def count_records(name: str, folder: Path, numbers: dict[str, int]) -> None:
    """Raises an error unless the files of each split hold as many records as its description says.

    TFDS believes the description, and would leave records out.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    for split, number in numbers.items():
        counted = 0
        for path in sorted(folder.glob(f"{name}-{split}.array_record-*")):
            try:
                reader = ArrayRecordReader(str(path))
                counted += reader.num_records()
                reader.close()
            except RuntimeError as error:  # does not name the file
                raise OSError(f"{path.name}: {error}") from error
        if counted != number:
            raise ValueError(f"{counted} {split} records, dataset_info.json lists {number}")


def class_names(folder: Path) -> tuple[str, ...] | None:
    """The classes' names in a prepared folder; None if it has no list of them."""
    names = folder / "label.labels.txt"
    return tuple(names.read_text().split()) if names.is_file() else None


# ---- CIFAR-10 ---------------------------------------------------------------------------------


def load_cifar10(data_dir: Path | None = None, cache_dir: Path | None = None) -> Dataset:
    """Loads CIFAR-10, from its cache of decoded images if that is sound.

    Args:
        data_dir: the TFDS directory that holds it; default `$TFDS_DATA_DIR`, else
            ~/tensorflow_datasets.
        cache_dir: folder for the decoded images; default `$XDG_CACHE_HOME/bop_optax`, else
            ~/.cache/bop_optax.

    Returns:
        50,000 images to train and 10,000 to test, 32×32×3, of ten classes.

    Raises:
        FileNotFoundError: as `find` does.
        OSError: if a record does not decode.
    """
    data_dir = data_directory(data_dir)
    folder, numbers = find("cifar10", data_dir)
    stamps = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir())]
    stamp = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
    cache_dir = cache_dir or cache_folder()
    cache = expanded(cache_dir) / f"cifar10-{stamp}.npz"
    arrays = _read_cache(cache, numbers)
    if arrays is None:
        warn(f"Decoding cifar10 into {cache} (once) ...")
        try:
            count_records("cifar10", folder, numbers)
            arrays = {k: v for s, n in numbers.items() for k, v in _decode(folder, s, n).items()}
        except Exception as error:  # array_record, PIL and TFDS each raise their own
            raise OSError(
                f"{folder} is damaged: {error}." + how_to_prepare("cifar10", data_dir)
            ) from error
        _write_cache(cache, arrays)
    return Dataset(**arrays, num_classes=10, class_names=class_names(folder))


def _decode(folder: Path, split: str, number: int) -> dict[str, Any]:
    import absl.logging
    import tensorflow_datasets as tfds

    absl.logging.set_verbosity("error")  # TFDS advises OpenCV at every start
    builder: Any = tfds.builder_from_directory(str(folder))
    source = builder.as_data_source(split)
    parts = np.array_split(np.arange(number), max(number // 500, 1))
    with ThreadPoolExecutor() as pool:  # PIL decodes outside the interpreter's lock
        decoded = pool.map(lambda part: [source[int(i)] for i in part], parts)
        records = [record for part in decoded for record in part]
    return {
        f"{split}_images": np.stack([r["image"] for r in records]),
        f"{split}_labels": np.array([r["label"] for r in records], np.int32),
    }


def _read_cache(cache: Path, numbers: dict[str, int]) -> dict[str, Any] | None:
    """The cached arrays, or None if there are none to trust: zip checks a CRC of each array."""
    if not cache.exists():
        return None
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        for split, number in numbers.items():
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            if (images.dtype, images.shape) != (np.uint8, (number, 32, 32, 3)):
                raise ValueError(f"{split} has {images.dtype} images of shape {images.shape}")
            if labels.shape != (number,) or labels.min() < 0 or labels.max() > 9:
                raise ValueError(f"{split} has labels of shape {labels.shape}, or out of 0 to 9")
        return arrays
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        NotImplementedError,
        zipfile.BadZipFile,
    ) as error:
        warn(f"{cache} is damaged ({error}): building it again.")
        return None


def _write_cache(cache: Path, arrays: dict[str, Any]) -> None:
    """Writes to another name and renames, so that a killed process leaves no half cache."""
    partial = cache.with_suffix(f".{os.getpid()}.tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.replace(cache)
    except OSError as error:
        warn(f"{cache} cannot be written ({error}): the next start decodes again.")
        with suppress(OSError):
            partial.unlink()
