"""Compares us with Larq, PyTorch and the machine's limits, side by side.

    python -m benchmarks                               # the rows that take no data
    python -m benchmarks step evaluate --repeats 9     # some rows

The contestants of a row take turns, round after round. Run it on a machine that does nothing else.
The peers' environments are made by the first run, in --peers. A peer that cannot be installed is
missing in the table. Each run writes a record to experiments/results/benchmarks/runs.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks import table
from benchmarks.contest import ROOT, Measured, Task, interleave
from benchmarks.machine import machine
from benchmarks.peers import DEFAULT_FOLDER, PEERS, Missing, prepare
from benchmarks.rows import ROWS, Case
from training.config import Experiment
from training.records import describe, write_json

RUNS = ROOT / "experiments" / "results" / "benchmarks" / "runs"
Row = Literal["step", "evaluate", "birealnet", "memory", "optimizer", "sweep"]


def main(
    rows: tyro.conf.Positional[tuple[Row, ...]] = (),
    peers: Path = DEFAULT_FOLDER,
    repeats: int = 7,
    seconds: float = 0.5,
    out: Path = RUNS,
) -> None:
    """Measures rows and prints the table.

    Args:
        rows: Rows to measure. Default: all.
        peers: Folder of the peers' environments.
        repeats: Rounds; the table has the medians.
        seconds: Least time of one measurement.
        out: Folder for the record.
    """
    record = start_record()
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{record['date'].replace(':', '-')}.json"
    cases = [case for row in rows or ROWS for case in ROWS[row]()]
    workers = find_workers({c.worker for case in cases for c in case.contestants}, peers)
    print(table.markdown([]), end="", flush=True)
    for case in cases:
        measured = measure(case, workers, repeats, seconds)
        record["cases"].append(measured)
        print(table.line(table.cells(measured)), end="", flush=True)
        write_json(path, record)
    print(f"Record: {path}", file=sys.stderr)
    for case, name, error in failures(record["cases"]):
        print(f"{case}: {name} is missing: {error}", file=sys.stderr)


def start_record() -> dict[str, Any]:
    """What a record holds before the first case."""
    known = describe(Experiment(), "")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "command": "python -m benchmarks",
        "machine": machine(),
        **{key: known[key] for key in ("versions", "device", "git_commit", "git_dirty")},
        "peers": {name: peer.packages for name, peer in PEERS.items()},
        "cases": [],
    }


def find_workers(names: set[str], folder: Path) -> dict[str, list[str] | Missing]:
    """The command of each worker, or why there is none."""
    workers: dict[str, list[str] | Missing] = {}
    for name in names:
        try:
            python = sys.executable if name == "ours" else prepare(name, folder.expanduser())
            module = "benchmarks.worker" if name == "ours" else f"benchmarks.{name}_worker"
            workers[name] = [python, "-m", module]
        except Missing as missing:
            workers[name] = missing
    return workers


def measure(
    case: Case, workers: dict[str, list[str] | Missing], repeats: int, seconds: float
) -> dict[str, Any]:
    """Measures the contestants of a case, in turn; returns its part of the record."""
    tasks, missing = {}, {}
    for contestant in case.contestants:
        command = workers[contestant.worker]
        if isinstance(command, Missing):
            missing[contestant.name] = Measured([], {}, [], str(command))
        else:
            environment = (
                {} if contestant.worker == "ours" else PEERS[contestant.worker].environment
            )
            tasks[contestant.name] = Task(command, contestant.job, contestant.options, environment)
    measured = interleave(tasks, repeats if case.unit != "MiB" else 0, seconds) | missing
    contestants = [c._asdict() | measured[c.name]._asdict() for c in case.contestants]
    return case._asdict() | {"contestants": contestants}


def failures(cases: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Case, contestant and error of all that failed."""
    return [
        (case["title"], contestant["name"], contestant["error"])
        for case in cases
        for contestant in case["contestants"]
        if contestant["error"]
    ]


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks")
