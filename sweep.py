"""The paper's Figure 1: Bop at several γ and τ, all networks in one vmapped program.

    python sweep.py                                   # in miniature, on digits
    python sweep.py cifar10-bop-sweep --data-dir DIR  # section 5.1, 100 epochs at full width
    python sweep.py cifar10-bop-sweep --width 16 --epochs 3 --seeds 0 1 2 --data-dir DIR
    python sweep.py cifar10-adam --gammas --thresholds --seeds 0 1 2 --order separate ...  # seeds

γ varies at the preset's τ, then τ at the preset's γ. Every γ, τ and seed is a lane of `jax.vmap`
over the step of train.py. A vmapped convolution is a grouped one; where that is slower than one
network after another, as it may be on a CPU, they train one after another instead. `--together`
decides, and auto measures. A stopped sweep goes on with --run-dir and --resume. Its folder holds a
record of each network, as train.py's result.json, and figure1.png; of seeds alone, figure2.png.
"""

import dataclasses
import json
import math
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import NamedSharding, PartitionSpec

import datasets
import train
from experiments import PRESETS, Experiment
from figures import plot_comparison, plot_sweep
from runs import Run, RunError, new_folder, result_record, write_json


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Which networks to train."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    gammas: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    """Values of γ in (0, 1], each trained at --threshold; may be empty."""
    thresholds: tuple[float, ...] = (0.0, 1e-6, 1e-5)
    """Values of τ ≥ 0, each trained at --gamma; may be empty."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of weights and augmentation, all different; every γ and τ is trained with each."""
    order: Literal["shared", "separate"] = "shared"
    """Order of the images: that of --seed for all networks, or each by its own seed."""
    together: Literal["auto", "yes", "no"] = "auto"
    """Train all networks in one program, or one after another; auto measures which is faster."""

    def lanes(self) -> list["Lane"]:
        """The networks: each γ, τ and seed once.

        Raises:
            ValueError: for values out of range or given twice, or that the optimizer has not.
        """
        optimizer = self.experiment.optimizer
        if optimizer != "bop" and (self.gammas or self.thresholds):
            raise ValueError(
                "--gammas and --thresholds are Bop's: give both without values for --optimizer "
                f"{optimizer}, to train several seeds"
            )
        for name in ("gammas", "thresholds", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or (name == "seeds" and not values):
                few = " and at least one" if name == "seeds" else ""
                raise ValueError(f"--{name} must be different values{few}: {values}")
        points = [(gamma, self.experiment.threshold) for gamma in self.gammas]
        points += [(self.experiment.gamma, threshold) for threshold in self.thresholds]
        points = points or [(self.experiment.gamma, self.experiment.threshold)]
        lanes = [Lane(*point, seed) for point in dict.fromkeys(points) for seed in self.seeds]
        for lane in lanes:
            dataclasses.replace(self.experiment, **lane._asdict()).check()
        return lanes

    def more(self, lanes: list["Lane"]) -> dict[str, Any]:
        """What makes these networks' run what it is, beside their configuration."""
        experiment, shared = self.experiment, self.order == "shared"
        return {
            "networks": [self.name(lane) for lane in lanes],
            "order": f"shared, of seed {experiment.seed}" if shared else "separate",
            "varied_at": {"gamma": experiment.gamma, "threshold": experiment.threshold},
        }

    def name(self, lane: "Lane") -> str:
        """A network's name, of its record and of its folder."""
        numbers = lane._asdict() if self.experiment.optimizer == "bop" else {"seed": lane.seed}
        return "-".join(f"{name}={number}" for name, number in numbers.items())


class Lane(NamedTuple):
    """What one network differs in from the others; arrays of these while training."""

    gamma: Any
    threshold: Any
    seed: Any


# ---- Training ---------------------------------------------------------------------------------


class Lanes(NamedTuple):
    """Several networks in one program, stacked: all that training changes, and their numbers."""

    lanes: Lane
    states: train.TrainState


class Compiled(NamedTuple):
    """What groups of lanes share, whatever their numbers; and the data, on all devices."""

    program: train.Program
    init: Any
    train_steps: Any
    evaluate: Any
    train_data: Any
    test_data: Any


def compile_sweep(sweep: Sweep, data: datasets.Dataset) -> Compiled:
    """What `train_lanes` needs; XLA compiles it when it is first used."""
    program, _ = train.build(sweep.experiment, data)
    return Compiled(
        program,
        jax.jit(jax.vmap(program.init)),
        train.make_train_steps(program, make_step(sweep, program)),
        train.make_evaluate(program, vmapped=True),
        *train.on_devices(data, program.mesh),
    )


def build_lanes(compiled: Compiled, lanes: list[Lane]) -> Lanes:
    """The first state of each network, on all devices."""
    numbers = Lane(
        jnp.array([lane.gamma for lane in lanes], jnp.float32),
        jnp.array([lane.threshold for lane in lanes], jnp.float32),
        jnp.array([lane.seed for lane in lanes], jnp.uint32),
    )
    stacked = Lanes(numbers, compiled.init(numbers.seed))
    return jax.device_put(stacked, NamedSharding(compiled.program.mesh, PartitionSpec()))


def make_step(sweep: Sweep, program: train.Program) -> Any:
    """train.py's step for all lanes at once: (lanes, data, indices) → (lanes, losses)."""

    def lane_step(lane, state, data, indices):
        config = dataclasses.replace(sweep.experiment, **lane._asdict())
        return train.make_train_step(program, config)(state, data, indices)

    vmapped = jax.vmap(lane_step, in_axes=(0, 0, None, 0 if sweep.order == "separate" else None))

    def step(stacked, data, indices):
        states, losses = vmapped(stacked.lanes, stacked.states, data, indices)
        return stacked._replace(states=states), losses

    return step


def epoch_batches(sweep: Sweep, lanes: list[Lane], number: int, epoch: int) -> np.ndarray:
    """Indices of an epoch: (steps, batch), or with separate orders (steps, lanes, batch)."""
    if sweep.order == "shared":
        return train.epoch_batches(sweep.experiment, number, epoch)
    configs = [dataclasses.replace(sweep.experiment, seed=lane.seed) for lane in lanes]
    return np.stack([train.epoch_batches(c, number, epoch) for c in configs], axis=1)


def several_networks(sweep: Sweep, compiled: Compiled, lanes: list[Lane]) -> train.Trainee:
    """What train.py's loop trains. Its metrics are means over the networks, with those of each."""
    config = sweep.experiment

    def metrics(stacked: Lanes, steps: int, over: bool) -> dict[str, Any]:
        sums = jax.device_get(stacked.states.sums)
        each = [
            train.epoch_means(jax.tree.map(lambda x, i=i: x[i], sums), steps, config)
            for i in range(len(lanes))
        ]
        if over:
            images = train.every_image(compiled.test_data, config.batch_size, compiled.program.mesh)
            accuracies = compiled.evaluate(stacked.states, images)
            for record, (top1, _) in zip(each, accuracies, strict=True):
                record[config.accuracy] = float(top1)
        mean = jax.tree.map(lambda *values: float(np.mean(values)), *each)
        return mean | {"networks": each}

    batches = partial(epoch_batches, sweep, lanes, len(compiled.train_data[0]))
    return train.Trainee(
        partial(train.chunks, batches, compiled.program.steps_per_epoch),
        lambda stacked, batches: compiled.train_steps(stacked, compiled.train_data, batches),
        metrics,
    )


def train_lanes(
    sweep: Sweep, compiled: Compiled, lanes: list[Lane], folder: Path, preset: str
) -> list[dict[str, Any]]:
    """Trains some networks in one program, or goes on with it: a record of each, and in `folder`.

    Raises:
        train.Stopped, runs.RunError, ValueError: as in train.py.
    """
    own = lanes[0]._asdict() if len(lanes) == 1 else {}
    run_dir = folder / (sweep.name(lanes[0]) if own else "together")
    resume = (run_dir / "config.json").exists()
    config = dataclasses.replace(sweep.experiment, **own, run_dir=run_dir, resume=resume)
    more = sweep.more(lanes)
    run = Run(config, preset, more)
    print(more["networks"][0] if own else f"{len(lanes)} networks together", file=sys.stderr)
    trainee = several_networks(sweep, compiled, lanes)
    stacked = build_lanes(compiled, lanes)
    with run:
        train.train(config, trainee, stacked, compiled.program.steps_per_epoch, run)
    accuracy, records = config.accuracy, []
    for i, lane in enumerate(lanes):
        metrics = [m | m["networks"][i] for m in run.metrics]
        for m in metrics:
            del m["networks"]
        result = {
            "preset": preset,
            accuracy: metrics[-1][accuracy],
            "epochs": config.epochs,
            "seconds": round(sum(m["seconds"] for m in metrics), 2),
        }
        description = run.description | {"config": run.description["config"] | lane._asdict()}
        records.append(result_record(description, result, metrics))
        write_json(folder / f"{sweep.name(lane)}.json", records[-1])
    return records


# ---- All at once, or one after another ----------------------------------------------------------


def compile_step(sweep: Sweep, compiled: Compiled, lanes: list[Lane]) -> tuple[Any, int]:
    """A step of these lanes that nothing ran yet, and the bytes it takes without the data set."""
    stacked = jax.eval_shape(lambda: build_lanes(compiled, lanes))
    batch = first_batch(sweep, compiled, lanes)
    step = jax.jit(make_step(sweep, compiled.program), donate_argnums=0)
    step = step.lower(stacked, compiled.train_data, batch).compile()
    analysis = step.memory_analysis()
    memory = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(stacked))
    return step, memory + (int(analysis.temp_size_in_bytes) if analysis is not None else 0)


