"""Bi-Real Net-18 of Liu et al. (2018), the network that the paper trains on ImageNet.

A ResNet-18 in which every binary convolution has a shortcut of its own, so that real numbers run
through the whole network: a real 7×7 convolution of stride 2, BatchNorm and a 3×3 max-pool of
stride 2; four stages of four blocks, of width, 2·width, 4·width, 8·width channels; the mean over
the image and a real dense layer. A block is x + BatchNorm(3×3 convolution(sign x)). The first block
of each later stage halves the image; its shortcut is a 2×2 mean, a real 1×1 convolution and
BatchNorm. Every "SAME" padding is 0, after the sign.

All as in the authors' code, whose first version had five blocks in the first stage. Larq Zoo's is
the same network, of latent weights whose signs are scaled by the mean |w|: that of ±1 weights is 1.

References:
    Liu, Wu, Luo, Yang, Liu, Cheng. Bi-Real Net: Enhancing the Performance of 1-bit CNNs with
    Improved Representational Capability and Advanced Training Algorithm. ECCV 2018,
    arXiv:1808.00278.
    Helwegen et al. Latent Weights Do Not Exist. 2019, arXiv:1906.02107, section 5.3.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from bop_optax import approx_sign
from bop_optax.layers import BinaryConv, Quantizer, glorot_uniform

# Keras's BatchNormalization(momentum=0.8) and the real convolutions of the authors' code.
BatchNorm = partial(nnx.BatchNorm, momentum=0.8, epsilon=1e-3)
RealConv = partial(nnx.Conv, use_bias=False, kernel_init=nnx.initializers.glorot_normal())


class BiRealNet(nnx.Module):
    """Bi-Real Net-18 for images of any size that its stages can halve.

    With the defaults it is the authors' network: 10,985,472 one-bit parameters, 704,040 real ones.

    Args:
        width: channels of the first stage; each stage doubles them.
        num_classes: classes, the number of logits.
        image_shape: (height, width, channels) of one image. The parameters depend on the channels
            alone: the network takes images of other sizes too.
        small_images: start with a 3×3 convolution of stride 1 and no max-pool, as ResNets for CIFAR
            do: 32×32 images then reach the last stage as 4×4, and not as a single pixel.
        kernel_quantizer: trains latent weights, with this quantizer, in place of binary ones.
        kernel_init: initializer of the blocks' kernels; None: as in `bop_optax.layers`.
        dtype: of the computation; None infers it.
        rngs: draws the kernels.

    Raises:
        ValueError: for images too small to be halved five times, or three with `small_images`.

    Example:
        >>> model = BiRealNet(4, 10, image_shape=(32, 32, 3), small_images=True, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        width: int = 64,
        num_classes: int = 1000,
        *,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        small_images: bool = False,
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        height, breadth, channels = image_shape
        if min(height, breadth) < (8 if small_images else 32):
            raise ValueError(
                f"images must be 32×32 or larger, 8×8 with small_images=True, got "
                f"{height}×{breadth} and {small_images=}"
            )
        block = partial(
            BiRealBlock,
            kernel_quantizer=kernel_quantizer,
            kernel_init=kernel_init,
            dtype=dtype,
            rngs=rngs,
        )
        window, strides = ((3, 3), 1) if small_images else ((7, 7), 2)
        self.stem = RealConv(channels, width, window, strides, dtype=dtype, rngs=rngs)
        self.stem_norm = BatchNorm(width, dtype=dtype, rngs=rngs)
        self.small_images = small_images
        blocks, features = [], width
        for out in (width, 2 * width, 4 * width, 8 * width):
            for _ in range(4):
                blocks.append(block(features, out))
                features = out
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(
            features, num_classes, kernel_init=glorot_uniform, dtype=dtype, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images (batch, height, width, channels), of mean 0 and standard deviation 1, to
        logits (batch, num_classes). `model.train()` and `model.eval()` choose BatchNorm's
        statistics."""
        x = self.stem_norm(self.stem(images))
        if not self.small_images:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class BiRealBlock(nnx.Module):
    """One binary convolution with its shortcut; where the channels change, the image is halved.

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        kernel_quantizer: trains latent weights, with this quantizer, in place of binary ones.
        kernel_init: initializer of the binary kernel; None: as in `bop_optax.layers`.
        dtype: of the computation; None infers it.
        rngs: draws the kernels.

    Example:
        >>> block = BiRealBlock(4, 8, rngs=nnx.Rngs(0))
        >>> block(jnp.zeros((2, 7, 7, 4))).shape
        (2, 4, 4, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        halves = in_features != out_features
        self.conv = BinaryConv(
            in_features,
            out_features,
            (3, 3),
            strides=2 if halves else 1,
            input_quantizer=approx_sign,
            kernel_quantizer=kernel_quantizer,
            kernel_init=kernel_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = BatchNorm(out_features, dtype=dtype, rngs=rngs)
        self.shortcut = nnx.Sequential()  # the identity
        if halves:
            self.shortcut = nnx.Sequential(
                mean_pool,
                RealConv(in_features, out_features, (1, 1), dtype=dtype, rngs=rngs),
                BatchNorm(out_features, dtype=dtype, rngs=rngs),
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, in_features) to (batch, height, width, out_features), height
        and width halved, and rounded up, where the channels change."""
        return self.norm(self.conv(x)) + self.shortcut(x)


def mean_pool(x: jax.Array) -> jax.Array:
    """2×2 means with stride 2; at an odd edge, of the pixels there are, as in TensorFlow's "SAME".

    Args:
        x: (batch, height, width, channels).

    Returns:
        (batch, ⌈height / 2⌉, ⌈width / 2⌉, channels), the dtype of `x`.
    """
    _, height, breadth, _ = x.shape
    # A repeated edge pixel leaves the mean as it is. `nnx.avg_pool` would count the padding as 0.
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, breadth % 2), (0, 0)), mode="edge")
    a, b, c, d = (x[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    return (a + b + c + d) / 4
