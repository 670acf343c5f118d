"""ProbBop against a hand table and an oracle in NumPy; its probabilities, its key."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bop_optax import bop, prob_bop
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


@pytest.mark.parametrize(
    ("w", "m", "flips", "tau", "epoch", "after"),
    [
        pytest.param(1.0, 0.75, 0, 0.5, 1.0, -1.0, id="above-the-band"),
        pytest.param(-1.0, -0.75, 0, 0.5, 1.0, 1.0, id="above-the-band-negative"),
        pytest.param(1.0, -0.75, 0, 0.5, 1.0, 1.0, id="average-supports-weight"),
        pytest.param(1.0, 0.375, 0, 0.5, 1.0, 1.0, id="lower-end-of-the-band"),
        pytest.param(1.0, 0.75, 1, 0.5, 1.0, 1.0, id="below-the-band-after-a-flip"),
        pytest.param(1.0, 1.5, 1, 0.5, 1.0, -1.0, id="above-the-band-after-a-flip"),
        pytest.param(1.0, 7.0, 9, 0.5, 1.0, -1.0, id="above-the-band-after-nine-flips"),
        pytest.param(1.0, 0.5625, 0, 0.5, 5.0, -1.0, id="the-band-of-a-late-epoch-is-narrow"),
        pytest.param(1.0, 0.4375, 0, 0.5, 5.0, 1.0, id="on-both-sides"),
        pytest.param(1.0, 1e-30, 9, 0.0, 1.0, -1.0, id="tau-0"),
        pytest.param(1.0, 0.0, 0, 0.0, 1.0, 1.0, id="tau-0-tie"),
        pytest.param(1.0, inf, 0, inf, 1.0, 1.0, id="tau-inf-holds-against-inf"),
        pytest.param(0.0, 1.0, 0, 0.5, 1.0, 0.0, id="weight-0"),
        pytest.param(0.3, 0.75, 0, 0.5, 1.0, -0.3, id="alpha"),
        pytest.param(1.0, nan, 0, 0.5, 1.0, 1.0, id="nan-average"),
        pytest.param(nan, 0.75, 0, 0.5, 1.0, nan, id="nan-weight"),
        pytest.param(1.0, inf, 0, 0.5, 1.0, -1.0, id="inf-average"),
    ],
)
def test_table(w, m, flips, tau, epoch, after):
    """With γ = 1 the average is the gradient; each row is 100 weights, with as many draws."""
    optimizer, weights = prob_bop(1.0, tau, epoch=epoch, check_weights=False), jnp.full(100, w)
    state = optimizer.init(weights)._replace(flips=jnp.full(100, flips, jnp.int32))
    updates, state = optimizer.update(jnp.full(100, m), state, weights)
    np.testing.assert_array_equal(optax.apply_updates(weights, updates), np.float32([after] * 100))
    np.testing.assert_array_equal(state.flips, flips + (after == -w != 0))


# --- the oracle -------------------------------------------------------------------------------


def uniform(count, size):
    """What seed 0 draws for a tree of one vector: a hash of the position, in NumPy."""
    words = jax.random.bits(jax.random.key(0), (2,), jnp.uint32)
    key = jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), count)
    first, second = np.asarray(jax.random.bits(key, (1, 2), jnp.uint32))[0]
    x = np.arange(size, dtype=np.uint32) ^ first
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> np.uint32(15)) ^ second) * np.uint32(0x735A2D97)
    return 1 - (x >> np.uint32(8)) * 2.0**-24


def oracle(w, grads, gamma, tau, alpha, epoch):
    """The two stages of the authors' code: certain flips, then a draw in the band."""
    m, flips, history = np.zeros_like(w), np.zeros_like(w), []
    rates = [values(x, 200) for x in (gamma, tau, alpha, epoch)]
    for t, (g, rate, limit, base, e) in enumerate(zip(grads, *rates, strict=False)):
        m = m + rate * (g - m)
        low = 1 - np.float64(base) ** e / 2
        s = np.abs(m) / (np.float64(limit) * (1 + flips))
        push = np.sign(m) == np.sign(w)
        certain = push & (s > 1 / low)
        keep = uniform(t, len(w)) <= np.exp(-s / e)
        drawn = push & (s > low) & (s <= 1 / low) & ~keep
        w = np.where(certain | drawn, -w, w)
        flips = flips + (certain | drawn)
        history.append(w)
    return np.stack(history), flips


EPOCH = lambda count: 1 + count // 50  # noqa: E731


