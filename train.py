"""Train a Binarized Neural Network with Bop, top to bottom.

    python train.py                                    # digits, under a minute on two CPU cores
    python train.py cifar10-bop --data-dir DIR         # the paper's section 5.2
    python train.py cifar10-bop-sweep --width 64 --epochs 3 --data-dir DIR
    python train.py PRESET ... --run-dir DIR --resume  # go on with a run

Presets are in experiments.py. A run's folder holds config.json, metrics.jsonl (a line per epoch),
TensorBoard events, curves.png, checkpoints, and weights.npz at the end. The last line on standard
output is a JSON object with the result.
"""

import itertools
import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import datasets
from console import EpochBar, Interrupt
from experiments import DEFAULT_PRESET, PRESETS, Experiment
from imagenet import BadImage, open_imagenet
from networks import Program, TrainState, binary_layers, build, flip_metrics
from optimizers import make_optimizer
from runs import Run, RunError, save_weights

State = TypeVar("State")


class Stopped(Exception):
    """A run that ended before its last epoch, with the message and the exit status to end with."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


# ---- Data, a step, an evaluation --------------------------------------------------------------


def load_data(config: Experiment) -> Any:
    if config.dataset == "imagenet2012":
        return open_imagenet(config.data_dir)
    return load_in_memory(config)


def load_in_memory(config: Experiment) -> datasets.Dataset:
    if config.dataset == "imagenet2012":
        raise ValueError("imagenet2012 does not fit into memory: train.py alone streams it")
    data = datasets.load(config.dataset, config.data_dir)
    return datasets.hold_out(data, config.held_out) if config.held_out else data


def make_train_step(program: Program, config: Experiment) -> Callable[..., Any]:
    """A pure step (state, (images, labels), indices) → (state, loss).

    `indices` are those of the batch in the data; None: the data is the batch. `gamma`, `threshold`
    and `seed` of `config` may be traced, as in a vmapped sweep.
    """
    key = jax.random.key(config.seed)
    optimizer = make_optimizer(config, program.labels, program.steps_per_epoch)

    def train_step(state, data, indices=None):
        images, targets = data if indices is None else (array[indices] for array in data)
        augment_key = jax.random.fold_in(key, state.step)
        inputs = program.scale(datasets.augment(augment_key, images, config.pad, config.flip))

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
    """The accuracies, top-1 and top-5, over the images that count.

    With `vmapped`, of many networks: their states are stacked, and there is a pair for each.
    """

    def count_correct(state, data, indices, counted):
        images, targets = data if indices is None else (array[indices] for array in data)
        model = nnx.merge(program.eval_graph, state.params, state.batch_stats)
        logits = model(program.scale(images))
        _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
        correct = (logits.argmax(-1) == targets, jnp.any(best == targets[:, None], -1))
        return jnp.stack([jnp.sum(c & counted) for c in correct])

    if vmapped:
        count_correct = jax.vmap(count_correct, in_axes=(0, None, None, None))
    count_correct = jax.jit(count_correct)

    def evaluate(state: TrainState, batches: Iterable[tuple[Any, Any, Any]]) -> np.ndarray:
        counts = [(count_correct(state, *batch), jnp.sum(batch[-1])) for batch in batches]
        correct, numbers = zip(*jax.device_get(counts), strict=True)
        if not np.sum(numbers):
            raise Stopped("None of the images to evaluate on decodes.")
        return np.sum(correct, axis=0) / np.sum(numbers)

    return evaluate


def shard(mesh: jax.sharding.Mesh, array: np.ndarray) -> jax.Array:
    """Puts batch indices on the mesh, the last axis (the batch) divided among its devices."""
    spec = PartitionSpec(*[None] * (array.ndim - 1), "batch")
    return jax.device_put(array, NamedSharding(mesh, spec))


# ---- Data in memory ---------------------------------------------------------------------------


class Trainee(NamedTuple):
    """What the loop trains: a network; in sweep.py, many in one program.

    `chunks` are what the loop trains on between two looks at losses and signals: from a step on,
    for ever, none of them across an epoch's end. `metrics` are those of the epoch's first steps;
    of a whole epoch, with the accuracies.
    """

    chunks: Callable[[int], Generator[Any]]
    train_steps: Callable[[Any, Any], tuple[Any, np.ndarray]]  # (state, chunk) → (state, losses)
    metrics: Callable[[Any, int, bool], dict[str, Any]]  # state, steps, whether the epoch is over


def on_devices(data: datasets.Dataset, mesh: jax.sharding.Mesh) -> Any:
    """The whole data set in the memory of every device: ((images, labels) to train, to test)."""
    arrays = ((data.train_images, data.train_labels), (data.test_images, data.test_labels))
    return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))


def one_network(config: Experiment, data: datasets.Dataset, program: Program) -> Trainee:
    train_data, test_data = on_devices(data, program.mesh)
    train_steps = make_train_steps(program, make_train_step(program, config))
    evaluate = make_evaluate(program)

    def metrics(state: TrainState, steps: int, over: bool) -> dict[str, Any]:
        means = epoch_means(state.sums, steps, config)
        if over:
            top1, _ = evaluate(state, every_image(test_data, config.batch_size, program.mesh))
            means[config.accuracy] = float(top1)
        return means

    return Trainee(
        partial(chunks, partial(epoch_batches, config, data.num_train), program.steps_per_epoch),
        lambda state, batches: train_steps(state, train_data, batches),
        metrics,
    )


def epoch_batches(config: Experiment, number: int, epoch: int) -> np.ndarray:
    """The epoch's shuffled indices, (steps, batch_size); they depend on seed and epoch alone, so
    that a resumed run sees the same images. An incomplete last batch is dropped."""
    order = np.random.default_rng([config.seed, epoch]).permutation(number).astype(np.int32)
    steps = number // config.batch_size
    return order[: steps * config.batch_size].reshape(steps, config.batch_size)


def chunks(
    epoch_batches: Callable[[int], np.ndarray], steps_per_epoch: int, step: int
) -> Generator[np.ndarray]:
    """Batches from a step on: few on a CPU, a scan's worth elsewhere."""
    epoch, offset = divmod(step, steps_per_epoch)
    for number in itertools.count(epoch + 1):
        batches = epoch_batches(number)[offset:]
        yield from np.array_split(batches, math.ceil(len(batches) / steps_at_once()))
        offset = 0


