"""The product of ±1 by ±1 and its gradients by XOR or AND and population count on packed bits."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bop_optax._bits import bit_matmul, pack, plane_weights, signs, unpack
from bop_optax._convolution import (
    Geometry,
    entries_under,
    float_product,
    input_gradient_edges,
    offsets,
    output_sizes,
)
from bop_optax._scale import output_scale


class PackedKernel(NamedTuple):
    """A kernel of ±α, one bit for each weight.

    Attributes:
        words: the bits kernel < 0, packed along `in`: uint32, (*window, words, out).
        scale: α of each output, (out,).
        features: `in`, the number of bits in the words.
    """

    words: jax.Array
    scale: jax.Array
    features: int

    def unpack(self) -> jax.Array:
        """The kernel, (*window, in, out), in the dtype of `scale`."""
        return signs(unpack(self.words, self.features, -2), self.scale.dtype) * self.scale


def pack_kernel(kernel: jax.Array) -> PackedKernel:
    words = jnp.moveaxis(pack(kernel < 0, -2)[0], 0, -2)
    return PackedKernel(words, output_scale(kernel), kernel.shape[-2])


def _pad(words: jax.Array, edges: Sequence[tuple[int, int, int]]) -> jax.Array:
    """Pads the spatial dimensions of (batch, *spatial, channels) with zero words."""
    return lax.pad(words, jnp.zeros([], words.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def popcount_product(words: jax.Array, kernel: PackedKernel, geometry: Geometry) -> jax.Array:
    """The product of ±1, packed as (batch, *spatial, words) of the bits x < 0, by a kernel."""
    *window, _, out = kernel.words.shape
    pads, dtype = geometry.pads, kernel.scale.dtype
    sizes = output_sizes(words.shape[1:-1], window, geometry)
    padded = _pad(words, [(low, high, 0) for low, high in pads])
    under = entries_under(padded, offsets(window), sizes, geometry.strides, geometry.dilation)
    a = jnp.concatenate([jnp.moveaxis(w, -1, 0).reshape(w.shape[-1], -1) for w in under])
    b = kernel.words.reshape(-1, out)
    terms = len(under) * kernel.features

    def finish(ones: jax.Array, scale: jax.Array, *border: jax.Array) -> jax.Array:
        y = (terms - 2 * ones).reshape(words.shape[0], *sizes, out).astype(dtype)
        return sum(border, y) * scale

    border = []
    if any(map(any, pads)) and geometry.padding_value != 1:  # padded words count as +1
        edges = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
        outside = jnp.zeros((1, *words.shape[1:-1], 1), dtype)
        outside = lax.pad(outside, jnp.ones([], dtype), edges)
        ones = jnp.sum(lax.population_count(kernel.words).astype(jnp.int32), -2, keepdims=True)
        sums = (kernel.features - 2 * ones).astype(dtype)
        inside = geometry._replace(pads=((0, 0),) * len(window))
        border = [(geometry.padding_value - 1) * float_product(outside, sums, inside)]
    return bit_matmul(a[None], b[None], lax.bitwise_xor, finish, kernel.scale, *border)


def popcount_input_gradient(
    g: jax.Array,
    kernel: jax.Array,
    words_shape: Sequence[int],
    geometry: Geometry,
    bits: int,
    scale: jax.Array,
) -> jax.Array:
    """`scale` times the input's gradient, of an integer gradient and the signs of a kernel."""
    *window, features, _ = kernel.shape
    batch, *sizes, _ = words_shape
    words = pack(g, -1, bits)
    words = words.reshape(bits * batch, *g.shape[1:-1], words.shape[-1])
    edges = input_gradient_edges(sizes, g.shape[1:-1], window, geometry)
    ones = (1,) * len(window)
    under = entries_under(_pad(words, edges), offsets(window)[::-1], sizes, ones, geometry.dilation)
    under = [w.reshape(bits, -1, w.shape[-1]) for w in under]
    a = jnp.concatenate([jnp.moveaxis(w, -1, 1) for w in under], 1)
    b = jnp.moveaxis(pack(kernel > 0)[0], -1, -2).reshape(-1, features)
    ones = jnp.sum(lax.population_count(a).astype(jnp.int32), 1)
    total = jnp.sum(jnp.asarray(plane_weights(bits))[:, None] * ones, 0)

    def finish(positive: jax.Array, total: jax.Array, scale: jax.Array) -> jax.Array:
        dx = 2 * positive - total[:, None]
        return dx.reshape(batch, *sizes, features).astype(scale.dtype) * scale

    return bit_matmul(a, b[None], lax.bitwise_and, finish, total, scale)


def popcount_kernel_gradient(
    words: jax.Array, g: jax.Array, shape: Sequence[int], geometry: Geometry, bits: int
) -> jax.Array:
    """The kernel's gradient, of packed activations and an integer gradient; packs the batch."""
    *window, features, out = shape
    at, sizes = offsets(window), g.shape[1:-1]

    def under(bits: jax.Array) -> jax.Array:  # (batch, *spatial, channels) → (words, rows)
        x = _pad(pack(bits, 0)[0], [(low, high, 0) for low, high in geometry.pads])
        each = entries_under(x, at, sizes, geometry.strides, geometry.dilation)
        return jnp.concatenate([w.reshape(-1, w.shape[-1]) for w in each], -1)

    inside = jnp.ones((*words.shape[:-1], 1), bool)
    a = jnp.concatenate([under(~unpack(words, features)), under(inside)], -1)
    b = pack(g, 0, bits).reshape(bits, -1, out)
    counts = bit_matmul(a[None], b, lax.bitwise_and)
    positive = counts[: -len(at)].reshape(len(at), features, out)
    total = counts[-len(at) :][:, None]  # of the gradients that meet no padding
    gradient = (2 * positive - total).reshape(*window, features, out).astype(jnp.float32)
    if geometry.padding_value == 0:
        return gradient
    padding = jnp.sum(g.astype(jnp.int32), range(g.ndim - 1)) - total.reshape(*window, 1, out)
    return gradient + geometry.padding_value * padding.astype(jnp.float32)
