"""Optax transforms for training with latent weights: Algorithm 1, Bop's baseline.

A latent weight is a real number, and its sign is the weight. Any Optax optimizer trains latent
weights. The practice that the paper compares with chains these two transforms after the optimizer,
`scale_by_glorot` first.
"""

import math
from numbers import Real

import jax
import jax.numpy as jnp
import optax

from bop_optax._flip import check_gradients, is_number


def scale_by_glorot() -> optax.GradientTransformation:
    r"""Divides each kernel's update by the kernel's Glorot coefficient ("Xavier scaling").

    .. math::
        u \leftarrow u \Big/ \sqrt{\frac{1.5}{\text{fan in} + \text{fan out}}}

    A large layer of real weights would start with small weights; its latent weights take larger
    steps instead. By Theorem 1 the scaling matters only relative to the initial weights and to
    clipping. Arrays of fewer than two dimensions are not changed.

    Returns:
        A stateless transform; updates keep their shape and dtype. Kernels have the layout of Flax,
        `(*window, in, out)`. Both fans count the window.

    Example:
        >>> updates, _ = scale_by_glorot().update({"kernel": jnp.ones((4, 2))}, optax.EmptyState())
        >>> updates["kernel"][0]  # √(6 / 1.5)
        Array([2., 2.], dtype=float32)

    References:
        Courbariaux, Bengio, David. BinaryConnect. NeurIPS 2015, arXiv:1511.00363, section 2.5.
        The formula is that of the authors' code for Binarized Neural Networks (arXiv:1602.02830).
    """

    def scale(update: jax.Array) -> jax.Array:
        if jnp.ndim(update) < 2:
            return update
        *window, fan_in, fan_out = jnp.shape(update)
        return update * math.sqrt(math.prod(window) * (fan_in + fan_out) / 1.5)

    return optax.stateless(lambda updates, _: jax.tree.map(scale, updates))


def clip_latent(limit: float | jax.Array = 1.0) -> optax.GradientTransformation:
    r"""Keeps latent weights in [−`limit`, `limit`]: a bound on their inertia.

    The magnitude of a latent weight only resists a change of its sign. Clipping bounds this
    resistance, so that old gradients do not count for ever (section 3).

    .. math::
        u \leftarrow \operatorname{clip}(w + u, -\text{limit}, \text{limit}) - w

    Args:
        limit: > 0, in units of the latent weights; 1 in practice. A number or a traced scalar.
            Lower: every weight flips sooner.

    Returns:
        A stateless transform, the last of a chain; its `update` needs `params`. Updates have the
        dtype of their weight. The new weights are in the range up to rounding.

    Raises:
        ValueError: if a number `limit` is not above 0; in `update`, if `params` is missing, or an
            update has another shape than its weight.
        TypeError: if `limit` is no number; in `update`, if an update is not real floating point.

    Example:
        >>> weights = jnp.array([0.5, -0.5])
        >>> updates, _ = clip_latent().update(jnp.array([2.0, 0.1]), optax.EmptyState(), weights)
        >>> optax.apply_updates(weights, updates)
        Array([ 1. , -0.4], dtype=float32)

    References:
        Courbariaux et al. Binarized Neural Networks. 2016, arXiv:1602.02830, algorithm 1.
        Helwegen et al. Latent Weights Do Not Exist. NeurIPS 2019, arXiv:1906.02107, section 3.
    """
    if not is_number(limit) or jnp.shape(limit):
        raise TypeError(f"limit must be a number, got {limit=}; the usual limit is 1.0")
    if isinstance(limit, Real) and not limit > 0:
        raise ValueError(f"limit must be above 0, got {limit=}; the usual limit is 1.0")

    def clip(update: jax.Array, weight: jax.Array) -> jax.Array:
        bound = jnp.asarray(limit, weight.dtype)
        return jnp.clip(weight + update, -bound, bound) - weight

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        if params is None:
            raise ValueError(
                "clip_latent clips weights, but got params=None: call update(grads, state, params)"
            )
        check_gradients(updates, params)
        return jax.tree.map(clip, updates, params)

    return optax.stateless(update)
