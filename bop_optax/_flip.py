"""Functions that Bop and its variants share: checks, hyperparameters, rounding, updates."""

import math
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from bop_optax._check_binary import check_weights
from bop_optax._noise import noise


def rounded(x: jax.Array) -> jax.Array:
    """Rounds a product before it is added to something; changes no finite number.

    Without this clip XLA computes m + γ(g − m) as a fused multiply-add, which rounds once. Larq and
    NumPy round twice.
    """
    largest = jnp.finfo(x.dtype).max
    return jnp.clip(x, -largest, largest)


def flip_update(flip: jax.Array, w: ArrayLike) -> jax.Array:
    """The update of a weight, in its own dtype: −2w if it flips, else 0."""
    return jnp.where(flip, -2 * jnp.asarray(w), jnp.zeros_like(w))


def key_words(key: ArrayLike) -> jax.Array:
    """Two uint32 words drawn from a key or a seed: what a state keeps of it."""
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.bits(key if typed else jax.random.key(key), (2,), jnp.uint32)


def noise_seeds(tree: optax.Updates, words: jax.Array, count: jax.Array) -> optax.Updates:
    """Two words for the noise of each array of a tree, other ones in each step."""
    treedef = jax.tree.structure(tree)
    step_key = jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), count)
    return treedef.unflatten(jax.random.bits(step_key, (treedef.num_leaves, 2), jnp.uint32))


def round_stochastically(tree: optax.Updates, words: jax.Array, count: jax.Array) -> optax.Updates:
    """Rounds float32 to bfloat16, up or down at random, so that the expected value is exact."""
    return jax.tree.map(_round_array, tree, noise_seeds(tree, words, count))


def _round_array(x: jax.Array, seeds: jax.Array) -> jax.Array:
    """Adds 16 random bits below the last bit of bfloat16 and clears the bits there."""
    largest = float(jnp.finfo(jnp.bfloat16).max)
    bits = jax.lax.bitcast_convert_type(jnp.clip(x, -largest, largest), jnp.uint32)
    bits = (bits + (noise(x.shape, seeds) >> 16)) & jnp.uint32(0xFFFF0000)
    # The NaN is selected in float32: XLA would otherwise compute all this once more for the flips.
    y = jnp.where(jnp.isnan(x), x, jax.lax.bitcast_convert_type(bits, jnp.float32))
    return y.astype(jnp.bfloat16)  # exact


def value_at(value: ArrayLike | optax.Schedule, count: jax.Array, dtype: DTypeLike) -> jax.Array:
    """A hyperparameter at a step."""
    return jnp.asarray(value(count) if callable(value) else value, dtype)


def cast(tree: optax.Updates, dtype: DTypeLike) -> optax.Updates:
    """Casts every array of a tree."""
    return jax.tree.map(lambda x: jnp.astype(x, dtype), tree)


def zero_averages(params: optax.Params, dtype: DTypeLike, check: bool = False) -> optax.Updates:
    """The moving averages before the first step; checks that the parameters can flip."""
    jax.tree_util.tree_map_with_path(_check_parameter, params)
    if check:
        check_weights(params)
    return jax.tree.map(lambda w: jnp.zeros_like(w, dtype=dtype), params)


def increment(count: jax.Array) -> jax.Array:
    """The next step's number; the largest int32 stays as it is."""
    return jnp.asarray(optax.safe_increment(count))


def check_hyperparameters(
    ema_dtype: DTypeLike, threshold: ArrayLike | optax.Schedule = 0.0, **rates: Any
) -> None:
    """Raises ValueError for numbers out of range, arrays that are not scalars, integer dtypes."""
    for name, rate in rates.items():
        if isinstance(rate, Real) and not 0 < float(rate) <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {name}={rate!r}; for example 1e-4")
    if isinstance(threshold, Real) and (math.isnan(float(threshold)) or float(threshold) < 0):
        raise ValueError(f"threshold must be ≥ 0, got {threshold=}; bop's default is 1e-8")
    _check_scalars(threshold=threshold, **rates)
    if not jnp.issubdtype(ema_dtype, jnp.floating):
        raise ValueError(f"ema_dtype must be a floating dtype, got {ema_dtype}; use jnp.float32")


def check_positive(**values: Any) -> None:
    """Raises ValueError for numbers outside (0, inf) and for arrays that are not scalars."""
    for name, value in values.items():
        if isinstance(value, Real) and not 0 < float(value) < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {name}={value!r}; try 1.0")
    _check_scalars(**values)


def _check_scalars(**values: Any) -> None:
    for name, value in values.items():
        if not (callable(value) or isinstance(value, Real) or hasattr(value, "dtype")):
            raise TypeError(f"{name} must be a number or a schedule, got {name}={value!r}")
        shape = getattr(value, "shape", ())
        if shape != ():
            raise ValueError(
                f"{name} must be a scalar, got shape {shape}; "
                "to train with several values use jax.vmap"
            )


def check_update(grads: optax.Updates, params: optax.Params | None) -> None:
    """Raises an error for `update` without parameters, or with gradients of other ones."""
    if params is None:
        raise ValueError(
            "a flip depends on the sign of its weight, but got params=None: "
            "call update(grads, state, params)"
        )
    jax.tree_util.tree_map_with_path(_check_gradient, grads, params)


def _check_gradient(path: jax.tree_util.KeyPath, g: ArrayLike, w: ArrayLike) -> None:
    if jnp.shape(g) != jnp.shape(w):
        name = _name(path)
        raise ValueError(f"{name} is {jnp.shape(w)} and its gradient {jnp.shape(g)}")
    if not jnp.issubdtype(jnp.result_type(g), jnp.floating):
        raise TypeError(
            f"a gradient is real floating point, but that of {_name(path)} is {jnp.result_type(g)}"
        )


def _check_parameter(path: jax.tree_util.KeyPath, w: ArrayLike) -> None:
    dtype = jnp.result_type(w)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"bop flips real floating-point weights, but {_name(path)} is {dtype}: store ±1 as "
            "float32 or bfloat16, or give this parameter another optimizer with optax.partition"
        )


def _name(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "the parameter"
