"""Checks that binary weights are binary: after a step, and before an optimizer's first."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from bop_optax._labels import (
    array_of,
    binary_labels,
    has_binary_type,
    is_variable,
    labelled,
    named_leaves,
)
from bop_optax._scale import is_signed, magnitudes, output_scale


def check_binary(params: Any, labels: Any = None) -> None:
    """Raises an error if a binary weight is no longer −α or +α.

    Three mistakes pass in silence otherwise: another optimizer owns a binary parameter, something
    is chained after `bop`, or a loss that is not finite has reached the weights. Call this function
    after the first step, or now and then, outside of `jax.jit`: it copies the weights to the host.

    Args:
        params: the tree of the parameters, such as `nnx.state(model, nnx.Param)`.
        labels: the tree of `binary_labels`; only leaves labelled "binary" are checked. None: that
            of the types.

    Raises:
        ValueError: for a weight that is 0 or not finite, and for an array without one α for each
            output, which is its last axis (as in Flax) or its first (as in Equinox and PyTorch).
            An array of one axis has one α. The message has the place of the array in the tree. Also
            for labels that are no tree of `binary_labels(params)`.
        TypeError: for traced values, as inside `jax.jit`, and for shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.array([[1.0, -1.0], [1.0, 1.0]]), "bias": jnp.zeros(2)}
        >>> check_binary(params, {"kernel": "binary", "bias": "real"})
        >>> params = jax.tree.map(lambda w: 0.999 * w, params)  # α of both outputs
        >>> check_binary(params, {"kernel": "binary", "bias": "real"})
        >>> params["kernel"] = params["kernel"].at[0, 0].add(-0.001)
        >>> check_binary(params, {"kernel": "binary", "bias": "real"})
        Traceback (most recent call last):
            ...
        ValueError: kernel is not −α or +α with one α for each output: ...
    """
    if labels is None:
        labels = binary_labels(params)
    for name, leaf in labelled(params, labels, "binary"):
        array = array_of(leaf)
        if isinstance(array, Tracer | jax.ShapeDtypeStruct):
            raise TypeError("check_binary reads values: call it outside of jax.jit")
        if fault := _fault(np.asarray(array)):
            raise ValueError(
                f"{name} {fault}; give it to bop or a variant of it alone, as the last transform "
                "of a chain, without a learning rate or a weight decay"
            )


def check_weights(params: Any) -> None:
    """Raises ValueError for parameters that bop should not flip; traced ones pass."""
    for name, leaf in named_leaves(params):
        array = array_of(leaf)
        is_vector = np.ndim(array) < 2
        fault = None
        if is_variable(leaf) and is_vector and not has_binary_type(name, leaf):
            fault = f"is a {type(leaf).__name__} of shape {np.shape(array)}, no binary kernel"
        elif isinstance(array, np.ndarray) or _is_readable(array):
            fault = _fault(np.asarray(array))
        if fault:
            raise ValueError(
                f"{name or 'the parameter'} {fault}; bop flips binary weights: give it those that "
                "binary_labels labels, start from bop_optax.binarize(w), or pass "
                "check_weights=False"
            )


def _is_readable(array: Any) -> bool:
    """Whether the values of an array are known in this process."""
    is_traced = isinstance(array, Tracer)
    return isinstance(array, jax.Array) and not is_traced and array.is_fully_addressable


def _fault(array: np.ndarray) -> str | None:
    """What makes an array other than −α or +α; None if nothing does."""
    if not is_signed(array.dtype):
        return f"is {array.dtype}, which holds no −α and +α"
    if not array.size:
        return None
    magnitude = np.abs(array.astype(np.float64))
    if not np.isfinite(magnitude).all():
        return "has weights that are not finite"
    if not magnitude.all():
        return "has weights of 0"
    if any((magnitude == scale).all() for scale in _scales(magnitude)):
        return None
    found = f"its magnitudes are {magnitudes(array)}"
    return f"is not −α or +α with one α for each output: {found}"


def _scales(magnitude: np.ndarray) -> Iterator[np.ndarray]:
    """The candidates of α: of all weights, of the last axis, of the first axis."""
    if magnitude.ndim < 2:
        yield magnitude.ravel()[:1]
        return
    yield output_scale(magnitude)
    yield output_scale(magnitude.T).reshape(-1, *(1,) * (magnitude.ndim - 1))
