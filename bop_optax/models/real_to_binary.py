"""Real-to-Binary Net of Martinez et al. (2020): the binary network at the end of their stages.

The network is a ResNet-18 in which every binary convolution has its own shortcut, as in Bi-Real
Net. A gate scales each channel of a binary convolution by a number in (0, 1) that depends on the
image. The first layers are a real 7×7 convolution with stride 2, BatchNorm, PReLU and a 3×3
max-pool with stride 2. Four stages of four blocks follow, with width, 2·width, 4·width and 8·width
channels. The mean over the image and a real dense layer complete the network.

A block computes x + PReLU(gate(y) · 3×3 convolution(sign y)) with y = BatchNorm(x). The gate takes
the mean of y over the image: dense → ReLU → dense → sigmoid, with an eighth of the channels in
between. The first block of each later stage halves the image: its shortcut is a 2×2 mean, a real
1×1 convolution and BatchNorm.

The network is Larq Zoo's `RealToBinaryNet`. The authors train it in stages, each of which learns
from the network of the stage before; that is not part of this file.

References:
    Martinez, Yang, Bulat, Tzimiropoulos. Training Binary Neural Networks with Real-to-Binary
    Convolutions. ICLR 2020, arXiv:2003.11535.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from bop_optax import ste_sign
from bop_optax.layers import BinaryConv, Product, Quantizer, glorot_uniform
from bop_optax.models._sizes import check_sizes, check_widths
from bop_optax.models.birealnet import RealConv, mean_pool
from bop_optax.models.pooling import max_pool

# Keras's BatchNormalization(momentum=0.99), and the dense layers of the gates.
BatchNorm = partial(nnx.BatchNorm, momentum=0.99, epsilon=1e-3)
Gate = partial(nnx.Linear, use_bias=False, kernel_init=nnx.initializers.he_normal())
BLOCKS = 4  # in each of the four stages


class RealToBinaryNet(nnx.Module):
    """Real-to-Binary Net for images of 32×32 or larger.

    The defaults give the Zoo's network: 10,985,472 one-bit parameters, 1,001,448 real ones.

    Args:
        width: channels of the first stage; each stage doubles them.
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
        ValueError: if the images are too small to be halved five times.

    Example:
        >>> model = nnx.eval_shape(lambda: RealToBinaryNet(rngs=nnx.Rngs(0)))  # draws no weights
        >>> nnx.eval_shape(lambda model: model(jnp.zeros((2, 224, 224, 3))), model).shape
        (2, 1000)
    """

    larq_quantizer = staticmethod(ste_sign)

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
        block = partial(
            RealToBinaryBlock,
            kernel_quantizer=kernel_quantizer,
            kernel_init=kernel_init,
            product=product,
            dtype=dtype,
            rngs=rngs,
        )
        self.stem = RealConv(channels, width, (7, 7), 2, dtype=dtype, rngs=rngs)
        self.stem_norm = BatchNorm(width, dtype=dtype, rngs=rngs)
        self.stem_prelu = PReLU(width)
        blocks, features = [], width
        for out in (width, 2 * width, 4 * width, 8 * width):
            for _ in range(BLOCKS):
                blocks.append(block(features, out))
                features = out
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(
            features, num_classes, kernel_init=glorot_uniform, dtype=dtype, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images to logits.

        `model.train()` and `model.eval()` choose the statistics that BatchNorm uses.

        Args:
            images: (batch, height, width, channels), of mean 0 and standard deviation 1.

        Returns:
            Logits, (batch, num_classes).
        """
        x = self.stem_prelu(self.stem_norm(self.stem(images)))
        x = max_pool(x, 3, "SAME")
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))

    def larq_layers(self) -> Iterator[nnx.Module]:
        """The layers with weights in the order of Larq Zoo's files."""
        yield from (self.stem, self.stem_norm, self.stem_prelu)
        for block in self.blocks:
            _, *shortcut = block.shortcut.layers or (None,)
            yield from (block.norm, block.squeeze, block.excite, block.conv, *shortcut[:1])
            yield from (block.prelu, *shortcut[1:])
        yield self.head


class RealToBinaryBlock(nnx.Module):
    """One binary convolution with its gate and shortcut; halves the image if the channels change.

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        kernel_quantizer: see `RealToBinaryNet`.
        kernel_init: initializer of the binary kernel. Default: that of `bop_optax.layers`.
        product: see `RealToBinaryNet`.
        dtype: see `RealToBinaryNet`.
        rngs: draws the kernels.

    Example:
        >>> block = RealToBinaryBlock(8, 16, rngs=nnx.Rngs(0))
        >>> block(jnp.zeros((2, 7, 7, 8))).shape
        (2, 4, 4, 16)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        product: Product = Product(),
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        halves, squeezed = in_features != out_features, max(in_features // 8, 1)
        self.norm = BatchNorm(in_features, dtype=dtype, rngs=rngs)
        self.squeeze = Gate(in_features, squeezed, dtype=dtype, rngs=rngs)
        self.excite = Gate(squeezed, out_features, dtype=dtype, rngs=rngs)
        self.conv = BinaryConv(
            in_features,
            out_features,
            (3, 3),
            strides=2 if halves else 1,
            input_quantizer=ste_sign,
            kernel_quantizer=kernel_quantizer,
            kernel_init=kernel_init,
            product=product,
            dtype=dtype,
            rngs=rngs,
        )
        self.prelu = PReLU(out_features)
        self.shortcut = nnx.Sequential()  # the identity
        if halves:
            self.shortcut = nnx.Sequential(
                mean_pool,
                RealConv(in_features, out_features, (1, 1), dtype=dtype, rngs=rngs),
                BatchNorm(out_features, dtype=dtype, rngs=rngs),
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Adds the gated binary convolution to the input.

        Args:
            x: (batch, height, width, in_features).

        Returns:
            (batch, height, width, out_features). If the channels change, height and width are
            halved and rounded up.
        """
        y = self.norm(x)
        gate = nnx.sigmoid(self.excite(nnx.relu(self.squeeze(y.mean((1, 2))))))
        return self.prelu(self.conv(y) * gate[:, None, None]) + self.shortcut(x)


class PReLU(nnx.Module):
    """A ReLU that multiplies negative numbers by a slope, which each channel learns.

    Args:
        features: channels.
        slope: the first slope: 0 in Keras, 0.25 in the paper and in PyTorch.

    Example:
        >>> PReLU(2, slope=0.25)(jnp.array([-4.0, 4.0]))
        Array([-1.,  4.], dtype=float32)

    References:
        He, Zhang, Ren, Sun. Delving Deep into Rectifiers: Surpassing Human-Level Performance on
        ImageNet Classification. ICCV 2015, arXiv:1502.01852, section 2.1.
    """

    def __init__(self, features: int, slope: float = 0.0):
        self.slope = nnx.Param(jnp.full(features, slope, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., features) to the same shape and dtype."""
        return jnp.where(x >= 0, x, self.slope[...].astype(x.dtype) * x)
