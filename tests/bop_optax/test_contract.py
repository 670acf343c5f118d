"""The contract of every transform: state, dtypes, trees, flips, errors.

As in Optax's common test of its optimizers, each test runs on all transforms of the library, or on
all that flip binary weights. The contract inside JAX's and Optax's wrappers is in
`test_contract_wrapped`.
"""

import re
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.bop_optax.cases import (
    CASES,
    FLIPPING,
    HYPERPARAMETERS,
    POSITIVE,
    averages,
    deterministic,
    every,
    flipping,
    flipping_in_float32,
    injected,
    map_hyperparameters,
    new,
)
from tests.bop_optax.trajectories import GRADS, WEIGHTS, run

inf, nan = float("inf"), float("nan")


# --- state, shapes, dtypes, trees -------------------------------------------------------------

FORMS = {
    "numbers": new,
    "arrays": lambda name: new(name, **map_hyperparameters(jnp.float32, name)),
    "schedules": lambda name: new(name, **map_hyperparameters(optax.constant_schedule, name)),
    "chain": lambda name: optax.chain(optax.clip(1.0), new(name)),
    "injected": lambda name: injected(
        name, **map_hyperparameters(lambda v: optax.linear_schedule(v, v / 2, 32), name)
    ),
}


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@pytest.mark.parametrize(
    ("form", "name"),
    # Transforms without a learning rate take schedules by injection only, as Optax's own.
    [(form, name) for form in FORMS for name in (FLIPPING if form == "schedules" else CASES)],
)
def test_state_is_stable_compiled_once_and_as_in_eager(name, form):
    optimizer = FORMS[form](name)
    params = {
        "a": -jnp.ones((3, 2)),
        "b": jnp.ones((3, 2), jnp.bfloat16),
        "c": None,
        "d": jnp.ones((0, 2)),
    }
    grads = jax.tree.map(lambda w: 2 * w, params)
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
        chex.assert_trees_all_equal(updates, jitted_updates)
        if name in ("2nd-order", "unbiased"):  # XLA fuses g² − v
            chex.assert_trees_all_close(eager, jitted, rtol=1e-6)
        else:
            chex.assert_trees_all_equal(eager, jitted)
    assert len(traces) == 1


@every
def test_extra_arguments_are_ignored(name):
    w, optimizer = jnp.ones((3, 1)), new(name)
    state = optimizer.init(w)
    expected = optimizer.update(w, state, w)
    chex.assert_trees_all_equal(optimizer.update(w, state, w, value=0.0, grad=w), expected)


@every
def test_map_params_finds_the_averages(name):
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones(4)}
    state = new(name).init(params)
    marked = optax.tree.map_params(
        new(name), lambda _: "average", state, transform_non_params=lambda _: "other"
    )
    for field, tree in marked._asdict().items():
        expected = "average" if field.startswith(("ema", "accumulator", "flips")) else "other"
        assert all(leaf == expected for leaf in jax.tree.leaves(tree))
    shapes = optax.tree.map_params(new(name), lambda m, w: m.shape == w.shape, state, params)
    assert all(x is True for x in jax.tree.leaves(shapes) if isinstance(x, bool))


@flipping
def test_count_increments_and_saturates(name):
    w, optimizer = jnp.ones(3), new(name)
    state = optimizer.init(w)
    assert (state.count, state.count.dtype, state.count.shape) == (0, jnp.int32, ())
    state = optimizer.update(w, state, w)[1]
    assert (state.count, state.count.dtype) == (1, jnp.int32)
    last = jnp.int32(2**31 - 1)
    assert optimizer.update(w, state._replace(count=last), w)[1].count == last


TREES = {
    "nested": {"a": [jnp.ones(3), {"b": -jnp.ones((2, 2))}], "c": (jnp.ones(1),)},
    "none": {"kernel": jnp.ones(3), "bias": None},
    "empty-dict": {},
    "empty-tuple": (),
    "only-none": {"a": None},
    "no-elements": jnp.ones((0, 3)),
    "scalar": jnp.float32(-1.0),
    "float": 1.0,
    "numpy": np.ones(3, np.float32),
    "ranks": [-jnp.ones((2,) * n) for n in range(6)],
}


