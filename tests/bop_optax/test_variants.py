"""Bop's variants against oracles in NumPy, and their own properties; all hold Bop's contract."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bop_optax import bop, bop_2nd_order, bop_layerwise, cema
from bop_optax._bop_layerwise import rms

inf, nan = float("inf"), float("nan")
rng = np.random.default_rng(0)
WEIGHTS = rng.choice(np.array([-1, 1], np.float32), 400)
# The mean of each gradient drifts through zero, so that weights are pushed over and back.
DRIFT = np.sin(2 * np.pi * (np.arange(200)[:, None] / 100 + rng.random(400)))
GRADS = (DRIFT + rng.normal(size=(200, 400))).astype(np.float32)


def run(optimizer, w, grads):
    """The weights after each step, in one compiled scan, and the last state."""

    def body(carry, g):
        w, state = carry
        updates, state = optimizer.update(g, state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    w = jax.tree.map(jnp.asarray, w)
    (_, state), weights = jax.lax.scan(body, (w, optimizer.init(w)), grads)
    return weights, state


def stepped(optimizer, w, grads):
    state, history = optimizer.init(w), []
    for g in grads:
        updates, state = optimizer.update(jnp.asarray(g), state, w)
        w = optax.apply_updates(w, updates)
        history.append(w)
    return np.stack(history), state


# --- oracles ------------------------------------------------------------------------------------


def values(value, steps):
    """A hyperparameter at each step, in float32."""
    if callable(value):
        return np.float32([value(jnp.int32(t)) for t in range(steps)])
    return np.full(steps, value, np.float32)


def oracle_layerwise(w, grads, gamma, tau):
    m, history = np.zeros_like(w), []
    for g, rate, limit in zip(grads, values(gamma, 200), values(tau, 200), strict=False):
        m = m + rate * (g - m)
        signal = w * m / np.sqrt(np.mean(np.square(m, dtype=np.float64)))
        assert np.min(np.abs(signal - limit)) > 1e-6  # no tie that rounding could turn
        w = np.where(signal > limit, -w, w)
        history.append(w)
    return np.stack(history)


def oracle_2nd_order(w, grads, gamma, tau, sigma, unbiased=False):
    """The authors' rule, and Adam's closed form of the correction."""
    m, v, history = np.zeros_like(w), np.zeros_like(w), []
    rates = [values(x, 200) for x in (gamma, tau, sigma)]
    for t, (g, rate, limit, rate_sq) in enumerate(zip(grads, *rates, strict=False), start=1):
        m = m + rate * (g - m)
        v = v + rate_sq * (g * g - v)
        m_hat, v_hat = m, v
        if unbiased:
            m_hat = m / np.float32(-np.expm1(t * np.log1p(-np.float64(rate))))
            v_hat = v / np.float32(-np.expm1(t * np.log1p(-np.float64(rate_sq))))
        signal = w * (m_hat / (np.sqrt(v_hat) + np.float32(1e-10)))
        if unbiased:  # the share is summed up, not computed from t: no tie that could turn
            assert np.min(np.abs(signal - limit)) > 1e-6
        w = np.where(signal > limit, -w, w)
        history.append(w)
    return np.stack(history)


def oracle_cema(w, grads, gamma, alpha):
    m, n, history = np.zeros_like(w), np.zeros_like(w), []
    for g, rate, second in zip(grads, values(gamma, 200), values(alpha, 200), strict=False):
        m = m + rate * (g - m)
        n = n + second * (m - n)
        w = np.where(w * n > 0, -w, w)
        history.append(w)
    return np.stack(history)


def flips(w, history):
    return np.sum(np.diff(np.concatenate([w[None], history]), axis=0) != 0)


# Fractions of powers of two: exact however a compiler computes them.
FALLING = optax.linear_schedule(0.5, 0.0625, 32)
CASES = [
    pytest.param(bop_layerwise, oracle_layerwise, {"gamma": 0.1, "threshold": 1.0}, id="layerwise"),
    pytest.param(
        bop_layerwise, oracle_layerwise, {"gamma": 0.03, "threshold": 1.5}, id="layerwise-slow"
    ),
    pytest.param(
        bop_layerwise,
        oracle_layerwise,
        {"gamma": FALLING, "threshold": FALLING},
        id="layerwise-falling",
    ),
    pytest.param(
        bop_2nd_order,
        oracle_2nd_order,
        {"gamma": 0.1, "threshold": 0.3, "sigma": 1e-2},
        id="biased",
    ),
    pytest.param(
        bop_2nd_order,
        oracle_2nd_order,
        {"gamma": 1e-7, "threshold": 1e-6, "sigma": 1e-3},
        id="authors",
    ),
    pytest.param(
        bop_2nd_order,
        oracle_2nd_order,
        {"gamma": FALLING, "threshold": FALLING, "sigma": FALLING},
        id="biased-falling",
    ),
    pytest.param(
        bop_2nd_order,
        oracle_2nd_order,
        {"gamma": 0.1, "threshold": 0.3, "sigma": 1e-2, "unbiased": True},
        id="unbiased",
    ),
    pytest.param(cema, oracle_cema, {"gamma": 0.1, "alpha": 1e-2}, id="cema"),
    pytest.param(
        cema,
        oracle_cema,
        {"gamma": 0.1, "alpha": optax.linear_schedule(0.5, 0.0, 128)},
        id="cema-to-0",
    ),
]


@pytest.mark.parametrize(("make", "oracle", "hyperparameters"), CASES)
def test_every_weight_of_every_step_is_the_oracles(make, oracle, hyperparameters):
    expected = oracle(WEIGHTS, GRADS, *hyperparameters.values())
    assert flips(WEIGHTS, expected) > 400  # else a transform that does nothing would pass
    history, _ = run(make(**hyperparameters), WEIGHTS, GRADS)
    np.testing.assert_array_equal(history, expected)
    history, _ = stepped(make(**hyperparameters), jnp.asarray(WEIGHTS), GRADS[:20])
    np.testing.assert_array_equal(history, expected[:20])


# --- what they are ------------------------------------------------------------------------------

VARIANTS = {
    "layerwise": bop_layerwise(0.1, 1.0),
    "2nd-order": bop_2nd_order(0.1, 0.3, 1e-2),
    "unbiased": bop_2nd_order(0.1, 0.3, 1e-2, unbiased=True),
    "cema": cema(0.1, 0.1),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_no_scale_of_the_gradients_matters(name):
    """By a power of two, to the bit; Bop's own flips change with it."""
    grads = GRADS[:50]
    history, _ = run(VARIANTS[name], WEIGHTS, grads)
    scaled, _ = run(VARIANTS[name], WEIGHTS, 2**-10 * grads)
    np.testing.assert_array_equal(history, scaled)
    assert np.any(
        run(bop(0.1, 0.1), WEIGHTS, grads)[0] != run(bop(0.1, 0.1), WEIGHTS, 2**-10 * grads)[0]
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_mirrored_weights_and_gradients_mirror_the_run(name):
    history, _ = run(VARIANTS[name], WEIGHTS, GRADS[:50])
    mirrored, _ = run(VARIANTS[name], -WEIGHTS, -GRADS[:50])
    np.testing.assert_array_equal(history, -mirrored)
    assert np.all(np.abs(history) == 1)


@pytest.mark.parametrize("name", ["layerwise", "2nd-order"])
def test_an_infinite_threshold_never_flips(name):
    make = {"layerwise": bop_layerwise, "2nd-order": bop_2nd_order}[name]
    history, _ = run(make(0.1, inf), WEIGHTS, GRADS[:50])
    np.testing.assert_array_equal(history, np.broadcast_to(WEIGHTS, history.shape))


def test_without_a_threshold_layerwise_is_bop():
    layerwise, _ = run(bop_layerwise(0.1, 0.0), WEIGHTS, GRADS)
    np.testing.assert_array_equal(layerwise, run(bop(0.1, 0.0), WEIGHTS, GRADS)[0])


def test_a_layer_is_judged_by_itself():
    """Two layers of one tree do what each would do alone, a million times weaker or not."""
    alone, _ = run(bop_layerwise(0.1, 1.0), WEIGHTS, GRADS[:50])
    tree = {"weak": WEIGHTS, "strong": WEIGHTS}
    grads = {"weak": 2**-20 * GRADS[:50], "strong": GRADS[:50]}
    together, _ = run(bop_layerwise(0.1, 1.0), tree, grads)
    np.testing.assert_array_equal(together["weak"], alone)
    np.testing.assert_array_equal(together["strong"], alone)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e30, 1e38])
