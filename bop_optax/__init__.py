"""Training Binarized Neural Networks in JAX with Bop, an optimizer without latent weights.

`bop` is an Optax transform, `binary_labels` tells which parameters are its own, and the quantizers
and metrics go with it. The Flax NNX layers are in `bop_optax.layers`, which is not imported here:
this module needs JAX and Optax alone.
"""

from bop_optax._bop import BopState, bop
from bop_optax._labels import binary_labels
from bop_optax.metrics import flip_ratio, flips, log_flip_ratio
from bop_optax.quantizers import approx_sign, binarize, ste_sign

__version__ = "0.1.0"

__all__ = [
    "BopState",
    "approx_sign",
    "binarize",
    "binary_labels",
    "bop",
    "flip_ratio",
    "flips",
    "log_flip_ratio",
    "ste_sign",
]
