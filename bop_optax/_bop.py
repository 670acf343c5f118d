"""Bop, the Binary Optimizer: Algorithm 2 of Helwegen et al. (2019) as an Optax transform."""

import math
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike


class BopState(NamedTuple):
    """State of `bop`.

    Attributes:
        count: number of updates made so far, int32 scalar; what schedules are evaluated at.
        ema: m, the moving average of the gradients, in `ema_dtype`; the parameters' tree.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    ema: optax.Updates


def bop(
    gamma: ArrayLike | optax.Schedule = 1e-4,
    threshold: ArrayLike | optax.Schedule = 1e-8,
    *,
    ema_dtype: DTypeLike = jnp.float32,
) -> optax.GradientTransformationExtraArgs:
    r"""Flips binary weights whose gradient is consistent and strong; does nothing else to them.

    There are no latent weights. A weight :math:`w \in \{-1, +1\}` is flipped when the moving
    average :math:`m` of its gradient points the way of the weight itself (so that a flip lowers
    the loss) and is stronger than the threshold :math:`\tau`:

    .. math::
        m_t &= m_{t-1} + \gamma \, (g_t - m_{t-1}) \\
        w_t &= \begin{cases}
            -w_{t-1} & \text{if } |m_t| > \tau \text{ and }
                       \operatorname{sign}(m_t) = \operatorname{sign}(w_{t-1}) \\
            w_{t-1}  & \text{otherwise}
        \end{cases}

    The comparison is strict, as in the paper's Algorithm 2 and the authors' code (equation 6 prints
    :math:`\geq`): a tie never flips, and a weight whose :math:`m` is 0 never does. The average is
    computed in the form above, each operation rounded by itself as Larq and NumPy round it, so
    that float32 trajectories agree with theirs bit for bit.

    The rule reads signs only. Scaled binary weights :math:`\pm\alpha` therefore flip to
    :math:`\mp\alpha` (as long as their dtype can hold :math:`2\alpha`), and a weight of exactly 0
    stays 0.

    **Put nothing after `bop`.** Its update is exactly :math:`-2w` or 0, and is final: a learning
    rate or a weight decay chained behind it yields weights that are no longer :math:`\pm 1`. What
    comes before it (gradient clipping, for one) changes the gradient that is averaged.

    **NaN gradients.** One NaN makes that weight's :math:`m` NaN for good, and a NaN never flips, so
    the weight is frozen silently. An infinite gradient leaves an :math:`m` so large that it hardly
    ever comes back. `optax.apply_if_finite(bop(...), max_consecutive_errors)` skips such steps and
    leaves :math:`m` as it was.

    Args:
        gamma: :math:`\gamma` in (0, 1], the adaptivity rate: the new gradient's share in the moving
            average. A number, an Optax schedule, or a traced scalar (for `jax.vmap` over several).
            Typically 1e-5 to 1e-2, decayed during training. Too high: noisy, many flips. Too low:
            slow, the average forgets nothing.
        threshold: :math:`\tau \geq 0`, in units of the gradient: how strong the average must be to
            flip a weight. A number, an Optax schedule, or a traced scalar. Typically 1e-8 to 1e-6;
            it scales with the loss. Too high: weights stop flipping. Too low (0): weights flip
            back and forth, and the network overfits.
        ema_dtype: floating dtype of :math:`m`, whatever the weights are. Below float32 the average
            stops moving at small `gamma`: 1 - 1e-4 is 1 in bfloat16. `optax.inject_hyperparams`
            needs `static_args=("ema_dtype",)`.

    Returns:
        A transform whose `update(grads, state, params)` needs `params`, and returns updates in
        the dtype of each weight: -2w where it flips, 0 elsewhere. `optax.apply_updates` is exact
        on them. State dtypes and shapes never change.

    Raises:
        ValueError: a number `gamma` outside (0, 1], or a number `threshold` that is negative or
            NaN, when `bop` is called (schedules and arrays are not checked); an array of either
            that is not a scalar; an `ema_dtype` that is not floating; `update` without `params`.
        TypeError: in `init`, parameters that are not real floating point.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from bop_optax import bop
        >>> weights = jnp.array([1.0, 1.0, -1.0])
        >>> optimizer = bop(gamma=0.1, threshold=1e-3)
        >>> state = optimizer.init(weights)
        >>> grads = jnp.array([0.5, -0.5, 0.5])  # only the first pushes against its weight
        >>> updates, state = optimizer.update(grads, state, weights)
        >>> optax.apply_updates(weights, updates)
        Array([-1.,  1., -1.], dtype=float32)

    References:
        Helwegen, Widdicombe, Geiger, Liu, Cheng, Nusselder. Latent Weights Do Not Exist:
        Rethinking Binarized Neural Network Optimization. NeurIPS 2019, arXiv:1906.02107.
        Section 4, Algorithm 2.
    """
    check_hyperparameters(ema_dtype, gamma=gamma, threshold=threshold)

    def init(params: optax.Params) -> BopState:
        return BopState(jnp.zeros([], jnp.int32), zeros_like(params, ema_dtype))

    def update(
        updates: optax.Updates, state: BopState, params: optax.Params | None = None, **_: object
    ) -> tuple[optax.Updates, BopState]:
        check_given(params)
        rate, tau = at(gamma, state.count, ema_dtype), at(threshold, state.count, ema_dtype)
        ema = jax.tree.map(lambda m, g: averaged(m, g, rate), state.ema, updates)
        updates = jax.tree.map(lambda m, w: flipped(w, m, tau), ema, params)
        return updates, BopState(jnp.asarray(optax.safe_increment(state.count)), ema)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


# ---- What Bop shares with its variants --------------------------------------------------------


def averaged(m: jax.Array, x: ArrayLike, rate: jax.Array) -> jax.Array:
    """The moving average m after x, in the dtype of m."""
    return m + _rounded(rate * (jnp.astype(x, m.dtype) - m))


def flipped(w: ArrayLike, m: jax.Array, tau: ArrayLike) -> jax.Array:
    """The update of w: −2w where m is stronger than τ and points the way of w, else 0."""
    flip = (jnp.abs(m) > tau) & (jnp.sign(m) == jnp.sign(w).astype(m.dtype))
    return jnp.where(flip, -2 * jnp.asarray(w), jnp.zeros_like(w))


def at(value: ArrayLike | optax.Schedule, count: jax.Array, dtype: DTypeLike) -> jax.Array:
    """A hyperparameter at a step."""
    return jnp.asarray(value(count) if callable(value) else value, dtype)


def zeros_like(params: optax.Params, dtype: DTypeLike) -> optax.Updates:
    """A moving average of nothing yet, for parameters that can be flipped."""
    jax.tree_util.tree_map_with_path(_check_parameter, params)
    return jax.tree.map(lambda w: jnp.zeros_like(w, dtype=dtype), params)


def _rounded(x: jax.Array) -> jax.Array:
    """`x`, rounded by itself: a clip that changes no finite number keeps compilers from fusing
    a product and a sum into one multiply-add, whose single rounding Larq and NumPy do not have."""
    largest = jnp.finfo(x.dtype).max
    return jnp.clip(x, -largest, largest)


def check_hyperparameters(
    ema_dtype: DTypeLike, threshold: ArrayLike | optax.Schedule = 0.0, **rates: Any
) -> None:
    for name, rate in rates.items():
        if isinstance(rate, Real) and not 0 < float(rate) <= 1:
            raise ValueError(
                f"{name} must be in (0, 1], got {name}={rate!r}; the paper's γ is 1e-4"
            )
    if isinstance(threshold, Real) and (math.isnan(float(threshold)) or float(threshold) < 0):
        raise ValueError(f"threshold must be ≥ 0, got {threshold=}; Bop's paper has 1e-8")
    for name, value in {"threshold": threshold, **rates}.items():
        shape = () if callable(value) else jnp.shape(value)  # pyright: ignore[reportArgumentType]
        if shape != ():
            raise ValueError(
                f"{name} must be a scalar, got shape {shape}; "
                "to train with several values use jax.vmap"
            )
    if not jnp.issubdtype(ema_dtype, jnp.floating):
        raise ValueError(f"ema_dtype must be a floating dtype, got {ema_dtype}; use jnp.float32")


def check_given(params: optax.Params | None) -> None:
    if params is None:
        raise ValueError(
            "flips are decided by the weights' signs, but got params=None: "
            "call update(grads, state, params)"
        )


def _check_parameter(path: jax.tree_util.KeyPath, w: ArrayLike) -> None:
    dtype = jnp.result_type(w)
    if not jnp.issubdtype(dtype, jnp.floating):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "the parameter"
        raise TypeError(
            f"bop flips real floating-point weights, but {name} is {dtype}: store ±1 as "
            "float32 or bfloat16, or give this parameter another optimizer with optax.partition"
        )
