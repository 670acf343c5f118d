"""Trains a network of your own on images of your own: `python docs/examples/own_network.py`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[2]))  # a clone of the repository

import train
from bop_optax import ste_sign
from bop_optax.layers import BinaryLinear
from training.config import Bop, Experiment, RunConfig, Schedule
from training.data.memory import Dataset


@dataclass(frozen=True)
class Stripes:
    """Noisy 8×8 images of horizontal (0) and vertical (1) stripes."""

    def load(self) -> Dataset:
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 2, 2000)
        stripes = np.stack([np.indices((8, 8))[axis] // 2 % 2 for axis in (0, 1)])
        images = rng.normal(255 * stripes[labels], 150).clip(0, 255).astype(np.uint8)[..., None]
        return Dataset(images[:1600], labels[:1600], images[1600:], labels[1600:])


@dataclass(frozen=True)
class TwoLayers:
    """Two binary dense layers."""

    units: int = 64

    def build(self, image_shape, num_classes, *, rngs, **options) -> nnx.Module:
        return nnx.Sequential(
            lambda x: x.reshape(len(x), -1),
            BinaryLinear(int(np.prod(image_shape)), self.units, rngs=rngs, **options),
            nnx.BatchNorm(self.units, use_scale=False, rngs=rngs),
            BinaryLinear(self.units, num_classes, input_quantizer=ste_sign, rngs=rngs, **options),
            nnx.BatchNorm(num_classes, use_scale=False, rngs=rngs),
        )


rule = Bop(gamma=Schedule(1e-2, end=0.0), threshold=Schedule(1e-6))
experiment = Experiment(Stripes(), TwoLayers(), rule, epochs=5, batch_size=40, pad=0, flip=False)

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None  # None: runs/stripes-TIME
    print(train.run(experiment, RunConfig(folder), preset="stripes"))
