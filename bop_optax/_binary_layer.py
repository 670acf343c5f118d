"""What the binary layers share: the types of their kernels, the quantizers, bits, the bias."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from bop_optax import quantizers
from bop_optax._flip import is_floating
from bop_optax._initializers import glorot_uniform, rademacher
from bop_optax._popcount import PackedKernel, pack_kernel
from bop_optax._product import Product, binary_product
from bop_optax._scale import are_binary, magnitudes
from bop_optax.quantizers import is_scaled_sign, is_sign

# Forms of the layers' arguments.
Quantizer = Callable[[jax.Array], jax.Array]

Model = TypeVar("Model", bound=nnx.Module)
MOST_WEIGHTS = 2**31  # of a kernel, below which XLA's counts are exact


class BinaryParam(nnx.Param):
    """An NNX parameter of binary weights, ±1 or ±α; `binary_labels` labels it "binary".

    It is an `nnx.Param`, so `nnx.state(model, nnx.Param)` and `wrt=nnx.Param` include it.

    Example:
        >>> BinaryParam(jnp.ones((2, 2))).shape
        (2, 2)
    """

    is_binary = True


class LatentParam(nnx.Param):
    """An NNX parameter of latent weights: real numbers; a weight is the sign of one (Algorithm 1).

    `binary_labels` labels it "latent". Any Optax optimizer trains it.

    Example:
        >>> LatentParam(jnp.full((2, 2), 0.3)).shape
        (2, 2)
    """

    is_latent = True


class PackedParam(nnx.Variable):
    """An NNX variable of a kernel's bits, as `bop_optax.packing.pack` makes it; no `nnx.Param`.

    A bit is 1 where the weight is negative. Bit i of word j is that of input 32·j + i.

    Example:
        >>> PackedParam(jnp.zeros((3, 3, 4, 128), jnp.uint32)).shape  # of 128 inputs
        (3, 3, 4, 128)
    """


class BinaryLayer(nnx.Module):
    """Base of the binary layers: the kernel, the quantizers, the bias."""

    def __init__(
        self,
        kernel_shape: Sequence[int],
        *,
        input_quantizer: Quantizer | None,
        kernel_quantizer: Quantizer | None,
        kernel_init: nnx.Initializer | None,
        use_bias: bool,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        precision: lax.PrecisionLike,
        kernel_metadata: Mapping[str, Any],
        kernel_constraint: None,
        rngs: nnx.Rngs,
    ):
        _check_quantizer("input_quantizer", input_quantizer)
        _check_quantizer("kernel_quantizer", kernel_quantizer)
        if kernel_constraint is not None:
            raise ValueError(
                f"a layer constrains no kernel, got {kernel_constraint=}: Bop needs no constraint; "
                "for latent weights chain bop_optax.latent.clip_latent() after the optimizer"
            )
        self.kernel_shape = tuple(kernel_shape)
        check_features(self.kernel_shape)
        for name, given in (("dtype", dtype), ("param_dtype", param_dtype)):
            if not is_floating(given) and (name, given) != ("dtype", None):
                raise TypeError(f"{name} must be a floating dtype, got {given!r}")
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(f"rngs must be flax.nnx.Rngs, as nnx.Rngs(0), got {rngs!r}")
        if not isinstance(kernel_metadata, Mapping):
            raise TypeError(f"kernel_metadata must be a dictionary, got {kernel_metadata!r}")
        latent = kernel_quantizer is not None
        kernel_init = kernel_init or (glorot_uniform if latent else rademacher)
        if not callable(kernel_init):
            raise TypeError(f"kernel_init must be a function, got {kernel_init!r}")
        kernel = kernel_init(rngs.params(), self.kernel_shape, param_dtype)
        if jnp.shape(kernel) != self.kernel_shape or not is_floating(jnp.result_type(kernel)):
            raise ValueError(
                f"kernel_init must return floating numbers of shape {self.kernel_shape}, got "
                f"{jnp.result_type(kernel)} of shape {jnp.shape(kernel)}"
            )
        if not latent and not _holds(are_binary(kernel)):
            raise ValueError(
                "kernel_init must return −α or +α, with one α for each output: a binary layer "
                "has no latent weights; real weights need a kernel_quantizer; got magnitudes of "
                f"{magnitudes(kernel)}"
            )
        if not _holds(jnp.isfinite(kernel)):
            raise ValueError(
                "kernel_init must return finite numbers, got magnitudes of "
                f"{magnitudes(kernel)}: draw smaller ones"
            )
        self.kernel = (LatentParam if latent else BinaryParam)(kernel, **kernel_metadata)
        self.bias = nnx.Param(jnp.zeros(kernel_shape[-1], param_dtype)) if use_bias else None
        self.input_quantizer = input_quantizer
        self.kernel_quantizer = kernel_quantizer
        self.dtype = dtype
        self.precision = precision

    def has_binary_kernel(self) -> bool:
        """True if the quantized kernel is ±α, with one α for each output."""
        if self.kernel_quantizer is None:
            return isinstance(self.kernel, BinaryParam | PackedParam)
        return is_scaled_sign(self.kernel_quantizer)

    def _quantized_kernel(self) -> jax.Array:
        kernel = self.kernel[...]
        return kernel if self.kernel_quantizer is None else self.kernel_quantizer(kernel)

    def binary_kernel(self) -> jax.Array:
        """The kernel as ±α in its dtype, also of latent weights and of bits.

        Raises:
            ValueError: if it is not ±α.
        """
        if isinstance(self.kernel, PackedParam):
            packed = PackedKernel(self.kernel[...], self.kernel_scale[...], self.kernel_shape[-2])
            return packed.unpack()
        kernel = self._quantized_kernel()
        if not _holds(are_binary(kernel)):
            raise ValueError(
                f"a kernel of shape {kernel.shape} is not −α or +α, with one α > 0 for each output:"
                f" its magnitudes are {magnitudes(kernel)}"
            )
        return kernel

    def pack_kernel(self) -> None:
        """Replaces the kernel by its bits, a `PackedParam`, and by α of each output.

        Raises:
            ValueError: for a kernel of another shape, as of several networks that `nnx.vmap`
                stacked, and for one that is not ±α.
        """
        if isinstance(self.kernel, PackedParam):
            return
        if self.kernel.shape != self.kernel_shape:
            raise ValueError(
                f"the kernel has the shape {self.kernel.shape}, its layer {self.kernel_shape}: "
                "pack networks that nnx.vmap stacked inside nnx.vmap"
            )
        packed = pack_kernel(self.binary_kernel())
        self.kernel, self.kernel_quantizer = PackedParam(packed.words), None
        self.kernel_scale = nnx.Variable(packed.scale)

    def _apply(
        self, inputs: ArrayLike, in_features: int, multiply: Callable[..., jax.Array]
    ) -> jax.Array:
        """Quantizes input and kernel, multiplies them as one batch and adds the bias."""
        x, rank = jnp.asarray(inputs), len(self.kernel_shape) - 2
        if x.ndim <= rank or x.shape[-1] != in_features:
            raise ValueError(
                f"{type(self).__name__} takes (..., {'spatial, ' * rank}{in_features}), "
                f"got an input of shape {x.shape}"
            )
        if 0 in x.shape[x.ndim - rank - 1 :]:
            raise ValueError(f"{type(self).__name__} got an image without pixels, {x.shape}")
        if self.input_quantizer is not None:
            x, shape = self.input_quantizer(x), x.shape
            if jnp.shape(x) != shape:
                raise ValueError(f"input_quantizer must keep the shape {shape}, got {jnp.shape(x)}")
        packed = isinstance(self.kernel, PackedParam)
        kernel = self.kernel_scale[...] if packed else self._quantized_kernel()
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = promote_dtype((x, kernel, bias), dtype=self.dtype)
        if packed:
            kernel = PackedKernel(self.kernel[...], kernel, self.kernel_shape[-2])
        batch, features = x.shape[: x.ndim - rank - 1], x.shape[x.ndim - rank - 1 :]
        y = multiply(x.reshape(-1, *features), kernel)
        if 0 in y.shape[1:-1]:
            raise ValueError(
                f"the window {self.kernel_shape[:-2]} is larger than the padded image, got an "
                f"input of shape {jnp.shape(inputs)}"
            )
        y = y.reshape(*batch, *y.shape[1:])
        return y if bias is None else y + bias

    def _one_bit_product(self, product: Product, **options: Any) -> Callable[..., jax.Array]:
        if not isinstance(product, Product):
            raise TypeError(f"product must be as Product('popcount'), got {product!r}")
        return partial(
            binary_product,
            precision=self.precision,
            one_bit=is_sign(self.input_quantizer) and self.has_binary_kernel(),
            product=product,
            **options,
        )


def with_binary_kernels(model: Model) -> Model:
    """Copies a model, with each one-bit kernel of its binary layers as a `BinaryParam` of ±α.

    Latent weights are quantized for good, so that Bop can fine-tune a network that was trained with
    them. Packed kernels are unpacked. The outputs stay the same, to the bit.

    Args:
        model: an NNX module. A kernel whose quantizer does not say that it returns ±α stays as it
            is, see `bop_optax.quantizers.is_scaled_sign`.

    Returns:
        A copy. Its kernels keep the metadata of their variables, such as the sharding. Layers that
        share a kernel share the new one.

    Raises:
        ValueError: for a kernel whose values are not ±α with one α for each output.

    Example:
        >>> from bop_optax import binary_labels, ste_sign
        >>> from bop_optax.layers import BinaryLinear
        >>> latent = BinaryLinear(4, 2, kernel_quantizer=ste_sign, rngs=nnx.Rngs(0))
        >>> binary_labels(nnx.state(with_binary_kernels(latent), nnx.Param))["kernel"]
        'binary'
    """
    model, kernels = nnx.clone(model), {}
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, BinaryLayer) and layer.has_binary_kernel():
            key = (id(layer.kernel), layer.kernel_quantizer)  # of layers that share a kernel
            if key not in kernels:
                metadata = layer.kernel.get_metadata()
                binary = BinaryParam.from_metadata(layer.binary_kernel(), metadata)
                kernels[key] = layer.kernel, binary  # the first lives on, and with it its id
            layer.kernel, layer.kernel_quantizer = kernels[key][1], None
            if hasattr(layer, "kernel_scale"):
                del layer.kernel_scale
    return model


def _check_quantizer(name: str, quantizer: Any) -> None:
    if quantizer is not None and not callable(quantizer):
        known = isinstance(quantizer, str) and hasattr(quantizers, quantizer)
        function = f"bop_optax.quantizers.{quantizer}" if known else "bop_optax.quantizers.ste_sign"
        raise TypeError(f"{name} must be a function, got {quantizer!r}: pass {function}")


def check_features(kernel_shape: Sequence[int]) -> None:
    """Raises an error for sizes of a kernel that are no integers, are below 1 or too many."""
    if not all(isinstance(n, int | np.integer) for n in kernel_shape):
        raise TypeError(f"features and window must be integers, got {tuple(kernel_shape)}")
    if min(kernel_shape) < 1:
        raise ValueError(f"features and window must be at least 1, got {tuple(kernel_shape)}")
    if math.prod(map(int, kernel_shape)) >= MOST_WEIGHTS:
        raise ValueError(f"a kernel has fewer than 2³¹ weights, got {tuple(kernel_shape)}")


def _holds(condition: jax.Array) -> bool:
    """Whether a condition holds everywhere; True for values not known yet."""
    everywhere = jnp.all(condition)
    return isinstance(everywhere, Tracer) or bool(everywhere)
