"""ImageNet's input pipeline, on images made here; the real sample is read where it is at hand."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import grain
import numpy as np
import pytest
from PIL import Image

import datasets
import imagenet
from imagenet import BadImage, BadImages, Feed, Record, training_batches, validation_batches

REAL = Path(
    os.environ.get("TFDS_DATA_DIR") or Path(__file__).parents[2] / "shared/data/tensorflow_datasets"
)
NUMBER, SIZE = 23, 16


def encode(image: Image.Image, file_format: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def make_image(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((40 + 3 * number, 90 - 2 * number))


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [Record(encode(make_image(i)), i, f"n{i:08d}_{i}.JPEG") for i in range(NUMBER)]


@pytest.fixture
def damaged(records) -> list[Record]:
    """Records 4, 5 and 20 do not decode."""
    damaged = list(records)
    damaged[4] = records[4]._replace(jpeg=records[4].jpeg[:400])
    damaged[5] = records[5]._replace(jpeg=b"no image")
    damaged[20] = records[20]._replace(jpeg=b"")
    return damaged


def train(records, steps: int, batch_size: int = 4, seed: int = 1, **options) -> list:
    batches = training_batches(records, batch_size, seed, image_size=SIZE, **options)
    return list(islice(batches, steps))


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in other:
            assert batch[name].dtype == other[name].dtype
            np.testing.assert_array_equal(batch[name], other[name])


def labels(batches) -> list[int]:
    return [int(label) for batch in batches for label in batch["label"]]


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


# ---- Batches ------------------------------------------------------------------------------------


def test_a_training_batch(records):
    (batch,) = train(records, 1)
    assert batch.keys() == {"image", "label"}
    assert (batch["image"].shape, batch["image"].dtype) == ((4, SIZE, SIZE, 3), np.uint8)
    assert (batch["label"].shape, batch["label"].dtype) == ((4,), np.int32)
    colours = np.array([np.asarray(make_image(i), float).mean((0, 1)) for i in batch["label"]])
    assert abs(batch["image"].mean((1, 2)) - colours).mean() < 40  # a crop of that very image


def test_training_resumes_at_every_step_bit_for_bit(records):
    whole = train(records, 12)  # two epochs of 5 steps, and 2
    for first_step in range(12):
        assert_same(train(records, 12 - first_step, first_step=first_step), whole[first_step:])


def test_every_epoch_has_its_own_order_and_crops_and_drops_a_part_batch(records):
    batches = train(records, 15)
    epochs = [labels(batches[i : i + 5]) for i in (0, 5, 10)]
    for order in epochs:
        assert len(set(order)) == 20
        assert set(order) <= set(range(NUMBER))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    images = [
        {int(n): image for b in batches[i : i + 5] for n, image in zip(*_pair(b), strict=True)}
        for i in (0, 5)
    ]
    common = images[0].keys() & images[1].keys()
    assert all(not np.array_equal(images[0][n], images[1][n]) for n in common)


def _pair(batch):
    return batch["label"], batch["image"]


def test_the_seed_draws_order_and_crops(records):
    assert_same(train(records, 3), train(records, 3))
    assert labels(train(records, 5)) != labels(train(records, 5, seed=2))
    # and no seed's epochs are another's, one later
    assert labels(train(records, 5, first_step=5)) != labels(train(records, 5, seed=2))


def test_a_crop_does_not_depend_on_the_batch(records):
    small, large = (train(records, 20 // size, size) for size in (4, 20))
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in small]), large[0]["image"])


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_hosts_shares_are_the_batches_of_one_host(records, hosts):
    shares = [train(records, 7, host=host, hosts=hosts) for host in range(hosts)]
    assert all(len(batch["label"]) == 4 // hosts for share in shares for batch in share)
    steps = zip(*shares, strict=True)
    joined = [{k: np.concatenate([s[k] for s in step]) for k in step[0]} for step in steps]
    assert_same(joined, train(records, 7))


def test_workers_make_the_same_batches(records):
    with Feed(training_batches(records, 4, 1, image_size=SIZE, first_step=3, workers=2)) as feed:
        assert_same(list(islice(feed, 9)), train(records, 12)[3:])
    batches = validation_batches(records, 4, image_size=SIZE, workers=3)
    with Feed(batches) as feed:
        assert_same(list(feed), list(validation_batches(records, 4, image_size=SIZE)))


@pytest.mark.parametrize("share", [1, 4, 7, NUMBER, 30])
@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_every_validation_image_counts_once(records, share, hosts):
    streams = [
        list(validation_batches(records, share * hosts, image_size=SIZE, host=host, hosts=hosts))
        for host in range(hosts)
    ]
    assert {len(stream) for stream in streams} == {-(-NUMBER // (share * hosts))}
    seen = []
    for batch in (batch for stream in streams for batch in stream):
        assert batch["image"].shape == (share, SIZE, SIZE, 3)
        assert (batch["counted"].shape, batch["counted"].dtype) == ((share,), np.bool_)
        assert not batch["image"][~batch["counted"]].any()
        seen += labels([{"label": batch["label"][batch["counted"]]}])
    assert sorted(seen) == list(range(NUMBER))


def test_a_validation_image_is_in_its_place(records):
    (batch,) = validation_batches(records, NUMBER, image_size=SIZE)
    for number, record in enumerate(records):
        np.testing.assert_array_equal(
            batch["image"][number], imagenet.validation_image(record.jpeg, SIZE)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 24}, "from 1 to the 23 training images, got 24"),
        ({"batch_size": 0}, "got 0"),
        ({"batch_size": 4, "hosts": 3}, "a multiple of the hosts.*batch_size=4, hosts=3"),
        ({"batch_size": 4, "hosts": 2, "host": 2}, "hosts=2, host=2"),
    ],
)
def test_batches_that_cannot_be(records, options, message):
    with pytest.raises(ValueError, match=message):
        training_batches(records, seed=0, **options)
    if options["batch_size"] != 24:
        with pytest.raises(ValueError, match=message.replace("from 1 to.*", "")):
            validation_batches(records, **options)


def test_too_little_shared_memory(records, monkeypatch):
    monkeypatch.setattr(imagenet.shutil, "disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    # A batch is 3 MB. Training leaves room for the workers of the evaluation beside its own.
    training_batches(records, 20, 0, workers=2)
    with pytest.raises(OSError, match=r"need 72 MB of shared memory.*67 MB free.*--shm-size"):
        training_batches(records, 20, 0, workers=3)
    validation_batches(records, 2, workers=5)  # of 0.3 MB
    monkeypatch.setattr(imagenet.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    with pytest.raises(OSError, match=r"need 6 MB of shared memory.*5 MB free"):
        validation_batches(records, 2, workers=5)


# ---- Images that do not decode ------------------------------------------------------------------


def test_a_bad_image_stops(damaged):
    with pytest.raises(BadImage, match=r"validation record 4 \(n00000004_4.JPEG\) does not decode"):
        list(validation_batches(damaged, 4, image_size=SIZE))
    with pytest.raises(BadImage, match=r"train record (4|5|20) \(n.*JPEG\) does not decode: ."):
        train(damaged, 5)


def test_a_bad_image_stops_from_a_worker(damaged):
    batches = validation_batches(damaged, 4, image_size=SIZE, workers=1)
    with Feed(batches) as feed:
        assert next(feed)["label"].tolist() == [0, 1, 2, 3]
        with pytest.raises(BadImage, match=r"validation record 4 \(n00000004_4.JPEG\) does not"):
            next(feed)


def test_bad_images_are_named_counted_and_do_not_count(damaged, records, capsys):
    bad = BadImages()
    for _ in range(2):
        batches = list(validation_batches(damaged, 4, image_size=SIZE, bad_images=bad))
        counted = np.concatenate([b["counted"] for b in batches])
        assert np.flatnonzero(~counted).tolist() == [4, 5, 20, 23]
        assert batches[0].keys() == {"image", "label", "counted"}
    assert len(bad.names) == 3
    named = [f"Left out: {name} {fault}" for name, fault in bad.names.items()]
    assert capsys.readouterr().err.splitlines() == named
    for name, number in zip(bad.names, (4, 5, 20), strict=True):
        assert name == f"validation record {number} ({records[number].file_name})"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_record_takes_a_bad_ones_place(damaged, records, workers, capsys):
    bad = BadImages()
    batches = training_batches(damaged, 23, 1, image_size=SIZE, bad_images=bad, workers=workers)
    with Feed(batches) as feed:
        left = list(islice(feed, 2))
    whole = train(records, 2, 23)
    places = {4: 6, 5: 6, 20: 21}
    assert labels(left) == [places.get(label, label) for label in labels(whole)]
    for batch, other in zip(left, whole, strict=True):
        kept = batch["label"] == other["label"]
        np.testing.assert_array_equal(batch["image"][kept], other["image"][kept])
        assert kept.sum() == 20
    assert len(bad.names) == 3
    assert capsys.readouterr().err.count("Left out: train record") == 3


def test_nothing_but_bad_images_stops(records):
    broken = [record._replace(jpeg=b"") for record in records]
    with pytest.raises(BadImage, match=f"{len(records)} records in a row do not decode, from "):
        train(broken, 1, bad_images=BadImages())


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
    for split in data:
        assert [split[i] for i in range(len(split))] == records
    assert (data.num_train, data.num_classes, data.image_shape) == (NUMBER, 1000, (224, 224, 3))
    with Feed(training_batches(data.train, 4, 1, image_size=SIZE, workers=1)) as feed:
        assert_same(list(islice(feed, 6)), train(records, 6))


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="imagenet2012 is not prepared in") as error:
        imagenet.open_imagenet(tmp_path)
    assert "ILSVRC2012_img_train.tar (147.9 GB) and ILSVRC2012_img_val.tar" in str(error.value)
    assert str(tmp_path / "downloads" / "manual") in str(error.value)
    assert f"python datasets.py imagenet2012 --data-dir {tmp_path}" in str(error.value)
    assert "155 GB of disk beside the archives, 1 to 3 hours" in str(error.value)


def test_half_prepared(data_dir):
    shard(data_dir, "validation", 0, 1).unlink()
    with pytest.raises(FileNotFoundError, match=r"half prepared: imagenet2012-val.*missing") as e:
        imagenet.open_imagenet(data_dir)
    assert "python datasets.py imagenet2012" in str(e.value)


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
    cause = {"truncated": path.name, "too few": "16 train records.*says 23"}.get(damage, "")
    with pytest.raises(FileNotFoundError, match=f"is damaged .*{cause}.* delete it") as error:
        imagenet.open_imagenet(data_dir)
    assert "python datasets.py imagenet2012" in str(error.value)


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
    monkeypatch.setattr(datasets, "ARCHIVES", archives)
    folder = tmp_path / "downloads" / "manual"
    folder.mkdir(parents=True)
    (folder / "ILSVRC2012_img_val.tar").write_bytes(bytes(1000))
    state = "is missing"
    if there:
        (folder / "ILSVRC2012_img_train.tar").write_bytes(bytes(there))
        state = "has 1,000 of 2,000 bytes"
    with pytest.raises(FileNotFoundError, match=f"ILSVRC2012_img_train.tar {state}") as error:
        datasets.prepare("imagenet2012", tmp_path)
    assert "https://image-net.org" in str(error.value)
    assert not (tmp_path / "imagenet2012").exists()


# ---- To the device ------------------------------------------------------------------------------


def numbers(n: int) -> grain.IterDataset:
    return grain.MapDataset.range(n).to_iter_dataset()


def test_a_feed_keeps_the_order():
    with Feed(numbers(50), lambda x: 10 * x, ahead=3) as feed:
        assert list(feed) == list(range(0, 500, 10))


def test_a_feed_works_ahead_and_no_further():
    made = []
    full = threading.Event()

    def put(number):
        made.append(number)
        if len(made) == 3:  # two that wait, and one in the making
            full.set()
        return number

    with Feed(numbers(50), put, ahead=2) as feed:
        assert full.wait(30)  # before anybody asks
        assert next(feed) == 0
    assert len(made) <= 5


def test_what_a_feed_waits_is_added_up(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 14.5])
    with Feed(numbers(2)) as feed:
        monkeypatch.setattr(imagenet, "time", SimpleNamespace(perf_counter=clock.__next__))
        assert (next(feed), feed.waited) == (0, 3)
        assert (next(feed), feed.waited) == (1, 7.5)


def test_what_put_raises_reaches_the_consumer():
    def put(number):
        if number == 2:
            raise ValueError(f"no {number}")
        return number

    with Feed(numbers(5), put) as feed:
        assert [next(feed), next(feed)] == [0, 1]
        with pytest.raises(ValueError, match="no 2"):
            next(feed)


def test_a_closed_feed_leaves_no_thread():
    before = set(threading.enumerate())
    feed = Feed(numbers(10**9))
    next(feed)
    assert set(threading.enumerate()) - before
    feed.close()
    feed.close()
    assert not set(threading.enumerate()) - before
    with pytest.raises(ValueError, match="this Feed is closed"):
        next(feed)


PROGRAM = """
import sys
from itertools import islice
from imagenet import Feed, Record, training_batches
from tests.test_imagenet import encode, make_image

