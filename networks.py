"""The network of an experiment, its first state, and what a run of it is compiled from."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import datasets
from bop_optax import binary_labels, flip_ratio, log_flip_ratio, ste_sign
from bop_optax.layers import BinaryParam, LatentParam, glorot_uniform
from experiments import Experiment
from models.binary_alexnet import BinaryAlexNet
from models.binarynet import BinaryNet
from models.birealnet import BiRealNet
from models.xnornet import XNORNet
from optimizers import make_optimizer


class TrainState(NamedTuple):
    """All that training changes. `sums` adds up the metrics of the steps of the epoch so far."""

    step: jax.Array
    params: Any
    batch_stats: nnx.State
    opt_state: optax.OptState
    sums: dict[str, Any]


class Program(NamedTuple):
    """What a run is compiled from: `init` maps a seed to the first state; the model's graphs; which
    parameters are binary; what the model takes for uint8 images; the devices."""

    init: Callable[[jax.Array], TrainState]
    train_graph: nnx.GraphDef
    eval_graph: nnx.GraphDef
    labels: Any
    scale: Callable[[jax.Array], jax.Array]
    mesh: jax.sharding.Mesh
    steps_per_epoch: int


def make_model(config: Experiment, data: Any, rngs: nnx.Rngs) -> nnx.Module:
    units = config.units or 8 * config.width
    options = {"image_shape": data.image_shape, "rngs": rngs}
    if config.latent:
        options |= {"kernel_quantizer": ste_sign, "kernel_init": scaled_glorot(config.latent_scale)}
    match config.model:
        case "binarynet":
            options |= {"stages": config.stages, "first_padding": config.first_padding}
            return BinaryNet(config.width, units, data.num_classes, **options)
        case "birealnet":
            small = min(data.image_shape[:2]) < 64
            return BiRealNet(config.width, data.num_classes, small_images=small, **options)
        case "binary_alexnet":
            return BinaryAlexNet(config.width, units, data.num_classes, **options)
        case "xnornet":
            return XNORNet(config.width, units, data.num_classes, **options)


def scaled_glorot(scale: float) -> nnx.Initializer:
    return lambda *args, **kwargs: scale * glorot_uniform(*args, **kwargs)


def build(
    config: Experiment, data: Any, devices: Sequence[Any] | None = None
) -> tuple[Program, TrainState]:
    """Draws the network and lays it on a mesh of the devices; None: all there are."""
    devices = devices or jax.devices()
    mesh = jax.make_mesh((len(devices),), ("batch",), axis_types=(AxisType.Auto,), devices=devices)

    def model_of(seed: Any) -> nnx.Module:
        return make_model(config, data, nnx.Rngs(jax.random.key(seed)))

    model = nnx.eval_shape(lambda: model_of(0))
    model.eval()
    eval_graph = nnx.graphdef(model)
    model.train()
    train_graph, shapes, _ = nnx.split(model, nnx.Param, ...)
    labels = binary_labels(shapes, lambda _, v: isinstance(v, BinaryParam | LatentParam))
    steps_per_epoch = data.num_train // config.batch_size
    optimizer = make_optimizer(config, labels, steps_per_epoch)

    def init(seed: Any) -> TrainState:
        _, params, batch_stats = nnx.split(model_of(seed), nnx.Param, ...)
        sums = {"loss": jnp.zeros([]), "correct": jnp.zeros([], jnp.int32)}
        sums |= jax.tree.map(jnp.zeros_like, flip_metrics(params, params, labels))
        step = jnp.zeros([], jnp.int32)
        return TrainState(step, params, batch_stats, optimizer.init(params), sums)

    scale = partial(datasets.scale, mean=data.mean, std=data.std)
    program = Program(init, train_graph, eval_graph, labels, scale, mesh, steps_per_epoch)
    state = jax.jit(init)(jnp.uint32(config.seed))
    return program, jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def binary_layers(tree: Any, labels: Any) -> dict[str, Any]:
    """The binary kernels of a tree by layer, as in {"convs/0": ...}, in the order of its leaves."""
    flat_labels = jax.tree_util.tree_leaves_with_path(labels)
    nodes = jax.tree.structure(labels).flatten_up_to(tree)
    return {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/"): node
        for (path, label), node in zip(flat_labels, nodes, strict=True)
        if label == "binary"
    }


def flip_metrics(before: Any, after: Any, labels: Any) -> dict[str, dict[str, jax.Array]]:
    """Flip ratio and π_t of one step: of each layer, and of all binary weights together."""
    old, new = binary_layers(before, labels), binary_layers(after, labels)
    return {
        name: {k: metric(old[k], new[k]) for k in old} | {"all": metric(old, new)}
        for name, metric in (("flip_ratio", flip_ratio), ("log_flip_ratio", log_flip_ratio))
    }
