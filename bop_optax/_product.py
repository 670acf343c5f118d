"""The product of every binary layer: a matrix product or a convolution with a binary kernel.

A product of ±1 by ±1 is an integer, so each way to compute it gives the same numbers. On a CPU the
fastest is XOR and population count on packed bits. Its gradients are products of ±1 by real
numbers; `Product.backward` rounds these to few bits where speed is asked for.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from bop_optax._bits import pack, signs, unpack
from bop_optax._convolution import (
    Geometry,
    explicit_pads,
    float_product,
    input_gradient,
    kernel_gradient,
    output_sizes,
)
from bop_optax._noise import noise
from bop_optax._popcount import (
    PackedKernel,
    pack_kernel,
    popcount_input_gradient,
    popcount_kernel_gradient,
    popcount_product,
)
from bop_optax._scale import output_scale
from bop_optax.processor import counts_words, for_cpu, instructions

# A sum over fewer entries than this does not fill the words that `bit_matmul` unrolls.
LEAST_SUMMANDS = 512
# Without vectors that count their bits, 8 bits take longer than float products, and 4 do not.
MOST_BITS = 4
# Few bits are spread over magnitudes of up to so many root mean squares for each level.
OUTLIER = 1.5
SECOND = (
    "a product of one-bit operands has first derivatives only; for higher ones leave out "
    "input_quantizer and apply the quantizer before the layer"
)
PACKED = "a packed kernel has no gradients: differentiate the model that was packed"
LOG = logging.getLogger("bop_optax.product")


@dataclass(frozen=True)
class Product:
    """How the product of a binary layer is computed, if both operands are one bit.

    Args:
        forward: "popcount": XOR and population count on packed bits. "float": XLA's own product.
            "auto": popcount on CPUs, float elsewhere and for grouped convolutions. For kernels of
            ±1 all give the same numbers to the bit, as long as a sum has fewer than 2²⁴ terms. For
            kernels of ±α the float sum may round; popcount rounds once. "popcount" also has the
            gradients of few bits counted and those of bfloat16 multiplied in bfloat16; "auto"
            multiplies them in float32 where the processor lacks the instructions.
        backward: what the incoming gradient is rounded to. "float32": nothing is rounded.
            "bfloat16": to 8 significant bits. An integer k from 2 to 8: to 2^k − 1 equidistant
            values around 0, at random and without bias; zeros stay zeros. The outermost value is
            the largest magnitude of the tensor, at most 1.5 · 2^(k − 1) root mean squares;
            magnitudes beyond it are clipped. The draw depends on the gradient's values alone, so
            equal steps round equally. One NaN or infinity makes the whole gradient NaN.

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
        known = self.backward in ("float32", "bfloat16", *range(2, 9))
        if not known or isinstance(self.backward, float):
            raise ValueError(
                'backward must be "float32", "bfloat16" or a number of bits from 2 to 8, got '
                f"{self.backward!r}"
            )


class _Way(NamedTuple):
    """How one product is computed: what does not depend on the operands' values.

    Attributes:
        popcount: whether the forward product is counted.
        native: whether `backward` is computed in its own numbers: bits counted, bfloat16
            multiplied as such. Else its rounded numbers are multiplied in float32.
    """

    geometry: Geometry
    precision: lax.PrecisionLike
    backward: Literal["float32", "bfloat16"] | int
    popcount: bool
    native: bool


