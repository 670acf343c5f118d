"""Writes the README's results table from results/: `python report.py`.

results/NAME/*.json are the result.json of finished runs, one file a seed.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from experiments import PRESETS

ROOT = Path(__file__).parent
START, END = "<!-- results: python report.py -->\n", "<!-- end of results -->"


def load_results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of each experiment by its folder's name.

    Raises:
        ValueError: for a file that is not such a record, or seeds of different experiments in one
            folder.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/*.json")):
        try:
            record = json.loads(path.read_text())
            for name in ("test_accuracy", "seconds"):
                record["result"][name] = float(record["result"][name])
            record["command"] = command(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the result.json of a run ({error!r})") from error
        records = results.setdefault(path.parent.name, [])
        if records and records[0]["command"] != record["command"]:
            raise ValueError(f"{path} is of another experiment than its neighbours")
        records.append(record)
    return results


def command(record: dict[str, Any]) -> str:
    """The command line that a record came from, without its seed."""
    default = PRESETS[record["preset"]][1]
    options = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in record["config"].items()
        if name != "seed" and value != getattr(default, name)
    ]
    return " ".join(["train.py", record["preset"], *options])


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table, a row an experiment."""
    rows = [
        "| command | what it is | test accuracy here | seeds | epochs | seconds | device |",
        "|---|---|---|---|---|---|---|",
    ]
    for records in results.values():
        accuracies = [100 * r["result"]["test_accuracy"] for r in records]
        accuracy = f"{statistics.mean(accuracies):.2f}"
        if len(records) > 1:
            accuracy += f" ± {statistics.stdev(accuracies):.2f}"
        first, device = records[0], records[0]["device"]
        cells = (
            f"`{first['command']}`",
            PRESETS[first["preset"]][0],
            f"{accuracy} %",
            len(records),
            first["config"]["epochs"],
            f"{statistics.median(r['result']['seconds'] for r in records):,.0f}",
            f"{device['count']} × {device['kind']}",
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows) + "\n"


def with_table(readme: str, results: dict[str, list[dict[str, Any]]]) -> str:
    before, rest = readme.split(START)
    return before + START + table(results) + END + rest.split(END)[1]


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_table(path.read_text(), load_results(ROOT / "results")))
