"""BOLD's optimizer against a hand table and an oracle in NumPy, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bop_optax import bold
from tests.bop_optax.trajectories import (
    DECAY,
    GRADS,
    WEIGHTS,
    flip_count,
    run,
    run_stepwise,
    values,
)

inf, nan = float("inf"), float("nan")
below = float(np.nextafter(np.float32(1), np.float32(0)))


@pytest.mark.parametrize(
    ("w", "m", "g", "beta", "eta", "after", "m_after"),
    [
        pytest.param(1.0, 0.0, 1.0, 1.0, 2.0, -1.0, 0.0, id="strong"),
        pytest.param(-1.0, 0.0, -1.0, 1.0, 2.0, 1.0, 0.0, id="strong-negative"),
        pytest.param(1.0, 0.0, 0.25, 1.0, 2.0, 1.0, 0.5, id="weak"),
        pytest.param(1.0, 0.0, -1.0, 1.0, 2.0, 1.0, -2.0, id="gradient-supports-weight"),
        pytest.param(-1.0, 0.0, 1.0, 1.0, 2.0, -1.0, 2.0, id="gradient-supports-negative-weight"),
        pytest.param(1.0, 0.75, 0.125, 1.0, 2.0, -1.0, 0.0, id="sum-reaches-1"),
        pytest.param(1.0, 0.75, 0.125, 0.5, 2.0, 1.0, 0.625, id="layer-that-flips-forgets"),
        pytest.param(1.0, 9.0, 0.25, 0.0, 2.0, 1.0, 0.5, id="layer-that-flipped-whole-forgets-all"),
        pytest.param(1.0, 0.0, 0.5, 1.0, 2.0, -1.0, 0.0, id="tie-flips"),
        pytest.param(-1.0, 0.0, -0.5, 1.0, 2.0, 1.0, 0.0, id="tie-flips-negative"),
        pytest.param(1.0, 0.0, below, 1.0, 1.0, 1.0, below, id="one-bit-below-tie"),
        pytest.param(0.0, 0.0, 1.0, 1.0, 2.0, 0.0, 2.0, id="weight-0"),
        pytest.param(0.3, 0.0, 0.5, 1.0, 2.0, -0.3, 0.0, id="alpha"),
        pytest.param(0.01, 0.0, 0.25, 1.0, 2.0, 0.01, 0.5, id="alpha-does-not-scale-the-sum"),
        pytest.param(100.0, 0.0, 0.25, 1.0, 2.0, 100.0, 0.5, id="large-alpha-neither"),
        pytest.param(1.0, 1.0, nan, 1.0, 2.0, 1.0, nan, id="nan-gradient"),
        pytest.param(1.0, nan, 1.0, 1.0, 2.0, 1.0, nan, id="nan-accumulator"),
        pytest.param(nan, 0.0, 1.0, 1.0, 2.0, nan, 2.0, id="nan-weight"),
        pytest.param(1.0, 0.0, inf, 1.0, 2.0, -1.0, 0.0, id="inf-gradient-is-forgotten"),
    ],
)
def test_table(w, m, g, beta, eta, after, m_after):
    optimizer, weight = bold(eta, check_weights=False), jnp.float32(w)
    state = optimizer.init(weight)._replace(accumulator=jnp.float32(m), kept=jnp.float32([beta]))
    updates, state = optimizer.update(jnp.float32(g), state, weight)
    np.testing.assert_array_equal(optax.apply_updates(weight, updates), np.float32(after))
    np.testing.assert_array_equal(state.accumulator, np.float32(m_after))


def oracle(w, grads, eta):
    """Algorithm 8 of the paper, on weights of 0 and 1: the weights as ±1, the last m and β."""
    boolean, m, ratio, history = w > 0, np.zeros_like(w), np.float32(0), []
    for g, rate in zip(grads, values(eta, 200), strict=False):
        m = ratio * m + rate * g
        flip = m * (2 * boolean.astype(np.float32) - 1) >= 1
        boolean = boolean ^ flip
        m[flip] = 0
        ratio = 1 - np.float32(np.sum(flip)) * np.float32(1 / len(w))
        history.append(np.where(boolean, 1, -1))
    return np.stack(history), m, ratio


@pytest.mark.parametrize("eta", [1.0, 0.3, 0.1, DECAY])
def test_every_weight_of_every_step_is_the_oracles(eta):
    expected, m, ratio = oracle(WEIGHTS, GRADS, eta)
    assert flip_count(WEIGHTS, expected) > 300  # else a transform that does nothing would pass
    history, state = run(bold(eta), WEIGHTS, GRADS)
    np.testing.assert_array_equal(history, expected)
    np.testing.assert_array_equal(state.accumulator, m)
    np.testing.assert_array_equal(state.kept, [ratio])
    history, _ = run_stepwise(bold(eta), WEIGHTS, GRADS[:20])
    np.testing.assert_array_equal(history, expected[:20])


def test_each_array_has_a_factor_of_its_own():
    """Two arrays of one tree run as they run alone; their shares of flips differ."""
    weights = {"a": WEIGHTS, "b": [WEIGHTS[:50]]}
    grads = {"a": GRADS, "b": [4 * GRADS[:, :50]]}
    history, state = run(bold(0.1), weights, grads)
    ratios = []
    for w, g, after in ((WEIGHTS, GRADS, history["a"]), (WEIGHTS[:50], 4 * GRADS[:, :50], None)):
        expected, _, ratio = oracle(w, g, 0.1)
        np.testing.assert_array_equal(history["b"][0] if after is None else after, expected)
        ratios.append(ratio)
    np.testing.assert_array_equal(state.kept, ratios)
    assert ratios[0] != ratios[1]


def test_a_constant_gradient_flips_after_the_inverse_of_its_product_with_eta():
    """Of two weights one is pushed, by η·g = 1/8. It then supports its new sign for ever."""
    history, state = run(bold(0.5), np.ones(2, np.float32), np.tile(np.float32([0.25, 0]), (30, 1)))
    np.testing.assert_array_equal(history[:, 0], np.where(np.arange(1, 31) < 8, 1, -1))
    np.testing.assert_array_equal(history[:, 1], 1)
    # The flip halved β for one step, in which m was 0.
    np.testing.assert_array_equal(state.accumulator, [22 / 8, 0])


@pytest.mark.parametrize("size", [1, 3, 49, 400, 1001])
def test_a_layer_without_flips_keeps_everything(size):
    """Its factor is exactly 1, compiled or not."""
    w = np.ones(size, np.float32)
    _, state = run(bold(1.0), w, np.full((200, size), -0.25, np.float32))
    assert state.kept == 1
    np.testing.assert_array_equal(state.accumulator, -50)


def test_the_scale_of_eta_is_that_of_the_inverse_gradient():
    plain, _ = run(bold(0.1), WEIGHTS, GRADS)
    scaled, _ = run(bold(0.1 * 2**10), WEIGHTS, 2**-10 * GRADS)
    np.testing.assert_array_equal(plain, scaled)


def test_etas_under_vmap_are_those_alone():
    etas = np.float32([0.03, 0.1, 1.0])
    lanes = jax.vmap(lambda eta: run(bold(eta), WEIGHTS, GRADS)[0])(etas)
    for eta, lane in zip(etas, lanes, strict=True):
        np.testing.assert_array_equal(lane, oracle(WEIGHTS, GRADS, eta)[0])
