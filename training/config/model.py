"""The network of a run. A class of your own needs a method `build` alone.

`build(image_shape, num_classes, *, rngs, **kernel_options)` draws a network that maps scaled images
(batch, height, width, channels) to logits (batch, num_classes). `kernel_options` come from the
optimizer, for the binary layers: none for Bop, a quantizer and an initializer for latent weights.
With `--backward` they have a `bop_optax.layers.Product`, with `--dtype` a dtype, too.
"""

from dataclasses import dataclass
from typing import Any, Literal

from flax import nnx

from bop_optax.models import binary_alexnet, binarynet, birealnet, quicknet, reactnet, xnornet
from training.config.ranges import require

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class BinaryNet:
    """The VGG-like network of Courbariaux et al. (2016)."""

    width: int = 128
    """Channels of the first stage; each stage doubles them."""
    units: int | None = None
    """Units of each hidden dense layer. None: 8 × width, as in the paper (1024 at width 128)."""
    stages: int = 3
    """Stages of two convolutions and a 2×2 pooling."""
    first_padding: Literal["VALID", "SAME"] = "VALID"
    """Padding of the first convolution: VALID in the authors' code, SAME in the paper."""

    def __post_init__(self):
        require(self.width >= 1, "width", "at least 1", self.width)
        require(self.units is None or self.units >= 1, "units", "at least 1", self.units)
        require(self.stages >= 1, "stages", "at least 1", self.stages)

    def build(self, image_shape: Shape, num_classes: int, **options: Any) -> nnx.Module:
        """Draws the network."""
        options |= {"stages": self.stages, "first_padding": self.first_padding}
        units = self.units or 8 * self.width
        return binarynet.BinaryNet(
            self.width, units, num_classes, image_shape=image_shape, **options
        )


@dataclass(frozen=True)
class BiRealNet:
    """Bi-Real Net-18 of Liu et al. (2018)."""

    width: int = 64
    """Channels of the first stage; each stage doubles them."""

    def __post_init__(self):
        require(self.width >= 1, "width", "at least 1", self.width)

    def build(self, image_shape: Shape, num_classes: int, **options: Any) -> nnx.Module:
        """Draws the network; its stem is the one for small images if a side is below 64 pixels."""
        options["small_images"] = min(image_shape[:2]) < 64
        return birealnet.BiRealNet(self.width, num_classes, image_shape=image_shape, **options)


@dataclass(frozen=True)
class BinaryAlexNet:
    """Binary AlexNet of Hubara et al. (2016)."""

    width: int = 64
    """Channels of the first convolution; the others have multiples of it."""
    units: int = 4096
    """Units of each hidden dense layer."""

    def __post_init__(self):
        require(self.width >= 1, "width", "at least 1", self.width)
        require(self.units >= 1, "units", "at least 1", self.units)

    def build(self, image_shape: Shape, num_classes: int, **options: Any) -> nnx.Module:
        """Draws the network."""
        return binary_alexnet.BinaryAlexNet(
            self.width, self.units, num_classes, image_shape=image_shape, **options
        )


@dataclass(frozen=True)
class XNORNet:
    """XNOR-Net of Rastegari et al. (2016)."""

    width: int = 32
    """The five convolutions have 3, 8, 12, 12 and 8 times as many channels."""
    units: int = 4096
    """Units of each hidden dense layer."""

    def __post_init__(self):
        require(self.width >= 1, "width", "at least 1", self.width)
        require(self.units >= 1, "units", "at least 1", self.units)

    def build(self, image_shape: Shape, num_classes: int, **options: Any) -> nnx.Module:
        """Draws the network."""
        return xnornet.XNORNet(
            self.width, self.units, num_classes, image_shape=image_shape, **options
        )


@dataclass(frozen=True)
class QuickNet:
    """QuickNet of Bannink et al. (2021)."""

    variant: Literal["small", "medium", "large"] = "medium"
    """Larq Zoo's QuickNetSmall, QuickNet or QuickNetLarge."""

    def build(self, image_shape: Shape, num_classes: int, **options: Any) -> nnx.Module:
        """Draws the network."""
        network = {
            "small": quicknet.QuickNetSmall,
            "medium": quicknet.QuickNet,
            "large": quicknet.QuickNetLarge,
        }[self.variant]
        return network(num_classes=num_classes, image_shape=image_shape, **options)


@dataclass(frozen=True)
class ReActNet:
    """ReActNet-A of Liu et al. (2020)."""

    width: int = 32
    """Channels of the first layer; the blocks have 2 to 32 times as many."""

    def __post_init__(self):
        require(self.width >= 1, "width", "at least 1", self.width)

    def build(self, image_shape: Shape, num_classes: int, **options: Any) -> nnx.Module:
        """Draws the network."""
        return reactnet.ReActNet(self.width, num_classes, image_shape=image_shape, **options)
