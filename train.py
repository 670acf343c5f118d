"""Trains a Binarized Neural Network with Bop, top to bottom.

    python train.py                                    # digits, half a minute on two CPU cores
    python train.py cifar10-bop --data-dir DIR         # the paper's section 5.2
    python train.py cifar10-bop --width 64 --epochs 3 --gamma 1e-3:0 --data-dir DIR
    python train.py --data FILE.npz --stages 3         # your own images
    python train.py PRESET ... --run-dir RUN --resume  # resumes a stopped run

Presets are in experiments/presets.py. The folder of a run holds config.json, metrics.jsonl (a line
an epoch), TensorBoard events, checkpoints, curves.png, weights.safetensors and result.json. The
last line on standard output is a JSON object with the result.
"""

from training.interrupt import Interrupt, Stopped, before_each

INTERRUPT = Interrupt()
if __name__ == "__main__":  # before JAX starts its threads, which inherit the mask of signals
    INTERRUPT.watch()

import json
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from experiments.presets import DEFAULT_PRESET, PRESETS
from training import command, hosts
from training.config import Experiment, RunConfig
from training.data import Batch
from training.data.augment import augment
from training.devices import device_mesh, replicated
from training.folder import check_hosts, check_images
from training.hosts import HostConfig
from training.loss import make_losses
from training.messages import say
from training.network import (
    Network,
    TrainState,
    compile_steps,
    compiled,
    count_parameters,
    epoch_means,
    first_state,
    make_network,
    only_after_update,
    state_shardings,
    step_metrics,
)
from training.nonfinite import (
    Extremes,
    NotFinite,
    again_from_checkpoint,
    check_skipped,
    find_fault,
    joined,
    largest,
    skip_unless,
)
from training.progress import EpochBar, FirstCall, header
from training.run import Run

FAULT = 2**8  # what a process says in place of a signal if its numbers are not finite


def run(
    experiment: Experiment,
    config: RunConfig = RunConfig(),
    preset: str = "own",
    interrupt: Interrupt | None = None,
) -> dict[str, Any]:
    """Trains one network in a folder of its own; returns what result.json holds.

    Args:
        experiment: data, network, optimizers, epochs.
        config: the folder, and whether a run in it is resumed.
        preset: name of the experiment, for the folder and the records.
        interrupt: signals that save and stop the run.

    Raises:
        ValueError: for data, or a folder, that do not fit the configuration.
        OSError: for data that cannot be read, and a folder that cannot be made.
        RunError: for a damaged run that cannot be resumed.
        Stopped: after a signal, with a checkpoint saved; for a file that cannot be written; after
            numbers that are not finite, as `experiment.nonfinite` says.
    """
    start = time.perf_counter()
    check_hosts(experiment, config, preset)
    data = experiment.data.load()
    check_images(data)
    mesh = device_mesh()
    source = data.batches(experiment.step_images, mesh, experiment.accumulate)
    network = make_network(experiment, data)
    optimizer = make_optimizer(experiment, network.labels, source.steps_per_epoch)
    shardings = state_shardings(network, optimizer, mesh, config.shard_averages)
    train_step = make_train_step(experiment, network, source, replicated(mesh))
    step = compile_steps(train_step, source.stacked, shardings)
    count, prepare = compiled(make_count_correct(network)), compiled(network.eval_state)
    key = jax.random.key(experiment.seed)
    with Run(experiment, config, preset, data) as folder:
        say(header(preset, network, folder.folder))
        draw = jax.jit(partial(first_state, network, optimizer), out_shardings=shardings)
        state = train(
            experiment,
            source,
            folder,
            draw(np.uint32(experiment.seed)),
            lambda state, batch: step(state, batch, key, {}),
            lambda state, check: evaluate(
                count, prepare(state), before_each(check, source.evaluation()), source.in_flight
            ),
            interrupt,
        )
        model = nnx.merge(network.train_graph, state.params, state.batch_stats)
        seconds = time.perf_counter() - start
        return folder.finish(model, data, seconds, count_parameters(network)[0])


# ---- Optimizer, a step, an evaluation ------------------------------------------------------------


