"""The product of every binary layer: a matrix product or a convolution with a binary kernel.

A product of ±1 by ±1 is an integer, so each way to compute it gives the same numbers. On a CPU the
fastest is XOR and population count on packed bits. Its gradients are products of ±1 by real
numbers; `Product.backward` rounds these to few bits where speed is asked for.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from bop_optax._bits import bit_matmul, pack, plane_weights, unpack

# A sum over fewer entries than this does not fill the words that `bit_matmul` unrolls.
LEAST_SUMMANDS = 512
LOG = logging.getLogger("bop_optax.product")


@dataclass(frozen=True)
class Product:
    """How the product of a binary layer is computed, if both operands are one bit.

    Args:
        forward: "popcount": XOR and population count on packed bits. "float": XLA's own product.
            "auto": popcount on CPUs, float elsewhere and for grouped convolutions. All give the
            same numbers to the bit, as long as a sum has fewer than 2²⁴ terms.
        backward: what the incoming gradient is rounded to. "float32": nothing is rounded.
            "bfloat16": to 8 significant bits. An integer from 2 to 8: to so many bits for the
            largest absolute value of the tensor, at random and without bias; zeros stay zeros. The
            draw depends on the gradient's values alone, so equal steps round equally.

    Raises:
        ValueError: for other values.

    Example:
        >>> from bop_optax import ste_sign
        >>> from bop_optax.layers import BinaryLinear
        >>> layer = BinaryLinear(
        ...     64, 8, input_quantizer=ste_sign, product=Product(backward=8), rngs=nnx.Rngs(0)
        ... )

    References:
        Zhou, Wu, Ni, Zhou, Wen, Zou. DoReFa-Net: Training Low Bitwidth Convolutional Neural
        Networks with Low Bitwidth Gradients. 2016, arXiv:1606.06160, section 2.5.
    """

    forward: Literal["auto", "popcount", "float"] = "auto"
    backward: Literal["float32", "bfloat16"] | int = "float32"

    def __post_init__(self):
        if self.forward not in ("auto", "popcount", "float"):
            raise ValueError(f'forward must be "auto", "popcount" or "float", got {self.forward!r}')
        if self.backward not in ("float32", "bfloat16", *range(2, 9)):
            raise ValueError(
                'backward must be "float32", "bfloat16" or a number of bits from 2 to 8, got '
                f"{self.backward!r}"
            )


class Geometry(NamedTuple):
    """How a kernel moves over an input; one entry per spatial dimension.

    Attributes:
        strides: steps of the window.
        pads: (low, high) numbers of padded entries.
        padding_value: their value.
        dilation: distances of the window's entries.
        groups: number of groups of channels.
    """

    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    padding_value: float
    dilation: tuple[int, ...]
    groups: int


def binary_product(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    padding_value: float = 0.0,
    kernel_dilation: Sequence[int] | None = None,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    one_bit: bool = False,
    product: Product = Product(),
) -> jax.Array:
    """Multiplies activations by a kernel, or convolves them with it.

    The kernel has as many spatial dimensions as the input: none for a linear layer.

    Args:
        x: activations, (batch, *spatial, in), in the dtype of `kernel`.
        kernel: (*window, in ÷ feature_group_count, out).
        strides: one per spatial dimension. Default: all 1.
        padding: "SAME", "VALID", or a (low, high) pair per spatial dimension.
        padding_value: value of the padded activations: 0 as in the authors' code, ±1 for engines
            that store activations in one bit.
        kernel_dilation: one per spatial dimension. Default: all 1.
        feature_group_count: number of groups of the `in` and `out` channels.
        precision: see `jax.lax.Precision`. It acts on float products.
        one_bit: True promises that `x` is ±1 and that `kernel` is ±α, with one α for each output.
        product: how the product is computed if `one_bit`.

    Returns:
        (batch, *spatial, out), in the dtype of `x`.
    """
    window = kernel.shape[:-2]
    strides = tuple(strides or [1] * len(window))
    dilation = tuple(kernel_dilation or [1] * len(window))
    if isinstance(padding, str):
        spans = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
        padding = lax.padtype_to_pads(x.shape[1:-1], spans, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)[: len(window)]
    geometry = Geometry(strides, pads, float(padding_value), dilation, feature_group_count)
    if not (one_bit and x.size and kernel.size):
        return _float_product(x, kernel, geometry, precision)
    popcount = _uses_popcount(product, geometry)
    LOG.debug(
        "%s by %s: forward %s, backward %s",
        x.shape,
        kernel.shape,
        "popcount" if popcount else "float",
        product.backward,
    )
    return _one_bit_product(x, kernel, geometry, precision, product.backward, popcount)


def _uses_popcount(product: Product, geometry: Geometry) -> bool:
    if geometry.groups > 1:
        return False
    if product.forward == "auto":
        return jax.default_backend() == "cpu"
    return product.forward == "popcount"


def _float_product(
    x: jax.Array, kernel: jax.Array, geometry: Geometry, precision: lax.PrecisionLike = None
) -> jax.Array:
    """XLA's own product."""
    if kernel.ndim == 2:
        return jnp.matmul(x, kernel, precision=precision)
    pads = geometry.pads
    if geometry.padding_value != 0:
        value = jnp.asarray(geometry.padding_value, x.dtype)
        x = lax.pad(x, value, [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)])
        pads = [(0, 0)] * len(pads)
    spatial = "".join(chr(ord("0") + i) for i in range(len(pads)))
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        pads,
        rhs_dilation=geometry.dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=geometry.groups,
        precision=precision,
    )


