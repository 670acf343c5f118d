"""Writes layers.json: what Larq's layers return. Runs in Larq's environment.

TF_USE_LEGACY_KERAS=1 python tests/larq/write_layers.py  # larq 0.13.3, tensorflow 2.17.1
"""

import json
from pathlib import Path

import larq as lq
import numpy as np

SIGNS = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign", "use_bias": False}
DEPTH = {"depthwise_quantizer": "ste_sign", "use_bias": False, "input_quantizer": "ste_sign"}
LAYERS = {
    f"QuantConv{rank}DTranspose {padding} {strides}": (
        rank,
        getattr(lq.layers, f"QuantConv{rank}DTranspose")(
            2, 3, strides=strides, padding=padding, **SIGNS
        ),
    )
    for padding in ("same", "valid")
    for rank, strides in ((2, 1), (2, 2), (2, 3), (3, 2))
}
LAYERS["QuantDepthwiseConv2D"] = (2, lq.layers.QuantDepthwiseConv2D(3, padding="same", **DEPTH))
LAYERS["QuantSeparableConv2D"] = (
    2,
    lq.layers.QuantSeparableConv2D(4, 3, padding="same", pointwise_quantizer="ste_sign", **DEPTH),
)


def values(rank, layer):
    """Inputs, weights and outputs."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(1, *range(5, 5 - rank, -1), 3)).round(1).astype(np.float32)
    layer.build(inputs.shape)
    layer.set_weights([rng.normal(size=w.shape).round(1) for w in layer.get_weights()])
    weights = [w.astype(np.float64).round(1).tolist() for w in layer.get_weights()]
    outputs = layer(inputs).numpy().tolist()
    return {
        "inputs": inputs.astype(np.float64).round(1).tolist(),
        "weights": weights,
        "outputs": outputs,
    }


if __name__ == "__main__":
    content = {name: values(rank, layer) for name, (rank, layer) in LAYERS.items()}
    Path(__file__).with_name("layers.json").write_text(json.dumps(content) + "\n")
