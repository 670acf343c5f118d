"""The network of an experiment, split into what is compiled and what training changes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from bop_optax import binary_labels, flip_ratio, log_flip_ratio
from bop_optax.layers import BinaryParam, LatentParam, Product
from bop_optax.packing import pack
from bop_optax.processor import compiler_options
from bop_optax.summary import Totals, summary
from training.config import Experiment
from training.data import Batch
from training.data.augment import check_pad, scale
from training.devices import divided, replicated


class TrainState(NamedTuple):
    """All that training changes. `sums` adds up the metrics of the epoch's steps so far."""

    step: jax.Array
    params: Any
    batch_stats: nnx.State
    opt_state: optax.OptState
    sums: dict[str, Any]


class Network(NamedTuple):
    """What a training step is compiled from.

    Attributes:
        draw: seed → the first parameters and batch statistics.
        shapes: the parameters and batch statistics, as shapes.
        train_graph: the model in training mode, for `nnx.merge`.
        eval_graph: the model in evaluation mode, packed where that is faster.
        eval_state: training state → the state of the model that belongs to `eval_graph`.
        labels: "binary" or "real" for each parameter, as from `binary_labels`.
        image_shape: (height, width, channels) of an image.
        num_classes: number of classes.
        scale: uint8 images → the float32 images that the model takes.
    """

    draw: Callable[[Any], tuple[Any, nnx.State]]
    shapes: tuple[Any, nnx.State]
    train_graph: nnx.GraphDef
    eval_graph: nnx.GraphDef
    eval_state: Callable[[TrainState], nnx.State]
    labels: Any
    image_shape: tuple[int, int, int]
    num_classes: int
    scale: Callable[[jax.Array], jax.Array]


def make_network(experiment: Experiment, data: Any, packed: bool | None = None) -> Network:
    """Describes the experiment's network for the images of `data`; draws no weights.

    `packed` tells whether it is evaluated on packed kernels; None: on CPUs, where that is faster.
    """

    def model_of(seed: Any) -> nnx.Module:
        rngs = nnx.Rngs(jax.random.key(seed))
        options = layer_options(experiment.optimizer, experiment.dtype, experiment.backward)
        return experiment.model.build(data.image_shape, data.num_classes, rngs=rngs, **options)

    def draw(seed: Any) -> tuple[Any, nnx.State]:
        _, params, batch_stats = nnx.split(model_of(seed), nnx.Param, ...)
        return params, batch_stats

    def eval_state(state: TrainState) -> nnx.State:
        model = nnx.merge(train_graph, state.params, state.batch_stats)
        return nnx.state(for_inference(model, packed))

    check_pad(experiment.pad, data.image_shape)
    model = nnx.eval_shape(lambda: model_of(0))
    _check_logits(experiment, model_of, data)
    eval_graph = nnx.graphdef(nnx.eval_shape(partial(for_inference, packed=packed), model))
    model.train()
    train_graph, params, batch_stats = nnx.split(model, nnx.Param, ...)
    labels = binary_labels(params, lambda _, v: isinstance(v, BinaryParam | LatentParam))
    shapes, images = (params, batch_stats), (data.image_shape, data.num_classes)
    scaled = partial(scale, mean=data.mean, std=data.std)
    return Network(draw, shapes, train_graph, eval_graph, eval_state, labels, *images, scaled)


def layer_options(optimizer: Any, dtype: str, backward: Any = "float32") -> dict[str, Any]:
    """The options for the layers that differ from the defaults; `build` of a model takes them."""
    options = dict(optimizer.kernel_options)
    if dtype != "float32":
        options["dtype"] = jnp.dtype(dtype)
    if backward != "float32":
        options["product"] = Product(backward=backward)
    return options


def for_inference(model: nnx.Module, packed: bool | None = None) -> nnx.Module:
    """The model in evaluation mode, packed or not; see `make_network`."""
    model.eval()
    if packed is None:
        packed = jax.default_backend() == "cpu"
    return pack(model) if packed else model


def _check_logits(experiment: Experiment, model_of: Callable[[Any], Any], data: Any) -> None:
    images = jnp.zeros((2, *data.image_shape))
    logits = nnx.eval_shape(lambda: model_of(0)(images))
    if getattr(logits, "shape", None) != (2, data.num_classes):
        raise ValueError(
            f"{type(experiment.model).__name__} must map {images.shape} images to logits of shape "
            f"{(2, data.num_classes)}, got {getattr(logits, 'shape', logits)}"
        )


