"""MeliusNet22 of Bethge et al. (2020): dense blocks add channels, improvement blocks improve them.

The stem is a real 3×3 convolution with stride 2 and two real 3×3 convolutions of 4 and 8 groups,
each with BatchNorm and ReLU, then a 2×2 max-pool. Four sections of 4, 5, 4 and 4 pairs of blocks
follow. Between sections BatchNorm, a 2×2 max-pool, ReLU and a real 1×1 convolution halve the image
and reduce the channels. BatchNorm, ReLU, the mean over the image and a real dense layer complete
the network.

Both blocks compute y = 3×3 convolution(sign BatchNorm(x)) of `width` channels. The dense block
returns the channels of x and those of y. The improvement block adds y to the last channels of x,
which are those that the dense block has just appended. The padding is "SAME", with zeros after the
sign.

The network is Larq Zoo's.

References:
    Bethge, Bartz, Yang, Chen, Meinel. MeliusNet: Can Binary Neural Networks Achieve
    MobileNet-level Accuracy? 2020, arXiv:2001.05936.
"""

from collections.abc import Iterator
from functools import partial
from itertools import repeat

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from bop_optax import ste_sign
from bop_optax.layers import BinaryConv, Product, Quantizer
from bop_optax.models._sizes import check_sizes, check_widths
from bop_optax.models.birealnet import RealConv
from bop_optax.models.pooling import max_pool

# The Zoo's quantizer of activations and latent weights, and its BatchNormalization.
SIGN = partial(ste_sign, clip=1.3)
BatchNorm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)
SECTIONS = ((4, 2.5), (5, 3.5), (4, 4), (4, None))  # pairs of blocks, channels after them ÷ width


class MeliusNet22(nnx.Module):
    """MeliusNet22 for images of 32×32 or larger.

    The defaults give the Zoo's network: 6,119,424 one-bit parameters, 825,160 real ones.

    Args:
        width: channels that a block computes, a multiple of 16.
        num_classes: number of classes, and of logits.
        image_shape: (height, width, channels) of one image. The parameters depend on the channels
            only, so the network takes images of other sizes too.
        kernel_quantizer: quantizer of latent weights, such as `bop_optax.ste_sign`. None: the
            kernels are binary and have no latent weights.
        kernel_init: initializer of the blocks' kernels. Default: that of `bop_optax.layers`.
        product: how the one-bit products are computed; see `bop_optax.layers.Product`.
        dtype: dtype of the computation. Default: inferred.
        rngs: draws the kernels.

    Raises:
        ValueError: if the images are too small to be halved five times, and for another `width`.

    Example:
        >>> model = nnx.eval_shape(lambda: MeliusNet22(rngs=nnx.Rngs(0)))  # draws no weights
        >>> nnx.eval_shape(lambda model: model(jnp.zeros((2, 224, 224, 3))), model).shape
        (2, 1000)
    """

    larq_quantizer = staticmethod(SIGN)

    def __init__(
        self,
        width: int = 64,
        num_classes: int = 1000,
        *,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        product: Product = Product(),
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        check_widths(width=width)
        _, _, channels = check_sizes(image_shape, num_classes, 32)
        if width % 16:
            raise ValueError(f"width must be a multiple of 16, got {width=}")
        block = partial(
            MeliusBlock,
            kernel_quantizer=kernel_quantizer,
            kernel_init=kernel_init,
            product=product,
            dtype=dtype,
            rngs=rngs,
        )
        real = {"dtype": dtype, "rngs": rngs}
        half = width // 2
        self.stem = nnx.List(
            [
                RealConv(channels, half, (3, 3), 2, **real),
                RealConv(half, half, (3, 3), feature_group_count=4, **real),
                RealConv(half, width, (3, 3), feature_group_count=8, **real),
            ]
        )
        self.stem_norms = nnx.List([BatchNorm(n, **real) for n in (half, half, width)])
        blocks, features = [], width
        for pairs, reduced in SECTIONS:
            for _ in range(pairs):
                blocks.append(block(features, width))
                features += width
            if reduced is not None:
                out = int(reduced * width)
                blocks.append(TransitionBlock(features, out, **real))
                features = out
        self.blocks = nnx.List(blocks)
        self.head_norm = BatchNorm(features, **real)
        self.head = nnx.Linear(
            features, num_classes, kernel_init=nnx.initializers.glorot_normal(), **real
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images to logits.

        `model.train()` and `model.eval()` choose the statistics that BatchNorm uses.

        Args:
            images: (batch, height, width, channels), of mean 0 and standard deviation 1.

        Returns:
            Logits, (batch, num_classes).
        """
        x = images
        for conv, norm in zip(self.stem, self.stem_norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        x = max_pool(x, 2, "SAME")
        for block in self.blocks:
            x = block(x)
        return self.head(nnx.relu(self.head_norm(x)).mean((1, 2)))

    def larq_layers(self) -> Iterator[nnx.Module]:
        """The layers with weights in the order of Larq Zoo's files."""
        for conv, norm in zip(self.stem, self.stem_norms, strict=True):
            yield from repeat(conv, conv.feature_group_count)  # the file has a layer for each group
            yield norm
        for block in self.blocks:
            if isinstance(block, TransitionBlock):
                yield from (block.norm, block.conv)
            else:
                yield from (block.dense_norm, block.dense)
                yield from (block.improvement_norm, block.improvement)
        yield from (self.head_norm, self.head)


class MeliusBlock(nnx.Module):
    """A dense block and an improvement block: two binary convolutions.

    Args:
        in_features: channels of the input.
        width: channels that are appended to them.
        kernel_quantizer: see `MeliusNet22`.
        kernel_init: see `MeliusNet22`.
        product: see `MeliusNet22`.
        dtype: see `MeliusNet22`.
        rngs: draws the kernels.

    Example:
        >>> block = MeliusBlock(32, 16, rngs=nnx.Rngs(0))
        >>> block(jnp.zeros((2, 7, 7, 32))).shape
        (2, 7, 7, 48)
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        *,
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        product: Product = Product(),
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        conv = partial(
            BinaryConv,
            out_features=width,
            kernel_size=(3, 3),
            input_quantizer=SIGN,
            kernel_quantizer=kernel_quantizer,
            kernel_init=kernel_init,
            product=product,
            dtype=dtype,
            rngs=rngs,
        )
        self.dense_norm = BatchNorm(in_features, dtype=dtype, rngs=rngs)
        self.dense = conv(in_features)
        self.improvement_norm = BatchNorm(in_features + width, dtype=dtype, rngs=rngs)
        self.improvement = conv(in_features + width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Appends channels and improves them.

        Args:
            x: (batch, height, width, in_features).

        Returns:
            (batch, height, width, in_features + width).
        """
        in_features = x.shape[-1]
        x = jnp.concatenate([x, self.dense(self.dense_norm(x))], -1)
        y = self.improvement(self.improvement_norm(x))
        return x + jnp.pad(y, [(0, 0), (0, 0), (0, 0), (in_features, 0)])


class TransitionBlock(nnx.Module):
    """Halves the image and reduces the channels, with real numbers.

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        dtype: see `MeliusNet22`.
        rngs: draws the kernel.

    Example:
        >>> TransitionBlock(32, 16, rngs=nnx.Rngs(0))(jnp.zeros((2, 7, 7, 32))).shape
        (2, 4, 4, 16)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.norm = BatchNorm(in_features, dtype=dtype, rngs=rngs)
        self.conv = RealConv(in_features, out_features, (1, 1), dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, in_features) to half the size, rounded up."""
        return self.conv(nnx.relu(max_pool(self.norm(x), 2, "SAME")))
