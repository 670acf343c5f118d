"""Prepared CIFAR-10, good and damaged; the real one is read if it is at hand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.faults import mutate
from training.data import tfds
from training.data.memory import Dataset
from training.data.prepare import prepare

REAL = Path(
    os.environ.get("TFDS_DATA_DIR") or Path(__file__).parents[4] / "shared/data/tensorflow_datasets"
)
needs_imagenet = pytest.mark.skipif(
    not (REAL / "imagenet2012").is_dir(), reason=f"no prepared ImageNet in {REAL}"
)
NUMBERS = {"train": 12, "test": 5}


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


def load(data_dir: Path) -> Dataset:
    return tfds.load_cifar10(data_dir, data_dir / "cache")


def test_reads_what_is_prepared_and_then_its_cache(data_dir, images, monkeypatch, capsys):
    first = load(data_dir)
    np.testing.assert_array_equal(first.train_images, images["train"])
    np.testing.assert_array_equal(first.test_images, images["test"])
    assert first.train_labels.tolist() == [i % 10 for i in range(12)]
    assert first.train_labels.dtype == np.int32
    assert "Decoding cifar10" in capsys.readouterr().err

    monkeypatch.setattr(tfds, "_decode", None)  # the second start does not decode
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
    data = tfds.load_cifar10(data_dir, tmp_path / "file" / "cache")
    np.testing.assert_array_equal(data.train_images, images["train"])
    assert "cannot be written" in capsys.readouterr().err


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="cifar10 is not prepared in") as error:
        load(tmp_path)
    assert f"python -m training.data.prepare cifar10 --data-dir {tmp_path}" in str(error.value)


def test_half_prepared(data_dir):
    shard(data_dir, "test").unlink()
    with pytest.raises(FileNotFoundError, match=r"only half prepared: cifar10-test.*missing") as e:
        load(data_dir)
    assert "python -m training.data.prepare cifar10" in str(e.value)


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


@pytest.mark.parametrize("content", [b"\xff", b"[]", b'{"splits": 1}', b"[" * 10**5, b""])
def test_other_damaged_infos(data_dir, content):
    (data_dir / "cifar10" / "3.0.2" / "dataset_info.json").write_bytes(content)
    with pytest.raises(FileNotFoundError, match=r"dataset_info.json is damaged"):
        load(data_dir)


def split(name: str, length: str, **more: str) -> dict:
    return {"name": name, "shardLengths": [length], **more}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../cifar10"},
        {
            "splits": [
                {"name": s, "shardLengths": ["1"], "filepathTemplate": "../{SPLIT}"}
                for s in NUMBERS
            ]
        },
        {"splits": [{"name": s, "shardLengths": ["-1"]} for s in NUMBERS]},
    ],
)
def test_names_are_no_paths(data_dir, changes):
    edit_info(data_dir, **changes)
    with pytest.raises(FileNotFoundError, match=r"dataset_info.json is damaged"):
        load(data_dir)


def test_no_module_that_features_json_names_is_imported(data_dir, tmp_path, monkeypatch):
    """TFDS imports the module of every class that the file names."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = data_dir / "cifar10" / "3.0.2" / "features.json"
    features = json.loads(path.read_text())
    features["featuresDict"]["features"]["label"]["pythonClassName"] = "evil.Feature"
    path.write_text(json.dumps(features))
    message = r"is damaged \(features.json: it names evil.Feature\): delete it"
    with pytest.raises(FileNotFoundError, match=message):
        load(data_dir)
    path.write_text(json.dumps({"type": "evil.Feature", "content": "{}"}))
    with pytest.raises(FileNotFoundError, match=message):
        load(data_dir)


def test_a_newer_version_that_is_not_sound_hides_no_sound_one(data_dir, images):
    (data_dir / "cifar10" / "4.0.0").mkdir()
    (data_dir / "cifar10" / "4.0.0" / "dataset_info.json").write_text("junk")
    np.testing.assert_array_equal(load(data_dir).train_images, images["train"])
    shard(data_dir, "test").unlink()
    with pytest.raises(FileNotFoundError, match=r"4.0.0/dataset_info.json is damaged"):
        load(data_dir)


SLOW = pytest.param(2000, marks=pytest.mark.slow)


@pytest.mark.parametrize("number", [100, SLOW])
def test_no_mutated_description_gives_other_images(data_dir, number):
    """A changed number of records is seen when they are decoded."""

    def reader(path):
        data = load(data_dir)
        return {"train": data.train_images, "test": data.test_images}

    found = mutate(data_dir / "cifar10" / "3.0.2" / "dataset_info.json", reader, number)
    assert found["wrong"] == 0
    assert found["refused"] > number / 2


@pytest.mark.parametrize("array", ["train_images", "test_labels"])
def test_a_cache_of_other_shapes_is_rebuilt(data_dir, images, array, capsys):
    load(data_dir)
    (cache,) = (data_dir / "cache").glob("*.npz")
    with np.load(cache) as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays[array] = arrays[array][..., None]
    np.savez(cache, **arrays)
    np.testing.assert_array_equal(load(data_dir).train_images, images["train"])
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "too few"])
def test_damaged_records(data_dir, images, damage):
    path = shard(data_dir, "train")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        write_records(path, images["train"][:3])
    with pytest.raises(OSError, match="is damaged") as error:
        load(data_dir)
    assert "python -m training.data.prepare cifar10" in str(error.value)


def test_the_folders_class_names(data_dir):
    assert load(data_dir).class_names is None
    labels = data_dir / "cifar10" / "3.0.2" / "label.labels.txt"
    labels.write_text("\n".join(f"class{i}" for i in range(10)) + "\n")
    data = load(data_dir)
    assert data.class_names == tuple(f"class{i}" for i in range(10))
    assert data.num_classes == 10
    labels.write_text("airplane\n")
    with pytest.raises(ValueError, match="a name for each of the 10 classes, got 1 names"):
        load(data_dir)


def test_prepare_leaves_prepared_data_alone(data_dir, capsys):
    prepare("cifar10", data_dir)
    assert "already" in capsys.readouterr().out


@pytest.mark.skipif(not REAL.exists(), reason=f"no prepared CIFAR-10 in {REAL}")
def test_real_cifar10_has_the_published_statistics():
    data = tfds.load_cifar10(REAL)
    assert data.train_images.shape == (50_000, 32, 32, 3)
    assert data.test_images.shape == (10_000, 32, 32, 3)
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    assert data.class_names is not None
    assert data.class_names[::9] == ("airplane", "truck")
    levels = np.arange(256) / 255
    counts = [np.bincount(data.train_images[..., i].ravel(), minlength=256) for i in range(3)]
    mean = np.array([np.average(levels, weights=count) for count in counts])
    std = np.sqrt([np.average(levels**2, weights=count) for count in counts] - mean**2)
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=5e-5)
    np.testing.assert_allclose(std, [0.2470, 0.2435, 0.2616], atol=5e-5)
