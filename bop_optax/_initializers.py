"""Initializers of kernels, drawn as one row of numbers.

XLA compiles the draw of a row for CPUs in a tenth of the time that it takes for a small array of
four dimensions. The numbers are the same.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bop_optax._flip import is_floating


def rademacher(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draws binary weights: −1 and +1 with equal probability; an initializer.

    Args:
        key: a PRNG key.
        shape: shape of the weights.
        dtype: floating dtype of the weights.

    Returns:
        An array of ±1 in the given shape and dtype.

    Raises:
        ValueError: for a negative size.
        TypeError: for a dtype that is not floating, and for sizes that are no integers.

    Example:
        >>> jnp.unique(rademacher(jax.random.key(0), (4, 2)))
        Array([-1.,  1.], dtype=float32)
    """
    check_draw(shape, dtype)
    return jax.random.rademacher(key, (math.prod(shape),), dtype).reshape(shape)


def glorot_uniform(
    key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Draws real weights uniformly from ±√(6 ÷ (fan in + fan out)); an initializer.

    The initializer of latent and of real kernels in the authors' code. The numbers are those of
    `flax.nnx.initializers.glorot_uniform()`.

    Args:
        key: a PRNG key.
        shape: `(*window, in, out)`.
        dtype: floating dtype of the weights.

    Returns:
        An array of the given shape and dtype.

    Raises:
        ValueError: for a size below 1, and for less than two sizes.
        TypeError: as `rademacher`.

    Example:
        >>> glorot_uniform(jax.random.key(0), (3, 3, 4, 2)).shape
        (3, 3, 4, 2)

    References:
        Glorot, Bengio. Understanding the Difficulty of Training Deep Feedforward Neural Networks.
        AISTATS 2010, equation 16.
    """
    check_draw(shape, dtype, 2)
    *window, fan_in, fan_out = shape
    variance = jnp.asarray(2 / (math.prod(window) * (fan_in + fan_out)), dtype)
    numbers = jax.random.uniform(key, (math.prod(shape),), dtype, -1)
    return (numbers * jnp.sqrt(3 * variance)).reshape(shape)


def check_draw(shape: Sequence[int], dtype: DTypeLike, least_rank: int = 0) -> None:
    """Raises an error for a shape or a dtype that an initializer cannot draw."""
    if not is_floating(dtype):
        raise TypeError(f"dtype must be a floating dtype, got {dtype!r}; use jnp.float32")
    is_shape = isinstance(shape, Sequence) and all(isinstance(n, int | np.integer) for n in shape)
    if not is_shape:
        raise TypeError(f"shape must be a tuple of integers, got {shape!r}")
    if len(shape) < least_rank or min(shape, default=1) < min(least_rank, 1):
        form = "(*window, in, out), of sizes ≥ 1" if least_rank else "of sizes ≥ 0"
        raise ValueError(f"shape must be {form}, got {tuple(shape)}")
