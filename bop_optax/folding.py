"""Batch normalization and the sign after it as one threshold for each channel, for inference."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from bop_optax._dataflow import Norm, is_foldable, norms_before_signs

_Model = TypeVar("_Model", bound=nnx.Module)
LIMIT = 2**24  # beyond the sums of ±1 that are exact in float32


class Threshold(nnx.Module):
    """+1 where `direction · x ≥ threshold`, else −1 (−1 for NaN, too): BatchNorm and a sign in one.

    Args:
        threshold: (features,); int32 if the inputs are integers, else a floating dtype. −∞ or +∞
            makes a constant channel; among integers ±2²⁴ does.
        direction: (features,), int8: −1 where BatchNorm has a negative scale, else +1.
        dtype: dtype of the result.

    Example:
        >>> threshold = Threshold(jnp.array([0, 3]), jnp.array([1, -1], jnp.int8), jnp.float32)
        >>> threshold(jnp.array([[-1.0, -3.0], [0.0, -2.0]]))
        Array([[-1.,  1.],
               [ 1., -1.]], dtype=float32)
    """

    def __init__(self, threshold: ArrayLike, direction: ArrayLike, dtype: Any):
        self.threshold = nnx.BatchStat(jnp.asarray(threshold))
        self.direction = nnx.BatchStat(jnp.asarray(direction, jnp.int8))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., features) to ±1 of the same shape."""
        wide = x.dtype if x.dtype.itemsize > 4 else jnp.float32
        x, direction = x.astype(wide), self.direction[...].astype(wide)
        positive = direction * x >= self.threshold[...].astype(wide)
        return jnp.where(positive, jnp.ones([], self.dtype), -jnp.ones([], self.dtype))


def fold(model: _Model, *inputs: Any) -> _Model:
    """Replaces each BatchNorm of which the network uses nothing but the sign by a `Threshold`.

    BatchNorm is monotone in each channel, and a sign follows: together they compare with one
    number. The threshold is the smallest number of its dtype at which BatchNorm, compiled by
    itself, is at least 0. So the signs are the same for every finite input, exact zeros included;
    inside a larger program the compiler may round BatchNorm otherwise in its last bit. Where the
    inputs are sums of ±1 the threshold is an integer.

    The BatchNorms are found in the jaxpr of the forward pass: those whose output goes into one-bit
    quantizers of inputs and nowhere else, but for changes of shape. Others are kept, for instance
    before a ReLU or a shortcut and at the end; so is one that is called twice, or inside a loop. A
    forward pass must not depend on the type of its modules.

    Args:
        model: an NNX module; latent, binary or packed.
        inputs: arguments of its call, as arrays or as `jax.ShapeDtypeStruct`. Only shapes and
            dtypes matter.

    Returns:
        A copy in evaluation mode, for inference: a threshold has no gradient.

    Raises:
        TypeError: for a model that is no NNX module.

    Example:
        >>> from bop_optax import ste_sign
        >>> from bop_optax.layers import BinaryLinear
        >>> rngs = nnx.Rngs(0)
        >>> last = BinaryLinear(32, 10, input_quantizer=ste_sign, rngs=rngs)
        >>> model = nnx.Sequential(
        ...     BinaryLinear(64, 32, rngs=rngs), nnx.BatchNorm(32, rngs=rngs), last
        ... )
        >>> folded = fold(model, jax.ShapeDtypeStruct((1, 64), jnp.float32))
        >>> type(folded.layers[1]).__name__
        'Threshold'

    References:
        Umuroglu et al. FINN: A Framework for Fast, Scalable Binarized Neural Network Inference.
        FPGA 2017, arXiv:1612.07119, section 4.2.2.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"fold takes an NNX module, got {type(model).__name__}")
    folded = nnx.clone(model)
    folded.eval()
    found = norms_before_signs(folded, inputs)
    norms = [norm for _, norm in nnx.iter_modules(folded) if is_foldable(norm)]
    thresholds = {id(norms[place]): _threshold(norms[place], norm) for place, norm in found.items()}
    for _, parent in list(nnx.iter_modules(folded)):
        children: list[tuple[Any, Any]] = list(nnx.iter_children(parent))
        for key, child in children:
            if id(child) not in thresholds:
                continue
            if isinstance(parent, nnx.List):
                parent[key] = thresholds[id(child)]
            else:
                setattr(parent, key, thresholds[id(child)])
    return folded


def _threshold(norm: nnx.BatchNorm, found: Norm) -> Threshold:
    scale = np.ones(norm.num_features) if norm.scale is None else np.asarray(norm.scale[...])
    direction = np.where(scale < 0, -1, 1).astype(np.int8)
    threshold = _smallest(
        lambda u: np.asarray(_is_positive(norm, jnp.asarray(direction.astype(u.dtype) * u))),
        norm.num_features,
        found.in_dtype,
    )
    rounded = np.ceil(np.asarray(threshold, np.float64))
    if found.integers and (np.isinf(rounded) | (np.abs(rounded) < LIMIT)).all():
        threshold = np.clip(rounded, -LIMIT, LIMIT).astype(np.int32)
    return Threshold(threshold, direction, found.out_dtype)


@nnx.jit
def _is_positive(norm: nnx.BatchNorm, x: jax.Array) -> jax.Array:
    return norm(x) >= 0


def _smallest(
    holds: Callable[[np.ndarray], np.ndarray], features: int, dtype: np.dtype
) -> np.ndarray:
    """The smallest number of each feature from which a condition holds; ±∞ for always and never.

    Bisects over the numbers of the dtype, which bit patterns order.
    """
    integer = np.dtype(f"int{8 * dtype.itemsize}")

    def number(rank: np.ndarray) -> np.ndarray:
        magnitude = np.abs(rank).astype(integer).view(dtype)
        return np.where(rank < 0, -magnitude, magnitude)

    infinity = int(np.array(np.inf, dtype).view(integer))
    low, high = np.full(features, -infinity), np.full(features, infinity)
    while (high > low + 1).any():
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, which cannot overflow
        held = holds(number(middle))
        low, high = np.where(held, low, middle), np.where(held, middle, high)
    return number(np.where(high == 1 - infinity, -infinity, high))
