"""Binary AlexNet of Hubara et al. (2016), which the authors' code trains on ImageNet.

Five binary convolutions of width, 3·width, 6·width, 6·width, 4·width channels: 11×11 of stride 4,
5×5, and three of 3×3, with a 3×3 max-pool of stride 2 after the first, second and fifth; then three
binary dense layers. Every kernel is binary, the first and the last too; the first layer's input is
not quantized. Order: quantize → product → max-pool → BatchNorm.

All as in the authors' code. Larq Zoo's network is the same but for BatchNorm without scale.

References:
    Hubara, Courbariaux, Soudry, El-Yaniv, Bengio. Binarized Neural Networks. NeurIPS 2016,
    arXiv:1602.02830; their results on ImageNet are in Quantized Neural Networks, arXiv:1609.07061.
    Helwegen et al. Latent Weights Do Not Exist. 2019, arXiv:1906.02107.
"""

from functools import partial

import jax
from flax import nnx
from jax.typing import DTypeLike

from bop_optax import ste_sign
from bop_optax.layers import BinaryConv, BinaryLinear, Quantizer

# Keras's BatchNormalization(momentum=0.9), which the authors' code uses.
BatchNorm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-3)
max_pool = partial(nnx.max_pool, window_shape=(3, 3), strides=(2, 2))
POOLED = (0, 1, 4)  # the convolutions that a max-pool follows


class BinaryAlexNet(nnx.Module):
    """Binary AlexNet for images of 57×57 or larger.

    With the defaults it is the authors' network: 61,827,776 one-bit parameters, 20,944 real ones.

    Args:
        width: channels of the first convolution; the others are multiples of it.
        units: units of the two hidden dense layers.
        num_classes: classes, the number of logits.
        image_shape: (height, width, channels) of one image.
        kernel_quantizer: trains latent weights, with this quantizer, in place of binary ones.
        kernel_init: initializer of every kernel; None: as in `bop_optax.layers`.
        dtype: of the computation; None infers it.
        rngs: draws the kernels.

    Raises:
        ValueError: for images of which stride and poolings leave nothing.

    Example:
        >>> model = BinaryAlexNet(2, 16, 10, image_shape=(64, 64, 3), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 64, 64, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        width: int = 64,
        units: int = 4096,
        num_classes: int = 1000,
        *,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        rows, columns = last_map(image_shape)
        options = {"kernel_quantizer": kernel_quantizer, "kernel_init": kernel_init}
        conv = partial(BinaryConv, dtype=dtype, rngs=rngs, **options)
        dense = partial(BinaryLinear, input_quantizer=ste_sign, dtype=dtype, rngs=rngs, **options)
        norm = partial(BatchNorm, dtype=dtype, rngs=rngs)
        first = conv(image_shape[-1], width, (11, 11), strides=4)
        convs, denses, norms = [first], [], [norm(width)]
        features = width
        for out, side in ((3 * width, 5), (6 * width, 3), (6 * width, 3), (4 * width, 3)):
            convs.append(conv(features, out, (side, side), input_quantizer=ste_sign))
            norms.append(norm(out))
            features = out
        features *= rows * columns
        for out in (units, units, num_classes):
            denses.append(dense(features, out))
            norms.append(norm(out))
            features = out
        self.convs, self.denses, self.norms = nnx.List(convs), nnx.List(denses), nnx.List(norms)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images (batch, height, width, channels), of mean 0 and standard deviation 1, to
        logits (batch, num_classes). `model.train()` and `model.eval()` choose BatchNorm's
        statistics."""
        x, norms = images, iter(self.norms)
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = next(norms)(max_pool(x) if i in POOLED else x)
        x = x.reshape(x.shape[0], -1)
        for dense in self.denses:
            x = next(norms)(dense(x))
        return x


def last_map(image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns that AlexNet's stride of 4 and its three poolings leave of an image.

    Raises:
        ValueError: where they leave none.
    """
    height, breadth, _ = image_shape
    rows, columns = -(-height // 4), -(-breadth // 4)
    for _ in range(3):
        rows, columns = (rows - 1) // 2, (columns - 1) // 2
    if rows < 1 or columns < 1:
        raise ValueError(
            f"AlexNet's stride of 4 and three 3×3 poolings leave nothing of images of "
            f"{height}×{breadth}; resize them to 57×57 or more"
        )
    return rows, columns
