"""Labels of the parameters by kind, as `optax.partition` takes them."""

import sys
from collections.abc import Callable
from typing import Any

import jax


def binary_labels(params: Any, is_binary: Callable[[str, Any], bool] | None = None) -> Any:
    """Labels each parameter "binary", "latent" or "real" for `optax.partition`.

    Binary weights need Bop. Real parameters, such as biases and those of BatchNorm, need another
    optimizer. Latent weights are those of layers with a `kernel_quantizer`: real numbers for which
    `bop_optax.latent` has clipping and scaling. By default the type of a parameter decides. It is
    binary if it is a `bop_optax.layers.BinaryParam` (Flax NNX), a box made by
    `bop_optax.linen.with_binary` (Flax Linen), or another container with the class attribute
    `is_binary = True`. It is latent if it is a `bop_optax.layers.LatentParam`, or has the class
    attribute `is_latent = True`. For trees without such types pass the rule `is_binary`.

    Compute the labels once, from the parameters, and pass the tree of labels to `optax.partition`.
    Do not pass this function: `optax.partition` would call it on bare gradients, which have lost
    the types.

    Args:
        params: any pytree of parameters, such as `nnx.state(model, nnx.Param)` or the `"params"` of
            a Linen module with their boxes. The default reads types and structure only, so shapes
            from `jax.eval_shape` suffice.
        is_binary: a rule `is_binary(path, leaf) -> bool` that replaces the types. `path` is the
            place of the leaf in the tree, such as `"encoder/0/kernel"`. `leaf` is the array, or the
            NNX Variable or Linen box around it. The labels are then "binary" and "real" only.

    Returns:
        The tree of `params` with a label in place of each array (in place of its Variable or box,
        if it has one).

    Raises:
        ValueError: if no parameter is binary or latent. The message lists the paths.
        TypeError: for an NNX module: pass `nnx.state(model, nnx.Param)`; for a rule that is no
            function, or that returns a string.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from bop_optax import binary_labels, bop
        >>> params = {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
        >>> labels = binary_labels(params, lambda path, leaf: path.endswith("kernel"))
        >>> labels
        {'dense': {'bias': 'real', 'kernel': 'binary'}}
        >>> optimizer = optax.partition({"binary": bop(), "real": optax.adam(1e-2)}, labels)
    """
    if _is_a("flax.nnx", "Module", params):
        raise TypeError(
            f"binary_labels takes parameters, got the module {type(params).__name__}: "
            "pass nnx.state(model, nnx.Param)"
        )
    if is_binary is not None and not callable(is_binary):
        raise TypeError(f"is_binary must be a function of (path, leaf), got {is_binary!r}")
    leaves = named_leaves(params)
    labels = [_label(name, leaf, is_binary) for name, leaf in leaves]
    if set(labels) <= {"real"}:
        raise ValueError(
            "no parameter is binary: "
            + (", ".join(name for name, _ in leaves) or "(the tree is empty)")
            + "; use BinaryParam (Flax NNX) or with_binary (Flax Linen), or pass is_binary"
        )
    return jax.tree.structure(params, is_leaf=_is_box).unflatten(labels)


def labelled(tree: Any, labels: Any, *kinds: str) -> list[tuple[str, Any]]:
    """The leaves with some labels, and their places in the tree.

    Raises:
        ValueError: for labels that are not those of the tree, and if none is "binary" or "latent".
    """
    leaves, flat = named_leaves(tree), dict(named_leaves(labels))
    known = ["binary", "latent", "real"]
    are_labels = all(isinstance(label, str) and label in known for label in flat.values())
    if flat.keys() != {name for name, _ in leaves} or not are_labels:
        shown = labels if callable(labels) or isinstance(labels, str) else flat
        raise ValueError(
            f"labels must be those of binary_labels(params), got {shown} for "
            f"{', '.join(name for name, _ in leaves)}"
        )
    if leaves and {*flat.values()} <= {"real"}:
        raise ValueError(f"no leaf has the label binary: all of {', '.join(flat)} are real")
    return [(name, leaf) for name, leaf in leaves if flat[name] in kinds]


def _label(name: str, leaf: Any, is_binary: Callable[[str, Any], bool] | None) -> str:
    answer = (is_binary or has_binary_type)(name, leaf)
    if isinstance(answer, str):
        raise TypeError(f"is_binary must return True or False, got {answer!r} for {name}")
    if answer:
        return "binary"
    is_latent = is_binary is None and getattr(type(leaf), "is_latent", False) is True
    return "latent" if is_latent else "real"


def has_binary_type(name: str, leaf: Any) -> bool:
    """The rule of `binary_labels` by default: True if the type of the leaf says so."""
    del name
    return getattr(type(leaf), "is_binary", False) is True


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The arrays of a tree, in their Variables or boxes, and the places of these in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box)
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in leaves]


def array_of(leaf: Any) -> Any:
    """The array of a leaf, which may be in an NNX variable or a box of Linen."""
    (value,) = jax.tree.leaves(leaf)
    return value


def is_variable(node: Any) -> bool:
    """True for an NNX variable."""
    return _is_a("flax.nnx", "Variable", node)


def _is_box(node: Any) -> bool:
    """True if `node` holds one array and metadata."""
    is_box = _is_a("flax.core.meta", "AxisMetadata", node)
    return is_box or has_binary_type("", node) or is_variable(node)


def _is_a(module: str, name: str, node: Any) -> bool:
    """Whether `node` is an instance of a class of Flax."""
    # Flax is looked up, not imported: no node is of its classes unless it is imported.
    flax = sys.modules.get(module)
    return flax is not None and isinstance(node, getattr(flax, name))
