"""The records in experiments/results: reads them, checks that they belong together, names them."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from experiments.methods import METHODS
from experiments.presets import PRESETS
from training.config import Arrays, Cifar10, Digits, Experiment, ImageNet, Schedule
from training.config.data import NAMED, data_from_name
from training.records import MACHINE, accuracy_name, check_record

DATA = {member: name for name, member in NAMED.items()}
TITLES = {Digits: "digits 8×8", Cifar10: "CIFAR-10", ImageNet: "ImageNet", Arrays: "own images"}


class Result(NamedTuple):
    """One record of a network, and where it is."""

    place: str
    experiment: Experiment
    record: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """The last accuracy, in percent."""
        result = self.record["result"]
        return 100 * result[accuracy_name(result)]

    @property
    def flags(self) -> list[str]:
        """The options of the command, in addition to the preset and the seed."""
        return flags(PRESETS[self.record["preset"]][1], self.experiment)

    @property
    def command(self) -> str:
        """The command of the run, without its seed."""
        return " ".join(["python train.py", self.record["preset"], *self.flags])


def read(path: Path) -> list[Result]:
    """The record, or the list of records, in a file.

    Raises:
        ValueError: for a file that holds something else; it names the file.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, list):
            return [_result(str(path), content)]
        if not content:
            raise ValueError("an empty list")
        return [_result(f"{path}, record {i}", record) for i, record in enumerate(content)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not the result.json of a run ({error!r})") from error


def _result(place: str, record: dict[str, Any]) -> Result:
    experiment = check_record(record)
    kind, names = ("method", METHODS) if "method" in record else ("preset", PRESETS)
    if record[kind] not in names:
        raise ValueError(f"unknown {kind} {record[kind]}")
    return Result(place, experiment, record)


def load(folder: Path) -> dict[str, list[Result]]:
    """The results of each experiment, by the name of its folder."""
    results: dict[str, list[Result]] = {}
    for path in sorted(folder.glob("*/*.json")):
        results.setdefault(path.parent.name, []).extend(read(path))
    for runs in results.values():
        check_alike(runs, lambda experiment: replace(experiment, seed=0))
    return results


def check_alike(runs: Sequence[Result], normalize: Callable[[Experiment], Experiment]) -> None:
    """Raises ValueError for runs that differ after `normalize`, and for two records of one run."""
    first, seen = runs[0], dict[Experiment, str]()
    for run in runs:
        if normalize(run.experiment) != normalize(first.experiment):
            raise ValueError(f"{run.place} is of another experiment than {first.place}")
        if run.experiment in seen:
            raise ValueError(f"{run.place} is of the same run as {seen[run.experiment]}")
        seen[run.experiment] = run.place


# ---- Text ----------------------------------------------------------------------------------------


def flags(start: Any, config: Any) -> list[str]:
    """The options of the command line that change one configuration into another."""
    changed: list[str] = []
    for f in fields(config):
        value, default = getattr(config, f.name), getattr(start, f.name)
        if f.name == "data" and type(value) is not type(default):
            data = DATA.get(type(value)) or str(value.path)
            changed.append(f"--data {data}")
            default = data_from_name(data)
        if is_dataclass(value) and not isinstance(value, Schedule):
            changed += flags(default, value)
        elif value != default and f.name not in ("seed", *MACHINE):
            option = f.name.replace("_", "-")
            if isinstance(value, bool):
                changed.append(f"--{option}" if value else f"--no-{option}")
            else:
                changed.append(f"--{option} {shlex.quote(str(value))}")
    return changed


def task(experiment: Experiment) -> str:
    """The data, the network and the epochs of an experiment."""
    data, model = TITLES.get(type(experiment.data), "own data"), type(experiment.model).__name__
    width = getattr(experiment.model, "width", None)
    model += "" if width is None else f" of width {width}"
    return f"{data}, {model}, {experiment.epochs} epochs"


def describe(run: Result) -> str:
    """The text of the preset, or, if the run has other options, a text of these options."""
    if not run.flags:
        return PRESETS[run.record["preset"]][0]
    optimizer = run.experiment.optimizer
    values = ((f.name, getattr(optimizer, f.name)) for f in fields(optimizer))
    schedules = ", ".join(f"{name} {v}" for name, v in values if isinstance(v, Schedule))
    return f"{task(run.experiment)}, {type(optimizer).__name__}: {schedules}"


def device(run: Result) -> str:
    """Number and kind of the devices of a run."""
    return f"{run.record['device']['count']} × {run.record['device']['kind']}"
