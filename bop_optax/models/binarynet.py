"""BinaryNet of Courbariaux et al. (2016), a VGG-like network that the paper trains on CIFAR-10.

The network has six binary convolutions of width, width, 2·width, 2·width, 4·width and 4·width
channels, with a max-pool after every second one, and three binary dense layers. Every kernel is
binary, also the first and the last. The input of the first layer is not quantized. Order of a
layer: quantize → product → max-pool → BatchNorm.

References:
    Courbariaux, Hubara, Soudry, El-Yaniv, Bengio. Binarized Neural Networks: Training Deep Neural
    Networks with Weights and Activations Constrained to +1 or -1. 2016, arXiv:1602.02830.
    Helwegen et al. Latent Weights Do Not Exist. NeurIPS 2019, arXiv:1906.02107, section 5.
"""

from functools import partial

import jax
from flax import nnx
from jax.typing import DTypeLike

from bop_optax import ste_sign
from bop_optax.layers import BinaryConv, BinaryLinear, Product, Quantizer
from bop_optax.models._sizes import check_sizes, check_widths
from bop_optax.models.pooling import max_pool

# Keras's BatchNormalization(scale=False), which the authors' code uses.
BatchNorm = partial(nnx.BatchNorm, use_scale=False, momentum=0.99, epsilon=1e-3)


class BinaryNet(nnx.Module):
    """BinaryNet for images large enough for `stages` max-pools.

    The defaults give the authors' network for 32×32×3 images: 10,352,000 one-bit parameters, 3,850
    real ones, and 4,608 inputs to the first dense layer.

    Args:
        width: channels of the first stage; each stage doubles them.
        units: units of the two hidden dense layers.
        num_classes: number of classes, and of logits.
        image_shape: (height, width, channels) of one image.
        stages: number of stages, each of two convolutions and a 2×2 max-pool; 2 suits 8×8 images.
        first_padding: padding of the first convolution. "VALID" is that of the authors' code,
            "SAME" that of the paper's text (with 8,192 inputs to the first dense layer).
        kernel_quantizer: quantizer of latent weights, such as `bop_optax.ste_sign`. None: the
            kernels are binary and have no latent weights.
        kernel_init: initializer of every kernel. Default: that of `bop_optax.layers`.
        product: how the one-bit products are computed; see `bop_optax.layers.Product`.
        dtype: dtype of the computation. Default: inferred.
        rngs: draws the kernels.

    Raises:
        ValueError: if the images are too small for `stages` max-pools.

    Example:
        >>> model = BinaryNet(width=8, units=16, rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """

    def __init__(
        self,
        width: int = 128,
        units: int = 1024,
        num_classes: int = 10,
        *,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        stages: int = 3,
        first_padding: str = "VALID",
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        product: Product = Product(),
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        check_widths(width=width, units=units, stages=stages)
        height, breadth, features = check_sizes(image_shape, num_classes)
        lost = 2 if first_padding == "VALID" else 0
        rows, columns = ((side - lost) >> stages for side in (height, breadth))
        if rows < 1 or columns < 1:
            raise ValueError(
                f"{stages=} poolings leave nothing of images of {height}×{breadth}; use fewer"
            )
        kernel = {
            "kernel_quantizer": kernel_quantizer,
            "kernel_init": kernel_init,
            "product": product,
        }
        conv = partial(BinaryConv, kernel_size=(3, 3), dtype=dtype, rngs=rngs, **kernel)
        dense = partial(BinaryLinear, input_quantizer=ste_sign, dtype=dtype, rngs=rngs, **kernel)
        convs, denses, norms = [], [], []
        for i in range(2 * stages):
            out = width * 2 ** (i // 2)
            padding, quantizer = ("SAME", ste_sign) if i else (first_padding, None)
            convs.append(conv(features, out, padding=padding, input_quantizer=quantizer))
            norms.append(BatchNorm(out, dtype=dtype, rngs=rngs))
            features = out
        features *= rows * columns
        for out in (units, units, num_classes):
            denses.append(dense(features, out))
            norms.append(BatchNorm(out, dtype=dtype, rngs=rngs))
            features = out
        self.convs, self.denses, self.norms = nnx.List(convs), nnx.List(denses), nnx.List(norms)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images to logits.

        `model.train()` and `model.eval()` choose the statistics that BatchNorm uses.

        Args:
            images: (batch, height, width, channels), scaled to [−1, 1].

        Returns:
            Logits, (batch, num_classes).
        """
        x, norms = images, iter(self.norms)
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = next(norms)(max_pool(x, 2) if i % 2 else x)
        x = jax.lax.collapse(x, 1)
        for dense in self.denses:
            x = next(norms)(dense(x))
        return x
