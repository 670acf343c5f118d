"""Bi-Real Net-18 of Liu et al. (2018), the network that the paper trains on ImageNet.

The network is a ResNet-18. Every binary convolution has its own shortcut, so that real activations
run through the whole network. The first layers are a real 7×7 convolution with stride 2, BatchNorm
and a 3×3 max-pool with stride 2. Four stages of four blocks follow, with width, 2·width, 4·width
and 8·width channels. The mean over the image and a real dense layer complete the network.

A block computes x + BatchNorm(3×3 convolution(sign x)). The first block of each later stage halves
the image: its shortcut is a 2×2 mean, a real 1×1 convolution and BatchNorm. The padding is "SAME",
with zeros after the sign.

The network is that of the authors' code, whose first version had five blocks in the first stage.
Larq Zoo's network has latent weights and scales their signs by the mean `|w|`, which is 1 for ±1
weights.

References:
    Liu, Wu, Luo, Yang, Liu, Cheng. Bi-Real Net: Enhancing the Performance of 1-bit CNNs with
    Improved Representational Capability and Advanced Training Algorithm. ECCV 2018,
    arXiv:1808.00278.
    Helwegen et al. Latent Weights Do Not Exist. NeurIPS 2019, arXiv:1906.02107, section 5.3.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from bop_optax import approx_sign, magnitude_aware_sign
from bop_optax.layers import BinaryConv, Product, Quantizer, convolution, glorot_uniform
from bop_optax.models._sizes import check_sizes, check_widths
from bop_optax.models.pooling import max_pool

# Keras's BatchNormalization(momentum=0.8) and the real convolutions of the authors' code.
BatchNorm = partial(nnx.BatchNorm, momentum=0.8, epsilon=1e-3)
RealConv = partial(
    nnx.Conv,
    use_bias=False,
    kernel_init=nnx.initializers.glorot_normal(),
    conv_general_dilated=convolution,
)


class BiRealNet(nnx.Module):
    """Bi-Real Net-18 for images of 32×32 or larger, or of 8×8 with `small_images`.

    The defaults give the authors' network: 10,985,472 one-bit parameters, 704,040 real ones.

    Args:
        width: channels of the first stage; each stage doubles them.
        num_classes: number of classes, and of logits.
        image_shape: (height, width, channels) of one image. The parameters depend on the channels
            only, so the network takes images of other sizes too.
        small_images: True to start with a 3×3 convolution with stride 1 and no max-pool, as ResNets
            for CIFAR do. The last stage then sees 32×32 images as 4×4 maps, not as one pixel.
        kernel_quantizer: quantizer of latent weights, such as `bop_optax.ste_sign`. None: the
            kernels are binary and have no latent weights.
        kernel_init: initializer of the blocks' kernels. Default: that of `bop_optax.layers`.
        product: how the one-bit products are computed; see `bop_optax.layers.Product`.
        dtype: dtype of the computation. Default: inferred.
        rngs: draws the kernels.

    Raises:
        ValueError: if the images are too small to be halved five times (three times with
            `small_images`).

    Example:
        >>> model = BiRealNet(4, 10, image_shape=(32, 32, 3), small_images=True, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """

    larq_quantizer = staticmethod(magnitude_aware_sign)

    def __init__(
        self,
        width: int = 64,
        num_classes: int = 1000,
        *,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        small_images: bool = False,
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        product: Product = Product(),
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        least = 8 if small_images else 32
        check_widths(width=width)
        _, _, channels = check_sizes(image_shape, num_classes, least, small_images=small_images)
        block = partial(
            BiRealBlock,
            kernel_quantizer=kernel_quantizer,
            kernel_init=kernel_init,
            product=product,
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
        """Maps images to logits.

        `model.train()` and `model.eval()` choose the statistics that BatchNorm uses.

        Args:
            images: (batch, height, width, channels), of mean 0 and standard deviation 1.

        Returns:
            Logits, (batch, num_classes).
        """
        x = self.stem_norm(self.stem(images))
        if not self.small_images:
            x = max_pool(x, 3, "SAME")
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))

    def larq_layers(self) -> Iterator[nnx.Module]:
        """The layers with weights in the order of Larq Zoo's files."""
        yield from (self.stem, self.stem_norm)
        for block in self.blocks:
            _, *shortcut = block.shortcut.layers or (None,)
            yield from (block.conv, *shortcut[:1], block.norm, *shortcut[1:])
        yield self.head


class BiRealBlock(nnx.Module):
    """One binary convolution with its shortcut; halves the image if the channels change.

    Args:
        in_features: channels of the input.
        out_features: channels of the output.
        kernel_quantizer: quantizer of latent weights, such as `bop_optax.ste_sign`. None: the
            kernels are binary and have no latent weights.
        kernel_init: initializer of the binary kernel. Default: that of `bop_optax.layers`.
        product: how the one-bit products are computed; see `bop_optax.layers.Product`.
        dtype: dtype of the computation. Default: inferred.
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
        product: Product = Product(),
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
            product=product,
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
        """Adds the binary convolution of the sign to the input.

        Args:
            x: (batch, height, width, in_features).

        Returns:
            (batch, height, width, out_features). If the channels change, height and width are
            halved and rounded up.
        """
        return self.norm(self.conv(x)) + self.shortcut(x)


def mean_pool(x: jax.Array) -> jax.Array:
    """Takes the mean of each 2×2 window, with stride 2.

    At an odd edge it is the mean of the pixels inside the image, as in TensorFlow's "SAME".

    Args:
        x: (batch, height, width, channels).

    Returns:
        (batch, ⌈height / 2⌉, ⌈width / 2⌉, channels), the dtype of `x`.

    Example:
        >>> mean_pool(jnp.arange(9.0).reshape(1, 3, 3, 1)).reshape(2, 2)
        Array([[2. , 3.5],
               [6.5, 8. ]], dtype=float32)
    """
    _, height, breadth, _ = x.shape
    # A repeated edge pixel does not change the mean; `nnx.avg_pool` would count zeros.
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, breadth % 2), (0, 0)), mode="edge")
    a, b, c, d = (x[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    return (a + b + c + d) / 4
