"""Max-pooling against Flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bop_optax.models.pooling import max_pool


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [
        ((2, 6, 6, 3), 2, 2, "VALID"),
        ((2, 7, 5, 3), 2, 2, "VALID"),
        ((1, 2, 2, 1), 2, 2, "VALID"),
        ((2, 9, 8, 3), 3, 2, "VALID"),
        ((2, 8, 9, 3), 3, 2, "SAME"),
        ((1, 1, 2, 1), 3, 2, "SAME"),
        ((0, 8, 8, 2), 3, 2, "SAME"),
        ((2, 6, 7, 3), 2, 1, "VALID"),
        ((1, 5, 4, 2), 3, 1, "SAME"),
        ((2, 8, 9, 3), 2, 3, "VALID"),
    ],
)
def test_max_pool_is_flaxs_with_the_first_maximum_taking_the_gradient(shape, size, stride, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-2, 3, shape), jnp.float32)  # many ties

    def flaxs(x):
        return nnx.max_pool(x, (size, size), strides=(stride, stride), padding=padding)

    weights = rng.standard_normal(flaxs(x).shape)
    if size > stride:  # integers, so that sums of the gradients of overlapping windows are exact
        weights = np.round(9 * weights)
    weights = jnp.asarray(weights, jnp.float32)
    y, vjp = jax.vjp(lambda x: max_pool(x, size, padding, stride=stride), x)
    expected, expected_vjp = jax.vjp(flaxs, x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(vjp(weights)[0], expected_vjp(weights)[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(dtype):
    x = jnp.arange(-16.0, 0.0).reshape(1, 4, 4, 1).astype(dtype)
    y = max_pool(x, 3, "SAME")
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.reshape(2, 2).astype(jnp.float32), [[-6, -5], [-2, -1]])
