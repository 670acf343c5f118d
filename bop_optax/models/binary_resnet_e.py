"""BinaryResNetE18 of Bethge et al. (2019): a ResNet-18 with a shortcut for every convolution.

The first layers are a real 7×7 convolution with stride 2, BatchNorm, ReLU, a 3×3 max-pool with
stride 2 and another BatchNorm. Four stages of four blocks follow, with width, 2·width, 4·width and
8·width channels. ReLU, the mean over the image and a real dense layer complete the network.

A block computes x + BatchNorm(3×3 convolution(sign x)). The first block of each later stage halves
the image: its shortcut is a 2×2 mean, a real 1×1 convolution and BatchNorm. The padding is "SAME",
with zeros after the sign.

The network is Larq Zoo's, which has latent weights. Bi-Real Net differs in the sign's
pseudo-gradient, in BatchNorm and in the layers around the stages.

References:
    Bethge, Yang, Bornstein, Meinel. Back to Simplicity: How to Train Accurate BNNs from Scratch?
    2019, arXiv:1906.08637.
"""

from collections.abc import Iterator
from functools import partial

import jax
from flax import nnx
from jax.typing import DTypeLike

from bop_optax import ste_sign
from bop_optax.layers import BinaryConv, Product, Quantizer, convolution
from bop_optax.models._sizes import check_sizes, check_widths
from bop_optax.models.birealnet import mean_pool
from bop_optax.models.pooling import max_pool

sign = partial(ste_sign, clip=1.25)
he_normal, glorot_normal = nnx.initializers.he_normal(), nnx.initializers.glorot_normal()
# Keras's BatchNormalization(momentum=0.9, epsilon=1e-5).
BatchNorm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)
RealConv = partial(nnx.Conv, use_bias=False, conv_general_dilated=convolution)


class BinaryResNetE18(nnx.Module):
    """BinaryResNetE18 for images of 32×32 or larger, or of 8×8 with `small_images`.

    The defaults give the Zoo's network: 10,985,472 one-bit parameters, 704,168 real ones.

    Args:
        width: channels of the first stage; each stage doubles them.
        num_classes: number of classes, and of logits.
        image_shape: (height, width, channels) of one image. The parameters depend on the channels
            only, so the network takes images of other sizes too.
        small_images: True to start with a 3×3 convolution with stride 1 and nothing else, as the
            Zoo's network does for images of less than 50 rows.
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
        >>> model = BinaryResNetE18(4, 10, image_shape=(32, 32, 3), rngs=nnx.Rngs(0))
        >>> nnx.eval_shape(lambda model, x: model(x), model, jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """

    larq_quantizer = staticmethod(sign)

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
            BinaryConv,
            kernel_size=(3, 3),
            input_quantizer=sign,
            kernel_quantizer=kernel_quantizer,
            kernel_init=kernel_init,
            product=product,
            dtype=dtype,
            rngs=rngs,
        )
        norm = partial(BatchNorm, dtype=dtype, rngs=rngs)
        real = partial(RealConv, dtype=dtype, rngs=rngs)
        if small_images:
            stem = [real(channels, width, (3, 3), kernel_init=he_normal)]
        else:
            first = real(channels, width, (7, 7), 2, kernel_init=he_normal)
            stem = [first, norm(width), nnx.relu, _max_pool, norm(width)]
        self.stem = nnx.Sequential(*stem)
        convs, norms, shortcuts, features = [], [], [], width
        for out in (width, 2 * width, 4 * width, 8 * width):
            for _ in range(4):
                shortcut = []
                if out != features:
                    conv = real(features, out, (1, 1), kernel_init=glorot_normal)
                    shortcut = [mean_pool, conv, norm(out)]
                convs.append(block(features, out, strides=1 + (out != features)))
                norms.append(norm(out))
                shortcuts.append(nnx.Sequential(*shortcut))
                features = out
        self.convs, self.norms = nnx.List(convs), nnx.List(norms)
        self.shortcuts = nnx.List(shortcuts)
        self.head = nnx.Linear(
            features, num_classes, kernel_init=glorot_normal, dtype=dtype, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images to logits.

        `model.train()` and `model.eval()` choose the statistics that BatchNorm uses.

        Args:
            images: (batch, height, width, channels), of mean 0 and standard deviation 1.

        Returns:
            Logits, (batch, num_classes).
        """
        x = self.stem(images)
        for conv, norm, shortcut in zip(self.convs, self.norms, self.shortcuts, strict=True):
            x = norm(conv(x)) + shortcut(x)
        return self.head(nnx.relu(x).mean((1, 2)))

    def larq_layers(self) -> Iterator[nnx.Module]:
        """The layers with weights in the order of Larq Zoo's files."""
        yield from (layer for layer in self.stem.layers if isinstance(layer, nnx.Module))
        for conv, norm, shortcut in zip(self.convs, self.norms, self.shortcuts, strict=True):
            _, *real = shortcut.layers or (None,)
            yield from (conv, *real[:1], norm, *real[1:])
        yield self.head


def _max_pool(x: jax.Array) -> jax.Array:
    return max_pool(x, 3, "SAME")
