"""Metrics of binary training: the number of flips, their ratio, and π_t of equation (7)."""

from typing import Any

import jax
import jax.numpy as jnp

from bop_optax._flip import zip_trees
from bop_optax._labels import array_of, is_variable, labelled, named_leaves
from bop_optax.quantizers import binarize


def flips(tree: Any, after: Any = None, *, labels: Any = None) -> jax.Array:
    """Counts the weights that flip, in one array or in a whole tree.

    The argument is either a tree of updates or the weights before and after a step. Works inside
    `jit`.

    Args:
        tree: a pytree of updates, in which every non-zero number is a flip; or, with `after`, the
            weights before the step. A single array is a tree too: `jax.tree.map(flips, updates)`
            counts the flips of each leaf.
        after: the weights after the step, in the same tree. A flip is a change of `binarize(w)`.
        labels: the tree of `binary_labels`; only leaves labelled "binary" or "latent" count.
            None: all leaves count.

    Returns:
        The number of flips, int32 scalar.

    Raises:
        ValueError: if before and after are the same NNX variables, as `nnx.state(model)` returns
            them twice. Copy them before the step: `jax.tree.map(jnp.copy, nnx.state(model))`. Also
            for weights whose shape changes, and for labels of another tree.

    Example:
        >>> flips({"w": jnp.array([0.0, -2.0, 2.0])})
        Array(2, dtype=int32)
        >>> flips(jnp.array([1.0, -1.0]), jnp.array([1.0, 1.0]))
        Array(1, dtype=int32)
    """
    changed = _changes(tree, after, labels)
    return sum((jnp.sum(c, dtype=jnp.int32) for c in changed), jnp.zeros([], jnp.int32))


def flip_ratio(tree: Any, after: Any = None, *, labels: Any = None) -> jax.Array:
    """Divides the number of flips by the number of binary weights.

    Args:
        tree: updates, or the weights before the step; see `flips`.
        after: the weights after the step, or None.
        labels: the tree of `binary_labels`, or None.

    Returns:
        The ratio in [0, 1], float32 scalar; 0 for a tree without weights.

    Example:
        >>> flip_ratio(jnp.array([0.0, -2.0, 0.0, 2.0]))
        Array(0.5, dtype=float32)
    """
    total = sum(c.size for c in _changes(tree, after, labels))
    return flips(tree, after, labels=labels).astype(jnp.float32) / max(total, 1)


def log_flip_ratio(tree: Any, after: Any = None, *, labels: Any = None) -> jax.Array:
    r"""Computes π_t, the paper's measure of how noisy training is.

    .. math::
        \pi_t = \log\left(\frac{\text{weights flipped at time } t}{\text{all weights}}
        + e^{-9}\right)

    Args:
        tree: updates, or the weights before the step; see `flips`.
        after: the weights after the step, or None.
        labels: the tree of `binary_labels`, or None.

    Returns:
        π_t, a natural logarithm, float32 scalar: −9 if no weight flips, about 0 if all flip.

    Example:
        >>> log_flip_ratio(jnp.zeros(10))
        Array(-9., dtype=float32)

    References:
        Helwegen et al. Latent Weights Do Not Exist. NeurIPS 2019, arXiv:1906.02107, section 5.1,
        equation (7).
    """
    return jnp.log(flip_ratio(tree, after, labels=labels) + jnp.exp(-9.0))


def _changes(tree: Any, after: Any, labels: Any) -> list[jax.Array]:
    """One Boolean array for each binary array of the tree: True at each flip."""
    if after is None:
        changes = jax.tree.map(lambda u: jnp.asarray(u) != 0, tree)
    else:
        _check_pairs(tree, after)
        changes = jax.tree.map(_signs_differ, tree, after)
    if labels is not None:
        return [array_of(leaf) for _, leaf in labelled(changes, labels, "binary", "latent")]
    return jax.tree.leaves(changes)


def _signs_differ(before: Any, after: Any) -> jax.Array:
    return binarize(before) != binarize(after)


def _check_pairs(before: Any, after: Any) -> None:
    """Raises ValueError for trees or shapes that differ, and for a variable that is in both."""
    for name, x, y in zip_trees("weights before", before, "weights after", after):
        if jnp.shape(x) != jnp.shape(y):
            raise ValueError(f"{name} has the shape {jnp.shape(x)} before and {jnp.shape(y)} after")
    variables = {id(leaf) for _, leaf in named_leaves(before) if is_variable(leaf)}
    for name, leaf in named_leaves(after):
        if id(leaf) in variables:
            raise ValueError(
                f"{name or 'the variable'} before and after is the same NNX variable: copy the "
                "weights before the step, jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))"
            )
