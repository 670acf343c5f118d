"""The tables of the records of benchmarks/.

memory/*.json       the records of python -m benchmarks.memory
pipeline/*.json     of python -m benchmarks.imagenet_pipeline
engines/*.json      of python -m benchmarks.engines
collectives/*.json  of python -m benchmarks.collectives
devices/*.json      of python -m experiments.devices
runs/*.json         of python -m benchmarks
"""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks import table as side_by_side

RACE = "\n![Test accuracy by minutes of each contestant](../experiments/results/race.png)\n"
MEMORY = ("network", "batch", "weights and optimizer", "one training step", "compiled for")
PIPELINE = ("part", "images/s", "")
COLLECTIVES = ("network", "options", "gradients", "operation", "number", "bytes")
LINKS = {"10 Gb/s": 1.25e9, "100 Gb/s": 12.5e9, "400 Gb/s": 50e9}  # bytes/s of a host's network
BITS = {"float32": 1, "8 bits": 4, "1 bit": 32}  # what gradients would be divided by
EXCHANGE = ("network", "gradients", *LINKS)
DEVICES = ("devices", "weights that differ", "first loss", "last loss", "test accuracy", "runs")
ENGINES = ("network", "engine", "file", "batch", "ms an image", "same classes", "difference")


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def tables(folder: Path) -> dict[str, str]:
    """The tables by name, as Markdown.

    Raises:
        ValueError: for a file that is no record of a benchmark; it names the file.
    """

    def table(name: str, columns: Sequence[str], rows: Callable[..., list[Sequence[Any]]]) -> str:
        return markdown(columns, chain.from_iterable(read(folder / name, rows)))

    records = read(folder / "runs", _checked)
    return {
        "memory": table("memory", MEMORY, memory_rows),
        "pipeline": table("pipeline", PIPELINE, pipeline_rows),
        "engines": table("engines", ENGINES, engine_rows),
        "collectives": table("collectives", COLLECTIVES, collective_rows),
        "exchange": table("collectives", EXCHANGE, exchange_rows),
        "devices": table("devices", DEVICES, device_rows),
        "benchmarks": side_by_side.page_block(records) + (RACE if _newest_race(records) else ""),
    }


def find_race(folder: Path) -> dict[str, Any] | None:
    """The newest race among the records."""
    return _newest_race(read(folder / "runs", _checked))


def read(folder: Path, read: Callable[[dict[str, Any]], Any]) -> list[Any]:
    """What `read` takes from each record of a benchmark.

    Raises:
        ValueError: for a file that is no such record; it names the file.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            results.append(read(json.loads(path.read_text())))
        except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"{path} is no record of a benchmark ({error!r})") from error
    return results


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    """A record of `python -m benchmarks` that the page can show."""
    side_by_side.page_block([record])
    return record


def _newest_race(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    newest = chain.from_iterable(side_by_side.by_machine(records))
    races = (case for record in newest for case in record["cases"] if case["unit"] == "%")
    return next(races, None)


def memory_rows(record: dict[str, Any]) -> list[Sequence[Any]]:
    """A row for each network."""
    rows = []
    for network, memory in record["bytes"].items():
        sizes = [f"{memory[key] / 2**30:.2f} GiB" for key in ("state", "total")]
        rows.append((network, record["batch_size"], *sizes, record["device"]["kind"]))
    return rows


def pipeline_rows(record: dict[str, Any]) -> list[Sequence[Any]]:
    """Rows of the work on one image, of the whole pipeline, and of the waiting for it."""
    rows = []
    times = {name: statistics.median(s) for name, s in record["one_core"].items()}
    read, decode, both = (times[name] for name in ("read", "decode", "decode_crop"))
    parts = {"read": read, "decode": decode, "crop, resize": both - decode, "all": read + both}
    for name, part in parts.items():
        rows.append(
            (f"one core: {name}", f"{1 / part:,.0f}", f"{part / (read + both):.0%} of its time")
        )
    for workers, rates in record["pipeline"].items():
        name = f"batches, {workers} worker processes, {record['cpus']} cores"
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        rows.append((name, f"{statistics.median(rates):,.0f}", spread))
    for name, waiting in record["waiting"].items():
        step, shares = waiting["step_seconds"], waiting["shares"]
        waits = f"waits {statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
        rate = f"{record['batch_size'] / step:,.0f} requested"
        rows.append((f"a stand-in device, {step:.2f} s a batch: {name}", rate, waits))
    return rows


def collective_rows(record: dict[str, Any]) -> list[Sequence[Any]]:
    """A row for each network and kind of operation."""
    return [
        (
            network,
            "`--shard-averages`" if "--shard-averages" in record["command"] else "",
            f"{step['gradients'] / 1e6:.2f} MB",
            kind,
            found["operations"],
            f"{found['bytes'] / 1e6:.2f} MB",
        )
        for network, step in record["networks"].items()
        for kind, found in step["collectives"].items()
    ]


def exchange_rows(record: dict[str, Any]) -> list[Sequence[Any]]:
    """Calculated times of a ring's all-reduce between many hosts, by the bits of a gradient."""
    if "--shard-averages" in record["command"]:
        return []
    rows = []
    for network, step in record["networks"].items():
        for name, divisor in BITS.items():
            crossing = 2 * step["gradients"] / divisor
            times = (f"{1e3 * crossing / rate:.2g} ms" for rate in LINKS.values())
            rows.append((network, name, *times))
    return rows


def device_rows(record: dict[str, Any]) -> list[Sequence[Any]]:
    """A row for each number of devices: means over seeds; the range of the weights that differ."""
    rows = []
    runs = record["runs"]
    for devices in sorted({run["devices"] for run in runs}):
        own = [run for run in runs if run["devices"] == devices]
        differ = [run["differing"] for run in own]
        first, last = (statistics.fmean(run["loss"][i] for run in own) for i in (0, -1))
        accuracies = [run["test_accuracy"][-1] for run in own]
        spread = f" ± {statistics.stdev(accuracies):.2%}" if len(own) > 1 else ""
        rows.append(
            (
                devices,
                f"{min(differ):.1%} to {max(differ):.1%}" if max(differ) else "–",
                f"{first:.6f}",
                f"{last:.4f}",
                f"{statistics.fmean(accuracies):.2%}{spread}",
                len(own),
            )
        )
    return rows


def engine_rows(record: dict[str, Any]) -> list[Sequence[Any]]:
    """A row for each engine and batch size."""
    rows = []
    for case in record["cases"]:
        for line in case["engines"]:
            ms = 1e3 * statistics.median(line["seconds"]) / case["batch"]
            size = f"{(line['bytes'] or record['floats']) / 1000:,.0f} kB"
            same = f"{line['same_classes']} of {case['images']}"
            cells = (line["engine"], size, case["batch"], f"{ms:.3g}", same)
            rows.append((record["network"], *cells, f"{line['largest_difference']:.1g}"))
    return rows
