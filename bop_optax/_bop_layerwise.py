"""Bop with a threshold relative to each layer: section 6 of Helwegen et al. (2019)."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from bop_optax._bop import BopState
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


def bop_layerwise(
    gamma: ArrayLike | optax.Schedule = 1e-4,
    threshold: ArrayLike | optax.Schedule = 1.0,
    *,
    ema_dtype: DTypeLike = "float32",
    check_weights: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Flips binary weights whose gradient is consistent and strong for their layer.

    Bop's threshold is in units of the gradient and the same for all layers, but the gradients of
    layers differ by orders of magnitude. The paper observes that "some layers are noisy and other
    layers barely train at all". Here the threshold is relative to the root mean square (RMS) of the
    averages :math:`m` of a layer. A scaled loss or a scaled layer flips the same weights:

    .. math::
        m &\leftarrow m + \gamma \, (g - m) \\
        w &\leftarrow -w \quad \text{if } |m| > \tau \operatorname{rms}_\text{layer}(m)
            \text{ and } \operatorname{sign}(m) = \operatorname{sign}(w)

    A layer is one array of the parameters' tree. At :math:`\tau < 1` some averages of every layer
    exceed the threshold at all times, however small its gradients are (down to 1e-37, the end of
    float32). Weights therefore keep flipping as the loss falls; decay :math:`\gamma` to make
    training less noisy. The RMS is rounded: if all averages of a layer are equal, rounding may
    decide the tie at :math:`\tau = 1`.

    **NaN and infinite gradients.** One NaN makes the RMS of its layer NaN, and no weight of the
    layer flips again. An infinite gradient makes the RMS so large that hardly any weight flips.
    `optax.apply_if_finite(bop_layerwise(...), max_consecutive_errors)` skips such steps. A finite
    but huge gradient acts like an infinite one until the average forgets it; clip gradients if
    such gradients can occur, as for `bop`.

    Args:
        gamma: the adaptivity rate :math:`\gamma` in (0, 1], as in `bop`.
        threshold: :math:`\tau \geq 0`, in multiples of the layer's RMS; typically 0.3 to 2. A
            number, an Optax schedule, or a traced scalar. Too high: few weights ever flip (32 % of
            normally distributed averages exceed 1, 5 % exceed 2). 0: the rule is that of `bop` at
            τ = 0.
        ema_dtype: floating dtype of :math:`m`, as in `bop`.
        check_weights: as in `bop`.

    Returns:
        A transform with the state `BopState`; its updates are those described at `bop`. Under
        `jax.shard_map` the RMS is that of the device's own shard; under `jax.jit`, that of the
        whole array.

    Raises:
        ValueError: as `bop`.
        TypeError: as `bop`.

    Example:
        >>> weights = {"weak": jnp.ones(3), "strong": jnp.ones(3)}
        >>> grads = {"weak": jnp.array([1e-9, 1e-9, 4e-9]), "strong": jnp.array([1.0, 1.0, 4.0])}
        >>> optimizer = bop_layerwise(gamma=0.1, threshold=1.0)
        >>> updates, _ = optimizer.update(grads, optimizer.init(weights), weights)
        >>> updates["weak"], updates["strong"]
        (Array([ 0.,  0., -2.], dtype=float32), Array([ 0.,  0., -2.], dtype=float32))

    References:
        Helwegen et al. Latent Weights Do Not Exist. NeurIPS 2019, arXiv:1906.02107, section 6
        ("layer-wise normalization of the exponential moving averages").
    """
    check_hyperparameters(ema_dtype, gamma=gamma, threshold=threshold)

    def init(params: optax.Params) -> BopState:
        return BopState(jnp.zeros([], jnp.int32), zero_averages(params, ema_dtype, check_weights))

    def update(
        updates: optax.Updates, state: BopState, params: optax.Params | None = None, **_: object
    ) -> tuple[optax.Updates, BopState]:
        check_update(updates, state, params, BopState)
        rate = value_at(gamma, state.count, ema_dtype)
        tau = value_at(threshold, state.count, ema_dtype)
        grads = cast(updates, ema_dtype)
        ema = jax.tree.map(lambda m, g: m + rounded(rate * (g - m)), state.ema, grads)
        flip = jax.tree.map(
            lambda m, w: (jnp.abs(m) > tau * rms(m)) & (jnp.sign(m) == jnp.sign(w).astype(m.dtype)),
            ema,
            params,
        )
        updates = jax.tree.map(flip_update, flip, params)
        return updates, BopState(increment(state.count), ema)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def rms(m: jax.Array) -> jax.Array:
    """Root mean square; also of numbers with squares beyond the range of their dtype."""
    limits = jnp.finfo(m.dtype)
    # Within these bounds neither 1 / scale nor the square of m / scale leaves the dtype's range.
    scale = jnp.clip(jnp.max(jnp.abs(m), initial=0), limits.tiny, float(limits.max) ** 0.75)
    return scale * jnp.sqrt(jnp.mean(jnp.square(m / scale)))
