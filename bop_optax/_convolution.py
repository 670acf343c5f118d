"""Float products, and the geometry of a convolution."""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from bop_optax._bits import signs, unpack
from bop_optax.processor import for_cpu

# `kernel_gradient` unpacks about so many signs at a time, which then stay in the cache.
UNPACKED = 2**20
# `convolution` lays out the windows of images of at most so many channels.
FEW = 8


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


def explicit_pads(
    padding: str | Sequence[tuple[int, int]],
    sizes: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    """A (low, high) pair per spatial dimension, also for "SAME" and "VALID"."""
    if isinstance(padding, str):
        spans = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
        padding = lax.padtype_to_pads(sizes, spans, strides, padding)
    return tuple((int(low), int(high)) for low, high in padding)[: len(window)]


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
    """The product as floats."""
    if kernel.ndim == 2:
        return jnp.matmul(x, kernel, precision=precision)
    pads = geometry.pads
    if geometry.padding_value != 0:
        value = jnp.asarray(geometry.padding_value, x.dtype)
        x = lax.pad(x, value, [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)])
        pads = [(0, 0)] * len(pads)
    return convolution(
        x,
        kernel,
        geometry.strides,
        pads,
        rhs_dilation=geometry.dilation,
        dimension_numbers=channels_last(len(pads)),
        feature_group_count=geometry.groups,
        precision=precision,
    )


def channels_last(rank: int) -> tuple[str, str, str]:
    spatial = "".join(map(str, range(rank)))
    return f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"


def convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, but on CPUs faster for images of at most 8 channels.

    It lays out the entries under the window and takes a matrix product. XLA's own kernel gradient
    takes 3 to 6 times as long. Other shapes, layouts and devices take XLA's convolution.

    Args:
        lhs: images, `(batch, *spatial, in)`.
        rhs: kernel, `(*window, in, out)`.
        window_strides: one per spatial dimension.
        padding: "SAME", "VALID", or a (low, high) pair per spatial dimension.
        lhs_dilation: see `jax.lax.conv_general_dilated`.
        rhs_dilation: see `jax.lax.conv_general_dilated`.
        dimension_numbers: see `jax.lax.conv_general_dilated`.
        feature_group_count: see `jax.lax.conv_general_dilated`.
        batch_group_count: see `jax.lax.conv_general_dilated`.
        precision: see `jax.lax.Precision`.
        preferred_element_type: see `jax.lax.conv_general_dilated`.
        options: further arguments of `jax.lax.conv_general_dilated`.

    Returns:
        `(batch, *spatial, out)`, in the dtype of `lhs`.

    Raises:
        ValueError, TypeError: as `jax.lax.conv_general_dilated`.

    Example:
        >>> layer = nnx.Conv(3, 8, (3, 3), conv_general_dilated=convolution, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 32, 32, 3))).shape
        (2, 32, 32, 8)
    """
    by_xla = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **options,
    )
    batch, *spatial, features = lhs.shape
    rank = len(spatial)
    ours, given = (
        lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers)
        for numbers in (channels_last(rank), dimension_numbers)
    )
    channels = lhs.shape[given.lhs_spec[1]]
    taken = rhs.shape[given.rhs_spec[1]] * feature_group_count
    if min(window_strides, default=1) < 1:
        raise ValueError(f"window_strides must be at least 1, got {window_strides}")
    if channels != taken:
        raise ValueError(
            f"a kernel {rhs.shape} takes {taken} channels, got images of shape {lhs.shape}"
        )
    unusual = (
        ours != given
        or feature_group_count * batch_group_count > 1
        or any(d != 1 for d in (() if lhs_dilation is None else lhs_dilation))
        or any(value is not None for value in (preferred_element_type, *options.values()))
        or not all(isinstance(size, int) for size in spatial)  # of an exported function
    )
    if unusual or features > FEW or not for_cpu():
        return by_xla(lhs, rhs)
    y = jax.eval_shape(by_xla, lhs, rhs)  # checks the arguments
    if 0 in (features, *y.shape):
        return by_xla(lhs, rhs)
    *window, _, out = rhs.shape
    strides = tuple(window_strides)
    dilation = (1,) * rank if rhs_dilation is None else tuple(rhs_dilation)
    pads = explicit_pads(padding, spatial, window, strides, dilation)
    edges = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
    x = lax.pad(lhs, jnp.zeros([], lhs.dtype), edges)
    sizes, summands = y.shape[1:-1], math.prod(rhs.shape[:-1])
    patches = jnp.concatenate(entries_under(x, offsets(window), sizes, strides, dilation), -1)
    # XLA is faster at matrices than at products of higher ranks, above all in the gradient.
    patches = patches.reshape(batch * math.prod(sizes), summands)
    return jnp.matmul(patches, rhs.reshape(summands, out), precision=precision).reshape(y.shape)


def offsets(window: Sequence[int]) -> list[tuple[int, ...]]:
    """Every offset within a window, in the order of a kernel's entries."""
    return list(itertools.product(*map(range, window)))


def entries_under(
    x: jax.Array,
    at: Sequence[tuple[int, ...]],
    sizes: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> list[jax.Array]:
    """For each offset within a window the entries under it, (batch, *sizes, channels)."""
    slices = [
        tuple(
            slice(i * d, i * d + (size - 1) * s + 1, s)
            for i, d, size, s in zip(offset, dilation, sizes, strides, strict=True)
        )
        for offset in at
    ]
    return [x[:, *each] for each in slices]


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

    It is the convolution of the spread gradient with the reversed kernel. XLA's own transpose
    leaves the kernel's channels swapped, which in a loop takes ten times as long on CPUs.

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

    # Devices that share the batch each loop over their own images, and add up once at the end.
    shares = jax.device_count() if batch % jax.device_count() == 0 else 1
    share = batch // shares
    unpacked = window[-1] * features * g.size // out // shares
    loops = max(1, min(share, -(-unpacked // UNPACKED)))
    images = -(-share // loops)

    def by_loop(x: jax.Array) -> jax.Array:
        x = x.reshape(shares, share, *x.shape[1:])
        x = jnp.pad(x, [(0, 0), (0, loops * images - share)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(shares, loops, images, *x.shape[2:]), 1, 0)

    def add(totals: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        each = part(*(x[0] for x in chunk))[None] if shares == 1 else jax.vmap(part)(*chunk)
        return totals + each, None

    if loops == 1:
        return part(words, g).astype(g.dtype)
    totals = jnp.zeros((shares, *shape), sum_dtype)
    totals, _ = lax.scan(add, totals, (by_loop(words), by_loop(g)))
    return jnp.sum(totals, 0).astype(g.dtype)
