"""Networks of the papers for Flax NNX, one file each.

`import bop_optax` does not import this package, which needs Flax.
"""

from bop_optax.models.binary_alexnet import BinaryAlexNet
from bop_optax.models.binarynet import BinaryNet
from bop_optax.models.birealnet import BiRealNet
from bop_optax.models.xnornet import XNORNet

__all__ = ["BiRealNet", "BinaryAlexNet", "BinaryNet", "XNORNet"]
