"""Train a Binarized Neural Network with Bop, top to bottom.

    python train.py                                    # digits, under a minute on two CPU cores
    python train.py cifar10-bop --data-dir DIR         # the paper's section 5.2
    python train.py cifar10-bop-sweep --width 64 --epochs 3 --data-dir DIR
    python train.py PRESET ... --run-dir DIR --resume  # go on with a run

Presets are in experiments.py. A run's folder holds config.json, metrics.jsonl (a line per epoch),
TensorBoard events, curves.png, checkpoints, and weights.npz at the end. The last line on standard
output is a JSON object with the result.
"""

import json
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import datasets
from bop_optax import (
    binary_labels,
    bop,
    bop_2nd_order,
    bop_layerwise,
    cema,
    flip_ratio,
    log_flip_ratio,
    ste_sign,
)
from bop_optax.latent import clip_latent, scale_by_glorot
from bop_optax.layers import BinaryParam, LatentParam, glorot_uniform
from console import EpochBar, Interrupt
from experiments import DEFAULT_PRESET, PRESETS, Experiment
from models.binarynet import BinaryNet
from runs import Run, RunError, save_weights

State = TypeVar("State")


class TrainState(NamedTuple):
    """All that training changes. `sums` adds up the metrics of the steps of the epoch so far."""

    step: jax.Array
    params: Any
    batch_stats: nnx.State
    opt_state: optax.OptState
    sums: dict[str, Any]


class Program(NamedTuple):
    """What a run is compiled from: `init` maps a seed to the first state; the model's graphs; which
    parameters are binary; the devices."""

    init: Callable[[jax.Array], TrainState]
    train_graph: nnx.GraphDef
    eval_graph: nnx.GraphDef
    labels: Any
    mesh: jax.sharding.Mesh
    steps_per_epoch: int


