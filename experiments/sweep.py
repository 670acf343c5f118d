"""The paper's Figure 1: Bop at several γ and τ, vmapped or one network after another.

    python -m experiments.sweep                                   # in miniature, on digits
    python -m experiments.sweep cifar10-bop-sweep --data-dir DIR  # section 5.1
    python -m experiments.sweep cifar10-adam --gammas --thresholds --seeds 0 1 2 --order separate

γ varies at the preset's τ, and τ at the preset's γ. `jax.vmap` maps the training step of train.py
over γ, τ and the key. The sweep's folder holds records.json, a list of one record for each network,
and figure1.png; if seeds alone vary, figure2.png. --run-dir and --resume resume a stopped sweep.
"""

from training.interrupt import Interrupt, before_each

INTERRUPT = Interrupt()
if __name__ == "__main__":  # before JAX starts its threads, which inherit the mask of signals
    INTERRUPT.watch()

import json
import math
import os
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import tyro

import train
from experiments.figures import plot_comparison, plot_sweep
from experiments.methods import at_point
from experiments.presets import DEFAULT_PRESET, PRESETS
from training import command
from training.config import Experiment, ImageNet, RunConfig, to_json
from training.data import Batch
from training.devices import device_mesh, replicated
from training.folder import holds_something, new_folder
from training.hosts import all_devices
from training.messages import say, warn
from training.network import (
    TrainState,
    compile_steps,
    compiled,
    first_state,
    make_network,
)
from training.records import result_of, result_record, write_json
from training.run import Run


class Lane(NamedTuple):
    """One network of a sweep: its first γ and τ, if its optimizer has them, and its seed."""

    initial: dict[str, float]
    seed: int

    @property
    def name(self) -> str:
        """The network's name in the records."""
        return "-".join(f"{k}={v}" for k, v in {**self.initial, "seed": self.seed}.items())

    def experiment(self, base: Experiment) -> Experiment:
        """The configuration of a run of this network alone."""
        return replace(at_point(base, self.initial), seed=self.seed)


