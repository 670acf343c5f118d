"""The losses of a training step: of labels, and of a teacher."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from experiments.presets import PRESETS
from tests.networks import shape_of
from training.config import RunConfig
from training.data import memory
from training.loss import make_losses
from training.trained import load_run

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
DIGITS = PRESETS["digits-bop"][1]
TINY = replace(DIGITS, model=replace(DIGITS.model, width=8, units=32), batch_size=96, epochs=2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    train.run(TINY, RunConfig(folder))
    return folder


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_losses_in_numpy(teacher):
    images = memory.digits().test_images[:5]
    logits, labels = np.random.default_rng(0).normal(size=(5, 10)), np.arange(5)
    given = images, jnp.float32(logits), labels
    expected = -log_softmax(logits)[np.arange(5), labels]
    np.testing.assert_allclose(make_losses(TINY)(*given), expected, rtol=1e-5)
    probabilities = np.float64(load_run(teacher).probabilities(images))
    expected = -np.sum(probabilities * log_softmax(logits), -1)
    losses = jax.jit(make_losses(replace(TINY, teacher=teacher)))(*given)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_run_learns_from_the_teacher_alone(teacher, tmp_path, monkeypatch):
    """Labels that are all 0 change no weight."""
    experiment = replace(TINY, teacher=teacher, seed=1)
    train.run(experiment, RunConfig(tmp_path / "right"))
    data = memory.digits()
    wrong = replace(data, train_labels=np.zeros_like(data.train_labels))
    monkeypatch.setattr(type(TINY.data), "load", lambda _: wrong)
    train.run(experiment, RunConfig(tmp_path / "wrong"))
    weights = [(tmp_path / run / "weights.safetensors").read_bytes() for run in ("right", "wrong")]
    assert weights[0] == weights[1]


def test_teachers_that_do_not_fit(teacher, tmp_path):
    with pytest.raises(ValueError, match="holds no finished run"):
        make_losses(replace(TINY, teacher=tmp_path))
    losses = make_losses(replace(TINY, teacher=teacher))
    labels = shape_of(2, dtype=jnp.int32)
    with pytest.raises(ValueError, match=r"--teacher must take images of \(8, 9, 1\)"):
        jax.eval_shape(losses, shape_of(2, 8, 9, 1, dtype=jnp.uint8), shape_of(2, 10), labels)
    with pytest.raises(ValueError, match="--teacher must have 7 classes, got 10"):
        jax.eval_shape(losses, shape_of(2, 8, 8, 1, dtype=jnp.uint8), shape_of(2, 7), labels)