@every
@pytest.mark.parametrize("tree", TREES)
def test_trees(name, tree):
    params, optimizer = TREES[tree], new(name)
    if tree == "float" and name == "clip_latent":
        params = jnp.float32(1.0)  # it needs the dtype of an array
    update = jax.jit(optimizer.update) if tree in ("nested", "ranks") else optimizer.update
    updates, state = update(params, optimizer.init(params), params)
    chex.assert_trees_all_equal_structs(updates, params)
    if name in FLIPPING:
        chex.assert_trees_all_equal_structs(averages(state), params)
        after = optax.apply_updates(params, updates)
        chex.assert_trees_all_equal(after, jax.tree.map(lambda w: jnp.asarray(-w), params))


@every
def test_dtypes_of_weights(name):
    dtypes = ["float32", "bfloat16", "float16", *(["float8_e4m3fn"] if name in FLIPPING else [])]
    keys = [(dtype, alpha) for dtype in dtypes for alpha in (1.0, 0.1)]
    start = {key: jnp.asarray(key[1] * WEIGHTS, key[0]) for key in keys}
    grads = {key: jnp.asarray(GRADS[:20]).astype(key[0]) for key in keys}
    updates, _ = jax.eval_shape(new(name).update, start, new(name).init(start), start)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, start)
    histories, state = run(new(name), start, grads)
    chex.assert_trees_all_equal_dtypes(histories, start)
    if name in FLIPPING:
        ema_dtype = jnp.bfloat16 if name == "rounded" else jnp.float32
        assert all(x.dtype == ema_dtype for x in jax.tree.leaves(averages(state)))
        for key, history in histories.items():
            assert jnp.sum(history[-1] != start[key]) > 50, key
            assert jnp.all((history == start[key]) | (history == -start[key])), key


@flipping
def test_float32_gradients_of_bfloat16_weights(name):
    """The averages keep the precision of the gradients."""
    w, g = jnp.asarray(WEIGHTS, jnp.bfloat16), jnp.asarray(GRADS[0])
    updates, state = new(name).update(g, new(name).init(w), w)
    assert updates.dtype == jnp.bfloat16
    weights = jnp.asarray(WEIGHTS)
    _, expected = new(name).update(g, new(name).init(weights), weights)
    chex.assert_trees_all_equal(state, expected)


def floating(state):
    return [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]


