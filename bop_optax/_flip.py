"""Functions that Bop and its variants share: checks, hyperparameters, rounding, updates."""

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from bop_optax._check_binary import check_weights
from bop_optax._labels import array_of, named_leaves
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
    return jax.random.bits(key if _is_key(key) else jax.random.key(key), (2,), jnp.uint32)


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
    number = value(count) if callable(value) else value
    if not is_number(number) or jnp.shape(number):
        raise TypeError(f"a schedule must return one real number, but {value} returned {number!r}")
    return jnp.asarray(number, dtype)


def cast(tree: optax.Updates, dtype: DTypeLike) -> optax.Updates:
    """Casts every array of a tree."""
    return jax.tree.map(lambda x: jnp.astype(x, dtype), tree)


def zero_averages(params: optax.Params, dtype: DTypeLike, check: bool = False) -> optax.Updates:
    """The moving averages before the first step; checks that the parameters can flip."""
    for name, leaf in named_leaves(params):
        _check_parameter(name or "the parameter", array_of(leaf))
    if check:
        check_weights(params)
    return jax.tree.map(lambda w: jnp.zeros_like(w, dtype=dtype), params)


def increment(count: jax.Array) -> jax.Array:
    """The next step's number; the largest int32 stays as it is."""
    return jnp.asarray(optax.safe_increment(count))


def check_hyperparameters(
    ema_dtype: DTypeLike, threshold: ArrayLike | optax.Schedule = 0.0, **rates: Any
) -> None:
    """Raises an error for numbers out of range, what is no scalar, and dtypes not floating."""
    check_scalars(threshold=threshold, **rates)
    if not is_floating(ema_dtype):
        raise ValueError(f"ema_dtype must be a floating dtype, got {ema_dtype!r}; use jnp.float32")
    for name, rate in rates.items():
        if isinstance(rate, Real) and not 0 < float(rate) <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {name}={rate!r}; for example 1e-4")
    if isinstance(threshold, Real) and (math.isnan(float(threshold)) or float(threshold) < 0):
        raise ValueError(
            f"threshold must be ≥ 0, got {threshold=}; 0 flips at every sign that agrees"
        )
    _check_held(ema_dtype, **rates)


def check_positive(dtype: DTypeLike, **values: Any) -> None:
    """Raises an error for numbers outside (0, inf), of the dtype too, and for what is no scalar."""
    check_scalars(**values)
    for name, value in values.items():
        if isinstance(value, Real) and not 0 < float(value) < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {name}={value!r}; try 1.0")
    _check_held(dtype, **values)


def _check_held(dtype: DTypeLike, **values: Any) -> None:
    """Raises ValueError for numbers above 0 that would be 0 or infinite in a dtype."""
    limits = jnp.finfo(jax.dtypes.canonicalize_dtype(dtype))
    # XLA takes subnormal numbers of float32 and bfloat16 for 0, those of float16 not.
    least = limits.tiny if limits.minexp < -100 else limits.smallest_subnormal
    for name, value in values.items():
        if isinstance(value, Real) and not float(least) <= float(value) <= float(limits.max):
            raise ValueError(
                f"{name} must be in the range of {limits.dtype}, {float(least):.2g} to "
                f"{float(limits.max):.2g}, got {name}={value!r}, which becomes 0 or infinite"
            )


def is_floating(dtype: Any) -> bool:
    """True for a dtype of real floating-point numbers."""
    try:
        return dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    except TypeError:  # no dtype
        return False


def is_number(value: Any) -> bool:
    """True for real numbers and arrays of them, also traced."""
    if hasattr(value, "dtype"):
        return any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.integer, jnp.floating))
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def check_key(**keys: Any) -> None:
    """Raises TypeError for what is no key, no seed and not None."""
    for name, key in keys.items():
        if hasattr(key, "dtype"):
            kinds = (jnp.integer, jax.dtypes.prng_key)
            holds = key.shape == () and any(jnp.issubdtype(key.dtype, kind) for kind in kinds)
        else:
            is_seed = isinstance(key, int) and not isinstance(key, bool)
            holds = key is None or (is_seed and -(2**63) <= key < 2**63)
        if not holds:
            raise TypeError(
                f"{name} must be a key, as jax.random.key(0), or an integer of 64 bits, got "
                f"{name}={key!r}"
            )


def check_scalars(**values: Any) -> None:
    """Raises an error for what is no number and no schedule, and for arrays with a shape."""
    for name, value in values.items():
        if not callable(value) and not is_number(value):
            raise TypeError(f"{name} must be a number or a schedule, got {name}={value!r}")
        shape = getattr(value, "shape", ())
        if shape != ():
            raise ValueError(
                f"{name} must be a scalar, got shape {shape}; "
                "to train with several values use jax.vmap"
            )


def check_update(grads: optax.Updates, state: Any, params: optax.Params | None, kind: type) -> None:
    """Raises an error for `update` without parameters; with gradients or a state of other ones.

    Args:
        grads: the gradients.
        state: its second field is a tree like the parameters.
        params: the parameters.
        kind: class of the state.
    """
    if params is None:
        raise ValueError(
            "a flip depends on the sign of its weight, but got params=None: "
            "call update(grads, state, params)"
        )
    if not isinstance(state, kind):
        raise TypeError(
            f"state must be the {kind.__name__} that init(params) returned, got a "
            f"{type(state).__name__}"
        )
    check_gradients(grads, params)
    for name, m, w in zip_trees("the averages of the state", state[1], "the parameters", params):
        if jnp.shape(m) != jnp.shape(w):
            raise ValueError(
                f"{name} is {jnp.shape(w)} and its average in the state {jnp.shape(m)}: call "
                "init(params) for these parameters"
            )


def check_gradients(grads: optax.Updates, params: optax.Params) -> None:
    """Raises an error for gradients of another tree, shape or kind than the parameters."""
    for name, g, w in zip_trees("the gradients", grads, "the parameters", params):
        if jnp.shape(g) != jnp.shape(w):
            raise ValueError(f"{name} is {jnp.shape(w)} and its gradient {jnp.shape(g)}")
        if not jnp.issubdtype(jnp.result_type(g), jnp.floating):
            raise TypeError(
                f"a gradient is real floating point, but that of {name} is {jnp.result_type(g)}"
            )


def zip_trees(a_name: str, a: Any, b_name: str, b: Any) -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two trees, with their place; ValueError for trees that differ."""
    ours, theirs = ({n or "(an array)": x for n, x in named_leaves(tree)} for tree in (a, b))
    try:
        jax.tree.structure(a).flatten_up_to(b)
        alike = ours.keys() == theirs.keys()
    except ValueError:
        alike = False
    if not alike:
        only = [
            f"{', '.join(sorted(names)[:5])} in {where} alone"
            for names, where in (
                (ours.keys() - theirs.keys(), a_name),
                (theirs.keys() - ours.keys(), b_name),
            )
            if names
        ]
        types = f"{jax.tree.structure(a)} and {jax.tree.structure(b)}"
        raise ValueError(f"{a_name} and {b_name} must be one tree, got {'; '.join(only) or types}")
    for name, x in ours.items():
        yield name.replace("(an array)", "the parameter"), array_of(x), array_of(theirs[name])


def _check_parameter(name: str, w: ArrayLike) -> None:
    dtype = type(w).__name__ if isinstance(w, str | bytes) else jnp.result_type(w)
    if isinstance(dtype, str) or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"bop flips real floating-point weights, but {name} is {dtype}: store ±1 as "
            "float32 or bfloat16, or give this parameter another optimizer with optax.partition"
        )
