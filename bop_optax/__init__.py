"""Binarized Neural Networks in JAX, trained by Bop: an optimizer without latent weights.

`bop` is an Optax transform. Its variants are `bop_layerwise`, `bop_2nd_order`, `cema`, `bold` and
`prob_bop`. `binary_labels` labels the binary parameters for `optax.partition`. Quantizers and
metrics complete the package. It needs JAX and Optax alone. Import separately: `layers`, `models`,
`summary`, `folding` and `packing` (Flax NNX); `linen` (Flax Linen); `latent`, the baseline with
latent weights; `saving` (safetensors); `onnx`, `tflite` and `larq` (an extra each); `processor`.
"""

from bop_optax._bold import BoldState, bold
from bop_optax._bop import BopState, bop
from bop_optax._bop_2nd_order import Bop2ndOrderState, bop_2nd_order
from bop_optax._bop_layerwise import bop_layerwise
from bop_optax._cema import CemaState, cema
from bop_optax._check_binary import check_binary
from bop_optax._labels import binary_labels
from bop_optax._prob_bop import ProbBopState, prob_bop
from bop_optax.metrics import flip_ratio, flips, log_flip_ratio
from bop_optax.quantizers import (
    approx_sign,
    binarize,
    dorefa,
    magnitude_aware_sign,
    ste_heaviside,
    ste_sign,
    ste_tern,
    swish_sign,
)

__version__ = "0.1.0"

__all__ = [
    "BoldState",
    "Bop2ndOrderState",
    "BopState",
    "CemaState",
    "ProbBopState",
    "approx_sign",
    "binarize",
    "binary_labels",
    "bold",
    "bop",
    "bop_2nd_order",
    "bop_layerwise",
    "cema",
    "check_binary",
    "dorefa",
    "flip_ratio",
    "flips",
    "log_flip_ratio",
    "magnitude_aware_sign",
    "prob_bop",
    "ste_heaviside",
    "ste_sign",
    "ste_tern",
    "swish_sign",
]
