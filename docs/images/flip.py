"""Draws flip.png: `bop` decides when one weight flips, on five kinds of gradient.

python docs/images/flip.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from bop_optax import bop

GAMMA, THRESHOLD = 0.05, 0.4
STAGES = [  # description, mean gradient, steps, background
    ("only\nnoise", 0.0, 70, "white"),
    ("strong,\nbut brief", 2.4, 3, "white"),
    ("", 0.0, 47, "white"),
    ("consistent,\nbut weak", 0.18, 80, "white"),
    ("consistent and\nstrong: a flip", 0.9, 80, "#fbeaea"),
    ("reversed:\na flip back", -0.9, 80, "#eaf1fb"),
]
BLUE, RED = "tab:blue", "tab:red"


def simulate(gradients: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns the average m and the weight after each step."""
    optimizer = bop(GAMMA, THRESHOLD)

    def step(carry, gradient):
        weight, state = carry
        updates, state = optimizer.update(gradient, state, weight)
        weight = optax.apply_updates(weight, updates)
        return (weight, state), (state.ema, weight)

    weight = jnp.array(1.0)
    _, (ema, weights) = jax.lax.scan(step, (weight, optimizer.init(weight)), gradients)
    return np.asarray(ema), np.asarray(weights)


def main() -> None:
    """Writes flip.png next to this file."""
    means = np.concatenate([np.full(count, mean) for _, mean, count, _ in STAGES])
    gradients = means + 0.6 * np.random.default_rng(9).standard_normal(len(means))
    ema, weights = simulate(jnp.asarray(gradients, jnp.float32))
    flips = np.flatnonzero(np.diff(weights, prepend=1.0)) + 1
    steps = np.arange(1, len(means) + 1)

    plt.rcParams["font.size"] = 15
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(11, 6), sharex=True, height_ratios=(4, 1), layout="constrained"
    )
    top.bar(steps, gradients, width=1, color="0.85", label="gradient g of one weight")
    top.plot(steps, ema, color=BLUE, lw=3, label=f"its moving average m, γ = {GAMMA}")
    for bound, name in ((THRESHOLD, "τ"), (-THRESHOLD, "−τ")):
        top.axhline(bound, color="black", ls="--", lw=1.2)
        top.annotate(name, (len(steps) + 4, bound), va="center", annotation_clip=False)
    top.plot(flips, ema[flips - 1], "o", ms=13, mfc="none", mew=3, color=RED, label="flip")
    left = 0
    for text, _, count, color in STAGES:
        top.text(left + count / 2, 3.05, text, ha="center", va="center")
        top.axvspan(left, left + count, color=color, zorder=-2)
        left += count
    top.set(ylim=(-3.1, 3.6), xlim=(0, len(steps) + 2), ylabel="g and m", yticks=(-2, 0, 2))
    top.legend(loc="lower left", framealpha=1)

    bottom.step(steps, weights, where="mid", color=BLUE, lw=3)
    bottom.set(ylim=(-1.7, 1.7), yticks=(-1, 1), yticklabels=("−1", "+1"))
    bottom.set(ylabel="weight", xlabel="step")
    for panel in (top, bottom):
        for flip in flips:
            panel.axvline(flip, 0, 0.83 if panel is top else 1, color=RED, lw=1.2, zorder=0)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)
    print("flips in steps", flips.tolist())


if __name__ == "__main__":
    main()
