"""Which parameters are binary: a tree of labels for `optax.partition`."""

import sys
from collections.abc import Callable
from typing import Any

import jax


def binary_labels(params: Any, is_binary: Callable[[str, Any], bool] | None = None) -> Any:
    """Labels each parameter "binary" or "real", so that `optax.partition` gives Bop its weights.

    Binary weights and the real parameters beside them (biases, BatchNorm) need different
    optimizers. A parameter is binary by its type: `bop_optax.layers.BinaryParam` in Flax NNX,
    `bop_optax.layers.BinaryBox` in Linen, or any other container whose class has
    `is_binary = True`. Trees without such types are labelled by a rule on names and values.

    Compute the labels once, from the parameters, and pass the tree itself to `optax.partition`: it
    would call a label *function* on bare gradients, from which the types are gone.

    Args:
        params: any pytree of parameters; `nnx.state(model, nnx.Param)` or the `"params"` of a
            Linen module, boxes and all. Only the structure and types are read.
        is_binary: a rule `is_binary(path, leaf) -> bool` instead of the types. `path` is the
            leaf's place in the tree, as in `"encoder/0/kernel"`; `leaf` is the array, or the NNX
            Variable or Linen box that holds it.

    Returns:
        The tree of `params` with the string `"binary"` or `"real"` in place of each array (and of
        the Variable or box around it).

    Raises:
        ValueError: where no parameter is binary; the message lists the paths.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from bop_optax import binary_labels, bop
        >>> params = {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
        >>> labels = binary_labels(params, lambda path, leaf: path.endswith("kernel"))
        >>> labels
        {'dense': {'bias': 'real', 'kernel': 'binary'}}
        >>> optimizer = optax.partition({"binary": bop(), "real": optax.adam(1e-2)}, labels)
    """
    rule = is_binary or (lambda _, leaf: getattr(type(leaf), "is_binary", False) is True)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_box)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    binary = [bool(rule(path, leaf)) for path, (_, leaf) in zip(paths, leaves, strict=True)]
    if not any(binary):
        raise ValueError(
            "none of these parameters is binary: "
            + (", ".join(paths) or "(the tree is empty)")
            + "; make them BinaryParam (Flax NNX) or BinaryBox (Linen), or pass is_binary"
        )
    return treedef.unflatten(["binary" if b else "real" for b in binary])


def _is_box(node: Any) -> bool:
    """Whether `node` holds one array and its metadata. Flax is looked up, not imported: a tree
    can hold its Variables and boxes only where it has been imported already."""
    nnx, meta = sys.modules.get("flax.nnx"), sys.modules.get("flax.core.meta")
    return (
        getattr(type(node), "is_binary", False) is True
        or (nnx is not None and isinstance(node, nnx.Variable))
        or (meta is not None and isinstance(node, meta.AxisMetadata))
    )