class Stopped(Exception):
    """A run that ended before its last epoch, with the message and the exit status to end with."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


# ---- Data, model, optimizer, state ------------------------------------------------------------


def load_data(config: Experiment) -> datasets.Dataset:
    data = datasets.load(config.dataset, config.data_dir)
    return datasets.hold_out(data, config.held_out) if config.held_out else data


def build(
    config: Experiment, data: datasets.Dataset, devices: Sequence[Any] | None = None
) -> tuple[Program, TrainState]:
    """Draws the network and lays it on a mesh of the devices; None: all there are."""
    devices = devices or jax.devices()
    mesh = jax.make_mesh((len(devices),), ("batch",), axis_types=(AxisType.Auto,), devices=devices)

    def make_model(seed):
        return BinaryNet(
            config.width,
            config.units or 8 * config.width,
            data.num_classes,
            image_shape=data.train_images.shape[1:],
            stages=config.stages,
            first_padding=config.first_padding,
            kernel_quantizer=ste_sign if config.latent else None,
            kernel_init=scaled_glorot(config.latent_scale) if config.latent else None,
            rngs=nnx.Rngs(jax.random.key(seed)),
        )

    model = nnx.eval_shape(lambda: make_model(0))
    model.eval()
    eval_graph = nnx.graphdef(model)
    model.train()
    train_graph, shapes, _ = nnx.split(model, nnx.Param, ...)
    labels = binary_labels(shapes, lambda _, v: isinstance(v, BinaryParam | LatentParam))
    steps_per_epoch = len(data.train_images) // config.batch_size
    optimizer = make_optimizer(config, labels, steps_per_epoch)

    def init(seed):
        _, params, batch_stats = nnx.split(make_model(seed), nnx.Param, ...)
        sums = {"loss": jnp.zeros([]), "correct": jnp.zeros([], jnp.int32)}
        sums |= jax.tree.map(jnp.zeros_like, flip_metrics(params, params, labels))
        step = jnp.zeros([], jnp.int32)
        return TrainState(step, params, batch_stats, optimizer.init(params), sums)

    program = Program(init, train_graph, eval_graph, labels, mesh, steps_per_epoch)
    state = jax.jit(init)(jnp.uint32(config.seed))
    return program, jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def make_optimizer(
    config: Experiment, labels: Any, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """Adam for the real parameters; for the kernels Bop or a variant, or the latent weights of
    Algorithm 1."""

    def decayed(value: float) -> optax.Schedule:
        steps = min(config.decay_epochs * steps_per_epoch, 2**31 - 1)  # counted in int32
        return optax.exponential_decay(value, steps, config.decay, staircase=True)

    def linear(value: float, end: float | None) -> float | optax.Schedule:
        steps = min(config.epochs * steps_per_epoch, 2**31 - 1)
        return value if end is None else optax.linear_schedule(value, end, steps)

    threshold = linear(config.threshold, config.threshold_end)
    gamma = decayed(config.gamma)
    if config.gamma_end is not None:
        gamma = linear(config.gamma, config.gamma_end)
    rate = decayed(config.latent_learning_rate)
    match config.optimizer:
        case "bop":
            binary = bop(gamma, threshold)
        case "bop_layerwise":
            binary = bop_layerwise(gamma, threshold)
        case "bop_2nd_order":
            sigma = linear(config.sigma, config.sigma_end)
            binary = bop_2nd_order(gamma, threshold, sigma, unbiased=config.unbiased)
        case "cema":
            binary = cema(gamma, linear(config.alpha, 0.0))
        case "adam":
            binary = latent(optax.adam(rate, config.b1), config)
        case "sgd":
            binary = latent(optax.sgd(rate, config.momentum), config)
    real = optax.adam(linear(config.learning_rate, config.learning_rate_end))
    return optax.partition({"binary": binary, "real": real}, labels)


def latent(
    optimizer: optax.GradientTransformation, config: Experiment
) -> optax.GradientTransformation:
    """An optimizer of latent weights, with what the practice puts behind it."""
    scaling = scale_by_glorot() if config.glorot_scaling else optax.identity()
    return optax.chain(optimizer, scaling, clip_latent(config.latent_limit))


def scaled_glorot(scale: float) -> nnx.Initializer:
    return lambda *args, **kwargs: scale * glorot_uniform(*args, **kwargs)


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


# ---- One step, one evaluation -----------------------------------------------------------------


def make_train_step(
    program: Program, config: Experiment
) -> Callable[[TrainState, tuple[jax.Array, jax.Array], jax.Array], tuple[TrainState, jax.Array]]:
    """A pure step (state, (images, labels), indices of the batch) → (state, loss).

    `gamma`, `threshold` and `seed` of `config` may be traced, as in a vmapped sweep.
    """
    key = jax.random.key(config.seed)
    optimizer = make_optimizer(config, program.labels, program.steps_per_epoch)

    def train_step(state, data, indices):
        images, targets = (array[indices] for array in data)
        augment_key = jax.random.fold_in(key, state.step)
        inputs = datasets.scale(datasets.augment(augment_key, images, config.pad, config.flip))

        def loss_fn(params):
            model = nnx.merge(program.train_graph, params, state.batch_stats, copy=True)
            logits = model(inputs)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
            return loss, (logits, nnx.state(model, nnx.Not(nnx.Param)))

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        metrics = {"loss": loss, "correct": jnp.sum(logits.argmax(-1) == targets)}
        metrics |= flip_metrics(state.params, params, program.labels)
        first = state.step % program.steps_per_epoch == 0
        sums = jax.tree.map(lambda total, x: jnp.where(first, 0, total) + x, state.sums, metrics)
        return TrainState(state.step + 1, params, batch_stats, opt_state, sums), loss

    return train_step


def make_train_steps(program: Program, train_step: Callable[..., Any]) -> Callable[..., Any]:
    """Many steps: one compiled scan on an accelerator; on a CPU, where XLA's convolutions are many
    times slower inside a loop, one dispatch per step. The state's buffers are reused."""
    if jax.default_backend() == "cpu":
        compiled = jax.jit(train_step, donate_argnums=0)

        def train_steps(state, data, batches):
            losses = []
            for indices in batches:
                state, loss = compiled(state, data, shard(program.mesh, indices))
                losses.append(loss)
            return state, np.array(jax.device_get(losses))

        return train_steps

    scanned = jax.jit(
        lambda state, data, batches: jax.lax.scan(
            lambda state, indices: train_step(state, data, indices), state, batches
        ),
        donate_argnums=0,
    )
    return lambda state, data, batches: scanned(state, data, shard(program.mesh, batches))


def make_evaluate(program: Program, vmapped: bool = False) -> Callable[..., Any]:
    """Accuracy over every image exactly once: what fills up the last batch is not counted.

    With `vmapped`, of many networks: their states are stacked, and there is an accuracy for each.
    """

    def count_correct(state, data, indices, counted):
        images, targets = (array[indices] for array in data)
        model = nnx.merge(program.eval_graph, state.params, state.batch_stats)
        logits = model(datasets.scale(images))
        return jnp.sum((logits.argmax(-1) == targets) & counted)

    if vmapped:
        count_correct = jax.vmap(count_correct, in_axes=(0, None, None, None))
    count_correct = jax.jit(count_correct)

    def evaluate(state: TrainState, data: tuple[jax.Array, jax.Array], batch_size: int) -> Any:
        number = len(data[0])
        positions = np.arange(math.ceil(number / batch_size) * batch_size, dtype=np.int32)
        correct = [
            count_correct(
                state,
                data,
                shard(program.mesh, np.minimum(batch, number - 1)),
                shard(program.mesh, batch < number),
            )
            for batch in positions.reshape(-1, batch_size)
        ]
        return np.sum(jax.device_get(correct), axis=0) / number

    return evaluate


