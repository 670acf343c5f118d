"""BOLD's Boolean optimizer, an accumulator: Nguyen et al. (2024) as an Optax transform."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from bop_optax._flip import (
    cast,
    check_hyperparameters,
    check_positive,
    check_update,
    flip_update,
    increment,
    rounded,
    value_at,
    zero_averages,
)


class BoldState(NamedTuple):
    """State of `bold`.

    Attributes:
        count: number of updates so far, int32 scalar; schedules are evaluated at it.
        accumulator: m, in `ema_dtype`, in the tree of the parameters.
        kept: β of each array of that tree, in the order of its leaves: the share of its weights
            that did not flip in the last step. One vector in `ema_dtype`.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    accumulator: optax.Updates
    kept: jax.Array


def bold(
    eta: ArrayLike | optax.Schedule = 1e3,
    *,
    ema_dtype: DTypeLike = "float32",
    check_weights: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Flips binary weights whose gradients have added up to a fixed amount.

    An accumulator :math:`m` sums up the gradient, scaled by a learning rate :math:`\eta`. A weight
    flips if the sum reaches 1 and has the sign of the weight. The flip resets the sum:

    .. math::
        m &\leftarrow \beta \, m + \eta \, g \\
        w &\leftarrow -w, \; m \leftarrow 0 \quad \text{if } |m| \geq 1 \text{ and }
            \operatorname{sign}(m) = \operatorname{sign}(w) \\
        \beta &\leftarrow 1 - \text{flips} / \text{weights}

    The factor :math:`\beta` belongs to a layer, one array of the parameters' tree. It is the share
    of the layer's weights that did not flip in the step before. While many weights flip, the layer
    forgets old gradients; if none flips, it keeps all. The gradients before a weight's last flip no
    longer count for it.

    The rule is the paper's Algorithm 8, in which weights are 0 or 1. The paper's :math:`q`, the
    variation of the loss by a weight, has the sign of the gradient :math:`g`, which stands here in
    its place. Each operation is rounded on its own, as in NumPy.

    As Bop's threshold, :math:`\eta` is the same for all layers, and layers with larger gradients
    flip more of their weights: above all the first and the last, which are real in the paper.

    **NaN and infinite gradients.** One NaN makes the weight's accumulator NaN for ever, and the
    weight is frozen, as under `bop`. An infinite or huge gradient with the sign of the weight
    flips it, and the reset forgets the gradient. One with the other sign freezes the weight until
    :math:`\beta` has worn it away; if no weight of the layer flips, for ever. If such gradients can
    occur, clip them before `bold`.

    Args:
        eta: the learning rate :math:`\eta > 0`: a gradient that is always :math:`g` flips the
            weight after :math:`1 / (\eta |g|)` steps. A number, an Optax schedule (which may reach
            0), or a traced scalar. Typically 1e2 to 1e4 for a mean loss over the batch; it scales
            inversely with the loss. Decay it during training. Too high: many weights flip. Too low:
            none does.
        ema_dtype: floating dtype of :math:`m` and :math:`\beta`, as in `bop`. Below float32
            :math:`m` no longer adds up small steps, and :math:`\beta` becomes 1 if few flip.
        check_weights: as in `bop`.

    Returns:
        A transform with the state `BoldState`; its updates are those described at `bop`. Under
        `jax.shard_map` :math:`\beta` is that of the device's own shard; under `jax.jit`, that of
        the whole array.

    Raises:
        ValueError: as `bop`, and if a number `eta` is not above 0 and finite.
        TypeError: as `bop`.

    Example:
        >>> weights = jnp.array([1.0, 1.0, -1.0, 1.0])
        >>> optimizer = bold(eta=2.0)
        >>> state = optimizer.init(weights)
        >>> grads = jnp.array([0.5, 0.25, 0.5, 0.0])
        >>> updates, state = optimizer.update(grads, state, weights)
        >>> optax.apply_updates(weights, updates)
        Array([-1.,  1., -1.,  1.], dtype=float32)
        >>> state.accumulator, state.kept  # the flip has reset its sum; three of four stayed
        (Array([0. , 0.5, 1. , 0. ], dtype=float32), Array([0.75], dtype=float32))

    References:
        Nguyen, Ocampo, Askri, Leconte, Tran. BOLD: Boolean Logic Deep Learning. NeurIPS 2024,
        arXiv:2405.16339. Section 3.3 and Algorithm 8.
    """
    check_hyperparameters(ema_dtype)
    check_positive(ema_dtype, eta=eta)

    def init(params: optax.Params) -> BoldState:
        accumulator = zero_averages(params, ema_dtype, check_weights)
        kept = jnp.ones(len(jax.tree.leaves(params)), ema_dtype)
        return BoldState(jnp.zeros([], jnp.int32), accumulator, kept)

    def update(
        updates: optax.Updates, state: BoldState, params: optax.Params | None = None, **_: object
    ) -> tuple[optax.Updates, BoldState]:
        check_update(updates, state, params, BoldState)
        rate = value_at(eta, state.count, ema_dtype)
        grads = cast(updates, ema_dtype)
        beta = jax.tree.structure(grads).unflatten(state.kept)
        sums = jax.tree.map(
            lambda m, g, b: rounded(b * m) + rounded(rate * g), state.accumulator, grads, beta
        )
        flip = jax.tree.map(lambda m, w: m * jnp.sign(w).astype(m.dtype) >= 1, sums, params)
        accumulator = jax.tree.map(lambda m, f: jnp.where(f, 0, m), sums, flip)
        kept = jnp.asarray([share_kept(f) for f in jax.tree.leaves(flip)], ema_dtype)
        updates = jax.tree.map(flip_update, flip, params)
        return updates, BoldState(increment(state.count), accumulator, kept)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def share_kept(flip: jax.Array) -> jax.Array:
    """The share of an array's weights that do not flip; exactly 1 if none does."""
    # XLA divides by a constant as here; the quotient of two equal numbers may then not be 1.
    flips = jnp.count_nonzero(flip).astype(jnp.float32)
    return 1 - rounded(flips * (1 / max(flip.size, 1)))
