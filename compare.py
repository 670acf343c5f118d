"""Bop against latent weights on CIFAR-10, each at the best of its own two hyperparameters.

    python compare.py --data-dir DIR    # about two hours on two cores; once stopped, it goes on

All methods train the same network on the same images for the same epochs. First a grid over each
method's two hyperparameters is judged on training images that are held out. Then the best point
trains on all training images with other seeds, and these runs alone see the test images. Every run
is a process of train.py with a core to itself; its record goes to FOLDER/results/.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from runs import read_result

METHODS: dict[str, dict[str, tuple[float, ...]]] = {
    "cifar10-bop-small": {"gamma": (1e-2, 1e-3, 1e-4), "threshold": (1e-6, 1e-7)},
    "cifar10-adam-small": {"latent_learning_rate": (1e-2, 1e-3, 1e-4), "b1": (0.9, 0.99)},
    "cifar10-sgd-small": {"latent_learning_rate": (1.0, 0.1, 0.01), "momentum": (0.9, 0.99)},
}
"""For each preset, the values of its two hyperparameters."""
PINNED = hasattr(os, "sched_setaffinity")  # XLA on one core each is faster than two on two


@dataclass(frozen=True)
class Comparison:
    """What is compared. Options that are not listed here go to train.py, for every run."""

    held_out: int = 5000
    """Training images held out to judge the hyperparameters by."""
    search_seed: int = 0
    """Seed of the search."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of the runs that are reported."""
    jobs: int = os.cpu_count() or 1
    """Runs at a time, each on a CPU core of its own."""
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
    """Runs what has no record yet, several at a time.

    Raises:
        RuntimeError: for a run that fails, with what it said.
    """
    cores = itertools.cycle(sorted(os.sched_getaffinity(0)) if PINNED else [0])

    def pin() -> None:
        if PINNED:
            os.sched_setaffinity(0, {next(cores)})  # of this thread, and of what it starts

    todo = [j for j in jobs if not j.record.exists()]
    with ThreadPoolExecutor(comparison.jobs, initializer=pin) as pool:
        try:
            for done in as_completed([pool.submit(run_job, j, common) for j in todo]):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_job(job: Job, common: list[str]) -> None:
    if not (job.folder / "result.json").exists():
        script = str(Path(__file__).with_name("train.py"))
        command = [sys.executable, script, *job.arguments, *common, f"--run-dir={job.folder}"]
        if (job.folder / "config.json").exists():
            command.append("--resume")
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{process.stderr}")
    job.record.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(job.folder / "result.json", job.record)
    result = json.loads(job.record.read_text())["result"]
    accuracies = ", ".join(f"{k} {v:.2%}" for k, v in result.items() if k.endswith("accuracy"))
    print(f"{job.record}: {accuracies} in {result['seconds']:,.0f} s", flush=True)


def check_same(comparison: Comparison, common: list[str]) -> None:
    """Notes in the folder what is compared.

    Raises:
        ValueError: for a folder that holds another comparison; seeds may be added to one.
    """
    ours = {"methods": METHODS, "held_out": comparison.held_out, "train.py": common}
    ours = json.loads(json.dumps(ours | {"search_seed": comparison.search_seed}))
    path = comparison.folder / "comparison.json"
    if path.exists() and json.loads(path.read_text()) != ours:
        raise ValueError(f"{path} is of another comparison: choose another --folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ours, indent=1) + "\n")


def main() -> None:
    comparison, common = tyro.cli(Comparison, return_unknown_args=True)
    try:
        check_same(comparison, common)
        run_jobs(comparison, [j for p in METHODS for j in search_jobs(comparison, p)], common)
        best = {preset: best_point(comparison, preset) for preset in METHODS}
        jobs = [seed_jobs(comparison, preset, point) for preset, point in best.items()]
        # By seed, so that a comparison that is stopped has all methods.
        run_jobs(comparison, [j for seed in zip(*jobs, strict=True) for j in seed], common)
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f"compare.py: {error}")
    except KeyboardInterrupt:
        print("Stopped: the same command goes on.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    print(json.dumps({"best": best}))


if __name__ == "__main__":
    main()
