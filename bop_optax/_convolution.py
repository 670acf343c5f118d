"""A product as XLA computes it, and the geometry of a convolution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


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
