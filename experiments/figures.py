"""Figures of several networks, drawn from their metrics: the paper's Figures 1 and 2, flips."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.config import Schedule
from training.curves import evaluated_on, layers

Metrics = Sequence[dict[str, Any]]  # of one network, a record for each epoch


def over_runs(
    runs: Sequence[Metrics], read: Callable[[dict[str, Any]], float]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the runs of the number that `read` takes from an epoch."""
    values = np.array([[read(m) for m in run] for run in runs])
    return values.mean(0), values.std(0, ddof=min(1, len(runs) - 1))


def plot_sweep(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the paper's Figure 1: γ varied on the left, τ on the right; means over the seeds.

    Args:
        records: the networks of a sweep, which differ in γ, τ and seed.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 2))
    evaluated = evaluated_on(records[0]["metrics"])
    symbols = {"gamma": "γ", "threshold": "τ"}
    for column, (varied, fixed) in enumerate([("gamma", "threshold"), ("threshold", "gamma")]):
        upper, lower = panels[:, column]
        value = records[0]["varied_at"][fixed]
        shown = [record for record in records if _initial(record, fixed) == value]
        for i, point in enumerate(sorted({_initial(record, varied) for record in shown})):
            runs = [r["metrics"] for r in shown if _initial(r, varied) == point]
            epochs = [m["epoch"] for m in runs[0]]
            last = layers(runs[0])[-1]
            style = {"color": f"C{i}", "marker": "o" if len(epochs) == 1 else None}
            train, _ = over_runs(runs, lambda m: 100 * m["train_accuracy"])
            upper.plot(epochs, train, label=f"{point:g}", **style)
            accuracy, _ = over_runs(runs, lambda m: 100 * m[f"{evaluated}_accuracy"])
            upper.plot(epochs, accuracy, "--", **style)
            flips, _ = over_runs(runs, lambda m, k=last: m["log_flip_ratio"][k])
            lower.plot(epochs, flips, **style)
        upper.set_title(f"{symbols[varied]} varied at {symbols[fixed]} = {value:g}")
        if shown:
            title = f"{symbols[varied]} (train —, {evaluated} - -)"
            upper.legend(title=title, loc="best", fontsize="small")
        lower.set_xlabel("epoch")
        for axes in (upper, lower):
            _finish(axes)
    panels[0, 0].set_ylabel("accuracy (%)")
    panels[1, 0].set_ylabel(r"$\pi_t$ of the last layer")
    figure.savefig(path, dpi=150)


def plot_comparison(methods: Mapping[str, Sequence[Metrics]], path: Path) -> None:
    """Draws the paper's Figure 2: accuracies by epoch, mean ± standard deviation over the seeds.

    Args:
        methods: for each method's name, the metrics of each of its runs.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes: Any = figure.subplots()
    for i, (name, runs) in enumerate(methods.items()):
        epochs, evaluated = [m["epoch"] for m in runs[0]], evaluated_on(runs[0])
        marker = "o" if len(epochs) == 1 else None
        for split, line in (("train", "-"), (evaluated, "--")):
            mean, spread = over_runs(runs, lambda m, k=split: 100 * m[f"{k}_accuracy"])
            last = f"{mean[-1]:.1f}" + (f" ± {spread[-1]:.1f}" if len(runs) > 1 else "")
            label = f"{name}, {split}: {last} %" if split == evaluated else None
            axes.plot(epochs, mean, line, color=f"C{i}", label=label, marker=marker)
            axes.fill_between(epochs, mean - spread, mean + spread, color=f"C{i}", alpha=0.2, lw=0)
    axes.set_xlabel("epoch")
    evaluated = "/".join(sorted({evaluated_on(runs[0]) for runs in methods.values()}))
    axes.set_ylabel(f"accuracy (%): train —, {evaluated} - -")
    axes.legend(loc="lower right", fontsize="small")
    _finish(axes)
    figure.savefig(path, dpi=150)


def plot_flips(
    methods: Mapping[str, Sequence[Metrics]], path: Path, dashed: Collection[str] = ()
) -> None:
    """Draws π_t of several methods by epoch: of all binary weights, and of the last layer.

    Args:
        methods: for each method's name, the metrics of each of its runs, whose mean and standard
            deviation are drawn.
        path: the PNG to write.
        dashed: methods with dashed curves; they have the colours of the others, in order.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colors = {False: itertools.count(), True: itertools.count()}
    for name, runs in methods.items():
        epochs, is_dashed = [m["epoch"] for m in runs[0]], name in dashed
        color = f"C{next(colors[is_dashed])}"
        style = {"color": color, "ls": "--" if is_dashed else "-", "marker": "o", "ms": 3}
        for axes, layer in zip(panels, ("all", layers(runs[0])[-1]), strict=True):
            mean, spread = over_runs(runs, lambda m, k=layer: m["log_flip_ratio"][k])
            axes.plot(epochs, mean, label=name, **style)
            axes.fill_between(epochs, mean - spread, mean + spread, color=color, alpha=0.2, lw=0)
    for axes, title in zip(panels, ("all binary weights", "the last layer"), strict=True):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        _finish(axes)
    panels[0].set_ylabel(r"$\pi_t$, mean over the epoch")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=150)


def plot_race(race: dict[str, Any], path: Path) -> None:
    """Draws the test accuracy of each contestant of a race by the time since its start.

    Args:
        race: the case of a record of `python -m benchmarks race`.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes: Any = figure.subplots()
    for contestant in race["contestants"]:
        if curve := contestant["facts"].get("curve"):
            setting = "width {width}, batch {batch_size}, γ {gamma:g}".format(
                **contestant["facts"]["setting"]
            )
            minutes = [point["seconds"] / 60 for point in curve]
            accuracies = [100 * point["accuracy"] for point in curve]
            label = f"{contestant['name']} ({setting}): {max(accuracies):.1f} %"
            axes.plot(minutes, accuracies, marker="o", ms=3, label=label)
    axes.set_xlabel("minutes")
    axes.set_ylabel("test accuracy (%)")
    axes.legend(loc="lower right", fontsize="small")
    _finish(axes)
    figure.savefig(path, dpi=150)


def _initial(record: dict[str, Any], name: str) -> float:
    """The first value of γ or τ of a record's optimizer."""
    return Schedule.parse(record["config"]["optimizer"][name]).initial


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.xaxis.get_major_locator().set_params(integer=True)
