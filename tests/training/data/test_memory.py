"""Data sets in memory: what they refuse, and the batches that are gathered on eight devices."""

import math
from itertools import islice
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from training.data import Batch
from training.data.memory import Dataset, digits, epoch_batches, load_npz


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits()


def test_digits_are_split_once_and_for_all(data):
    assert data.train_images.shape == (1437, 8, 8, 1)
    assert data.test_images.shape == (360, 8, 8, 1)
    assert data.train_images.dtype == np.uint8
    assert (data.train_images.min(), data.train_images.max()) == (0, 255)
    for labels in (data.train_labels, data.test_labels):
        assert set(labels.tolist()) == set(range(10))
        assert labels.dtype == np.int32
    assert np.array_equal(digits().test_images, data.test_images)
    seen = {image.tobytes() for image in data.train_images}
    assert not any(image.tobytes() in seen for image in data.test_images)
    assert (data.num_train, data.num_classes, data.image_shape) == (1437, 10, (8, 8, 1))
    assert data.class_names == tuple("0123456789")
    assert (data.mean, data.std, data.evaluated_on) == (127.5, 127.5, "test")


def test_held_out_images_are_no_longer_trained_on(data):
    held = data.hold_out(200)
    assert [len(x) for x in (held.train_images, held.train_labels)] == [1237, 1237]
    assert [len(x) for x in (held.test_images, held.test_labels)] == [200, 200]
    assert (held.evaluated_on, held.class_names) == ("validation", data.class_names)

    def rows(images, labels):
        return sorted(zip(map(bytes, images), labels, strict=True))

    both = [*rows(held.train_images, held.train_labels), *rows(held.test_images, held.test_labels)]
    assert sorted(both) == rows(data.train_images, data.train_labels)
    np.testing.assert_array_equal(data.hold_out(200).test_images, held.test_images)
    for number in (0, 1437):
        with pytest.raises(ValueError, match=f"--held-out must be from 1 to 1436, .* got {number}"):
            data.hold_out(number)


# ---- What a data set refuses --------------------------------------------------------------------

IMAGES = np.zeros((6, 4, 5, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def arrays(**changes: Any) -> dict[str, Any]:
    train_and_test = {
        f"{split}_{name}": array
        for split in ("train", "test")
        for name, array in (("images", IMAGES), ("labels", LABELS))
    }
    return train_and_test | changes


def test_the_classes_are_counted_and_the_labels_are_int32():
    data = Dataset(**arrays(test_labels=np.array([0, 4, 0, 0, 0, 0], np.uint8)))
    assert (data.num_train, data.num_classes, data.image_shape) == (6, 5, (4, 5, 3))
    assert data.train_labels.dtype == data.test_labels.dtype == np.int32
    np.testing.assert_array_equal(data.train_labels, LABELS)
    assert Dataset(**arrays(num_classes=10)).num_classes == 10
    assert Dataset(*arrays().values()).class_names is None


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", IMAGES / 255, r"images must be uint8, .* got float64: .*\.astype\(np.uint8\)"),
        ("images", IMAGES[..., 0], r"images must have the shape .* got \(6, 4, 5\): reshape"),
        ("images", IMAGES[:0], r"images is empty, of shape \(0, 4, 5, 3\): add images"),
        ("images", IMAGES[:, :0], r"images is empty, of shape \(6, 0, 5, 3\): add images"),
        ("images", IMAGES[:5], r"labels must have the shape \(5,\), .* got \(6,\): add or drop"),
        ("labels", LABELS[:5], r"labels must have the shape \(6,\), .* got \(5,\): add or drop"),
        ("labels", np.eye(6), r"labels must have the shape \(6,\), .* got \(6, 6\): .*argmax"),
        ("labels", LABELS / 1, r"labels must be integers, got float64: convert .*np.int32"),
        ("labels", LABELS == 1, r"labels must be integers, got bool: convert .*np.int32"),
        ("labels", LABELS - 1, r"labels must be from 0 .*, got -1 to 1: number the classes from 0"),
        ("labels", LABELS + 2**31, r"labels must be from 0 .*, got 2147483648 to .*: number the"),
    ],
)
def test_arrays_that_are_no_data_set(split, name, value, message):
    with pytest.raises(ValueError, match=f"^{split}_{message}"):
        Dataset(**arrays(**{f"{split}_{name}": value}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test_images": IMAGES[:, :, :4]},
            r"got .*\(4, 5, 3\) and \(4, 4, 3\): resize one",
        ),
        ({"num_classes": 2}, "labels must be from 0 to 1 .*, got 2: give the true number"),
        ({"class_names": ("a", "b")}, "a name for each of the 3 classes, got 2 names: add"),
    ],
)
def test_splits_and_classes_that_do_not_match(changes, message):
    with pytest.raises(ValueError, match=message):
        Dataset(**arrays(**changes))


