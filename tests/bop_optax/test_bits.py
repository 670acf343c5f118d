"""Packed bits, and the matrix product that counts them."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bop_optax._bits import bit_matmul, count_ones, pack, plane_weights, unpack

rng = np.random.default_rng(0)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 70])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_pack(size, axis):
    shape = [3, 4, 5]
    shape[axis] = size
    bits = rng.integers(0, 2, shape).astype(bool)
    words = np.asarray(pack(jnp.asarray(bits), axis)[0])
    expected = np.moveaxis(bits, axis, 0)
    expected = np.pad(expected, ((0, -size % 32), (0, 0), (0, 0))).reshape(
        -1, 32, *expected.shape[1:]
    )
    expected = sum(expected[:, i].astype(np.uint32) << np.uint32(i) for i in range(32))
    np.testing.assert_array_equal(words, np.moveaxis(expected, 0, 2) if axis == -1 else expected)
    if axis == -1:
        np.testing.assert_array_equal(unpack(jnp.asarray(words), size), bits)


@pytest.mark.parametrize("instructions", [["avx2"], ["avx2", "avx512_vpopcntdq"]])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 40])
def test_count_ones(use_instructions, number, instructions):
    use_instructions(instructions)
    words = rng.integers(0, 2**32, (number, 5, 3), dtype=np.uint32)
    words[:, 0] = 2**32 - 1
    expected = np.unpackbits(words.view(np.uint8).reshape(*words.shape, 4), axis=-1).sum((0, -1))
    ones = count_ones(list(jnp.asarray(words)))
    chex.assert_type(ones, jnp.int32)
    np.testing.assert_array_equal(ones, expected)


@pytest.mark.parametrize("planes", [1, 2, 5, 8])
@pytest.mark.parametrize("words", [1, 18, 41, 90])
@pytest.mark.parametrize("side", [0, 1])
def test_bit_matmul(planes, words, side):
    operands = [
        rng.integers(0, 2**32, (planes if i == side else 1, words, size), dtype=np.uint32)
        for i, size in enumerate((7, 33))
    ]
    for ours, theirs in ((lax.bitwise_xor, np.bitwise_xor), (lax.bitwise_and, np.bitwise_and)):
        bits = theirs(operands[0][..., None], operands[1][:, :, None])
        ones = np.unpackbits(bits.view(np.uint8).reshape(*bits.shape, 4), axis=-1).sum((-1, 1))
        expected = np.tensordot(plane_weights(planes), ones.astype(np.int64), 1)
        np.testing.assert_array_equal(
            jax.jit(partial(bit_matmul, operation=ours))(*map(jnp.asarray, operands)), expected
        )
