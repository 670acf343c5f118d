"""The losses of a training step: of labels, and of a teacher."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from bop_optax.saving import save
from experiments.presets import PRESETS
from training.config import RunConfig
from training.data import memory
from training.loss import make_losses
from training.network import make_network
from training.trained import load_run

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
DIGITS = PRESETS["digits-bop"][1]
TINY = replace(DIGITS, model=replace(DIGITS.model, width=8, units=32), batch_size=96, epochs=2)
NETWORK = make_network(TINY, memory.digits())


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
    np.testing.assert_allclose(make_losses(TINY, NETWORK)(*given), expected, rtol=1e-5)
    probabilities = np.float64(load_run(teacher).probabilities(images))
    expected = -np.sum(probabilities * log_softmax(logits), -1)
    losses = jax.jit(make_losses(replace(TINY, teacher=teacher), NETWORK))(*given)
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


def test_another_teacher_in_the_same_folder_does_not_resume_a_run(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "teacher")
    experiment = replace(TINY, teacher=str(tmp_path / "teacher"), epochs=1)
    train.run(experiment, RunConfig(tmp_path / "run"))
    model = load_run(teacher).model
    model.denses[-1].kernel[...] *= -1
    save(model, tmp_path / "teacher/weights.safetensors")
    with pytest.raises(ValueError, match=r"was run with teacher=\w{8} \(now \w{8}\)"):
        train.run(replace(experiment, epochs=2), RunConfig(tmp_path / "run", resume=True))


def test_teachers_that_do_not_fit(teacher, tmp_path):
    with pytest.raises(ValueError, match="holds no finished run"):
        make_losses(replace(TINY, teacher=tmp_path), NETWORK)
    experiment = replace(TINY, teacher=teacher)
    with pytest.raises(ValueError, match=r"--teacher must take images of \(8, 9, 1\), got \(8, 8"):
        make_losses(experiment, NETWORK._replace(image_shape=(8, 9, 1)))
    with pytest.raises(ValueError, match="--teacher must have 7 classes, got 10"):
        make_losses(experiment, NETWORK._replace(num_classes=7))


def test_a_teacher_that_does_not_fit_leaves_no_folder(teacher, tmp_path, monkeypatch):
    data = memory.digits()
    train_images, test_images = data.train_images[:, :, :7], data.test_images[:, :, :7]
    narrow = replace(data, train_images=train_images, test_images=test_images)
    monkeypatch.setattr(type(TINY.data), "load", lambda _: narrow)
    with pytest.raises(ValueError, match="--teacher must take images of"):
        train.run(replace(TINY, teacher=teacher), RunConfig(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
