"""Binary layers for Flax NNX: kernels of ±1 that Bop trains, without latent weights.

With a `kernel_quantizer` the same layers hold latent weights, as the baseline does. The mark that
makes a Flax Linen parameter binary is here too. `import bop_optax` does not import this module,
which is the only one here that needs Flax.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from flax.core import meta
from flax.nnx.nn.dtypes import promote_dtype
from jax import lax
from jax.typing import ArrayLike, DTypeLike

Padding = str | int | Sequence[int | tuple[int, int]]
Quantizer = Callable[[jax.Array], jax.Array]
glorot_uniform = nnx.initializers.glorot_uniform()


class BinaryParam(nnx.Param):
    """An NNX parameter whose values are ±1 (or ±α); `binary_labels` calls it "binary".

    It is a `nnx.Param`, so `nnx.state(model, nnx.Param)` and `wrt=nnx.Param` include it.

    Example:
        >>> BinaryParam(jnp.ones((2, 2))).shape
        (2, 2)
    """

    is_binary = True


class LatentParam(nnx.Param):
    """An NNX parameter of latent weights: real numbers whose sign is the weight (Algorithm 1).

    `binary_labels` calls it "real": any Optax optimizer trains it.

    Example:
        >>> layer = BinaryLinear(4, 2, kernel_quantizer=jnp.sign, rngs=nnx.Rngs(0))
        >>> isinstance(layer.kernel, LatentParam)
        True
    """


class BinaryBox(struct.PyTreeNode, meta.AxisMetadata[Any]):
    """Marks a Flax Linen parameter as binary; made by `with_binary`, unboxed by Linen itself."""

    value: Any
    is_binary = True

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "BinaryBox":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "BinaryBox":
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "BinaryBox":
        return self


def rademacher(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Initializer of binary weights: −1 and +1 with equal probability.

    Args:
        key: a PRNG key.
        shape: shape of the weights.
        dtype: floating dtype of the weights.

    Returns:
        An array of ±1.
    """
    return jax.random.rademacher(key, tuple(shape), dtype)


def with_binary(init: Callable[..., jax.Array] = rademacher) -> Callable[..., BinaryBox]:
    """Wraps a Linen initializer so that `binary_labels` knows the parameter as binary.

    Args:
        init: an initializer `init(key, shape, dtype)` of ±1 values.

    Returns:
        An initializer that boxes what `init` makes.

    Example:
        >>> from flax import linen as nn
        >>> from bop_optax import binary_labels
        >>> dense = nn.Dense(8, use_bias=False, kernel_init=with_binary())
        >>> params = dense.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
        >>> binary_labels(params)
        {'kernel': 'binary'}
    """
    return lambda *args, **kwargs: BinaryBox(init(*args, **kwargs))


def binary_product(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    padding_value: float = 0.0,
    kernel_dilation: Sequence[int] | None = None,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """The product of every binary layer: a convolution over as many spatial dimensions as `kernel`
    has, none of them for a linear layer.

    Args:
        x: (batch, *spatial, in), the dtype of `kernel`.
        kernel: (*window, in ÷ feature_group_count, out).
        strides: one per spatial dimension; None: all 1.
        padding: "SAME", "VALID", or a (low, high) pair per spatial dimension.
        padding_value: what the padding holds, after quantization: 0 as the authors do, ±1 for
            engines that store activations in one bit.
        kernel_dilation: one per spatial dimension; None: all 1.
        feature_group_count: groups that `in` and `out` are divided into.
        precision: see `jax.lax.Precision`.

    Returns:
        (batch, *spatial, out), the dtype of `x`.
    """
    if kernel.ndim == 2:
        return jnp.matmul(x, kernel, precision=precision)
    *window, _, _ = kernel.shape
    strides = strides or [1] * len(window)
    kernel_dilation = kernel_dilation or [1] * len(window)
    if padding_value != 0:
        window = [(k - 1) * d + 1 for k, d in zip(window, kernel_dilation, strict=True)]
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)
        edges = [(low, high, 0) for low, high in padding]
        x = lax.pad(x, jnp.asarray(padding_value, x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        padding = "VALID"
    spatial = "".join(chr(ord("0") + i) for i in range(len(window)))
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=kernel_dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=feature_group_count,
        precision=precision,
    )


class _BinaryLayer(nnx.Module):
    """What a linear layer and a convolution share: a ±1 kernel, its input's quantizer, a bias."""

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
        rngs: nnx.Rngs,
    ):
        latent = kernel_quantizer is not None
        kernel_init = kernel_init or (glorot_uniform if latent else rademacher)
        kernel = kernel_init(rngs.params(), tuple(kernel_shape), param_dtype)
        self.kernel = LatentParam(kernel) if latent else BinaryParam(kernel)
        self.bias = nnx.Param(jnp.zeros(kernel_shape[-1], param_dtype)) if use_bias else None
        self.input_quantizer = input_quantizer
        self.kernel_quantizer = kernel_quantizer
        self.dtype = dtype
        self.precision = precision

    def _apply(self, inputs: ArrayLike, in_features: int, **options: Any) -> jax.Array:
        x, rank = jnp.asarray(inputs), self.kernel.ndim - 2
        if x.ndim <= rank or x.shape[-1] != in_features:
            raise ValueError(
                f"{type(self).__name__} takes (..., {'spatial, ' * rank}{in_features}), "
                f"got an input of shape {x.shape}"
            )
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        kernel = self.kernel[...]
        if self.kernel_quantizer is not None:
            kernel = self.kernel_quantizer(kernel)
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = promote_dtype((x, kernel, bias), dtype=self.dtype)
        batch, features = x.shape[: x.ndim - rank - 1], x.shape[x.ndim - rank - 1 :]
        y = binary_product(x.reshape(-1, *features), kernel, precision=self.precision, **options)
        y = y.reshape(*batch, *y.shape[1:])
        return y if bias is None else y + bias


