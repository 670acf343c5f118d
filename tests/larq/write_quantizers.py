"""Writes quantizers.json: what Larq's quantizers return. Runs in Larq's environment.

TF_USE_LEGACY_KERAS=1 python tests/larq/write_quantizers.py  # larq 0.13.3, tensorflow 2.17.1
"""

import json
from pathlib import Path

import larq as lq
import numpy as np
import tensorflow as tf

EDGES = np.float32([0.0, 0.05, 0.5, 1.0, 1.25])
GRID = np.concatenate([EDGES, np.nextafter(EDGES, np.float32(9)), np.nextafter(EDGES, -EDGES - 9)])
GRID = np.concatenate([GRID, np.float32([1 / 6, 0.3, 0.7, 2.0, 3.5, 17.0])])
GRID = np.concatenate([GRID, -GRID]).astype(np.float32).reshape(-1, 2)
WEIGHTS = np.linspace(-1, 2, GRID.size, dtype=np.float32).reshape(GRID.shape)
QUANTIZERS = {
    "ste_sign": lq.quantizers.SteSign(),
    "ste_sign clip=1.25": lq.quantizers.SteSign(1.25),
    "ste_sign clip=None": lq.quantizers.SteSign(None),
    "approx_sign": lq.quantizers.ApproxSign(),
    "swish_sign": lq.quantizers.SwishSign(),
    "swish_sign beta=2.0": lq.quantizers.SwishSign(2.0),
    "magnitude_aware_sign": lq.quantizers.MagnitudeAwareSign(),
    "magnitude_aware_sign clip=0.5": lq.quantizers.MagnitudeAwareSign(0.5),
    "ste_tern": lq.quantizers.SteTern(),
    "ste_tern threshold=0.5": lq.quantizers.SteTern(0.5),
    "ste_tern threshold=0.0": lq.quantizers.SteTern(0.0),
    "ste_tern threshold=None": lq.quantizers.SteTern(ternary_weight_networks=True),
    "ste_tern clip=0.5": lq.quantizers.SteTern(clip_value=0.5),
    "ste_heaviside": lq.quantizers.SteHeaviside(),
    "ste_heaviside clip=0.5": lq.quantizers.SteHeaviside(0.5),
    "dorefa": lq.quantizers.DoReFa(),
    "dorefa bits=1": lq.quantizers.DoReFa(1),
    "dorefa bits=8": lq.quantizers.DoReFa(8),
    "dorefa mode='weights'": lq.quantizers.DoReFa(mode="weights"),
    "dorefa bits=4 mode='weights'": lq.quantizers.DoReFa(4, mode="weights"),
}


def values(quantizer):
    """Outputs for GRID, the gradient of their sum weighted by WEIGHTS, the number of bits."""
    x = tf.constant(GRID)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = quantizer(x)
    gradient = tape.gradient(outputs, x, tf.constant(WEIGHTS))
    return {
        "outputs": outputs.numpy().tolist(),
        "gradient": gradient.numpy().tolist(),
        "precision": quantizer.precision,
    }


if __name__ == "__main__":
    cases = {name: values(quantizer) for name, quantizer in QUANTIZERS.items()}
    content = {"inputs": GRID.tolist(), "weights": WEIGHTS.tolist(), "cases": cases}
    Path(__file__).with_name("quantizers.json").write_text(json.dumps(content) + "\n")
