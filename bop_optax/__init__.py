"""Training Binarized Neural Networks in JAX with Bop, an optimizer without latent weights.

`bop` is an Optax transform, and `bop_layerwise`, `bop_2nd_order` and `cema` are its variants;
`binary_labels` tells which parameters are theirs, and quantizers and metrics go with them. The Flax
NNX layers are in `bop_optax.layers`, which is not imported here: this module needs JAX and Optax
alone.
"""

from bop_optax._bop import BopState, bop
from bop_optax._labels import binary_labels
from bop_optax._variants import Bop2ndOrderState, CemaState, bop_2nd_order, bop_layerwise, cema
from bop_optax.metrics import flip_ratio, flips, log_flip_ratio
from bop_optax.quantizers import approx_sign, binarize, ste_sign

__version__ = "0.1.0"

__all__ = [
    "Bop2ndOrderState",
    "BopState",
    "CemaState",
    "approx_sign",
    "binarize",
    "binary_labels",
    "bop",
    "bop_2nd_order",
    "bop_layerwise",
    "cema",
    "flip_ratio",
    "flips",
    "log_flip_ratio",
    "ste_sign",
]
