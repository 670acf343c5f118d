"""Writes the README's tables and the figures from what runs measured: `python report.py`.

results/NAME/*.json                  result.json of train.py, one file a seed
results/search/PRESET/*.json         the same, of compare.py's search
results/latent_weights/PRESET/*.json latent_weights.json of latent_weights.py
results/sweep/*.json                 the networks of sweep.py
results/sample/PRESET/*.json         runs on a sample of a data set: that they run, not how well
results/benchmarks/memory/*.json     what benchmarks/memory.py wrote, one file a kind of device
results/benchmarks/pipeline/*.json   the same of benchmarks/imagenet_pipeline.py
"""

import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from compare import METHODS
from experiments import PRESETS, Experiment
from figures import plot_comparison, plot_flips, plot_sweep
from runs import read_result

ROOT = Path(__file__).parent
MEMORY = ("network", "batch", "weights and optimizer", "one training step", "compiled for")
PIPELINE = ("what", "images/s", "")


class Result(NamedTuple):
    """One JSON file of results/."""

    path: Path
    config: Experiment
    record: dict[str, Any]

    def options(self, leave_out: Sequence[str] = ("seed",)) -> str:
        """What follows "python train.py" to get this run, without its seed."""
        preset = self.record["preset"]
        options = [preset]
        for field in fields(Experiment):
            value, name = getattr(self.config, field.name), field.name.replace("_", "-")
            if field.name in leave_out or value == getattr(PRESETS[preset][1], field.name):
                continue
            flag = f"--{name}" if value else f"--no-{name}"
            options.append(flag if isinstance(value, bool) else f"--{name} {value}")
        return " ".join(options)

    @property
    def accuracy(self) -> float:
        """The last accuracy, in percent."""
        return 100 * self.record["result"][self.config.accuracy]


def load_results(folder: Path) -> dict[str, list[Result]]:
    """The results of each experiment, by its folder's name.

    Raises:
        ValueError: for a file that is not such a record or of another version.
    """
    results: dict[str, list[Result]] = {}
    for path in sorted(folder.glob("*/*.json")):
        result = Result(path, *read_result(path))
        results.setdefault(path.parent.name, []).append(result)
    return results


# ---- Tables -----------------------------------------------------------------------------------


def tables(folder: Path) -> dict[str, str]:
    """The README's tables by name, as Markdown."""
    runs = load_results(folder)
    runs.pop("sweep", None)
    if not runs:
        raise ValueError(f"{folder} holds no results")
    return {
        "runs": runs_table(runs),
        "search": search_table(load_results(folder / "search")),
        "comparison": comparison_table([runs[name] for name in METHODS if name in runs]),
        "latent weights": latent_table(load_results(folder / "latent_weights")),
        "memory": benchmark_table(folder / "benchmarks/memory", MEMORY, memory_rows),
        "pipeline": benchmark_table(folder / "benchmarks/pipeline", PIPELINE, pipeline_rows),
    }


def runs_table(results: dict[str, list[Result]]) -> str:
    """A row an experiment."""
    rows = []
    for runs in results.values():
        first = runs[0]
        check_alike(runs)
        if first.config.held_out:
            raise ValueError(f"{first.path} was evaluated on images held out, not on the test's")
        rows.append(
            (
                f"`train.py {first.options()}`",
                PRESETS[first.record["preset"]][0],
                mean([run.accuracy for run in runs]),
                len(runs),
                first.config.epochs,
                f"{statistics.median(r.record['result']['seconds'] for r in runs):,.0f}",
                f"{first.record['device']['count']} × {first.record['device']['kind']}",
            )
        )
    columns = (
        "command",
        "what it is",
        "test accuracy here",
        "seeds",
        "epochs",
        "seconds",
        "device",
    )
    return markdown(columns, rows)


def search_table(results: dict[str, list[Result]]) -> str:
    """A row a method: its best point, and how the others did."""
    rows = []
    for preset, points in results.items():
        searched = METHODS.get(preset, {})
        for point in points:
            if not searched or any(getattr(point.config, k) not in v for k, v in searched.items()):
                raise ValueError(f"{point.path} is of no point that compare.py searches")
        check_alike(points, ("seed", *searched))
        best, *others = sorted(points, key=lambda point: -point.accuracy)
        rows.append(
            (
                f"`{preset}`",
                ", ".join(searched),
                values(best.config, searched),
                f"{best.accuracy:.2f} %",
                f"{len(points)} of {math.prod(map(len, searched.values()))}",
                ", ".join(f"{p.accuracy:.1f} ({values(p.config, searched)})" for p in others),
            )
        )
    columns = (
        "preset",
        "searched",
        "best point",
        "validation accuracy, one seed",
        "points tried",
        "other points",
    )
    return markdown(columns, rows)


def comparison_table(methods: Iterable[Sequence[Result]]) -> str:
    """A row a method: test accuracy by how its γ, α or learning rate falls."""
    rows: dict[str, dict[bool, str]] = {}
    for runs in methods:
        config = runs[0].config
        end = config.threshold_end
        name = f"`{config.optimizer}`" + ("" if end is None else f", τ falling to {end:g}")
        row = rows.setdefault(name, {})
        if config.linear in row:
            raise ValueError(f"{runs[0].path} has the place of another method: {name}")
        row[config.linear] = mean([run.accuracy for run in runs])
    cells = [
        (name, *(row.get(linear, "") for linear in (False, True))) for name, row in rows.items()
    ]
    return markdown(("method", "rate × 0.1 in steps", "rate falling linearly to 0"), cells)


