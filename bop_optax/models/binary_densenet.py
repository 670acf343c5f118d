"""BinaryDenseNet of Bethge et al. (2019): every layer adds channels to those before it.

The first layers are a real 7×7 convolution with stride 2, BatchNorm, ReLU and a 3×3 max-pool with
stride 2. Four sections of dense layers follow. A dense layer appends to its input x the 64 channels
of 3×3 convolution(sign(BatchNorm(x))). The padding is "SAME", with zeros after the sign. Between
two sections a transition halves the image and reduces the channels: BatchNorm, a 2×2 max-pool, ReLU
and a real 1×1 convolution. BatchNorm, ReLU, the mean over the image and a real dense layer complete
the network.

Numbers of layers and reductions of the channels are those of Larq Zoo, which has latent weights. In
the dilated network two sections have dilated convolutions and no max-pool before them.

References:
    Bethge, Yang, Bornstein, Meinel. Back to Simplicity: How to Train Accurate BNNs from Scratch?
    2019, arXiv:1906.08637.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from bop_optax import ste_sign
from bop_optax.layers import BinaryConv, Product, Quantizer, convolution
from bop_optax.models._sizes import check_sections, check_sizes, check_widths
from bop_optax.models.pooling import max_pool

sign = partial(ste_sign, clip=1.3)
he_normal = nnx.initializers.he_normal()
# Keras's BatchNormalization(momentum=0.9, epsilon=1e-5).
BatchNorm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)
RealConv = partial(
    nnx.Conv, use_bias=False, kernel_init=he_normal, conv_general_dilated=convolution
)


class BinaryDenseNet(nnx.Module):
    """BinaryDenseNet of any depth; the Zoo's networks are its subclasses.

    Args:
        sections: (dense layers, channels at the start, dilation) of each section. Before a section
            of dilation 1 a max-pool halves the image.
        growth: channels that a dense layer adds.
        num_classes: number of classes, and of logits.
        image_shape: (height, width, channels) of one image. The parameters depend on the channels
            only, so the network takes images of other sizes too.
        small_images: True to start with a 3×3 convolution with stride 1 and nothing else, as the
            Zoo's networks do for images of less than 50 rows.
        kernel_quantizer: quantizer of latent weights, such as `bop_optax.ste_sign`. None: the
            kernels are binary and have no latent weights.
        kernel_init: initializer of the dense layers' kernels. Default: that of `bop_optax.layers`.
        product: how the one-bit products are computed; see `bop_optax.layers.Product`.
        dtype: dtype of the computation. Default: inferred.
        rngs: draws the kernels.

    Raises:
        ValueError: if the images are too small for the max-pools: below 29×29 with four sections
            that halve them, below 8×8 with `small_images`.

    Example:
        >>> sections = ((1, 8, 1), (1, 12, 2))
        >>> model = BinaryDenseNet(sections, 4, 10, image_shape=(32, 32, 3), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """

    larq_quantizer = staticmethod(sign)

    def __init__(
        self,
        sections: Sequence[tuple[int, int, int]],
        growth: int = 64,
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
        check_sections(sections, "blocks, channels, dilation")
        check_widths(growth=growth)
        halvings = sum(dilation == 1 for *_, dilation in sections[1:])
        least = 2**halvings if small_images else 4 * 2**halvings - 3
        _, _, channels = check_sizes(image_shape, num_classes, least, small_images=small_images)
        dense = partial(
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
        features = sections[0][1]
        if small_images:
            layers: list[Any] = [real(channels, features, (3, 3))]
        else:
            layers = [real(channels, features, (7, 7), 2), norm(features), nnx.relu, _first_pool]
        for i, (number, out, dilation) in enumerate(sections):
            if i:
                pool = [_pool] if dilation == 1 else []
                layers += [norm(features), *pool, nnx.relu, real(features, out, (1, 1))]
            for features in range(out, out + number * growth, growth):
                conv = dense(features, growth, kernel_dilation=dilation)
                layers.append(_Dense(norm(features), conv))
            features = out + number * growth
        self.layers = nnx.Sequential(*layers, norm(features), nnx.relu)
        self.head = nnx.Linear(features, num_classes, kernel_init=he_normal, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images to logits.

        `model.train()` and `model.eval()` choose the statistics that BatchNorm uses.

        Args:
            images: (batch, height, width, channels), of mean 0 and standard deviation 1.

        Returns:
            Logits, (batch, num_classes).
        """
        return self.head(self.layers(images).mean((1, 2)))

    def larq_layers(self) -> Iterator[nnx.Module]:
        """The layers with weights in the order of Larq Zoo's files."""
        parts = chain.from_iterable(getattr(x, "layers", (x,)) for x in self.layers.layers)
        return chain((part for part in parts if isinstance(part, nnx.Module)), (self.head,))


class BinaryDenseNet28(BinaryDenseNet):
    """The Zoo's BinaryDenseNet28: 4,202,496 one-bit parameters, 929,000 real ones.

    Args:
        num_classes: number of classes, and of logits.
        options: see `BinaryDenseNet`.

    Raises:
        ValueError: as `BinaryDenseNet`.

    Example:
        >>> model = nnx.eval_shape(lambda: BinaryDenseNet28(10, rngs=nnx.Rngs(0)))
        >>> model.head.kernel.shape
        (576, 10)
    """

    def __init__(self, num_classes: int = 1000, **options: Any):
        sections = (6, 64, 1), (6, 160, 1), (6, 192, 1), (5, 256, 1)
        super().__init__(sections, num_classes=num_classes, **options)


class BinaryDenseNet37(BinaryDenseNet):
    """The Zoo's BinaryDenseNet37: 7,593,984 one-bit parameters, 1,108,264 real ones.

    Args:
        num_classes: number of classes, and of logits.
        options: see `BinaryDenseNet`.

    Raises:
        ValueError: as `BinaryDenseNet`.

    Example:
        >>> model = nnx.eval_shape(lambda: BinaryDenseNet37(10, rngs=nnx.Rngs(0)))
        >>> model.head.kernel.shape
        (640, 10)
    """

    def __init__(self, num_classes: int = 1000, **options: Any):
        sections = (6, 64, 1), (8, 128, 1), (12, 192, 1), (6, 256, 1)
        super().__init__(sections, num_classes=num_classes, **options)


class BinaryDenseNet37Dilated(BinaryDenseNet):
    """The Zoo's BinaryDenseNet37Dilated: the parameters of BinaryDenseNet37, on larger maps.

    Args:
        num_classes: number of classes, and of logits.
        options: see `BinaryDenseNet`.

    Raises:
        ValueError: as `BinaryDenseNet`.

    Example:
        >>> model = nnx.eval_shape(lambda: BinaryDenseNet37Dilated(10, rngs=nnx.Rngs(0)))
        >>> model.head.kernel.shape
        (640, 10)
    """

    def __init__(self, num_classes: int = 1000, **options: Any):
        sections = (6, 64, 1), (8, 128, 1), (12, 192, 2), (6, 256, 4)
        super().__init__(sections, num_classes=num_classes, **options)


class BinaryDenseNet45(BinaryDenseNet):
    """The Zoo's BinaryDenseNet45: 12,349,440 one-bit parameters, 1,540,072 real ones.

    Args:
        num_classes: number of classes, and of logits.
        options: see `BinaryDenseNet`.

    Raises:
        ValueError: as `BinaryDenseNet`.

    Example:
        >>> model = nnx.eval_shape(lambda: BinaryDenseNet45(10, rngs=nnx.Rngs(0)))
        >>> model.head.kernel.shape
        (800, 10)
    """

    def __init__(self, num_classes: int = 1000, **options: Any):
        sections = (6, 64, 1), (12, 160, 1), (14, 288, 1), (8, 288, 1)
        super().__init__(sections, num_classes=num_classes, **options)


class _Dense(nnx.Sequential):
    """Appends its layers' output to the channels of the input."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([x, super().__call__(x)], -1)


def _first_pool(x: jax.Array) -> jax.Array:
    return max_pool(x, 3, "SAME")


def _pool(x: jax.Array) -> jax.Array:
    return max_pool(x, 2)
