"""Figures, drawn from the metrics that runs write."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def evaluated_on(metrics: Sequence[dict[str, Any]]) -> str:
    """Which images a run's records give the accuracy of, beside the training images."""
    return "validation" if "validation_accuracy" in metrics[0] else "test"


def layers(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """The layers that a run's records give π_t of, from the first to the last: 2 before 10."""
    names = [name for name in metrics[0]["log_flip_ratio"] if name != "all"]
    return sorted(names, key=lambda n: [(p.zfill(9) if p.isdigit() else p) for p in n.split("/")])


def over_runs(
    runs: Sequence[Sequence[dict[str, Any]]], read: Callable[[dict[str, Any]], float]
) -> tuple[np.ndarray, np.ndarray]:
    """What `read` takes from each epoch's record: mean and standard deviation over the runs."""
    values = np.array([[read(m) for m in run] for run in runs])
    return values.mean(0), values.std(0, ddof=min(1, len(runs) - 1))


def plot_curves(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws one run as the paper's Figure 1 does: accuracy above, π_t below.

    Args:
        metrics: one record per epoch, as in metrics.jsonl.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    epochs = [m["epoch"] for m in metrics]
    figure = Figure(figsize=(7, 6), layout="constrained")
    accuracy, flips = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    marker = "o" if len(epochs) == 1 else None  # a line through one point cannot be seen
    evaluated = evaluated_on(metrics)
    for split, style in (("train", "-"), (evaluated, "--")):
        values = [100 * m[f"{split}_accuracy"] for m in metrics]
        accuracy.plot(epochs, values, style, color="tab:blue", label=split, marker=marker)
    accuracy.set_ylabel("accuracy (%)")
    last = metrics[-1][f"{evaluated}_accuracy"]
    accuracy.legend(loc="lower right", title=f"{evaluated}: {last:.2%} after {epochs[-1]}")

    names = layers(metrics)
    for name in names:
        values = [m["log_flip_ratio"][name] for m in metrics]
        last = name == names[-1]
        label = f"last layer ({name})" if last else "other layers" if name == names[0] else None
        color, width = ("tab:red", 1.8) if last else ("0.75", 0.8)
        flips.plot(epochs, values, color=color, lw=width, label=label, marker=marker)
    values = [m["log_flip_ratio"]["all"] for m in metrics]
    flips.plot(epochs, values, color="black", label="all binary weights", marker=marker)
    flips.set_ylabel(r"$\pi_t$, mean over the epoch")
    flips.set_xlabel("epoch")
    flips.legend(loc="upper right", fontsize="small")
    for axes in (accuracy, flips):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=150)


def plot_sweep(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the paper's Figure 1: γ varied on the left, τ on the right; means over the seeds.

    Args:
        records: of the networks of sweep.py, which differ in γ, τ and seed.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    evaluated = evaluated_on(records[0]["metrics"])
    panels = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 2))
    for column, (symbol, varied, kept) in enumerate(
        [("γ", "gamma", "threshold"), ("τ", "threshold", "gamma")]
    ):
        upper, lower = panels[:, column]
        value = records[0]["varied_at"][kept]
        here = [record for record in records if record["config"][kept] == value]
        for i, point in enumerate(sorted({record["config"][varied] for record in here})):
            runs = [r["metrics"] for r in here if r["config"][varied] == point]
            epochs = [m["epoch"] for m in runs[0]]
            last = layers(runs[0])[-1]
            style = {"color": f"C{i}", "marker": "o" if len(epochs) == 1 else None}

            train, _ = over_runs(runs, lambda m: 100 * m["train_accuracy"])
            upper.plot(epochs, train, label=f"{point:g}", **style)
            accuracy, _ = over_runs(runs, lambda m: 100 * m[f"{evaluated}_accuracy"])
            upper.plot(epochs, accuracy, "--", **style)
            flips, _ = over_runs(runs, lambda m, k=last: m["log_flip_ratio"][k])
            lower.plot(epochs, flips, **style)
        fixed = f"τ = {value:g}" if kept == "threshold" else f"γ = {value:g}"
        upper.set_title(f"{symbol} varied at {fixed}")
        if here:
            title = f"{symbol} (train —, {evaluated} - -)"
            upper.legend(title=title, loc="best", fontsize="small")
        lower.set_xlabel("epoch")
        for axes in (upper, lower):
            axes.grid(alpha=0.3)
            axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0, 0].set_ylabel("accuracy (%)")
    panels[1, 0].set_ylabel(r"$\pi_t$ of the last layer")
    figure.savefig(path, dpi=150)


def plot_comparison(methods: Mapping[str, Sequence[Sequence[dict[str, Any]]]], path: Path) -> None:
    """Draws the paper's Figure 2: accuracies by epoch, mean ± standard deviation over the seeds.

    Args:
        methods: for each method's name, the records by epoch of each of its runs.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes: Any = figure.subplots()
    for i, (name, runs) in enumerate(methods.items()):
        epochs, evaluated = [m["epoch"] for m in runs[0]], evaluated_on(runs[0])
        for split, style in (("train", "-"), (evaluated, "--")):
            mean, spread = over_runs(runs, lambda m, k=split: 100 * m[f"{k}_accuracy"])
            last = f"{mean[-1]:.1f}" + (f" ± {spread[-1]:.1f}" if len(runs) > 1 else "")
            label = f"{name}, {split}: {last} %" if split == evaluated else None
            axes.plot(epochs, mean, style, color=f"C{i}", label=label)
            axes.fill_between(epochs, mean - spread, mean + spread, color=f"C{i}", alpha=0.2, lw=0)
    axes.set_xlabel("epoch")
    evaluated = "/".join(sorted({evaluated_on(runs[0]) for runs in methods.values()}))
    axes.set_ylabel(f"accuracy (%): train —, {evaluated} - -")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right", fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def plot_flips(
    methods: Mapping[str, Sequence[Sequence[dict[str, Any]]]],
    path: Path,
    dashed: Collection[str] = (),
) -> None:
    """Draws π_t by epoch of methods beside each other: of all binary weights, of the last layer.

    Args:
        methods: for each method's name, the records by epoch of each of its runs, whose mean and
            standard deviation are drawn.
        path: the PNG to write.
        dashed: the names whose curves are dashed, in the colours of the others, one by one.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colors = {False: itertools.count(), True: itertools.count()}
    for name, runs in methods.items():
        epochs, dash = [m["epoch"] for m in runs[0]], name in dashed
        color = f"C{next(colors[dash])}"
        style = {"color": color, "ls": "--" if dash else "-", "marker": "o", "ms": 3}
        for axes, layer in zip(panels, ("all", layers(runs[0])[-1]), strict=True):
            mean, spread = over_runs(runs, lambda m, k=layer: m["log_flip_ratio"][k])
            axes.plot(epochs, mean, label=name, **style)
            axes.fill_between(epochs, mean - spread, mean + spread, color=color, alpha=0.2, lw=0)
    for axes, title in zip(panels, ("all binary weights", "the last layer"), strict=True):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(r"$\pi_t$, mean over the epoch")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=150)
