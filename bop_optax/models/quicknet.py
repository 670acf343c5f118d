"""QuickNet of Bannink et al. (2021), the fast network of Larq Zoo, in its three sizes.

The first layers are a real 3×3 convolution, a depthwise 3×3 convolution, both with stride 2, and a
1×1 convolution, each with BatchNorm. Sections of residual blocks follow. A block computes
x + BatchNorm(ReLU(3×3 convolution(sign x))). The padding is "SAME" with +1, so that a product is
one bit at the edges, too. Between two sections a transition halves the image and changes the
channels: ReLU, max-pool, blur pool, a real 1×1 convolution and BatchNorm. ReLU, the mean over the
image and a real dense layer complete the network.

Larq Zoo's network has latent weights; it trains them by Adam.

References:
    Bannink, Hillier, Geiger, de Bruin, Overweel, Neeven, Helwegen. Larq Compute Engine: Design,
    Benchmark, and Deploy State-of-the-Art Binarized Neural Networks. MLSys 2021, arXiv:2011.09398,
    section 5.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from bop_optax import ste_sign
from bop_optax.layers import BinaryConv, Product, Quantizer, convolution, glorot_uniform
from bop_optax.models._sizes import check_sections, check_sizes
from bop_optax.models.pooling import max_pool

sign = partial(ste_sign, clip=1.25)
he_normal, glorot_normal = nnx.initializers.he_normal(), nnx.initializers.glorot_normal()
# Keras's BatchNormalization(), of the first layers, and the one of the other layers.
StemNorm = partial(nnx.BatchNorm, momentum=0.99, epsilon=1e-3)
BatchNorm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)
RealConv = partial(nnx.Conv, use_bias=False, conv_general_dilated=convolution)


class QuickNet(nnx.Module):
    """QuickNet for images of 29×29 or larger.

    The defaults give the Zoo's QuickNet: 12,533,760 one-bit parameters, 696,264 real ones, and
    4,032 constants of its blur pools.

    Args:
        sections: (blocks, channels) of each section. The channels of the first one are a multiple
            of 4.
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
        ValueError: if the images are too small to be halved twice, and once between sections; if
            the channels of the first section are not a multiple of 4.

    Example:
        >>> model = QuickNet(((1, 8), (1, 16)), 10, image_shape=(32, 32, 3), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """

    larq_quantizer = staticmethod(sign)

    def __init__(
        self,
        sections: Sequence[tuple[int, int]] = ((4, 64), (4, 128), (4, 256), (4, 512)),
        num_classes: int = 1000,
        *,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        product: Product = Product(),
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        check_sections(sections, "blocks, channels")
        least = 4 * 2 ** (len(sections) - 1) - 3
        _, _, channels = check_sizes(image_shape, num_classes, least)
        features = sections[0][1]
        if features % 4:
            raise ValueError(f"the first section needs a multiple of 4 channels, got {features}")
        block = partial(
            BinaryConv,
            kernel_size=(3, 3),
            padding_value=1,
            input_quantizer=sign,
            kernel_quantizer=kernel_quantizer,
            kernel_init=kernel_init,
            product=product,
            dtype=dtype,
            rngs=rngs,
        )
        norm = partial(BatchNorm, dtype=dtype, rngs=rngs)
        point = partial(RealConv, kernel_size=(1, 1), dtype=dtype, rngs=rngs)
        layers = _stem(channels, features, dtype=dtype, rngs=rngs)
        for i, (blocks, out) in enumerate(sections):
            if i:
                real = point(features, out, kernel_init=glorot_normal)
                layers += [nnx.relu, _max_pool, BlurPool(features), real, norm(out)]
            layers += [_Residual(block(out, out), nnx.relu, norm(out)) for _ in range(blocks)]
            features = out
        self.layers = nnx.Sequential(*layers, nnx.relu)
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
        return self.head(self.layers(images).mean((1, 2)))

    def larq_layers(self) -> Iterator[nnx.Module]:
        """The layers with weights in the order of Larq Zoo's files."""
        parts = chain.from_iterable(getattr(x, "layers", (x,)) for x in self.layers.layers)
        return chain((part for part in parts if isinstance(part, nnx.Module)), (self.head,))


class QuickNetSmall(QuickNet):
    """The Zoo's QuickNetSmall: 11,980,800 one-bit parameters, 671,704 real ones.

    Args:
        num_classes: number of classes, and of logits.
        options: see `QuickNet`.

    Raises:
        ValueError: as `QuickNet`.

    Example:
        >>> model = nnx.eval_shape(lambda: QuickNetSmall(10, rngs=nnx.Rngs(0)))
        >>> model.head.kernel.shape
        (512, 10)
    """

    def __init__(self, num_classes: int = 1000, **options: Any):
        super().__init__(((4, 32), (4, 64), (4, 256), (4, 512)), num_classes, **options)


class QuickNetLarge(QuickNet):
    """The Zoo's QuickNetLarge: 22,634,496 one-bit parameters, 703,688 real ones.

    Args:
        num_classes: number of classes, and of logits.
        options: see `QuickNet`.

    Raises:
        ValueError: as `QuickNet`.

    Example:
        >>> model = nnx.eval_shape(lambda: QuickNetLarge(10, rngs=nnx.Rngs(0)))
        >>> model.head.kernel.shape
        (512, 10)
    """

    def __init__(self, num_classes: int = 1000, **options: Any):
        super().__init__(((6, 64), (8, 128), (12, 256), (6, 512)), num_classes, **options)


class BlurPool(nnx.Module):
    """Halves an image by a fixed 3×3 low-pass filter with stride 2, the same for every channel.

    The filter is the outer product of (1, 2, 1) ÷ 4 with itself. No optimizer trains it: it is an
    `nnx.BatchStat`, which is saved with the network, as in the Zoo's files. The padding is "SAME"
    with zeros.

    Args:
        features: channels of the input.

    Example:
        >>> BlurPool(1)(jnp.ones((1, 4, 4, 1))).reshape(2, 2)
        Array([[1.    , 0.75  ],
               [0.75  , 0.5625]], dtype=float32)

    References:
        Zhang. Making Convolutional Networks Shift-Invariant Again. ICML 2019, arXiv:1904.11486.
    """

    def __init__(self, features: int):
        row = jnp.array([1.0, 2.0, 1.0]) / 4
        window = jnp.outer(row, row)[..., None, None]
        self.kernel = nnx.BatchStat(jnp.tile(window, (1, 1, 1, features)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, features) to half the height and width, rounded up."""
        return lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )


class _Residual(nnx.Sequential):
    """Adds its layers' output to the input."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + super().__call__(x)


def _max_pool(x: jax.Array) -> jax.Array:
    return max_pool(x, 2, stride=1)


def _stem(channels: int, features: int, **options: Any) -> list[Any]:
    """The layers before the first section, which make a quarter of the image's sides."""
    narrow, conv, norm = features // 4, partial(RealConv, **options), partial(StemNorm, **options)
    return [
        conv(channels, narrow, (3, 3), 2, kernel_init=he_normal),
        norm(narrow),
        nnx.relu,
        conv(narrow, narrow, (3, 3), 2, feature_group_count=narrow, kernel_init=glorot_uniform),
        norm(narrow, use_scale=False, use_bias=False),
        conv(narrow, features, (1, 1), kernel_init=he_normal),
        norm(features),
    ]