# ---- .npz files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_file_is_a_data_set(tmp_path, save):
    images = np.random.default_rng(0).integers(0, 256, IMAGES.shape, np.uint8)
    save(tmp_path / "a.npz", **arrays(train_images=images))
    data = load_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(data.train_images, images)
    np.testing.assert_array_equal(data.test_labels, LABELS)
    assert (data.num_classes, data.class_names) == (3, None)
    save(tmp_path / "a.npz", **arrays(class_names=["ant", "bee", "cat"]))
    assert load_npz(tmp_path / "a.npz").class_names == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        ("missing", "No such file"),
        ("empty", "not a zip file"),
        ("not a zip", "not a zip file"),
        ("truncated", "not a zip file"),
        ("flipped", "Bad CRC-32|invalid"),
        ("no labels", "test_labels"),
        ("pickled", "allow_pickle=False"),
        ("one array", "not a zip file"),
        ("float images", "train_images must be uint8, from 0 to 255, got float64"),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_file_ends_with_the_remedy(tmp_path, save, damage, cause):
    path = tmp_path / "a.npz"
    images = np.random.default_rng(0).integers(0, 256, (6, 40, 50, 3), np.uint8)
    good = arrays(train_images=images, test_images=images)
    save(path, **good)
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "not a zip":
        path.write_bytes(b"what is this")
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 4] ^= 1
        path.write_bytes(content)
    elif damage == "no labels":
        save(path, **{name: array for name, array in good.items() if name != "test_labels"})
    elif damage == "pickled":
        save(path, **arrays(train_labels=np.array([{}] * 6)))
    elif damage == "one array":
        np.save(path.with_suffix(".npy"), images)
        path.with_suffix(".npy").rename(path)
    else:
        save(path, **arrays(train_images=IMAGES / 255))
    with pytest.raises(ValueError, match=f"a.npz is not a data set .*({cause})") as error:
        load_npz(path)
    assert "np.savez(path, train_images=..., train_labels=..., test_images=..." in str(error.value)


# ---- Batches ------------------------------------------------------------------------------------


def assert_same(batches: list[Batch], expected: list[Batch]):
    """Equal in values, shapes and types, and equally many."""
    for batch, other in zip(batches, expected, strict=True):
        assert type(batch) is type(other) is Batch
        for array, expected_array in zip(batch, other, strict=True):
            assert array.dtype == expected_array.dtype
            np.testing.assert_array_equal(array, expected_array)


