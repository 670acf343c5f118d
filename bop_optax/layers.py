"""Binary layers for Flax NNX: kernels of ±1 that Bop trains, without latent weights.

With a `kernel_quantizer` the same layers hold latent weights: the baseline (Algorithm 1).
`import bop_optax` does not import this module, which needs Flax.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from bop_optax._convolution import convolution as convolution
from bop_optax._initializers import glorot_uniform as glorot_uniform
from bop_optax._initializers import rademacher as rademacher
from bop_optax._popcount import PackedKernel, output_scale, pack_kernel
from bop_optax._product import Product, binary_product
from bop_optax.quantizers import is_one_bit

# Forms of the layers' arguments.
Padding = str | int | Sequence[int | tuple[int, int]]
Quantizer = Callable[[jax.Array], jax.Array]


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

    `binary_labels` labels it "real". Any Optax optimizer trains it.

    Example:
        >>> layer = BinaryLinear(4, 2, kernel_quantizer=jnp.sign, rngs=nnx.Rngs(0))
        >>> isinstance(layer.kernel, LatentParam)
        True
    """


class PackedParam(nnx.Variable):
    """An NNX variable of a kernel's bits, as `bop_optax.packing.pack` makes it; no `nnx.Param`.

    A bit is 1 where the weight is negative. Bit i of word j is that of input 32·j + i.

    Example:
        >>> PackedParam(jnp.zeros((3, 3, 4, 128), jnp.uint32)).shape  # of 128 inputs
        (3, 3, 4, 128)
    """


