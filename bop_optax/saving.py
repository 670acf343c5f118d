"""Weights in a safetensors file, one bit for each binary weight.

`import bop_optax` does not import this module, which needs Flax and safetensors.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from bop_optax._binary_layer import with_binary_kernels
from bop_optax._labels import array_of, has_binary_type, named_leaves
from bop_optax._scale import are_binary, is_scale, is_signed, magnitudes, output_scale

VERSION = 1  # of the metadata
DAMAGE = (safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError)
SCALE = "/scale"  # behind the name of a kernel: its α
_Tree = TypeVar("_Tree")


def save(tree: Any, path: Path | str, is_binary: Callable[[str, Any], bool] | None = None) -> None:
    """Writes weights, one bit for each binary one; a killed process leaves no half of a file.

    A tensor has the name of its place in the tree, such as `convs/0/kernel`. Binary weights ±α are
    the tensor of bits w < 0, uint8, (⌈size ÷ 8⌉,), in row-major order, the lowest bit first. If α
    is not 1, the tensor `NAME/scale` has α of each output, (out,). The file's metadata has one
    entry, `bop_optax`: JSON with `version` 1, `sha256`, and `one_bit`, the shape and the dtype of
    each binary array by its name. The SHA-256 is that of `one_bit`, its keys sorted, and of each
    tensor: a line "NAME DTYPE SHAPE" between two line breaks, then its bytes. Equal weights make
    equal files.

    Args:
        tree: an NNX module, of which the file gets parameters and batch statistics; or any pytree
            of arrays, such as the variables of a Linen module. Of a module latent weights are
            quantized, see `bop_optax.quantizers.is_scaled_sign`; a packed one is saved as well.
        path: the file.
        is_binary: a rule `is_binary(path, leaf) -> bool` that replaces the types, as in
            `bop_optax.binary_labels`.

    Raises:
        ValueError: for a binary array that is not ±α with one α for each output (its last axis),
            and for names that occur twice. Nothing is written then.
        TypeError: for a leaf that holds no numbers.
        OSError: for a file that cannot be written.

    Example:
        >>> import tempfile
        >>> from bop_optax.layers import BinaryLinear
        >>> layer = BinaryLinear(64, 8, rngs=nnx.Rngs(0))
        >>> path = Path(tempfile.mkdtemp(), "layer.safetensors")
        >>> save(layer, path)
        >>> load(path)["kernel"].shape
        (64, 8)
    """
    tensors: dict[str, np.ndarray] = {}
    one_bit: dict[str, dict[str, Any]] = {}
    rule = is_binary or has_binary_type

    def add(name: str, array: np.ndarray) -> None:
        if name in tensors:
            raise ValueError(f"two arrays have the name {name}")
        tensors[name] = array

    path = Path(path)
    _check_file(path)
    for name, leaf in named_leaves(_state(tree)):
        array = np.asarray(array_of(leaf), order="C")
        if array.dtype.kind in "OSU":
            raise TypeError(f"{name or 'the tree'} is {array.dtype}, not numbers: leave it out")
        if not rule(name, leaf):
            add(name, array)
            continue
        if fault := _binary_fault(array):
            raise ValueError(
                f"{name} {fault}; let is_binary leave this array out, or move the axis of its "
                "outputs to the end"
            )
        scale = output_scale(array)
        one_bit[name] = {"shape": array.shape, "dtype": array.dtype.name}
        add(name, np.packbits((array < 0).ravel(), bitorder="little"))
        if (scale != 1).any():
            add(name + SCALE, np.asarray(scale))
    description = {"version": VERSION, "sha256": _digest(tensors, one_bit), "one_bit": one_bit}
    content = safetensors.numpy.save(tensors, {"bop_optax": json.dumps(description)})
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


@overload
def load(path: Path | str, like: None = None) -> dict[str, np.ndarray]: ...


@overload
def load(path: Path | str, like: _Tree) -> _Tree: ...


def load(path: Path | str, like: Any = None) -> Any:
    """Reads what `save` wrote; executes nothing of the file.

    Args:
        path: the file, or any other safetensors file.
        like: an NNX module, whose parameters and batch statistics are replaced; latent weights
            become the signs. Or a pytree of arrays or shapes, boxes of Linen included. None: only
            read.

    Returns:
        `like` itself if it is a module, else a tree like `like`. Without `like` the NumPy arrays by
        name.

    Raises:
        ValueError: for a damaged file; for names, shapes or dtypes that are not those of `like`;
            with `like`, for numbers that are not finite, for negative variances of a BatchNorm, and
            for values of a binary parameter that are not ±α.
        TypeError: for a tree of other things than arrays and shapes.
        OSError: for a file that cannot be read.

    Example:
        >>> import tempfile
        >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
        >>> path = Path(tempfile.mkdtemp(), "params.safetensors")
        >>> save(params, path, lambda name, leaf: name == "kernel")
        >>> load(path, params)["kernel"].dtype
        dtype('float32')
    """
    arrays = _read(Path(path))
    if like is None:
        return arrays
    tree = _parameters(like) if isinstance(like, nnx.Module) else like
    leaves = named_leaves(tree)
    for name, leaf in leaves:
        if not hasattr(array_of(leaf), "dtype"):
            kind = type(leaf).__name__
            raise TypeError(f"like must be a module or a tree of arrays, got a {kind} {name}")
    expected = {name: (jnp.shape(array_of(leaf)), array_of(leaf).dtype) for name, leaf in leaves}
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if expected != found:
        names = dict.fromkeys(name for name, _ in sorted(expected.items() ^ found.items(), key=str))
        shown = (f"{n} is {_shown(found.get(n))}, not {_shown(expected.get(n))}" for n in names)
        raise ValueError(f"{path} does not fit: {', '.join(shown)}; load it into what was saved")
    for name, leaf in leaves:
        if fault := _fault(name, leaf, arrays[name]):
            raise ValueError(f"{path}: {name} {fault}")
    treedef = jax.tree.structure(tree)
    tree = treedef.unflatten([jnp.asarray(arrays[name]) for name, _ in leaves])
    if isinstance(like, nnx.Module):
        nnx.update(like, tree)
        return like
    return tree


def _parameters(model: nnx.Module) -> nnx.State:
    """Parameters and batch statistics."""
    return nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))


def _state(tree: Any) -> Any:
    """What is saved of a module, its one-bit kernels as ±α; any other tree as it is."""
    if not isinstance(tree, nnx.Module):
        return tree
    return _parameters(with_binary_kernels(tree))


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def _binary_fault(array: np.ndarray) -> str | None:
    """What makes an array other than −α or +α; None if nothing does."""
    if not is_signed(array.dtype):
        return f"is {array.dtype}, which holds no −α and +α"
    if are_binary(array).all():
        return None
    found = f"its magnitudes are {magnitudes(array)}"
    return f"is not −α or +α, with one α for each output, its last axis: {found}"


def _shown(array: tuple[Any, Any] | None) -> str:
    """A shape and a dtype, for messages."""
    return f"{array[1]} {array[0]}" if array else "missing"


def _fault(name: str, leaf: Any, array: np.ndarray) -> str | None:
    """What makes an array none that a trained network has; None if nothing does."""
    if has_binary_type(name, leaf):
        return _binary_fault(array)
    if jnp.issubdtype(array.dtype, jnp.inexact) and not jnp.isfinite(array).all():
        return "has numbers that are not finite"
    is_variance = isinstance(leaf, nnx.BatchStat) and name.rpartition("/")[2] == "var"
    return "has negative variances" if is_variance and (array < 0).any() else None


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name."""
    _check_file(path)
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.offset_keys()}
        description = json.loads(metadata.get("bop_optax", '{"version": 1, "one_bit": {}}'))
        if description["version"] != VERSION:
            raise ValueError(f"its format has the version {description['version']}, not {VERSION}")
        if description.get("sha256", digest := _digest(arrays, description["one_bit"])) != digest:
            raise ValueError("its sha256 is another")
        for name, entry in description["one_bit"].items():
            shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
            scale = arrays.pop(name + SCALE, None)
            arrays[name] = _unpack(arrays[name], shape, dtype, scale)
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    return arrays


def _unpack(
    bits: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, scale: np.ndarray | None
) -> np.ndarray:
    size = math.prod(shape)
    if not is_signed(dtype):
        raise ValueError(f"{dtype} has no sign")
    if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
        raise ValueError(f"{bits.dtype} of shape {bits.shape} cannot hold {size} bits")
    if scale is None:
        scale = np.ones([], dtype)
    elif (scale.shape, scale.dtype) != (shape[-1:], dtype) or not is_scale(scale).all():
        raise ValueError(f"α is {scale.dtype} of shape {scale.shape}, or not above 0 and finite")
    negative = np.unpackbits(bits, count=size, bitorder="little").reshape(shape)
    return np.where(negative, -scale, scale)


def _digest(tensors: dict[str, np.ndarray], one_bit: dict[str, Any]) -> str:
    """The SHA-256 of all that a file has, in the order of the names."""
    digest = hashlib.sha256(json.dumps(one_bit, sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
