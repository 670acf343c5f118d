"""An experiment's optimizer: which transform trains what, by which schedules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import datasets
import train
from bop_optax import Bop2ndOrderState, BopState, CemaState, flip_ratio
from experiments import PRESETS, Experiment
from optimizers import make_optimizer

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
LABELS = {"kernel": "binary", "dense": "real", "bias": "real"}
PARAMS = {"kernel": jnp.ones((2, 3)), "dense": jnp.full((3, 2), 0.5), "bias": jnp.ones(2)}
EPOCHS = {"epochs": 4, "decay_epochs": 1}


def updated(config: Experiment, step: int, steps_per_epoch: int = 10):
    """The updates and the kernels' state after a step, the first at which gradients are seen."""
    optimizer = make_optimizer(config, LABELS, steps_per_epoch)
    state = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(step, x.dtype) if "count" in str(path[-1]) else x,
        optimizer.init(PARAMS),
    )
    updates, state = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    return updates, state.inner_states["binary"].inner_state


@pytest.mark.parametrize("optimizer", ["bop", "bop_layerwise", "bop_2nd_order", "cema"])
@pytest.mark.parametrize(("step", "gamma"), [(0, 0.5), (20, 0.375), (40, 0.25), (99, 0.25)])
def test_gamma_falls_linearly_to_its_end(optimizer, step, gamma):
    config = Experiment(optimizer=optimizer, gamma=0.5, gamma_end=0.25, **EPOCHS)
    _, state = updated(config, step)
    assert isinstance(state, BopState | Bop2ndOrderState | CemaState)
    np.testing.assert_allclose(state.ema["kernel"], gamma, rtol=1e-6)


@pytest.mark.parametrize(("step", "flips"), [(0, False), (19, False), (21, True), (40, True)])
def test_the_threshold_falls_linearly_to_its_end(step, flips):
    """From 1 to 0 over 40 steps: an average of 0.5 passes it halfway."""
    config = Experiment(gamma=0.5, threshold=1.0, threshold_end=0.0, **EPOCHS)
    updates, _ = updated(config, step)
    assert np.all(updates["kernel"] == (-2 if flips else 0))


def test_sigma_rises_linearly_to_its_end():
    config = Experiment(optimizer="bop_2nd_order", sigma=0.25, sigma_end=0.75, **EPOCHS)
    for step, sigma in ((0, 0.25), (20, 0.5), (40, 0.75)):
        _, state = updated(config, step)
        assert isinstance(state, Bop2ndOrderState)
        np.testing.assert_allclose(state.ema_sq["kernel"], sigma, rtol=1e-6)


def test_alpha_falls_linearly_to_0():
    config = Experiment(optimizer="cema", gamma=1.0, alpha=0.5, **EPOCHS)
    for step, alpha in ((0, 0.5), (20, 0.25), (40, 0.0)):
        _, state = updated(config, step)
        assert isinstance(state, CemaState)
        np.testing.assert_allclose(state.ema_of_ema["kernel"], alpha, rtol=1e-6)


def test_adams_rate_falls_linearly_to_its_end():
    """Of a first gradient Adam makes a step of its rate."""
    config = Experiment(learning_rate=0.5, learning_rate_end=0.25, **EPOCHS)
    optimizer = make_optimizer(config, LABELS, 10)
    state, grads = optimizer.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS)
    for step in range(45):
        updates, state = optimizer.update(grads, state, PARAMS)
        rate = 0.5 - 0.25 * min(step, 40) / 40
        np.testing.assert_allclose(updates["bias"], -rate, rtol=1e-4)


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ({"latent_learning_rate_end": 0.25}, optax.linear_schedule(0.5, 0.25, 40)),
        ({"decay": 0.5}, optax.exponential_decay(0.5, 10, 0.5, staircase=True)),
    ],
    ids=["linear", "stairs"],
)
def test_the_schedules_of_the_latent_rate_are_optax(name, options, schedule):
    """Of gradients that are always 1, Adam and SGD make steps of their rate."""
    options |= {"glorot_scaling": False, "latent_limit": 9.0}
    config = Experiment(optimizer=name, latent_learning_rate=0.5, **options, **EPOCHS)
    optimizer = make_optimizer(config, LABELS, 10)
    state, grads = optimizer.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS)
    for step in range(45):
        updates, state = optimizer.update(grads, state, PARAMS)
        np.testing.assert_allclose(updates["kernel"], -schedule(step), rtol=1e-4)