def oracle(data: Dataset, seed: int, epochs: int, batch_size: int) -> list[Batch]:
    """The batches of whole epochs: each epoch's own permutation, an incomplete batch dropped."""
    batches = []
    for epoch in range(1, epochs + 1):
        order = np.random.default_rng([seed, epoch]).permutation(data.num_train)
        for step in range(data.num_train // batch_size):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            mask = np.ones(batch_size, bool)
            batches.append(Batch(data.train_images[chosen], data.train_labels[chosen], mask))
    return batches


def test_training_batches_are_those_of_each_epochs_permutation(data, mesh):
    source = data.batches(104, mesh)
    assert (source.steps_per_epoch, source.stacked) == (13, False)
    assert_same(list(islice(source.training(seed=3), 26)), oracle(data, 3, 2, 104))
    assert source.measurements() == {}


def test_positions_of_an_epoch_depend_on_seed_and_epoch():
    orders = [epoch_batches(seed, epoch, 23, 4) for seed in (0, 1) for epoch in (1, 2, 3)]
    for order in orders:
        assert (order.shape, order.dtype) == ((5, 4), np.int32)
        assert len(set(order.flat)) == 20
        assert set(order.flat) <= set(range(23))
    assert len({order.tobytes() for order in orders}) == 6
    np.testing.assert_array_equal(orders[0], epoch_batches(0, 1, 23, 4))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_training_resumes_at_every_step(data, mesh, monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    source, whole = data.batches(400, mesh), oracle(data, 0, 3, 400)  # 3 steps an epoch
    for step in range(7):
        resumed = islice(unstacked(source.training(seed=0, step=step), source.stacked), 9 - step)
        assert_same(list(resumed), whole[step:])


def unstacked(batches, stacked: bool):
    """The single batches of stacks."""
    if not stacked:
        yield from batches
    for stack in batches:
        yield from (Batch(*arrays) for arrays in zip(*map(np.asarray, stack), strict=True))


@pytest.mark.parametrize(
    ("step", "sizes"),
    [(0, [144, 144, 143, 144, 144, 143]), (1, [144, 143, 143, 144]), (232, [199, 144]), (430, [1])],
)
def test_stacks_are_even_and_end_with_the_epoch(mesh, monkeypatch, step, sizes):
    """431 steps an epoch: three stacks of at most 200 steps, as even as can be."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    images = np.arange(431 * 8, dtype=np.uint32).view(np.uint8).reshape(-1, 2, 2, 1)
    labels = np.arange(431 * 8) % 10
    data = Dataset(images, labels, images[:8], labels[:8])
    source = data.batches(8, mesh)
    assert (source.steps_per_epoch, source.stacked) == (431, True)
    stacks = list(islice(source.training(seed=1, step=step), len(sizes)))
    assert [len(stack.labels) for stack in stacks] == sizes
    expected = oracle(data, 1, math.ceil((step + sum(sizes)) / 431), 8)[step:]
    whole = Batch(*map(np.concatenate, zip(*stacks, strict=True)))
    expected = Batch(*map(np.stack, zip(*expected[: sum(sizes)], strict=True)))
    assert_same([whole], [expected])


@pytest.mark.parametrize("batch_size", [8, 24, 104, 360, 400])
def test_every_test_image_is_evaluated_exactly_once(data, mesh, batch_size):
    batches = list(data.batches(batch_size, mesh).evaluation())
    assert len(batches) == math.ceil(360 / batch_size)
    images, labels, mask = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    assert len(mask) % batch_size == 0
    assert (images.dtype, labels.dtype, mask.dtype) == (np.uint8, np.int32, np.bool_)
    assert all(len(array) == batch_size for batch in batches for array in batch)
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < 360)
    np.testing.assert_array_equal(images[mask], data.test_images)
    np.testing.assert_array_equal(labels[mask], data.test_labels)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_batches_are_divided_among_the_devices(data, mesh, monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    source = data.batches(104, mesh)
    one, stack = PartitionSpec("batch"), PartitionSpec(None, "batch")
    batches = [
        (next(source.training(seed=0)), stack if source.stacked else one),
        (next(source.evaluation()), one),
    ]
    for batch, spec in batches:
        for array in batch:
            assert array.sharding.is_equivalent_to(NamedSharding(mesh, spec), array.ndim)
        assert {len(shard.data.T) for shard in batch.labels.addressable_shards} == {13}


def test_every_device_has_the_whole_data_set_once(data, mesh):
    before = {id(array) for array in jax.live_arrays()}
    source = data.batches(104, mesh)
    new = [array for array in jax.live_arrays() if id(array) not in before]
    assert sorted(array.shape for array in new) == sorted(
        [(1437, 8, 8, 1), (1437,), (360, 8, 8, 1), (360,)]
    )
    assert all(array.sharding.is_fully_replicated for array in new)
    assert all(array.dtype == np.uint8 for array in new if array.ndim == 4)
    next(source.training(seed=0))


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (0, "--batch-size must be at least 1, got 0"),
        (1440, "--batch-size must be at most the 1437 training images, got 1440"),
        (100, "--batch-size must be a multiple of the 8 devices, got 100"),
    ],
)
def test_batches_that_cannot_be(data, mesh, batch_size, message):
    with pytest.raises(ValueError, match=message):
        data.batches(batch_size, mesh)


def test_a_source_may_be_closed(data, mesh):
    batches = data.batches(104, mesh).training(seed=0)
    next(batches)
    batches.close()
    assert list(islice(batches, 1)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (1, 2, 3)}, "mean must be a number, or one for each of the 1 channels"),
        ({"mean": np.nan}, "mean must be finite, got nan"),
        ({"std": np.zeros(1)}, "std must be above 0"),
        ({"std": np.nan}, "std must be above 0 and finite, got nan"),
        ({"std": np.inf}, "std must be above 0 and finite, got inf"),
    ],
)
def test_scaling_that_does_not_fit(options, message):
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4)
    with pytest.raises(ValueError, match=message):
        Dataset(images, labels, images, labels, **options)
    data = Dataset(images, labels, images, labels, np.int64(5), mean=np.float32(3), std=np.ones(1))
    assert (data.mean, data.std, type(data.num_classes)) == (3.0, (1.0,), int)


def test_class_names_of_an_archive(tmp_path):
    images, labels = np.zeros((2, 8, 8, 1), np.uint8), np.arange(2)
    arrays = dict.fromkeys(("train_images", "test_images"), images)
    arrays |= dict.fromkeys(("train_labels", "test_labels"), labels)
    np.savez(tmp_path / "data.npz", **arrays, class_names=np.array([b"cat", b"dog"]))
    assert load_npz(tmp_path / "data.npz").class_names == ("cat", "dog")
    np.savez(tmp_path / "data.npz", **arrays, class_names=np.array([["cat"], ["dog"]]))
    with pytest.raises(ValueError, match="class_names must have one dimension, got 2"):
        load_npz(tmp_path / "data.npz")