def binary_product(
    x: jax.Array,
    kernel: jax.Array | PackedKernel,
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
        kernel: (*window, in ÷ feature_group_count, out), or such a kernel packed, which has no
            gradient.
        strides: one per spatial dimension. Default: all 1.
        padding: "SAME", "VALID", or a (low, high) pair per spatial dimension.
        padding_value: value of the padded activations: 0 as in the authors' code, ±1 for engines
            that store activations in one bit.
        kernel_dilation: one per spatial dimension. Default: all 1.
        feature_group_count: number of groups of the `in` and `out` channels.
        precision: see `jax.lax.Precision`. It acts on float products.
        one_bit: True promises that `x` is ±1 and that `kernel` is packed, or ±α with one α for
            each output.
        product: how the product is computed if `one_bit`.

    Returns:
        (batch, *spatial, out), in the dtype of `x`.
    """
    packed = isinstance(kernel, PackedKernel)
    *window, _, out = (kernel.words if packed else kernel).shape
    strides = tuple(strides or [1] * len(window))
    dilation = tuple(kernel_dilation or [1] * len(window))
    pads = explicit_pads(padding, x.shape[1:-1], window, strides, dilation)
    geometry = Geometry(strides, pads, float(padding_value), dilation, feature_group_count)
    sizes = output_sizes(x.shape[1:-1], window, geometry)
    one_bit = bool(one_bit and x.size and out and all(sizes))  # else there is nothing to multiply
    popcount = one_bit and _uses_popcount(product, geometry)
    if packed:
        x = _without_derivative(x, PACKED)
        if popcount:
            features = kernel.features

            def counted(words: jax.Array, scale: jax.Array, x: jax.Array) -> jax.Array:
                kernel = PackedKernel(words, scale, features)
                return popcount_product(pack(x < 0)[0], kernel, geometry)

            return _one_kernel_at_a_time(counted, kernel.words, kernel.scale, x)
        return float_product(x, kernel.unpack(), geometry, precision)
    if not one_bit:
        return float_product(x, kernel, geometry, precision)
    native = popcount and (product.forward == "popcount" or _has_instructions(product.backward))
    LOG.debug(
        "%s by %s: forward %s, backward %s%s",
        x.shape,
        kernel.shape,
        "popcount" if popcount else "float",
        product.backward,
        "" if native or product.backward == "float32" else " in float32",
    )
    way = _Way(geometry, precision, product.backward, popcount, native)
    return _one_bit_product(x, kernel, way)


def _uses_popcount(product: Product, geometry: Geometry) -> bool:
    if geometry.groups > 1:
        return False
    if product.forward == "auto":
        return for_cpu()
    return product.forward == "popcount"


def _has_instructions(backward: str | int) -> bool:
    """Whether the processor computes a rounded gradient faster than a float32 one."""
    if isinstance(backward, int):
        return counts_words() or backward <= MOST_BITS
    return "avx512_bf16" in instructions()


# ---- ±1 by ±1 ------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _one_bit_product(x: jax.Array, kernel: jax.Array, way: _Way) -> jax.Array:
    return _forward(x, kernel, way)[0]


def _forward(
    x: jax.Array, kernel: jax.Array, way: _Way
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    x, kernel = (_without_derivative(operand, SECOND) for operand in (x, kernel))
    words = pack(x < 0)[0]  # the backward pass keeps one bit of each activation
    if not way.popcount:
        return float_product(x, kernel, way.geometry, way.precision), (words, kernel)

    def counted(kernel: jax.Array, words: jax.Array) -> jax.Array:
        return popcount_product(words, pack_kernel(kernel), way.geometry)

    return _one_kernel_at_a_time(counted, kernel, words), (words, kernel)


def _backward(
    way: _Way, kept: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    words, kernel = kept
    g = _without_derivative(g, SECOND)
    gradients = partial(_gradients, way)
    if way.popcount:
        return _one_kernel_at_a_time(gradients, kernel, words, g)
    return gradients(kernel, words, g)


def _gradients(
    way: _Way, kernel: jax.Array, words: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    sizes, geometry, bits = words.shape[1:-1], way.geometry, way.backward
    if not isinstance(bits, int):
        rounded = jnp.bfloat16 if bits == "bfloat16" else g.dtype
        g = g.astype(rounded).astype(g.dtype)
        dx = input_gradient(kernel, g, sizes, geometry, way.precision)
        operand_dtype = rounded if way.native else g.dtype
        return dx, _float_kernel_gradient(kernel, g, words, way, operand_dtype)
    alpha, dtype = output_scale(kernel), kernel.dtype
    wide = dtype if dtype.itemsize > 4 else jnp.float32  # float16 cannot hold the sums of integers
    g, scale = _round_to_bits((g * alpha).astype(wide), bits)
    if way.native:
        dx = popcount_input_gradient(g, kernel, words.shape, geometry, bits, scale)
    else:
        dx = signs(kernel < 0, wide)
        dx = input_gradient(dx, g.astype(wide), sizes, geometry, way.precision) * scale
    if way.native and g.size // g.shape[-1] >= LEAST_SUMMANDS:
        dw = popcount_kernel_gradient(words, g, kernel.shape, geometry, bits).astype(wide)
    else:
        dw = _float_kernel_gradient(kernel, g.astype(wide), words, way, wide)
    alpha = alpha.astype(wide)
    dw *= jnp.where(alpha > 0, scale / alpha, jnp.zeros([], wide))
    return dx.astype(dtype), dw.astype(dtype)


def _float_kernel_gradient(
    kernel: jax.Array, g: jax.Array, words: jax.Array, way: _Way, operand_dtype: DTypeLike
) -> jax.Array:
    """By matrix products where these are faster: on CPUs, as the popcount product is."""
    if way.popcount and set(way.geometry.strides) <= {1}:
        return kernel_gradient(words, g, kernel.shape, way.geometry, operand_dtype)
    x = signs(unpack(words, kernel.shape[-2] * way.geometry.groups), g.dtype)

    def product(kernel: jax.Array) -> jax.Array:
        return float_product(x, kernel, way.geometry, way.precision)

    return jax.linear_transpose(product, jax.ShapeDtypeStruct(kernel.shape, g.dtype))(g)[0]


_one_bit_product.defvjp(_forward, _backward)


def _one_kernel_at_a_time(
    function: Callable[..., Any], kernel: jax.Array, *operands: jax.Array
) -> Any:
    """`function(kernel, *operands)`; under `jax.vmap` over kernels, one kernel after another.

    For a batch of kernels XLA has no fast convolutions on CPUs, and no fast loops over words.
    """
    call = jax.custom_batching.custom_vmap(function)

    @call.def_vmap
    def _(size: int, batched: list[Any], *operands: jax.Array) -> tuple[Any, Any]:
        each = jax.custom_batching.sequential_vmap(function) if batched[0] else function
        axes = [0 if mapped else None for mapped in batched]
        y = jax.vmap(each, axes, axis_size=size)(*operands)
        return y, jax.tree.map(lambda _: True, y)

    return call(kernel, *operands)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _without_derivative(x: jax.Array, message: str) -> jax.Array:
    """The identity; its derivative raises the message."""
    del message
    return x


@_without_derivative.defjvp
def _(message, primals, tangents):
    raise NotImplementedError(message)


def _round_to_bits(g: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """Rounds to integers of at most 2^(bits − 1) − 1 at random, without bias but for outliers.

    The randomness is a hash of each entry's position and of the outermost value, which is another
    one at every step.

    Args:
        g: float32 or float64.
        bits: 2 to 8.

    Returns:
        int8 of the shape of `g`, and the scalar that they are to be multiplied by, in the dtype of
        `g`. A NaN or an infinity anywhere makes the scalar NaN.
    """
    levels, dtype = 2 ** (bits - 1) - 1, g.dtype
    g = g.astype(jnp.float32)
    largest = jnp.max(jnp.abs(g))
    rms = jnp.sqrt(jnp.mean(jnp.square(g / jnp.where(largest > 0, largest, 1.0))))
    largest *= jnp.minimum(1.0, OUTLIER * 2 ** (bits - 1) * rms)
    words = lax.bitcast_convert_type(largest, jnp.uint32)
    seeds = jnp.stack([words, words * np.uint32(0x9E3779B9)])
    uniform = (noise(g.shape, seeds) >> 8).astype(jnp.float32) * np.float32(2**-24)  # in [0, 1)
    steps = jnp.clip(g * jnp.where(largest > 0, levels / largest, 0.0), -levels, levels)
    return jnp.floor(steps + uniform).astype(jnp.int8), (largest / levels).astype(dtype)
