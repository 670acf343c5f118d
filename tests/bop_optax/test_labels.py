"""Labels by type in Flax NNX, by rule on plain trees, and training with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bop_optax import binary_labels, bop
from bop_optax.latent import clip_latent
from bop_optax.layers import BinaryLinear, BinaryParam, LatentParam

rng = np.random.default_rng(0)
X = rng.normal(size=(64, 8)).astype(np.float32)
Y = np.sign(X @ rng.normal(size=(8, 3))).astype(np.float32)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([BinaryLinear(8, 8, rngs=rngs, use_bias=True) for _ in range(2)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Dict(dense=nnx.Linear(8, 3, rngs=rngs))

    def __call__(self, x):
        for block in self.blocks:
            x = jnp.tanh(block(x))
        return self.head["dense"](self.norm(x))


NET_LABELS = {
    "blocks": {i: {"bias": "real", "kernel": "binary"} for i in range(2)},
    "norm": {"bias": "real", "scale": "real"},
    "head": {"dense": {"bias": "real", "kernel": "real"}},
}


def new_optimizer(labels):
    return optax.partition({"binary": bop(0.1, 1e-5), "real": optax.sgd(0.1)}, labels)


def assert_trained(before, after, labels):
    """Binary weights stay ±1 and some flip; every real parameter moves."""

    def check(label, w, v):
        if label == "binary":
            np.testing.assert_array_equal(np.abs(v), np.ones_like(v))
        assert np.any(w != v)

    jax.tree.map(check, labels, before, after)


def test_nnx_by_type():
    labels = binary_labels(nnx.state(Net(nnx.Rngs(0)), nnx.Param))
    assert nnx.to_pure_dict(labels) == NET_LABELS


def test_nnx_abstract():
    labels = binary_labels(nnx.eval_shape(lambda: nnx.state(Net(nnx.Rngs(0)), nnx.Param)))
    assert nnx.to_pure_dict(labels) == NET_LABELS


def test_nnx_rule_sees_paths_and_variables():
    params = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    seen = {}

    def rule(path, leaf):
        seen[path] = type(leaf)
        return path == "head/dense/kernel"

    labels = nnx.to_pure_dict(binary_labels(params, rule))
    assert labels["head"]["dense"] == {"bias": "real", "kernel": "binary"}
    assert labels["blocks"][0]["kernel"] == "real"
    assert seen["blocks/1/kernel"] is BinaryParam
    assert seen["blocks/1/bias"] is nnx.Param


def test_nnx_optimizer():
    """It calls `init` with Variables and `update` with bare arrays; the labels serve both."""
    net = Net(nnx.Rngs(0))
    params = nnx.state(net, nnx.Param)
    before, labels = nnx.to_pure_dict(jax.tree.map(np.asarray, params)), binary_labels(params)
    optimizer = nnx.Optimizer(net, new_optimizer(labels), wrt=nnx.Param)

    @nnx.jit
    def train_step(net, optimizer):
        grads = nnx.grad(lambda net: jnp.mean((net(X) - Y) ** 2))(net)
        optimizer.update(net, grads)

    for _ in range(5):
        train_step(net, optimizer)
    after = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    assert_trained(before, after, NET_LABELS)
    assert type(net.blocks[0].kernel) is BinaryParam


TREE = {"a": [jnp.ones(2), {"kernel": jnp.ones(3)}], "b": (None, jnp.zeros(1)), "kernel": 1.0}


def test_plain_tree_by_rule():
    labels = binary_labels(TREE, lambda path, _: path.endswith("kernel"))
    assert labels == {"a": ["real", {"kernel": "binary"}], "b": (None, "real"), "kernel": "binary"}
    shapes = jax.eval_shape(lambda: TREE)
    assert binary_labels(shapes, lambda path, _: path.endswith("kernel")) == labels


def test_rule_sees_paths_and_values():
    seen = {}
    binary_labels(TREE, lambda path, leaf: seen.setdefault(path, np.shape(leaf)) is not None)
    assert seen == {"a/0": (2,), "a/1/kernel": (3,), "b/1": (1,), "kernel": ()}
    assert binary_labels(TREE, lambda _, leaf: np.all(np.asarray(leaf) == 1))["b"][1] == "real"


@jax.tree_util.register_pytree_with_keys_class
class Box:
    """A container of one's own, marked as the docstring says."""

    is_binary = True

    def __init__(self, value):
        self.value = value

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("value"), self.value)], None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_own_container():
    params = {"kernel": Box(-jnp.ones(3)), "bias": jnp.zeros(3)}
    labels = binary_labels(params)
    assert labels == {"kernel": "binary", "bias": "real"}
    optimizer = optax.partition({"binary": bop(1.0, 0.0), "real": optax.sgd(1.0)}, labels)
    grads = jax.tree.map(lambda w: -jnp.ones_like(w), params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(after["kernel"].value, [1, 1, 1])
    np.testing.assert_array_equal(after["bias"], [1, 1, 1])


@pytest.mark.parametrize("rule", [None, lambda path, leaf: False])
def test_nothing_binary(rule):
    message = "no parameter is binary: a/0, a/1/kernel, b/1, kernel; use .*is_binary"
    with pytest.raises(ValueError, match=message):
        binary_labels(TREE, rule)


@pytest.mark.parametrize("tree", [{}, None, {"a": None}])
def test_empty_tree(tree):
    with pytest.raises(ValueError, match=r"is binary: \(the tree is empty\)"):
        binary_labels(tree)


def test_latent_weights_have_a_label_of_their_own():
    params = {"latent": LatentParam(jnp.ones((2, 2))), "norm": nnx.Param(jnp.ones(2))}
    assert binary_labels(params) == {"latent": "latent", "norm": "real"}
    # A rule replaces the types.
    assert binary_labels(params, lambda path, _: path == "norm") == {
        "latent": "real",
        "norm": "binary",
    }


def test_clipping_by_label_reaches_latent_weights_alone():
    params = {"latent": LatentParam(jnp.full((2, 2), 0.9)), "scale": nnx.Param(jnp.full(2, 0.9))}
    latent = optax.chain(optax.sgd(1.0), clip_latent())
    optimizer = optax.partition({"latent": latent, "real": optax.sgd(1.0)}, binary_labels(params))
    grads = jax.tree.map(lambda w: -jnp.ones_like(w), params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    after = nnx.to_pure_dict(nnx.State(optax.apply_updates(params, updates)))
    np.testing.assert_allclose(after["latent"], 1.0)
    np.testing.assert_allclose(after["scale"], 1.9)


def test_a_module_is_no_tree_of_parameters():
    with pytest.raises(TypeError, match=r"got the module Net: pass nnx.state\(model, nnx.Param\)"):
        binary_labels(Net(nnx.Rngs(0)))
