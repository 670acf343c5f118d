"""Bop with a threshold relative to each layer: against an oracle in NumPy, and its RMS."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bop_optax import bop, bop_layerwise
from bop_optax._bop_layerwise import rms
from tests.bop_optax.trajectories import (
    DECAY,
    GRADS,
    WEIGHTS,
    flip_count,
    run,
    run_stepwise,
    values,
)

inf = float("inf")
HALF = bop_layerwise(0.5, 1.0)


def oracle(w, grads, gamma, tau):
    m, history = np.zeros_like(w), []
    for g, rate, limit in zip(grads, values(gamma, 200), values(tau, 200), strict=False):
        m = m + rate * (g - m)
        signal = w * m / np.sqrt(np.mean(np.square(m, dtype=np.float64)))
        assert np.min(np.abs(signal - limit)) > 1e-6  # no tie that rounding could turn
        w = np.where(signal > limit, -w, w)
        history.append(w)
    return np.stack(history)


@pytest.mark.parametrize(
    ("gamma", "tau"),
    [(0.1, 1.0), (0.03, 1.5), (DECAY, DECAY)],
    ids=["fast", "slow", "decay"],
)
def test_every_weight_of_every_step_is_the_oracles(gamma, tau):
    expected = oracle(WEIGHTS, GRADS, gamma, tau)
    assert flip_count(WEIGHTS, expected) > 400  # else a transform that does nothing would pass
    optimizer = bop_layerwise(gamma, tau)
    np.testing.assert_array_equal(run(optimizer, WEIGHTS, GRADS)[0], expected)
    history, _ = run_stepwise(optimizer, WEIGHTS, GRADS[:20])
    np.testing.assert_array_equal(history, expected[:20])


def test_without_a_threshold_layerwise_is_bop():
    layerwise, _ = run(bop_layerwise(0.1, 0.0), WEIGHTS, GRADS)
    np.testing.assert_array_equal(layerwise, run(bop(0.1, 0.0), WEIGHTS, GRADS)[0])


def test_a_layer_is_judged_by_itself():
    """Each of two layers flips as it would alone, with gradients a million times weaker or not."""
    optimizer = bop_layerwise(0.1, 1.0)
    alone, _ = run(optimizer, WEIGHTS, GRADS[:50])
    tree = {"weak": WEIGHTS, "strong": WEIGHTS}
    grads = {"weak": 2**-20 * GRADS[:50], "strong": GRADS[:50]}
    together, _ = run(optimizer, tree, grads)
    np.testing.assert_array_equal(together["weak"], alone)
    np.testing.assert_array_equal(together["strong"], alone)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e30, 1e38])
def test_an_rms_whose_squares_overflow_or_vanish(scale):
    grads = np.float32([[3, 1, -1, 1, 0, 2, -2, 1]])
    alone, _ = run(HALF, WEIGHTS[:8], grads)
    far, _ = run(HALF, WEIGHTS[:8], grads * scale)
    np.testing.assert_array_equal(alone, far)
    assert np.any(alone != WEIGHTS[:8])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_rms_of_what_its_dtype_holds(dtype):
    limits = jnp.finfo(dtype)
    least = limits.smallest_subnormal if dtype == "float16" else limits.tiny  # XLA flushes others'
    for largest in (4 * float(least), 1.0, float(limits.max)):
        m = jnp.asarray(largest * np.float64([1, -0.5, 0.25, 0]), dtype)
        expected = np.sqrt(np.mean(np.square(np.float64(m))))
        for value in (rms(m), jax.jit(rms)(m)):
            assert value.dtype == dtype
            rounding = {"rtol": 2 * float(limits.eps), "atol": float(limits.smallest_subnormal)}
            np.testing.assert_allclose(np.float64(value), expected, **rounding)
    assert rms(jnp.zeros(3, dtype)) == 0


def test_an_infinite_gradient_stills_the_rest_of_its_layer():
    grads = GRADS[:60].copy()
    grads[20, 0] = inf
    optimizer = bop_layerwise(0.1, 1.0)
    history, state = run(optimizer, WEIGHTS, grads)
    clean, _ = run(optimizer, WEIGHTS, GRADS[:60])
    assert np.isfinite(rms(state.ema))
    np.testing.assert_array_equal(history[:20], clean[:20])
    assert np.all(history[20:, 1:] == history[19, 1:])
    assert flip_count(clean[19], clean[20:]) > 100


def test_a_tie_with_the_layers_rms_never_flips():
    w, grads = np.ones(4, np.float32), np.full((1, 4), 0.5, np.float32)
    assert np.all(run(HALF, w, grads)[0] == 1)