def shard(mesh: jax.sharding.Mesh, array: np.ndarray) -> jax.Array:
    """Puts batch indices on the mesh, the last axis (the batch) divided among its devices."""
    spec = PartitionSpec(*[None] * (array.ndim - 1), "batch")
    return jax.device_put(array, NamedSharding(mesh, spec))


def on_devices(data: datasets.Dataset, mesh: jax.sharding.Mesh) -> Any:
    """The whole data set in the memory of every device: ((images, labels) to train, to test)."""
    arrays = ((data.train_images, data.train_labels), (data.test_images, data.test_labels))
    return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))


# ---- The loop ---------------------------------------------------------------------------------


class Trainee(NamedTuple):
    """What the loop trains: a network; in sweep.py, many in one program.

    `metrics` are those of the epoch's first steps; of a whole epoch, with the accuracies.
    """

    batches: Callable[[int], np.ndarray]  # epoch → indices, (steps, ..., batch)
    train_steps: Callable[[Any, np.ndarray], tuple[Any, np.ndarray]]  # → (state, losses)
    metrics: Callable[[Any, int, bool], dict[str, Any]]  # state, steps, whether the epoch is over


def one_network(config: Experiment, data: datasets.Dataset, program: Program) -> Trainee:
    train_data, test_data = on_devices(data, program.mesh)
    train_steps = make_train_steps(program, make_train_step(program, config))
    evaluate = make_evaluate(program)

    def metrics(state: TrainState, steps: int, over: bool) -> dict[str, Any]:
        means = epoch_means(state.sums, steps, config)
        if over:
            accuracy = evaluate(state, test_data, config.batch_size)
            means[f"{config.evaluated_on}_accuracy"] = float(accuracy)
        return means

    return Trainee(
        lambda epoch: epoch_batches(config, len(data.train_images), epoch),
        lambda state, batches: train_steps(state, train_data, batches),
        metrics,
    )


def train(
    config: Experiment, trainee: Trainee, state: State, steps_per_epoch: int, run: Run
) -> State:
    """Trains to the last epoch, from the run's newest checkpoint; returns the last state.

    Raises:
        Stopped: after Ctrl-C or SIGTERM, with a checkpoint saved, and where a loss is not finite.
    """
    with Interrupt() as interrupt, run:
        state, step = run.restore(state, config, steps_per_epoch)
        first_epoch, offset = divmod(step, steps_per_epoch)
        for epoch in range(first_epoch + 1, config.epochs + 1):
            batches = trainee.batches(epoch)[offset:]
            start = time.perf_counter()
            with EpochBar(epoch, config, steps_per_epoch, offset) as bar:
                for chunk in chunks(batches):
                    if interrupt.signal:
                        run.save(state, step)
                        raise Stopped(
                            f"Stopped at step {step} (epoch {epoch}).", 128 + interrupt.signal
                        )
                    state, losses = trainee.train_steps(state, chunk)
                    check_finite(losses, step, epoch)
                    step, offset = step + len(chunk), offset + len(chunk)
                    bar.show(trainee.metrics(state, offset, False), len(chunk))
                seconds, offset = time.perf_counter() - start, 0
                metrics = {
                    "epoch": epoch,
                    "step": step,
                    **trainee.metrics(state, steps_per_epoch, True),
                    "images_per_second": len(batches) * config.batch_size / seconds,
                    "seconds": time.perf_counter() - start,
                }
                bar.show(metrics, 0)
            run.log(metrics)
            if epoch % config.checkpoint_epochs == 0 or epoch == config.epochs:
                run.save(state, step)
            bar.report(metrics)
    return state


def epoch_batches(config: Experiment, number: int, epoch: int) -> np.ndarray:
    """The epoch's shuffled indices, (steps, batch_size); they depend on seed and epoch alone, so
    that a resumed run sees the same images. An incomplete last batch is dropped."""
    order = np.random.default_rng([config.seed, epoch]).permutation(number).astype(np.int32)
    steps = number // config.batch_size
    return order[: steps * config.batch_size].reshape(steps, config.batch_size)


def chunks(batches: np.ndarray) -> list[np.ndarray]:
    """Steps between two looks at losses and signals: few on a CPU, a scan's worth elsewhere."""
    steps = 10 if jax.default_backend() == "cpu" else 200
    return np.array_split(batches, math.ceil(len(batches) / steps))


