"""ImageNet's batches and their way to the device, of images made here."""

import doctest
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

import feed as feed_module
import imagenet
from feed import BadImages, Feed, training_batches, validation_batches
from imagenet import BadImage, Record
from tests.test_datasets import REAL, needs_imagenet
from tests.test_imagenet import NUMBER, make_image, make_records

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


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in other:
            assert batch[name].dtype == other[name].dtype
            np.testing.assert_array_equal(batch[name], other[name])


def labels(batches) -> list[int]:
    return [int(label) for batch in batches for label in batch["label"]]


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
    monkeypatch.setattr(feed_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    # A batch is 3 MB. Training leaves room for the workers of the evaluation beside its own.
    training_batches(records, 20, 0, workers=2)
    with pytest.raises(OSError, match=r"need 72 MB of shared memory.*67 MB free.*--shm-size"):
        training_batches(records, 20, 0, workers=3)
    validation_batches(records, 2, workers=5)  # of 0.3 MB
    monkeypatch.setattr(feed_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
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


# ---- To the device ------------------------------------------------------------------------------


def numbers(n: int) -> grain.IterDataset:
    return grain.MapDataset.range(n).to_iter_dataset()


def test_a_feed_keeps_the_order():
    with Feed(numbers(50), lambda x: 10 * x, ahead=3) as feed:
        assert list(feed) == list(range(0, 500, 10))


def test_the_feeds_example():
    result = doctest.testmod(feed_module)
    assert (result.failed, result.attempted > 0) == (0, True)


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
        monkeypatch.setattr(feed_module, "time", SimpleNamespace(perf_counter=clock.__next__))
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
import faulthandler
import signal
import sys
from feed import Feed, training_batches
from tests.test_imagenet import make_records

if __name__ == "__main__":
    faulthandler.dump_traceback_later(50)  # what it does, where it does not end
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    feed = Feed(training_batches(make_records(), 3, 0, image_size=16, workers=2))
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
    with subprocess.Popen(
        [sys.executable, tmp_path / "program.py", end],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
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
        except subprocess.TimeoutExpired:
            os.killpg(group, signal.SIGKILL)
            pytest.fail(f"does not end:\n{process.communicate()[1]}")
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


@needs_imagenet
def test_batches_of_the_real_sample():
    data = imagenet.open_imagenet(REAL)
    (batch,) = islice(training_batches(data.train, 32, 0), 1)
    assert batch["image"].shape == (32, 224, 224, 3)
    assert 80 < batch["image"].mean() < 150
    assert 40 < batch["image"].std() < 90
    if len(data.validation) == 60:
        batches = list(validation_batches(data.validation, 32))
        assert [int(b["counted"].sum()) for b in batches] == [32, 28]
        counted = [batch["label"][batch["counted"]] for batch in batches]
        assert len(set(np.concatenate(counted).tolist())) == 60
