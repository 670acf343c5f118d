"""Compares us with Larq, PyTorch and the machine's limits, side by side.

    python -m benchmarks                                   # the rows that take no data set
    python -m benchmarks step evaluate --repeats 9
    python -m benchmarks start cifar10 race --data-dir DIR

The contestants of a row take turns, round after round. Run it on a machine that does nothing else.
The first run makes the peers' environments, in --peers. A peer that cannot be installed is missing
in the table. Each run writes a record to experiments/results/benchmarks/runs, from which
`python -m experiments.report` writes docs/benchmarks.md.
"""

import shlex
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks import table
from benchmarks.contest import ROOT
from benchmarks.machine import machine
from benchmarks.measure import find_workers, measure
from benchmarks.peers import DEFAULT_FOLDER, PEERS
from benchmarks.race import entrants, race
from benchmarks.rows import ROWS, Case
from benchmarks.runs import DATA_ROWS, Place
from benchmarks.worker import VARIANTS
from training.config.ranges import require
from training.machine import expanded
from training.records import describe_origin, write_json

RUNS = ROOT / "experiments" / "results" / "benchmarks" / "runs"
Short = Literal["step", "evaluate", "birealnet", "memory", "optimizer", "sweep", "digits"]
Row = Short | Literal["start", "cifar10", "race"]


def main(
    rows: tyro.conf.Positional[tuple[Row, ...]] = (*ROWS, "digits"),  # pyright: ignore
    variants: tuple[str, ...] = tuple(VARIANTS),
    data_dir: Path | None = None,
    peers: Path = DEFAULT_FOLDER,
    repeats: int = 7,
    seconds: float = 0.5,
    minutes: float = 30,
    out: Path = RUNS,
) -> None:
    """Measures rows and prints the table.

    Args:
        rows: Rows to measure.
        variants: Our variants to measure.
        data_dir: TFDS directory of CIFAR-10. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        peers: Folder of the peers' environments.
        repeats: Rounds; the table has the medians.
        seconds: Least time of one measurement.
        minutes: Time of each contestant of the race. Its trials take half as long again.
        out: Folder for the record.
    """
    left_out = set(VARIANTS) - set(variants)
    if unknown := set(variants) - set(VARIANTS):
        known = ", ".join(VARIANTS)
        sys.exit(f"benchmarks: --variants must be among {known}, got {', '.join(unknown)}")
    try:
        require(len(variants) > 0, "variants", "at least one", variants)
        require(repeats >= 1, "repeats", "at least 1", repeats)
        require(0 <= seconds < float("inf"), "seconds", "at least 0 and finite", seconds)
        require(0 < minutes < float("inf"), "minutes", "above 0 and finite", minutes)
        out, peers = expanded(out), expanded(peers)
        for name, path in (("out", out), ("peers", peers)):
            require(path.is_dir() or not path.exists(), name, "a folder", path)
    except ValueError as error:
        sys.exit(f"benchmarks: {error}")
    with tempfile.TemporaryDirectory() as folder:
        place = Place(data_dir, Path(folder))
        try:
            cases = [case for row in rows if row != "race" for case in make_cases(row, place)]
        except (ValueError, OSError) as error:
            sys.exit(f"benchmarks: {error}")
        racers = [c for c in entrants() if c.name not in left_out] if "race" in rows else []
        for case in cases:
            case.contestants[:] = [c for c in case.contestants if c.name not in left_out]
        everyone = [*racers, *(c for case in cases for c in case.contestants)]
        workers = find_workers({c.worker for c in everyone}, peers)

        def measured() -> Iterator[dict[str, Any]]:
            for case in cases:
                yield measure(case, workers, repeats, seconds)
            if racers:
                yield race(place, racers, workers, minutes)

        command = ["python", "-m", "benchmarks", *rows]
        command += ["--variants", *variants] if left_out else []
        command += ["--repeats", f"{repeats}", "--seconds", f"{seconds}", "--minutes", f"{minutes}"]
        write_record(measured(), shlex.join(command), out)


def make_cases(row: str, place: Place) -> list[Case]:
    """The cases of a row."""
    return ROWS[row]() if row in ROWS else DATA_ROWS[row](place)


def write_record(cases: Iterator[dict[str, Any]], command: str, out: Path) -> None:
    """Prints each case as it is measured; writes the record after each."""
    record = start_record(command)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{record['date'].replace(':', '-')}.json"
    print(table.markdown([]), end="", flush=True)
    for case in cases:
        record["cases"].append(case)
        print(*map(table.line, table.rows(case)), sep="", end="", flush=True)
        for name, error in failures(case):
            print(f"{name} is missing: {error}", file=sys.stderr)
        write_json(path, record)
    print(f"Record: {path}", file=sys.stderr)


def start_record(command: str) -> dict[str, Any]:
    """What a record holds before the first case."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "command": command,
        "machine": machine(),
        **describe_origin(),
        "peers": {name: peer.packages for name, peer in PEERS.items()},
        "cases": [],
    }


def failures(case: dict[str, Any]) -> list[tuple[str, str]]:
    """The contestants that failed, and why."""
    return [(c["name"], c["error"]) for c in case["contestants"] if c["error"]]


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks")