def make_optimizer(
    experiment: Experiment, labels: Any, steps_per_epoch: int, **initial: Any
) -> optax.GradientTransformationExtraArgs:
    """One optimizer for the binary kernels, Adam for the real parameters."""
    updates = (experiment.epochs, steps_per_epoch // experiment.accumulate)
    binary = experiment.optimizer.build(*updates, **initial)
    both = optax.partition({"binary": binary, "real": experiment.real.build(*updates)}, labels)
    if experiment.accumulate == 1:
        return both
    parts = optax.MultiSteps(both, experiment.accumulate)
    return optax.with_extra_args_support(parts.gradient_transformation())


def make_train_step(
    experiment: Experiment, network: Network, source: Any, sharding: Any = None
) -> Callable[..., Any]:
    """A pure step (state, batch, key, initial) → (state, extremes).

    `key` draws the augmentation. `initial` holds first values of hyperparameters, as in
    {"gamma": 1e-3}, that replace those of the configuration: a sweep vmaps over both. `sharding`
    is that of the gradients. None: as XLA finds it.
    """
    losses = make_losses(experiment, network)

    def train_step(
        state: TrainState, batch: Batch, key: jax.Array, initial: dict[str, Any]
    ) -> tuple[TrainState, Extremes]:
        first = state.step % source.steps_per_epoch == 0
        sums = jax.tree.map(lambda total: jnp.where(first, 0, total), state.sums)
        state = state._replace(sums=sums)
        augment_key = jax.random.fold_in(key, state.step)
        images = augment(augment_key, batch.images, experiment.pad, experiment.flip)

        def loss_fn(params):
            model = nnx.merge(network.train_graph, params, state.batch_stats, copy=True)
            logits = model(network.scale(images)).astype(jnp.float32)
            loss = losses(images, logits, batch.labels).mean(where=batch.mask)
            return loss, (logits, nnx.state(model, nnx.Not(nnx.Param)))

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        if sharding is not None:
            grads = jax.lax.with_sharding_constraint(grads, sharding)
        optimizer = make_optimizer(experiment, network.labels, source.steps_per_epoch, **initial)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        correct = (logits.argmax(-1) == batch.labels) & batch.mask
        metrics = step_metrics(loss, jnp.sum(correct), state.params, params, network.labels)
        if experiment.accumulate > 1:
            metrics = only_after_update(metrics, opt_state, experiment.accumulate)
        sums = jax.tree.map(jnp.add, sums, metrics)
        after = TrainState(state.step + 1, params, batch_stats, opt_state, sums)
        numbers = (grads, batch_stats, params, opt_state)
        extremes = Extremes(loss, *map(largest, numbers))
        if experiment.nonfinite == "skip":
            after = skip_unless(extremes.are_finite(), state, after)
        return after, extremes

    return train_step


def make_count_correct(network: Network) -> Callable[[nnx.State, Batch], jax.Array]:
    """Counts the images of a batch with the right class first, and among the first five."""

    def count_correct(state: nnx.State, batch: Batch) -> jax.Array:
        model = nnx.merge(network.eval_graph, state)
        logits = model(network.scale(batch.images))
        _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
        correct = (logits.argmax(-1) == batch.labels, jnp.any(best == batch.labels[:, None], -1))
        return jnp.stack([jnp.sum(c & batch.mask) for c in correct])

    return count_correct


def evaluate(
    count_correct: Callable[..., Any], state: Any, batches: Iterable[Batch], in_flight: int = 1
) -> np.ndarray:
    """Top-1 and top-5 accuracy over the images that are not masked: (2,), or (networks, 2)."""
    counts = []
    for batch in batches:
        counts.append((count_correct(state, batch), jnp.sum(batch.mask)))
        if len(counts) >= in_flight:  # the oldest of them must be done
            jax.block_until_ready(counts[-in_flight])
    number = sum(int(images) for _, images in counts)
    if not number:
        raise Stopped("No evaluation image could be decoded.")
    return np.sum([correct for correct, _ in counts], axis=0) / number


# ---- The loop ------------------------------------------------------------------------------------


@again_from_checkpoint
def train(
    experiment: Experiment,
    source: Any,
    folder: Run,
    state: Any,
    train_steps: Callable[[Any, Batch], tuple[Any, Extremes]],
    evaluate: Callable[[Any, Callable[[], None]], np.ndarray],
    interrupt: Interrupt | None = None,
    batches: Callable[[int], Any] | None = None,
) -> Any:
    """Trains to the last epoch, from the newest checkpoint of the folder; returns the last state.

    The same loop trains one network, or several stacked ones: every number then has a leading axis.

    Raises:
        Stopped: after a signal, with a checkpoint saved.
        NotFinite: after numbers that are not finite, as `experiment.nonfinite` says.
    """
    interrupt, train_steps = interrupt or Interrupt(), FirstCall(train_steps)
    steps = source.steps_per_epoch
    state, step = folder.restore(state, steps)
    done = step - len(folder.metrics) * steps  # steps of the epoch that is not in the metrics yet

    def stop_if_asked(fault: str | None = None) -> None:
        """Ends the run after a fault, or a signal, at any process."""
        asked = hosts.agreed(FAULT if fault else interrupt.number)
        if asked == FAULT:
            raise NotFinite(str(hosts.first_fault(fault)))
        if asked:
            folder.save(state, step)
            message = f"Stopped at step {step} (epoch {epoch})."
            raise Stopped(message, 128 + asked, folder.folder)

    with closing((batches or partial(source.training, experiment.seed))(step)) as stream:
        for epoch in range(len(folder.metrics) + 1, experiment.epochs + 1):
            start, resumed_at, compiling = time.perf_counter(), done, train_steps.seconds
            with EpochBar(epoch, experiment.epochs, steps, experiment.step_images, done) as bar:
                while done < steps:
                    seen = []
                    for batch in islice(stream, min(source.dispatched, steps - done)):
                        state, extremes = train_steps(state, batch)
                        seen.append(extremes)
                    extremes = joined(seen, source.stacked)
                    number = len(extremes.loss)
                    skips = experiment.nonfinite == "skip"
                    fault = None if skips else find_fault(extremes, step, epoch)
                    step, done = step + number, done + number
                    bar.update(number)
                    interrupt.can_save = True  # the step is compiled, and there is a state
                    folder.compare(state, step, number)
                    stop_if_asked(fault)
                compiling = train_steps.seconds - compiling  # 0 after the first epoch
                start += compiling
                rate = (done - resumed_at) * experiment.step_images / (time.perf_counter() - start)
                if folder.saves_after(epoch):
                    folder.save(state, step)  # before the evaluation, which may be long
                metrics: dict[str, Any] = {"epoch": epoch, "step": step}
                metrics |= epoch_means(state.sums, steps, experiment.step_images)
                check_skipped(metrics["skipped"], steps, epoch)
                top1, top5 = np.moveaxis(evaluate(state, stop_if_asked), -1, 0)
                metrics[f"{source.evaluated_on}_accuracy"] = top1.tolist()
                metrics[f"{source.evaluated_on}_top5"] = top5.tolist()
                metrics["hyperparameters"] = experiment.hyperparameters(step - 1, steps)
                metrics |= source.measurements()
                metrics |= {"images_per_second": rate, "compile_seconds": compiling}
                metrics["seconds"] = time.perf_counter() - start
                folder.log(metrics)
                bar.finish(metrics)
            done = 0
    return state


# ---- Command line --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What the command line sets."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()
    hosts: Annotated[HostConfig, tyro.conf.arg(name="")] = HostConfig()


def main() -> None:
    """Trains the network that the command line describes."""
    command.prepare_process()
    about = "Trains a Binarized Neural Network with Bop."
    preset, options = command.parse("train.py", PRESETS, DEFAULT_PRESET, Options, about)
    INTERRUPT.deadline, INTERRUPT.announce = options.run.stop_within, hosts.announce
    with command.ending("train.py", options.run.debug):
        hosts.connect(options.hosts)
        result = run(options.experiment, options.run, preset, INTERRUPT)
    say(json.dumps(result))


if __name__ == "__main__":
    main()
