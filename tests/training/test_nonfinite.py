"""Numbers that are not finite: the run stops, skips the step, or trains on from its checkpoint."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from tests.test_train import TINY
from training.config import LatentAdam, RunConfig, Schedule
from training.data import memory
from training.interrupt import Stopped
from training.records import read_metrics

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
STEPS = 1437 // 24


def faulty(monkeypatch, wrong):
    """Makes gradients NaN in the steps for which `wrong(step)`, a traced bool, holds.

    A sign hides the NaN from the loss.
    """
    losses = train.make_losses

    @jax.custom_vjp
    def poisoned(logits, bad):
        return logits

    poisoned.defvjp(
        lambda logits, bad: (logits, bad),
        lambda bad, g: (jnp.where(bad, jnp.nan, g), None),
    )
    steps = []

    def make_losses(experiment, network):
        inner = losses(experiment, network)
        return lambda images, logits, labels: inner(images, poisoned(logits, steps[0]), labels)

    augment = train.augment

    def note_step(key, *rest):
        steps[:] = [wrong(jax.random.key_data(key))]
        return augment(key, *rest)

    monkeypatch.setattr(train, "make_losses", make_losses)
    monkeypatch.setattr(train, "augment", note_step)


def at_steps(*numbers):
    """True in the steps with these numbers, from 0, which their keys tell."""
    key = jax.random.key(TINY.seed)
    keys = jnp.stack([jax.random.key_data(jax.random.fold_in(key, n)) for n in numbers])
    return lambda data: jnp.any(jnp.all(keys == data, axis=-1))


def test_a_gradient_that_the_loss_does_not_show_stops_the_run(tmp_path, monkeypatch):
    faulty(monkeypatch, at_steps(STEPS + 4))
    with pytest.raises(Stopped, match=r"largest gradient is nan at step 64 \(epoch 2\): stopped"):
        train.run(replace(TINY, epochs=3), RunConfig(tmp_path / "run"))
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == 1


def test_a_skipped_step_is_counted_and_shown(tmp_path, monkeypatch, capsys):
    faulty(monkeypatch, at_steps(3, 4, STEPS))
    result = train.run(replace(TINY, epochs=3, nonfinite="skip"), RunConfig(tmp_path / "run"))
    assert result["test_accuracy"] > 0.2  # chance is 0.1
    skipped = [m["skipped"] for m in read_metrics(tmp_path / "run/metrics.jsonl")]
    assert skipped == [2, 1, 0]
    first, second, third = [s for s in capsys.readouterr().out.splitlines() if s[:5] == "epoch"]
    assert first.endswith(", 2 skipped")
    assert second.endswith(", 1 skipped")
    assert "skipped" not in third


def test_an_epoch_of_skipped_steps_stops_the_run(tmp_path, monkeypatch):
    faulty(monkeypatch, lambda _: jnp.asarray(True))
    with pytest.raises(Stopped, match="All 59 steps of epoch 1 were skipped"):
        train.run(replace(TINY, nonfinite="skip"), RunConfig(tmp_path / "run"))


def test_a_fault_that_does_not_come_again_changes_nothing(tmp_path, monkeypatch, capsys):
    """As one of the machine: the run ends with the weights of a run without it."""
    experiment = replace(TINY, epochs=3, nonfinite="restore")
    train.run(experiment, RunConfig(tmp_path / "whole"))
    check, calls = train.check_finite, []

    def once(extremes, step, epoch):
        calls.append(step)
        if step == STEPS + 4 and calls.count(step) == 1:
            extremes = extremes._replace(loss=np.full_like(extremes.loss, np.nan))
        check(extremes, step, epoch)

    monkeypatch.setattr(train, "check_finite", once)
    train.run(experiment, RunConfig(tmp_path / "run"))
    message = "The loss is nan at step 64 (epoch 2): stopped."
    assert message in (err := capsys.readouterr().err)
    assert "Training on from the last checkpoint." in err
    whole, ours = ((tmp_path / n / "weights.safetensors").read_bytes() for n in ("whole", "run"))
    assert whole == ours
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == 3


def test_a_fault_that_comes_again_ends_the_run(tmp_path, monkeypatch, capsys):
    faulty(monkeypatch, at_steps(STEPS + 4))
    with pytest.raises(Stopped, match=r"largest gradient is nan at step 64 \(epoch 2\)"):
        train.run(replace(TINY, epochs=3, nonfinite="restore"), RunConfig(tmp_path / "run"))
    assert capsys.readouterr().err.count("Training on from the last checkpoint.") == 1


def test_without_a_checkpoint_there_is_nothing_to_train_on_from(tmp_path, monkeypatch):
    faulty(monkeypatch, at_steps(4))
    with pytest.raises(Stopped, match="There is no checkpoint yet"):
        train.run(replace(TINY, nonfinite="restore"), RunConfig(tmp_path / "run"))


def test_latent_weights_that_become_infinite_stop_the_run(tmp_path):
    """The signs of infinite weights, and with them the loss, stay finite."""
    absurd = replace(TINY, optimizer=LatentAdam(Schedule(1e38), latent_limit=np.inf), epochs=1)
    with pytest.raises(Stopped, match=r"The largest weight is (inf|nan) at step"):
        train.run(absurd, RunConfig(tmp_path / "run"))


def test_statistics_that_become_infinite_stop_the_run(tmp_path, monkeypatch):
    """Images scaled by a tiny deviation: their square overflows in BatchNorm's variance."""
    data = replace(memory.digits(), std=1e-30)
    monkeypatch.setattr(type(TINY.data), "load", lambda _: data)
    with pytest.raises(Stopped, match=r"is (inf|nan) at step 1"):
        train.run(replace(TINY, epochs=1), RunConfig(tmp_path / "run"))
