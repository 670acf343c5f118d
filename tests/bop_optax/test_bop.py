"""Bop against a hand table, an oracle in NumPy, and what JAX and Optax wrap around it."""

import subprocess
import sys
from functools import partial

import chex
import hypothesis
import hypothesis.extra.numpy
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from bop_optax import bop

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
    optimizer, weight = bop(gamma, tau), jnp.float32(w)
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


def step(optimizer, w, state, g):
    updates, state = optimizer.update(g, state, w)
    return optax.apply_updates(w, updates), state


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


# --- JAX's transformations --------------------------------------------------------------------

OPTIMIZER = bop(0.25, 0.25)
# Small integers: their mean over eight devices is exact in whatever order it is summed.
SHARDS = rng.integers(-4, 5, (10, 8, 16)).astype(np.float32)
MEANS = SHARDS.mean(1)
PLAIN = larq(WEIGHTS[:16], MEANS, 0.25, 0.25)


def test_donation():
    wrap = partial(jax.jit, donate_argnums=(0, 1))
    assert_same(stepped(OPTIMIZER, WEIGHTS[:16], MEANS, wrap), PLAIN)


def test_cond():
    def body(carry, item):
        go, g = item
        return jax.lax.cond(go, partial(step, OPTIMIZER), lambda *kept: kept[:2], *carry, g), None

    w = jnp.asarray(WEIGHTS[:16])
    # Every gradient comes twice and is used once.
    items = jnp.arange(20) % 2 == 0, jnp.repeat(MEANS, 2, axis=0)
    (w, state), _ = jax.lax.scan(body, (w, OPTIMIZER.init(w)), items)
    assert_same((w, state.ema), [history[-1] for history in PLAIN])
    assert state.count == 10


def test_vmap_over_weights():
    w = jnp.reshape(WEIGHTS[:16], (2, 8))
    state = jax.vmap(OPTIMIZER.init)(w)
    for g in MEANS:
        w, state = jax.vmap(partial(step, OPTIMIZER))(w, state, jnp.reshape(g, (2, 8)))
    assert_same((w.ravel(), state.ema.ravel()), [history[-1] for history in PLAIN])


def mean_step(w, state, g):
    return step(OPTIMIZER, w, state, jax.lax.pmean(g, "data"))


def test_pmap_of_averaged_gradients():
    w = jnp.tile(WEIGHTS[:16], (8, 1))
    state = jax.pmap(OPTIMIZER.init)(w)
    parallel = jax.pmap(mean_step, axis_name="data")
    for g in SHARDS:
        w, state = parallel(w, state, g)
    for replica in range(8):
        last = [history[-1] for history in PLAIN]
        assert_same((w[replica], state.ema[replica]), last)


@pytest.mark.parametrize("layout", ["replicated", "sharded"])
def test_shard_map(layout):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    if layout == "replicated":  # the batch is split: each device has its own gradient
        grads, spec, body = SHARDS.reshape(10, 128), P(), mean_step
    else:  # the weights are split: each device has its own weights and their gradient
        grads, spec, body = MEANS, P("data"), partial(step, OPTIMIZER)
    w = jnp.asarray(WEIGHTS[:16])
    state = OPTIMIZER.init(w)
    specs = (spec, state._replace(count=P(), ema=spec))
    sharded = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(*specs, P("data")), out_specs=specs))
    for g in grads:
        w, state = sharded(w, state, g)
    assert w.sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, spec), 1)
    assert_same((w, state.ema), [history[-1] for history in PLAIN])


# --- Optax's combinators ----------------------------------------------------------------------


def final(optimizer, w, grads):
    """The weights at the end of a run."""
    w = jax.tree.map(jnp.asarray, w)
    state, f = optimizer.init(w), jax.jit(partial(step, optimizer))
    for g in grads:
        w, state = f(w, state, g)
    return w, state


def test_chain_changes_the_gradient_that_is_averaged():
    clipped = larq(WEIGHTS, np.clip(GRADS[:20], -0.5, 0.5), 0.1, 0.05)[0][-1]
    assert np.any(clipped != larq(WEIGHTS, GRADS[:20], 0.1, 0.05)[0][-1])
    w, _ = final(optax.chain(optax.clip(0.5), bop(0.1, 0.05)), WEIGHTS, GRADS[:20])
    np.testing.assert_array_equal(w, clipped)


LABELS = {"kernel": "binary", "bias": "real"}
IS_BINARY, IS_REAL = ({k: v == kind for k, v in LABELS.items()} for kind in ("binary", "real"))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.partition({"binary": OPTIMIZER, "real": optax.sgd(0.5)}, LABELS),
        optax.multi_transform({"binary": OPTIMIZER, "real": optax.sgd(0.5)}, LABELS),
        optax.chain(
            optax.masked(OPTIMIZER, IS_BINARY),
            optax.masked(optax.sgd(0.5), IS_REAL),
        ),
    ],
    ids=["partition", "multi_transform", "masked"],
)
def test_beside_another_optimizer(optimizer):
    params = {"kernel": WEIGHTS[:16], "bias": np.zeros(16, np.float32)}
    after, _ = final(optimizer, params, [{"kernel": g, "bias": g} for g in MEANS])
    np.testing.assert_array_equal(after["kernel"], PLAIN[0][-1])
    np.testing.assert_array_equal(after["bias"], -0.5 * MEANS.sum(0))


