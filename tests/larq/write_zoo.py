"""Writes random weights of a network of Larq Zoo, and its logits. Runs in Larq's environment.

TF_USE_LEGACY_KERAS=1 python tests/larq/write_zoo.py NETWORK SIZE FOLDER

FOLDER gets weights.h5, as the Zoo's files are, and images.npy and logits.npy. All is in float64: in
float32 a rounding error may turn a sign.
"""

import sys
from pathlib import Path

import larq_zoo
import numpy as np
import tensorflow as tf

RNG = np.random.default_rng(0)


def random_weights(name, shape):
    """Values as after training: statistics and scales of each channel differ."""
    if "variance" in name:
        return RNG.uniform(0.5, 2, shape)
    if "gamma" in name:
        return RNG.uniform(0.5, 1.5, shape) * RNG.choice([-1, 1], shape)
    return RNG.normal(0, 0.3, shape).clip(-1, 1)  # as the Zoo constrains kernels


def main(network, size, folder):
    tf.keras.backend.set_floatx("float64")
    build = getattr(larq_zoo.literature, network, None) or getattr(larq_zoo.sota, network)
    model = build(input_shape=(size, size, 3), weights=None, num_classes=10)
    for layer in model.layers:
        named = [(weight.name, weight.shape) for weight in layer.weights]
        layer.set_weights([random_weights(name, shape) for name, shape in named])
    softmax = (tf.keras.layers.Activation, tf.keras.layers.Softmax)
    last = next(layer for layer in reversed(model.layers) if isinstance(layer, softmax))
    images = RNG.normal(size=(2, size, size, 3))
    logits = tf.keras.Model(model.input, last.input)(images)
    model.save_weights(folder / "weights.h5")
    np.save(folder / "images.npy", images)
    np.save(folder / "logits.npy", logits)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
