"""XNOR-Net of Rastegari et al. (2016), an AlexNet that Bop's authors train on ImageNet.

The first layers are a real 11×11 convolution with stride 4, BatchNorm, ReLU, a max-pool and another
BatchNorm. Four binary convolutions follow: one of 5×5 and three of 3×3, with a max-pool after the
first and the last. Two binary dense layers, a ReLU and a real dense layer without bias complete the
network. All max-pools are 3×3 with stride 2. Order of a binary layer: quantize → product → max-pool
→ BatchNorm.

The network is that of the authors' code, which writes the dense layers as convolutions of the whole
map. The code's L2 penalty on the two real kernels (5e-7 times the sum of squares) belongs to
training and is not part of this file. Larq Zoo's BatchNorm has no scale.

The original XNOR-Net scales each filter by its mean `|w|`. The authors' code has no such scale,
since the mean `|w|` of ±1 weights is 1. For latent weights, `kernel_quantizer` can scale their
signs.

References:
    Rastegari, Ordonez, Redmon, Farhadi. XNOR-Net: ImageNet Classification Using Binary
    Convolutional Neural Networks. ECCV 2016, arXiv:1603.05279.
    Helwegen et al. Latent Weights Do Not Exist. NeurIPS 2019, arXiv:1906.02107.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain

import jax
from flax import nnx
from jax.typing import DTypeLike

from bop_optax import magnitude_aware_sign, ste_sign
from bop_optax.layers import (
    BinaryConv,
    BinaryLinear,
    Product,
    Quantizer,
    convolution,
    glorot_uniform,
)
from bop_optax.models._sizes import check_sizes, check_widths
from bop_optax.models.binary_alexnet import last_map
from bop_optax.models.pooling import max_pool

# Keras's BatchNormalization(momentum=0.9); ε differs by layer in the authors' code.
BatchNorm = partial(nnx.BatchNorm, momentum=0.9)
POOLED = (0, 3)  # the binary convolutions before a max-pool


class XNORNet(nnx.Module):
    """XNOR-Net for images of 57×57 or larger.

    The defaults give the authors' network: 58,236,928 one-bit parameters, 4,150,176 real ones.

    Args:
        width: the five convolutions have 3, 8, 12, 12 and 8 times as many channels.
        units: units of the two hidden dense layers.
        num_classes: number of classes, and of logits.
        image_shape: (height, width, channels) of one image.
        kernel_quantizer: quantizer of latent weights, such as `bop_optax.ste_sign`. None: the
            kernels are binary and have no latent weights.
        kernel_init: initializer of the binary layers' kernels. Default: that of
            `bop_optax.layers`.
        product: how the one-bit products are computed; see `bop_optax.layers.Product`.
        dtype: dtype of the computation. Default: inferred.
        rngs: draws the kernels.

    Raises:
        ValueError: if the images are too small for the stride and the three max-pools.

    Example:
        >>> model = XNORNet(2, 16, 10, image_shape=(64, 64, 3), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 64, 64, 3))).shape
        (2, 10)
    """

    larq_quantizer = staticmethod(magnitude_aware_sign)

    def __init__(
        self,
        width: int = 32,
        units: int = 4096,
        num_classes: int = 1000,
        *,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        product: Product = Product(),
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        check_widths(width=width, units=units)
        *_, channels = check_sizes(image_shape, num_classes)
        rows, columns = last_map(image_shape)
        options = {
            "kernel_quantizer": kernel_quantizer,
            "kernel_init": kernel_init,
            "product": product,
        }
        options |= {"input_quantizer": ste_sign, "dtype": dtype, "rngs": rngs}
        real = {"use_bias": False, "kernel_init": glorot_uniform, "dtype": dtype, "rngs": rngs}
        norm = partial(BatchNorm, dtype=dtype, rngs=rngs)
        features = 3 * width
        self.stem = nnx.Conv(
            channels,
            features,
            (11, 11),
            strides=4,
            conv_general_dilated=convolution,
            **real,
        )
        self.stem_norm = norm(features, epsilon=1e-5)
        convs, denses, norms = [], [], [norm(features, epsilon=1e-4)]
        for out, side in ((8 * width, 5), (12 * width, 3), (12 * width, 3), (8 * width, 3)):
            convs.append(BinaryConv(features, out, (side, side), **options))
            norms.append(norm(out, epsilon=1e-4))
            features = out
        features *= rows * columns
        for epsilon in (1e-4, 1e-3):
            denses.append(BinaryLinear(features, units, **options))
            norms.append(norm(units, epsilon=epsilon))
            features = units
        self.convs, self.denses, self.norms = nnx.List(convs), nnx.List(denses), nnx.List(norms)
        self.head = nnx.Linear(units, num_classes, **real)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images to logits.

        `model.train()` and `model.eval()` choose the statistics that BatchNorm uses.

        Args:
            images: (batch, height, width, channels), of mean 0 and standard deviation 1.

        Returns:
            Logits, (batch, num_classes).
        """
        norms = iter(self.norms)
        x = max_pool(nnx.relu(self.stem_norm(self.stem(images))), 3)
        x = next(norms)(x)
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = next(norms)(max_pool(x, 3) if i in POOLED else x)
        x = jax.lax.collapse(x, 1)
        for dense in self.denses:
            x = next(norms)(dense(x))
        return self.head(nnx.relu(x))

    def larq_layers(self) -> Iterator[nnx.Module]:
        """The layers with weights in the order of Larq Zoo's files."""
        first, *norms = self.norms
        products = chain(self.convs, self.denses)
        middle = chain.from_iterable(zip(products, norms, strict=True))
        return chain((self.stem, self.stem_norm, first), middle, (self.head,))
