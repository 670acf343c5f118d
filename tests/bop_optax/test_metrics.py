"""The metrics against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bop_optax import binary_labels, flip_ratio, flips, log_flip_ratio
from bop_optax.layers import BinaryLinear

rng = np.random.default_rng(0)
BEFORE = {
    "a": rng.choice(np.float32([-1, 1]), (40, 5)),
    "b": [rng.choice(np.float32([-0.1, 0.1]), 100), None],
}
FLIPPED = jax.tree.map(lambda w: rng.random(w.shape) < 0.2, BEFORE)
AFTER = jax.tree.map(lambda w, f: np.where(f, -w, w), BEFORE, FLIPPED)
UPDATES = jax.tree.map(lambda w, v: v - w, BEFORE, AFTER)
COUNTS = jax.tree.map(np.sum, FLIPPED)
LABELS = {"a": "binary", "b": ["real", None]}


def identity(f):
    return f


@pytest.mark.parametrize("wrap", [identity, jax.jit])
@pytest.mark.parametrize("arguments", [(UPDATES,), (BEFORE, AFTER)], ids=["updates", "weights"])
@pytest.mark.parametrize("labels", [None, LABELS], ids=["all", "labelled"])
def test_tree(wrap, arguments, labels):
    count, size = COUNTS["a"] + (0 if labels else COUNTS["b"][0]), 200 if labels else 300
    assert 0 < count < size
    results = wrap(
        lambda *trees: [f(*trees, labels=labels) for f in (flips, flip_ratio, log_flip_ratio)]
    )(*arguments)
    assert [(r.dtype, r.shape) for r in results] == [
        (jnp.int32, ()),
        (jnp.float32, ()),
        (jnp.float32, ()),
    ]
    assert results[0] == count
    np.testing.assert_allclose(results[1], count / size, rtol=1e-6)
    np.testing.assert_allclose(results[2], np.log(count / size + np.exp(-9)), rtol=1e-6)


def test_one_leaf():
    assert jax.tree.map(flips, UPDATES) == COUNTS
    assert jax.tree.map(flips, BEFORE, AFTER) == COUNTS


@pytest.mark.parametrize(("share", "expected"), [(0, -9.0), (1, np.log(1 + np.exp(-9)))])
def test_ends_of_the_scale(share, expected):
    updates = jnp.full(10, -2.0 * share)
    np.testing.assert_allclose(log_flip_ratio(updates), expected, rtol=1e-6, atol=1e-6)
    assert flip_ratio(updates) == share


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_zeros_are_plus_one(dtype):
    before = jnp.asarray([0.0, -0.0, 0.0, -1.0, 1.0], dtype)
    after = jnp.asarray([-0.0, 1.0, -1.0, 0.0, 1.0], dtype)
    assert flips(before, after) == 2
    assert flips(after - before) == 3  # every update other than 0 counts, of either sign


@pytest.mark.parametrize("tree", [{}, {"a": None}, jnp.zeros((0, 3))])
def test_no_weights(tree):
    assert (flips(tree), flip_ratio(tree)) == (0, 0)
    np.testing.assert_allclose(log_flip_ratio(tree, tree), -9, rtol=1e-6)


def test_labels_of_a_module():
    params = nnx.state(BinaryLinear(4, 2, use_bias=True, rngs=nnx.Rngs(0)), nnx.Param)
    after = jax.tree.map(lambda w: -w - 1, params)  # each weight of −1 or 0 changes its sign
    labels = binary_labels(params)
    changed = (params["kernel"][...] >= 0) != (after["kernel"][...] >= 0)
    assert flips(params, after, labels=labels) == jnp.sum(changed)
    assert flip_ratio(params, after, labels=labels) == jnp.mean(changed)
    assert flips(params, after) == jnp.sum(changed) + 2


def test_the_same_variables_before_and_after_are_no_comparison():
    """`nnx.state` returns the variables of the model, which a step changes in place."""
    model = BinaryLinear(4, 3, rngs=nnx.Rngs(0))
    before = nnx.state(model, nnx.Param)
    copy = jax.tree.map(jnp.copy, before)
    model.kernel[...] = -model.kernel[...]
    after = nnx.state(model, nnx.Param)
    for metric in (flips, flip_ratio, log_flip_ratio):
        with pytest.raises(ValueError, match=r"^kernel before and after is the same.*jnp.copy"):
            metric(before, after)
    assert flips(copy, after) == 12
    assert flip_ratio(copy, after) == 1


def test_flips_of_latent_weights_count():
    labels = {"a": "latent", "b": "real"}
    assert flips({"a": jnp.float32(1), "b": jnp.float32(1)}, labels=labels) == 1
