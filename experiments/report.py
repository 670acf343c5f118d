"""Writes the tables of README.md and docs/, and draws the figures: python -m experiments.report.

A table stands between `<!-- NAME: python -m experiments.report -->` and `<!-- end of NAME -->`.
The records are in experiments/results:

runs/NAME/*.json                  result.json of train.py, one file for each seed
comparison/METHOD/*.json          the same, of experiments.compare
comparison/search.json            a list: the points of its search
sweep.json                        a list: records.json of experiments.sweep
precision/PRESET/SETTING/*.json   the same, of experiments.precision
latent_weights/NAME/*.json        latent_weights.json of experiments.latent_weights
benchmarks/                       see experiments.benchmark_tables
sample/                           runs on a sample of a data set, which no table shows
"""

import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

from experiments import benchmark_tables
from experiments.benchmark_tables import markdown
from experiments.figures import plot_comparison, plot_flips, plot_race, plot_sweep
from experiments.methods import METHODS, at_point, grid_size, point_of
from experiments.precision import SETTINGS
from experiments.presets import PRESETS
from experiments.records import Result, check_alike, describe, device, load, read, task

ROOT = Path(__file__).parents[1]
RUNS = ("command", "experiment", "test accuracy here", "seeds", "epochs", "seconds", "device")
SEARCH = ("method", "searched", "best point", "validation accuracy, one seed", "points tried")
COMPARISON = ("method", "rate × 0.1 every 2 epochs (n)", "rate linear to 0 (n)", "median seconds")
SUMMARY = ("task", "method", "paper", "here ± std (n)", "time", "hardware", "command")
SUMMARY_ROWS = (  # folder, method, the paper's accuracy, and the cores of a run on a CPU
    ("runs/digits-bop", "Bop", "", "2 CPU cores"),
    ("comparison/bop-linear", "Bop, γ linear to 0", "", "1 CPU core"),
    ("comparison/adam-linear", "Adam on latent weights, rate linear to 0", "", "1 CPU core"),
    ("comparison/sgd-linear", "SGD on latent weights, rate linear to 0", "", "1 CPU core"),
    ("comparison/cema-linear", "CEMA, α linear to 0", "", "1 CPU core"),
    ("runs/cifar10-birealnet-bop-width16", "Bop", "", "1 CPU core"),
    ("runs/cifar10-bop", "Bop", "91.3 %", "CPU"),
)


def format_mean(percentages: Sequence[float]) -> str:
    """Mean and, of several numbers, their standard deviation."""
    spread = f" ± {statistics.stdev(percentages):.2f}" if len(percentages) > 1 else ""
    return f"{statistics.mean(percentages):.2f}{spread} %"


def format_accuracy(runs: Sequence[Result]) -> str:
    """Mean accuracy of runs, standard deviation and number."""
    return f"{format_mean([run.accuracy for run in runs])} ({len(runs)})"


def format_seconds(runs: Sequence[Result]) -> str:
    """Median time of runs."""
    return f"{statistics.median(run.record['result']['seconds'] for run in runs):,.0f}"


# ---- Tables --------------------------------------------------------------------------------------


def tables(folder: Path) -> dict[str, str]:
    """All tables by name, as Markdown.

    Raises:
        ValueError: for a folder without results, and for a record that is malformed or misplaced.
    """
    runs, methods = load(folder / "runs"), load(folder / "comparison")
    latent, search = load(folder / "latent_weights"), folder / "comparison" / "search.json"
    if not runs and not methods:
        raise ValueError(f"{folder} holds no results")
    return {
        "summary": summary_table(runs, methods, latent),
        "runs": markdown(RUNS, map(run_row, runs.values())),
        "search": search_table(read(search) if search.exists() else []),
        "comparison": comparison_table(methods),
        "latent weights": latent_table(latent),
        "precision": precision_table({p: load(folder / "precision" / p) for p in PRESETS}),
        **benchmark_tables.tables(folder / "benchmarks"),
    }