if __name__ == "__main__":
    records = [Record(encode(make_image(i)), i, "") for i in range(9)]
    feed = Feed(training_batches(records, 3, 0, image_size=16, workers=2))
    batch = next(feed)
    print("ready", flush=True)
    if sys.argv[1] != "ends":
        for batch in feed:
            pass
"""


@pytest.mark.parametrize("end", ["ends", "interrupted", "killed"])
def test_no_process_and_no_noise_is_left(tmp_path, end):
    """The program never closes its Feed."""
    (tmp_path / "program.py").write_text(PROGRAM)
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", end],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    group = process.pid
    try:
        assert process.stdout.readline() == "ready\n"
        if end == "interrupted":
            os.killpg(group, signal.SIGINT)  # as a terminal does: to the workers, too
        elif end == "killed":
            process.kill()
        _, errors = process.communicate(timeout=60)  # the workers hold the pipes open
        assert running(group) == []
    finally:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    if end == "ends":
        assert (process.returncode, errors) == (0, "")
    elif end == "interrupted":
        assert process.returncode == -signal.SIGINT
        assert errors.count("Traceback") == errors.count("\nKeyboardInterrupt\n") == 1


def running(group: int) -> list[str]:
    """What still runs of a process group, after up to ten seconds to end."""
    for _ in range(100):
        states = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(its_group) == group and state != "Z":
                states.append(stat.parent.name)
        if not states:
            break
        time.sleep(0.1)
    return states


# ---- The real sample ----------------------------------------------------------------------------


@pytest.mark.skipif(not (REAL / "imagenet2012").exists(), reason=f"no prepared ImageNet in {REAL}")
def test_the_real_sample():
    data = imagenet.open_imagenet(REAL)
    assert len(data.train) >= 240
    assert len(data.validation) >= 60
    assert data.train[0].jpeg[:2] == b"\xff\xd8"
    assert data.train[0].file_name.endswith(".JPEG")
    (batch,) = islice(training_batches(data.train, 32, 0), 1)
    assert batch["image"].shape == (32, 224, 224, 3)
    assert 80 < batch["image"].mean() < 150
    assert 40 < batch["image"].std() < 90
    if len(data.validation) == 60:
        batches = list(validation_batches(data.validation, 32))
        assert [int(b["counted"].sum()) for b in batches] == [32, 28]
        counted = [batch["label"][batch["counted"]] for batch in batches]
        assert len(set(np.concatenate(counted).tolist())) == 60
        grey = [i for i in range(240) if is_grey(data.train[i].jpeg)]
        assert len(grey) == 8
        image = imagenet.validation_image(data.train[grey[0]].jpeg)
        assert (image[..., 0] == image[..., 1]).all()


def is_grey(jpeg: bytes) -> bool:
    return Image.open(io.BytesIO(jpeg)).mode == "L"
