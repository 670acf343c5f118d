"""The paper's Figure 1: Bop at several γ and τ, all networks in one vmapped program.

    python sweep.py                                   # in miniature, on digits
    python sweep.py cifar10-bop-sweep --data-dir DIR  # section 5.1, 100 epochs at full width
    python sweep.py cifar10-bop-sweep --width 16 --epochs 3 --seeds 0 1 2 --data-dir DIR

γ varies at the preset's τ, then τ at the preset's γ. Every γ, τ and seed is a lane of `jax.vmap`
over the step of train.py. A vmapped convolution is a grouped one; where that is slower than one
network after another, as it may be on a CPU, they train one after another instead. `--together`
decides, and auto measures. The folder of the sweep holds sweep.json and figure1.png.
"""

import dataclasses
import json
import os
import sys
import time
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

import datasets
import train
from experiments import DEFAULT_PRESET, PRESETS, Experiment
from figures import plot_sweep
from runs import describe, new_folder


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Which networks to train."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    gammas: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    """Values of γ in (0, 1], each trained at --threshold."""
    thresholds: tuple[float, ...] = (0.0, 1e-6, 1e-5)
    """Values of τ ≥ 0, each trained at --gamma."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of weights and augmentation, all different; every γ and τ is trained with each."""
    order: Literal["shared", "separate"] = "shared"
    """Order of the images: that of --seed for all networks, or each by its own seed."""
    together: Literal["auto", "yes", "no"] = "auto"
    """Train all networks in one program, or one after another; auto measures which is faster."""

    def lanes(self) -> list["Lane"]:
        """The networks: each γ, τ and seed once.

        Raises:
            ValueError: for values out of range or given twice, and for an optimizer without them.
        """
        if self.experiment.optimizer != "bop":
            raise ValueError(f"--optimizer must be bop, got {self.experiment.optimizer}")
        if self.experiment.resume:
            raise ValueError("--resume is not for sweeps, which keep no checkpoints")
        for name in ("gammas", "thresholds", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or (name == "seeds" and not values):
                raise ValueError(f"--{name} must be different values, at least one seed: {values}")
        points = [(gamma, self.experiment.threshold) for gamma in self.gammas]
        points += [(self.experiment.gamma, threshold) for threshold in self.thresholds]
        if not points:
            raise ValueError("--gammas and --thresholds are both empty: nothing to train")
        lanes = [Lane(*point, seed) for point in dict.fromkeys(points) for seed in self.seeds]
        for lane in lanes:
            dataclasses.replace(self.experiment, **lane._asdict()).check()
        return lanes


class Lane(NamedTuple):
    """What one network differs in from the others; arrays of these while training."""

    gamma: Any
    threshold: Any
    seed: Any


# ---- Training ---------------------------------------------------------------------------------


def build_lanes(sweep: Sweep, data: datasets.Dataset, lanes: list[Lane]) -> tuple[Any, Any]:
    """The program, and the lanes' numbers and states, stacked."""
    program, _ = train.build(sweep.experiment, data)
    numbers = Lane(
        jnp.array([lane.gamma for lane in lanes], jnp.float32),
        jnp.array([lane.threshold for lane in lanes], jnp.float32),
        jnp.array([lane.seed for lane in lanes], jnp.uint32),
    )
    carry = (numbers, jax.jit(jax.vmap(program.init))(numbers.seed))
    return program, jax.device_put(carry, NamedSharding(program.mesh, PartitionSpec()))


def make_step(sweep: Sweep, program: train.Program) -> Any:
    """train.py's step for all lanes at once: ((lanes, states), data, indices) → (…, losses)."""

    def lane_step(lane, state, data, indices):
        config = dataclasses.replace(sweep.experiment, **lane._asdict())
        return train.make_train_step(program, config)(state, data, indices)

    vmapped = jax.vmap(lane_step, in_axes=(0, 0, None, 0 if sweep.order == "separate" else None))

    def step(carry, data, indices):
        lanes, states = carry
        states, losses = vmapped(lanes, states, data, indices)
        return (lanes, states), losses

    return step


def epoch_batches(sweep: Sweep, lanes: list[Lane], number: int, epoch: int) -> np.ndarray:
    """Indices of an epoch: (steps, batch), or with separate orders (steps, lanes, batch)."""
    if sweep.order == "shared":
        return train.epoch_batches(sweep.experiment, number, epoch)
    configs = [dataclasses.replace(sweep.experiment, seed=lane.seed) for lane in lanes]
    return np.stack([train.epoch_batches(c, number, epoch) for c in configs], axis=1)


def train_lanes(
    sweep: Sweep, data: datasets.Dataset, lanes: list[Lane], train_steps: Any, evaluate: Any
) -> list[list[dict[str, Any]]]:
    """Trains some lanes together; for each lane, a record for each epoch, as in metrics.jsonl."""
    config, number = sweep.experiment, len(data.train_images)
    program, carry = build_lanes(sweep, data, lanes)
    train_data, test_data = train.on_devices(data, program.mesh)
    records: list[list[dict[str, Any]]] = [[] for _ in lanes]
    evaluated_on = config.evaluated_on
    name = f"{len(lanes)} networks" if len(lanes) > 1 else _name(lanes[0])
    shown = sys.stderr is not None and sys.stderr.isatty()
    with tqdm(total=config.epochs, desc=name, unit="epoch", disable=not shown) as bar:
        for epoch in range(1, config.epochs + 1):
            for chunk in train.chunks(epoch_batches(sweep, lanes, number, epoch)):
                carry, losses = train_steps(carry, train_data, chunk)
                for lane, column in zip(lanes, losses.T, strict=True):
                    if not np.isfinite(column).all():
                        raise train.Stopped(
                            f"The loss of {_name(lane)} is {column[-1]} in {epoch=}"
                        )
            accuracies = evaluate(carry[1], test_data, config.batch_size)
            sums = jax.device_get(carry[1].sums)
            for i, accuracy in enumerate(accuracies):
                own = jax.tree.map(lambda x, i=i: x[i], sums)
                means = train.epoch_means(own, program.steps_per_epoch, config)
                records[i].append(
                    {"epoch": epoch, **means, f"{evaluated_on}_accuracy": float(accuracy)}
                )
            bar.set_postfix_str(f"{evaluated_on} {accuracies.min():.1%} to {accuracies.max():.1%}")
            bar.update()
            if not shown:
                tests = ", ".join(f"{accuracy:.2%}" for accuracy in accuracies)
                print(f"{name}: epoch {epoch}/{config.epochs}: {evaluated_on} {tests}", flush=True)
    return records


def _name(lane: Lane) -> str:
    return f"γ={lane.gamma:g} τ={lane.threshold:g} seed {lane.seed}"


# ---- All at once, or one after another -----------------------------------------------------------


def memory_needed(sweep: Sweep, data: datasets.Dataset, lanes: list[Lane]) -> int:
    """Bytes on a device of the compiled step for these lanes, without the data set."""
    program, carry = build_lanes(sweep, data, lanes)
    train_data, _ = train.on_devices(data, program.mesh)
    indices = train.shard(program.mesh, epoch_batches(sweep, lanes, len(data.train_images), 1)[0])
    step = jax.jit(make_step(sweep, program), donate_argnums=0)
    analysis = step.lower(carry, train_data, indices).compile().memory_analysis()
    held = sum(array.nbytes for array in jax.tree.leaves(carry))
    return held + int(analysis.temp_size_in_bytes) if analysis is not None else held


def memory_there() -> int:
    """Bytes of the first device; of the machine, where the device is a CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(sweep: Sweep, data: datasets.Dataset, lanes: list[Lane]) -> str:
    """Says how much memory a network takes, from the compiled steps of one and of two.

    Raises:
        ValueError: where the lanes together need more than there is; says how many fit.
    """
    one, two = (memory_needed(sweep, data, (lanes * 2)[:n]) for n in (1, 2))
    there = memory_there() - sum(a.nbytes for a in (data.train_images, data.test_images))
    each = max(two - one, 1)
    needed = one + (len(lanes) - 1) * each
    fit = max(int((there - one) // each) + 1, 0)
    if needed > there:
        raise ValueError(
            f"{len(lanes)} networks need {needed / 2**30:.1f} GiB, the device has "
            f"{there / 2**30:.1f} GiB: {fit} fit together. Use fewer --seeds, a smaller "
            "--batch-size or --width, or --together no"
        )
    return f"{each / 2**20:.1f} MiB a network; about {fit:,} fit in {there / 2**30:.1f} GiB"


def seconds_per_step(sweep: Sweep, data: datasets.Dataset, lanes: list[Lane]) -> float:
    """Median of three steps, after the one that compiles."""
    program, carry = build_lanes(sweep, data, lanes)
    train_data, _ = train.on_devices(data, program.mesh)
    train_steps = train.make_train_steps(program, make_step(sweep, program))
    batches = epoch_batches(sweep, lanes, len(data.train_images), 1)[:1]
    times = []
    for _ in range(4):
        start = time.perf_counter()
        carry, _ = train_steps(carry, train_data, batches)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def faster_together(sweep: Sweep, data: datasets.Dataset, lanes: list[Lane]) -> bool:
    if len(lanes) == 1:
        return False
    together = seconds_per_step(sweep, data, lanes)
    alone = len(lanes) * seconds_per_step(sweep, data, lanes[:1])
    faster = "together" if together <= alone else "one after another"
    print(
        f"A step of {len(lanes)} networks takes {together:.3f} s together, {alone:.3f} s one after "
        f"another: training {faster}.",
        file=sys.stderr,
    )
    return together <= alone


def run_sweep(sweep: Sweep, data: datasets.Dataset) -> list[dict[str, Any]]:
    """Trains every lane the faster way; a record of each."""
    lanes = sweep.lanes()
    together = sweep.together == "yes"
    if sweep.together != "no":
        print(check_memory(sweep, data, lanes), file=sys.stderr)
        together = together or faster_together(sweep, data, lanes)
    # Compiled once for all groups of lanes, whose numbers are inputs: one group, or one lane each.
    program, _ = train.build(sweep.experiment, data)
    train_steps = train.make_train_steps(program, make_step(sweep, program))
    evaluate = train.make_evaluate(program, vmapped=True)
    groups = [lanes] if together else [[lane] for lane in lanes]
    metrics = [m for g in groups for m in train_lanes(sweep, data, g, train_steps, evaluate)]
    return [lane._asdict() | {"metrics": m} for lane, m in zip(lanes, metrics, strict=True)]


# ---- Command line -----------------------------------------------------------------------------


def main() -> None:
    start = time.perf_counter()
    preset, arguments = train.split_preset("sweep.py", DEFAULT_PRESET)
    sweep = tyro.cli(
        Sweep, prog=f"sweep.py {preset}", default=Sweep(PRESETS[preset][1]), args=arguments
    )
    config = sweep.experiment
    try:
        config.check()
        sweep.lanes()
        data = train.load_data(config)
        train.check_batch(config, len(data.train_images))
        folder = new_folder(config, f"sweep-{preset}")
        lanes = run_sweep(sweep, data)
    except (ValueError, OSError) as error:
        sys.exit(f"sweep.py: {error}")
    except train.Stopped as stopped:
        sys.exit(f"sweep.py: {stopped}")
    seconds = round(time.perf_counter() - start, 2)
    record = describe(config, preset) | {"order": sweep.order, "seconds": seconds, "lanes": lanes}
    (folder / "sweep.json").write_text(json.dumps(record, indent=1) + "\n")
    plot_sweep(lanes, config.gamma, config.threshold, folder / "figure1.png")
    accuracy = f"{config.evaluated_on}_accuracy"
    best = max(lanes, key=lambda lane: lane["metrics"][-1][accuracy])
    result = {
        "preset": preset,
        "networks": len(lanes),
        "epochs": config.epochs,
        "best": {k: best[k] for k in Lane._fields},
        accuracy: best["metrics"][-1][accuracy],
        "seconds": seconds,
        "run_dir": str(folder),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
