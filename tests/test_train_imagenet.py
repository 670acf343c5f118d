"""train.py on ImageNet's sample: a network whose images stream from files."""

import json
import signal
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import train
from experiments.presets import PRESETS
from tests.test_train import build
from tests.training.data.test_tfds import REAL, needs_imagenet
from tests.training.test_run import assert_same_run, metrics, run, start
from training.config import BinaryAlexNet, ImageNet
from training.data import imagenet
from training.data.pipeline import training_batches

pytestmark = [pytest.mark.usefixtures("standard_promotion_throughout"), needs_imagenet]
PRESET = "imagenet-birealnet-bop"
TINY = replace(  # a network that compiles in a moment
    PRESETS["imagenet-alexnet-bop-released"][1],
    data=ImageNet(REAL, workers=0),
    model=BinaryAlexNet(width=2, units=8),
    batch_size=24,
)
OPTIONS = (PRESET, "--width", 4, "--batch-size", 40, "--data-dir", REAL)


@pytest.mark.slow
def test_steps_and_accuracies_are_of_the_streamed_images():
    """Two steps by hand, then top-1 and top-5 over each validation image once."""
    data = TINY.data.load()
    steps = build(TINY, data, jax.devices())
    assert (steps.source.steps_per_epoch, steps.source.stacked) == (10, False)
    by_hand, batches = steps.first(), iter(training_batches(data.train, 24, seed=0))
    expected = []
    for _ in range(2):
        batch = jax.tree.map(jnp.asarray, next(batches))
        by_hand, extremes = steps.step(by_hand, batch, jax.random.key(0), {})
        expected.append(float(extremes.loss))

    state, losses = steps.run(steps.first(), 2)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    measured = steps.source.measurements()
    assert measured["seconds_waited"] > 0
    assert measured["bad_images"] == 0
    assert steps.source.measurements()["seconds_waited"] == 0  # of the next epoch
    count = jax.jit(train.make_count_correct(steps.network))
    state = jax.jit(steps.network.eval_state)(state)
    accuracy, top5_accuracy = train.evaluate(count, state, steps.source.evaluation())

    model = nnx.merge(steps.network.eval_graph, state)
    classify = nnx.jit(lambda model, images: model(steps.network.scale(images)))
    top1 = top5 = 0
    for number in range(0, 60, 20):
        files = [data.validation[i] for i in range(number, number + 20)]
        images = jnp.stack([imagenet.validation_image(file.jpeg) for file in files])
        ranks = np.argsort(-np.asarray(classify(model, images)), -1)
        labels = np.array([file.label for file in files])
        top1 += np.sum(ranks[:, 0] == labels)
        top5 += np.sum(np.any(ranks[:, :5] == labels[:, None], -1))
    assert accuracy == pytest.approx(top1 / 60)
    assert top5_accuracy == pytest.approx(top5 / 60)


def test_the_stream_resumes_at_any_step():
    """From a step on, batches are those of the whole stream."""
    data = TINY.data.load()
    source = build(TINY, data).source

    def first_images(step: int, number: int) -> list[np.ndarray]:
        with closing(source.training(0, step)) as stream:
            return [np.asarray(next(stream).images[0, ::32, ::32]) for _ in range(number)]

    whole = first_images(0, 12)
    np.testing.assert_array_equal(first_images(7, 5), whole[7:])


def test_a_damaged_image_ends_the_run(monkeypatch):
    """With a message that names it and the option that skips it, in training and evaluation."""

    def broken(*_: object, **__: object):
        raise imagenet.BadImage("does not decode: no known image format")

    monkeypatch.setattr("training.data.pipeline.training_image", broken)
    monkeypatch.setattr("training.data.pipeline.validation_image", broken)
    source = build(TINY, TINY.data.load()).source
    for stream in (source.training(0), source.evaluation()):
        with pytest.raises(OSError, match=r"record \d+ .*does not decode.*: --bad-images skip"):
            next(stream)


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_an_error_of_the_workers_ends_the_run(error, monkeypatch):
    """With its message, in training and in evaluation, not with a traceback."""

    def broken(*_: object, **__: object):
        raise error("what happened")

    monkeypatch.setattr("training.data.stream.training_batches", broken)
    monkeypatch.setattr("training.data.stream.validation_batches", broken)
    source = build(TINY, TINY.data.load()).source
    for stream in (source.training(0), source.evaluation()):
        with pytest.raises(OSError, match="what happened"):
            next(stream)


def epochs_done(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
def test_a_killed_run_resumes_bit_identical(tmp_path):
    """Bi-Real Net-18 through real worker processes: stopped in its first epoch, then killed."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    process = run(*OPTIONS, "--epochs", 3, "--workers", 0, "--run-dir", whole)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert 0 <= result["validation_accuracy"] <= result["validation_top5"] <= 1
    assert [m["step"] for m in metrics(whole)] == [6, 12, 18]

    options = (*OPTIONS, "--epochs", 3, "--workers", 2, "--run-dir", stopped)
    for epochs, number in ((1, signal.SIGTERM), (2, signal.SIGKILL)):
        process = start(*options, *(["--resume"] if epochs > 1 else []))
        while process.poll() is None and epochs_done(stopped) < epochs:
            time.sleep(0.1)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == (143 if number == signal.SIGTERM else -number), output
    process = run(*options, "--resume")
    assert process.returncode == 0, process.stderr
    assert_same_run(stopped, whole)
    assert "Traceback" not in process.stderr