def run_row(runs: Sequence[Result]) -> Sequence[Any]:
    """The row of one experiment."""
    first, epochs = runs[0], runs[0].experiment.epochs
    if getattr(first.experiment.data, "held_out", 0):
        raise ValueError(f"{first.place} was evaluated on held-out images, not on the test images")
    accuracies = format_mean([run.accuracy for run in runs])
    command = f"`{first.command}`"
    return (
        command,
        describe(first),
        accuracies,
        len(runs),
        epochs,
        format_seconds(runs),
        device(first),
    )


def search_table(points: Sequence[Result]) -> str:
    """A row for each method: its best point, and the accuracies of the others."""
    by_method: dict[str, list[Result]] = {}
    for point in points:
        by_method.setdefault(point.record["method"], []).append(point)
    rows = []
    for method, own in by_method.items():
        grid = METHODS[method][1]
        first = point_of(own[0].experiment, grid)
        for point in own:
            if any(v not in grid[k] for k, v in point_of(point.experiment, grid).items()):
                raise ValueError(f"{point.place} is no point of the grid of {method}")
        check_alike(own, lambda e, first=first: replace(at_point(e, first), seed=0))
        best, *others = sorted(own, key=lambda point: -point.accuracy)
        tried = [point_of(p.experiment, grid) for p in (best, *others)]
        texts = [", ".join(f"{v:g}" for v in values.values()) for values in tried]
        rest = [f"{p.accuracy:.1f} ({t})" for p, t in zip(others, texts[1:], strict=True)]
        number = f"{len(own)} of {grid_size(grid)}"
        cells = (f"`{method}`", ", ".join(grid), texts[0], f"{best.accuracy:.2f} %", number)
        rows.append((*cells, ", ".join(rest)))
    return markdown((*SEARCH, "other points"), rows)


def comparison_table(methods: Mapping[str, Sequence[Result]]) -> str:
    """A row for each optimizer: its test accuracy with either schedule."""
    rows = []
    for name in dict.fromkeys(method.rpartition("-")[0] for method in METHODS):
        both = [methods.get(f"{name}-{schedule}", []) for schedule in ("staircase", "linear")]
        if any(both):
            times = " / ".join(format_seconds(runs) for runs in both if runs)
            rows.append((f"`{name}`", *(format_accuracy(r) if r else "" for r in both), times))
    return markdown(COMPARISON, rows)


def latent_table(results: Mapping[str, Sequence[Result]]) -> str:
    """A row for each preset: test accuracy with binary and with latent weights."""
    rows, names = [], []
    for runs in results.values():
        accuracies = [run.record["latent_weights"] for run in runs]
        names = list(accuracies[0])
        cells = [format_mean([100 * a[name]["test"] for a in accuracies]) for name in names]
        rows.append((f"`{runs[0].command}`", *cells, len(runs)))
    return markdown(("trained by", *names, "seeds"), rows)


def summary_table(
    runs_of: Mapping[str, Sequence[Result]],
    methods: Mapping[str, Sequence[Result]],
    latent: Mapping[str, Sequence[Result]],
) -> str:
    """The rows of README.md: digits, the comparison, the paper's main claim, and section 3."""
    rows = []
    for folder, method, paper, cores in SUMMARY_ROWS:
        kind, _, name = folder.partition("/")
        runs = (runs_of if kind == "runs" else methods).get(name, [])
        if runs:
            first = runs[0]
            command = first.command if kind == "runs" else "python -m experiments.compare"
            paper = paper if kind == "runs" and not first.flags else ""
            hardware = cores if first.record["device"]["platform"] == "cpu" else device(first)
            cells = (format_accuracy(runs), f"{format_seconds(runs)} s", hardware, f"`{command}`")
            rows.append((task(first.experiment), method, paper, *cells))
        elif name in PRESETS:
            experiment, command = PRESETS[name][1], f"`python train.py {name}`"
            rows.append((task(experiment), method, paper, "not trained yet", "", "", command))
    if runs := latent.get("cifar10-adam-small"):
        of = [run.record["latent_weights"] for run in runs]
        binary, real = (
            format_mean(
                [100 * accuracies[f"{weights}, new statistics"]["test"] for accuracies in of]
            )
            for weights in ("binary", "latent")
        )
        here = f"{real} ({len(runs)}) with latent, {binary} with binary weights"
        claim, command = "no better than binary weights", "python -m experiments.latent_weights"
        cells = ("Adam, evaluated with latent weights", claim, here, "", "", f"`{command} RUN`")
        rows.append((task(runs[0].experiment), *cells))
    return markdown(SUMMARY, rows)


