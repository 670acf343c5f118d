"""Figures, drawn from the metrics that runs write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


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
    for split, style in (("train", "-"), ("test", "--")):
        values = [100 * m[f"{split}_accuracy"] for m in metrics]
        accuracy.plot(epochs, values, style, color="tab:blue", label=split, marker=marker)
    accuracy.set_ylabel("accuracy (%)")
    accuracy.legend(
        loc="lower right", title=f"test: {metrics[-1]['test_accuracy']:.2%} after {epochs[-1]}"
    )

    layers = [name for name in metrics[0]["log_flip_ratio"] if name != "all"]
    for name in layers:
        values = [m["log_flip_ratio"][name] for m in metrics]
        last = name == layers[-1]
        label = f"last layer ({name})" if last else "other layers" if name == layers[0] else None
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
