"""Bop against a hand table and an oracle in NumPy; its properties, and transforms around it."""

import subprocess
import sys
from functools import partial

import hypothesis
import hypothesis.extra.numpy
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from bop_optax import bop
from tests.bop_optax.trajectories import run, step

inf, nan = float("inf"), float("nan")
above = float(np.nextafter(np.float32(0.5), np.float32(1)))


@pytest.mark.parametrize(
    ("w", "m", "g", "gamma", "tau", "after"),
    [
        pytest.param(1.0, 0.0, 1.0, 0.5, 0.25, -1.0, id="strong-consistent"),
        pytest.param(-1.0, 0.0, -1.0, 0.5, 0.25, 1.0, id="strong-consistent-negative"),
        pytest.param(1.0, 0.0, -1.0, 0.5, 0.25, 1.0, id="gradient-supports-weight"),
        pytest.param(-1.0, 0.0, 1.0, 0.5, 0.25, -1.0, id="gradient-supports-negative-weight"),
        pytest.param(1.0, 0.0, 0.25, 0.5, 0.25, 1.0, id="weak"),
        pytest.param(1.0, 1.0, 0.0, 0.5, 0.25, -1.0, id="average-remembers"),
        pytest.param(1.0, -2.0, 1.0, 0.5, 0.25, 1.0, id="average-outweighs-gradient"),
        pytest.param(1.0, -5.0, 1.0, 1.0, 0.5, -1.0, id="gamma-1-forgets-all"),
        pytest.param(1.0, 0.0, 1e-3, 1e-4, 1e-8, -1.0, id="magnitudes-of-the-paper"),
        pytest.param(1.0, 0.0, 0.5, 0.5, 0.25, 1.0, id="tie"),
        pytest.param(-1.0, 0.0, -0.5, 0.5, 0.25, -1.0, id="tie-negative"),
        pytest.param(1.0, 0.0, above, 0.5, 0.25, -1.0, id="one-bit-above-tie"),
        pytest.param(1.0, 0.0, 0.0, 0.5, 0.0, 1.0, id="tie-at-0"),
        pytest.param(-1.0, 0.0, 0.0, 0.5, 0.0, -1.0, id="tie-at-0-negative"),
        pytest.param(-1.0, -0.0, -0.0, 0.5, 0.0, -1.0, id="tie-at-minus-0"),
        pytest.param(1.0, 0.0, 1e-30, 0.5, 0.0, -1.0, id="tau-0-tiny-average"),
        pytest.param(0.0, 0.0, 1.0, 0.5, 0.0, 0.0, id="weight-0"),
        pytest.param(-0.0, 0.0, -1.0, 0.5, 0.0, 0.0, id="weight-minus-0"),
        pytest.param(0.3, 0.0, 1.0, 0.5, 0.25, -0.3, id="alpha"),
        pytest.param(-0.3, 0.0, -1.0, 0.5, 0.25, 0.3, id="alpha-negative"),
        pytest.param(0.01, 0.0, 1.0, 0.5, 0.25, -0.01, id="alpha-does-not-scale-the-average"),
        pytest.param(100.0, 0.0, 0.25, 0.5, 0.25, 100.0, id="alpha-does-not-lower-tau"),
        pytest.param(1.0, 1.0, nan, 0.5, 0.0, 1.0, id="nan-gradient"),
        pytest.param(1.0, nan, 1.0, 0.5, 0.0, 1.0, id="nan-average"),
        pytest.param(nan, 0.0, 1.0, 0.5, 0.0, nan, id="nan-weight"),
        pytest.param(1.0, 0.0, inf, 0.5, 0.25, -1.0, id="inf-gradient"),
        pytest.param(1.0, 0.0, -inf, 0.5, 0.25, 1.0, id="minus-inf-gradient"),
        pytest.param(1.0, inf, inf, 1.0, inf, 1.0, id="tau-inf-holds-against-inf"),
    ],
)
def test_table(w, m, g, gamma, tau, after):
    optimizer, weight = bop(gamma, tau, check_weights=False), jnp.float32(w)
    state = optimizer.init(weight)._replace(ema=jnp.float32(m))
    updates, _ = optimizer.update(jnp.float32(g), state, weight)
    np.testing.assert_array_equal(optax.apply_updates(weight, updates), np.float32(after))


# --- the oracle -------------------------------------------------------------------------------

rng = np.random.default_rng(0)
WEIGHTS = rng.choice(np.array([-1, 1], np.float32), 2000)
# The mean of each gradient drifts through zero, so that weights are pushed over and back.
DRIFT = np.sin(2 * np.pi * (np.arange(300)[:, None] / 100 + rng.random(2000)))
GRADS = (DRIFT + rng.normal(size=(300, 2000))).astype(np.float32)


