"""Binary layers for Flax NNX: kernels of ±1 that Bop trains, without latent weights.

With a `kernel_quantizer` the same layers hold latent weights: the baseline (Algorithm 1).
`import bop_optax` does not import this module, which needs Flax.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from bop_optax._binary_layer import BinaryLayer, Quantizer, check_features
from bop_optax._binary_layer import BinaryParam as BinaryParam
from bop_optax._binary_layer import LatentParam as LatentParam
from bop_optax._binary_layer import PackedParam as PackedParam
from bop_optax._binary_layer import with_binary_kernels as with_binary_kernels
from bop_optax._convolution import channels_last
from bop_optax._convolution import convolution as convolution
from bop_optax._initializers import glorot_uniform as glorot_uniform
from bop_optax._initializers import rademacher as rademacher
from bop_optax._product import Product as Product

# Forms of the layers' arguments.
Padding = str | int | Sequence[int | tuple[int, int]]
Metadata = Mapping[str, Any]
NO_METADATA: Metadata = MappingProxyType({})


class BinaryLinear(BinaryLayer):
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
        kernel_metadata: metadata of the kernel's variable, as in `nnx.Linear`; for example
            `{"out_sharding": ("data", None)}`.
        kernel_constraint: None. A layer constrains no kernel; see `bop_optax.latent.clip_latent`.
        rngs: its stream `params` draws the kernel.

    Raises:
        TypeError: for a quantizer that is no function, such as "ste_sign".
        ValueError: for a kernel that is not ±α, and for a `kernel_constraint`; in the call, if the
            input's last dimension is not `in_features`.

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
        kernel_metadata: Metadata = NO_METADATA,
        kernel_constraint: None = None,
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
            kernel_metadata=kernel_metadata,
            kernel_constraint=kernel_constraint,
            rngs=rngs,
        )
        self.in_features, self.out_features, self.product = in_features, out_features, product

    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Maps (..., in_features) to (..., out_features)."""
        return self._apply(inputs, self.in_features, self._one_bit_product(self.product))


