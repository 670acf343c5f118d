"""ReActNet-A of Liu et al. (2020): a binary MobileNet that learns where activations change sign.

The first layer is a real 3×3 convolution with stride 2 and BatchNorm. Thirteen blocks of a 3×3 and
a 1×1 binary convolution follow, with 2, 4, 4, 8, 8, six times 16 and twice 32 times as many
channels. The mean over the image and a real dense layer complete the network. Only the first and
the last layer multiply real numbers.

A block computes

    y = RPReLU(BatchNorm(3×3 convolution(RSign x)) + x)
    z = RPReLU(BatchNorm(1×1 convolution(RSign y)) + y)

RSign is the sign of x + b, and RPReLU a PReLU between two shifts, with numbers that each channel
learns. If a block has stride 2, the shortcut of its 3×3 convolution is a 2×2 mean. If it doubles
the channels, the shortcut of its 1×1 convolution repeats them; the authors' code writes this
convolution as two, whose outputs it concatenates. The 3×3 convolutions pad each edge with one zero
after the sign, also with stride 2.

The network is that of the authors' code, which has latent weights and scales their signs by the
mean `|w|`, as the forward pass of `bop_optax.magnitude_aware_sign` does. The mean is 1 for ±1
weights. The authors train the network to give a ResNet-34's probabilities of the classes.

References:
    Liu, Shen, Savvides, Cheng. ReActNet: Towards Precise Binary Neural Network with Generalized
    Activation Functions. ECCV 2020, arXiv:2003.03488.
    Quist, Li, van Gemert. Understanding Weight-Magnitude Hyperparameters in Training Binary
    Networks. ICLR 2023, arXiv:2303.02452. They train it without latent weights, by CEMA.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from bop_optax import approx_sign
from bop_optax.layers import BinaryConv, Product, Quantizer, convolution
from bop_optax.models._sizes import check_sizes, check_widths
from bop_optax.models.birealnet import mean_pool
from bop_optax.models.real_to_binary import PReLU

# PyTorch's BatchNorm2d, and its initializer of real kernels: uniform in ±1/√(fan in).
BatchNorm = partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)
uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# Channels of each block's output, in widths, and its stride.
BLOCKS = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *[(16, 1)] * 5, (32, 2), (32, 1))


class ReActNet(nnx.Module):
    """ReActNet-A for images of 32×32 or larger.

    The defaults give the authors' network: 28,253,184 one-bit parameters, 1,090,408 real ones.

    Args:
        width: channels of the first layer.
        num_classes: number of classes, and of logits.
        image_shape: (height, width, channels) of one image. The parameters depend on the channels
            only, so the network takes images of other sizes too.
        kernel_quantizer: quantizer of latent weights, such as `bop_optax.magnitude_aware_sign`.
            None: the kernels are binary and have no latent weights.
        kernel_init: initializer of the blocks' kernels. Default: that of `bop_optax.layers`.
        product: how the one-bit products are computed; see `bop_optax.layers.Product`.
        dtype: dtype of the computation. Default: inferred.
        rngs: draws the kernels.

    Raises:
        ValueError: if the images are too small to be halved five times.

    Example:
        >>> model = nnx.eval_shape(lambda: ReActNet(rngs=nnx.Rngs(0)))  # draws no weights
        >>> nnx.eval_shape(lambda model: model(jnp.zeros((2, 224, 224, 3))), model).shape
        (2, 1000)
    """

    def __init__(
        self,
        width: int = 32,
        num_classes: int = 1000,
        *,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        product: Product = Product(),
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        check_widths(width=width)
        _, _, channels = check_sizes(image_shape, num_classes, 32)
        self.stem = nnx.Conv(
            channels,
            width,
            (3, 3),
            strides=2,
            padding=1,
            use_bias=False,
            kernel_init=uniform,
            dtype=dtype,
            conv_general_dilated=convolution,
            rngs=rngs,
        )
        self.stem_norm = BatchNorm(width, dtype=dtype, rngs=rngs)
        blocks, features = [], width
        for widths, strides in BLOCKS:
            blocks.append(
                ReActBlock(
                    features,
                    widths * width,
                    strides,
                    kernel_quantizer=kernel_quantizer,
                    kernel_init=kernel_init,
                    product=product,
                    dtype=dtype,
                    rngs=rngs,
                )
            )
            features = widths * width
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(features, num_classes, kernel_init=uniform, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images to logits.

        `model.train()` and `model.eval()` choose the statistics that BatchNorm uses.

        Args:
            images: (batch, height, width, channels), of mean 0 and standard deviation 1.

        Returns:
            Logits, (batch, num_classes).
        """
        x = self.stem_norm(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class ReActBlock(nnx.Module):
    """A 3×3 and a 1×1 binary convolution, each with its shortcut.

    Args:
        in_features: channels of the input.
        out_features: channels of the output: `in_features`, or twice as many.
        strides: 1, or 2 to halve the image.
        kernel_quantizer: see `ReActNet`.
        kernel_init: initializer of the binary kernels. Default: that of `bop_optax.layers`.
        product: see `ReActNet`.
        dtype: see `ReActNet`.
        rngs: draws the kernels.

    Example:
        >>> block = ReActBlock(4, 8, 2, rngs=nnx.Rngs(0))
        >>> block(jnp.zeros((2, 7, 7, 4))).shape
        (2, 4, 4, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        strides: int = 1,
        *,
        kernel_quantizer: Quantizer | None = None,
        kernel_init: nnx.Initializer | None = None,
        product: Product = Product(),
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        conv = partial(
            BinaryConv,
            in_features,
            input_quantizer=approx_sign,
            kernel_quantizer=kernel_quantizer,
            kernel_init=kernel_init,
            product=product,
            dtype=dtype,
            rngs=rngs,
        )
        norm = partial(BatchNorm, dtype=dtype, rngs=rngs)
        self.strides, self.repeats = strides, out_features // in_features
        self.shift3, self.shift1 = Shift(in_features), Shift(in_features)
        self.conv3 = conv(in_features, (3, 3), strides, padding=1)
        self.conv1 = conv(out_features, (1, 1))
        self.norm3, self.norm1 = norm(in_features), norm(out_features)
        self.rprelu3, self.rprelu1 = rprelu(in_features), rprelu(out_features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Adds each binary convolution to its input.

        Args:
            x: (batch, height, width, in_features).

        Returns:
            (batch, height, width, out_features). With stride 2, height and width are halved and
            rounded up.
        """
        shortcut = mean_pool(x) if self.strides == 2 else x
        y = self.rprelu3(self.norm3(self.conv3(self.shift3(x))) + shortcut)
        shortcut = jnp.concatenate([y] * self.repeats, -1)
        return self.rprelu1(self.norm1(self.conv1(self.shift1(y))) + shortcut)


class Shift(nnx.Module):
    """Adds a number that each channel learns, 0 at the start.

    Args:
        features: channels.

    Example:
        >>> Shift(2)(jnp.array([-4.0, 4.0]))
        Array([-4.,  4.], dtype=float32)
    """

    def __init__(self, features: int):
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., features) to the same shape and dtype."""
        return x + self.bias[...].astype(x.dtype)


def rprelu(features: int) -> nnx.Sequential:
    """Makes an RPReLU, a PReLU between two shifts.

    Args:
        features: channels.

    Returns:
        A module that maps (..., features) to the same shape.

    Example:
        >>> rprelu(2)(jnp.array([-4.0, 4.0]))
        Array([-1.,  4.], dtype=float32)
    """
    return nnx.Sequential(Shift(features), PReLU(features, slope=0.25), Shift(features))