# ---- ±1 by ±1 ------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _one_bit_product(
    x: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    precision: lax.PrecisionLike,
    backward: Any,
    popcount: bool,
) -> jax.Array:
    return _forward(x, kernel, geometry, precision, backward, popcount)[0]


def _forward(
    x: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    precision: lax.PrecisionLike,
    backward: Any,
    popcount: bool,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    del backward
    x, kernel = _once_differentiable(x), _once_differentiable(kernel)
    words = pack(x < 0)[0]  # the backward pass keeps one bit of each activation
    if popcount:
        y = _popcount_product(words, kernel, geometry)
    else:
        y = _float_product(x, kernel, geometry, precision)
    return y, (words, kernel)


def _backward(
    geometry: Geometry,
    precision: lax.PrecisionLike,
    backward: Any,
    popcount: bool,
    kept: tuple[jax.Array, jax.Array],
    g: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    words, kernel = kept
    g, dtype = _once_differentiable(g), g.dtype

    def float_gradients(kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = _signs(unpack(words, kernel.shape[-2] * geometry.groups), dtype)
        product = partial(_float_product, geometry=geometry, precision=precision)
        return jax.vjp(product, x, kernel)[1](g)

    if backward == "float32":
        return float_gradients(kernel, g)
    if backward == "bfloat16":
        return float_gradients(kernel, g.astype(jnp.bfloat16).astype(dtype))
    alpha = _scale(kernel)
    g, scale = _round_to_bits(g * alpha, backward)
    dx, dw = float_gradients(_signs(kernel < 0, dtype), g.astype(dtype))
    dx = dx * scale
    if popcount:
        dx = _popcount_input_gradient(g, kernel, words.shape, geometry, backward, scale)
    if popcount and g.size // g.shape[-1] >= LEAST_SUMMANDS:
        dw = _popcount_kernel_gradient(words, g, kernel.shape, geometry, backward).astype(dtype)
    return dx, dw * jnp.where(alpha > 0, scale / alpha, jnp.zeros([], dtype))


_one_bit_product.defvjp(_forward, _backward)


@jax.custom_jvp
def _once_differentiable(x: jax.Array) -> jax.Array:
    return x


@_once_differentiable.defjvp
def _(primals, tangents):
    raise NotImplementedError(
        "a product of one-bit operands has first derivatives only; for higher ones leave out "
        "input_quantizer and apply the quantizer before the layer"
    )


def _signs(negative: jax.Array, dtype: DTypeLike) -> jax.Array:
    return jnp.where(negative, -jnp.ones([], dtype), jnp.ones([], dtype))


def _scale(kernel: jax.Array) -> jax.Array:
    """α of each output, (out,), of a kernel of ±α."""
    return jnp.abs(kernel.reshape(-1, kernel.shape[-1])[0])


def _round_to_bits(g: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """Rounds to integers of at most 2^(bits − 1) − 1 at random, without bias.

    The randomness is a hash of each entry's position and of the largest absolute value, which is
    another one at every step.

    Returns:
        int8 of the shape of `g`, and the scalar that they are to be multiplied by, in the dtype of
        `g`. A NaN anywhere makes the scalar NaN.
    """
    levels, dtype = 2 ** (bits - 1) - 1, g.dtype
    g = g.astype(jnp.float32)
    largest = jnp.max(jnp.abs(g))
    position = lax.iota(jnp.uint32, g.size).reshape(g.shape)
    h = position * np.uint32(0x9E3779B9) + lax.bitcast_convert_type(largest, jnp.uint32)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x21F0AAAD)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x735A2D97)
    h = (h ^ (h >> np.uint32(15))) >> np.uint32(8)
    uniform = h.astype(jnp.float32) * np.float32(2**-24)  # in [0, 1)
    steps = g * jnp.where(largest > 0, levels / largest, 0.0)
    return jnp.floor(steps + uniform).astype(jnp.int8), (largest / levels).astype(dtype)


# ---- By XOR or AND and population count ----------------------------------------------------------


def _taps(window: Sequence[int]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, window)))


