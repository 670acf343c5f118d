"""What makes an array one of binary weights: −α or +α, with one α for each output."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def output_scale(kernel: Any) -> Any:
    """α of each output, (out,): the magnitudes of the first row; 1 without rows.

    Args:
        kernel: an array of NumPy or JAX, (..., out).
    """
    outputs = kernel.shape[-1:]
    return abs(kernel.reshape(-1, *outputs)[0]) if kernel.size else np.ones(outputs, kernel.dtype)


def is_scale(scale: Any) -> Any:
    """Where α is above 0 and finite."""
    return (scale > 0) & (scale < np.inf)


def are_binary(kernel: Any) -> Any:
    """Where the weights of a kernel of NumPy or JAX, (..., out), are −α or +α."""
    scale = output_scale(kernel)
    return (abs(kernel) == scale) & is_scale(scale)


def is_signed(dtype: Any) -> bool:
    """Whether a dtype holds −α and +α."""
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.signedinteger))


def magnitudes(kernel: Any) -> str:
    """The range of a kernel's magnitudes, for messages."""
    found = abs(np.asarray(kernel))
    low, high = (float(str(x)) for x in (found.min(), found.max()))  # as the dtype spells them
    return f"{low:.9g} to {high:.9g}"
