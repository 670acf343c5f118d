"""The rows on real data: starts and whole runs, against Larq with the same settings."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.rows import Case, Contestant, larq, ours
from experiments.presets import PRESETS
from training.config import BinaryNet, Bop, Cifar10, Experiment, Schedule, to_json


class Place(NamedTuple):
    """Where the contestants find their data.

    Attributes:
        data_dir: TFDS directory of CIFAR-10. None: the default one.
        folder: a temporary folder, for the files that Larq reads.
    """

    data_dir: Path | None
    folder: Path


def digits_experiment(place: Place) -> Experiment:
    """`python train.py digits-bop`."""
    del place
    return PRESETS["digits-bop"][1]


def cifar10_experiment(place: Place) -> Experiment:
    """`python train.py cifar10-bop --width 64 --epochs 3 --gamma 1e-3:0`."""
    return replace(
        PRESETS["cifar10-bop"][1],
        data=Cifar10(place.data_dir),
        model=BinaryNet(width=64),
        optimizer=Bop(Schedule(1e-3, end=0.0)),
        epochs=3,
    )


def contestants(place: Place, experiment: Experiment, unit: str) -> list[Contestant]:
    """Each of our variants, and Larq on the same images."""
    options = {"experiment": to_json(experiment), "unit": unit}
    facts = export(experiment.data, place.folder)
    return [*ours("whole_run", **options), larq("whole_run", **options, **facts)[0]]


def export(config: Any, folder: Path) -> dict[str, Any]:
    """Writes a data set for Larq, once; returns the options that name it."""
    path = folder / f"{type(config).__name__}-{config.held_out}.npz"
    data = config.load()
    if not path.exists():
        arrays = ("train_images", "train_labels", "test_images", "test_labels")
        np.savez(path, **{name: getattr(data, name) for name in arrays})
    return {"data": str(path), "num_classes": data.num_classes}


# ---- Rows ----------------------------------------------------------------------------------------


def start(place: Place) -> list[Case]:
    """From the start of a process to the end of its first training step."""
    cases = []
    for name, experiment in (("digits", digits_experiment), ("CIFAR-10", cifar10_experiment)):
        steps = contestants(place, experiment(place), "step")
        default = next(c for c in steps if c.name == "popcount")
        options = default.options | {"cached": False}
        steps.insert(0, default._replace(name="popcount, no cache", options=options))
        cases.append(Case(f"start to first step, {name}", "s", steps, runs=1))
    return cases


def digits(place: Place) -> list[Case]:
    """A whole run on the digits; and the command, which also writes checkpoints and curves."""
    experiment = digits_experiment(place)
    epochs = contestants(place, experiment, "epoch")
    command = {"arguments": ["train.py", "digits-bop"], "folder": str(place.folder)}
    epochs.append(Contestant("ours", "train.py", "ours", None, command))
    title = f"whole run, digits, {experiment.epochs} epochs"
    return [Case(title, "s", epochs, runs=experiment.epochs, rounds=5)]


def cifar10(place: Place) -> list[Case]:
    """A whole short run on CIFAR-10."""
    experiment = cifar10_experiment(place)
    epochs = contestants(place, experiment, "epoch")
    title = f"whole run, CIFAR-10, BinaryNet, width 64, {experiment.epochs} epochs"
    return [Case(title, "s", epochs, runs=experiment.epochs, rounds=1)]


DATA_ROWS: dict[str, Callable[[Place], list[Case]]] = {
    "start": start,
    "digits": digits,
    "cifar10": cifar10,
}