class _BinaryLayer(nnx.Module):
    """Base of `BinaryLinear` and `BinaryConv`: the kernel, the quantizers, the bias."""

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
        product: Product,
        rngs: nnx.Rngs,
    ):
        self.kernel_shape = tuple(kernel_shape)
        if min(self.kernel_shape) < 1:
            raise ValueError(f"features and window must be at least 1, got {self.kernel_shape}")
        latent = kernel_quantizer is not None
        kernel_init = kernel_init or (glorot_uniform if latent else rademacher)
        kernel = kernel_init(rngs.params(), self.kernel_shape, param_dtype)
        if not latent and not _is_binary(kernel):
            raise ValueError(
                "kernel_init must return −α or +α, with one α for each output: a binary layer "
                "has no latent weights; real weights need a kernel_quantizer"
            )
        self.kernel = LatentParam(kernel) if latent else BinaryParam(kernel)
        self.bias = nnx.Param(jnp.zeros(kernel_shape[-1], param_dtype)) if use_bias else None
        self.input_quantizer = input_quantizer
        self.kernel_quantizer = kernel_quantizer
        self.dtype = dtype
        self.precision = precision
        self.product = product

    def has_binary_kernel(self) -> bool:
        """True if the quantized kernel is ±α, with one α for each output."""
        if self.kernel_quantizer is None:
            return isinstance(self.kernel, BinaryParam | PackedParam)
        return is_one_bit(self.kernel_quantizer)

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
        if not _is_binary(kernel):
            raise ValueError(
                f"a kernel of shape {kernel.shape} is not −α or +α, with one α for each output"
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

    def _apply(self, inputs: ArrayLike, in_features: int, **options: Any) -> jax.Array:
        x, rank = jnp.asarray(inputs), len(self.kernel_shape) - 2
        if x.ndim <= rank or x.shape[-1] != in_features:
            raise ValueError(
                f"{type(self).__name__} takes (..., {'spatial, ' * rank}{in_features}), "
                f"got an input of shape {x.shape}"
            )
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        packed = isinstance(self.kernel, PackedParam)
        kernel = self.kernel_scale[...] if packed else self._quantized_kernel()
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = promote_dtype((x, kernel, bias), dtype=self.dtype)
        if packed:
            kernel = PackedKernel(self.kernel[...], kernel, self.kernel_shape[-2])
        batch, features = x.shape[: x.ndim - rank - 1], x.shape[x.ndim - rank - 1 :]
        y = binary_product(
            x.reshape(-1, *features),
            kernel,
            precision=self.precision,
            one_bit=is_one_bit(self.input_quantizer) and self.has_binary_kernel(),
            product=self.product,
            **options,
        )
        y = y.reshape(*batch, *y.shape[1:])
        return y if bias is None else y + bias


class BinaryLinear(_BinaryLayer):
    """A linear layer with a binary kernel: `input_quantizer(x) @ kernel`.

    The kernel is a `BinaryParam`, −1 or +1 with equal probability at the start. `bop` trains it and
    keeps it ±1. With an `input_quantizer` both factors of the product are ±1, as one-bit hardware
    needs them.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        input_quantizer: function on the input, such as `bop_optax.ste_sign`. None: the input stays
            real, as in a first layer.
        kernel_quantizer: function on the kernel, such as `bop_optax.ste_sign`; the kernel is then a
            `LatentParam` of real numbers. None: the kernel itself is ±1, as Bop needs it.
        kernel_init: initializer of the kernel. Default: `rademacher`, or Glorot uniform for latent
            weights.
        use_bias: True to add a real bias, 0 at the start. Most BNNs need none, since BatchNorm
            follows.
        dtype: dtype of the computation. Default: inferred from input and parameters. bfloat16 holds
            the products exactly, but rounds sums beyond ±256.
        param_dtype: dtype of the parameters.
        precision: see `jax.lax.Precision`.
        product: how the product is computed if both operands are one bit; see `Product`.
        rngs: its stream `params` draws the kernel.

    Raises:
        ValueError: in the call, if the input's last dimension is not `in_features`.

    Example:
        >>> from bop_optax import ste_sign
        >>> layer = BinaryLinear(4, 2, input_quantizer=ste_sign, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((3, 4))).shape
        (3, 2)

    References:
        Courbariaux, Hubara, Soudry, El-Yaniv, Bengio. Binarized Neural Networks. 2016,
        arXiv:1602.02830.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        input_quantizer: Quantizer | None = None,
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        use_bias: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        product: Product = Product(),
        rngs: nnx.Rngs,
    ):
        super().__init__(
            (in_features, out_features),
            input_quantizer=input_quantizer,
            kernel_quantizer=kernel_quantizer,
            kernel_init=kernel_init,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            product=product,
            rngs=rngs,
        )
        self.in_features, self.out_features = in_features, out_features

    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Maps (..., in_features) to (..., out_features)."""
        return self._apply(inputs, self.in_features)


class BinaryConv(_BinaryLayer):
    """A convolution of any rank with a binary kernel.

    The kernel is a `BinaryParam`, −1 or +1 with equal probability at the start. `bop` trains it and
    keeps it ±1. The layout is channels-last, as in `nnx.Conv`: `(..., *spatial, in_features)`, with
    any number of batch dimensions.

    Args:
        in_features: input channels.
        out_features: output channels.
        kernel_size: the window, one integer per spatial dimension; an integer for one dimension.
        strides: one integer, or one per spatial dimension.
        padding: "SAME", "VALID", an integer for every edge, or per spatial dimension an integer or
            a (low, high) pair.
        padding_value: value of the padded activations, after the quantizer. With 0, as in the
            authors' code and in Larq, the padded activations are not one bit; with +1 they are.
        kernel_dilation: one integer, or one per spatial dimension.
        feature_group_count: number of groups of the input and output channels.
        input_quantizer: see `BinaryLinear`.
        kernel_quantizer: see `BinaryLinear`.
        kernel_init: see `BinaryLinear`.
        use_bias: see `BinaryLinear`.
        dtype: see `BinaryLinear`.
        param_dtype: see `BinaryLinear`.
        precision: see `BinaryLinear`.
        product: see `BinaryLinear`.
        rngs: see `BinaryLinear`.

    Raises:
        ValueError: if `feature_group_count` does not divide the channels, or `padding` has another
            form; in the call, if the input has too few dimensions or other channels.

    Example:
        >>> from bop_optax import ste_sign
        >>> layer = BinaryConv(
        ...     3, 8, (3, 3), padding_value=1, input_quantizer=ste_sign, rngs=nnx.Rngs(0)
        ... )
        >>> layer(jnp.ones((2, 32, 32, 3))).shape
        (2, 32, 32, 8)

    References:
        Courbariaux, Hubara, Soudry, El-Yaniv, Bengio. Binarized Neural Networks. 2016,
        arXiv:1602.02830.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        *,
        padding: Padding = "SAME",
        padding_value: float = 0.0,
        kernel_dilation: int | Sequence[int] = 1,
        feature_group_count: int = 1,
        input_quantizer: Quantizer | None = None,
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        use_bias: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        product: Product = Product(),
        rngs: nnx.Rngs,
    ):
        window = (
            (int(kernel_size),) if isinstance(kernel_size, int | np.integer) else tuple(kernel_size)
        )
        if in_features % feature_group_count or out_features % feature_group_count:
            raise ValueError(
                f"feature_group_count must divide in_features and out_features, got "
                f"{feature_group_count=}, {in_features=}, {out_features=}"
            )
        super().__init__(
            (*window, in_features // feature_group_count, out_features),
            input_quantizer=input_quantizer,
            kernel_quantizer=kernel_quantizer,
            kernel_init=kernel_init,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            product=product,
            rngs=rngs,
        )
        self.in_features, self.out_features = in_features, out_features
        self.strides = _per_dimension("strides", strides, len(window))
        self.padding = _padding(padding, len(window))
        self.padding_value = padding_value
        self.kernel_dilation = _per_dimension("kernel_dilation", kernel_dilation, len(window))
        self.feature_group_count = feature_group_count

    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Maps `(..., *spatial, in_features)` to `(..., *spatial, out_features)`."""
        return self._apply(
            inputs,
            self.in_features,
            strides=self.strides,
            padding=self.padding,
            padding_value=self.padding_value,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
        )


def _is_binary(kernel: jax.Array) -> bool:
    """Whether the values are ±α, with one α for each output; True for values not known yet."""
    binary = jnp.all(jnp.abs(kernel) == output_scale(kernel))
    return isinstance(binary, Tracer) or bool(binary)


def _per_dimension(name: str, value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One integer for each of `rank` dimensions."""
    values = (int(value),) * rank if isinstance(value, int | np.integer) else tuple(value)
    if len(values) != rank:
        raise ValueError(f"{name} must be one integer or {rank} of them, got {value}")
    return values


def _padding(padding: Padding, rank: int) -> str | tuple[tuple[int, int], ...]:
    """The padding as "SAME", "VALID", or a (low, high) pair for each of `rank` dimensions."""
    if isinstance(padding, str) and padding.upper() in ("SAME", "VALID"):
        return padding.upper()
    if isinstance(padding, int | np.integer):
        padding = [int(padding)] * rank
    pairs = [(p, p) if isinstance(p, int | np.integer) else tuple(p) for p in padding]
    if len(pairs) != rank or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f'padding must be "SAME", "VALID", an integer, or an integer or a (low, high) pair '
            f"for each of {rank} spatial dimensions, got {padding!r}"
        )
    return tuple((int(low), int(high)) for low, high in pairs)
