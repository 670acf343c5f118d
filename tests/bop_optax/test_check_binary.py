"""Mistakes that break binary weights: each raises an error, with its place and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bop_optax import (
    binary_labels,
    bold,
    bop,
    bop_2nd_order,
    bop_layerwise,
    cema,
    check_binary,
    flip_ratio,
    flips,
    prob_bop,
    ste_sign,
)
from bop_optax.layers import BinaryLinear, BinaryParam
from bop_optax.linen import BinaryBox
from tests.bop_optax.cases import averages

inf, nan = float("inf"), float("nan")
SIGNS = np.float32([[1, -1, 1], [-1, -1, 1]])
RULES = {
    "bop": bop,
    "layerwise": bop_layerwise,
    "2nd-order": bop_2nd_order,
    "cema": cema,
    "bold": bold,
    "prob": prob_bop,
}
BINARY = {
    "signs": SIGNS,
    "one-scale": 0.3 * SIGNS,
    "scale-of-outputs-in-flax": SIGNS * np.float32([0.1, 2, 30]),
    "scale-of-outputs-in-equinox": SIGNS * np.float32([[0.1], [2]]),
    "window": np.broadcast_to(SIGNS, (5, 5, 2, 3)) * np.float32([0.1, 2, 30]),
    "stacked": np.stack([SIGNS, -SIGNS]),
    "vector": SIGNS[0],
    "scalar": np.float32(-0.5),
    "empty": np.ones((0, 3), np.float32),
    "bfloat16": jnp.asarray(0.3 * SIGNS, jnp.bfloat16),
}
NOT_BINARY = {
    "zero": ([1, 0], "has weights of 0"),
    "nan": ([1, nan], "has weights that are not finite"),
    "infinite": ([inf, -inf], "has weights that are not finite"),
    "real": ([[1.0, -0.5], [0.25, 1.0]], r"is not −α or \+α .* magnitudes are 0.25 to 1"),
    "vector": ([1.0, -0.5], r"is not −α or \+α .* magnitudes are 0.5 to 1"),
    "one-weight": (np.where(np.eye(3), 1.002, 1), r"is not −α or \+α .* magnitudes are 1 to 1.002"),
}


@pytest.mark.parametrize("weights", BINARY.values(), ids=BINARY)
def test_binary_weights_pass(weights):
    check_binary({"w": weights, "b": 0.3}, {"w": "binary", "b": "real"})
    for rule in RULES.values():
        rule().init({"w": jnp.asarray(weights)})


@pytest.mark.parametrize(("weights", "message"), NOT_BINARY.values(), ids=NOT_BINARY)
def test_other_weights_are_refused_after_a_step(weights, message):
    params = {"a": {"w": jnp.asarray(weights, jnp.float32)}, "b": 0.3}
    with pytest.raises(ValueError, match=f"^a/w {message}; give it to bop or a variant"):
        check_binary(params, {"a": {"w": "binary"}, "b": "real"})


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("weights", "message"), NOT_BINARY.values(), ids=NOT_BINARY)
def test_other_weights_are_refused_before_the_first_step(rule, weights, message):
    params = {"a": {"w": jnp.asarray(weights, jnp.float32)}}
    with pytest.raises(ValueError, match=f"^a/w {message}; bop flips binary weights"):
        rule().init(params)
    rule(check_weights=False).init(params)
    jax.jit(rule().init)(params)  # values that are traced
    jax.eval_shape(rule().init, params)
    rule().init(jax.eval_shape(lambda: params))


def test_of_a_bare_array():
    with pytest.raises(ValueError, match=r"^the parameter has weights of 0"):
        bop().init(jnp.zeros(3))


rng = np.random.default_rng(0)
X, PROBE = rng.normal(size=(16, 4)).astype(np.float32), rng.normal(size=(16, 8)).astype(np.float32)


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.dense = BinaryLinear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dense(x))


def train(model, optimizer):
    """One step."""
    optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    images, probe = jnp.asarray(X), jnp.asarray(PROBE)
    grads = nnx.grad(lambda model: (model(images) * probe).sum())(model)
    optimizer.update(model, grads)
    return nnx.state(model, nnx.Param)


def partition(binary, model):
    labels = binary_labels(nnx.state(model, nnx.Param))
    return optax.partition({"binary": binary, "real": optax.sgd(0.1)}, labels)


def test_adam_on_a_binary_parameter(standard_promotion):
    params = train(Net(), optax.adam(1e-3))
    with pytest.raises(ValueError, match=r"^dense/kernel is not −α or \+α"):
        check_binary(params)


def test_a_learning_rate_behind_bop():
    model = Net()
    chained = optax.chain(bop(1.0, 0.0), optax.scale_by_learning_rate(1e-3))
    params = train(model, partition(chained, model))
    with pytest.raises(ValueError, match=r"^dense/kernel is not −α or \+α"):
        check_binary(params)


def test_bop_alone_keeps_its_weights_binary():
    model = Net()
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    params = train(model, partition(bop(1.0, 0.0), model))
    assert (before["dense"]["kernel"][...] != params["dense"]["kernel"][...]).any()
    check_binary(params)
    check_binary(params, binary_labels(params))


def test_bop_on_the_scale_of_a_norm():
    model = Net()
    with pytest.raises(ValueError, match=r"^norm/scale is a Param of shape \(8,\), no binary"):
        nnx.Optimizer(model, bop(), wrt=nnx.Param)
    nnx.Optimizer(model, bop(check_weights=False), wrt=nnx.Param)


def test_variables_and_boxes():
    kernel = jnp.asarray(SIGNS).at[0, 0].set(0.5)
    for tree in ({"w": BinaryParam(kernel)}, {"w": BinaryBox(kernel)}):
        with pytest.raises(ValueError, match=r"^w is not −α"):
            check_binary(tree)
        with pytest.raises(ValueError, match=r"^w is not −α"):
            bop().init(tree)


def test_latent_weights_may_be_real():
    layer = BinaryLinear(4, 3, kernel_quantizer=ste_sign, rngs=nnx.Rngs(0))
    check_binary(nnx.state(layer, nnx.Param))


def test_traced_values_cannot_be_checked():
    labels = {"w": "binary"}
    with pytest.raises(TypeError, match=r"outside of jax\.jit"):
        jax.jit(lambda w: check_binary({"w": w}, labels))(jnp.ones(3))
    with pytest.raises(TypeError, match=r"outside of jax\.jit"):
        check_binary({"w": jax.ShapeDtypeStruct((3,), jnp.float32)}, labels)


WRONG_LABELS = [
    lambda path, leaf: True,
    "binary",
    {"kernel": "binary"},
    {"w": True, "b": "real"},
    {"w": "Binary", "b": "real"},
    {"w": "binary"},
    {"w": "binary", "b": "real", "c": "real"},
]


@pytest.mark.parametrize("labels", WRONG_LABELS)
def test_labels_of_another_tree(labels):
    params = {"w": jnp.array([[0.5, 1.0], [1.0, 1.0]]), "b": jnp.zeros(2)}
    for function in (check_binary, flips, flip_ratio):
        with pytest.raises(ValueError, match=r"labels must be those of binary_labels\(params\)"):
            function(params, labels=labels)
        with pytest.raises(ValueError, match="no leaf has the label binary: all of b, w are real"):
            function(params, labels={"w": "real", "b": "real"})


def test_float64_is_checked_as_such():
    tiny = np.array([[1e-300, -1e-300], [1e-300, 1e-300]])
    check_binary({"w": tiny}, {"w": "binary"})
    with pytest.raises(ValueError, match="w is not −α"):
        check_binary({"w": np.array([[1, 1], [1 + 1e-12, 1]])}, {"w": "binary"})


def test_hyperparameters_can_be_injected_plainly():
    """Without static_args: the dtype is no number and no schedule."""
    for rule in RULES.values():
        rate = "eta" if rule is bold else "gamma"
        optimizer = optax.inject_hyperparams(rule)(**{rate: 1e-3})
        state = optimizer.init(jnp.ones((2, 3)))
        assert state.hyperparams[rate] == np.float32(1e-3)
        state.hyperparams[rate] = jnp.float32(0.5)
        _, state = optimizer.update(jnp.ones((2, 3)), state, jnp.ones((2, 3)))
        assert (averages(state.inner_state) == 0.5).all()