def _pad(words: jax.Array, edges: Sequence[tuple[int, int, int]]) -> jax.Array:
    """Pads the spatial dimensions of (batch, *spatial, channels) with zero words."""
    return lax.pad(words, jnp.zeros([], words.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _under(
    x: jax.Array,
    taps: Sequence[tuple[int, ...]],
    sizes: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> list[jax.Array]:
    """For each tap of a window the entries under it, (batch, *sizes, channels)."""
    slices = [
        tuple(
            slice(t * d, t * d + (size - 1) * s + 1, s)
            for t, d, size, s in zip(tap, dilation, sizes, strides, strict=True)
        )
        for tap in taps
    ]
    return [x[:, *each] for each in slices]


def _popcount_product(words: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The product of ±1, packed as (batch, *spatial, words) of the bits x < 0, by a ±α kernel."""
    *window, features, out = kernel.shape
    pads, dtype = geometry.pads, kernel.dtype
    sizes = [
        max(0, (size + low + high - (k - 1) * d - 1) // s + 1)
        for size, (low, high), k, d, s in zip(
            words.shape[1:-1], pads, window, geometry.dilation, geometry.strides, strict=True
        )
    ]
    padded = _pad(words, [(low, high, 0) for low, high in pads])
    under = _under(padded, _taps(window), sizes, geometry.strides, geometry.dilation)
    a = jnp.concatenate([jnp.moveaxis(w, -1, 0).reshape(w.shape[-1], -1) for w in under])
    b = jnp.moveaxis(pack(kernel < 0, -2)[0], 0, -2).reshape(-1, out)
    terms = len(under) * features

    def finish(ones: jax.Array, alpha: jax.Array, *border: jax.Array) -> jax.Array:
        y = (terms - 2 * ones).reshape(len(words), *sizes, out).astype(dtype)
        return sum(border, y) * alpha

    border = []
    if any(map(any, pads)) and geometry.padding_value != 1:  # padded words count as +1
        outside = jnp.zeros((1, *words.shape[1:-1], 1), dtype)
        outside = jnp.pad(outside, ((0, 0), *pads, (0, 0)), constant_values=1)
        sums = jnp.sum(_signs(kernel < 0, dtype), -2, keepdims=True)
        inside = geometry._replace(pads=((0, 0),) * len(window))
        border = [(geometry.padding_value - 1) * _float_product(outside, sums, inside)]
    return bit_matmul(a[None], b[None], jnp.bitwise_xor, finish, _scale(kernel), *border)


def _popcount_input_gradient(
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
    edges = []
    for size, k, d, s, (low, _), given in zip(
        sizes,
        window,
        geometry.dilation,
        geometry.strides,
        geometry.pads,
        g.shape[1:-1],
        strict=True,
    ):
        before, spread = (k - 1) * d - low, max(0, (given - 1) * s + 1)
        edges.append((before, size + (k - 1) * d - before - spread, s - 1))
    ones = (1,) * len(window)
    under = _under(_pad(words, edges), _taps(window)[::-1], sizes, ones, geometry.dilation)
    under = [w.reshape(bits, -1, w.shape[-1]) for w in under]
    a = jnp.concatenate([jnp.moveaxis(w, -1, 1) for w in under], 1)
    b = jnp.moveaxis(pack(kernel > 0)[0], -1, -2).reshape(-1, features)
    ones = jnp.sum(lax.population_count(a).astype(jnp.int32), 1)
    total = jnp.sum(jnp.asarray(plane_weights(bits))[:, None] * ones, 0)

    def finish(positive: jax.Array, total: jax.Array, scale: jax.Array) -> jax.Array:
        dx = 2 * positive - total[:, None]
        return dx.reshape(batch, *sizes, features).astype(scale.dtype) * scale

    return bit_matmul(a, b[None], jnp.bitwise_and, finish, total, scale)


def _popcount_kernel_gradient(
    words: jax.Array, g: jax.Array, shape: Sequence[int], geometry: Geometry, bits: int
) -> jax.Array:
    """The kernel's gradient, of packed activations and an integer gradient; packs the batch."""
    *window, features, out = shape
    taps, sizes = _taps(window), g.shape[1:-1]

    def under(bits: jax.Array) -> jax.Array:  # (batch, *spatial, channels) → (words, rows)
        x = _pad(pack(bits, 0)[0], [(low, high, 0) for low, high in geometry.pads])
        each = _under(x, taps, sizes, geometry.strides, geometry.dilation)
        return jnp.concatenate([w.reshape(-1, w.shape[-1]) for w in each], -1)

    inside = jnp.ones((*words.shape[:-1], 1), bool)
    a = jnp.concatenate([under(~unpack(words, features)), under(inside)], -1)
    b = pack(g, 0, bits).reshape(bits, -1, out)
    counts = bit_matmul(a[None], b, jnp.bitwise_and)
    positive = counts[: -len(taps)].reshape(len(taps), features, out)
    total = counts[-len(taps) :][:, None]  # of the gradients that meet no padding
    gradient = (2 * positive - total).reshape(*window, features, out).astype(jnp.float32)
    if geometry.padding_value == 0:
        return gradient
    padding = jnp.sum(g.astype(jnp.int32), range(g.ndim - 1)) - total.reshape(*window, 1, out)
    return gradient + geometry.padding_value * padding.astype(jnp.float32)