class BinaryLinear(_BinaryLayer):
    """A linear layer whose kernel is ±1: `input_quantizer(x) @ kernel`.

    The kernel is a `BinaryParam`, drawn as fair ±1, and it stays ±1: train it with `bop`. With an
    `input_quantizer` the whole product is of ±1 by ±1, what one-bit hardware runs.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        input_quantizer: applied to the input, as `bop_optax.ste_sign`; None: the input as it is
            (a first layer).
        kernel_quantizer: makes the kernel a `LatentParam` of real numbers, and is applied to it, as
            `bop_optax.ste_sign`; None: the kernel is ±1 itself, which is what Bop needs.
        kernel_init: initializer of the kernel; None: fair ±1, or Glorot uniform for latent weights.
        use_bias: add a real bias, from 0. Off, since BatchNorm follows in most BNNs.
        dtype: of the computation; None infers it from input and parameters. bfloat16 holds the
            products exactly, but rounds sums beyond ±256.
        param_dtype: of the parameters.
        precision: see `jax.lax.Precision`.
        rngs: the kernel draws from its `params` stream.

    Raises:
        ValueError: in the call, for an input whose last dimension is not `in_features`.

    Example:
        >>> from bop_optax import ste_sign
        >>> layer = BinaryLinear(4, 2, input_quantizer=ste_sign, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((3, 4))).shape
        (3, 2)

    References:
        Courbariaux et al. Binarized Neural Networks. 2016, arXiv:1602.02830.
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
            rngs=rngs,
        )
        self.in_features, self.out_features = in_features, out_features

    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Maps (..., in_features) to (..., out_features)."""
        return self._apply(inputs, self.in_features)


class BinaryConv(_BinaryLayer):
    """A convolution, of any rank, whose kernel is ±1.

    The kernel is a `BinaryParam`, drawn as fair ±1, and it stays ±1: train it with `bop`. Layout
    is channels-last, as in `nnx.Conv`: (..., *spatial, in_features), any number of batch
    dimensions.

    Args:
        in_features: input channels.
        out_features: output channels.
        kernel_size: the window, one integer per spatial dimension; an integer for one dimension.
        strides: one for all, or one per spatial dimension.
        padding: "SAME", "VALID", an integer for every edge, or per spatial dimension an integer or
            a (low, high) pair.
        padding_value: what the padding holds. It is applied after the quantizer: with 0, as the
            authors and Larq do, the padded product is not of one-bit numbers; with +1 it is.
        kernel_dilation: one for all, or one per spatial dimension.
        feature_group_count: groups that input and output channels are divided into.
        input_quantizer: applied to the input, as `bop_optax.ste_sign`; None: the input as it is.
        kernel_quantizer: makes the kernel a `LatentParam` of real numbers, and is applied to it, as
            `bop_optax.ste_sign`; None: the kernel is ±1 itself, which is what Bop needs.
        kernel_init: initializer of the kernel; None: fair ±1, or Glorot uniform for latent weights.
        use_bias: add a real bias, from 0. Off, since BatchNorm follows in most BNNs.
        dtype: of the computation; None infers it from input and parameters. bfloat16 holds the
            products exactly, but rounds sums beyond ±256.
        param_dtype: of the parameters.
        precision: see `jax.lax.Precision`.
        rngs: the kernel draws from its `params` stream.

    Raises:
        ValueError: for channels that the groups do not divide, for a padding of another form, and
            in the call for an input of too few dimensions or other channels.

    Example:
        >>> from bop_optax import ste_sign
        >>> layer = BinaryConv(
        ...     3, 8, (3, 3), padding_value=1, input_quantizer=ste_sign, rngs=nnx.Rngs(0)
        ... )
        >>> layer(jnp.ones((2, 32, 32, 3))).shape
        (2, 32, 32, 8)
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
            rngs=rngs,
        )
        self.in_features, self.out_features = in_features, out_features
        self.strides = _per_dimension("strides", strides, len(window))
        self.padding = _padding(padding, len(window))
        self.padding_value = padding_value
        self.kernel_dilation = _per_dimension("kernel_dilation", kernel_dilation, len(window))
        self.feature_group_count = feature_group_count

    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Maps (..., *spatial, in_features) to (..., *spatial, out_features)."""
        return self._apply(
            inputs,
            self.in_features,
            strides=self.strides,
            padding=self.padding,
            padding_value=self.padding_value,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
        )


def _per_dimension(name: str, value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    values = (int(value),) * rank if isinstance(value, int | np.integer) else tuple(value)
    if len(values) != rank:
        raise ValueError(f"{name} must be one integer or {rank} of them, got {value}")
    return values


def _padding(padding: Padding, rank: int) -> str | tuple[tuple[int, int], ...]:
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
