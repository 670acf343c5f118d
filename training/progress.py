"""What a run prints: a header, a finished line for each epoch, a live bar below on a terminal."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from tqdm import tqdm

from training import hosts
from training.messages import say
from training.network import Network, count_parameters, totals


def header(preset: str, network: Network, folder: Path) -> str:
    """The first lines of a run: preset, parameters, devices, folder; size, MACs of an image."""
    binary, real = count_parameters(network)
    here = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    first = f"{preset}: {binary:,} binary + {real:,} real, {devices}, {here}"
    return f"{first}\n{totals(network)}"


class FirstCall:
    """A jitted function; `seconds` is the time of its first call, which compiles it. 0 before."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function, which returns before the device is done."""
        start = time.perf_counter()
        result = self._function(*arguments)
        self.seconds = self.seconds or time.perf_counter() - start
        return result


class EpochBar:
    """One epoch on the terminal: a bar while it trains, a line when it is finished.

    The bar is drawn on standard error, if that is a terminal; the line goes to standard output.

    Args:
        epoch: number of the epoch, from 1.
        epochs: number of epochs of the run.
        steps: steps of the epoch.
        batch_size: images in a step.
        done: steps that an earlier process has done.
    """

    def __init__(self, epoch: int, epochs: int, steps: int, batch_size: int, done: int = 0):
        self._title = f"epoch {epoch}/{epochs}"
        self._batch_size = batch_size
        self.on_terminal = sys.stderr is not None and sys.stderr.isatty() and hosts.is_first()
        self._bar = tqdm(
            desc=self._title,
            total=steps * batch_size,
            initial=done * batch_size,
            unit="images",
            unit_scale=True,
            dynamic_ncols=True,
            leave=False,
            disable=not self.on_terminal,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, steps: int) -> None:
        """Moves the bar on by some steps."""
        self._bar.update(steps * self._batch_size)

    def finish(self, metrics: dict[str, Any]) -> None:
        """Removes the bar and prints the epoch's line, after one on compiling if there was any."""
        self._bar.close()
        if metrics["compile_seconds"] >= 0.1:
            say(f"compiled in {metrics['compile_seconds']:.1f} s")
        say(f"{self._title}: {summary(metrics)}")


def summary(metrics: dict[str, Any]) -> str:
    """Loss, accuracies, flips and seconds of an epoch; of several networks, their means."""
    accuracies = ", ".join(
        f"{name} {np.mean(metrics[f'{split}_accuracy']):.2%}"
        for split, name in (("train", "train"), ("validation", "val"), ("test", "test"))
        if f"{split}_accuracy" in metrics
    )
    return (
        f"loss {np.mean(metrics['loss']):.3f}, {accuracies}, "
        f"flips {np.mean(metrics['flip_ratio']['all']):.1e}, {metrics['seconds']:.1f} s"
        + (f", {np.sum(metrics['skipped'])} skipped" if np.any(metrics.get("skipped", 0)) else "")
    )