def first_state(network: Network, optimizer: optax.GradientTransformation, seed: Any) -> TrainState:
    """Draws the weights of a seed, which may be traced."""
    params, batch_stats = network.draw(seed)
    zero = jnp.zeros([]), jnp.zeros([], jnp.int32)
    metrics = partial(step_metrics, labels=network.labels)
    sums = jax.tree.map(jnp.zeros_like, jax.eval_shape(metrics, *zero, params, params))
    return TrainState(jnp.zeros([], jnp.int32), params, batch_stats, optimizer.init(params), sums)


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit`, on CPUs with the compiler's options for this processor."""
    if jax.default_backend() == "cpu":
        options["compiler_options"] = compiler_options()
    return jax.jit(function, **options)


def state_shardings(
    network: Network, optimizer: optax.GradientTransformation, mesh: Mesh, divide: bool
) -> TrainState:
    """Where the devices keep the training state: a copy each, or a part of the averages each."""
    state = jax.eval_shape(partial(first_state, network, optimizer), 0)
    everywhere = jax.tree.map(lambda _: replicated(mesh), state)
    if not divide:
        return everywhere
    return everywhere._replace(
        opt_state=jax.tree.map(lambda x: divided(x.shape, mesh), state.opt_state)
    )


def compile_steps(
    train_step: Callable[..., Any], stacked: bool, shardings: TrainState | None = None
) -> Callable[..., Any]:
    """Compiles the step, which reuses the state's buffers, for one batch, or to scan a stack.

    `shardings` are those of the state. None: as XLA finds them.

    XLA runs convolutions many times slower inside a loop on a CPU: there, each batch is one call.
    """

    def train_steps(state: Any, batches: Batch, *rest: Any) -> tuple[Any, Any]:
        return jax.lax.scan(lambda state, batch: train_step(state, batch, *rest), state, batches)

    step = train_steps if stacked else train_step
    return compiled(step, donate_argnums=0, out_shardings=shardings and (shardings, None))


def binary_layers(tree: Any, labels: Any) -> dict[str, Any]:
    """The binary kernels of a tree by layer, as in {"convs/0": ...}, in the order of its leaves."""
    flat_labels = jax.tree_util.tree_leaves_with_path(labels)
    nodes = jax.tree.structure(labels).flatten_up_to(tree)
    return {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/"): node
        for (path, label), node in zip(flat_labels, nodes, strict=True)
        if label == "binary"
    }


def step_metrics(
    loss: jax.Array, correct: jax.Array, before: Any, after: Any, labels: Any
) -> dict[str, Any]:
    """What each step adds to `TrainState.sums`, by the names of metrics.jsonl."""
    zero = jnp.zeros([], jnp.int32)
    flipped = flip_metrics(before, after, labels)
    return {"loss": loss, "correct": correct, "skipped": zero} | flipped


def only_after_update(metrics: dict[str, Any], opt_state: Any, number: int) -> dict[str, Any]:
    """The metrics of a step of `optax.MultiSteps`, which updates the weights once in `number`.

    The flips of an update count `number` times, those of other steps not at all: the mean over
    steps is that over updates.
    """
    weight = jnp.where(opt_state.mini_step == 0, float(number), 0.0)
    names = ("flip_ratio", "log_flip_ratio")
    return metrics | jax.tree.map(lambda x: x * weight, {name: metrics[name] for name in names})


def flip_metrics(before: Any, after: Any, labels: Any) -> dict[str, dict[str, jax.Array]]:
    """Flip ratio and π_t of one step: of each layer, and of all binary weights together."""
    old, new = binary_layers(before, labels), binary_layers(after, labels)
    return {
        name: {k: metric(old[k], new[k]) for k in old} | {"all": metric(old, new)}
        for name, metric in (("flip_ratio", flip_ratio), ("log_flip_ratio", log_flip_ratio))
    }


def epoch_means(sums: dict[str, Any], steps: int, batch_size: int) -> dict[str, Any]:
    """Means over the first `steps` steps of an epoch; of several networks, a list of each."""
    sums = jax.device_get(sums)
    correct, skipped = sums.pop("correct"), sums.pop("skipped")
    means = jax.tree.map(lambda total: (total / steps).tolist(), sums)
    accuracy = (correct / (steps * batch_size)).tolist()
    return means | {"train_accuracy": accuracy, "skipped": skipped.tolist()}


def count_parameters(network: Network) -> tuple[int, int]:
    """Numbers of binary and of real parameters."""
    params, _ = network.shapes
    binary = sum(x.size for x in jax.tree.leaves(binary_layers(params, network.labels)))
    return binary, sum(x.size for x in jax.tree.leaves(params)) - binary


def totals(network: Network) -> Totals:
    """Size of the network, and multiply-accumulates of one image."""
    model = nnx.merge(network.train_graph, *network.shapes)
    return summary(model, (1, *network.image_shape)).totals
