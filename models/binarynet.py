"""BinaryNet, the VGG-like network of Courbariaux et al. (2016) that the paper trains on CIFAR-10.

Six binary convolutions of width, width, 2·width, 2·width, 4·width, 4·width, a max-pool after every
second, then three binary dense layers. Every kernel is binary, the first and the last too; the
first layer's input is not quantized. Order: quantize → product → max-pool → BatchNorm.

References:
    Courbariaux, Hubara, Soudry, El-Yaniv, Bengio. Binarized Neural Networks: Training Deep Neural
    Networks with Weights and Activations Constrained to +1 or -1. 2016, arXiv:1602.02830.
    Helwegen et al. Latent Weights Do Not Exist. 2019, arXiv:1906.02107, section 5.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from bop_optax import ste_sign
from bop_optax.layers import BinaryConv, BinaryLinear, Quantizer

# Keras's BatchNormalization(scale=False), which the authors' code uses.
BatchNorm = partial(nnx.BatchNorm, use_scale=False, momentum=0.99, epsilon=1e-3)


class BinaryNet(nnx.Module):
    """BinaryNet for images of any size that `stages` poolings leave a pixel of.

    With the defaults, on 32×32×3 images, it is the authors' network: 10,352,000 one-bit
    parameters, 4,608 inputs to the first dense layer.

    Args:
        width: channels of the first stage; each stage doubles them.
        units: units of the two hidden dense layers.
        num_classes: classes, the number of logits.
        image_shape: (height, width, channels) of one image.
        stages: how many times two convolutions and a 2×2 pooling are stacked; 2 suits 8×8 images.
        first_padding: padding of the first convolution: "VALID" in the authors' code, "SAME" in
            the paper's description (then 8,192 inputs to the first dense layer).
        kernel_quantizer: trains latent weights, with this quantizer, in place of binary ones.
        kernel_init: initializer of every kernel; None: as in `bop_optax.layers`.
        dtype: of the computation; None infers it.
        rngs: draws the kernels.

    Raises:
        ValueError: where `stages` poolings leave nothing of the image.

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
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        height, breadth, features = image_shape
        lost = 2 if first_padding == "VALID" else 0
        rows, columns = ((side - lost) // 2**stages for side in (height, breadth))
        if rows < 1 or columns < 1:
            raise ValueError(f"{stages=} poolings leave nothing of images of {height}×{breadth}")
        kernel = {"kernel_quantizer": kernel_quantizer, "kernel_init": kernel_init}
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
        """Maps images (batch, height, width, channels), scaled to [−1, 1], to logits (batch,
        num_classes). `model.train()` and `model.eval()` choose BatchNorm's statistics."""
        x, norms = images, iter(self.norms)
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = next(norms)(max_pool(x) if i % 2 else x)
        x = x.reshape(x.shape[0], -1)
        for dense in self.denses:
            x = next(norms)(dense(x))
        return x


def max_pool(x: jax.Array) -> jax.Array:
    """2×2 max-pooling with stride 2, an odd last row or column dropped.

    Sums of ±1 have many ties, and the first maximum of a window takes the whole gradient, as in
    `nnx.max_pool` and TensorFlow. Written with selects, it is the same to the bit, and its gradient
    on a CPU takes a twentieth of the time of `reduce_window`'s.

    Args:
        x: (batch, height, width, channels).

    Returns:
        (batch, height // 2, width // 2, channels), the dtype of `x`.
    """
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    a, b, c, d = (x[:, i::2, j::2] for i in (0, 1) for j in (0, 1))

    def first_max(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(a >= b, a, b)

    return first_max(first_max(a, b), first_max(c, d))
