"""Data sets, good and damaged, and augmentation. CIFAR-10 itself is read where it is at hand."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

import datasets

REAL = Path(
    os.environ.get("TFDS_DATA_DIR") or Path(__file__).parents[2] / "shared/data/tensorflow_datasets"
)
needs_imagenet = pytest.mark.skipif(
    not (REAL / "imagenet2012").is_dir(), reason=f"no prepared ImageNet in {REAL}"
)
NUMBERS = {"train": 12, "test": 5}


def test_digits_are_split_once_and_for_all():
    data = datasets.load("digits")
    assert data.train_images.shape == (1437, 8, 8, 1)
    assert data.test_images.shape == (360, 8, 8, 1)
    assert data.train_images.dtype == np.uint8
    assert (data.train_images.min(), data.train_images.max()) == (0, 255)
    for labels in (data.train_labels, data.test_labels):
        assert set(labels.tolist()) == set(range(10))
    assert np.array_equal(datasets.load("digits").test_images, data.test_images)
    seen = {image.tobytes() for image in data.train_images}
    assert not any(image.tobytes() in seen for image in data.test_images)


# ---- A small prepared data set, in the files that TFDS writes -----------------------------------


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {s: rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for s, n in NUMBERS.items()}


@pytest.fixture
def data_dir(tmp_path: Path, images) -> Path:
    folder = tmp_path / "tfds" / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    image = {"shape": {"dimensions": ["32", "32", "3"]}, "dtype": "uint8"}
    package = "tensorflow_datasets.core.features"
    features = {
        "image": {"pythonClassName": f"{package}.image_feature.Image", "image": image},
        "label": {
            "pythonClassName": f"{package}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "10"},
        },
    }
    (folder / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": f"{package}.features_dict.FeaturesDict",
                "featuresDict": {"features": features},
            }
        )
    )
    info = {
        "name": "cifar10",
        "version": "3.0.2",
        "fileFormat": "array_record",
        "moduleName": "tensorflow_datasets.image_classification.cifar",
        "splits": [
            {
                "name": s,
                "shardLengths": [str(n)],
                "numBytes": "1",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for s, n in NUMBERS.items()
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for split in NUMBERS:
        write_records(shard(tmp_path / "tfds", split), images[split])
    return tmp_path / "tfds"


def shard(data_dir: Path, split: str) -> Path:
    return data_dir / "cifar10" / "3.0.2" / f"cifar10-{split}.array_record-00000-of-00001"


def write_records(path: Path, images: np.ndarray) -> None:
    import io

    from array_record.python.array_record_module import ArrayRecordWriter
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_generated_pb2 as proto

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for i, image in enumerate(images):
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        example = proto.Example()
        example.features.feature["image"].bytes_list.value.append(png.getvalue())
        example.features.feature["label"].int64_list.value.append(i % 10)
        writer.write(example.SerializeToString())
    writer.close()


def load(data_dir: Path) -> datasets.Dataset:
    return datasets.load("cifar10", data_dir, data_dir / "cache")


def test_reads_what_is_prepared_and_then_its_cache(data_dir, images, monkeypatch, capsys):
    first = load(data_dir)
    np.testing.assert_array_equal(first.train_images, images["train"])
    np.testing.assert_array_equal(first.test_images, images["test"])
    assert first.train_labels.tolist() == [i % 10 for i in range(12)]
    assert first.train_labels.dtype == np.int32
    assert "Decoding cifar10" in capsys.readouterr().err

    monkeypatch.setattr(datasets, "_decode", None)  # the second start does not decode
    np.testing.assert_array_equal(load(data_dir).train_images, images["train"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["truncated", "flipped", "not a zip", "empty", "other arrays"])
def test_a_damaged_cache_is_rebuilt(data_dir, images, damage, capsys):
    load(data_dir)
    (cache,) = (data_dir / "cache").glob("*.npz")
    content = bytearray(cache.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "not a zip":
        content = bytearray(b"what is this")
    elif damage == "empty":
        content = bytearray()
    cache.write_bytes(content)
    if damage == "other arrays":
        np.savez(cache, train_images=images["train"])
    capsys.readouterr()

    np.testing.assert_array_equal(load(data_dir).train_images, images["train"])
    assert "is damaged" in capsys.readouterr().err
    load(data_dir)
    assert capsys.readouterr().err == ""


def test_a_cache_of_other_data_is_not_used(data_dir, images):
    load(data_dir)
    write_records(shard(data_dir, "train"), 255 - images["train"])
    np.testing.assert_array_equal(load(data_dir).train_images, 255 - images["train"])


def test_a_folder_that_cannot_hold_the_cache_is_no_obstacle(data_dir, images, tmp_path, capsys):
    (tmp_path / "file").touch()
    data = datasets.load("cifar10", data_dir, tmp_path / "file" / "cache")
    np.testing.assert_array_equal(data.train_images, images["train"])
    assert "cannot be written" in capsys.readouterr().err


def test_unknown_name():
    with pytest.raises(ValueError, match="unknown data set 'cifar11': choose digits or cifar10"):
        datasets.load("cifar11")


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="cifar10 is not prepared in") as error:
        load(tmp_path)
    assert f"python datasets.py cifar10 --data-dir {tmp_path}" in str(error.value)


def test_half_prepared(data_dir):
    shard(data_dir, "test").unlink()
    with pytest.raises(FileNotFoundError, match=r"only half prepared: cifar10-test.*missing") as e:
        load(data_dir)
    assert "python datasets.py cifar10" in str(e.value)


def edit_info(data_dir: Path, **changes) -> None:
    path = data_dir / "cifar10" / "3.0.2" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_tfrecord_files(data_dir):
    edit_info(data_dir, fileFormat="tfrecord")
    with pytest.raises(FileNotFoundError, match="holds tfrecord files") as error:
        load(data_dir)
    assert f"--data-dir {data_dir / 'array_record'}" in str(error.value)


def test_a_missing_split(data_dir):
    edit_info(data_dir, splits=[{"name": "train", "shardLengths": ["12"]}])
    with pytest.raises(FileNotFoundError, match="half prepared: cifar10-test"):
        load(data_dir)


def test_damaged_info(data_dir):
    (data_dir / "cifar10" / "3.0.2" / "dataset_info.json").write_text("{")
    with pytest.raises(FileNotFoundError, match=r"dataset_info.json is damaged"):
        load(data_dir)


@pytest.mark.parametrize("damage", ["truncated", "too few"])
def test_damaged_records(data_dir, images, damage):
    path = shard(data_dir, "train")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        write_records(path, images["train"][:3])
    with pytest.raises(OSError, match="is damaged") as error:
        load(data_dir)
    assert "python datasets.py cifar10" in str(error.value)


def test_prepare_leaves_what_is_there_alone(data_dir, capsys):
    datasets.prepare("cifar10", data_dir)
    assert "already" in capsys.readouterr().out


@pytest.mark.skipif(not REAL.exists(), reason=f"no prepared CIFAR-10 in {REAL}")
def test_real_cifar10_has_the_published_statistics():
    data = datasets.load("cifar10", REAL)
    assert data.train_images.shape == (50_000, 32, 32, 3)
    assert data.test_images.shape == (10_000, 32, 32, 3)
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    pixels = data.train_images.reshape(-1, 3) / 255
    np.testing.assert_allclose(pixels.mean(0), [0.4914, 0.4822, 0.4465], atol=5e-5)
    np.testing.assert_allclose(pixels.std(0), [0.2470, 0.2435, 0.2616], atol=5e-5)


# ---- On the device ------------------------------------------------------------------------------


def test_held_out_images_are_no_longer_trained_on():
    data = datasets.digits()
    held = datasets.hold_out(data, 200)
    assert [len(x) for x in (held.train_images, held.train_labels)] == [1237, 1237]
    assert [len(x) for x in (held.test_images, held.test_labels)] == [200, 200]

    def rows(images, labels):
        return sorted(zip(map(bytes, images), labels, strict=True))

    both = [*rows(held.train_images, held.train_labels), *rows(held.test_images, held.test_labels)]
    assert sorted(both) == rows(data.train_images, data.train_labels)
    np.testing.assert_array_equal(datasets.hold_out(data, 200).test_images, held.test_images)
    for number in (0, 1437):
        with pytest.raises(ValueError, match=f"--held-out must be from 1 to 1436, .* got {number}"):
            datasets.hold_out(data, number)


def test_scale_maps_bytes_to_plus_minus_one():
    x = datasets.scale(np.arange(256, dtype=np.uint8))
    assert (x[0], x[255], x.dtype) == (-1, 1, np.float32)
    np.testing.assert_allclose(x, np.arange(256) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(("pad", "flip"), [(4, True), (1, False), (0, True), (0, False)])
def test_each_augmented_image_is_its_own_crop_or_mirror_image(pad, flip):
    images = np.random.default_rng(0).integers(1, 256, (64, 9, 7, 2), np.uint8)
    result = np.asarray(
        jax.jit(datasets.augment, static_argnums=(2, 3))(jax.random.key(0), images, pad, flip)
    )
    assert (result.shape, result.dtype) == (images.shape, np.uint8)
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    drawn = set()
    for image, wide in zip(result, padded, strict=True):
        matches = [
            (y, x, mirrored)
            for y in range(2 * pad + 1)
            for x in range(2 * pad + 1)
            for mirrored in (False, True)
            if np.array_equal(image[:, :: -1 if mirrored else 1], wide[y : y + 9, x : x + 7])
        ]
        assert len(matches) == 1
        drawn.add(matches[0])
    assert any(m for *_, m in drawn) == flip
    shifts = {(y, x) for y, x, _ in drawn}
    assert len(shifts) > (30 if pad == 4 else 8 if pad else 0)  # of 81, of 9, of 1
    assert pad or shifts == {(0, 0)}