def precision_table(settings_of: Mapping[str, Mapping[str, Sequence[Result]]]) -> str:
    """Accuracies of each preset by the options that reduce precision."""
    presets = {preset: settings for preset, settings in settings_of.items() if settings}
    rows = []
    for name in SETTINGS:
        found = [settings.get(name, []) for settings in presets.values()]
        if any(found):
            flags = next(" ".join(runs[0].flags) for runs in found if runs)
            cells = (format_accuracy(runs) if runs else "" for runs in found)
            rows.append((f"`{flags}`" if flags else "none", *cells))
    return markdown(("option", *presets), rows)


# ---- Pages and figures ---------------------------------------------------------------------------


def with_tables(page: str, named_tables: Mapping[str, str]) -> str:
    """A page with each table between its marks.

    Raises:
        ValueError: for a mark of an unknown table, and for one without its end.
    """
    for name in re.findall(r"<!-- (.+): python -m experiments\.report -->", page):
        if name not in named_tables:
            raise ValueError(f"unknown table {name!r}: choose from {', '.join(named_tables)}")
        start, end = f"<!-- {name}: python -m experiments.report -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(start)
        if end not in rest:
            raise ValueError(f"table {name!r} has no line {end}")
        page = before + start + named_tables[name] + end + rest.partition(end)[2]
    return page


def draw(results: Path) -> None:
    """Draws Figures 1 and 2 and the flips of all methods, as far as there are results."""
    runs, methods = load(results / "runs"), load(results / "comparison")
    if (results / "sweep.json").exists():
        records = [result.record for result in read(results / "sweep.json")]
        plot_sweep(records, results / "figure1.png")
    for of, names, file in (
        (runs, ("cifar10-bop", "cifar10-adam", "cifar10-sgd"), "figure2.png"),
        (methods, ("bop-staircase", "adam-staircase", "sgd-staircase"), "figure2-small.png"),
    ):
        if curves := {n: [r.record["metrics"] for r in of[n]] for n in names if n in of}:
            plot_comparison(curves, results / file)
    if curves := {n: [r.record["metrics"] for r in methods[n]] for n in METHODS if n in methods}:
        dashed = [name for name in curves if name.endswith("-linear")]
        plot_flips(curves, results / "flips-small.png", dashed)
    if race := benchmark_tables.find_race(results / "benchmarks"):
        plot_race(race, results / "race.png")


def main(results: Path = ROOT / "experiments" / "results", root: Path = ROOT) -> None:
    """Writes the tables and the figures from the records of runs.

    Args:
        results: The folder of the records; figures go there too.
        root: The folder of README.md and docs/.
    """
    written = {}
    try:
        named_tables = tables(results)
        for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))):
            try:
                written[path] = with_tables(path.read_text(), named_tables)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        draw(results)
    except (ValueError, LookupError, OSError) as error:
        sys.exit(f"experiments.report: {error}")
    for path, page in written.items():
        if page != path.read_text():
            path.write_text(page)
            print(f"{path} has new tables.")
    print(f"The figures in {results} are up to date.")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.report")
