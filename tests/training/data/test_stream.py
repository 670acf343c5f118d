"""The way of batches to the devices: order, work ahead, errors, and processes left at the end."""

import dataclasses
import doctest
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import grain
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.training.data.test_imagenet import NUMBER, make_records
from tests.training.data.test_memory import assert_same
from training.data import imagenet, stream
from training.data.imagenet import BadImage, ImageNet
from training.data.pipeline import training_batches, validation_batches
from training.data.stream import Feed

# ---- Feed ---------------------------------------------------------------------------------------


def numbers(n: int) -> grain.IterDataset:
    return grain.MapDataset.range(n).to_iter_dataset()


def test_a_feed_keeps_the_order():
    with Feed(numbers(50), lambda x: 10 * x, ahead=3) as feed:
        assert list(feed) == list(range(0, 500, 10))


def test_the_feeds_example():
    result = doctest.testmod(stream)
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
        monkeypatch.setattr(stream, "time", SimpleNamespace(perf_counter=clock.__next__))
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
from tests.training.data.test_imagenet import make_records
from training.data.pipeline import training_batches
from training.data.stream import Feed

if __name__ == "__main__":
    faulthandler.dump_traceback_later(50)  # shows where it hangs
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
    root = Path(__file__).parents[3]
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
    """The processes of a group that still run after up to ten seconds."""
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


# ---- Streamed -----------------------------------------------------------------------------------

SIZE = 16


@pytest.fixture(scope="module")
def data() -> ImageNet:
    records = make_records()
    return ImageNet(records, records, image_shape=(SIZE, SIZE, 3))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_the_pipeline_on_the_mesh(data, mesh, workers):
    source = dataclasses.replace(data, workers=workers).batches(8, mesh)
    assert (source.steps_per_epoch, source.stacked) == (NUMBER // 8, False)
    with closing(source.training(seed=3)) as batches:
        whole = list(islice(batches, 5))
    assert_same(whole, list(islice(training_batches(data.train, 8, 3, image_size=SIZE), 5)))
    evaluated = list(source.evaluation())
    assert_same(evaluated, list(validation_batches(data.validation, 8, image_size=SIZE)))
    assert sum(int(batch.mask.sum()) for batch in evaluated) == NUMBER
    for array in (*whole[0], *evaluated[0]):
        assert array.sharding.is_equivalent_to(
            NamedSharding(mesh, PartitionSpec("batch")), array.ndim
        )


def test_streamed_training_resumes_at_every_step(data, mesh):
    source = data.batches(8, mesh)
    with closing(source.training(seed=0)) as batches:
        whole = list(islice(batches, 5))  # two epochs of 2 steps, and 1
    for step in range(5):
        with closing(source.training(seed=0, step=step)) as batches:
            assert_same(list(islice(batches, 5 - step)), whole[step:])


def test_a_closed_source_leaves_no_thread(data, mesh):
    before = set(threading.enumerate())
    source = data.batches(8, mesh)
    for batches in (source.training(seed=0), source.evaluation()):
        next(batches)
        assert set(threading.enumerate()) - before
        batches.close()
        assert not set(threading.enumerate()) - before


def test_seconds_of_training_are_measured_and_reset(data, mesh):
    source = data.batches(8, mesh)
    assert source.measurements() == {"seconds_waited": 0, "bad_images": 0}
    with closing(source.training(seed=0)) as batches:
        next(batches)
        assert source.measurements()["seconds_waited"] > 0
        assert source.measurements()["seconds_waited"] == 0
        list(source.evaluation())
        assert source.measurements()["seconds_waited"] == 0


def test_bad_images_are_skipped_on_request(data, mesh, capsys):
    broken = [
        record._replace(jpeg=b"") if i == 4 else record for i, record in enumerate(data.train)
    ]
    data = dataclasses.replace(data, train=broken, validation=broken)
    source = data.batches(8, mesh)
    hint = r"\) does not decode: .*: --bad-images skip leaves such images out"
    with pytest.raises(BadImage, match=f"train record 4 .*{hint}"):
        list(islice(source.training(seed=0), 4))
    with pytest.raises(BadImage, match=f"validation record 4 .*{hint}"):
        list(source.evaluation())
    source = dataclasses.replace(data, bad_images="skip").batches(8, mesh)
    for _ in range(2):
        evaluated = list(source.evaluation())
        assert sum(int(batch.mask.sum()) for batch in evaluated) == NUMBER - 1
        assert source.measurements()["bad_images"] == 1
    with closing(source.training(seed=0)) as batches:
        assert all(batch.mask.all() for batch in islice(batches, 4))
    assert source.measurements()["bad_images"] == 2
    assert capsys.readouterr().err.count("Left out: ") == 2


@pytest.mark.parametrize("error", [OSError, RuntimeError, imagenet.BadImage])
def test_what_ends_the_workers_is_an_os_error(data, mesh, error, monkeypatch):
    """With its message, in training and in evaluation."""

    def broken(*_: object, **__: object):
        raise error("what happened")

    monkeypatch.setattr(stream, "training_batches", broken)
    monkeypatch.setattr(stream, "validation_batches", broken)
    source = data.batches(8, mesh)
    message = {
        RuntimeError: "^The image workers ended: what happened$",
        BadImage: "^what happened: --bad-images skip leaves such images out$",
    }.get(error, "^what happened$")
    with pytest.raises(OSError, match=message):
        next(source.training(seed=0))
    with pytest.raises(OSError, match=message):
        next(source.evaluation())


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (0, "--batch-size must be at least 1, got 0"),
        (32, "--batch-size must be at most the 23 training images, got 32"),
        (12, "--batch-size must be a multiple of the 8 devices, got 12"),
    ],
)
def test_batches_that_cannot_be_streamed(data, mesh, batch_size, message):
    with pytest.raises(ValueError, match=message):
        data.batches(batch_size, mesh)
