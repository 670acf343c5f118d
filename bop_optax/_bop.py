"""Bop, the Binary Optimizer: Algorithm 2 of Helwegen et al. (2019) as an Optax transform."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from bop_optax._flip import (
    cast,
    check_hyperparameters,
    check_key,
    check_update,
    flip_update,
    increment,
    key_words,
    round_stochastically,
    rounded,
    value_at,
    zero_averages,
)


class BopState(NamedTuple):
    """State of `bop`.

    Attributes:
        count: number of updates so far, int32 scalar; schedules are evaluated at it.
        ema: m, the moving average of the gradients, in `ema_dtype`, in the tree of the parameters.
        rounding: two uint32 words that draw the noise of stochastic rounding; None without it.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    ema: optax.Updates
    rounding: jax.Array | None = None


def bop(
    gamma: ArrayLike | optax.Schedule = 1e-4,
    threshold: ArrayLike | optax.Schedule = 1e-8,
    *,
    ema_dtype: DTypeLike = "float32",
    rounding_key: jax.Array | int | None = None,
    check_weights: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Flips binary weights whose gradient is consistent and strong.

    There are no latent weights. A weight :math:`w \in \{-1, +1\}` flips if the moving average
    :math:`m` of its gradient is stronger than the threshold :math:`\tau` and has the sign of the
    weight. Such a flip lowers the loss:

    .. math::
        m_t &= m_{t-1} + \gamma \, (g_t - m_{t-1}) \\
        w_t &= \begin{cases}
            -w_{t-1} & \text{if } |m_t| > \tau \text{ and }
                       \operatorname{sign}(m_t) = \operatorname{sign}(w_{t-1}) \\
            w_{t-1}  & \text{otherwise}
        \end{cases}

    The comparison is strict, as in the paper's Algorithm 2 and in the authors' code. (Equation 6
    prints :math:`\geq`.) A tie never flips a weight, nor does an average of 0. The average is
    computed in the form above, and each operation is rounded on its own, as in Larq and NumPy.
    Float32 trajectories therefore agree with theirs bit for bit.

    The rule reads signs only. A scaled binary weight :math:`\pm\alpha` flips to :math:`\mp\alpha`,
    if its dtype can hold :math:`2\alpha`. A weight of exactly 0 stays 0.

    **Chain nothing after bop.** Its update is exactly :math:`-2w` or 0. A learning rate or a weight
    decay after `bop` yields weights that are no longer :math:`\pm 1`. A transform before `bop`
    changes the gradient that enters the average, as gradient clipping does.

    **NaN gradients.** One NaN makes the weight's average NaN for ever. A NaN never flips a weight,
    so the weight is frozen, and no error is raised. An infinite gradient leaves an average near the
    largest number of `ema_dtype`. `optax.apply_if_finite(bop(...), max_consecutive_errors)` skips
    such steps and keeps the average.

    **Huge gradients.** A finite gradient can freeze a weight too. A gradient :math:`k` times as
    large as usual outweighs all later ones for about :math:`\ln(\gamma k) / \gamma` steps: 46,000
    steps for :math:`k = 10^6` and :math:`\gamma = 10^{-4}`. During these steps the weight keeps the
    sign that this one gradient asked for. If such gradients can occur, clip them before `bop`:
    ``optax.chain(optax.clip(limit), bop(...))``, with a limit of about a hundred times the usual
    gradient.

    Args:
        gamma: the adaptivity rate :math:`\gamma` in (0, 1]: the new gradient's share in the moving
            average. A number, an Optax schedule, or a traced scalar (for `jax.vmap` over several).
            Typically 1e-5 to 1e-2, decayed during training. Too high: training is noisy, many
            weights flip. Too low: training is slow, the average keeps old gradients.
        threshold: :math:`\tau \geq 0`, in units of the gradient: the average must exceed it to flip
            a weight. A number, an Optax schedule, or a traced scalar. Typically 1e-8 to 1e-6; it
            scales with the loss. Too high: weights stop flipping. Too low (0): weights flip back
            and forth, and the network overfits.
        ema_dtype: floating dtype of :math:`m`, independent of the dtype of the weights. Below
            float32 the average stops moving at small `gamma`: 1 - 1e-4 is 1 in bfloat16. bfloat16
            with a `rounding_key` has no such limit. Give it as a string, such as "bfloat16", under
            `optax.inject_hyperparams`, which calls anything else.
        rounding_key: a key, as from `jax.random.key`, or a seed. With ``ema_dtype=jnp.bfloat16``
            each new average is then computed in float32 and rounded to bfloat16 stochastically: up
            or down at random, so that its expected value is the float32 average. Small steps are
            no longer lost, and the state takes half the memory. The noise depends on the key, the
            step, the array and the position in it (under `jax.shard_map`, the position in the
            device's own shard). None: rounds to nearest. A seed from 2³¹ needs
            `static_args="rounding_key"` under `optax.inject_hyperparams`.
        check_weights: True to refuse in `init` weights that are not −α or +α with one α for each
            output, such as a bias of zeros, where their values are known; see `check_binary`. A
            vector in an NNX variable that is no `BinaryParam` is refused, too, such as BatchNorm's
            scale. False: takes any numbers; a flip changes the sign.

    Returns:
        A transform. Its `update(grads, state, params)` needs `params`. Updates have the shape and
        dtype of their weight: -2w if the weight flips, else 0; `optax.apply_updates` adds them
        exactly. Shapes and dtypes of the state never change.

    Raises:
        ValueError: if a number `gamma` is outside (0, 1], a number `threshold` is negative or NaN
            (values of schedules and arrays are not checked), either is an array that is not a
            scalar, `ema_dtype` is not floating, or `rounding_key` is given and `ema_dtype` is not
            bfloat16; in `init`, for weights that `check_weights` refuses; in `update`, if `params`
            is missing, or a gradient has another shape than its weight.
        TypeError: if `gamma` or `threshold` is no number and no schedule; in `init`, if a parameter
            is not real floating point; in `update`, if a gradient is not.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from bop_optax import bop
        >>> weights = jnp.array([1.0, 1.0, -1.0])
        >>> optimizer = optax.chain(optax.clip(1.0), bop(gamma=0.1, threshold=1e-3))
        >>> state = optimizer.init(weights)
        >>> grads = jnp.array([0.5, -0.5, 0.5])  # only the first has the sign of its weight
        >>> updates, state = optimizer.update(grads, state, weights)
        >>> optax.apply_updates(weights, updates)
        Array([-1.,  1., -1.], dtype=float32)

    References:
        Helwegen, Widdicombe, Geiger, Liu, Cheng, Nusselder. Latent Weights Do Not Exist:
        Rethinking Binarized Neural Network Optimization. NeurIPS 2019, arXiv:1906.02107.
        Section 4, Algorithm 2.

        Gupta, Agrawal, Gopalakrishnan, Narayanan. Deep Learning with Limited Numerical Precision.
        ICML 2015, arXiv:1502.02551. Section 3, stochastic rounding.
    """
    check_hyperparameters(ema_dtype, gamma=gamma, threshold=threshold)
    check_key(rounding_key=rounding_key)
    if rounding_key is not None and jnp.dtype(ema_dtype) != jnp.bfloat16:
        raise ValueError(
            f"rounding_key is for averages in bfloat16, got ema_dtype={jnp.dtype(ema_dtype)}: "
            "give ema_dtype=jnp.bfloat16, or leave rounding_key out"
        )
    dtype = ema_dtype if rounding_key is None else jnp.float32  # of the computation

    def init(params: optax.Params) -> BopState:
        rounding = None if rounding_key is None else key_words(rounding_key)
        return BopState(
            jnp.zeros([], jnp.int32), zero_averages(params, ema_dtype, check_weights), rounding
        )

    def update(
        updates: optax.Updates, state: BopState, params: optax.Params | None = None, **_: object
    ) -> tuple[optax.Updates, BopState]:
        check_update(updates, state, params, BopState)
        rate = value_at(gamma, state.count, dtype)
        tau = value_at(threshold, state.count, dtype)
        grads = cast(updates, dtype)
        ema = jax.tree.map(lambda m, g: m + rounded(rate * (g - m)), cast(state.ema, dtype), grads)
        if state.rounding is not None:
            ema = round_stochastically(ema, state.rounding, state.count)
        flip = jax.tree.map(
            lambda m, w: (jnp.abs(m) > tau) & (jnp.sign(m) == jnp.sign(w).astype(m.dtype)),
            cast(ema, dtype),
            params,
        )
        updates = jax.tree.map(flip_update, flip, params)
        return updates, BopState(increment(state.count), ema, state.rounding)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