def test_an_rms_whose_squares_overflow_or_vanish(scale):
    alone, _ = run(bop_layerwise(0.5, 1.0), WEIGHTS[:8], np.float32([[3, 1, -1, 1, 0, 2, -2, 1]]))
    far, _ = run(
        bop_layerwise(0.5, 1.0), WEIGHTS[:8], np.float32([[3, 1, -1, 1, 0, 2, -2, 1]]) * scale
    )
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
    history, state = run(bop_layerwise(0.1, 1.0), WEIGHTS, grads)
    clean, _ = run(bop_layerwise(0.1, 1.0), WEIGHTS, GRADS[:60])
    assert np.isfinite(rms(state.ema))
    np.testing.assert_array_equal(history[:20], clean[:20])
    assert np.all(history[20:, 1:] == history[19, 1:])
    assert flips(clean[19], clean[20:]) > 100


def test_what_keeps_the_second_moment_from_zero_stills_the_weakest():
    """Their signals are g / (g + 1e-10): 0.5 and 0.91."""
    w, grads = np.ones(2, np.float32), np.float32([[1e-10, 1e-9]])
    np.testing.assert_array_equal(run(bop_2nd_order(1.0, 0.6, 1.0), w, grads)[0][0], [1, -1])


def test_the_second_moment_frees_weak_but_consistent_weights():
    grads = np.float32([[1e-6, 1e-6 * (-1) ** t] for t in range(100)])  # consistent; noise
    w = np.ones(2, np.float32)
    history, state = run(bop_2nd_order(0.01, 0.5, 0.01), w, grads)
    np.testing.assert_array_equal(history[-1], [-1, 1])
    np.testing.assert_array_equal(run(bop(0.01, 1e-5), w, grads)[0][-1], [1, 1])
    assert state.ema_sq[0] == pytest.approx(1e-12 * (1 - 0.99**100), rel=1e-5)


