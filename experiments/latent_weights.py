"""Section 3 of the paper: do binary weights approximate the latent weights behind them?

    python train.py cifar10-adam-small --data-dir DIR --run-dir RUN
    python -m experiments.latent_weights RUN --data-dir DIR

evaluates a trained network with its binary weights, and with the real-valued latent weights in
their place; its activations stay binary. If the binary weights were an approximation, the latent
weights would do better. Their sums have another scale than BatchNorm has seen. So both are also
evaluated with new batch statistics, of the training images. RUN/latent_weights.json holds the
accuracies.
"""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from bop_optax.layers import BinaryConv, BinaryLinear
from training.config import ImageNet, LatentAdam, LatentSGD
from training.data.augment import scale
from training.data.memory import Dataset
from training.machine import expanded
from training.messages import say
from training.records import read_record, write_json
from training.trained import load_latent_run

Accuracies = dict[str, dict[str, float]]


def with_latent_weights(model: nnx.Module) -> nnx.Module:
    """A copy of the network that computes with its latent weights, not with their signs."""
    model = nnx.clone(model)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BinaryConv | BinaryLinear):
            module.kernel_quantizer = None
    return model


def with_new_statistics(model: nnx.Module, data: Dataset, batch_size: int) -> nnx.Module:
    """A copy with new statistics of BatchNorm: their means over batches of the training images.

    Args:
        model: any network with `nnx.BatchNorm`.
        data: its training images are used; an incomplete last batch is dropped.
        batch_size: images in a batch.

    Raises:
        ValueError: for fewer images than a batch.
    """
    steps = data.num_train // batch_size
    if not steps:
        raise ValueError(f"{data.num_train} images are less than a batch of {batch_size}")
    model, training = nnx.clone(model), nnx.clone(model)
    training.train()
    for _, module in nnx.iter_modules(training):
        if isinstance(module, nnx.BatchNorm):
            module.momentum = 0.0  # its averages are then the statistics of the last batch
    graph, statistics, rest = nnx.split(training, nnx.BatchStat, ...)
    total = jax.tree.map(jnp.zeros_like, statistics)
    for images in np.split(data.train_images[: steps * batch_size], steps):
        inputs = scale(jnp.asarray(images), data.mean, data.std)
        of_batch = _batch_statistics(graph, statistics, rest, inputs)
        total = jax.tree.map(jnp.add, total, of_batch)
    nnx.update(model, jax.tree.map(lambda x: x / steps, total))
    return model


@partial(jax.jit, static_argnums=0)
def _batch_statistics(graph: Any, statistics: Any, rest: Any, inputs: jax.Array) -> nnx.State:
    model = nnx.merge(graph, statistics, rest, copy=True)
    model(inputs)
    return nnx.state(model, nnx.BatchStat)


def evaluate(model: nnx.Module, data: Dataset, batch_size: int) -> Accuracies:
    """Accuracies with binary and with latent weights, with both statistics, on both splits."""
    accuracies: Accuracies = {}
    for weights, network in (("binary", model), ("latent", with_latent_weights(model))):
        updated = with_new_statistics(network, data, batch_size)
        for name, variant in ((weights, network), (f"{weights}, new statistics", updated)):
            variant.eval()
            accuracies[name] = {
                "train": accuracy(variant, data, data.train_images, data.train_labels),
                data.evaluated_on: accuracy(variant, data, data.test_images, data.test_labels),
            }
    return accuracies


def accuracy(model: nnx.Module, data: Dataset, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of the images whose class has the highest logit."""
    parts = np.array_split(images, max(len(images) // 500, 1))
    classes = [_classify(model, scale(jnp.asarray(p), data.mean, data.std)) for p in parts]
    return float(np.mean(np.concatenate(classes) == labels))


@nnx.jit
def _classify(model: Any, inputs: jax.Array) -> jax.Array:
    return model(inputs).argmax(-1)


def main(run: Annotated[Path, tyro.conf.Positional], /, data_dir: Path | None = None) -> None:
    """Evaluates a trained network with its latent weights in place of their signs (section 3).

    Args:
        run: The folder of a finished run of train.py with latent weights.
        data_dir: TFDS directory. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    """
    try:
        run = expanded(run)
        experiment, record = read_record(run / "result.json")
        if not isinstance(experiment.optimizer, LatentAdam | LatentSGD):
            name = type(experiment.optimizer).__name__
            raise ValueError(f"{run} was trained by {name}: it has no latent weights")
        if isinstance(experiment.data, ImageNet):
            raise ValueError("imagenet2012 does not fit into memory")
        has_files = hasattr(experiment.data, "data_dir")
        config = replace(experiment.data, data_dir=data_dir) if has_files else experiment.data
        data, model = config.load(), load_latent_run(run)
        accuracies = evaluate(model, data, experiment.batch_size)
        del record["metrics"]
        write_json(run / "latent_weights.json", record | {"latent_weights": accuracies})
    except (ValueError, OSError) as error:
        sys.exit(f"experiments.latent_weights: {error}")
    say(json.dumps(accuracies, indent=1))


def cli() -> None:
    """Reads the command line."""
    tyro.cli(main, prog="python -m experiments.latent_weights")


if __name__ == "__main__":
    cli()
