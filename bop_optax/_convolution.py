"""Float products, and the geometry of a convolution."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bop_optax._bits import signs, unpack

# `kernel_gradient` unpacks about so many signs at a time, which then stay in the cache.
UNPACKED = 2**20


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


def output_sizes(
    sizes: Sequence[int], window: Sequence[int], geometry: Geometry
) -> tuple[int, ...]:
    """The spatial sizes of the output; 0 where the window is larger than the padded input."""
    return tuple(
        max(0, (size + low + high - (k - 1) * d - 1) // s + 1)
        for size, (low, high), k, d, s in zip(
            sizes, geometry.pads, window, geometry.dilation, geometry.strides, strict=True
        )
    )


def float_product(
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


def offsets(window: Sequence[int]) -> list[tuple[int, ...]]:
    """Every offset within a window, in the order of a kernel's entries."""
    return list(itertools.product(*map(range, window)))


def input_gradient_edges(
    sizes: Sequence[int], given: Sequence[int], window: Sequence[int], geometry: Geometry
) -> list[tuple[int, int, int]]:
    """What the incoming gradient is padded by, for a window of stride 1 to give the input's.

    Args:
        sizes: spatial sizes of the input.
        given: those of the incoming gradient.
        window: the kernel's.
        geometry: of the product.

    Returns:
        (before, after, between its entries) for each spatial dimension.
    """
    edges = []
    for size, out, k, d, s, (low, _) in zip(
        sizes, given, window, geometry.dilation, geometry.strides, geometry.pads, strict=True
    ):
        before, spread = (k - 1) * d - low, max(0, (out - 1) * s + 1)
        edges.append((before, size + (k - 1) * d - before - spread, s - 1))
    return edges


def input_gradient(
    kernel: jax.Array,
    g: jax.Array,
    sizes: Sequence[int],
    geometry: Geometry,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """The input's gradient of a float product.

    It is the convolution of the spread gradient with the reversed kernel. XLA's own transpose leaves
    the kernel's channels swapped, which under `jax.vmap` takes ten times as long on CPUs.

    Args:
        kernel: (*window, in ÷ groups, out).
        g: the incoming gradient, (batch, *spatial, out).
        sizes: spatial sizes of the input.
        geometry: of the product.
        precision: see `jax.lax.Precision`.

    Returns:
        (batch, *sizes, in).
    """
    *window, features, _ = kernel.shape
    groups, one = geometry.groups, (1,) * len(window)
    edges = input_gradient_edges(sizes, g.shape[1:-1], window, geometry)
    g = lax.pad(g, jnp.zeros([], g.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    kernel = lax.rev(kernel, range(len(window))).reshape(*window, features, groups, -1)
    kernel = jnp.swapaxes(kernel, -1, -3).reshape(*window, -1, groups * features)
    inside = Geometry(one, ((0, 0),) * len(window), 0.0, geometry.dilation, groups)
    return float_product(g, kernel, inside, precision)


def kernel_gradient(
    words: jax.Array,
    g: jax.Array,
    shape: Sequence[int],
    geometry: Geometry,
    operand_dtype: DTypeLike,
) -> jax.Array:
    """The kernel's gradient by matrix products, of packed activations; for strides of 1.

    The gradient at offset (i, j) of the window adds up x[h + i, w + j] · g[h, w] =
    x[h′, w + j] · g[h′ − i, w]. For offsets along the last dimension the signs are shifted and
    stacked; for the others the gradient is shifted. So a 3×3 window takes three matrix products of
    row-major operands, which on a CPU run at twice the rate of XLA's gradient of a convolution.

    Args:
        words: bits of x < 0, (batch, *spatial, words), uint32.
        g: the incoming gradient, (batch, *spatial, out).
        shape: (*window, in, out), the kernel's.
        geometry: of strides 1 and one group.
        operand_dtype: what the products' operands are rounded to; sums are float32 or wider.

    Returns:
        The gradient in the shape of the kernel and the dtype of `g`.
    """
    if len(shape) == 2:  # a matrix is a window of one entry
        point = Geometry((1,), ((0, 0),), 0.0, (1,), 1)
        return kernel_gradient(words[:, None], g[:, None], (1, *shape), point, operand_dtype)[0]
    *window, features, out = shape
    batch, columns = len(g), g.shape[-2]
    value, dilation = geometry.padding_value, geometry.dilation
    sum_dtype = jnp.float32 if jnp.dtype(operand_dtype).itemsize < 4 else operand_dtype
    # Rows of padded zeros add nothing: they are left out, except along the last dimension.
    rows = geometry.pads[:-1]
    without = ((0, 0),) * len(rows)
    padded, left_out = (rows, without) if value else (without, rows)

    def shifted(g: jax.Array, offset: tuple[int, ...]) -> jax.Array:
        edges = [
            (i * d - low, (k - 1 - i) * d - high, 0)
            for i, k, d, (low, high) in zip(
                offset, window[:-1], dilation[:-1], left_out, strict=True
            )
        ]
        edges = [(0, 0, 0), *edges, (0, 0, 0), (0, 0, 0)]
        return lax.pad(g, jnp.zeros([], g.dtype), edges).reshape(-1, out)

    def part(words: jax.Array, g: jax.Array) -> jax.Array:
        x = signs(unpack(jnp.moveaxis(words, -1, 0), features, 0), operand_dtype)
        pads = [(low, high, 0) for low, high in (*padded, geometry.pads[-1])]
        x = lax.pad(x, jnp.asarray(value, operand_dtype), [(0, 0, 0), (0, 0, 0), *pads])
        starts = range(0, window[-1] * dilation[-1], dilation[-1])
        x = jnp.stack([x[..., start : start + columns] for start in starts])
        x = x.reshape(window[-1] * features, -1)
        g = g.astype(operand_dtype)
        products = [
            jnp.matmul(x, shifted(g, offset), preferred_element_type=sum_dtype)
            for offset in offsets(window[:-1])
        ]
        return jnp.stack(products).reshape(shape)

    unpacked = window[-1] * features * g.size // out
    loops = max(1, min(batch, -(-unpacked // UNPACKED)))
    images = -(-batch // loops)

    def by_loop(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, loops * images - batch)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(loops, images, *x.shape[1:])

    def add(total: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + part(*chunk), None

    if loops == 1:
        return part(words, g).astype(g.dtype)
    total, _ = lax.scan(add, jnp.zeros(shape, sum_dtype), (by_loop(words), by_loop(g)))
    return total.astype(g.dtype)