class BinaryConv(BinaryLayer):
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
        kernel_metadata: see `BinaryLinear`.
        kernel_constraint: see `BinaryLinear`.
        rngs: see `BinaryLinear`.

    Raises:
        TypeError: as `BinaryLinear`, and for numbers that are not integers.
        ValueError: if `feature_group_count` does not divide the channels, a size is below 1, or
            `padding` has another form; in the call, if the input has too few dimensions, other
            channels, or a size of 0.

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
        kernel_metadata: Metadata = NO_METADATA,
        kernel_constraint: None = None,
        rngs: nnx.Rngs,
    ):
        window = _per_dimension("kernel_size", kernel_size)
        groups = feature_group_count
        check_features((in_features, out_features))
        if not isinstance(groups, int | np.integer):
            raise TypeError(f"feature_group_count must be an integer, got {feature_group_count=}")
        if groups < 1 or in_features % groups or out_features % groups:
            raise ValueError(
                f"feature_group_count must divide in_features and out_features, got "
                f"{feature_group_count=}, {in_features=}, {out_features=}"
            )
        if not isinstance(padding_value, int | float | np.number):
            raise TypeError(f"padding_value must be a number, got {padding_value=}")
        if not math.isfinite(padding_value):
            raise ValueError(f"padding_value must be finite, got {padding_value=}")
        super().__init__(
            (*window, in_features // feature_group_count, out_features),
            input_quantizer=input_quantizer,
            kernel_quantizer=kernel_quantizer,
            kernel_init=kernel_init,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_metadata=kernel_metadata,
            kernel_constraint=kernel_constraint,
            rngs=rngs,
        )
        self.in_features, self.out_features, self.product = in_features, out_features, product
        self.strides = _per_dimension("strides", strides, len(window))
        self.padding = _padding(padding, len(window))
        self.padding_value = padding_value
        self.kernel_dilation = _per_dimension("kernel_dilation", kernel_dilation, len(window))
        self.feature_group_count = feature_group_count

    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Maps `(..., *spatial, in_features)` to `(..., *spatial, out_features)`."""
        multiply = self._one_bit_product(
            self.product,
            strides=self.strides,
            padding=self.padding,
            padding_value=self.padding_value,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
        )
        return self._apply(inputs, self.in_features, multiply)


class BinaryConvTranspose(BinaryLayer):
    """A transposed convolution of any rank with a binary kernel: it enlarges an image by `strides`.

    The layer is `nnx.ConvTranspose` with a kernel as in `BinaryConv`, in the layout
    `(*window, in_features, out_features)`. The product is that of real numbers, since zeros are
    put between the activations. Its sums are exact.

    Args:
        in_features: input channels.
        out_features: output channels.
        kernel_size: see `BinaryConv`.
        strides: see `BinaryConv`.
        padding: "SAME", which multiplies the image's size by `strides`, "VALID", or per spatial
            dimension a (low, high) pair, as in `jax.lax.conv_transpose`.
        kernel_dilation: see `BinaryConv`.
        input_quantizer: see `BinaryLinear`.
        kernel_quantizer: see `BinaryLinear`.
        kernel_init: see `BinaryLinear`.
        use_bias: see `BinaryLinear`.
        dtype: see `BinaryLinear`.
        param_dtype: see `BinaryLinear`.
        precision: see `BinaryLinear`.
        kernel_metadata: see `BinaryLinear`.
        kernel_constraint: see `BinaryLinear`.
        rngs: see `BinaryLinear`.

    Raises:
        TypeError: as `BinaryLinear`.
        ValueError: as `BinaryConv`.

    Example:
        >>> from bop_optax import ste_sign
        >>> layer = BinaryConvTranspose(
        ...     8, 4, (3, 3), strides=2, input_quantizer=ste_sign, rngs=nnx.Rngs(0)
        ... )
        >>> layer(jnp.ones((2, 16, 16, 8))).shape
        (2, 32, 32, 4)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        *,
        padding: Padding = "SAME",
        kernel_dilation: int | Sequence[int] = 1,
        input_quantizer: Quantizer | None = None,
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        use_bias: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_metadata: Metadata = NO_METADATA,
        kernel_constraint: None = None,
        rngs: nnx.Rngs,
    ):
        window = _per_dimension("kernel_size", kernel_size)
        super().__init__(
            (*window, in_features, out_features),
            input_quantizer=input_quantizer,
            kernel_quantizer=kernel_quantizer,
            kernel_init=kernel_init,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_metadata=kernel_metadata,
            kernel_constraint=kernel_constraint,
            rngs=rngs,
        )
        self.in_features, self.out_features = in_features, out_features
        self.strides = _per_dimension("strides", strides, len(window))
        self.padding = _padding(padding, len(window))
        self.kernel_dilation = _per_dimension("kernel_dilation", kernel_dilation, len(window))

    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Maps `(..., *spatial, in_features)` to `(..., *spatial, out_features)`."""
        multiply = partial(
            lax.conv_transpose,
            strides=self.strides,
            padding=self.padding,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=channels_last(len(self.strides)),
            precision=self.precision,
        )
        return self._apply(inputs, self.in_features, multiply)


def _per_dimension(
    name: str, value: int | Sequence[int], rank: int | None = None
) -> tuple[int, ...]:
    """One integer ≥ 1 for each of `rank` dimensions; None: as many as `value` has."""
    values = (value,) * (rank or 1) if isinstance(value, int | np.integer) else value
    if not isinstance(values, Sequence) or not all(isinstance(v, int | np.integer) for v in values):
        raise TypeError(f"{name} must be an integer or a sequence of integers, got {value}")
    if min(values, default=0) < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    if len(values) != (rank or len(values)):
        raise ValueError(f"{name} must be one integer or {rank} of them, got {value}")
    return tuple(map(int, values))


def _padding(padding: Padding, rank: int) -> str | tuple[tuple[int, int], ...]:
    """The padding as "SAME", "VALID", or a (low, high) pair for each of `rank` dimensions."""
    if isinstance(padding, str) and padding.upper() in ("SAME", "VALID"):
        return padding.upper()
    given = [padding] * rank if isinstance(padding, int | np.integer) else padding
    try:
        pairs: list[Any] = [(p, p) if isinstance(p, int | np.integer) else tuple(p) for p in given]
        low_high = tuple((operator.index(low), operator.index(high)) for low, high in pairs)
    except (TypeError, ValueError):
        low_high = ()
    if min(map(min, low_high), default=0) < 0:
        raise ValueError(f"padding must be at least 0, got {padding}: crop the input before")
    if low_high and len(low_high) == rank:
        return low_high
    raise ValueError(
        f'padding must be "SAME", "VALID", an integer, or an integer or a (low, high) pair '
        f"for each of {rank} spatial dimensions, got {padding!r}"
    )
