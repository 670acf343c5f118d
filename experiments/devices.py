"""How far runs on different numbers of devices agree: sums that round differently flip weights.

    python -m experiments.devices                            # digits on 1, 2, 4 and 8 devices
    python -m experiments.devices --seeds 1 2 3 --out FILE.json

The devices are simulated on a CPU. Each run is one of train.py. The weights of several devices are
compared with those of the first number of devices, after each run's last epoch.
"""

from training.interrupt import Interrupt

INTERRUPT = Interrupt()
if __name__ == "__main__":  # before JAX starts its threads, which inherit the mask of signals
    INTERRUPT.watch()

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from bop_optax.saving import load
from experiments.presets import PRESETS
from experiments.workers import start_workers
from training.command import ending
from training.config import Experiment, ImageNet
from training.config.ranges import require, require_different
from training.folder import finished_record
from training.messages import say
from training.records import WEIGHTS, describe_origin, write_json

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Options:
    """The runs."""

    preset: str = "digits-bop"
    """A preset of train.py."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of devices; the others are compared with the first."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of the runs."""
    epochs: int = 8
    """Passes over the training images."""
    batch_size: int = 96
    """Images in a step, over all devices."""
    folder: Path = Path("runs", "devices")
    """Folder of the runs. A run that is finished is not repeated."""
    out: Path | None = None
    """File to write the numbers to, as JSON."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the traceback of an error."""

    def __post_init__(self):
        known = self.preset in PRESETS
        require(known, "preset", f"one of {', '.join(PRESETS)}", self.preset)
        several = len({*self.devices}) == len(self.devices) > 1
        require(several, "devices", "two different numbers or more", self.devices)
        for number in self.devices:
            fits = number >= 1 and self.batch_size % number == 0
            require(fits, "devices", f"divisors of the batch size {self.batch_size}", number)
        require_different("seeds", self.seeds)
        experiments = [self.experiment(seed) for seed in self.seeds]  # which checks the ranges
        fits = not isinstance(experiments[0].data, ImageNet)
        require(fits, "preset", "of images that fit into memory", self.preset)

    def experiment(self, seed: int) -> Experiment:
        """What a run of a seed trains."""
        options = {"epochs": self.epochs, "batch_size": self.batch_size, "seed": seed}
        return replace(PRESETS[self.preset][1], **options)

    @property
    def command(self) -> str:
        """What repeats the numbers."""
        lists = {"devices": self.devices, "seeds": self.seeds}
        options = [f"--{k} {' '.join(map(str, v))}" for k, v in lists.items()]
        options += [f"--epochs {self.epochs}", f"--batch-size {self.batch_size}"]
        return f"python -m experiments.devices --preset {self.preset} {' '.join(options)}"


def train(options: Options, devices: int, seed: int, interrupt: Interrupt) -> Path:
    """Trains one network on so many devices, unless that is done; returns its folder.

    Raises:
        Stopped: after a signal; and if the run fails, with its standard error.
    """
    kind = f"{options.preset}-epochs{options.epochs}-batch{options.batch_size}"
    folder = (options.folder / kind / f"{devices}-devices" / f"seed{seed}").absolute()
    if not (folder / "result.json").exists():
        numbers = {"seed": seed, "epochs": options.epochs, "batch-size": options.batch_size}
        arguments = [f"--{name}={number}" for name, number in numbers.items()]
        arguments += ["--resume"] if folder.exists() else []
        folder.mkdir(parents=True, exist_ok=True)
        start_workers(
            [sys.executable, "train.py", options.preset, *arguments, f"--run-dir={folder}"],
            1,
            interrupt,
            pinned=False,
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.DEVNULL,
        )
    return folder


def differing(one: Path, other: Path) -> float:
    """Share of the weights of ±1 that differ between two runs."""
    ones, others = (load(folder / WEIGHTS) for folder in (one, other))
    binary = [name for name, array in ones.items() if array.ndim > 1 and np.all(array**2 == 1)]
    differ = sum(int(np.sum(ones[name] != others[name])) for name in binary)
    return differ / sum(ones[name].size for name in binary)


def compare(options: Options, interrupt: Interrupt) -> list[dict[str, Any]]:
    """A row for each number of devices and each seed.

    Returns:
        `devices`, `seed`, `differing` (share of binary weights, to the first number of devices),
        `loss` and `test_accuracy` of each epoch.

    Raises:
        ValueError: if a folder has a finished run of another experiment.
    """
    rows = []
    for seed in options.seeds:
        first = train(options, options.devices[0], seed, interrupt)
        for devices in options.devices:
            folder = train(options, devices, seed, interrupt)
            records = finished_record(folder, options.experiment(seed))["metrics"]
            row = {"devices": devices, "seed": seed, "differing": differing(first, folder)}
            row |= {name: [r[name] for r in records] for name in ("loss", "test_accuracy")}
            rows.append(row)
            say(
                f"{devices} devices, seed {seed}: {row['differing']:.1%} of the weights differ, "
                f"loss {row['loss'][0]:.6f} to {row['loss'][-1]:.6f}, "
                f"test {row['test_accuracy'][-1]:.2%}"
            )
    return rows


def main() -> None:
    """Trains the runs that the command line describes, and compares them."""
    with ending("-m experiments.devices", "--debug" in sys.argv, lambda run: None):
        options = tyro.cli(Options, prog="python -m experiments.devices", description=__doc__)
        origin = describe_origin()
        rows = compare(options, INTERRUPT)
        if options.out:
            write_json(options.out, origin | {"command": options.command, "runs": rows})
    of_all = {
        devices: [row for row in rows if row["devices"] == devices] for devices in options.devices
    }
    accuracies = {
        devices: float(np.mean([row["test_accuracy"][-1] for row in runs]))
        for devices, runs in of_all.items()
    }
    say(json.dumps({"mean_test_accuracy": accuracies}))


if __name__ == "__main__":
    main()