def test_unbiased_averages_of_a_constant_are_the_constant():
    """From the first step on, so that a threshold just below 1 is passed at once; biased, never."""
    w, grads = np.ones(1, np.float32), np.full((1, 1), 0.25, np.float32)
    for gamma, sigma in ((1e-7, 1e-3), (1e-3, 1e-7), (1.0, 1.0)):
        history, state = run(bop_2nd_order(gamma, 0.999, sigma, unbiased=True), w, grads)
        assert history[0] == -1
        np.testing.assert_allclose(state.shares, [gamma, sigma], rtol=1e-6)
    assert run(bop_2nd_order(1e-7, 0.999, 1e-3), w, grads)[0][0] == 1


def test_cema_follows_the_sign_of_the_second_average():
    history, state = run(cema(0.1, 0.1), WEIGHTS, GRADS)
    np.testing.assert_array_equal(history[-1], -np.sign(state.ema_of_ema))


def test_cema_settles_as_alpha_reaches_0():
    history, _ = run(cema(0.5, optax.linear_schedule(0.5, 0.0, 100)), WEIGHTS, GRADS)
    assert flips(history[0], history[1:100]) > 400
    assert flips(history[100], history[101:]) == 0


# --- Bop's contract -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_ties_zeros_and_nan_never_flip(name):
    w = np.float32([1, -1, 0, 1, nan])
    grads = np.float32([[0, 0, 1, nan, 1]])
    history, _ = run(VARIANTS[name], w, grads)
    np.testing.assert_array_equal(history[0], w)
    nothing, _ = run(VARIANTS[name], WEIGHTS, np.zeros((3, 400), np.float32))
    np.testing.assert_array_equal(nothing[-1], WEIGHTS)


def test_a_tie_with_the_layers_rms_never_flips():
    w, grads = np.ones(4, np.float32), np.full((1, 4), 0.5, np.float32)
    assert np.all(run(bop_layerwise(0.5, 1.0), w, grads)[0] == 1)