def larq(w, grads, gamma, tau):
    """Larq's Bop, in float32: the weights and the averages after each step."""
    gamma, tau = (np.broadcast_to(np.float32(v), len(grads)) for v in (gamma, tau))
    m, weights, averages = np.zeros_like(w), [], []
    for g, rate, limit in zip(grads, gamma, tau, strict=True):
        m = m + rate * (g - m)
        w = np.where(w * m > limit, -w, w)
        weights.append(w)
        averages.append(m)
    return np.stack(weights), np.stack(averages)


def stepped(optimizer, w, grads, wrap=lambda f: f):
    w, f = jnp.asarray(w), wrap(partial(step, optimizer))
    state, history = optimizer.init(w), []
    for g in grads:
        w, state = f(w, state, jnp.asarray(g))
        history.append((np.asarray(w), np.asarray(state.ema)))
    return tuple(map(np.stack, zip(*history, strict=True)))


def scanned(optimizer, w, grads):
    def body(carry, g):
        w, state = step(optimizer, *carry, g)
        return (w, state), (w, state.ema)

    w = jnp.asarray(w)
    return jax.lax.scan(body, (w, optimizer.init(w)), jnp.asarray(grads))[1]


def assert_same(run, oracle):
    for ours, theirs in zip(run, oracle, strict=True):
        ours = np.asarray(ours)
        assert ours.dtype == theirs.dtype == np.float32
        np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32))


RATES = [(1e-1, 1e-1), (1e-2, 2e-2), (1e-3, 1e-3), (1e-4, 1e-8), (1.0, 0.5), (0.3, 0.0)]


@pytest.mark.parametrize(("gamma", "tau"), RATES)
@pytest.mark.parametrize(
    ("run", "steps"),
    [
        pytest.param(stepped, 40, id="eager"),
        pytest.param(partial(stepped, wrap=jax.jit), 300, id="jit"),
        pytest.param(scanned, 300, id="scan"),
    ],
)
def test_oracle_bit_for_bit(run, steps, gamma, tau):
    oracle = larq(WEIGHTS, GRADS[:steps], gamma, tau)
    flips = np.sum(oracle[0][1:] != oracle[0][:-1])
    assert flips > 500  # else a transform that does nothing would pass
    assert_same(run(bop(gamma, tau), WEIGHTS, GRADS[:steps]), oracle)


def test_defaults_are_those_of_the_paper():
    grads = GRADS[:5] / np.float32(1000)  # so small that many averages are near the threshold
    assert_same(stepped(bop(), WEIGHTS, grads), larq(WEIGHTS, grads, 1e-4, 1e-8))


@pytest.mark.parametrize("run", [stepped, scanned])
def test_oracle_with_schedules(run):
    # Fractions of powers of two: exact however a compiler computes them.
    gamma = optax.linear_schedule(0.5, 0.0625, 32)
    tau = optax.linear_schedule(0.0, 0.25, 32)
    values = [[np.asarray(s(jnp.int32(t))) for t in range(40)] for s in (gamma, tau)]
    oracle = larq(WEIGHTS, GRADS[:40], *values)
    assert_same(run(bop(gamma, tau), WEIGHTS, GRADS[:40]), oracle)


# --- properties -------------------------------------------------------------------------------

# Magnitudes whose averages neither overflow nor fall below float32's normal numbers, times 8 too.
numbers = st.just(0.0) | st.floats(2**-10, 1024, width=32) | st.floats(-1024, -(2**-10), width=32)
grids = hypothesis.extra.numpy.arrays(np.float32, (12, 8), elements=numbers)
signs = hypothesis.extra.numpy.arrays(np.float32, 8, elements=st.sampled_from([-1.0, 1.0]))
taus = st.sampled_from([0.0, 2**-9, 0.1, 2.0, 100.0])
compiled = jax.jit(lambda w, grads, gamma, tau: scanned(bop(gamma, tau), w, grads)[0])


@hypothesis.settings(derandomize=True, deadline=None, max_examples=100)
@hypothesis.given(signs, grids, st.floats(2**-10, 1, width=32), taus)
def test_properties(w, grads, gamma, tau):
    gamma, tau = np.float32(gamma), np.float32(tau)
    weights = compiled(w, grads, gamma, tau)
    assert np.all(np.abs(weights) == 1)
    np.testing.assert_array_equal(compiled(w, 8 * grads, gamma, 8 * tau), weights)
    np.testing.assert_array_equal(compiled(-w, -grads, gamma, tau), -weights)
    frozen = np.broadcast_to(w, weights.shape)
    np.testing.assert_array_equal(compiled(w, grads, gamma, np.float32(inf)), frozen)


def test_finds_the_binary_optimum():
    target, w, optimizer = (
        jnp.where(jnp.arange(16) % 3 == 0, 1.0, -1.0),
        jnp.ones(16),
        bop(0.1, 1e-3),
    )
    state = optimizer.init(w)
    for _ in range(3):
        w, state = step(optimizer, w, state, jax.grad(lambda w: jnp.sum((w - target) ** 2))(w))
    np.testing.assert_array_equal(w, target)


