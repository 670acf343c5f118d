"""CEMA, two cascaded moving averages: Quist et al. (2023) as an Optax transform."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from bop_optax._flip import (
    cast,
    check_hyperparameters,
    check_update,
    flip_update,
    increment,
    rounded,
    value_at,
    zero_averages,
)


class CemaState(NamedTuple):
    """State of `cema`.

    Attributes:
        count: number of updates so far, int32 scalar; schedules are evaluated at it.
        ema: m, the moving average of the gradients, in `ema_dtype`, in the tree of the parameters.
        ema_of_ema: n, the moving average of m; dtype and tree as `ema`.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    ema: optax.Updates
    ema_of_ema: optax.Updates


def cema(
    gamma: ArrayLike | optax.Schedule = 1e-1,
    alpha: ArrayLike | optax.Schedule = 1e-3,
    *,
    ema_dtype: DTypeLike = "float32",
    check_weights: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Flips binary weights by two cascaded moving averages, without a threshold.

    The first average filters the gradient. The second, slower average filters the first, and a
    weight flips if the second average has its sign:

    .. math::
        m &\leftarrow m + \gamma \, (g - m) \\
        n &\leftarrow n + \alpha \, (m - n) \\
        w &\leftarrow -w \quad \text{if } w \, n > 0

    The second filter replaces Bop's threshold: it prevents a flip by a single noisy gradient. The
    rule reads signs only, so the scale of the gradients does not matter. After the first step every
    weight has the sign that its gradient asks for, and about half of the weights have flipped. Let
    :math:`\alpha` decay to 0 over the training, so that the weights settle:
    ``optax.linear_schedule(alpha, 0.0, steps)``.

    NaN, infinite and huge gradients act as in `bop`.

    Args:
        gamma: :math:`\gamma` in (0, 1], the gradient's share in the first average; 1 does not
            filter. Lower: the average is smoother and later.
        alpha: :math:`\alpha` in (0, 1], the first average's share in the second. Lower: fewer
            flips. A number, an Optax schedule (which may reach 0), or a traced scalar.
        ema_dtype: floating dtype of both averages, as in `bop`.
        check_weights: as in `bop`.

    Returns:
        A transform with the state `CemaState`, two averages a weight; its updates are those
        described at `bop`.

    Raises:
        ValueError: as `bop`, and if a number `alpha` is outside (0, 1].
        TypeError: as `bop`.

    Example:
        >>> weights = jnp.array([1.0, 1.0])
        >>> optimizer = cema(gamma=0.5, alpha=0.5)
        >>> state = optimizer.init(weights)
        >>> for grads in (jnp.array([2.0, -2.0]), jnp.array([-1.0, 1.0])):
        ...     updates, state = optimizer.update(grads, state, weights)
        ...     weights = optax.apply_updates(weights, updates)
        >>> weights  # the second gradient has not turned the averages
        Array([-1.,  1.], dtype=float32)

    References:
        Quist, Li, van Gemert. Understanding weight-magnitude hyperparameters in training binary
        networks. ICLR 2023, arXiv:2303.02452.
    """
    check_hyperparameters(ema_dtype, gamma=gamma, alpha=alpha)

    def init(params: optax.Params) -> CemaState:
        m, n = zero_averages(params, ema_dtype, check_weights), zero_averages(params, ema_dtype)
        return CemaState(jnp.zeros([], jnp.int32), m, n)

    def update(
        updates: optax.Updates, state: CemaState, params: optax.Params | None = None, **_: object
    ) -> tuple[optax.Updates, CemaState]:
        check_update(updates, state, params, CemaState)
        rate = value_at(gamma, state.count, ema_dtype)
        second_rate = value_at(alpha, state.count, ema_dtype)
        grads = cast(updates, ema_dtype)
        ema = jax.tree.map(lambda m, g: m + rounded(rate * (g - m)), state.ema, grads)
        ema_of_ema = jax.tree.map(
            lambda n, m: n + rounded(second_rate * (m - n)), state.ema_of_ema, ema
        )
        flip = jax.tree.map(
            lambda n, w: jnp.sign(n) * jnp.sign(w).astype(n.dtype) > 0, ema_of_ema, params
        )
        updates = jax.tree.map(flip_update, flip, params)
        return updates, CemaState(increment(state.count), ema, ema_of_ema)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
