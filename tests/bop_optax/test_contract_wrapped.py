"""The contract of every transform inside the wrappers of JAX and Optax.

Each wrapped run equals the same transform's eager run.
"""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.bop_optax.cases import (
    CASES,
    FLIPPING,
    HYPERPARAMETERS,
    assert_same,
    every,
    flipping,
    injected,
    map_hyperparameters,
    new,
)
from tests.bop_optax.trajectories import WEIGHTS, run, run_stepwise, step

# --- JAX's transformations --------------------------------------------------------------------

# Small integers: their mean over eight devices is exact in whatever order it is summed.
SHARDS = np.random.default_rng(0).integers(-4, 5, (10, 8, 8, 2)).astype(np.float32)
MEANS, W = SHARDS.mean(1), WEIGHTS[:16].reshape(8, 2)


@cache
def plain(name):
    """The last weights and the last state of an eager run."""
    history, state = run_stepwise(new(name), W, MEANS)
    assert np.any(history != W)
    return history[-1], state


def last(result):
    history, state = result
    return history[-1], state


def with_cond(optimizer):
    def body(carry, item):
        use, g = item
        return jax.lax.cond(use, partial(step, optimizer), lambda *kept: kept[:2], *carry, g), None

    w = jnp.asarray(W)
    # Every gradient comes twice and is used once.
    items = jnp.arange(20) % 2 == 0, jnp.repeat(MEANS, 2, axis=0)
    return jax.lax.scan(body, (w, optimizer.init(w)), items)[0]


def mean_step(optimizer, w, state, g):
    return step(optimizer, w, state, jax.lax.pmean(g, "data"))


def with_pmap(optimizer):
    w = jnp.tile(W, (8, 1, 1))
    state = jax.pmap(optimizer.init)(w)
    parallel = jax.pmap(partial(mean_step, optimizer), axis_name="data")
    for g in SHARDS:
        w, state = jax.block_until_ready(parallel(w, state, g))  # one collective at a time
    replicas = [jax.tree.map(lambda x, i=i: x[i], (w, state)) for i in range(8)]
    for replica in replicas[1:]:
        chex.assert_trees_all_equal(replica, replicas[0])
    return replicas[0]


def with_shard_map(optimizer, sharded):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    if sharded:  # the weights are split: each device has its own weights and their gradient
        grads, spec, body = MEANS, P("data"), partial(step, optimizer)
    else:  # the batch is split: each device has its own gradient
        grads, spec, body = SHARDS.reshape(10, 64, 2), P(), partial(mean_step, optimizer)
    w = jnp.asarray(W)
    state = optimizer.init(w)
    specs = (spec, jax.tree.map(lambda x: spec if x.ndim > 1 else P(), state))
    f = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(*specs, P("data")), out_specs=specs))
    for g in grads:
        w, state = jax.block_until_ready(f(w, state, g))
    assert w.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)
    return w, state


WRAPPERS = {
    "jit-with-donation": lambda optimizer: last(
        run_stepwise(optimizer, W, MEANS, partial(jax.jit, donate_argnums=(0, 1)))
    ),
    "scan": lambda optimizer: last(run(optimizer, W, MEANS)),
    "cond": with_cond,
    "pmap": with_pmap,
    "shard_map-replicated": partial(with_shard_map, sharded=False),
    "shard_map-sharded": partial(with_shard_map, sharded=True),
}


# Their updates depend on the whole array, or on the position in it.
WHOLE_ARRAY = ["layerwise", "scale_by_glorot", "rounded", "bold", "prob"]


@pytest.mark.parametrize(
    ("wrapper", "name"),
    [(w, n) for w in WRAPPERS for n in CASES if not (w.endswith("sharded") and n in WHOLE_ARRAY)],
)
def test_transformations(name, wrapper):
    assert_same(WRAPPERS[wrapper](new(name)), plain(name), name)


@every
def test_vmap_over_networks(name):
    w, grads = W.reshape(2, 4, 2), MEANS.reshape(10, 2, 4, 2)
    both = jax.vmap(partial(run, new(name)), in_axes=(0, 1))(w, grads)
    state = jax.vmap(new(name).init)(jnp.asarray(w))
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, both[1])
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], both)
        assert_same(one, run(new(name), w[i], grads[:, i]), name)


@flipping
def test_a_run_resumes_from_a_checkpoint(name, tmp_path):
    """Saved by Orbax after five steps, restored into the first state, and run to the end."""
    w, state = last(run(new(name), W, MEANS[:5]))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state._asdict())
        checkpointer.wait_until_finished()
        template = new(name).init(jnp.asarray(W))
        restored = checkpointer.restore(tmp_path / "state", template._asdict())
    state = type(template)(**restored)
    for g in MEANS[5:]:
        w, state = step(new(name), w, state, jnp.asarray(g))
    assert_same((w, state), plain(name), name)