@pytest.mark.parametrize("name", VARIANTS)
def test_contract_of_optax(name):
    optimizer = VARIANTS[name]
    params = {
        "a": -jnp.ones((3, 2)),
        "b": jnp.ones(4, jnp.bfloat16),
        "c": None,
        "d": jnp.ones((0, 2)),
    }
    grads = jax.tree.map(lambda w: 2 * w, params)

    def types(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)

    state = optimizer.init(params)
    assert types(jax.eval_shape(optimizer.init, params)) == types(state)
    eager, jitted, update = state, state, jax.jit(optimizer.update)
    for _ in range(3):
        updates, eager = optimizer.update(grads, eager, params, value=0.0)
        jitted_updates, jitted = update(grads, jitted, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        assert types(state) == types(eager) == types(jitted)
        chex.assert_trees_all_equal(updates, jitted_updates)
        chex.assert_trees_all_close(eager, jitted, rtol=1e-6)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state)[1:])
    assert eager.count == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
@pytest.mark.parametrize("name", VARIANTS)
def test_dtypes_of_weights(name, dtype):
    w = jnp.asarray(0.25 * WEIGHTS, dtype)
    history, state = run(VARIANTS[name], w, jnp.asarray(GRADS[:20]).astype(dtype))
    assert history.dtype == dtype
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state)[1:])
    assert jnp.sum(history[-1] != w) > 50
    assert jnp.all((history[-1] == w) | (history[-1] == -w))


@pytest.mark.parametrize("name", VARIANTS)
def test_vmap_over_networks_and_donation(name):
    w, grads = WEIGHTS.reshape(2, 200), GRADS[:10].reshape(10, 2, 200)
    both, _ = jax.vmap(partial(run, VARIANTS[name]), in_axes=(0, 1))(w, grads)
    for i in range(2):
        np.testing.assert_array_equal(both[i], run(VARIANTS[name], w[i], grads[:, i])[0])
    step = jax.jit(VARIANTS[name].update, donate_argnums=1)
    state, w = VARIANTS[name].init(jnp.ones(4)), jnp.ones(4)
    for _ in range(2):
        _, state = step(w, state, w)


def test_vmap_over_hyperparameters():
    gammas, taus = jnp.float32([0.1, 0.01, 0.5]), jnp.float32([1.0, 0.5, 2.0])
    lanes = jax.vmap(lambda g, t: run(bop_layerwise(g, t), WEIGHTS, GRADS[:20])[0])(gammas, taus)
    for lane, gamma, tau in zip(lanes, gammas, taus, strict=True):
        np.testing.assert_array_equal(lane, run(bop_layerwise(gamma, tau), WEIGHTS, GRADS[:20])[0])


@pytest.mark.usefixtures("standard_promotion")
def test_beside_adam_in_a_partition():
    labels = {"kernel": "binary", "bias": "real"}
    params = {"kernel": jnp.asarray(WEIGHTS), "bias": jnp.zeros(400)}
    for optimizer in VARIANTS.values():
        tx = optax.partition({"binary": optimizer, "real": optax.adam(0.1)}, labels)
        grads = {"kernel": GRADS[:5], "bias": GRADS[:5]}
        history, _ = run(tx, params, grads)
        np.testing.assert_array_equal(history["kernel"], run(optimizer, WEIGHTS, GRADS[:5])[0])
        assert np.all(history["bias"][-1] != 0)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (bop_layerwise, {"gamma": 0}, r"gamma must be in \(0, 1\], got gamma=0"),
        (bop_layerwise, {"threshold": -1.0}, r"threshold must be ≥ 0, got threshold=-1.0"),
        (bop_2nd_order, {"sigma": 2.0}, r"sigma must be in \(0, 1\], got sigma=2.0"),
        (bop_2nd_order, {"threshold": nan}, r"threshold must be ≥ 0, got threshold=nan"),
        (cema, {"alpha": nan}, r"alpha must be in \(0, 1\], got alpha=nan"),
        (cema, {"alpha": jnp.ones(2)}, r"alpha must be a scalar, got shape \(2,\).*jax.vmap"),
        (cema, {"ema_dtype": "int32"}, r"ema_dtype must be a floating dtype, got int32"),
    ],
)
def test_out_of_range(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_cannot_be_flipped(name):
    with pytest.raises(TypeError, match="layer is int32"):
        VARIANTS[name].init({"layer": jnp.ones(2, jnp.int32)})
    with pytest.raises(ValueError, match="params=None"):
        VARIANTS[name].update(jnp.ones(2), VARIANTS[name].init(jnp.ones(2)))