def check_finite(losses: np.ndarray, step: int, epoch: int) -> None:
    bad = np.argwhere(~np.isfinite(losses))
    if bad.size:
        network = f" of network {bad[0][1] + 1}" if losses.ndim == 2 else ""
        raise Stopped(
            f"The loss{network} is {losses[tuple(bad[0])]} at step {step + bad[0][0] + 1} "
            f"(epoch {epoch}): "
            "stopped. Lower --learning-rate, or look at the data."
        )


def epoch_means(sums: dict[str, Any], steps: int, config: Experiment) -> dict[str, Any]:
    """The metrics of an epoch's first `steps` steps: means over the steps."""
    sums = jax.device_get(sums)
    return {
        "loss": float(sums["loss"] / steps),
        "train_accuracy": int(sums["correct"]) / (steps * config.batch_size),
        "flip_ratio": {name: float(v / steps) for name, v in sums["flip_ratio"].items()},
        "log_flip_ratio": {name: float(v / steps) for name, v in sums["log_flip_ratio"].items()},
    }


# ---- Command line -----------------------------------------------------------------------------


def main() -> None:
    start = time.perf_counter()
    preset, arguments = split_preset("train.py")
    presets = "\n".join(f"  {name}: {about}" for name, (about, _) in PRESETS.items())
    config = tyro.cli(
        Experiment,
        prog=f"train.py {preset}",
        description=f"Train a Binarized Neural Network with Bop.\n\n"
        f"train.py [PRESET] [options]; without a preset: {DEFAULT_PRESET}.\n{presets}\n\n"
        f"The defaults below are those of {preset}.",
        default=PRESETS[preset][1],
        args=arguments,
    )
    try:
        config.check()
        data = load_data(config)
        check_batch(config, len(data.train_images))
        program, state = build(config, data)
        run = Run(config, preset)
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")
    kernels = jax.tree.leaves(binary_layers(state.params, program.labels))
    binary_parameters = sum(kernel.size for kernel in kernels)
    try:
        trainee = one_network(config, data, program)
        state = train(config, trainee, state, program.steps_per_epoch, run)
    except RunError as error:
        sys.exit(f"train.py: {error}")
    except (Stopped, KeyboardInterrupt) as stopped:
        end(stopped, config, run.folder)
    save_weights(nnx.merge_state(state.params, state.batch_stats), run.folder / "weights.npz")
    accuracy = f"{config.evaluated_on}_accuracy"
    seconds = time.perf_counter() - start
    if config.resume:  # the epochs of all processes, without what starting them took
        seconds = sum(metrics["seconds"] for metrics in run.metrics)
    result = {
        "preset": preset,
        accuracy: run.metrics[-1][accuracy],
        "epochs": config.epochs,
        "seconds": round(seconds, 2),
        "binary_parameters": binary_parameters,
        "run_dir": str(run.folder),
    }
    run.write_result(result)
    print(json.dumps(result))


def end(stopped: Stopped | KeyboardInterrupt, config: Experiment, folder: Path) -> NoReturn:
    """Ends a stopped process with its status, saying how to go on where that may help."""
    if not isinstance(stopped, Stopped):
        stopped = Stopped("Stopped at once, without a checkpoint.", 128 + signal.SIGINT)
    print(stopped, file=sys.stderr)
    begun = (folder / "config.json").exists() or any(folder.glob("*/config.json"))
    if stopped.status > 128 and begun:
        command = ["python", *sys.argv]
        if not config.resume:
            command += [f"--run-dir={folder}", "--resume"]
        print(f"Go on with\n  {shlex.join(command)}", file=sys.stderr)
    sys.exit(stopped.status)


def split_preset(program: str) -> tuple[str, list[str]]:
    """The preset that the command line names first, or the default, and the other arguments."""
    arguments = sys.argv[1:]
    preset = arguments.pop(0) if arguments and not arguments[0].startswith("-") else DEFAULT_PRESET
    if preset not in PRESETS:
        sys.exit(f"{program}: unknown preset {preset!r}: choose from {', '.join(PRESETS)}")
    return preset, arguments


def check_batch(config: Experiment, number: int) -> None:
    if config.batch_size > number:
        raise ValueError(
            f"--batch-size must be at most the {number} training images, got {config.batch_size}"
        )
    if config.batch_size % jax.device_count():
        raise ValueError(
            f"--batch-size must be a multiple of the {jax.device_count()} devices, "
            f"got {config.batch_size}"
        )


if __name__ == "__main__":
    main()
