"""The product of every binary layer: a matrix product or a convolution with a binary kernel."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


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
) -> jax.Array:
    """Multiplies activations by a kernel, or convolves them with it.

    The kernel has as many spatial dimensions as the input: none for a linear layer. The options
    other than `precision` act on convolutions only.

    Args:
        x: activations, (batch, *spatial, in), in the dtype of `kernel`.
        kernel: (*window, in ÷ feature_group_count, out).
        strides: one per spatial dimension. Default: all 1.
        padding: "SAME", "VALID", or a (low, high) pair per spatial dimension.
        padding_value: value of the padded activations: 0 as in the authors' code, ±1 for engines
            that store activations in one bit.
        kernel_dilation: one per spatial dimension. Default: all 1.
        feature_group_count: number of groups of the `in` and `out` channels.
        precision: see `jax.lax.Precision`.

    Returns:
        (batch, *spatial, out), in the dtype of `x`.
    """
    if kernel.ndim == 2:
        return jnp.matmul(x, kernel, precision=precision)
    *window, _, _ = kernel.shape
    strides = strides or [1] * len(window)
    kernel_dilation = kernel_dilation or [1] * len(window)
    if padding_value != 0:
        window = [(k - 1) * d + 1 for k, d in zip(window, kernel_dilation, strict=True)]
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)
        edges = [(low, high, 0) for low, high in padding]
        x = lax.pad(x, jnp.asarray(padding_value, x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        padding = "VALID"
    spatial = "".join(chr(ord("0") + i) for i in range(len(window)))
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=kernel_dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=feature_group_count,
        precision=precision,
    )
