"""Bop, its variants and latent weights on CIFAR-10, each at the best of its two hyperparameters.

    python compare.py --data-dir DIR    # about seven hours on two cores; once stopped, it goes on

All methods train the same network on the same images for the same epochs. First a grid over each
method's two hyperparameters is judged on training images that are held out. Then the best point
trains on all training images with other seeds, and these runs alone see the test images. Every run
is a process of train.py with a core to itself; its record goes to FOLDER/results/.
"""

import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from experiments import PRESETS, Experiment
from runs import read_result, write_json

PINNED = hasattr(os, "sched_setaffinity")  # XLA on one core each is faster than two on two
BOP = {"gamma": (1e-2, 1e-3, 1e-4), "threshold": (1e-6, 1e-7)}
LAYERWISE = {"gamma": (1e-2, 1e-3, 1e-4), "threshold": (1.0, 0.3)}
SECOND_ORDER = {"gamma": (1e-2, 1e-3, 1e-4), "threshold": (1e-2, 1e-3)}
SGD = {"latent_learning_rate": (10.0, 1.0, 0.1, 0.01), "momentum": (0.9, 0.99)}
ADAM = {"latent_learning_rate": (1e-2, 1e-3, 1e-4), "b1": (0.9, 0.99)}
METHODS: dict[str, dict[str, tuple[float, ...]]] = {
    "cifar10-bop-small": BOP,
    "cifar10-adam-small": ADAM | {"latent_learning_rate": (0.1, 1e-2, 1e-3, 1e-4)},
    "cifar10-sgd-small": SGD,
    "cifar10-bop-falling-threshold-small": BOP | {"gamma": (0.1, 1e-2, 1e-3, 1e-4)},
    "cifar10-bop-layerwise-small": LAYERWISE,
    "cifar10-bop-2nd-order-small": SECOND_ORDER,
    # The same with a linear schedule, as CEMA's.
    "cifar10-bop-falling-gamma-small": BOP,
    "cifar10-adam-falling-rate-small": ADAM,
    "cifar10-sgd-falling-rate-small": SGD,
    "cifar10-bop-falling-gamma-and-threshold-small": BOP,
    "cifar10-bop-layerwise-falling-gamma-small": LAYERWISE,
    "cifar10-bop-2nd-order-falling-gamma-small": SECOND_ORDER | {"gamma": (1e-2, 1e-3, 1e-4, 1e-5)},
    "cifar10-cema-small": {"alpha": (1e-2, 1e-3, 1e-4), "gamma": (1e-1, 1e-2)},
}
"""For each preset, the values of its two hyperparameters: 3 × 2, and one more of the first where
the best of the three was at an end."""


@dataclass(frozen=True)
class Comparison:
    """What is compared. Options that are not listed here go to train.py, for every run."""

    held_out: int = 5000
    """Training images held out to judge the hyperparameters by."""
    search_seed: int = 0
    """Seed of the search."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of the runs that are reported."""
    jobs: int = len(os.sched_getaffinity(0)) if PINNED else os.cpu_count() or 1
    """Runs at a time, each on a CPU core of its own; 1 on a GPU."""
    folder: Path = Path("runs", "compare")
    """Where everything goes; results/ in it has the records."""


class Job(NamedTuple):
    """A run of train.py, by its folder and the place of its record."""

    folder: Path
    record: Path
    arguments: list[str]


def job(comparison: Comparison, name: str, arguments: list[str]) -> Job:
    record = comparison.folder / "results" / f"{name}.json"
    return Job(comparison.folder / name, record, arguments)


def search_jobs(comparison: Comparison, preset: str) -> list[Job]:
    """One run for every point of the preset's grid."""
    grid, jobs = METHODS[preset], []
    for point in itertools.product(*grid.values()):
        values = dict(zip(grid, point, strict=True))
        name = "-".join(f"{k}={v:g}" for k, v in values.items())
        values |= {"held_out": comparison.held_out, "seed": comparison.search_seed}
        jobs.append(job(comparison, f"search/{preset}/{name}", [preset, *options(values)]))
    return jobs


def seed_jobs(comparison: Comparison, preset: str, best: dict[str, float]) -> list[Job]:
    """One run for every seed, at the best point of the search."""
    return [
        job(comparison, f"{preset}/seed{seed}", [preset, *options(best | {"seed": seed})])
        for seed in comparison.seeds
    ]


def options(values: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value:g}" for name, value in values.items()]


def best_point(comparison: Comparison, preset: str) -> dict[str, float]:
    """The hyperparameters of the search's best run, by its accuracy on the images held out."""
    records = [read_result(job.record) for job in search_jobs(comparison, preset)]
    best, _ = max(records, key=lambda r: r[1]["result"]["validation_accuracy"])
    return {name: getattr(best, name) for name in METHODS[preset]}