@dataclass(frozen=True)
class Sweep:
    """The networks of a sweep, and how they are trained."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()
    gammas: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    """First values of γ in (0, 1], each trained at --threshold; may be empty."""
    thresholds: tuple[float, ...] = (0.0, 1e-6, 1e-5)
    """First values of τ ≥ 0, each trained at --gamma; may be empty."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of weights and augmentation; each γ and τ is trained with each seed."""
    order: Literal["shared", "separate"] = "shared"
    """Order of the images: that of --seed for all networks, or that of each network's own seed."""
    vmap: bool = field(default_factory=lambda: all_devices()[0].platform != "cpu")
    """Train all networks in one program. Default: only on accelerators."""

    @property
    def fixed(self) -> dict[str, float]:
        """γ at which τ varies, and τ at which γ varies; empty for an optimizer without both."""
        optimizer, names = self.experiment.optimizer, ("gamma", "threshold")
        has_both = all(hasattr(optimizer, name) for name in names)
        return {name: getattr(optimizer, name).initial for name in names} if has_both else {}

    def lanes(self) -> list[Lane]:
        """The networks: each γ, τ and seed once.

        Raises:
            ValueError: for values out of range or given twice, for an optimizer without γ or τ, and
                for data that does not fit into memory.
        """
        if not self.fixed and (self.gammas or self.thresholds):
            raise ValueError(
                f"{type(self.experiment.optimizer).__name__} lacks γ or τ: give --gammas and "
                "--thresholds without values, to train several seeds"
            )
        if self.run.shard_averages:
            raise ValueError("--shard-averages is of train.py alone: leave it out of a sweep")
        if isinstance(self.experiment.data, ImageNet):
            raise ValueError("imagenet2012 does not fit into memory: a sweep needs other data")
        for name in ("gammas", "thresholds", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or (name == "seeds" and not values):
                at_least = " and at least one" if name == "seeds" else ""
                raise ValueError(f"--{name} must be different values{at_least}, got {values}")
        points = [self.fixed | {"gamma": gamma} for gamma in self.gammas]
        points += [self.fixed | {"threshold": threshold} for threshold in self.thresholds]
        points = [p for i, p in enumerate(points) if p not in points[:i]] or [self.fixed]
        lanes = [Lane(point, seed) for point in points for seed in self.seeds]
        for lane in lanes:
            try:
                lane.experiment(self.experiment)  # checks the ranges
            except ValueError as error:
                raise ValueError(f"network {lane.name}: {error}") from error
        return lanes

    def metadata(self, lanes: Sequence[Lane]) -> dict[str, Any]:
        """What identifies a run of these networks, in addition to their configuration."""
        shared = f"shared, of seed {self.experiment.seed}"
        return {
            "networks": [lane.name for lane in lanes],
            "order": shared if self.order == "shared" else "separate",
            "varied_at": self.fixed,
        }


# ---- Training ------------------------------------------------------------------------------------


class Program(NamedTuple):
    """What all networks of a sweep share; the functions take a leading axis of networks."""

    source: Any
    mesh: jax.sharding.Mesh
    first_states: Any
    train_steps: Any
    eval_states: Any
    count_correct: Any


def make_program(sweep: Sweep, data: Any) -> Program:
    """Vmaps the step of train.py over γ, τ and the key; XLA compiles it at its first call."""
    experiment, mesh = sweep.experiment, device_mesh()
    source = data.batches(experiment.step_images, mesh, experiment.accumulate)
    network = make_network(experiment, data)
    optimizer = train.make_optimizer(experiment, network.labels, source.steps_per_epoch)
    step = train.make_train_step(experiment, network, source)
    steps = jax.vmap(step, in_axes=(0, 0 if sweep.order == "separate" else None, 0, 0))
    return Program(
        source,
        mesh,
        jax.vmap(partial(first_state, network, optimizer)),
        compile_steps(steps, source.stacked),
        compiled(jax.vmap(network.eval_state)),
        compiled(jax.vmap(train.make_count_correct(network), in_axes=(0, None))),
    )


def first_arguments(program: Program, lanes: Sequence[Lane]) -> tuple[TrainState, Any, Any]:
    """The networks' first states, their keys and their first γ and τ, on every device."""

    def make() -> tuple[TrainState, Any, Any]:
        seeds = jnp.array([lane.seed for lane in lanes], jnp.uint32)
        initial = {k: jnp.array([lane.initial[k] for lane in lanes]) for k in lanes[0].initial}
        return program.first_states(seeds), jax.vmap(jax.random.key)(seeds), initial

    return jax.jit(make, out_shardings=replicated(program.mesh))()


def training_batches(
    sweep: Sweep, source: Any, lanes: Sequence[Lane], step: int
) -> Generator[Batch]:
    """Batches from a step on; separate orders have an axis of networks, after that of the steps."""
    separate = sweep.order == "separate"
    seeds = [lane.seed for lane in lanes] if separate else [sweep.experiment.seed]
    with ExitStack() as stack:
        streams = [stack.enter_context(closing(source.training(seed, step))) for seed in seeds]
        for batches in zip(*streams, strict=True):
            if separate:
                yield jax.tree.map(lambda *x: jnp.stack(x, int(source.stacked)), *batches)
            else:
                yield batches[0]


def train_networks(
    sweep: Sweep, program: Program, lanes: Sequence[Lane], folder: Run, interrupt: Interrupt | None
) -> list[dict[str, Any]]:
    """Trains networks in one program, from the folder's newest checkpoint; returns their records.

    Raises:
        Stopped, RunError: as `train.train`.
    """
    source = program.source
    states, *rest = first_arguments(program, lanes)
    train.train(
        sweep.experiment,
        source,
        folder,
        states,
        lambda states, batch: program.train_steps(states, batch, *rest),
        lambda states, check: train.evaluate(
            program.count_correct,
            program.eval_states(states),
            before_each(check, source.evaluation()),
            source.in_flight,
        ),
        interrupt,
        partial(training_batches, sweep, source, lanes),
    )
    records = []
    for i, lane in enumerate(lanes):
        experiment = lane.experiment(sweep.experiment)
        metrics = [_of_network(m, i) for m in folder.metrics]
        for m in metrics:
            m["hyperparameters"] = experiment.hyperparameters(m["step"] - 1, source.steps_per_epoch)
        result = result_of(folder.description["preset"], metrics)
        description = folder.description | {"config": to_json(experiment)}
        records.append(result_record(description, result, metrics))
    return records


def _of_network(metrics: Any, i: int) -> Any:
    """The numbers of one network: lists have one for each."""
    if isinstance(metrics, dict):
        return {name: _of_network(value, i) for name, value in metrics.items()}
    return metrics[i] if isinstance(metrics, list) else metrics


# ---- Memory --------------------------------------------------------------------------------------


def check_memory(needed: int, free: int, networks: int) -> None:
    """Prints the memory of a network and how many networks fit; ValueError if these do not."""
    each = max(needed // networks, 1)
    fit = f"{each / 2**20:.1f} MiB a network, {free / 2**30:.1f} GiB free: {free // each:,} fit"
    if needed > free:
        raise ValueError(
            f"{networks} networks are too many ({fit}): use fewer --seeds, a smaller "
            "--batch-size or --width, or --no-vmap"
        )
    warn(fit)


def step_memory(sweep: Sweep, program: Program, lanes: Sequence[Lane]) -> int:
    """Compiles the training step; returns the bytes of its states and of its working memory."""
    everywhere = replicated(program.mesh)
    states, *rest = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(lambda: first_arguments(program, lanes)),
    )
    with closing(training_batches(sweep, program.source, lanes, 0)) as batches:
        step = program.train_steps.lower(states, next(batches), *rest).compile()
    analysis = step.memory_analysis()
    working = 0 if analysis is None else int(analysis.temp_size_in_bytes)
    return working + sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(states))


