"""A step on several devices: parts of a batch, shared averages, copies that must be equal."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import train
from bop_optax import binary_labels, flip_ratio, ste_sign
from bop_optax.layers import BinaryLinear
from tests.test_train import TINY
from training.config import Bop, Experiment, Schedule
from training.data.memory import digits
from training.devices import compare_replicas, device_mesh, divided, replicated
from training.interrupt import Stopped
from training.network import compile_steps, epoch_means, first_state, make_network, state_shardings

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")


class NoStatistics(nnx.Module):
    """A network without BatchNorm, whose gradients are the mean over the images."""

    def __init__(self, rngs: nnx.Rngs, **options: Any):
        self.first = nnx.Linear(64, 64, rngs=rngs)
        self.second = BinaryLinear(64, 10, input_quantizer=ste_sign, rngs=rngs, **options)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.second(self.first(images.reshape(len(images), -1))) / 8


@dataclass(frozen=True)
class OwnModel:
    def build(self, image_shape, num_classes, *, rngs, **options):
        return NoStatistics(rngs, **options)


PLAIN = Experiment(
    model=OwnModel(),
    optimizer=Bop(Schedule(1e-1), Schedule(1e-4)),
    batch_size=64,
    pad=0,
    flip=False,
)


def trained(experiment: Experiment, steps: int, devices: int = 8, divide: bool = False) -> Any:
    """The state after some steps, and the labels."""
    data, mesh = digits(), device_mesh(jax.devices()[:devices])
    source = data.batches(experiment.step_images, mesh, experiment.accumulate)
    network = make_network(experiment, data)
    optimizer = train.make_optimizer(experiment, network.labels, source.steps_per_epoch)
    shardings = state_shardings(network, optimizer, mesh, divide)
    draw = jax.jit(lambda seed: first_state(network, optimizer, seed), out_shardings=shardings)
    state, key = draw(np.uint32(0)), jax.random.key(0)
    train_step = train.make_train_step(experiment, network, source, replicated(mesh))
    step = compile_steps(train_step, source.stacked, shardings)
    for batch, _ in zip(source.training(0), range(steps), strict=False):
        state, extremes = step(state, batch, key, {})
        jax.block_until_ready(extremes)
    return state, network.labels


# ---- Parts of a batch ----------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_parts_of_a_batch_flip_what_the_whole_flips(accumulate):
    """To rounding: a weight whose average is within an ulp of the threshold may differ."""
    whole, labels = trained(PLAIN, 3)
    parts, _ = trained(replace(PLAIN, accumulate=accumulate), 3 * accumulate)
    before, _ = trained(PLAIN, 0)
    assert flip_ratio(before.params, whole.params, labels=labels) > 0.05
    assert flip_ratio(whole.params, parts.params, labels=labels) < 2e-3
    real = (state.params["first"]["kernel"][...] for state in (whole, parts))
    np.testing.assert_allclose(*real, atol=1e-4)
    means = (
        epoch_means(whole.sums, 3, 64),
        epoch_means(parts.sums, 3 * accumulate, 64 // accumulate),
    )
    assert means[1]["loss"] == pytest.approx(means[0]["loss"], rel=1e-5)
    assert means[1]["train_accuracy"] == means[0]["train_accuracy"]
    for name in ("flip_ratio", "log_flip_ratio"):
        assert means[1][name]["all"] == pytest.approx(means[0][name]["all"], rel=1e-2)


def test_weights_stay_as_they_are_between_updates():
    experiment = replace(PLAIN, accumulate=4)
    before, _ = trained(experiment, 0)
    for steps, changes in ((3, False), (4, True)):
        after, labels = trained(experiment, steps)
        assert (flip_ratio(before.params, after.params, labels=labels) > 0) == changes
        assert (after.sums["flip_ratio"]["all"] > 0) == changes
        assert (after.sums["log_flip_ratio"]["all"] < 0) == changes


def test_an_epoch_has_whole_batches_alone():
    """1,437 images are 22 batches of 64, and 44 or 88 parts of them."""
    mesh = device_mesh()
    for accumulate in (1, 2, 4):
        source = digits().batches(64 // accumulate, mesh, accumulate)
        assert source.steps_per_epoch == 22 * accumulate


def test_schedules_count_updates():
    gamma = Schedule(1.0, factor=0.5, every=1)
    experiment = replace(PLAIN, optimizer=Bop(gamma, Schedule(0.0)), accumulate=4)
    values = [experiment.hyperparameters(step, 8)["gamma"] for step in (0, 3, 7, 11, 15)]
    assert values == [1.0, 1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("accumulate", [0, -1, 3, 128])
def test_a_batch_has_equal_parts(accumulate):
    with pytest.raises(ValueError, match=f"--accumulate must be .*, got {accumulate}"):
        replace(PLAIN, accumulate=accumulate)


def test_parts_are_not_skipped():
    """A skipped part would shift all later updates."""
    with pytest.raises(ValueError, match="--nonfinite must be stop or restore with --accumulate"):
        replace(PLAIN, accumulate=2, nonfinite="skip")


def test_devices_share_a_part():
    message = r"a multiple of the 8 devices times the 16 parts of --accumulate, got 64"
    with pytest.raises(ValueError, match=message):
        digits().batches(4, device_mesh(), 16)


# ---- Averages that the devices divide ------------------------------------------------------------


@pytest.mark.parametrize("experiment", [PLAIN, pytest.param(TINY, marks=pytest.mark.slow)])
def test_divided_averages_flip_the_same(experiment):
    """Each device keeps an eighth of every average that has a dimension to divide."""
    whole, labels = trained(experiment, 4)
    parts, _ = trained(experiment, 4, divide=True)
    jax.tree.map(np.testing.assert_array_equal, parts.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, parts.opt_state, whole.opt_state)
    assert binary_labels(parts.params) == labels

    def bytes_of_a_device(state):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))

    total = bytes_of_a_device(whole.opt_state)
    assert total / 8 < bytes_of_a_device(parts.opt_state) < total / 7
    assert bytes_of_a_device(parts.params) == bytes_of_a_device(whole.params)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((), ()),
        ((7,), (None,)),
        ((16,), ("batch",)),
        ((3, 3, 8, 16), (None, None, None, "batch")),
        ((3, 3, 16, 8), (None, None, "batch", None)),
        ((3, 3, 20, 10), (None,) * 4),
        ((0, 8), (None, "batch")),
    ],
)
def test_the_largest_dimension_is_divided(shape, spec):
    assert divided(shape, device_mesh()).spec == jax.P(*spec)


# ---- Copies --------------------------------------------------------------------------------------


def test_equal_replicas_pass():
    tree = {"a": jnp.arange(6.0), "b": jnp.zeros([], jnp.int32)}
    compare_replicas(jax.device_put(tree, replicated(device_mesh())), 1, Path("run"))
    compare_replicas(tree, 1, Path("run"))


@pytest.mark.parametrize("device", [0, 1, 7])
@pytest.mark.parametrize("number", [1e-45, np.nan, 2.0])
def test_replicas_that_differ_are_named(device, number):
    """One device has another number, down to the least bit; the array says it is replicated."""
    good = np.ones((3, 4), np.float32)
    bad = good.copy()
    bad[1, 2] = np.float32(number) if number != 1e-45 else np.nextafter(np.float32(1), 2)
    copies = [jax.device_put(bad if i == device else good, d) for i, d in enumerate(jax.devices())]
    sharding = replicated(device_mesh())
    wrong = jax.make_array_from_single_device_arrays(good.shape, sharding, copies)
    arrays = {"kernel": jax.device_put(good, sharding), "norm.scale": wrong}
    with pytest.raises(Stopped, match=r"copies of norm\.scale differ at step 7, as") as error:
        compare_replicas(arrays, 7, Path("run"))
    assert error.value.folder == Path("run")
