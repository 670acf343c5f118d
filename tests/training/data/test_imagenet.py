"""ImageNet's files and images, made here; the real sample is read if it is at hand."""

import io
import json
import os
from itertools import islice
from pathlib import Path

import chex
import numpy as np
import pytest
from PIL import Image

from tests.training.data.test_tfds import REAL, needs_imagenet
from training.data import imagenet, prepare
from training.data.imagenet import BadImage, Record
from training.data.pipeline import training_batches
from training.data.stream import Feed

NUMBER = 23


def encode(image: Image.Image, file_format: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def make_image(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((40 + 3 * number, 90 - 2 * number))


def make_records() -> list[Record]:
    return [Record(encode(make_image(i)), i, f"n{i:08d}_{i}.JPEG") for i in range(NUMBER)]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return make_records()


# ---- One image ----------------------------------------------------------------------------------


def bicubic_oracle(pixels: np.ndarray, box, size: int) -> np.ndarray:
    """Keys' cubic, a = −1/2, wider where it shrinks: as matrices, in float64."""

    def weights(low: float, high: float, number: int) -> np.ndarray:
        scale = (high - low) / size
        centres = low + (np.arange(size) + 0.5) * scale
        x = abs(np.arange(number) + 0.5 - centres[:, None]) / max(scale, 1)
        kernel = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, 0)
        kernel += np.where((x >= 1) & (x < 2), -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0)
        return kernel / kernel.sum(1, keepdims=True)

    left, top, right, bottom = box
    rows, columns = weights(top, bottom, len(pixels)), weights(left, right, pixels.shape[1])
    return np.einsum("yi,ijc,xj->yxc", rows, pixels.astype(float), columns, optimize=True)


@pytest.mark.parametrize("shape", [(90, 120), (300, 77), (15, 20)])
def test_a_training_image_is_a_bicubic_resize_of_its_box(shape):
    pixels = np.random.default_rng(0).integers(64, 192, (*shape, 3), np.uint8)
    png = encode(Image.fromarray(pixels), "PNG")
    for seed in range(5):
        result = imagenet.training_image(png, np.random.default_rng(seed), 32)
        box = imagenet.random_box(np.random.default_rng(seed), shape[1], shape[0])
        assert (result.shape, result.dtype) == ((32, 32, 3), np.uint8)
        np.testing.assert_allclose(result, bicubic_oracle(pixels, box, 32), atol=1.5)


@pytest.mark.parametrize("shape", [(256, 256), (300, 400), (411, 280), (30, 20)])
def test_a_validation_image_is_the_centre_of_the_image_with_its_shorter_side_at_256(shape):
    height, width = shape
    coarse = Image.fromarray(np.random.default_rng(0).integers(50, 200, (9, 9, 3), np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    result = imagenet.validation_image(encode(image, "PNG"))
    assert (result.shape, result.dtype) == ((224, 224, 3), np.uint8)

    side = min(shape) * 0.875
    left, top = (width - side) / 2, (height - side) / 2
    exact = bicubic_oracle(np.asarray(image), (left, top, left + side, top + side), 224)
    np.testing.assert_allclose(result, exact, atol=1.5)

    scale = 256 / min(shape)
    resized = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    x, y = (resized.width - 224) // 2, (resized.height - 224) // 2
    two_steps = np.asarray(resized.crop((x, y, x + 224, y + 224)), float)
    assert abs(result - two_steps).mean() < 2


def test_boxes_lie_in_the_image_with_the_area_and_the_ratio_asked_for():
    for width, height in [(500, 375), (300, 1000), (224, 224), (1600, 1200)]:
        rng = np.random.default_rng(width)
        boxes = np.array([imagenet.random_box(rng, width, height) for _ in range(2000)])
        left, top, right, bottom = boxes.T
        assert (left >= 0).all()
        assert (top >= 0).all()
        assert (right <= width).all()
        assert (bottom <= height).all()
        w, h = right - left, bottom - top
        area, ratio = w * h / (width * height), w / h
        assert area.min() >= 0.079
        assert ratio.min() >= 0.75 * (1 - 1 / w.min())
        assert ratio.max() <= 4 / 3 * (1 + 1 / h.min())
        # and they spread over all that is allowed
        assert area.min() < 0.09
        assert ratio.min() < 0.77
        assert ratio.max() > 1.3
        assert left.min() == top.min() == 0
        assert (right.max(), bottom.max()) == (width, height)


def test_the_ratio_is_drawn_log_uniformly_and_the_area_uniformly():
    rng = np.random.default_rng(0)
    boxes = np.array([imagenet.random_box(rng, 10_000, 10_000) for _ in range(4000)])
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    small = w * h < 0.5e8  # of which none are drawn again, for want of room
    halves = np.histogram((w * h)[small] / 1e8, [0.08, 0.29, 0.5])[0]
    assert abs(halves[0] / small.sum() - 0.5) < 0.04
    quarters = np.histogram(np.log(w / h)[small], np.linspace(np.log(0.75), np.log(4 / 3), 5))[0]
    np.testing.assert_allclose(quarters / small.sum(), 0.25, atol=0.04)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (1000, 10, (493, 0, 506, 10)),
        (10, 1000, (0, 493, 10, 506)),
        (1, 1, (0, 0, 1, 1)),
        (1, 50, (0, 24, 1, 25)),
    ],
)
def test_an_image_too_narrow_for_a_draw_gives_its_centre(width, height, box):
    assert imagenet.random_box(np.random.default_rng(0), width, height) == box


RGB = Image.new("RGB", (32, 24), (200, 100, 50))
PALETTE = RGB.quantize(4)
GREY16 = Image.fromarray(np.full((24, 32), 0x80FF, np.uint16))


@pytest.mark.parametrize(
    ("file", "colour"),
    [
        pytest.param(encode(RGB), (200, 100, 50), id="RGB"),
        pytest.param(encode(RGB.convert("L")), (124, 124, 124), id="grey"),
        pytest.param(encode(RGB.convert("CMYK")), (200, 100, 50), id="CMYK"),
        pytest.param(encode(RGB.convert("YCbCr")), (200, 100, 50), id="YCbCr"),
        pytest.param(encode(RGB, "PNG"), (200, 100, 50), id="PNG"),
        pytest.param(encode(RGB.convert("RGBA"), "PNG"), (200, 100, 50), id="RGBA"),
        pytest.param(encode(RGB.convert("LA"), "PNG"), (124, 124, 124), id="grey with alpha"),
        pytest.param(encode(PALETTE, "PNG"), (200, 100, 50), id="palette"),
        pytest.param(
            encode(PALETTE, "PNG", transparency=b"\0\x80"), (200, 100, 50), id="clear palette"
        ),
        pytest.param(encode(RGB, "GIF"), (200, 100, 50), id="GIF"),
        pytest.param(encode(RGB.convert("1", dither=0), "PNG"), (0, 0, 0), id="one bit"),
        pytest.param(encode(GREY16, "PNG"), (128, 128, 128), id="16 bit"),
    ],
)
def test_every_kind_of_image_becomes_rgb(file, colour):
    for image in (imagenet.training_image(file, np.random.default_rng(0), 8), _centre(file)):
        np.testing.assert_allclose(image, np.broadcast_to(colour, (8, 8, 3)), atol=3)


def _centre(file: bytes) -> np.ndarray:
    return imagenet.validation_image(file, 8)


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"not an image at all",
        encode(make_image(3))[:-100],
        encode(make_image(3), "PNG")[:-100],
        encode(Image.new("F", (8, 8)), "TIFF"),
        encode(RGB)[:20] + bytes(300),
    ],
    ids=["empty", "garbage", "truncated", "truncated PNG", "float", "overwritten"],
)
def test_what_does_not_decode_is_a_bad_image(file):
    with pytest.raises(BadImage, match=r"does not decode: ."):
        imagenet.decode(file)


