"""Section 3 of the paper: do binary weights approximate the latent weights behind them?

    python train.py cifar10-adam-small --data-dir DIR --run-dir RUN
    python latent_weights.py RUN --data-dir DIR

evaluates the trained network as it is, and with the real-valued latent weights in place of their
signs; its activations stay binary. If the signs were an approximation, the latent weights would do
better. As their sums have another scale than BatchNorm has seen, both are also evaluated with its
statistics estimated anew, on the training images. RUN/latent_weights.json holds the accuracies.
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

import datasets
import train
from bop_optax.layers import BinaryConv, BinaryLinear
from experiments import Experiment
from runs import load_weights, read_result, write_json

Accuracies = dict[str, dict[str, float]]


def with_latent_weights(model: nnx.Module) -> nnx.Module:
    """A copy of the network that computes with its latent weights, not with their signs."""
    model = nnx.clone(model)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BinaryConv | BinaryLinear):
            module.kernel_quantizer = None
    return model


def with_new_statistics(model: nnx.Module, images: np.ndarray, batch_size: int) -> nnx.Module:
    """A copy with BatchNorm's statistics estimated anew: their means over batches of the images.

    Args:
        model: any network with `nnx.BatchNorm`.
        images: uint8, (number, height, width, channels); an incomplete last batch is dropped.
        batch_size: images a batch.

    Raises:
        ValueError: for fewer images than a batch.
    """
    steps = len(images) // batch_size
    if not steps:
        raise ValueError(f"{len(images)} images are less than a batch of {batch_size}")
    model, training = nnx.clone(model), nnx.clone(model)
    training.train()
    for _, module in nnx.iter_modules(training):
        if isinstance(module, nnx.BatchNorm):
            module.momentum = 0.0  # its averages are then the statistics of the last batch
    graph, statistics, rest = nnx.split(training, nnx.BatchStat, ...)
    total = jax.tree.map(jnp.zeros_like, statistics)
    for batch in images[: steps * batch_size].reshape(steps, batch_size, *images.shape[1:]):
        own = batch_statistics(graph, statistics, rest, batch)
        total = jax.tree.map(jnp.add, total, own)
    nnx.update(model, jax.tree.map(lambda x: x / steps, total))
    return model


@partial(jax.jit, static_argnums=0)
def batch_statistics(graph: Any, statistics: Any, rest: Any, images: jax.Array) -> nnx.State:
    model = nnx.merge(graph, statistics, rest, copy=True)
    model(datasets.scale(images))
    return nnx.state(model, nnx.BatchStat)


def evaluate(model: nnx.Module, config: Experiment, data: datasets.Dataset) -> Accuracies:
    """Accuracies with binary and with latent weights, by which statistics, by which images."""
    accuracies: Accuracies = {}
    for weights, network in (("binary", model), ("latent", with_latent_weights(model))):
        again = with_new_statistics(network, data.train_images, config.batch_size)
        for name, variant in ((weights, network), (f"{weights}, new statistics", again)):
            variant.eval()
            accuracies[name] = {
                "train": accuracy(variant, data.train_images, data.train_labels),
                config.evaluated_on: accuracy(variant, data.test_images, data.test_labels),
            }
    return accuracies


@nnx.jit
def classify(model: nnx.Module, images: Any) -> jax.Array:
    return model(datasets.scale(images)).argmax(-1)


def accuracy(model: nnx.Module, images: np.ndarray, labels: np.ndarray) -> float:
    parts = np.array_split(np.arange(len(images)), max(len(images) // 500, 1))
    return float(np.mean(np.concatenate([classify(model, images[p]) for p in parts]) == labels))


def main(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    data_dir: Path | None = None,
) -> None:
    """Evaluates a trained network with its latent weights in place of their signs (section 3).

    Args:
        run: The folder of a finished run of train.py with --optimizer adam or sgd.
        data_dir: TFDS directory. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    """
    try:
        config, record = read_result(run / "result.json")
        if not config.latent:
            raise ValueError(f"{run} was trained by Bop: it has no latent weights")
        data = train.load_in_memory(replace(config, data_dir=data_dir))
        program, state = train.build(config, data)
        model = nnx.merge(program.eval_graph, state.params, state.batch_stats)
        load_weights(model, run / "weights.npz")
    except (ValueError, OSError) as error:
        sys.exit(f"latent_weights.py: {error}")
    accuracies = evaluate(model, config, data)
    record.pop("metrics", None)
    write_json(run / "latent_weights.json", record | {"latent_weights": accuracies})
    print(json.dumps(accuracies, indent=1))


def cli() -> None:
    tyro.cli(main)


if __name__ == "__main__":
    cli()
