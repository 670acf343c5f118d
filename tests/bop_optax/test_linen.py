"""Binary parameters in Flax Linen: boxes, labels, and training with them."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

from bop_optax import binary_labels, ste_sign
from bop_optax.linen import BinaryBox, with_binary
from tests.bop_optax.test_labels import X, Y, assert_trained, new_optimizer


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16, kernel_init=with_binary())(x)
        x = nn.LayerNorm()(ste_sign(x))
        return nn.Dense(3, use_bias=False, kernel_init=with_binary())(x)


LINEN_LABELS = {
    "Dense_0": {"bias": "real", "kernel": "binary"},
    "LayerNorm_0": {"bias": "real", "scale": "real"},
    "Dense_1": {"kernel": "binary"},
}


@pytest.mark.parametrize("unboxed", [False, True])
def test_linen(unboxed):
    net = LinenNet()
    params = net.init(jax.random.key(0), X)["params"]
    labels = binary_labels(params)
    assert labels == LINEN_LABELS
    optimizer = new_optimizer(labels)
    if unboxed:  # the labels fit the bare arrays, too
        params = nn.meta.unbox(params)
    before, state = nn.meta.unbox(params), optimizer.init(params)

    @jax.jit
    def train_step(params, state):
        grads = jax.grad(lambda p: jnp.mean((net.apply({"params": p}, X) - Y) ** 2))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(5):
        params, state = train_step(params, state)
    assert_trained(before, nn.meta.unbox(params), labels)


def test_linen_abstract():
    shapes = jax.eval_shape(LinenNet().init, jax.random.key(0), X)["params"]
    assert binary_labels(shapes) == LINEN_LABELS


def test_linen_boxes_survive_lifted_transforms():
    """`nn.scan` and `nn.vmap` give a box one axis more, and take it away again."""
    layers = nn.vmap(
        nn.Dense,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=4,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(3, use_bias=False, kernel_init=with_binary())
    params = layers.init(jax.random.key(0), X)["params"]
    assert binary_labels(params) == {"kernel": "binary"}
    assert nn.meta.unbox(params)["kernel"].shape == (4, 8, 3)
    assert layers.apply({"params": params}, X).shape == (4, 64, 3)


def test_linen_sharding_boxes_are_real():
    init = nn.with_partitioning(nn.initializers.ones, (None, "model"))
    params = nn.Dense(3, kernel_init=init, bias_init=with_binary(nn.initializers.ones)).init(
        jax.random.key(0), X
    )
    assert binary_labels(params["params"]) == {"kernel": "real", "bias": "binary"}


def test_box():
    box = with_binary()(jax.random.key(0), (2, 3), jnp.bfloat16)
    assert isinstance(box, BinaryBox)
    assert (box.unbox().shape, box.unbox().dtype) == ((2, 3), jnp.bfloat16)
    assert box.replace_boxed(1).unbox() == 1
    assert box.add_axis(0, {}) is box.remove_axis(0, {}) is box
