"""Bop with a second moment: Suarez-Ramirez et al. (2021) as an Optax transform."""

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


class Bop2ndOrderState(NamedTuple):
    """State of `bop_2nd_order`.

    Attributes:
        count: number of updates so far, int32 scalar; schedules are evaluated at it.
        ema: m, the moving average of the gradients, in `ema_dtype`, in the tree of the parameters.
        ema_sq: v, the moving average of the squared gradients; dtype and tree as `ema`.
        shares: two scalars in `ema_dtype`, the moving averages of 1 at the rates γ and σ: the share
            of gradients in m and in v. The rest is the 0 of the start.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    ema: optax.Updates
    ema_sq: optax.Updates
    shares: tuple[jax.Array, jax.Array]


def bop_2nd_order(
    gamma: ArrayLike | optax.Schedule = 1e-7,
    threshold: ArrayLike | optax.Schedule = 1e-6,
    sigma: ArrayLike | optax.Schedule = 1e-3,
    *,
    unbiased: bool = False,
    ema_dtype: DTypeLike = "float32",
    check_weights: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Flips binary weights whose gradient is consistent, even if it is weak.

    A second moving average follows the squared gradient, as in Adam. The first average is divided
    by its root, so the threshold has no unit:

    .. math::
        m &\leftarrow m + \gamma \, (g - m) \\
        v &\leftarrow v + \sigma \, (g^2 - v) \\
        w &\leftarrow -w \quad \text{if } w \, m / (\sqrt{v} + 10^{-10}) > \tau

    Both averages start at 0. With `unbiased=True` each is divided by the share of gradients in it,
    as in Adam: :math:`1 - (1 - \gamma)^t` and :math:`1 - (1 - \sigma)^t` for constant rates.

    The ratio :math:`|m| / \sqrt{v}` is :math:`\gamma / \sqrt{\sigma}` for every weight at the first
    step, and 1 with `unbiased=True`. After many more than :math:`1 / \gamma` and :math:`1 / \sigma`
    steps, the ratio is about :math:`\sqrt{\gamma / 2}` for a gradient of pure noise and 1 for a
    constant gradient, biased or not. In between, the biased ratio exceeds 1 if
    :math:`\sigma \ll \gamma`.

    The constant :math:`10^{-10}` makes weights flip less if :math:`\sqrt{v}` is near it. Below
    1e-38, the smallest normal float32 number, :math:`\sigma g^2` becomes 0 in :math:`v`.

    Args:
        gamma: the adaptivity rate :math:`\gamma` in (0, 1], as in `bop`. The default 1e-7 is that
            of the authors' code; their best run on CIFAR-10 decays from 1e-2 to 1e-5.
        threshold: :math:`\tau \geq 0`, without unit: the average must exceed this share of
            :math:`\sqrt{v}`. Higher: fewer flips. Choose it together with :math:`\gamma`: a
            threshold below :math:`\gamma / \sqrt{\sigma}` (below 1 with `unbiased=True`) flips half
            of the weights at the first step.
        sigma: :math:`\sigma` in (0, 1], the new squared gradient's share in :math:`v`. Higher:
            :math:`v` adapts faster and is noisier.
        unbiased: True to correct both averages for their start at 0.
        ema_dtype: floating dtype of both averages. Below float32 they stop moving at small rates,
            as in `bop`, and squares leave float16's range (`|g|` above 256 or below about 8e-3).
        check_weights: as in `bop`.

    Returns:
        A transform with the state `Bop2ndOrderState`, two averages a weight; its updates are those
        described at `bop`.

    Raises:
        ValueError: as `bop`, and if a number `sigma` is outside (0, 1].
        TypeError: as `bop`.

    Example:
        >>> weights = jnp.array([1.0, 1.0, -1.0])
        >>> optimizer = bop_2nd_order(gamma=0.1, threshold=1e-3)
        >>> grads = jnp.array([1e-6, -1e-6, 1e-6])
        >>> updates, _ = optimizer.update(grads, optimizer.init(weights), weights)
        >>> optax.apply_updates(weights, updates)
        Array([-1.,  1., -1.], dtype=float32)

    References:
        Suarez-Ramirez, Gonzalez-Mendoza, Chang, Ochoa-Ruiz, Duran-Vega. A Bop and Beyond:
        A Second Order Optimizer for Binarized Neural Networks. CVPR Workshops 2021,
        arXiv:2104.05124.
    """
    check_hyperparameters(ema_dtype, gamma=gamma, threshold=threshold, sigma=sigma)

    def init(params: optax.Params) -> Bop2ndOrderState:
        m, v = zero_averages(params, ema_dtype, check_weights), zero_averages(params, ema_dtype)
        shares = jnp.zeros([], ema_dtype), jnp.zeros([], ema_dtype)
        return Bop2ndOrderState(jnp.zeros([], jnp.int32), m, v, shares)

    def update(
        updates: optax.Updates,
        state: Bop2ndOrderState,
        params: optax.Params | None = None,
        **_: object,
    ) -> tuple[optax.Updates, Bop2ndOrderState]:
        check_update(updates, state, params, Bop2ndOrderState)
        rate = value_at(gamma, state.count, ema_dtype)
        rate_sq = value_at(sigma, state.count, ema_dtype)
        tau = value_at(threshold, state.count, ema_dtype)
        grads = cast(updates, ema_dtype)
        ema = jax.tree.map(lambda m, g: m + rounded(rate * (g - m)), state.ema, grads)
        ema_sq = jax.tree.map(
            lambda v, g: v + rounded(rate_sq * (jnp.square(g) - v)), state.ema_sq, grads
        )
        share, share_sq = (
            c + rounded(r * (1 - c)) for c, r in zip(state.shares, (rate, rate_sq), strict=True)
        )
        by, by_sq = (share, share_sq) if unbiased else (1, 1)
        ratio = jax.tree.map(lambda m, v: (m / by) / (jnp.sqrt(v / by_sq) + 1e-10), ema, ema_sq)
        flip = jax.tree.map(
            lambda r, w: (jnp.abs(r) > tau) & (jnp.sign(r) == jnp.sign(w).astype(r.dtype)),
            ratio,
            params,
        )
        updates = jax.tree.map(flip_update, flip, params)
        count = increment(state.count)
        return updates, Bop2ndOrderState(count, ema, ema_sq, (share, share_sq))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