@pytest.mark.parametrize(
    ("gamma", "tau", "alpha", "epoch"),
    [
        pytest.param(0.1, 0.03, 0.5, 1.0, id="constant"),
        pytest.param(0.1, 0.03, 0.9, EPOCH, id="epochs"),
        pytest.param(DECAY, DECAY, DECAY, EPOCH, id="decay"),
        pytest.param(0.3, 1e-3, 1.0, 2.0, id="wide"),
    ],
)
def test_every_weight_of_every_step_is_the_oracles(gamma, tau, alpha, epoch):
    expected, flips = oracle(WEIGHTS, GRADS, gamma, tau, alpha, epoch)
    assert flip_count(WEIGHTS, expected) > 400  # else a transform that does nothing would pass
    optimizer = prob_bop(gamma, tau, alpha, epoch)
    history, state = run(optimizer, WEIGHTS, GRADS)
    np.testing.assert_array_equal(history, expected)
    np.testing.assert_array_equal(state.flips, flips)
    history, _ = run_stepwise(optimizer, WEIGHTS, GRADS[:20])
    np.testing.assert_array_equal(history, expected[:20])


# --- probabilities and the key ----------------------------------------------------------------


@pytest.mark.parametrize("flips", [0, 3])
@pytest.mark.parametrize("s", [0.76, 0.9, 1.0, 1.2, 1.33])
@pytest.mark.parametrize("epoch", [1.0, 2.0])
def test_the_share_of_flips_is_their_probability(s, epoch, flips):
    """In the band 0.75 to 1.33; α makes it the same in both epochs."""
    n = 2**18
    optimizer, w = prob_bop(1.0, 0.5, alpha=0.5 ** (1 / epoch), epoch=epoch), jnp.ones(n)
    state = optimizer.init(w)._replace(flips=jnp.full(n, flips, jnp.int32))
    updates, _ = optimizer.update(jnp.full(n, 0.5 * s * (1 + flips)), state, w)
    share, p = np.mean(updates != 0), 1 - np.exp(-s / epoch)
    assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / n)


def test_without_a_band_it_is_bop_until_a_weight_has_flipped():
    history, state = run(prob_bop(0.1, 0.1, alpha=1e-30), WEIGHTS, GRADS)
    expected, _ = run(bop(0.1, 0.1), WEIGHTS, GRADS)
    before = np.concatenate([WEIGHTS[None], expected[:-1]]) == WEIGHTS
    never = np.logical_and.accumulate(before, axis=0)  # had not flipped before this step
    np.testing.assert_array_equal(np.asarray(history)[never], np.asarray(expected)[never])
    assert 400 < np.sum(state.flips) < flip_count(WEIGHTS, expected)


def test_mirrored_weights_and_gradients_mirror_the_run():
    optimizer = prob_bop(0.1, 0.03)
    history, mirrored = run(optimizer, WEIGHTS, GRADS)[0], run(optimizer, -WEIGHTS, -GRADS)[0]
    np.testing.assert_array_equal(history, -mirrored)


IN_BAND = np.full((1, 4096), 1.0, np.float32)
ONES = np.ones(4096, np.float32)
one_draw = partial(prob_bop, 1.0, 1.0)


@pytest.mark.parametrize("form", [np.int64, jnp.uint32, jax.random.key])
def test_a_key_or_its_seed(form):
    history, _ = run(one_draw(key=form(3)), ONES, IN_BAND)
    expected, _ = run(one_draw(key=3), ONES, IN_BAND)
    np.testing.assert_array_equal(history, expected)


def test_without_a_key_the_seed_is_0():
    history, _ = run(one_draw(), ONES, IN_BAND)
    np.testing.assert_array_equal(history, run(one_draw(key=0), ONES, IN_BAND)[0])
    injected = optax.inject_hyperparams(prob_bop)(1.0, 1.0)
    np.testing.assert_array_equal(history, run(injected, ONES, IN_BAND)[0])


def test_draws_are_independent_of_key_step_array_and_position():
    """All averages are at τ: each flip is a random bit."""
    draws = []
    for key in (0, 1):
        optimizer, w = one_draw(key=key), [jnp.asarray(ONES)] * 2
        state, g = optimizer.init(w), [jnp.asarray(IN_BAND[0])] * 2
        for _ in range(2):
            updates, after = optimizer.update(g, state, w)
            draws += [np.where(u == 0, -1, 1) for u in updates]
            state = after._replace(flips=state.flips)
    correlations = np.corrcoef(draws)[np.triu_indices(8, 1)]
    assert np.max(np.abs(correlations)) < 5 / np.sqrt(4096)
    signs = np.stack(draws) - np.mean(draws)
    for lag in (1, 2, 64):
        correlation = np.mean(signs[:, lag:] * signs[:, :-lag])
        assert abs(correlation) < 5 / np.sqrt(signs.size)


def test_keys_and_hyperparameters_can_be_vmapped():
    keys, taus = jax.random.split(jax.random.key(0), 3), jnp.float32([0.01, 0.03, 0.1])
    lane = lambda key, tau: run(prob_bop(0.1, tau, key=key), WEIGHTS, GRADS)[0]  # noqa: E731
    for i, together in enumerate(jax.vmap(lane)(keys, taus)):
        np.testing.assert_array_equal(together, lane(keys[i], taus[i]))
