"""A trained BinaryNet on OpenVINO's CPU plugin, in one bit: `pip install openvino`.

Every product after the first is a `BinaryConvolution` of bits by bits, which the plugin computes
by population counts on x86. Every BatchNorm before a sign is a threshold, a `FakeQuantize` of two
levels. The first convolution and the last BatchNorm stay real. Written for OpenVINO 2026.4.

    python docs/examples/openvino_binarynet.py runs/digits network.xml 1

classifies one image a call.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import openvino as ov
import openvino.opset1 as op
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[2]))  # a clone of the repository

from bop_optax.folding import Threshold, fold
from bop_optax.models.binarynet import BinaryNet
from training.trained import load_run

TINY = np.finfo(np.float32).tiny  # the smallest normal number


def build(model: BinaryNet, image_shape: tuple[int, int, int], batch: int = 1) -> ov.Model:
    """Builds the OpenVINO model of a BinaryNet.

    The plugin has no `BinaryConvolution` for a batch of unknown size, so `batch` is fixed.

    Args:
        model: a trained BinaryNet.
        image_shape: (height, width, channels) of one image.
        batch: number of images in a call.

    Returns:
        A model from images, float32, `(batch, *image_shape)`, to logits, (batch, classes).

    Raises:
        ValueError: for a kernel that is not ±1, and if the inputs of a binary layer are not a
            multiple of 8: the plugin's kernels would give wrong sums.
    """
    model = fold(model, jax.ShapeDtypeStruct((batch, *image_shape), np.float32))
    images = op.parameter([batch, *image_shape], np.float32, name="images")
    x = op.transpose(images, op.constant(np.array([0, 3, 1, 2])))
    *thresholds, last_norm = model.norms
    layers = [*model.convs, *model.denses]
    for i, layer in enumerate(layers):
        x = product(x, layer, binary=i > 0)
        x.set_friendly_name(f"product_{i}")
        if i < len(model.convs) and i % 2:
            x = op.max_pool(x, [2, 2], [0, 0], [0, 0], [2, 2])
        if i < len(thresholds):
            x = bits(x, thresholds[i])
    logits = op.reshape(batch_norm(x, last_norm), op.constant(np.array([batch, -1])), False)
    return ov.Model([logits], [images], "binarynet")


def product(x: ov.Node, layer: Any, binary: bool) -> ov.Node:
    """The product of a layer; a dense layer is a convolution whose window is the whole input."""
    _, channels, *image = x.shape
    dense = not hasattr(layer, "padding")
    kernel = np.asarray(layer.binary_kernel(), np.float32)
    kernel = kernel.reshape(*image, channels, -1) if dense else kernel
    if (np.abs(kernel) != 1).any():
        raise ValueError(f"a kernel of shape {kernel.shape} is not ±1")
    kernel = kernel.transpose(3, 2, 0, 1)
    strides = (1, 1) if dense else layer.strides
    pad = "valid" if dense or layer.padding == "VALID" else "same_upper"
    ones, none = [1, 1], [0, 0]
    if not binary:
        return op.convolution(x, op.constant(kernel), strides, none, none, ones, auto_pad=pad)
    if channels % 8:
        raise ValueError(f"{channels=} of a binary layer must be a multiple of 8")
    value = 0.0 if dense else float(layer.padding_value)
    return op.binary_convolution(
        x, one_bit(kernel), strides, none, none, ones, "xnor-popcount", value, auto_pad=pad
    )


def one_bit(kernel: np.ndarray) -> ov.Node:
    """A constant of bits, 1 for +1; the plugin reads the lowest bit of a byte first."""
    tensor = ov.Tensor(ov.Type.u1, ov.Shape(kernel.shape))
    tensor.data[:] = np.packbits(kernel.ravel() > 0, bitorder="little").reshape(tensor.data.shape)
    return ov.op.Constant(tensor)


def bits(x: ov.Node, norm: Threshold) -> ov.Node:
    """1 if direction · x ≥ threshold, else 0, which `BinaryConvolution` reads as −1.

    `FakeQuantize` gives `high` if x > limit, else `low`. Its four arrays are four constants:
    a shared one would keep the plugin from fusing it into the product before.
    """
    threshold = np.asarray(norm.threshold[...], np.float32)
    positive = np.asarray(norm.direction[...]) > 0
    limit = np.where(positive, number_below(threshold), -threshold)
    arrays = (limit, limit, ~positive, positive)
    constants = [op.constant(a.astype(np.float32).reshape(1, -1, 1, 1)) for a in arrays]
    return op.fake_quantize(x, *constants, 2)


def number_below(threshold: np.ndarray) -> np.ndarray:
    """The largest float32 below each threshold, of the normal numbers and 0."""
    below = np.nextafter(threshold, np.float32(-np.inf))
    return np.where(np.abs(below) < TINY, np.where(threshold > 0, 0, -TINY), below)


def batch_norm(x: ov.Node, norm: nnx.BatchNorm) -> ov.Node:
    """BatchNorm with the stored statistics, in the order of operations of Flax."""

    def channels(array: Any) -> ov.Node:
        return op.constant(np.asarray(array, np.float32).reshape(1, -1, 1, 1))

    scale = 1 / np.sqrt(np.asarray(norm.var[...]) + np.float32(norm.epsilon))
    scale = scale if norm.scale is None else scale * np.asarray(norm.scale[...])
    x = op.multiply(op.subtract(x, channels(norm.mean[...])), channels(scale))
    return x if norm.bias is None else op.add(x, channels(norm.bias[...]))


if __name__ == "__main__":
    run, file, batch = sys.argv[1:]
    trained = load_run(run)
    model = build(trained.model, trained.image_shape, int(batch))
    ov.save_model(model, file, compress_to_fp16=False)  # kernels stay bits, thresholds float32
