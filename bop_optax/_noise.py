"""Random bits for stochastic rounding and random thresholds."""

import jax
import jax.numpy as jnp


def noise(shape: tuple[int, ...], seeds: jax.Array) -> jax.Array:
    """32 random bits for each position of an array; the high ones are the best.

    They are a hash of the position, computed in the pass that uses them. On a CPU `jax.random.bits`
    takes ten times as long as a whole update of Bop.

    Args:
        shape: shape of the array.
        seeds: two words, (2,), uint32. Other words give other bits.

    Returns:
        uint32, `shape`.
    """
    position = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        position = position * size + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = position ^ seeds[0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    return (x ^ (x >> 15) ^ seeds[1]) * jnp.uint32(0x735A2D97)


def exponential(shape: tuple[int, ...], seeds: jax.Array) -> jax.Array:
    """Numbers of the exponential distribution of mean 1, float32, from 24 bits of the noise."""
    uniform = (noise(shape, seeds) >> 8).astype(jnp.float32) * 2.0**-24
    return -jnp.log1p(-uniform)
