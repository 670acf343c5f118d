"""The curves of one run: accuracy and flips by epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.records import naming


def evaluated_on(metrics: Sequence[dict[str, Any]]) -> str:
    """Name of the split that a run evaluates after each epoch: "validation" or "test"."""
    return "validation" if "validation_accuracy" in metrics[0] else "test"


def layers(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """Names of a run's binary layers, from the first to the last: 2 before 10."""
    names = [name for name in metrics[0]["log_flip_ratio"] if name != "all"]
    return sorted(names, key=lambda n: [(p.zfill(9) if p.isdigit() else p) for p in n.split("/")])


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
        is_last = name == names[-1]
        label = f"last layer ({name})" if is_last else "other layers" if name == names[0] else None
        color, width = ("tab:red", 1.8) if is_last else ("0.75", 0.8)
        flips.plot(epochs, values, color=color, lw=width, label=label, marker=marker)
    values = [m["log_flip_ratio"]["all"] for m in metrics]
    flips.plot(epochs, values, color="black", label="all binary weights", marker=marker)
    flips.set_ylabel(r"$\pi_t$, mean over the epoch")
    flips.set_xlabel("epoch")
    flips.legend(loc="upper right", fontsize="small")
    for axes in (accuracy, flips):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    with naming(path):
        figure.savefig(path, dpi=150)
