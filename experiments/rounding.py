"""What incoming gradients of few bits cost in accuracy, over seeds.

    python -m experiments.rounding --preset digits-bop

trains a preset with each `--backward` of train.py and each seed. The records are in
FOLDER/results/PRESET/BACKWARD. A command that was stopped goes on where it was. The last line on
standard output is a JSON object with the mean test accuracies.
"""

from training.interrupt import Interrupt, Stopped

INTERRUPT = Interrupt()
if __name__ == "__main__":  # before JAX starts its threads, which inherit the mask of signals
    INTERRUPT.watch()

import json
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from experiments.presets import PRESETS
from experiments.workers import run_network
from training.command import end, prepare_process
from training.records import read_record, write_json
from training.run import RunError

ROUNDINGS = ("float32", "bfloat16", "8", "4", "3", "2")


@dataclass(frozen=True)
class Options:
    """The runs."""

    preset: str = "digits-bop"
    """A preset of train.py."""
    roundings: tuple[str, ...] = ROUNDINGS
    """Values of --backward of train.py."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Seeds of the runs."""
    folder: Path = Path("runs", "rounding")
    """Folder of the runs and of their records."""
    data_dir: Path | None = None
    """TFDS directory of CIFAR-10. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


def accuracies(options: Options, interrupt: Interrupt) -> dict[str, list[float]]:
    """Trains the networks that are not trained yet; returns the accuracies of each rounding.

    Raises:
        ValueError: for an unknown preset or rounding.
        Stopped, RunError: as `train.train`.
    """
    if options.preset not in PRESETS:
        raise ValueError(f"unknown preset {options.preset}: choose from {', '.join(PRESETS)}")
    _, preset = PRESETS[options.preset]
    data = preset.data
    if options.data_dir is not None:
        data = replace(data, data_dir=options.data_dir)
    reached: dict[str, list[float]] = {}
    for seed in options.seeds:
        for name in options.roundings:
            backward = int(name) if name.isdecimal() else name
            experiment = replace(preset, data=data, backward=backward, seed=seed)
            place = Path(options.preset, name, f"seed{seed}")
            run = (options.folder / place).absolute()
            run.parent.mkdir(parents=True, exist_ok=True)
            accuracy = run_network(run, f"{options.preset} {name}", experiment, interrupt)
            reached.setdefault(name, []).append(accuracy)
            _, record = read_record(run / "result.json")
            path = options.folder / "results" / place.with_suffix(".json")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, record)
    return reached


def main() -> None:
    """Trains the runs that the command line describes."""
    prepare_process()
    options = tyro.cli(Options, prog="python -m experiments.rounding", description=__doc__)
    try:
        reached = accuracies(options, INTERRUPT)
    except (ValueError, OSError, RunError) as error:
        sys.exit(f"experiments.rounding: {error}")
    except Stopped as stopped:
        end("experiments.rounding", stopped, options.folder)
    print(json.dumps({name: statistics.fmean(values) for name, values in reached.items()}))


if __name__ == "__main__":
    main()
