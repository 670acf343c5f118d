"""Networks of the papers for Flax NNX, one file each.

`import bop_optax` does not import this package, which needs Flax.
"""

from bop_optax.models.binary_alexnet import BinaryAlexNet
from bop_optax.models.binary_densenet import (
    BinaryDenseNet,
    BinaryDenseNet28,
    BinaryDenseNet37,
    BinaryDenseNet37Dilated,
    BinaryDenseNet45,
)
from bop_optax.models.binary_resnet_e import BinaryResNetE18
from bop_optax.models.binarynet import BinaryNet
from bop_optax.models.birealnet import BiRealNet
from bop_optax.models.meliusnet import MeliusNet22
from bop_optax.models.quicknet import QuickNet, QuickNetLarge, QuickNetSmall
from bop_optax.models.reactnet import ReActNet
from bop_optax.models.real_to_binary import RealToBinaryNet
from bop_optax.models.xnornet import XNORNet

__all__ = [
    "BiRealNet",
    "BinaryAlexNet",
    "BinaryDenseNet",
    "BinaryDenseNet28",
    "BinaryDenseNet37",
    "BinaryDenseNet37Dilated",
    "BinaryDenseNet45",
    "BinaryNet",
    "BinaryResNetE18",
    "MeliusNet22",
    "QuickNet",
    "QuickNetLarge",
    "QuickNetSmall",
    "ReActNet",
    "RealToBinaryNet",
    "XNORNet",
]
