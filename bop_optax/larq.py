"""Weights of Larq Zoo's networks, from their HDF5 files.

`import bop_optax` does not import this module, which needs Flax and h5py: the extra `larq`.
"""

import errno
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bop_optax._binary_layer import BinaryLayer, BinaryParam, LatentParam, PackedParam

_Model = TypeVar("_Model", bound=nnx.Module)
ATTRIBUTES = {  # of a layer, by the names of Keras
    "kernel": "kernel",
    "depthwise_kernel": "kernel",
    "bias": "bias",
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
    "alpha": "slope",
}


def from_larq(model: _Model, path: Path | str) -> _Model:
    """Reads a weights file of Larq Zoo into the same network of `bop_optax.models`.

    The file has latent weights. A network with latent weights gets them; a binary one gets what the
    network's quantizer makes of them, ±1 or ±α, and can be trained by Bop. A BatchNorm whose scale
    or bias is not in the file gets 1 or 0.

    Args:
        model: a network with the method `larq_layers`, in the sizes of the file.
        path: a file that Keras's `save_weights` wrote, such as the Zoo's `quicknet_weights.h5`.

    Returns:
        `model` itself.

    Raises:
        TypeError: for a network that the Zoo does not have.
        ValueError: if a layer or a shape of the file is not the network's, for weights that are not
            finite, for another kind of HDF5 file or one that refers to others, for a packed
            network, and for latent weights with another quantizer than that of the Zoo. The network
            is not changed then.
        OSError: for a file that cannot be read.

    Example:
        >>> from bop_optax.models import BinaryAlexNet
        >>> model = BinaryAlexNet(rngs=nnx.Rngs(0))  # doctest: +SKIP
        >>> model = from_larq(model, "binary_alexnet_weights.h5")  # doctest: +SKIP

    References:
        Larq Zoo, https://docs.larq.dev/zoo/api.
    """
    if not hasattr(model, "larq_layers"):
        raise TypeError(
            f"Larq Zoo has no {type(model).__name__}: read weights of ours by bop_optax.saving.load"
        )
    if jax.tree.leaves(nnx.state(model, PackedParam)):
        raise ValueError("the network is packed: read the weights first, then pack it")
    layers: list[Any] = list(model.larq_layers())  # pyright: ignore[reportAttributeAccessIssue]
    try:
        groups = [group for group in _read(Path(path)) if group[1]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no file of Keras 2's save_weights in HDF5, as the Zoo's are ({error})"
        ) from error
    except OSError as error:
        raise OSError(error.errno or errno.EIO, f"{path} cannot be read ({error})") from error
    if len(groups) != len(layers):
        raise ValueError(f"{path} has {len(groups)} layers with weights, not {len(layers)}")
    quantizer = type(model).larq_quantizer  # pyright: ignore[reportAttributeAccessIssue]
    values = [
        pair
        for layer, name, arrays in _joined(layers, groups)
        for pair in _values(layer, name, arrays, quantizer)
    ]
    for variable, value in values:
        variable[...] = value
    return model


def _read(path: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The layers of a file: their names, and their arrays by name."""
    with h5py.File(path) as file:
        if name := file.visititems_links(_link):
            raise ValueError(f"{name} is a link, which may lead out of {path}")
        root: Any = file.get("model_weights", file)
        for layer in map(_text, root.attrs["layer_names"]):
            names = [_text(name) for name in root[layer].attrs["weight_names"]]
            yield (
                layer,
                {n.rpartition("/")[2].split(":")[0]: _array(root[layer][n]) for n in names},
            )


def _link(name: str, link: Any) -> str | None:
    """The name, if it is a link to another place; it then ends the visit."""
    return None if isinstance(link, h5py.HardLink) else name


def _array(dataset: Any) -> np.ndarray:
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} lies in another file")
    return dataset[()]


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _joined(layers: list[Any], groups: list[Any]) -> Iterator[tuple[Any, str, dict[str, Any]]]:
    """Joins the outputs of the file's layers that are groups of one convolution."""
    for _, pairs in groupby(zip(layers, groups, strict=True), key=lambda pair: id(pair[0])):
        (layer, *_), parts = zip(*pairs, strict=True)
        (name, *_), arrays = zip(*parts, strict=True)
        keys = arrays[0]
        yield layer, name, {k: np.concatenate([a[k] for a in arrays if k in a], -1) for k in keys}


def _values(
    layer: Any, name: str, arrays: dict[str, np.ndarray], quantizer: Any
) -> Iterator[tuple[nnx.Variable, Any]]:
    """The variables of a layer with their new values."""
    found = {ATTRIBUTES.get(key, key): _in_flax(layer, key, a) for key, a in arrays.items()}
    own = {k: v for k, v in vars(layer).items() if isinstance(v, nnx.Param | nnx.BatchStat)}
    if isinstance(layer, nnx.BatchNorm):
        absent = {"scale": np.ones, "bias": np.zeros}.items()
        found = {k: make(layer.num_features) for k, make in absent if k in own} | found
    if found.keys() != own.keys():
        raise ValueError(f"{name} has {sorted(arrays)}, not {sorted(own)}")
    for key, variable in own.items():
        if variable.shape != found[key].shape:
            raise ValueError(f"{name} has a {key} of {found[key].shape}, not {variable.shape}")
        if not np.isfinite(found[key]).all():
            raise ValueError(f"{name} has a {key} that is not finite")
        value = jnp.asarray(found[key], variable.dtype)
        if isinstance(variable, BinaryParam):
            value = quantizer(value)
        yield variable, value
    if isinstance(layer, BinaryLayer) and isinstance(layer.kernel, LatentParam):
        _check_quantizer(name, layer.kernel_quantizer, quantizer)


def _in_flax(layer: Any, key: str, array: np.ndarray) -> np.ndarray:
    """An array in the layout of Flax."""
    if key == "depthwise_kernel":
        return array.swapaxes(-1, -2)
    if key == "kernel" and layer.kernel.ndim == 2:  # a convolution over the whole map
        return array.reshape(-1, array.shape[-1])
    return array[0, 0] if key == "alpha" else array  # which is shared over the image


def _check_quantizer(name: str, own: Any, quantizer: Any) -> None:
    def parts(f: Any) -> Any:
        return (f.func, f.args, f.keywords) if isinstance(f, partial) else (f, (), {})

    if parts(own) != parts(quantizer):
        raise ValueError(
            f"{name} has latent weights of {quantizer}: build the network with this "
            f"kernel_quantizer, got {own}"
        )
