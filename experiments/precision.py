"""What reduced precision costs in accuracy, over seeds.

    python -m experiments.precision --preset digits-bop

trains a preset with each of the settings below and each seed. The records are in
FOLDER/results/PRESET/SETTING. A stopped command resumes if it is repeated. The last line on
standard output is a JSON object with the mean test accuracies.
"""

from training.interrupt import Interrupt

INTERRUPT = Interrupt()
if __name__ == "__main__":  # before JAX starts its threads, which inherit the mask of signals
    INTERRUPT.watch()

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.presets import PRESETS
from experiments.workers import run_network
from training.command import ending, prepare_process
from training.config import Experiment
from training.config.ranges import require_different
from training.machine import expanded
from training.messages import say
from training.records import read_record, sealed, write_json

# What changes the preset.
SETTINGS: dict[str, Callable[[Any], Experiment]] = {
    "float32": lambda preset: preset,
    "backward-bfloat16": lambda preset: replace(preset, backward="bfloat16"),
    "backward-8": lambda preset: replace(preset, backward=8),
    "backward-4": lambda preset: replace(preset, backward=4),
    "backward-3": lambda preset: replace(preset, backward=3),
    "backward-2": lambda preset: replace(preset, backward=2),
    "dtype-bfloat16": lambda preset: replace(preset, dtype="bfloat16"),
    "ema-bfloat16": lambda preset: replace(
        preset, optimizer=replace(preset.optimizer, ema_dtype="bfloat16")
    ),
}


@dataclass(frozen=True)
class Options:
    """The runs."""

    preset: str = "digits-bop"
    """A preset of train.py."""
    settings: tuple[str, ...] = tuple(SETTINGS)
    """Settings to compare."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Seeds of the runs."""
    folder: Path = Path("runs", "precision")
    """Folder of the runs and of their records."""
    data_dir: Path | None = None
    """TFDS directory of CIFAR-10. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the traceback of an error."""


def accuracies(options: Options, interrupt: Interrupt) -> dict[str, list[float]]:
    """Trains the networks that are not trained yet; returns the accuracies of each setting.

    Raises:
        ValueError: for an unknown preset or setting.
        Stopped, RunError: as `train.train`.
    """
    if options.preset not in PRESETS:
        raise ValueError(f"unknown preset {options.preset}: choose from {', '.join(PRESETS)}")
    unknown = set(options.settings) - set(SETTINGS)
    if unknown:
        raise ValueError(
            f"unknown settings {', '.join(unknown)}: choose from {', '.join(SETTINGS)}"
        )
    for name in ("settings", "seeds"):
        require_different(name, getattr(options, name))
    folder = expanded(options.folder).absolute()
    _, preset = PRESETS[options.preset]
    try:
        if options.data_dir is not None:
            preset = replace(preset, data=replace(preset.data, data_dir=options.data_dir))
        for name in options.settings:
            SETTINGS[name](preset)
    except TypeError as error:
        raise ValueError(f"{options.preset} lacks an option of this command: {error}") from error
    for seed in options.seeds:
        replace(preset, seed=seed)  # checks the ranges
    reached: dict[str, list[float]] = {}
    for seed in options.seeds:
        for name in options.settings:
            experiment = SETTINGS[name](replace(preset, seed=seed))
            place = Path(options.preset, name, f"seed{seed}")
            run = folder / place
            run.parent.mkdir(parents=True, exist_ok=True)
            accuracy = run_network(run, options.preset, experiment, interrupt)
            reached.setdefault(name, []).append(accuracy)
            _, record = read_record(run / "result.json")
            path = folder / "results" / place.with_suffix(".json")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, sealed(record))
    return reached


def main() -> None:
    """Trains the runs that the command line describes."""
    prepare_process()
    options = tyro.cli(Options, prog="python -m experiments.precision", description=__doc__)
    with ending("-m experiments.precision", options.debug, lambda run: None):
        reached = accuracies(options, INTERRUPT)
    say(json.dumps({name: statistics.fmean(values) for name, values in reached.items()}))


if __name__ == "__main__":
    main()