# --- hyperparameters --------------------------------------------------------------------------

WITH_HYPERPARAMETERS = [name for name in CASES if HYPERPARAMETERS[name]]


@pytest.mark.parametrize("name", WITH_HYPERPARAMETERS)
def test_forms_of_the_hyperparameters(name):
    """A number, an array, a traced scalar, several under `vmap`, a schedule."""
    numbers = [CASES[name][1][key] for key in HYPERPARAMETERS[name]]
    others = [numbers, [value / 2 for value in numbers], [1.0 for _ in numbers]]

    def history(forms):
        return run(new(name, **dict(zip(HYPERPARAMETERS[name], forms, strict=True))), W, MEANS)[0]

    arrays = [jnp.float32(value) for value in numbers]

    @jax.jit
    def histories(traced):
        runs = {"array": history(arrays), "traced": history(traced[0])}
        if name in FLIPPING:
            runs["schedule"] = history([optax.constant_schedule(value) for value in numbers])
        return runs, jax.vmap(history)(traced), [history(lane) for lane in others]

    runs, lanes, expected = histories(jnp.float32(others))
    rtol = 0 if name in FLIPPING else 1e-6
    np.testing.assert_allclose(lanes, expected, rtol=rtol)
    np.testing.assert_allclose(lanes[0, -1], plain(name)[0], rtol=rtol)
    for form, actual in runs.items():
        np.testing.assert_allclose(actual, expected[0], rtol=rtol, err_msg=form)


# --- Optax's combinators ----------------------------------------------------------------------


@every
def test_inject_hyperparams(name):
    w, state = last(run(injected(name), W, MEANS))
    assert_same((w, state.inner_state), plain(name), name)
    for key, value in state.hyperparams.items():
        assert value == np.float32(CASES[name][1][key])


@every
def test_inject_hyperparams_with_schedules(name):
    decays = map_hyperparameters(lambda v: optax.linear_schedule(v, v / 2, 16), name)
    w, state = last(run(injected(name, **decays), W, MEANS))
    for key, value in state.hyperparams.items():
        np.testing.assert_allclose(value, decays[key](jnp.int32(9)), rtol=1e-6)
    if name in FLIPPING:  # the others take no schedule of their own
        assert_same((w, state.inner_state), last(run(new(name, **decays), W, MEANS)), name)


@pytest.mark.parametrize("name", WITH_HYPERPARAMETERS)
def test_injected_hyperparameters_can_be_set(name):
    key = HYPERPARAMETERS[name][0]
    w, g = jnp.asarray(W), jnp.asarray(MEANS[0])
    state = injected(name).init(w)
    state.hyperparams[key] = jnp.float32(0.125)
    updates, state = injected(name).update(g, state, w)
    optimizer = new(name, **{key: 0.125})
    expected = optimizer.update(g, optimizer.init(w), w)
    assert_same((updates, state.inner_state), expected, name)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("name", "combine"),
    [*((name, "partition") for name in FLIPPING), ("bop", "multi_transform"), ("bop", "masked")],
)
def test_beside_other_optimizers(name, combine):
    labels = {"kernel": "binary", "bias": "sgd", "scale": "adam"}
    optimizers = {"binary": new(name), "sgd": optax.sgd(0.5), "adam": optax.adam(0.1)}
    if combine == "masked":
        optimizer = optax.chain(
            *(
                optax.masked(optimizers[kind], {k: v == kind for k, v in labels.items()})
                for kind in optimizers
            )
        )
    else:
        optimizer = getattr(optax, combine)(optimizers, labels)
    params = {"kernel": W, "bias": np.zeros((8, 2), np.float32), "scale": np.ones(2, np.float32)}
    grads = {"kernel": MEANS, "bias": MEANS, "scale": MEANS[:, 0]}
    history, _ = run(optimizer, params, grads)
    np.testing.assert_array_equal(history["kernel"][-1], plain(name)[0])
    np.testing.assert_array_equal(history["bias"][-1], -0.5 * MEANS.sum(0))
    assert np.all(history["scale"] != 1)


@pytest.mark.usefixtures("standard_promotion")
def test_multi_steps_averages_before_the_transform():
    pairs = np.repeat(MEANS, 2, axis=0)
    pairs[::2] += 1
    pairs[1::2] -= 1
    optimizer = optax.MultiSteps(new("bop"), every_k_schedule=2).gradient_transformation()
    np.testing.assert_array_equal(run(optimizer, W, pairs)[0][-1], plain("bop")[0])


@flipping
def test_apply_if_finite_skips_steps_with_nan(name):
    grads = np.insert(MEANS, 3, MEANS[3], axis=0)
    grads[3, 0, 0] = np.nan
    history, state = run(optax.apply_if_finite(new(name), 2), W, grads)
    assert_same((history[-1], state.inner_state), plain(name), name)
