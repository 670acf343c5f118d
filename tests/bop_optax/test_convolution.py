"""A convolution of few channels: its numbers are XLA's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from bop_optax.layers import convolution

rng = np.random.default_rng(0)
IMAGES = (("NHWC", "HWIO", "NHWC"), (2, 9, 8, 3), (3, 2, 3, 5))
CASES = {
    "same": (*IMAGES, {"padding": "SAME"}),
    "strides": (*IMAGES, {"window_strides": (2, 3)}),
    "same with strides": (*IMAGES, {"window_strides": (2, 2), "padding": "SAME"}),
    "dilation": (*IMAGES, {"rhs_dilation": (2, 1), "padding": "SAME"}),
    "pairs": (*IMAGES, {"padding": [(2, 0), (0, 3)]}),
    "negative padding": (*IMAGES, {"padding": [(-1, 0), (0, -2)]}),
    "one channel": (("NHWC", "HWIO", "NHWC"), (2, 4, 4, 1), (3, 3, 1, 2), {}),
    "rank 1": (("NHC", "HIO", "NHC"), (2, 9, 4), (3, 4, 2), {"padding": "SAME"}),
    "rank 3": (("NDHWC", "DHWIO", "NDHWC"), (2, 4, 4, 4, 2), (2, 2, 2, 2, 3), {}),
}
SPREAD = {"lhs_dilation": (2,), "padding": [(1, 1)]}
OTHERS = {
    "window larger than the image": (("NHC", "HIO", "NHC"), (2, 2, 4), (3, 4, 2), {}),
    "window larger, strides": (*IMAGES[:1], (2, 2, 5, 3), IMAGES[2], {"window_strides": (2, 2)}),
    "empty batch": (("NHC", "HIO", "NHC"), (0, 9, 4), (3, 4, 2), {}),
    "many channels": (("NHC", "HIO", "NHC"), (2, 6, 9), (3, 9, 2), {}),
    "channels first": (("NCH", "OIH", "NCH"), (2, 4, 6), (2, 4, 3), {}),
    "groups": (("NHC", "HIO", "NHC"), (2, 6, 4), (3, 2, 4), {"feature_group_count": 2}),
    "spread input": (("NHC", "HIO", "NHC"), (2, 6, 4), (3, 4, 2), SPREAD),
    "wide sums": (("NHC", "HIO", "NHC"), (2, 6, 4), (3, 4, 2), {"preferred_element_type": float}),
}


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def arguments(numbers, shape, kernel_shape, options):
    defaults = {"window_strides": (1,) * (len(shape) - 2), "padding": "VALID"}
    options = {"dimension_numbers": numbers, **defaults, **options}
    return normal(*shape), normal(*kernel_shape), options


@pytest.mark.parametrize("name", CASES | OTHERS)
def test_equals_that_of_xla(name):
    x, kernel, options = arguments(*(CASES | OTHERS)[name])

    def value_and_gradients(f):
        y, vjp = jax.vjp(lambda x, kernel: f(x, kernel, **options), x, kernel)
        return y, vjp(jnp.cos(y))

    ours, theirs = map(value_and_gradients, (convolution, lax.conv_general_dilated))
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES | OTHERS)
def test_which_shapes_take_a_matrix_product(name):
    x, kernel, options = arguments(*(CASES | OTHERS)[name])
    jaxpr = str(jax.make_jaxpr(lambda *operands: convolution(*operands, **options))(x, kernel))
    assert ("conv_general_dilated" in jaxpr) == (name in OTHERS)
    assert ("dot_general" in jaxpr) == (name in CASES)


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (1, -1)},
        {"rhs_dilation": (0, 1)},
        {"padding": [(0, 0)] * 3},
        {"padding": [(1.5, 1), (1, 1)]},
        {"feature_group_count": 0},
        {"batch_group_count": 0},
        {"typo": None},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_as_by_xla(options):
    x, kernel, options = arguments(*IMAGES, options)
    for f in (convolution, lax.conv_general_dilated):
        with pytest.raises((ValueError, TypeError)):
            f(x, kernel, **options)


def test_wrong_dtypes_are_refused():
    x, kernel, options = arguments(*IMAGES, {})
    with pytest.raises(TypeError, match="requires arguments to have the same dtypes"):
        convolution(x, kernel.astype(jnp.bfloat16), **options)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", 1])
def test_in_a_layer(padding):
    ours, theirs = (
        nnx.Conv(3, 4, (3, 3), strides=2, padding=padding, rngs=nnx.Rngs(0), **options)
        for options in ({"conv_general_dilated": convolution}, {})
    )
    x = normal(2, 2, 9, 9, 3)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours(x[0, 0]), theirs(x[0, 0]), rtol=1e-5, atol=1e-6)


def test_bfloat16():
    x, kernel, options = arguments(*CASES["same"])
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    ours, theirs = (f(x, kernel, **options) for f in (convolution, lax.conv_general_dilated))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(float), theirs.astype(float), rtol=0.01, atol=0.01)
