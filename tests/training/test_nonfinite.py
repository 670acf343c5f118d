"""Numbers that are not finite: the run stops, skips the step, or trains on from its checkpoint."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from tests.test_train import TINY
from training import hosts
from training.config import LatentAdam, RunConfig, Schedule
from training.data import memory
from training.interrupt import Stopped
from training.nonfinite import Extremes, find_fault, largest
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


def huge_gradients(value_and_grad):
    """Gradients times 1e30."""

    def scaled(function, **options):
        def both(params):
            value, grads = value_and_grad(function, **options)(params)
            return value, jax.tree.map(lambda g: 1e30 * g, grads)

        return both

    return scaled


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
    calls = []

    def once(extremes, step, epoch):
        calls.append(step)
        if step == STEPS + 4 and calls.count(step) == 1:
            extremes = extremes._replace(loss=np.full_like(extremes.loss, np.nan))
        return find_fault(extremes, step, epoch)

    monkeypatch.setattr(train, "find_fault", once)
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


def test_another_fault_before_the_next_checkpoint_ends_the_run(tmp_path, monkeypatch, capsys):
    """As on a device whose sums differ from run to run: each time it is another step."""
    steps = iter([STEPS + 4, STEPS + 9])
    fault = [next(steps)]

    def elsewhere(extremes, step, epoch):
        if step != fault[0]:
            return None
        fault[0] = next(steps, -1)
        return f"The loss is nan at step {step}"

    monkeypatch.setattr(train, "find_fault", elsewhere)
    with pytest.raises(Stopped, match=f"The loss is nan at step {STEPS + 9}"):
        train.run(replace(TINY, epochs=3, nonfinite="restore"), RunConfig(tmp_path / "run"))
    assert capsys.readouterr().err.count("Training on from the last checkpoint.") == 1


def test_a_fault_of_another_process_ends_this_one_too(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "agreed", lambda number: train.FAULT)
    monkeypatch.setattr(hosts, "gather", lambda fault, *_: [fault, "The loss is nan at step 3"])
    with pytest.raises(Stopped, match="The loss is nan at step 3"):
        train.run(TINY, RunConfig(tmp_path / "run"))


def test_averages_that_become_infinite_stop_the_run(tmp_path, monkeypatch):
    """A finite gradient whose square overflows: Adam's state could never be restored."""
    monkeypatch.setattr(train.jax, "value_and_grad", huge_gradients(jax.value_and_grad))
    with pytest.raises(Stopped, match=r"The largest average is inf at step 1 \(epoch 1\): stopped"):
        train.run(replace(TINY, epochs=1), RunConfig(tmp_path / "run"))
    assert not list((tmp_path / "run/checkpoints").iterdir())


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


# ---- Parts ---------------------------------------------------------------------------------------


def extremes(*, shape=(3,), **values):
    ones = {name: np.ones(shape) for name in Extremes._fields}
    return Extremes(**ones | {k: np.array(v) for k, v in values.items()})


def test_a_loss_that_is_not_finite_names_its_step():
    assert find_fault(extremes(), 0, 1) is None
    fault = find_fault(extremes(loss=[1.0, np.nan, np.inf]), 10, 3)
    assert fault.startswith("The loss is nan at step 12 (epoch 3): stopped. ")
    fault = find_fault(extremes(shape=(1, 2), loss=[[1.0, np.inf]]), 0, 1)
    assert fault.startswith("The loss of network 2 is inf at step 1 ")


@pytest.mark.parametrize("name", ["gradient", "statistic", "weight", "average"])
def test_other_numbers_that_are_not_finite_name_their_step(name):
    later = extremes(loss=[1.0, 1.0, np.nan], **{name: [1.0, np.inf, 1.0]})
    assert f"The largest {name} is inf at step 2 (epoch 1)" in find_fault(later, 0, 1)
    one = extremes(shape=(1, 2), **{name: [[1.0, np.nan]]})
    assert f"The largest {name} of network 2 is nan at step 6 " in find_fault(one, 5, 1)


def test_the_largest_magnitude():
    tree = {
        "a": jnp.array([1.0, -3.0]),
        "b": jnp.array([[2.0]]),
        "n": jnp.array([9]),
        "e": jnp.zeros(0),
    }
    assert largest(tree) == 3
    assert largest({"n": jnp.array([9])}) == 0
    assert largest(tree | {"c": jnp.array([1, -np.inf], jnp.bfloat16)}) == np.inf
    assert jnp.isnan(largest(tree | {"c": jnp.array([np.nan, np.inf])}))
