"""Binary AlexNet of Hubara et al. (2016), which Bop's authors train on ImageNet.

The network has five binary convolutions and three binary dense layers. The convolutions have width,
3·width, 6·width, 6·width and 4·width channels. The first is 11×11 with stride 4, the second 5×5,
the others 3×3. A 3×3 max-pool with stride 2 follows the first, second and fifth convolution. Every
kernel is binary, also the first and the last. The input of the first layer is not quantized. Order
of a layer: quantize → product → max-pool → BatchNorm.

The network is that of the authors' code. Larq Zoo's differs in one point: its BatchNorm has no
scale.

References:
    Hubara, Courbariaux, Soudry, El-Yaniv, Bengio. Binarized Neural Networks. NeurIPS 2016,
    arXiv:1602.02830. Their results on ImageNet are in Quantized Neural Networks, arXiv:1609.07061.
    Helwegen et al. Latent Weights Do Not Exist. NeurIPS 2019, arXiv:1906.02107.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain

import jax
from flax import nnx
from jax.typing import DTypeLike

from bop_optax import ste_sign
from bop_optax.layers import BinaryConv, BinaryLinear, Product, Quantizer
from bop_optax.models._sizes import check_sizes, check_widths
from bop_optax.models.pooling import max_pool

# Keras's BatchNormalization(momentum=0.9), which the authors' code uses.
BatchNorm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-3)
POOLED = (0, 1, 4)  # the convolutions before a max-pool


class BinaryAlexNet(nnx.Module):
    """Binary AlexNet for images of 57×57 or larger.

    The defaults give the authors' network: 61,827,776 one-bit parameters, 20,944 real ones.

    Args:
        width: channels of the first convolution; the others have multiples of it.
        units: units of the two hidden dense layers.
        num_classes: number of classes, and of logits.
        image_shape: (height, width, channels) of one image.
        kernel_quantizer: quantizer of latent weights, such as `bop_optax.ste_sign`. None: the
            kernels are binary and have no latent weights.
        kernel_init: initializer of every kernel. Default: that of `bop_optax.layers`.
        product: how the one-bit products are computed; see `bop_optax.layers.Product`.
        dtype: dtype of the computation. Default: inferred.
        rngs: draws the kernels.

    Raises:
        ValueError: if the images are too small for the stride and the three max-pools.

    Example:
        >>> model = BinaryAlexNet(2, 16, 10, image_shape=(64, 64, 3), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 64, 64, 3))).shape
        (2, 10)
    """

    larq_quantizer = staticmethod(ste_sign)

    def __init__(
        self,
        width: int = 64,
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
        conv = partial(BinaryConv, dtype=dtype, rngs=rngs, **options)
        dense = partial(BinaryLinear, input_quantizer=ste_sign, dtype=dtype, rngs=rngs, **options)
        norm = partial(BatchNorm, dtype=dtype, rngs=rngs)
        first = conv(channels, width, (11, 11), strides=4)
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
        """Maps images to logits.

        `model.train()` and `model.eval()` choose the statistics that BatchNorm uses.

        Args:
            images: (batch, height, width, channels), of mean 0 and standard deviation 1.

        Returns:
            Logits, (batch, num_classes).
        """
        x, norms = images, iter(self.norms)
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = next(norms)(max_pool(x, 3) if i in POOLED else x)
        x = jax.lax.collapse(x, 1)
        for dense in self.denses:
            x = next(norms)(dense(x))
        return x

    def larq_layers(self) -> Iterator[nnx.Module]:
        """The layers with weights in the order of Larq Zoo's files."""
        products = chain(self.convs, self.denses)
        return chain.from_iterable(zip(products, self.norms, strict=True))


def last_map(image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Computes the size of the last map: after AlexNet's stride of 4 and its three max-pools.

    Args:
        image_shape: (height, width, channels) of one image.

    Returns:
        Rows and columns of the last map, each at least 1.

    Raises:
        ValueError: if the image is too small for them.

    Example:
        >>> last_map((224, 224, 3))
        (6, 6)
    """
    height, breadth, _ = image_shape
    rows, columns = -(-height // 4), -(-breadth // 4)
    for _ in range(3):
        rows, columns = (rows - 1) // 2, (columns - 1) // 2
    if rows < 1 or columns < 1:
        raise ValueError(
            f"images of {height}×{breadth} are too small for AlexNet's stride of 4 and its three "
            "3×3 max-pools; resize them to 57×57 or more"
        )
    return rows, columns
