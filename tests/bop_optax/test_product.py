"""The product of the binary layers, by hand and against matrix products."""

import jax
import jax.numpy as jnp
import numpy as np

from bop_optax._product import binary_product
from bop_optax.layers import rademacher


def test_product_of_a_matrix():
    x, kernel = jax.random.normal(jax.random.key(1), (5, 6)), rademacher(jax.random.key(0), (6, 4))
    np.testing.assert_allclose(binary_product(x, kernel), x @ kernel, rtol=1e-6)


def test_product_by_hand():
    x, kernel = jnp.asarray([1.0, -1.0, 1.0]), jnp.asarray([1.0, 1.0, -1.0])

    def product(**options):
        y = binary_product(
            x[None, :, None], kernel[:, None, None], strides=(1,), kernel_dilation=(1,), **options
        )
        return y[0, :, 0]

    np.testing.assert_array_equal(product(), [-1])
    np.testing.assert_array_equal(product(padding="SAME"), [2, -1, 0])
    np.testing.assert_array_equal(product(padding="SAME", padding_value=1.0), [3, -1, -1])
    np.testing.assert_array_equal(product(padding=[(0, 1)], padding_value=-1.0), [-1, 1])