def values(config: Experiment, names: Iterable[str]) -> str:
    return ", ".join(f"{getattr(config, name):g}" for name in names)


def latent_table(results: dict[str, list[Result]]) -> str:
    """A row a preset: test accuracy with binary and with latent weights, by which statistics."""
    rows, names = [], []
    for runs in results.values():
        check_alike(runs)
        accuracies = [run.record["latent_weights"] for run in runs]
        names = list(accuracies[0])
        cells = [mean([100 * a[name]["test"] for a in accuracies]) for name in names]
        rows.append((f"`{runs[0].options()}`", *cells, len(runs)))
    return markdown(("trained by", *names, "seeds"), rows)


def benchmark_table(
    folder: Path, columns: Sequence[str], rows: Callable[[dict[str, Any]], list[Sequence[Any]]]
) -> str:
    """The rows of each of a benchmark's records.

    Raises:
        ValueError: for a file that is not such a record.
    """
    of_all = []
    for path in sorted(folder.glob("*.json")):
        try:
            of_all += rows(json.loads(path.read_text()))
        except Exception as error:  # whatever is wrong with it, say with which
            raise ValueError(f"{path} is not what its benchmark writes ({error!r})") from error
    return markdown(columns, of_all)


def memory_rows(record: dict[str, Any]) -> list[Sequence[Any]]:
    """A row a network."""
    rows = []
    for network, memory in record["bytes"].items():
        sizes = [f"{memory[key] / 2**30:.2f} GiB" for key in ("state", "total")]
        rows.append((network, record["batch_size"], *sizes, record["device"]["kind"]))
    return rows


def pipeline_rows(record: dict[str, Any]) -> list[Sequence[Any]]:
    """Rows of one core's work on an image, of the whole pipeline, and of waiting for it."""
    rows = []
    seconds = {name: statistics.median(s) for name, s in record["one_core"].items()}
    read, decode, both = (seconds[name] for name in ("read", "decode", "decode_crop"))
    parts = {"read": read, "decode": decode, "crop, resize": both - decode, "all": read + both}
    for name, part in parts.items():
        rate = f"{1 / part:,.0f}"
        rows.append((f"one core: {name}", rate, f"{part / (read + both):.0%} of its time"))
    for workers, rates in record["pipeline"].items():
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        name = f"batches, {workers} worker processes, {record['cpus']} cores"
        rows.append((name, f"{statistics.median(rates):,.0f}", spread))
    for name, waiting in record["waiting"].items():
        step, shares = waiting["step_seconds"], waiting["shares"]
        took = f"waits {statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
        rate = f"{record['batch_size'] / step:,.0f} asked for"
        rows.append((f"a stand-in device, {step:.2f} s a batch: {name}", rate, took))
    return rows


def check_alike(runs: Sequence[Result], differing: Sequence[str] = ("seed",)) -> None:
    """Raises ValueError for runs that differ in more than they may, and for one that is there
    twice."""
    first, seen = runs[0], set()
    for run in runs:
        if run.options(differing) != first.options(differing):
            raise ValueError(f"{run.path} is of another experiment than {first.path.name}")
        point = run.options(())
        if point in seen:
            raise ValueError(f"{run.path} is of the same run as one beside it: {point}")
        seen.add(point)


def mean(percentages: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(percentages):.2f}" if len(percentages) > 1 else ""
    return f"{statistics.mean(percentages):.2f}{spread} %"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def with_tables(readme: str, named: dict[str, str]) -> str:
    """The README with each table between its marks, `<!-- NAME: python report.py -->`."""
    for name, table in named.items():
        pattern = rf"(<!-- {name}: python report.py -->\n).*?(<!-- end of {name} -->)"
        readme, found = re.subn(pattern, rf"\g<1>{table}\g<2>", readme, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"the README has {found} places for the table {name!r}")
    return readme


# ---- Figures ----------------------------------------------------------------------------------


def draw(folder: Path, into: Path) -> None:
    """Figures 1 and 2, and the flips of all methods, as far as there are results."""
    results = load_results(folder)
    if "sweep" in results:
        plot_sweep([result.record for result in results["sweep"]], into / "figure1.png")
    for suffix in ("", "-small"):
        names = [f"cifar10-{method}{suffix}" for method in ("bop", "adam", "sgd")]
        curves = {n: [r.record["metrics"] for r in results[n]] for n in names if n in results}
        if curves:
            plot_comparison(curves, into / f"figure2{suffix}.png")
    curves = {n: [r.record["metrics"] for r in results[n]] for n in METHODS if n in results}
    if curves:
        linear = [n for n in curves if results[n][0].config.linear]
        plot_flips(curves, into / "flips-small.png", dashed=linear)


def main(results: Path = ROOT / "results", readme: Path = ROOT / "README.md") -> None:
    """Writes the README's tables, and the figures, from the results of runs.

    Args:
        results: The folder of results; figures go there too.
        readme: The README.
    """
    try:
        readme.write_text(with_tables(readme.read_text(), tables(results)))
        draw(results, results)
    except (ValueError, LookupError, OSError) as error:
        sys.exit(f"report.py: {error!r}")
    print(f"{readme} and the figures in {results} are up to date.")


if __name__ == "__main__":
    tyro.cli(main)