@pytest.mark.usefixtures("standard_promotion")
def test_multi_steps_averages_before_bop():
    pairs = np.repeat(MEANS, 2, axis=0)
    pairs[::2] += 1
    pairs[1::2] -= 1
    optimizer = optax.MultiSteps(OPTIMIZER, every_k_schedule=2)
    np.testing.assert_array_equal(final(optimizer, WEIGHTS[:16], pairs)[0], PLAIN[0][-1])


INJECT = optax.inject_hyperparams(bop, static_args=("ema_dtype",), hyperparam_dtype=jnp.float32)


@pytest.mark.parametrize("tau", [0.1, optax.linear_schedule(0.0, 0.25, 32)])
def test_inject_hyperparams(tau):
    w, state = final(INJECT(gamma=0.1, threshold=tau), WEIGHTS, GRADS[:20])
    taus = [tau(jnp.int32(t)) for t in range(20)] if callable(tau) else tau
    np.testing.assert_array_equal(w, larq(WEIGHTS, GRADS[:20], 0.1, taus)[0][-1])
    np.testing.assert_array_equal(state.hyperparams["threshold"], np.float32(taus)[..., None][-1])


def test_injected_gamma_can_be_set():
    optimizer = INJECT(gamma=0.5)
    w = jnp.ones(2)
    state = optimizer.init(w)
    state.hyperparams["gamma"] = jnp.float32(0.25)
    _, state = optimizer.update(w, state, w)
    np.testing.assert_array_equal(state.inner_state.ema, [0.25, 0.25])


def test_apply_if_finite_keeps_a_nan_from_freezing_weights():
    grads = [[1.0, 1.0], [nan, -1.0], [-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]]
    grads, w = np.float32(grads), np.ones(2, np.float32)
    frozen, state = final(bop(0.5, 0.1), w, grads)
    np.testing.assert_array_equal(frozen, [-1, 1])  # flipped once, then never again
    assert np.isnan(state.ema[0])
    finite, state = final(optax.apply_if_finite(bop(0.5, 0.1), 2), w, grads)
    np.testing.assert_array_equal(finite, [1, 1])
    assert np.all(np.isfinite(state.inner_state.ema))


# --- trees, dtypes, state ---------------------------------------------------------------------

TREES = {
    "nested": {"a": [jnp.ones(3), {"b": -jnp.ones((2, 2))}], "c": (jnp.ones(1),)},
    "none": {"kernel": jnp.ones(3), "bias": None},
    "empty-dict": {},
    "empty-tuple": (),
    "only-none": None,
    "no-elements": jnp.ones((0, 3)),
    "scalar": jnp.float32(-1.0),
    "float": 1.0,
    "numpy": np.ones(3, np.float32),
    **{f"rank-{n}": -jnp.ones((2,) * n) for n in range(6)},
}


@pytest.mark.parametrize("params", TREES.values(), ids=TREES)
def test_trees(params):
    if params is None:
        params = {"a": None}
    optimizer = bop(0.5, 0.1)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    chex.assert_trees_all_equal_structs(updates, state.ema, params)
    after = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal(after, jax.tree.map(lambda w: jnp.asarray(-w), params))


DTYPES = ["float32", "bfloat16", "float16", "float8_e4m3fn"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [1.0, 0.1])
def test_dtypes_of_weights(dtype, alpha):
    start = jnp.asarray(alpha * WEIGHTS, dtype)
    w, optimizer = start, bop(0.1, 0.1)
    state = optimizer.init(w)
    for g in GRADS[:10]:
        updates, state = optimizer.update(jnp.asarray(g).astype(dtype), state, w)
        assert updates.dtype == dtype
        w = optax.apply_updates(w, updates)
    assert w.dtype == dtype
    assert state.ema.dtype == jnp.float32
    assert jnp.sum(w != start) > 100
    assert jnp.all((w == start) | (w == -start))


def test_float32_gradients_of_bfloat16_weights():
    w = jnp.asarray(WEIGHTS, jnp.bfloat16)
    averages = stepped(bop(0.1, 0.1), w, GRADS[:10])[1]
    assert_same([averages], [larq(WEIGHTS, GRADS[:10], 0.1, 0.1)[1]])


@pytest.mark.parametrize("ema_dtype", ["bfloat16", "float16", "float32", "float64"])
def test_ema_dtype(ema_dtype):
    with jax.enable_x64(ema_dtype == "float64"):
        optimizer, w = bop(0.5, 0.1, ema_dtype=ema_dtype), jnp.ones(3, jnp.float32)
        state = optimizer.init(w)
        for _ in range(2):
            assert state.ema.dtype == ema_dtype
            updates, state = optimizer.update(w, state, w)
            assert updates.dtype == jnp.float32
        np.testing.assert_array_equal(optax.apply_updates(w, updates), [-1, -1, -1])


