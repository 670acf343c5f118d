"""Transposed, depthwise and separable layers compared with Larq's: layers.json has its outputs."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bop_optax import binarize, ste_sign
from bop_optax.layers import BinaryConv, BinaryConvTranspose, BinaryParam

LARQ = json.loads(Path(__file__).with_name("layers.json").read_text())
TRANSPOSED = [name for name in LARQ if "Transpose" in name]


def load(name):
    case = LARQ[name]
    weights = [binarize(jnp.asarray(w, jnp.float32)) for w in case["weights"]]
    return jnp.asarray(case["inputs"], jnp.float32), weights, np.float32(case["outputs"])


def with_kernel(layer, kernel):
    assert layer.kernel.shape == kernel.shape
    layer.kernel = BinaryParam(kernel)
    return layer


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed(name):
    inputs, (kernel,), outputs = load(name)
    _, padding, strides = name.split()
    rank = inputs.ndim - 2
    layer = BinaryConvTranspose(
        3,
        2,
        (3,) * rank,
        int(strides),
        padding=padding,
        input_quantizer=ste_sign,
        rngs=nnx.Rngs(0),
    )
    # Keras's layout is (*window, out, in), and its window is mirrored.
    kernel = jnp.swapaxes(jnp.flip(kernel, range(rank)), -1, -2)
    np.testing.assert_array_equal(with_kernel(layer, kernel)(inputs), outputs)


def depthwise(kernel):
    """Keras's (*window, in, 1) as a convolution of as many groups as channels."""
    layer = BinaryConv(
        3, 3, (3, 3), feature_group_count=3, input_quantizer=ste_sign, rngs=nnx.Rngs(0)
    )
    return with_kernel(layer, jnp.swapaxes(kernel, -1, -2))


def test_depthwise():
    inputs, (kernel,), outputs = load("QuantDepthwiseConv2D")
    np.testing.assert_array_equal(depthwise(kernel)(inputs), outputs)


def test_separable_is_depthwise_and_a_window_of_1():
    inputs, (kernel, point), outputs = load("QuantSeparableConv2D")
    pointwise = with_kernel(BinaryConv(3, 4, (1, 1), rngs=nnx.Rngs(0)), point)
    np.testing.assert_array_equal(pointwise(depthwise(kernel)(inputs)), outputs)