@flipping_in_float32
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_ema_dtype(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        optimizer, w = new(name, ema_dtype=dtype), jnp.ones(3, jnp.float32)
        state, update = optimizer.init(w), jax.jit(optimizer.update)
        for _ in range(2):
            assert all(x.dtype == dtype for x in floating(state))
            updates, state = update(w, state, w)
            assert updates.dtype == jnp.float32
        np.testing.assert_array_equal(optax.apply_updates(w, updates), [-1, -1, -1])


@flipping_in_float32
def test_float64_weights(name):
    with jax.enable_x64(True):
        key = HYPERPARAMETERS[name][0]
        value = CASES[name][1][key]
        rate = optax.linear_schedule(value, value / 2, 19)
        w, grads = WEIGHTS.astype(np.float64), GRADS[:20].astype(np.float64)
        history, state = run(new(name, **{key: rate}), w, grads)
        assert (history.dtype, state.count.dtype) == ("float64", "int32")
        assert all(x.dtype == jnp.float32 for x in floating(state))
        assert jnp.sum(history[-1] != w) > 50
        assert jnp.all(jnp.abs(history) == 1)


# --- flips ------------------------------------------------------------------------------------


@cache
def histories(name):
    """Runs on the gradients, on their mirror image, scaled by a power of two, and without any."""
    weights = {"plain": WEIGHTS, "mirrored": -WEIGHTS, "scaled": WEIGHTS, "zero": WEIGHTS}
    g = GRADS[:50]
    grads = {"plain": g, "mirrored": -g, "scaled": 2**-10 * g, "zero": np.zeros_like(g)}
    return run(new(name), weights, grads)[0]


@deterministic
def test_mirrored_weights_and_gradients_mirror_the_run(name):
    history = histories(name)
    np.testing.assert_array_equal(history["plain"], -history["mirrored"])
    assert np.all(np.abs(history["plain"]) == 1)
    assert np.any(history["plain"] != WEIGHTS)


@deterministic
def test_rules_with_units_alone_depend_on_the_scale_of_the_gradients(name):
    history = histories(name)
    assert np.any(history["plain"] != history["scaled"]) == (name in ("bop", "bold"))


@flipping
def test_ties_zeros_and_nan_never_flip(name):
    w = jnp.asarray([1, -1, 0, 1, nan], jnp.float32)
    g = jnp.asarray([0, 0, 1, nan, 1], jnp.float32)
    optimizer = new(name, check_weights=False)
    updates, _ = optimizer.update(g, optimizer.init(w), w)
    np.testing.assert_array_equal(optax.apply_updates(w, updates), w)
    assert np.all(histories(name)["zero"] == WEIGHTS)


@pytest.mark.parametrize("name", [n for n in FLIPPING if "threshold" in HYPERPARAMETERS[n]])
def test_an_infinite_threshold_never_flips(name):
    history, _ = run(new(name, threshold=inf), WEIGHTS, GRADS[:50])
    np.testing.assert_array_equal(history, np.broadcast_to(WEIGHTS, history.shape))


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        (name, key, value)
        for name in FLIPPING
        for key in HYPERPARAMETERS[name]
        if key != "threshold"
        for value in (0, -1, inf if key in POSITIVE else 1.5, nan, np.float32(0), np.float64(-1e-4))
    ],
)
def test_rates_out_of_range(name, key, value):
    limits = "above 0 and finite" if key in POSITIVE else r"in \(0, 1\]"
    with pytest.raises(ValueError, match=rf"{key} must be {limits}, got {key}=") as error:
        new(name, **{key: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", [-1e-8, -inf, nan, np.float32(-1)])
@pytest.mark.parametrize("name", [n for n in FLIPPING if "threshold" in HYPERPARAMETERS[n]])
def test_threshold_out_of_range(name, value):
    message = r"threshold must be ≥ 0, got threshold=.*; 0 flips at every sign that agrees"
    with pytest.raises(ValueError, match=message) as error:
        new(name, threshold=value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", [jnp.ones(2), np.ones((1, 3))])
@pytest.mark.parametrize(("name", "key"), [(n, k) for n in FLIPPING for k in HYPERPARAMETERS[n]])
def test_hyperparameters_must_be_scalars(name, key, value):
    shape = str(np.shape(value)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"{key} must be a scalar, got shape {shape}.*jax.vmap"):
        new(name, **{key: value})


@flipping
@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool"])
def test_dtypes_that_cannot_be_flipped(name, dtype):
    with pytest.raises(TypeError, match=rf"layer/0 is {dtype}.*float32 or bfloat16.*partition"):
        new(name).init({"layer": [jnp.ones(2, dtype)], "other": jnp.ones(2)})
    with pytest.raises(TypeError, match=f"the parameter is {dtype}"):
        new(name).init(jnp.ones(2, dtype))
    with pytest.raises(ValueError, match=rf"ema_dtype must be a floating.*{dtype}.*jnp.float32"):
        new(name, ema_dtype=dtype)


@pytest.mark.parametrize("name", [*FLIPPING, "clip_latent"])
def test_update_needs_params(name):
    state = new(name).init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"params=None: call update\(grads, state, params\)"):
        new(name).update(jnp.ones(2), state)


@pytest.mark.parametrize("name", FLIPPING)
def test_gradients_fit_their_weights(name):
    """A gradient of another shape would broadcast, and change the shape of the weight."""
    params = {"a": {"w": jnp.ones((2, 1))}}
    optimizer = new(name)
    state = optimizer.init(params)
    for shape in ((1, 2), (2,), (), (2, 2)):
        message = rf"a/w is \(2, 1\) and its gradient {re.escape(str(shape))}"
        with pytest.raises(ValueError, match=message):
            optimizer.update({"a": {"w": jnp.ones(shape)}}, state, params)
    for dtype in ("int32", "complex64", "bool"):
        message = f"a gradient is real floating point, but that of a/w is {dtype}"
        with pytest.raises(TypeError, match=message):
            optimizer.update({"a": {"w": jnp.ones((2, 1), dtype)}}, state, params)


@pytest.mark.parametrize("value", ["1", None, 1j, [0.5], {}])
@pytest.mark.parametrize("name", FLIPPING)
def test_hyperparameters_are_numbers_or_schedules(name, value):
    for key in HYPERPARAMETERS[name]:
        with pytest.raises(TypeError, match=f"{key} must be a number or a schedule, got {key}="):
            new(name, **{key: value})
