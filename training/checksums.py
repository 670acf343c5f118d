"""Checksums of arrays, computed where the arrays are."""

from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def checksums(tree: Any) -> jax.Array:
    """A number for each array of a tree, in the order of its leaves, that depends on every bit.

    It is computed where the array is, and is the same however the array is sharded. A change of one
    word of 32 bits always changes it; any other change, with a probability of 1 − 2⁻³².

    Returns:
        uint32, (leaves,).
    """
    return jnp.stack([_checksum(x) for x in jax.tree.leaves(tree)])


def _checksum(x: jax.Array) -> jax.Array:
    """The sum of a hash of each word and its position, modulo 2³²."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    word = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
    words = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
    position = jnp.arange(words.size, dtype=jnp.uint32).reshape(words.shape)
    h = words + position * jnp.uint32(0x9E3779B9)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)