def steps_at_once() -> int:
    return 10 if jax.default_backend() == "cpu" else 200


def every_image(data: Any, batch_size: int, mesh: jax.sharding.Mesh) -> Iterator[Any]:
    """(data, indices, counted) for each image once: what fills up the last batch does not count."""
    number = len(data[0])
    positions = np.arange(math.ceil(number / batch_size) * batch_size, dtype=np.int32)
    for batch in positions.reshape(-1, batch_size):
        yield data, shard(mesh, np.minimum(batch, number - 1)), shard(mesh, batch < number)


# ---- Data from files --------------------------------------------------------------------------


def one_streamed_network(config: Experiment, data: Any, program: Program) -> Trainee:
    """As `one_network`, of images that worker processes decode while the devices compute."""
    # Grain takes seconds to import.
    from feed import BadImages, Feed, training_batches, validation_batches

    train_step = jax.jit(make_train_step(program, config), donate_argnums=0)
    evaluate = make_evaluate(program)
    bad = BadImages() if config.bad_images == "skip" else None
    options: dict[str, Any] = {
        "workers": os.cpu_count() or 1 if config.workers is None else config.workers,
        "host": jax.process_index(),
        "hosts": jax.process_count(),
        "bad_images": bad,
    }
    waited = 0.0

    def put(batch: dict[str, np.ndarray]) -> Any:
        sharding = NamedSharding(program.mesh, PartitionSpec("batch"))
        arrays = jax.tree.map(
            lambda array: jax.make_array_from_process_local_data(sharding, array), batch
        )
        return (arrays["image"], arrays["label"]), None, arrays.get("counted")

    def stream(batches: Callable[..., Any], *args: Any, **more: Any) -> Generator[Any]:
        try:
            with Feed(batches(*args, **more, **options), put) as feed:
                yield from feed
        except BadImage as error:
            hint = "" if bad else ": --bad-images skip leaves such images out"
            raise Stopped(f"{error}{hint}") from error
        except OSError as error:
            raise Stopped(str(error)) from error
        except RuntimeError as error:  # Grain's, where a worker was killed
            raise Stopped(f"The images' workers ended: {error}") from error

    def chunks(step: int) -> Generator[Any]:
        images = stream(
            training_batches, data.train, config.batch_size, config.seed, first_step=step
        )
        with closing(images):
            while True:
                left = program.steps_per_epoch - step % program.steps_per_epoch
                steps = min(left, 10)
                yield itertools.islice(images, steps)
                step += steps

    def train_steps(state: TrainState, batches: Iterator[Any]) -> tuple[TrainState, np.ndarray]:
        nonlocal waited
        losses, start = [], time.perf_counter()
        for batch, _, _ in batches:
            waited += time.perf_counter() - start
            state, loss = train_step(state, batch)
            losses.append(float(loss))  # from here on the device waits for what we wait for
            start = time.perf_counter()
        return state, np.array(losses)

    def metrics(state: TrainState, steps: int, over: bool) -> dict[str, Any]:
        nonlocal waited
        means = epoch_means(state.sums, steps, config)
        if over:
            means["seconds_waited"], waited = waited, 0.0
            images = stream(validation_batches, data.validation, config.batch_size)
            with closing(images):
                top1, top5 = evaluate(state, images)
            means |= {config.accuracy: float(top1), config.top5: float(top5)}
            means["bad_images"] = len(bad.names) if bad else 0
        return means

    return Trainee(chunks, train_steps, metrics)


