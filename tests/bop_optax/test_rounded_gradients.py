"""The rounding of gradients to few bits."""

import jax.numpy as jnp
import numpy as np
import pytest

from bop_optax._product import _round_to_bits

rng = np.random.default_rng(0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_unbiased(bits):
    g = jnp.linspace(-1, 1, 41)
    levels = 2 ** (bits - 1) - 1
    draws = []
    for i in range(400):  # other values elsewhere in the tensor make another draw
        integers, scale = _round_to_bits(jnp.append(g, 1 + 1e-3 * i), bits)
        draws.append(integers[:-1].astype(jnp.float32) * scale)
        assert jnp.max(jnp.abs(integers)) == levels
        np.testing.assert_array_less(jnp.abs(draws[-1] - g), scale * (1 + 1e-5))
    error = np.mean(draws, 0) - g
    deviation = np.max(np.std(draws, 0)) / np.sqrt(len(draws))
    assert np.max(np.abs(error)) < 5 * deviation
    assert np.std(error) > 0


def test_outliers_are_clipped():
    g = jnp.append(jnp.asarray(rng.normal(size=999), jnp.float32) / 10, 100.0)
    for bits in (2, 4, 8):
        integers, scale = _round_to_bits(g, bits)
        bound = min(100.0, 1.5 * 2 ** (bits - 1) * float(jnp.sqrt(jnp.mean(g**2))))
        np.testing.assert_allclose(float(integers[-1]) * float(scale), bound, rtol=1e-6)
        assert (bound < 100) == (bits < 8)


def test_tiny_gradients_are_rounded_too():
    integers, scale = _round_to_bits(jnp.full(3, 1e-20), 8)
    np.testing.assert_array_equal(integers, 127)
    np.testing.assert_allclose(scale, 1e-20 / 127, rtol=1e-6)


def test_rounding_keeps_zeros_and_shows_nan():
    g = jnp.zeros((5, 7))
    integers, scale = _round_to_bits(g, 4)
    assert (integers.dtype, float(scale)) == (np.int8, 0)
    assert not jnp.any(integers)
    integers, _ = _round_to_bits(g.at[0, 0].set(2.0), 4)
    assert jnp.count_nonzero(integers) == 1
    for value in (jnp.nan, jnp.inf):
        assert jnp.isnan(_round_to_bits(g.at[0, 0].set(value), 4)[1])
