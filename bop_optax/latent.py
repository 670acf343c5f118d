"""What training with latent weights adds to an Optax optimizer: Algorithm 1, Bop's baseline.

Latent weights are real numbers behind a sign. Any Optax optimizer trains them; the practice that
the paper compares with puts these two transforms behind it, in this order.
"""

import math
from numbers import Real

import jax
import jax.numpy as jnp
import optax


def scale_by_glorot() -> optax.GradientTransformation:
    r"""Scales each kernel's update by the inverse of its Glorot coefficient ("Xavier scaling").

    .. math::
        u \leftarrow u \Big/ \sqrt{\frac{1.5}{\text{fan in} + \text{fan out}}}

    so that large layers, whose real-valued counterparts would start with small weights, take
    larger steps. Arrays of fewer than two dimensions pass unchanged. By Theorem 1 this matters only
    relative to the initial weights and to clipping.

    Returns:
        A stateless transform. Kernels are laid out as in Flax: (*window, in, out); both fans
        count the window.

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
    r"""Keeps latent weights in [−`limit`, `limit`]: a ceiling on the inertia they gather.

    A weight's magnitude does nothing but resist a change of its sign. Clipping bounds that
    resistance, so that old gradients do not weigh for ever (section 3).

    .. math::
        u \leftarrow \operatorname{clip}(w + u, -\text{limit}, \text{limit}) - w

    Args:
        limit: > 0, 1 in practice; a number or a traced scalar. Lower makes every weight quicker
            to flip.

    Returns:
        A stateless transform, the last of a chain; `update` needs `params`. Weights end in the
        range to within rounding.

    Raises:
        ValueError: for a number `limit` that is not above 0, and in `update` without `params`.

    Example:
        >>> weights = jnp.array([0.5, -0.5])
        >>> updates, _ = clip_latent().update(jnp.array([2.0, 0.1]), optax.EmptyState(), weights)
        >>> optax.apply_updates(weights, updates)
        Array([ 1. , -0.4], dtype=float32)

    References:
        Courbariaux et al. Binarized Neural Networks. 2016, arXiv:1602.02830, algorithm 1.
        Helwegen et al. Latent Weights Do Not Exist. 2019, arXiv:1906.02107, section 3.
    """
    if isinstance(limit, Real) and not limit > 0:
        raise ValueError(f"limit must be above 0, got {limit=}; 1.0 is the usual one")

    def clip(update: jax.Array, weight: jax.Array) -> jax.Array:
        bound = jnp.asarray(limit, weight.dtype)
        return jnp.clip(weight + update, -bound, bound) - weight

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        if params is None:
            raise ValueError(
                "clip_latent clips weights, but got params=None: call update(grads, state, params)"
            )
        return jax.tree.map(clip, updates, params)

    return optax.stateless(update)