# ---- The loop ---------------------------------------------------------------------------------


def train(
    config: Experiment, trainee: Trainee, state: State, steps_per_epoch: int, run: Run
) -> State:
    """Trains to the last epoch, from the run's newest checkpoint; returns the last state.

    Raises:
        Stopped: after Ctrl-C or SIGTERM, with a checkpoint saved, and where a loss is not finite or
            an image does not decode.
    """
    state, step = run.restore(state, config, steps_per_epoch)
    done = len(run.metrics)  # a run killed while it was evaluated has steps left over
    offset = step - done * steps_per_epoch
    with Interrupt() as interrupt, closing(trainee.chunks(step)) as chunks:
        for epoch in range(done + 1, config.epochs + 1):
            start, begun = time.perf_counter(), offset
            with EpochBar(epoch, config, steps_per_epoch, offset) as bar:
                while offset < steps_per_epoch:
                    if interrupt.signal:
                        run.save(state, step)
                        raise Stopped(
                            f"Stopped at step {step} (epoch {epoch}).", 128 + interrupt.signal
                        )
                    state, losses = trainee.train_steps(state, next(chunks))
                    check_finite(losses, step, epoch)
                    step, offset = step + len(losses), offset + len(losses)
                    if bar.on_terminal:
                        bar.show(trainee.metrics(state, offset, False), len(losses))
                seconds = time.perf_counter() - start
                if epoch % config.checkpoint_epochs == 0 or epoch == config.epochs:
                    run.save(state, step)  # before the evaluation, which may be long
                metrics = {
                    "epoch": epoch,
                    "step": step,
                    **trainee.metrics(state, steps_per_epoch, True),
                    "images_per_second": (offset - begun) * config.batch_size / seconds,
                    "seconds": time.perf_counter() - start,
                }
                bar.show(metrics, 0)
            offset = 0
            run.log(metrics)
            bar.report(metrics)
    return state


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
        check_batch(config, data.num_train)
        program, state = build(config, data)
        run = Run(config, preset)
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")
    kernels = jax.tree.leaves(binary_layers(state.params, program.labels))
    binary_parameters = sum(kernel.size for kernel in kernels)
    in_memory = isinstance(data, datasets.Dataset)
    try:
        trainee = (one_network if in_memory else one_streamed_network)(config, data, program)
        with run:
            state = train(config, trainee, state, program.steps_per_epoch, run)
            weights = nnx.merge_state(state.params, state.batch_stats)
            save_weights(weights, run.folder / "weights.npz")
            seconds = time.perf_counter() - start
            if config.resume:  # the epochs of all processes, without what starting them took
                seconds = sum(metrics["seconds"] for metrics in run.metrics)
            last = run.metrics[-1]
            result = {
                "preset": preset,
                **{k: last[k] for k in (config.accuracy, config.top5) if k in last},
                "epochs": config.epochs,
                "seconds": round(seconds, 2),
                "binary_parameters": binary_parameters,
                "run_dir": str(run.folder),
            }
            run.write_result(result)
    except RunError as error:
        sys.exit(f"train.py: {error}")
    except (Stopped, KeyboardInterrupt) as stopped:
        end(stopped, config, run.folder)
    print(json.dumps(result))


def end(stopped: Stopped | KeyboardInterrupt, config: Experiment, folder: Path) -> NoReturn:
    """Ends a stopped process with its status, saying how to go on where that may help."""
    if not isinstance(stopped, Stopped):
        stopped = Stopped("Stopped at once, without a checkpoint.", 128 + signal.SIGINT)
    print(stopped, file=sys.stderr)
    begun = (folder / "config.json").exists() or any(folder.glob("*/config.json"))
    if stopped.status > 128 and begun:
        command = ["python", *sys.argv]
        command += [] if config.run_dir else [f"--run-dir={folder}"]
        command += [] if config.resume else ["--resume"]
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