def free_memory() -> int:
    """Bytes of the first device, or of the machine if it is a CPU, that no array of JAX holds."""
    stats = jax.devices()[0].memory_stats() or {}
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(stats.get("bytes_limit", machine) - sum(x.nbytes for x in jax.live_arrays()), 0)


# ---- Command line --------------------------------------------------------------------------------


def run(sweep: Sweep, preset: str = "own", interrupt: Interrupt | None = None) -> dict[str, Any]:
    """Trains the networks of a sweep and draws the figure; returns the best network's result.

    Raises:
        ValueError: for values out of range, too many networks, and a folder that does not fit.
        Stopped, RunError, OSError: as `train.run`.
    """
    start, lanes = time.perf_counter(), sweep.lanes()
    data = sweep.experiment.data.load()
    program = make_program(sweep, data)
    groups = {lane.name: [lane] for lane in lanes}
    if sweep.vmap:
        groups = {"vmapped": lanes}
        check_memory(step_memory(sweep, program, lanes), free_memory(), len(lanes))
    folder = new_folder(sweep.run, f"sweep-{preset}")
    started = {name for name in groups if (folder / name / "config.json").exists()}
    if sweep.run.resume and not started and holds_something(folder):
        flag = "--vmap" if sweep.vmap else "--no-vmap"
        raise ValueError(f"{folder} holds no sweep to resume with {flag}")
    records: list[dict[str, Any]] = []
    for number, (name, group) in enumerate(groups.items(), 1):
        in_turn = f"network {number} of {len(lanes)}, {name}"
        title = f"{len(lanes)} networks in one program" if sweep.vmap else in_turn
        say(f"{preset}: {title}, {folder}")
        experiment = sweep.experiment if sweep.vmap else group[0].experiment(sweep.experiment)
        config = replace(sweep.run, run_dir=folder / name, resume=name in started)
        with Run(experiment, config, preset, data, sweep.metadata(group)) as run_folder:
            records += train_networks(sweep, program, group, run_folder, interrupt)
        write_json(folder / "records.json", records)
    if sweep.gammas or sweep.thresholds:
        plot_sweep(records, folder / "figure1.png")
    else:
        plot_comparison({preset: [r["metrics"] for r in records]}, folder / "figure2.png")
    key = f"{program.source.evaluated_on}_accuracy"
    best = max(range(len(lanes)), key=lambda i: records[i]["result"][key])
    return {
        "preset": preset,
        "networks": len(lanes),
        "best": {**lanes[best].initial, "seed": lanes[best].seed},
        key: records[best]["result"][key],
        "epochs": sweep.experiment.epochs,
        "seconds": round(time.perf_counter() - start, 2),
        "run_dir": str(folder),
    }


def main() -> None:
    """Trains the networks that the command line describes."""
    command.prepare_process()
    about = "Trains a preset at several γ, τ or seeds, as in the paper's Figure 1."
    preset, sweep = command.parse("-m experiments.sweep", PRESETS, DEFAULT_PRESET, Sweep, about)
    INTERRUPT.deadline = sweep.run.stop_within
    with command.ending("-m experiments.sweep", sweep.run.debug, lambda run: run.parent):
        result = run(sweep, preset, INTERRUPT)
    say(json.dumps(result))


if __name__ == "__main__":
    main()
