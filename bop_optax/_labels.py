"""Labels of the binary parameters, as `optax.partition` takes them."""

import sys
from collections.abc import Callable
from typing import Any

import jax


def binary_labels(params: Any, is_binary: Callable[[str, Any], bool] | None = None) -> Any:
    """Labels each parameter "binary" or "real" for `optax.partition`.

    Binary weights need Bop. Real parameters, such as biases and those of BatchNorm, need another
    optimizer. By default the type of a parameter decides: it is binary if it is a
    `bop_optax.layers.BinaryParam` (Flax NNX), a box made by `bop_optax.linen.with_binary` (Flax
    Linen), or another container with the class attribute `is_binary = True`. For trees without such
    types pass the rule `is_binary`.

    Compute the labels once, from the parameters, and pass the tree of labels to `optax.partition`.
    Do not pass this function: `optax.partition` would call it on bare gradients, which have lost
    the types.

    Args:
        params: any pytree of parameters, such as `nnx.state(model, nnx.Param)` or the `"params"` of
            a Linen module with their boxes. The default reads types and structure only, so shapes
            from `jax.eval_shape` suffice.
        is_binary: a rule `is_binary(path, leaf) -> bool` that replaces the types. `path` is the
            place of the leaf in the tree, such as `"encoder/0/kernel"`. `leaf` is the array, or the
            NNX Variable or Linen box around it.

    Returns:
        The tree of `params` with the string `"binary"` or `"real"` in place of each array (in place
        of its Variable or box, if it has one).

    Raises:
        ValueError: if no parameter is binary. The message lists the paths.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from bop_optax import binary_labels, bop
        >>> params = {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
        >>> labels = binary_labels(params, lambda path, leaf: path.endswith("kernel"))
        >>> labels
        {'dense': {'bias': 'real', 'kernel': 'binary'}}
        >>> optimizer = optax.partition({"binary": bop(), "real": optax.adam(1e-2)}, labels)
    """
    rule = is_binary or has_binary_type
    leaves = named_leaves(params)
    binary = [bool(rule(name, leaf)) for name, leaf in leaves]
    if not any(binary):
        raise ValueError(
            "no parameter is binary: "
            + (", ".join(name for name, _ in leaves) or "(the tree is empty)")
            + "; use BinaryParam (Flax NNX) or with_binary (Flax Linen), or pass is_binary"
        )
    labels = ["binary" if b else "real" for b in binary]
    return jax.tree.structure(params, is_leaf=_is_box).unflatten(labels)


def has_binary_type(name: str, leaf: Any) -> bool:
    """The rule of `binary_labels` by default: True if the type of the leaf says so."""
    del name
    return getattr(type(leaf), "is_binary", False) is True


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The arrays of a tree, in their Variables or boxes, and the places of these in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box)
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in leaves]


def _is_box(node: Any) -> bool:
    """True if `node` holds one array and metadata."""
    # Flax is looked up, not imported: a tree holds Variables or boxes only if Flax is imported.
    nnx, meta = sys.modules.get("flax.nnx"), sys.modules.get("flax.core.meta")
    return (
        has_binary_type("", node)
        or (nnx is not None and isinstance(node, nnx.Variable))
        or (meta is not None and isinstance(node, meta.AxisMetadata))
    )
