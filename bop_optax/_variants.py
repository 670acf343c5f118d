"""Variants of Bop: what section 6 of Helwegen et al. (2019) leaves open, as Optax transforms.

Each keeps Bop's conventions: strict comparisons, no flip on a tie or at 0, updates of exactly −2w
or 0 behind which nothing may be chained, averages in `ema_dtype` whatever the weights are. They
differ from `bop`, and from each other, in what the flip is decided by.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from bop_optax._bop import (
    BopState,
    at,
    averaged,
    check_given,
    check_hyperparameters,
    flipped,
    zeros_like,
)


def bop_layerwise(
    gamma: ArrayLike | optax.Schedule = 1e-4,
    threshold: ArrayLike | optax.Schedule = 1.0,
    *,
    ema_dtype: DTypeLike = jnp.float32,
) -> optax.GradientTransformationExtraArgs:
    r"""Bop with a threshold relative to each layer: flips what is strong among its neighbours.

    Bop's threshold is in units of the gradient, the same for all layers, though their gradients
    differ by orders of magnitude: "some layers are noisy and other layers barely train at all".
    Here the average :math:`m` of a weight is compared with the root mean square (RMS) of the
    averages of its layer, so that no scale of the loss or of a layer changes a flip:

    .. math::
        m &\leftarrow m + \gamma \, (g - m) \\
        w &\leftarrow -w \quad \text{if } |m| > \tau \operatorname{rms}_\text{layer}(m)
            \text{ and } \operatorname{sign}(m) = \operatorname{sign}(w)

    A layer is one array of the parameters' tree. Each has weights above its own RMS at all times,
    however small its gradients are (down to 1e-37, where float32 ends): it is :math:`\gamma` that
    calms training down. The RMS is rounded, so that where all averages of a layer are equal, at
    τ = 1, it may turn the tie.

    **NaN and infinite gradients.** One NaN makes the layer's RMS NaN, and no weight of it flips
    again; an infinite one makes it so large that hardly any does. Where they may come,
    `optax.apply_if_finite(bop_layerwise(...), max_consecutive_errors)`.

    Args:
        gamma: :math:`\gamma` in (0, 1], the adaptivity rate, as in `bop`.
        threshold: :math:`\tau \geq 0`, in multiples of the layer's RMS, of the order of 1. A
            number, an Optax schedule, or a traced scalar. Too high: few weights ever flip (of a
            normal distribution, 32 % lie beyond 1, 5 % beyond 2). 0: as `bop` at τ = 0.
        ema_dtype: floating dtype of :math:`m`.

    Returns:
        A transform with `BopState`; as that of `bop` in all else. Under `jax.shard_map` the RMS is
        of the shard that it sees; under `jax.jit`, of the whole array.

    Raises:
        ValueError, TypeError: as `bop`.

    Example:
        >>> weights = {"weak": jnp.ones(3), "strong": jnp.ones(3)}
        >>> grads = {"weak": jnp.array([1e-9, 1e-9, 4e-9]), "strong": jnp.array([1.0, 1.0, 4.0])}
        >>> optimizer = bop_layerwise(gamma=0.1, threshold=1.0)
        >>> updates, _ = optimizer.update(grads, optimizer.init(weights), weights)
        >>> updates["weak"], updates["strong"]
        (Array([ 0.,  0., -2.], dtype=float32), Array([ 0.,  0., -2.], dtype=float32))

    References:
        Helwegen et al. Latent Weights Do Not Exist. 2019, arXiv:1906.02107, section 6 ("layer-wise
        normalization of the exponential moving averages").
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
        updates = jax.tree.map(lambda m, w: flipped(w, m, tau * rms(m)), ema, params)
        return updates, BopState(jnp.asarray(optax.safe_increment(state.count)), ema)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def rms(m: jax.Array) -> jax.Array:
    """Root mean square, also of numbers whose squares the dtype could not hold."""
    limits = jnp.finfo(m.dtype)
    # Within these bounds neither 1 / scale nor the square of m / scale leaves the dtype's range.
    scale = jnp.clip(jnp.max(jnp.abs(m), initial=0), limits.tiny, float(limits.max) ** 0.75)
    return scale * jnp.sqrt(jnp.mean(jnp.square(m / scale)))


class Bop2ndOrderState(NamedTuple):
    """State of `bop_2nd_order`.

    Attributes:
        count: number of updates made so far, int32 scalar.
        ema: m, the moving average of the gradients, in `ema_dtype`; the parameters' tree.
        ema_sq: v, the moving average of their squares; the same.
        shares: the moving averages of 1 in place of g and of g²: how much of m and of v is
            gradients, and not the 0 that they began with.
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
    ema_dtype: DTypeLike = jnp.float32,
) -> optax.GradientTransformationExtraArgs:
    r"""Bop with each weight's own scale: flips what is consistent, though its gradient be weak.

    A second moving average follows the squared gradient, as in Adam, and the average is measured
    against it, so that the threshold is free of units:

    .. math::
        m &\leftarrow m + \gamma \, (g - m) \\
        v &\leftarrow v + \sigma \, (g^2 - v) \\
        w &\leftarrow -w \quad \text{if } w \, m / (\sqrt{v} + 10^{-10}) > \tau

    Both averages begin at 0. With `unbiased` each is divided by the share that gradients have in it
    so far, :math:`1 - (1 - \gamma)^t` and :math:`1 - (1 - \sigma)^t` where these are constant, as
    in Adam; :math:`|m| / \sqrt{v}` is then 1 for every weight at the first step. Without, it is
    :math:`\gamma / \sqrt{\sigma}` there. After many more than :math:`1 / \gamma` and
    :math:`1 / \sigma` steps, both are about :math:`\sqrt{\gamma / 2}` where the gradient is noise
    and 1 where it is constant; on the way the biased ratio passes 1 where
    :math:`\sigma \ll \gamma`.

    Gradients so weak that :math:`\sqrt{v}` comes near 1e-10 flip less, and those whose
    :math:`\sigma g^2` is below float32's least normal number, 1e-38, make :math:`v` 0.

    Args:
        gamma: :math:`\gamma` in (0, 1], the adaptivity rate, as in `bop`. The authors' code has
            1e-7 by default, and goes from 1e-2 to 1e-5 for its best run on CIFAR-10.
        threshold: :math:`\tau \geq 0`, without units: the share of :math:`\sqrt{v}` that the
            average must exceed. Higher flips less; to be chosen with :math:`\gamma`. The ratio is
            :math:`\gamma / \sqrt{\sigma}` for all weights at the first step, 1 with `unbiased`:
            a threshold below it flips half of them at once.
        sigma: :math:`\sigma` in (0, 1], the new squared gradient's share in :math:`v`. Higher
            adapts faster and is noisier.
        unbiased: correct both averages for their start at 0.
        ema_dtype: floating dtype of both averages. Below float32 they stop moving at small rates,
            as in `bop`, and squares leave float16's range (g above 256, or below about 8e-3).

    Returns:
        A transform with `Bop2ndOrderState`, two averages a weight; as that of `bop` in all else.

    Raises:
        ValueError, TypeError: as `bop`; for a number `sigma` outside (0, 1].

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
        m, v = zeros_like(params, ema_dtype), zeros_like(params, ema_dtype)
        shares = jnp.zeros([], ema_dtype), jnp.zeros([], ema_dtype)
        return Bop2ndOrderState(jnp.zeros([], jnp.int32), m, v, shares)

    def update(
        updates: optax.Updates,
        state: Bop2ndOrderState,
        params: optax.Params | None = None,
        **_: object,
    ) -> tuple[optax.Updates, Bop2ndOrderState]:
        check_given(params)
        rate, tau = at(gamma, state.count, ema_dtype), at(threshold, state.count, ema_dtype)
        rate_sq = at(sigma, state.count, ema_dtype)
        grads = jax.tree.map(lambda g: jnp.astype(g, ema_dtype), updates)
        ema = jax.tree.map(lambda m, g: averaged(m, g, rate), state.ema, grads)
        ema_sq = jax.tree.map(lambda v, g: averaged(v, jnp.square(g), rate_sq), state.ema_sq, grads)
        one = jnp.ones([], ema_dtype)
        shares = averaged(state.shares[0], one, rate), averaged(state.shares[1], one, rate_sq)
        by, by_sq = shares if unbiased else (one, one)
        signal = jax.tree.map(lambda m, v: (m / by) / (jnp.sqrt(v / by_sq) + 1e-10), ema, ema_sq)
        updates = jax.tree.map(lambda s, w: flipped(w, s, tau), signal, params)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, Bop2ndOrderState(count, ema, ema_sq, shares)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


class CemaState(NamedTuple):
    """State of `cema`.

    Attributes:
        count: number of updates made so far, int32 scalar; what schedules are evaluated at.
        ema: m, the moving average of the gradients, in `ema_dtype`; the parameters' tree.
        ema_of_ema: n, the moving average of m; the same.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    ema: optax.Updates
    ema_of_ema: optax.Updates


def cema(
    gamma: ArrayLike | optax.Schedule = 1e-1,
    alpha: ArrayLike | optax.Schedule = 1e-3,
    *,
    ema_dtype: DTypeLike = jnp.float32,
) -> optax.GradientTransformationExtraArgs:
    r"""Flips by two cascaded moving averages and no threshold (CEMA).

    The first filters the gradient, the second, slower one filters the first; a weight follows the
    sign of the second:

    .. math::
        m &\leftarrow m + \gamma \, (g - m) \\
        n &\leftarrow n + \alpha \, (m - n) \\
        w &\leftarrow -w \quad \text{if } w \, n > 0

    What a threshold does in `bop`, the second filter does here: it keeps one noisy gradient from
    flipping a weight. Only signs are read, so that no scale of the gradients matters, which leaves
    two hyperparameters of one meaning each. After the first step every weight already has the sign
    that its gradient asks for, about half of them flipped. Let :math:`\alpha` fall to 0 over the
    training, and the weights settle: ``optax.linear_schedule(alpha, 0.0, steps)``.

    Args:
        gamma: :math:`\gamma` in (0, 1], the gradient's share in the first average; 1 does not
            filter. Lower: smoother, and later.
        alpha: :math:`\alpha` in (0, 1], the first average's share in the second. Lower: fewer
            flips. A number, an Optax schedule, which may reach 0, or a traced scalar.
        ema_dtype: floating dtype of both averages.

    Returns:
        A transform with `CemaState`, two averages a weight; as that of `bop` in all else.

    Raises:
        ValueError, TypeError: as `bop`; for a number `alpha` outside (0, 1].

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
        m, n = zeros_like(params, ema_dtype), zeros_like(params, ema_dtype)
        return CemaState(jnp.zeros([], jnp.int32), m, n)

    def update(
        updates: optax.Updates, state: CemaState, params: optax.Params | None = None, **_: object
    ) -> tuple[optax.Updates, CemaState]:
        check_given(params)
        rate, second = at(gamma, state.count, ema_dtype), at(alpha, state.count, ema_dtype)
        ema = jax.tree.map(lambda m, g: averaged(m, g, rate), state.ema, updates)
        slow = jax.tree.map(lambda n, m: averaged(n, m, second), state.ema_of_ema, ema)
        updates = jax.tree.map(lambda n, w: flipped(w, n, 0), slow, params)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, CemaState(count, ema, slow)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
