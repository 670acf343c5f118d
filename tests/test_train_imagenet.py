"""train.py on ImageNet's sample: a network whose images stream from files."""

import dataclasses
import json
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import datasets
import feed
import imagenet
import train
from experiments import PRESETS
from tests.test_datasets import REAL, needs_imagenet
from tests.test_runs import assert_same_run, metrics, run, start

pytestmark = [pytest.mark.usefixtures("standard_promotion_throughout"), needs_imagenet]
PRESET = "imagenet-birealnet-bop"
TINY = dataclasses.replace(  # a network that compiles in a moment
    PRESETS["imagenet-alexnet-bop-released"][1],
    width=2,
    units=8,
    batch_size=24,
    workers=0,
    data_dir=REAL,
)
OPTIONS = (PRESET, "--width", 4, "--batch-size", 40, "--data-dir", REAL)


def test_steps_and_accuracies_are_of_the_streamed_images():
    """Two steps by hand, then top-1 and top-5 over each validation image once."""
    data = train.load_data(TINY)
    program, state = train.build(TINY, data)
    assert program.steps_per_epoch == 10
    step = jax.jit(train.make_train_step(program, TINY))
    by_hand, batches = state, iter(feed.training_batches(data.train, 24, seed=0))
    expected = []
    for _ in range(2):
        batch = next(batches)
        by_hand, loss = step(by_hand, (jnp.asarray(batch["image"]), jnp.asarray(batch["label"])))
        expected.append(float(loss))

    trainee = train.one_streamed_network(TINY, data, program)
    chunks = trainee.chunks(0)
    chunk = next(chunks)
    state, losses = trainee.train_steps(state, [next(chunk) for _ in range(2)])
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    record = trainee.metrics(state, 2, True)
    chunks.close()
    assert record["seconds_waited"] > 0
    assert record["bad_images"] == 0

    model = nnx.merge(program.eval_graph, state.params, state.batch_stats)
    classify = nnx.jit(lambda model, images: model(program.scale(images)))
    top1 = top5 = 0
    for number in range(0, 60, 20):
        files = [data.validation[i] for i in range(number, number + 20)]
        images = jnp.stack([imagenet.validation_image(file.jpeg) for file in files])
        ranks = np.argsort(-np.asarray(classify(model, images)), -1)
        labels = np.array([file.label for file in files])
        top1 += np.sum(ranks[:, 0] == labels)
        top5 += np.sum(np.any(ranks[:, :5] == labels[:, None], -1))
    assert record["validation_accuracy"] == pytest.approx(top1 / 60)
    assert record["validation_top5"] == pytest.approx(top5 / 60)


def test_the_stream_goes_on_where_it_was_stopped():
    """From a step on, batches are those of the whole stream, and no chunk crosses an epoch."""
    data = train.load_data(TINY)
    program, _ = train.build(TINY, data)
    trainee = train.one_streamed_network(TINY, data, program)

    def first_images(step: int, chunks: int) -> list[list[np.ndarray]]:
        stream = trainee.chunks(step)
        images = [
            [np.asarray(batch[0][0, ::32, ::32]) for batch, _, _ in next(stream)]
            for _ in range(chunks)
        ]
        stream.close()
        return images

    whole = first_images(0, 2)
    assert [len(chunk) for chunk in whole] == [10, 10]
    resumed = first_images(7, 1)
    assert [len(chunk) for chunk in resumed] == [3]
    np.testing.assert_array_equal(resumed[0], whole[0][7:])


def test_scale_normalizes_each_channel():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8))
    ours = datasets.scale(images, imagenet.MEAN, imagenet.STD)
    theirs = (np.asarray(images) - np.array(imagenet.MEAN)) / np.array(imagenet.STD)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("error", [OSError, RuntimeError, imagenet.BadImage])
def test_what_ends_the_workers_ends_the_run(error, monkeypatch):
    """With its message, in training and in evaluation, not with a traceback."""

    def broken(*_: object, **__: object):
        raise error("what happened")

    monkeypatch.setattr(feed, "training_batches", broken)
    monkeypatch.setattr(feed, "validation_batches", broken)
    data = train.load_data(TINY)
    program, state = train.build(TINY, data)
    trainee = train.one_streamed_network(TINY, data, program)
    chunks = trainee.chunks(0)
    with pytest.raises(train.Stopped, match="what happened"):
        trainee.train_steps(state, next(chunks))
    with pytest.raises(train.Stopped, match="what happened"):
        trainee.metrics(state, 1, True)


def test_images_of_which_none_decodes_have_no_accuracy():
    data = train.load_data(TINY)
    program, state = train.build(TINY, data)
    images = jnp.zeros((8, 224, 224, 3), jnp.uint8), jnp.zeros(8, jnp.int32)
    with pytest.raises(train.Stopped, match="None of the images to evaluate on decodes"):
        train.make_evaluate(program)(state, [(images, None, jnp.zeros(8, bool))])


def epochs_done(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_identical(tmp_path):
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
