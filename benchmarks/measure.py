"""Measures the contestants of a case, each by its worker."""

import sys
from pathlib import Path
from typing import Any

from benchmarks.contest import Measured, Task, interleave, whole_processes
from benchmarks.peers import PEERS, Missing, prepare
from benchmarks.rows import Case, Contestant

PATHS = ("data", "data_dir", "folder")  # options that name a folder of this machine
Workers = dict[str, list[str] | Missing]


def find_workers(names: set[str], folder: Path) -> Workers:
    """The command of each worker, or why there is none; installs the peers."""
    workers: Workers = {}
    for name in sorted(names):
        try:
            python = sys.executable if name == "ours" else prepare(name, folder.expanduser())
        except Missing as missing:
            workers[name] = missing
        else:
            module = "worker" if name == "ours" else PEERS[name].worker
            workers[name] = [python, "-m", f"benchmarks.{module}"]
    return workers


def make_task(contestant: Contestant, workers: Workers, seed: int = 0) -> Task:
    """What a contestant does.

    Raises:
        Missing: if its worker cannot be installed.
    """
    command, options = workers[contestant.worker], contestant.options
    if isinstance(command, Missing):
        raise command
    if contestant.job is None:
        folder = Path(options["folder"], f"seed{seed}")
        flags = ["--seed", str(seed), "--run-dir", str(folder)]
        return Task([sys.executable, *options["arguments"], *flags], None)
    if "experiment" in options:
        options = options | {"experiment": options["experiment"] | {"seed": seed}}
    peer = PEERS.get(contestant.worker)
    return Task(command, contestant.job, options, peer.environment if peer else {})


def measure(case: Case, workers: Workers, repeats: int, seconds: float) -> dict[str, Any]:
    """Measures the contestants in turn; returns the case's part of the record."""
    rounds, tasks, measured = min(repeats, case.rounds), {}, {}
    for contestant in case.contestants:
        try:
            seeds = range(rounds if case.runs else 1)
            tasks[contestant.name] = [make_task(contestant, workers, seed) for seed in seeds]
        except Missing as missing:
            measured[contestant.name] = Measured([], {}, [], str(missing))
    if case.runs:
        measured |= whole_processes(tasks, case.runs)
    else:
        rounds = 0 if case.unit == "MiB" else rounds
        measured |= interleave({name: own[0] for name, own in tasks.items()}, rounds, seconds)
    contestants = [
        without_paths(c._asdict() | measured[c.name]._asdict()) for c in case.contestants
    ]
    return case._asdict() | {"contestants": contestants}


def without_paths(tree: Any) -> Any:
    """A record that names no folder of this machine."""
    if isinstance(tree, dict):
        return {k: without_paths(v) for k, v in tree.items() if not (k in PATHS and _is_path(v))}
    return tree


def _is_path(value: Any) -> bool:
    return value is None or isinstance(value, str)