# ---- The prepared files -------------------------------------------------------------------------


@pytest.fixture
def data_dir(tmp_path, records) -> Path:
    """ImageNet as TFDS would have prepared it from our records: 23 to train and to validate."""
    folder = tmp_path / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    package = "tensorflow_datasets.core.features"
    image = {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8", "encodingFormat": "jpeg"}
    features = {
        "image": {"pythonClassName": f"{package}.image_feature.Image", "image": image},
        "file_name": {"pythonClassName": f"{package}.text_feature.Text", "text": {}},
        "label": {
            "pythonClassName": f"{package}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "1000"},
        },
    }
    feature_dict = {"pythonClassName": f"{package}.features_dict.FeaturesDict"}
    (folder / "features.json").write_text(
        json.dumps(feature_dict | {"featuresDict": {"features": features}})
    )
    splits = [
        {
            "name": split,
            "shardLengths": lengths,
            "numBytes": "1",
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }
        for split, lengths in (("train", ["13", "10"]), ("validation", ["23"]))
    ]
    info = {"name": "imagenet2012", "version": "5.1.0", "fileFormat": "array_record"}
    (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": splits}))
    write_records(shard(tmp_path, "train", 0, 2), records[:13])
    write_records(shard(tmp_path, "train", 1, 2), records[13:])
    write_records(shard(tmp_path, "validation", 0, 1), records)
    return tmp_path


def shard(data_dir: Path, split: str, number: int, of: int) -> Path:
    name = f"imagenet2012-{split}.array_record-{number:05d}-of-{of:05d}"
    return data_dir / "imagenet2012" / "5.1.0" / name


def write_records(path: Path, records: list[Record]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_generated_pb2 as proto

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        example = proto.Example()
        example.features.feature["image"].bytes_list.value.append(record.jpeg)
        example.features.feature["label"].int64_list.value.append(record.label)
        example.features.feature["file_name"].bytes_list.value.append(record.file_name.encode())
        writer.write(example.SerializeToString())
    writer.close()


def test_opens_what_is_prepared(data_dir, records):
    data = imagenet.open_imagenet(data_dir)
    for split in (data.train, data.validation):
        assert [split[i] for i in range(len(split))] == records
    assert (data.num_train, data.num_classes, data.image_shape) == (NUMBER, 1000, (224, 224, 3))
    assert (data.mean, data.std) == (imagenet.MEAN, imagenet.STD)
    assert (data.evaluated_on, data.class_names) == ("validation", None)
    assert (data.workers, data.bad_images) == (os.cpu_count(), "stop")
    data = imagenet.open_imagenet(data_dir, workers=0, bad_images="skip")
    assert (data.workers, data.bad_images) == (0, "skip")
    expected = training_batches(records, 4, 1, image_size=16)
    with Feed(training_batches(data.train, 4, 1, image_size=16, workers=1)) as feed:
        chex.assert_trees_all_equal(list(islice(feed, 6)), list(islice(expected, 6)))


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="imagenet2012 is not prepared in") as error:
        imagenet.open_imagenet(tmp_path)
    assert "ILSVRC2012_img_train.tar (147.9 GB) and ILSVRC2012_img_val.tar" in str(error.value)
    assert str(tmp_path / "downloads" / "manual") in str(error.value)
    assert f"python -m training.data.prepare imagenet2012 --data-dir {tmp_path}" in str(error.value)
    assert "155 GB of disk besides the archives, 1 to 3 hours" in str(error.value)


def test_half_prepared(data_dir):
    shard(data_dir, "validation", 0, 1).unlink()
    with pytest.raises(FileNotFoundError, match=r"half prepared: imagenet2012-val.*missing") as e:
        imagenet.open_imagenet(data_dir)
    assert "python -m training.data.prepare imagenet2012" in str(e.value)


def test_many_missing_shards_are_not_all_named(data_dir):
    path = data_dir / "imagenet2012" / "5.1.0" / "dataset_info.json"
    path.write_text(path.read_text().replace('["13", "10"]', json.dumps(["1"] * 1024)))
    with pytest.raises(FileNotFoundError, match="and 1021 more missing"):
        imagenet.open_imagenet(data_dir)


@pytest.mark.parametrize("damage", ["truncated", "too few", "features"])
def test_damaged_files(data_dir, records, damage):
    path = shard(data_dir, "train", 1, 2)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "too few":
        write_records(path, records[:3])
    else:
        (path.parent / "features.json").write_text("{")
    cause = {"truncated": path.name, "too few": "16 train records.*lists 23"}.get(damage, "")
    with pytest.raises(FileNotFoundError, match=f"is damaged .*{cause}.* delete it") as error:
        imagenet.open_imagenet(data_dir)
    assert "python -m training.data.prepare imagenet2012" in str(error.value)


def test_a_damaged_record_is_named(data_dir):
    path = shard(data_dir, "train", 0, 2)
    content = bytearray(path.read_bytes())
    content[len(content) // 8] ^= 1
    path.write_bytes(content)
    split = imagenet.open_imagenet(data_dir).train
    with pytest.raises(OSError, match=r"train record \d+ is damaged .*delete .*5.1.0 and prepare"):
        [split[i] for i in range(NUMBER)]


@pytest.mark.parametrize("there", [0, 1000])
def test_nothing_is_prepared_without_the_archives(tmp_path, monkeypatch, there, capsys):
    archives = {"ILSVRC2012_img_train.tar": 2000, "ILSVRC2012_img_val.tar": 1000}
    monkeypatch.setattr(prepare, "ARCHIVES", archives)
    folder = tmp_path / "downloads" / "manual"
    folder.mkdir(parents=True)
    (folder / "ILSVRC2012_img_val.tar").write_bytes(bytes(1000))
    state = "is missing"
    if there:
        (folder / "ILSVRC2012_img_train.tar").write_bytes(bytes(there))
        state = "has 1,000 of 2,000 bytes"
    with pytest.raises(FileNotFoundError, match=f"ILSVRC2012_img_train.tar {state}") as error:
        prepare.prepare("imagenet2012", tmp_path)
    assert "https://image-net.org" in str(error.value)
    assert not (tmp_path / "imagenet2012").exists()


# ---- The real sample ----------------------------------------------------------------------------


@needs_imagenet
def test_the_real_sample():
    data = imagenet.open_imagenet(REAL)
    assert len(data.train) >= 240
    assert len(data.validation) >= 60
    assert data.class_names is not None
    assert len(data.class_names) == 1000
    assert data.train[0].jpeg[:2] == b"\xff\xd8"
    assert data.train[0].file_name.endswith(".JPEG")
    if len(data.validation) == 60:
        grey = [i for i in range(240) if is_grey(data.train[i].jpeg)]
        assert len(grey) == 8
        image = imagenet.validation_image(data.train[grey[0]].jpeg)
        assert (image[..., 0] == image[..., 1]).all()


def is_grey(jpeg: bytes) -> bool:
    return Image.open(io.BytesIO(jpeg)).mode == "L"