def seconds_per_step(sweep: Sweep, compiled: Compiled, lanes: list[Lane], step: Any) -> float:
    """Median of three times three steps, after the first three."""
    stacked, batch, times = build_lanes(compiled, lanes), first_batch(sweep, compiled, lanes), []
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(3):
            stacked, _ = step(stacked, compiled.train_data, batch)
        jax.block_until_ready(stacked)
        times.append((time.perf_counter() - start) / 3)
    return float(np.median(times[1:]))


def first_batch(sweep: Sweep, compiled: Compiled, lanes: list[Lane]) -> jax.Array:
    indices = epoch_batches(sweep, lanes, len(compiled.train_data[0]), 1)[0]
    return train.shard(compiled.program.mesh, indices)


def memory_there() -> int:
    """Bytes of the first device; of the machine, where the device is a CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def all_together(sweep: Sweep, compiled: Compiled, lanes: list[Lane]) -> bool:
    """Whether to train all lanes in one program: by `together`, memory and time; says why.

    Raises:
        ValueError: where "yes" was asked for and the device has too little memory.
    """
    if len(lanes) == 1 or sweep.together == "no":
        return False
    stacked, memory = compile_step(sweep, compiled, lanes)
    data = jax.tree.leaves((compiled.train_data, compiled.test_data))
    there = memory_there() - sum(array.nbytes for array in data)
    each = memory // len(lanes)
    fit = max(there, 0) // each
    needs = f"{each / 2**20:.1f} MiB a network, {there / 2**30:.1f} GiB there: {fit:,} fit together"
    if memory > there and sweep.together == "yes":
        raise ValueError(
            f"{len(lanes)} networks are too many ({needs}). Use fewer --seeds, a smaller "
            "--batch-size or --width, or --together no"
        )
    print(needs, file=sys.stderr)
    if memory > there or sweep.together == "yes":
        return memory <= there
    single, _ = compile_step(sweep, compiled, lanes[:1])
    together = seconds_per_step(sweep, compiled, lanes, stacked)
    alone = len(lanes) * seconds_per_step(sweep, compiled, lanes[:1], single)
    faster = "together" if together <= alone else "one after another"
    print(
        f"A step of {len(lanes)} networks takes {together:.3f} s together, {alone:.3f} s one after "
        f"another: training {faster}.",
        file=sys.stderr,
    )
    return together <= alone


def went_together(config: Experiment) -> bool:
    """How the sweep that is to be resumed was trained.

    Raises:
        ValueError: where there is none.
    """
    folder = (config.run_dir or Path()).expanduser()
    runs = {p.parent.name for p in folder.glob("*/config.json") if "varied_at" in p.read_text()}
    if not runs:
        raise ValueError(f"{folder} holds no sweep to resume")
    return "together" in runs


# ---- Command line -----------------------------------------------------------------------------


def main() -> None:
    start = time.perf_counter()
    preset, arguments = train.split_preset("sweep.py")
    sweep = tyro.cli(
        Sweep,
        prog=f"sweep.py {preset}",
        description=__doc__,
        default=Sweep(PRESETS[preset][1]),
        args=arguments,
    )
    config = sweep.experiment
    try:
        config.check()
        lanes = sweep.lanes()
        data = train.load_in_memory(config)
        train.check_batch(config, len(data.train_images))
        compiled = compile_sweep(sweep, data)
        together = went_together(config) if config.resume else all_together(sweep, compiled, lanes)
        folder = new_folder(config, f"sweep-{preset}")
    except (ValueError, OSError) as error:
        sys.exit(f"sweep.py: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    try:
        groups = [lanes] if together else [[lane] for lane in lanes]
        records = [r for g in groups for r in train_lanes(sweep, compiled, g, folder, preset)]
    except (ValueError, RunError) as error:
        sys.exit(f"sweep.py: {error}")
    except (train.Stopped, KeyboardInterrupt) as stopped:
        train.end(stopped, config, folder)
    if sweep.gammas or sweep.thresholds:
        plot_sweep(records, folder / "figure1.png")
    else:
        plot_comparison({preset: [r["metrics"] for r in records]}, folder / "figure2.png")
    accuracy = config.accuracy
    best = max(records, key=lambda record: record["result"][accuracy])
    result = {
        "preset": preset,
        "networks": len(records),
        "epochs": config.epochs,
        "best": {k: best["config"][k] for k in Lane._fields},
        accuracy: best["result"][accuracy],
        "seconds": round(time.perf_counter() - start, 2),
        "run_dir": str(folder),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