def test_the_penalty_is_of_real_kernels_alone():
    """As if the loss had l2 · Σ w²: its gradient, 2 · l2 · w, outweighs a gradient of −1."""
    grads = jax.tree.map(lambda w: -jnp.ones_like(w), PARAMS)
    for l2, sign in ((0.9, 1), (1.1, -1)):  # the dense kernel is 0.5
        optimizer = make_optimizer(Experiment(l2=l2), LABELS, 10)
        updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
        assert np.all(np.sign(updates["dense"]) == sign)
        assert np.all(np.sign(updates["bias"]) == 1)


@pytest.mark.parametrize("preset", ["layerwise", "2nd-order", "cema", "falling-threshold"])
def test_every_variant_trains_a_network(preset):
    name = f"cifar10-{'' if preset == 'cema' else 'bop-'}{preset}-small"
    small = {"dataset": "digits", "width": 4, "units": 16, "stages": 1, "batch_size": 64}
    config = dataclasses.replace(PRESETS[name][1], **small, pad=1, flip=False, epochs=2)
    data = datasets.load("digits")
    program, state = train.build(config, data)
    before = jax.tree.map(jnp.copy, state.params)
    trainee, losses = train.one_network(config, data, program), []
    for chunk, _ in zip(trainee.chunks(0), range(4), strict=False):
        state, more = trainee.train_steps(state, chunk)
        losses.extend(more)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    for layer, kernel in train.binary_layers(state.params, program.labels).items():
        assert set(np.unique(kernel[...])) == {-1, 1}, layer
    assert flip_ratio(before, state.params, labels=program.labels) > 0


def test_epochs_can_not_be_added_where_a_schedule_ends_with_them():
    assert not PRESETS["cifar10-bop"][1].falls_until_the_end
    falling = ("cema-small", "bop-falling-threshold", "adam-falling-rate-small")
    for name in ("imagenet-birealnet-bop", *(f"cifar10-{end}" for end in falling)):
        assert PRESETS[name][1].falls_until_the_end


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma_end": -1.0}, r"--gamma-end must be in \[0, 1\], got -1.0"),
        ({"sigma": 0.0}, r"--sigma must be in \(0, 1\], got 0.0"),
        ({"alpha": 2.0}, r"--alpha must be in \(0, 1\], got 2.0"),
        ({"threshold_end": -1e-9}, "--threshold-end must be at least 0"),
        ({"learning_rate_end": float("inf")}, "--learning-rate-end must be at least 0 and finite"),
        ({"latent_learning_rate_end": -1.0}, "--latent-learning-rate-end must be at least 0"),
        ({"latent_learning_rate": float("inf")}, "--latent-learning-rate must be above 0 and fin"),
        ({"latent_scale": float("inf")}, "--latent-scale must be above 0 and finite, got inf"),
        (
            {"threshold": float("inf"), "threshold_end": 0.0},
            "--threshold must be finite, to change",
        ),
        ({"l2": -1.0}, "--l2 must be at least 0"),
        ({"l2": float("inf")}, "--l2 must be at least 0 and finite, got inf"),
        ({"workers": -1}, "--workers must be at least 0, got -1"),
        ({"dataset": "imagenet2012", "held_out": 5}, "--held-out must be 0 with imagenet2012"),
    ],
)
def test_fields_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Experiment(), **change).check()


@pytest.mark.parametrize("optimizer", ["bop", "bop_layerwise", "bop_2nd_order", "cema"])
def test_the_stairs_of_gamma_are_optax(optimizer):
    stairs = Experiment(optimizer=optimizer, gamma=0.5, decay=0.5, **EPOCHS)
    schedule = optax.exponential_decay(0.5, 10, 0.5, staircase=True)
    for step in (0, 9, 10, 39):
        _, state = updated(stairs, step)
        np.testing.assert_allclose(state.ema["kernel"], schedule(step), rtol=1e-6)