# --- γ and τ ----------------------------------------------------------------------------------

FORMS = {
    "number": lambda v: v,
    "schedule": optax.constant_schedule,
    "array": jnp.float32,
    "traced": None,
}


@pytest.mark.parametrize("gamma", FORMS)
@pytest.mark.parametrize("tau", FORMS)
def test_forms_of_the_hyperparameters(gamma, tau):
    def run(traced):
        rate = FORMS[gamma](0.1) if FORMS[gamma] else traced[0]
        limit = FORMS[tau](0.1) if FORMS[tau] else traced[1]
        return scanned(bop(rate, limit), WEIGHTS, GRADS[:20])

    assert_same(jax.jit(run)(jnp.float32([0.1, 0.1])), larq(WEIGHTS, GRADS[:20], 0.1, 0.1))


def test_vmap_over_hyperparameters():
    gammas, taus = jnp.float32(RATES).T
    lanes = jax.vmap(lambda g, t: scanned(bop(g, t), WEIGHTS, GRADS[:20]))(gammas, taus)
    for i, (gamma, tau) in enumerate(RATES):
        assert_same([lane[i] for lane in lanes], larq(WEIGHTS, GRADS[:20], gamma, tau))


# --- around bop -------------------------------------------------------------------------------


def last(optimizer, w, grads):
    """The last weights and the last state."""
    history, state = run(optimizer, w, grads)
    return history[-1], state


def test_chain_changes_the_gradient_that_is_averaged():
    clipped = larq(WEIGHTS, np.clip(GRADS[:20], -0.5, 0.5), 0.1, 0.05)[0][-1]
    assert np.any(clipped != larq(WEIGHTS, GRADS[:20], 0.1, 0.05)[0][-1])
    w, _ = last(optax.chain(optax.clip(0.5), bop(0.1, 0.05)), WEIGHTS, GRADS[:20])
    np.testing.assert_array_equal(w, clipped)


INJECT = optax.inject_hyperparams(bop, static_args=("ema_dtype",), hyperparam_dtype=jnp.float32)


@pytest.mark.parametrize("tau", [0.1, optax.linear_schedule(0.0, 0.25, 32)])
def test_inject_hyperparams(tau):
    w, state = last(INJECT(gamma=0.1, threshold=tau), WEIGHTS, GRADS[:20])
    taus = [tau(jnp.int32(t)) for t in range(20)] if callable(tau) else tau
    np.testing.assert_array_equal(w, larq(WEIGHTS, GRADS[:20], 0.1, taus)[0][-1])
    np.testing.assert_array_equal(state.hyperparams["threshold"], np.float32(taus)[..., None][-1])


def test_apply_if_finite_keeps_a_nan_from_freezing_weights():
    grads = [[1.0, 1.0], [nan, -1.0], [-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]]
    grads, w = np.float32(grads), np.ones(2, np.float32)
    frozen, state = last(bop(0.5, 0.1), w, grads)
    np.testing.assert_array_equal(frozen, [-1, 1])  # flipped once, then never again
    assert np.isnan(state.ema[0])
    finite, state = last(optax.apply_if_finite(bop(0.5, 0.1), 2), w, grads)
    np.testing.assert_array_equal(finite, [1, 1])
    assert np.all(np.isfinite(state.inner_state.ema))


def test_a_huge_gradient_freezes_a_weight_unless_it_is_clipped():
    """It outweighs all later ones for about ln(γk)/γ steps: 461 here."""
    grads = np.full((600, 2), -1, np.float32)  # each weight should be 1
    grads[0, 0] = 1e4
    history, _ = run(bop(0.01, 1e-3), np.ones(2, np.float32), grads)
    assert np.all(history[:455, 0] == -1)
    assert history[465, 0] == 1
    assert np.all(history[:, 1] == 1)
    clipped, _ = run(optax.chain(optax.clip(100), bop(0.01, 1e-3)), np.ones(2, np.float32), grads)
    assert clipped[75, 0] == 1


def test_float32_gradients_of_bfloat16_weights():
    w = jnp.asarray(WEIGHTS, jnp.bfloat16)
    averages = stepped(bop(0.1, 0.1), w, GRADS[:10])[1]
    assert_same([averages], [larq(WEIGHTS, GRADS[:10], 0.1, 0.1)[1]])


def test_import_needs_jax_and_optax_alone():
    code = (
        "import sys, bop_optax\n"
        "extras = {'flax', 'orbax', 'tensorflow', 'tensorflow_datasets', 'matplotlib', 'sklearn'}\n"
        "assert 'optax' in sys.modules\n"
        "print(*sorted(extras & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
