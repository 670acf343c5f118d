"""Averages in bfloat16, rounded stochastically: unbiased, independent, and as good as float32."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bop_optax import bop
from bop_optax._flip import key_words, round_stochastically
from tests.bop_optax.trajectories import run, step

inf, nan = float("inf"), float("nan")
LARGEST = float(jnp.finfo(jnp.bfloat16).max)
in_bfloat16 = partial(bop, ema_dtype=jnp.bfloat16)


@partial(jax.jit, static_argnames="seed")
def rounded(tree, count=0, seed=0):
    """A tree after one rounding, back in float32."""
    result = round_stochastically(tree, key_words(seed), count)
    return jax.tree.map(lambda x: x.astype(jnp.float32), result)


# --- one rounding -----------------------------------------------------------------------------


@pytest.mark.parametrize("x", [1.001, -1.001, 0.3, -3e-8, 1.9999999, 1e-20, -2e-38, 3.3e38])
def test_rounds_to_the_neighbours_and_is_unbiased(x):
    n, x = 2**18, np.float32(x)
    bits = x.view(np.uint32) & np.uint32(0xFFFF0000)
    below, above = bits.view(np.float32), (bits + np.uint32(0x10000)).view(np.float32)
    result = np.asarray(rounded(jnp.full((64, n // 64), x)))
    assert set(np.unique(result)) == {below, above}
    share, expected = (
        np.mean(result == above),
        (np.float64(x) - below) / (np.float64(above) - below),
    )
    assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / n)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (0.0, 0.0),
        (-0.0, -0.0),
        (1.0, 1.0),
        (-0.09375, -0.09375),
        (LARGEST, LARGEST),
        (3.4e38, LARGEST),
        (inf, LARGEST),
        (-inf, -LARGEST),
        (nan, nan),
        (-nan, nan),
    ],
)
def test_special_values(x, expected):
    result = np.asarray(rounded(jnp.full(1000, x, jnp.float32)))
    np.testing.assert_array_equal(result, np.float32(expected))
    if expected == 0:
        assert np.all(np.signbit(result) == np.signbit(expected))


def test_every_nan_stays_nan():
    payloads = np.uint32([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF]).view(np.float32)
    assert np.all(np.isnan(rounded(jnp.asarray(payloads))))


def test_noise_is_independent():
    """Of the position, the array, the step and the seed; the same for the same of all four."""
    # 16 random bits decide whether this rounds up: the result is one random bit.
    half = jnp.full((256, 1024), 1 + 2**-8, jnp.float32)
    up = [
        np.asarray(x) > 1
        for count, seed in ((0, 0), (1, 0), (0, 1))
        for x in rounded([half, half], count, seed)
    ]
    signs = np.where(np.stack(up), 1.0, -1.0).reshape(6, -1)
    correlations = np.corrcoef(signs)[np.triu_indices(6, 1)]
    assert np.max(np.abs(correlations)) < 5 / np.sqrt(half.size)
    for lag in (1, 2, 3, 8, 1024, 1025):
        correlation = np.mean(signs[:, lag:] * signs[:, :-lag])
        assert abs(correlation) < 5 / np.sqrt(6 * half.size), lag
    again = rounded([half, half], 0, 0)
    np.testing.assert_array_equal(np.asarray(again[0]) > 1, up[0])


# --- averages ---------------------------------------------------------------------------------


def constant_gradient(optimizer, weights, steps):
    """The averages after some steps with a gradient of 1."""
    w = jnp.ones(weights)

    @jax.jit
    def averages():
        advance = lambda _, state: optimizer.update(w, state, w)[1]  # noqa: E731
        return jax.lax.fori_loop(0, steps, advance, optimizer.init(w)).ema

    return np.asarray(averages().astype(jnp.float32), np.float64)


def test_a_slow_average_arrives():
    """γ = 1e-4 for 20,000 steps: bfloat16 stops at 0.03 if it rounds to nearest."""
    arrives = constant_gradient(bop(1e-4), 1, 20_000)[0]
    assert arrives == pytest.approx(1 - (1 - 1e-4) ** 20_000, rel=1e-3)  # 0.865
    assert np.all(constant_gradient(in_bfloat16(1e-4), 1, 20_000) < 0.04)
    averages = constant_gradient(in_bfloat16(1e-4, rounding_key=0), 1000, 20_000)
    error = np.std(averages) / np.sqrt(len(averages))
    assert error < 0.002
    assert abs(np.mean(averages) - arrives) < 5 * error


def noisy_run(optimizer, steps=10_000, n=1000):
    """The flips of all steps, and the last averages; each gradient is noise around its own mean."""
    w = jnp.where(jnp.arange(n) % 2 == 0, 1.0, -1.0)
    means = 0.5 * jax.random.normal(jax.random.key(1), (n,))

    def body(carry, key):
        w, state = carry
        after, state = step(optimizer, w, state, means + jax.random.normal(key, (n,)))
        return (after, state), jnp.sum(after != w)

    keys = jax.random.split(jax.random.key(0), steps)
    (_, state), flips = jax.jit(lambda: jax.lax.scan(body, (w, optimizer.init(w)), keys))()
    return int(np.sum(flips)), np.asarray(state.ema.astype(jnp.float32))


def test_flips_and_averages_are_those_of_float32():
    """On the same noisy gradients; rounded to nearest, averages stop at a third of their size."""
    flips, averages = noisy_run(bop(1e-4, 1e-5))
    flips_rounded, averages_rounded = noisy_run(in_bfloat16(1e-4, 1e-5, rounding_key=0))
    assert flips > 4000
    assert flips_rounded == pytest.approx(flips, rel=0.1)
    assert np.corrcoef(averages, averages_rounded)[0, 1] > 0.995
    assert np.std(averages_rounded) == pytest.approx(np.std(averages), rel=0.02)
    _, to_nearest = noisy_run(in_bfloat16(1e-4, 1e-5))
    assert np.std(to_nearest) < 0.4 * np.std(averages)


# --- the key ----------------------------------------------------------------------------------

W = np.ones(64, np.float32)
GRADS = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)


@pytest.mark.parametrize("form", [np.int64, jnp.uint32, jax.random.key])
def test_a_key_or_its_seed(form):
    _, state = run(in_bfloat16(0.1, rounding_key=form(3)), W, GRADS)
    _, expected = run(in_bfloat16(0.1, rounding_key=3), W, GRADS)
    np.testing.assert_array_equal(state.ema, expected.ema)


def test_different_keys_differ_and_can_be_vmapped():
    keys = jax.random.split(jax.random.key(0), 3)
    lanes = jax.vmap(lambda key: run(in_bfloat16(0.1, rounding_key=key), W, GRADS)[1])(keys)
    for i in range(3):
        _, alone = run(in_bfloat16(0.1, rounding_key=keys[i]), W, GRADS)
        np.testing.assert_array_equal(lanes.ema[i], alone.ema)
    assert np.any(lanes.ema[0] != lanes.ema[1])
    assert np.any(lanes.ema[1] != lanes.ema[2])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_dtypes_are_refused(dtype):
    match = rf"averages in bfloat16, got ema_dtype={dtype}: give ema_dtype=jnp.bfloat16"
    with pytest.raises(ValueError, match=match):
        bop(ema_dtype=dtype, rounding_key=0)


def test_averages_are_within_a_bit_of_float32_and_gradients_may_be_bfloat16():
    grads = {"a": jnp.asarray(GRADS[0]), "b": jnp.asarray(GRADS[1], jnp.bfloat16)}
    params = jax.tree.map(jnp.ones_like, grads)
    optimizer, exact = in_bfloat16(0.1, 0.0, rounding_key=0), bop(0.1, 0.0)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    expected_updates, expected = exact.update(grads, exact.init(params), params)
    chex.assert_trees_all_equal(updates, expected_updates)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state.ema))
    averages = jax.tree.map(lambda x: x.astype(jnp.float32), state.ema)
    chex.assert_trees_all_close(averages, expected.ema, rtol=2**-7)
