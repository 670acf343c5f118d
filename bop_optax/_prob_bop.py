"""Bop with a random threshold that grows with each flip: He et al. (2025) as an Optax transform."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from bop_optax._flip import (
    cast,
    check_hyperparameters,
    check_key,
    check_positive,
    check_update,
    flip_update,
    increment,
    key_words,
    noise_seeds,
    rounded,
    value_at,
    zero_averages,
)
from bop_optax._noise import exponential


class ProbBopState(NamedTuple):
    """State of `prob_bop`.

    Attributes:
        count: number of updates so far, int32 scalar; schedules are evaluated at it.
        ema: m, the moving average of the gradients, in `ema_dtype`, in the tree of the parameters.
        flips: number of flips of each weight so far, int32, in the tree of the parameters.
        noise: two uint32 words that draw the random thresholds.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    ema: optax.Updates
    flips: optax.Updates
    noise: jax.Array


def prob_bop(
    gamma: ArrayLike | optax.Schedule = 1e-4,
    threshold: ArrayLike | optax.Schedule = 1e-8,
    alpha: ArrayLike | optax.Schedule = 0.5,
    epoch: ArrayLike | optax.Schedule = 1.0,
    *,
    key: jax.Array | int | None = None,
    ema_dtype: DTypeLike = "float32",
    check_weights: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Flips binary weights as Bop does, by a random threshold that rises with each flip.

    If an average is near the threshold, noise decides whether its weight flips. Here such a weight
    flips with a probability. A weight that has flipped :math:`n` times needs an average
    :math:`n + 1` times as strong as a weight that never flipped:

    .. math::
        m &\leftarrow m + \gamma \, (g - m), \qquad
        s = \frac{|m|}{\tau \, (n + 1)}, \qquad
        \lambda = 1 - \alpha^e / 2 \\
        P(\text{flip}) &= \begin{cases}
            0 & \text{if } s \leq \lambda
                \text{ or } \operatorname{sign}(m) \neq \operatorname{sign}(w) \\
            1 - \exp(-s / e) & \text{if } \lambda < s \leq 1 / \lambda \\
            1 & \text{if } s > 1 / \lambda
        \end{cases}

    The band of random flips narrows with the epoch :math:`e`. At :math:`\alpha = 0.5` it is
    :math:`0.75 \ldots 1.33` in the first epoch, :math:`0.97 \ldots 1.03` in the fourth, and gone
    after ten. What remains is Bop with the threshold :math:`\tau \, (n + 1)`.

    **What is published, and what is our reading.** The paper's abstract names the Bernoulli draw
    from the accumulated gradient, and fewer flips for weights that flip often. The formulas are
    those of the authors' code, github.com/snowloving/SnowLab2ProbBop, with a `formula` other than 0
    (0 leaves out :math:`n` and the division by :math:`e`). We have not seen the paper's text. In
    the code :math:`e` never exceeds 2, because a counter of steps does not restart. We take this
    for an oversight: a schedule `epoch` counts on. At :math:`s = 1 / \lambda` the code never flips.

    NaN, infinite and huge gradients act as in `bop`.

    Args:
        gamma: the adaptivity rate :math:`\gamma` in (0, 1], as in `bop`.
        threshold: :math:`\tau \geq 0`, in units of the gradient, as in `bop`. As the thresholds
            of weights rise with their flips, it can be lower than Bop's.
        alpha: :math:`\alpha` in (0, 1], the base of the band's width. Higher: the band is wider
            and narrows more slowly. Near 0: no band.
        epoch: :math:`e > 0`, the number of the epoch, from 1. A number, a traced scalar, or a
            schedule: ``lambda count: 1 + count // steps_per_epoch``. A number leaves the band as it
            is.
        key: a key, as from `jax.random.key`, or a seed. The draws depend on the key, the step, the
            array and the position in it (under `jax.shard_map`, the position in the device's own
            shard). None: the seed 0. A seed from 2³¹ needs `static_args="key"`
            under `optax.inject_hyperparams`.
        ema_dtype: floating dtype of :math:`m`, as in `bop`.
        check_weights: as in `bop`.

    Returns:
        A transform with the state `ProbBopState`, an average and a count of flips a weight; its
        updates are those described at `bop`.

    Raises:
        ValueError: as `bop`, if a number `alpha` is outside (0, 1], and if a number `epoch` is not
            above 0 and finite.
        TypeError: as `bop`.

    Example:
        >>> weights = jnp.ones(5)
        >>> optimizer = prob_bop(gamma=0.5, threshold=0.5)
        >>> grads = jnp.array([0.7, 0.9, 1.1, 1.3, 1.5])  # s is 0.7 to 1.5; the band, 0.75 to 1.33
        >>> updates, state = optimizer.update(grads, optimizer.init(weights), weights)
        >>> optax.apply_updates(weights, updates)
        Array([ 1., -1., -1.,  1., -1.], dtype=float32)
        >>> state.flips
        Array([0, 1, 1, 0, 1], dtype=int32)

    References:
        He, Geng, Zhang, Yu, Wu, Yu, Zhao. A probabilistic optimizer for binary neural networks.
        Neurocomputing 648:130297, 2025.
    """
    check_hyperparameters(ema_dtype, gamma=gamma, threshold=threshold, alpha=alpha)
    check_positive(ema_dtype, epoch=epoch)
    check_key(key=key)

    def init(params: optax.Params) -> ProbBopState:
        ema = zero_averages(params, ema_dtype, check_weights)
        flips = zero_averages(params, jnp.int32)
        words = key_words(0 if key is None else key)
        return ProbBopState(jnp.zeros([], jnp.int32), ema, flips, words)

    def update(
        updates: optax.Updates, state: ProbBopState, params: optax.Params | None = None, **_: object
    ) -> tuple[optax.Updates, ProbBopState]:
        check_update(updates, state, params, ProbBopState)
        rate = value_at(gamma, state.count, ema_dtype)
        tau = value_at(threshold, state.count, ema_dtype)
        e = value_at(epoch, state.count, ema_dtype)
        low = 1 - value_at(alpha, state.count, ema_dtype) ** e / 2
        grads = cast(updates, ema_dtype)
        ema = jax.tree.map(lambda m, g: m + rounded(rate * (g - m)), state.ema, grads)
        seeds = noise_seeds(ema, state.noise, state.count)
        factor = jax.tree.map(lambda m, words: random_factor(m, words, e, low), ema, seeds)
        flip = jax.tree.map(
            lambda m, w, n, z: (
                (jnp.abs(m) > tau * (n + 1).astype(m.dtype) * z)
                & (jnp.sign(m) == jnp.sign(w).astype(m.dtype))
            ),
            ema,
            params,
            state.flips,
            factor,
        )
        flips = jax.tree.map(lambda n, f: n + f.astype(n.dtype), state.flips, flip)
        updates = jax.tree.map(flip_update, flip, params)
        return updates, ProbBopState(increment(state.count), ema, flips, state.noise)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def random_factor(m: jax.Array, seeds: jax.Array, e: jax.Array, low: jax.Array) -> jax.Array:
    """A factor z of each threshold; in the band s exceeds it with probability 1 − exp(−s / e)."""
    return jnp.clip(e * exponential(m.shape, seeds).astype(m.dtype), low, 1 / low)
