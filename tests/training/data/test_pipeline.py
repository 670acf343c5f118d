"""ImageNet's batches, of images made here."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

from tests.training.data.test_imagenet import NUMBER, make_image, make_records
from tests.training.data.test_memory import assert_same
from tests.training.data.test_tfds import REAL, needs_imagenet
from training.data import Batch, imagenet, pipeline
from training.data.imagenet import BadImage, Record
from training.data.pipeline import BadImages, training_batches, validation_batches
from training.data.stream import Feed

SIZE = 16


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return make_records()


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


def labels(batches) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels]


# ---- Batches ------------------------------------------------------------------------------------


def test_a_training_batch(records):
    (batch,) = train(records, 1)
    assert type(batch) is Batch
    assert (batch.mask.dtype, batch.mask.tolist()) == (np.bool_, [True] * 4)
    assert (batch.images.shape, batch.images.dtype) == ((4, SIZE, SIZE, 3), np.uint8)
    assert (batch.labels.shape, batch.labels.dtype) == ((4,), np.int32)
    colours = np.array([np.asarray(make_image(i), float).mean((0, 1)) for i in batch.labels])
    assert abs(batch.images.mean((1, 2)) - colours).mean() < 40  # a crop of that very image


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
        {int(n): image for b in batches[i : i + 5] for image, n, _ in zip(*b, strict=True)}
        for i in (0, 5)
    ]
    common = images[0].keys() & images[1].keys()
    assert all(not np.array_equal(images[0][n], images[1][n]) for n in common)


def test_the_seed_draws_order_and_crops(records):
    assert_same(train(records, 3), train(records, 3))
    assert labels(train(records, 5)) != labels(train(records, 5, seed=2))
    # and epoch 2 of seed 1 is not epoch 1 of seed 2
    assert labels(train(records, 5, first_step=5)) != labels(train(records, 5, seed=2))


def test_no_seed_repeats_an_order_of_another(records):
    orders = set()
    for seed in range(8):
        numbers = labels(train(records, 20, seed=seed))  # four epochs of 20 images
        orders |= {tuple(numbers[i : i + 20]) for i in range(0, 80, 20)}
    assert len(orders) == 32


def test_a_crop_does_not_depend_on_the_batch(records):
    small, large = (train(records, 20 // size, size) for size in (4, 20))
    np.testing.assert_array_equal(np.concatenate([b.images for b in small]), large[0].images)


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_hosts_shares_are_the_batches_of_one_host(records, hosts):
    shares = [train(records, 7, host=host, hosts=hosts) for host in range(hosts)]
    assert all(len(batch.labels) == 4 // hosts for share in shares for batch in share)
    steps = zip(*shares, strict=True)
    joined = [Batch(*map(np.concatenate, zip(*step, strict=True))) for step in steps]
    assert_same(joined, train(records, 7))


def test_workers_make_the_same_batches(records):
    with Feed(training_batches(records, 4, 1, image_size=SIZE, first_step=3, workers=2)) as feed:
        assert_same(list(islice(feed, 9)), train(records, 12)[3:])
    batches = validation_batches(records, 4, image_size=SIZE, workers=3)
    with Feed(batches) as feed:
        assert_same(list(feed), list(validation_batches(records, 4, image_size=SIZE)))


@pytest.mark.parametrize("share", [1, 4, 7, NUMBER, 30])
@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_every_validation_image_is_there_once(records, share, hosts):
    streams = [
        list(validation_batches(records, share * hosts, image_size=SIZE, host=host, hosts=hosts))
        for host in range(hosts)
    ]
    assert {len(stream) for stream in streams} == {-(-NUMBER // (share * hosts))}
    seen = []
    for batch in (batch for stream in streams for batch in stream):
        assert batch.images.shape == (share, SIZE, SIZE, 3)
        assert (batch.mask.shape, batch.mask.dtype) == ((share,), np.bool_)
        assert not batch.images[~batch.mask].any()
        seen += batch.labels[batch.mask].tolist()
    assert sorted(seen) == list(range(NUMBER))


def test_a_validation_image_is_in_its_place(records):
    (batch,) = validation_batches(records, NUMBER, image_size=SIZE)
    for number, record in enumerate(records):
        np.testing.assert_array_equal(
            batch.images[number], imagenet.validation_image(record.jpeg, SIZE)
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
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    # A batch is 3 MB. Training leaves room for the workers of the evaluation, too.
    training_batches(records, 20, 0, workers=2)
    with pytest.raises(OSError, match=r"need 72 MB of shared memory.*67 MB free.*--shm-size"):
        training_batches(records, 20, 0, workers=3)
    validation_batches(records, 2, workers=5)  # of 0.3 MB
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
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
        assert next(feed).labels.tolist() == [0, 1, 2, 3]
        with pytest.raises(BadImage, match=r"validation record 4 \(n00000004_4.JPEG\) does not"):
            next(feed)


def test_bad_images_are_named_counted_and_masked(damaged, records, capsys):
    bad = BadImages()
    for _ in range(2):
        batches = list(validation_batches(damaged, 4, image_size=SIZE, bad_images=bad))
        mask = np.concatenate([b.mask for b in batches])
        assert np.flatnonzero(~mask).tolist() == [4, 5, 20, 23]
        assert type(batches[0]) is Batch
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
        kept = batch.labels == other.labels
        np.testing.assert_array_equal(batch.images[kept], other.images[kept])
        assert kept.sum() == 20
    assert len(bad.names) == 3
    assert capsys.readouterr().err.count("Left out: train record") == 3


def test_nothing_but_bad_images_stops(records):
    broken = [record._replace(jpeg=b"") for record in records]
    with pytest.raises(BadImage, match=f"{len(records)} records in a row do not decode, from "):
        train(broken, 1, bad_images=BadImages())


# ---- The real sample ----------------------------------------------------------------------------


@needs_imagenet
def test_batches_of_the_real_sample():
    data = imagenet.open_imagenet(REAL)
    (batch,) = islice(training_batches(data.train, 32, 0), 1)
    assert batch.images.shape == (32, 224, 224, 3)
    assert 80 < batch.images.mean() < 150
    assert 40 < batch.images.std() < 90
    if len(data.validation) == 60:
        batches = list(validation_batches(data.validation, 32))
        assert [int(b.mask.sum()) for b in batches] == [32, 28]
        labels = [batch.labels[batch.mask] for batch in batches]
        assert len(set(np.concatenate(labels).tolist())) == 60