def test_float64_weights():
    with jax.enable_x64(True):
        optimizer = bop(optax.linear_schedule(0.5, 0.1, 9), 0.1)
        w = jnp.asarray(WEIGHTS, jnp.float64)
        after, state = final(optimizer, w, GRADS[:10].astype(np.float64))
        assert (after.dtype, state.ema.dtype, state.count.dtype) == ("float64", "float32", "int32")
        assert jnp.sum(after != w) > 100
        assert jnp.all(jnp.abs(after) == 1)


@pytest.mark.parametrize(
    "optimizer",
    [
        bop(),
        bop(optax.linear_schedule(0.5, 0.25, 32), optax.constant_schedule(1e-8)),
        bop(jnp.float32(1e-2), jnp.float32(1e-8)),
        optax.chain(optax.clip(1.0), bop()),
        INJECT(gamma=optax.linear_schedule(0.5, 0.25, 32), threshold=1e-8),
    ],
    ids=["numbers", "schedules", "arrays", "chain", "injected"],
)
def test_contract_of_optax(optimizer):
    params = {"a": -jnp.ones((3, 2)), "b": jnp.ones(4, jnp.bfloat16), "c": None}
    grads = jax.tree.map(lambda w: 2 * w, params)

    def types(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)

    state = optimizer.init(params)
    assert types(jax.eval_shape(optimizer.init, params)) == types(state)
    traces = []

    @jax.jit
    def update(*args):
        traces.append(args)
        return optimizer.update(*args)

    eager, jitted = state, state
    for _ in range(3):
        updates, eager = optimizer.update(grads, eager, params)
        jitted_updates, jitted = update(grads, jitted, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        assert types(state) == types(eager) == types(jitted)
        chex.assert_trees_all_equal((updates, eager), (jitted_updates, jitted))
    assert len(traces) == 1


def test_extra_arguments_are_ignored():
    w = jnp.ones(3)
    state = OPTIMIZER.init(w)
    expected = OPTIMIZER.update(w, state, w)
    chex.assert_trees_all_equal(OPTIMIZER.update(w, state, w, value=0.0, grad=w), expected)


def test_count_increments_and_saturates():
    w = jnp.ones(3)
    state = OPTIMIZER.init(w)
    assert (state.count, state.count.dtype, state.count.shape) == (0, jnp.int32, ())
    state = OPTIMIZER.update(w, state, w)[1]
    assert (state.count, state.count.dtype) == (1, jnp.int32)
    last = jnp.int32(2**31 - 1)
    assert OPTIMIZER.update(w, state._replace(count=last), w)[1].count == last


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0, -1, 1.5, nan, np.float32(0), np.float64(-1e-4)])
def test_gamma_out_of_range(gamma):
    with pytest.raises(ValueError, match=r"gamma must be in \(0, 1\], got gamma=.*1e-4") as error:
        bop(gamma)
    assert repr(gamma) in str(error.value)


@pytest.mark.parametrize("threshold", [-1e-8, -inf, nan, np.float32(-1)])
def test_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match=r"threshold must be ≥ 0, got threshold=.*1e-8") as error:
        bop(1e-4, threshold)
    assert repr(threshold) in str(error.value)


@pytest.mark.parametrize("name", ["gamma", "threshold"])
@pytest.mark.parametrize("value", [jnp.ones(2), np.ones((1, 3))])
def test_hyperparameters_must_be_scalars(name, value):
    shape = str(np.shape(value)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"{name} must be a scalar, got shape {shape}.*jax.vmap"):
        bop(**{name: value})


@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool"])
def test_dtypes_that_cannot_be_flipped(dtype):
    with pytest.raises(TypeError, match=rf"layer/0 is {dtype}.*float32 or bfloat16.*partition"):
        bop().init({"layer": [jnp.ones(2, dtype)], "other": jnp.ones(2)})
    with pytest.raises(TypeError, match=f"the parameter is {dtype}"):
        bop().init(jnp.ones(2, dtype))
    with pytest.raises(ValueError, match=rf"ema_dtype must be a floating.*{dtype}.*jnp.float32"):
        bop(ema_dtype=dtype)


def test_update_needs_params():
    with pytest.raises(ValueError, match=r"params=None: call update\(grads, state, params\)"):
        bop().update(jnp.ones(2), bop().init(jnp.ones(2)))


def test_import_needs_jax_and_optax_alone():
    code = (
        "import sys, bop_optax\n"
        "extras = {'flax', 'orbax', 'tensorflow', 'tensorflow_datasets', 'matplotlib', 'sklearn'}\n"
        "assert 'optax' in sys.modules\n"
        "print(*sorted(extras & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
