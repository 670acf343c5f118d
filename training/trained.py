"""A finished run, loaded from its folder."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bop_optax.layers import LatentParam
from bop_optax.saving import load
from training.checkpoints import Checkpoints, DamagedCheckpoint, leaves_by_name
from training.config import Experiment, from_json
from training.data.augment import scale
from training.data.memory import check_names, check_scaling
from training.machine import expanded
from training.network import for_inference, layer_options
from training.records import WEIGHTS, read_json

DTYPES = ("float32", "bfloat16")


class TrainedModel(NamedTuple):
    """A model with the weights of a run, in evaluation mode, and the images that it takes.

    Attributes:
        model: maps scaled images to logits.
        evaluated: gives the same logits; on a CPU packed, see `bop_optax.packing.pack`.
        image_shape: (height, width, channels) of one image.
        class_names: one for each class, or None.
        mean, std: what the images are scaled by: (x − mean) / std.
    """

    model: nnx.Module
    evaluated: nnx.Module
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None
    mean: Any
    std: Any

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Classifies images.

        Args:
            images: uint8, `(number, *image_shape)`.

        Returns:
            float32, (number, classes), each row adding up to 1.
        """
        return np.asarray(
            _probabilities(self.evaluated, scale(jnp.asarray(images), self.mean, self.std))
        )


@nnx.jit
def _probabilities(model: Any, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(model(images).astype(jnp.float32))


def load_latent_run(folder: Path | str) -> nnx.Module:
    """Loads the model of a finished run with the latent weights of its last checkpoint.

    Raises:
        ValueError: for a folder without a finished run, and without that checkpoint.
    """
    model = load_run(folder).model
    path = expanded(Path(folder)).absolute() / "checkpoints"
    with Checkpoints(path) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise ValueError(f"{path} has no checkpoint, which holds the latent weights")
        try:
            stored = checkpoints.read(steps[0])
        except DamagedCheckpoint as error:
            raise ValueError(f"{path}/{steps[0]} cannot be read: {error}") from error
    state = nnx.state(model, LatentParam)
    names, treedef = leaves_by_name({"params": state})
    nnx.update(model, treedef.unflatten([jnp.asarray(stored[name]) for name in names])["params"])
    return model


def load_run(folder: Path | str, model: Any = None) -> TrainedModel:
    """Loads the model of a finished run.

    Args:
        folder: the run's folder, which holds config.json and weights.safetensors.
        model: the configuration of the network, if it is a class of your own. None: as in
            config.json.

    Raises:
        ValueError: for a folder without a finished run, and for weights that do not fit.

    Example:
        >>> trained = load_run("runs/digits")  # doctest: +SKIP
        >>> trained.probabilities(images).argmax(-1)  # doctest: +SKIP
        array([3, 1, 4])
    """
    folder = expanded(Path(folder))
    try:
        description = read_json(folder / "config.json")
        config, images = description["config"], SimpleNamespace(**description["images"])
        hints = get_type_hints(Experiment)
        optimizer = from_json(config["optimizer"], hints["optimizer"])
        mean, std = check_scaling(images.mean, images.std, images.shape[-1])
        names = check_names(images.class_names, images.num_classes)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} holds no finished run: config.json ({error})") from error
    try:
        model = model or from_json(config["model"], hints["model"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}/config.json: {error}: use load_run(folder, model=...) in Python"
        ) from error
    dtype = config.get("dtype", "float32")
    if dtype not in DTYPES:
        raise ValueError(f"{folder}/config.json: dtype must be {' or '.join(DTYPES)}, got {dtype}")
    options = layer_options(optimizer, dtype)
    try:
        network = model.build(tuple(images.shape), images.num_classes, rngs=nnx.Rngs(0), **options)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder}/config.json: {error}") from error
    try:
        load(folder / WEIGHTS, network)
    except OSError as error:
        raise ValueError(f"{folder} holds no finished run: {WEIGHTS} ({error})") from error
    evaluated, shape = for_inference(network), tuple(images.shape)
    return TrainedModel(network, evaluated, shape, names, mean, std)