def run_jobs(comparison: Comparison, jobs: Sequence[Job], common: list[str]) -> None:
    """Runs what has no record yet, several at a time; ends those under way when one fails.

    Raises:
        RuntimeError: for a run that fails, with what it said.
        ValueError: for a record that is damaged or of another version.
    """
    cores = itertools.cycle(sorted(os.sched_getaffinity(0)) if PINNED else [0])
    under_way: set[subprocess.Popen[str]] = set()

    def pin() -> None:
        if PINNED:
            os.sched_setaffinity(0, {next(cores)})  # of this thread, and of what it starts

    for done in [j for j in jobs if j.record.exists()]:
        read_result(done.record)
    todo = [j for j in jobs if not j.record.exists()]
    with ThreadPoolExecutor(comparison.jobs, initializer=pin) as pool:
        try:
            for done in as_completed([pool.submit(run_job, j, common, under_way) for j in todo]):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(under_way):
                process.terminate()  # train.py saves a checkpoint
            raise


def run_job(job: Job, common: list[str], under_way: set[subprocess.Popen[str]]) -> None:
    if not (job.folder / "result.json").exists():
        script = str(Path(__file__).with_name("train.py"))
        command = [sys.executable, script, *job.arguments, *common, f"--run-dir={job.folder}"]
        if (job.folder / "config.json").exists():
            command.append("--resume")
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
            under_way.add(process)
            try:
                _, errors = process.communicate()
            finally:
                under_way.discard(process)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{errors}")
    _, record = read_result(job.folder / "result.json")
    job.record.parent.mkdir(parents=True, exist_ok=True)
    write_json(job.record, record)
    result = record["result"]
    accuracies = ", ".join(f"{k} {v:.2%}" for k, v in result.items() if k.endswith("accuracy"))
    print(f"{job.record}: {accuracies} in {result['seconds']:,.0f} s", flush=True)


def check(comparison: Comparison, common: list[str]) -> None:
    """Notes in the folder what is compared.

    Raises:
        ValueError: for numbers out of range, for options that the comparison itself sets, and for a
            folder that holds another comparison. Seeds may be added to one.
    """
    if comparison.held_out < 1 or comparison.jobs < 1:
        raise ValueError("--held-out and --jobs must be at least 1")
    if not comparison.seeds or len(set(comparison.seeds)) < len(comparison.seeds):
        raise ValueError(f"--seeds must be different, at least one: {comparison.seeds}")
    names = {name for grid in METHODS.values() for name in grid}
    names |= {"seed", "held_out", "run_dir", "resume"}
    configs = [PRESETS[preset][1] for preset in METHODS]
    names |= {f.name for f in fields(Experiment) if len({getattr(c, f.name) for c in configs}) > 1}
    given = {argument.split("=")[0].strip("-").replace("-", "_") for argument in common}
    if names & given:
        taken = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names & given))
        raise ValueError(f"the comparison itself sets {taken}")
    ours = {"methods": METHODS, "held_out": comparison.held_out, "train.py": common}
    ours = json.loads(json.dumps(ours | {"search_seed": comparison.search_seed}))
    path = comparison.folder / "comparison.json"
    if path.exists() and json.loads(path.read_text()) != ours:
        raise ValueError(f"{path} is of another comparison: choose another --folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, ours)


def on_edge(preset: str, best: dict[str, float]) -> list[str]:
    """The hyperparameters whose best value is the first or the last of three or more."""
    grid = METHODS[preset]
    return [k for k, v in best.items() if len(grid[k]) > 2 and v in (grid[k][0], grid[k][-1])]


def main() -> None:
    comparison, common = tyro.cli(Comparison, description=__doc__, return_unknown_args=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        check(comparison, common)
        searches = [j for preset in METHODS for j in search_jobs(comparison, preset)]
        print(f"{len(searches)} runs to search, then {len(METHODS) * len(comparison.seeds)} more.")
        run_jobs(comparison, searches, common)
        best = {preset: best_point(comparison, preset) for preset in METHODS}
        for preset, point in best.items():
            if edges := on_edge(preset, point):
                print(f"{preset}: best at the edge of its grid in {', '.join(edges)}", flush=True)
        jobs = [seed_jobs(comparison, preset, point) for preset, point in best.items()]
        # By seed, so that a comparison that is stopped has all methods.
        run_jobs(comparison, [j for seed in zip(*jobs, strict=True) for j in seed], common)
        records = [[read_result(j.record)[1]["result"] for j in method] for method in jobs]
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f"compare.py: {error}")
    except KeyboardInterrupt:
        print("Stopped: the same command goes on.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    accuracies = [statistics.mean(r["test_accuracy"] for r in method) for method in records]
    means = dict(zip(METHODS, accuracies, strict=True))
    print(json.dumps({"best": best, "mean_test_accuracy": means}))


if __name__ == "__main__":
    main()
