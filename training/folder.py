"""Makes or finds the folder of a run; compares the options of its processes and of its parts."""

import itertools
import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from training import hosts
from training.config import Experiment, RunConfig, to_json
from training.machine import expanded
from training.records import MACHINE, describe, read_record

OWN = ("run_dir", "stop_within", "debug")  # options of the process; process 0 names the folder
SECONDS_TO_SEE = 30  # for which a network's file system may hide a new file


def new_folder(config: RunConfig, name: str) -> Path:
    """Makes the folder that `run_dir` names, or one in runs/ by name and time.

    Raises:
        ValueError: for a `run_dir` that is not empty, unless it is to be resumed.
    """
    if config.run_dir is not None:
        folder = expanded(config.run_dir).absolute()
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is no folder: choose another --run-dir")
        if not config.resume and holds_something(folder):
            raise ValueError(
                f"{folder} is not empty: resume that run with --resume, or choose another --run-dir"
            )
        if config.resume and not folder.is_dir():
            raise ValueError(f"{folder} holds no run to resume: there is no such folder")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    stamped = Path("runs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    for number in itertools.count(1):
        folder = stamped if number == 1 else stamped.with_name(f"{stamped.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def holds_something(folder: Path) -> bool:
    """Whether a folder has files other than .lock and *.tmp, which a killed start leaves."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return any(file.suffix != ".tmp" and file.name != ".lock" for file in files)


# ---- Options that must be the same ---------------------------------------------------------------


def check_hosts(experiment: Experiment, config: RunConfig, preset: str) -> None:
    """Raises ValueError if another process of the run has other options, versions or code."""
    if not hosts.are_several():
        return
    own = flat_options(describe(experiment, preset) | {"run": to_json(config)})
    for process, other in enumerate(hosts.gather(own)):
        if names := differing(other, own, "here"):
            raise ValueError(f"process {process} has {names}: start all alike")


def check_images(data: Any) -> None:
    """Raises ValueError if another process of the run has other images."""
    if hosts.are_several():
        own = data.identity()
        for process, other in enumerate(hosts.gather(own)):
            if other != own:
                raise ValueError(f"process {process} has other images or labels: {other}")


def check_visible(path: Path) -> None:
    """Raises ValueError if this process does not see a file of process 0 within some seconds."""
    for _ in range(SECONDS_TO_SEE):
        if path.exists():
            return
        time.sleep(1)
    raise ValueError(f"{path} is missing here: --run-dir must be a folder that all hosts share")


def differing(
    others: dict[str, Any], ours: dict[str, Any], word: str, may: Collection[str] = ()
) -> str:
    """The options that must not differ and do, as in "epochs=8 (here 9)"; "" if none does.

    Args:
        others: options by name, as `flat_options` returns them.
        ours: those of this process.
        word: what a message calls this process.
        may: options that may differ, in addition to those of `_may_differ`.
    """
    found = []
    for name in ours | others:
        a, b = others.get(name), ours.get(name)
        same = a == b or json.dumps(a) == json.dumps(b)  # NaN; tuples, which JSON makes lists
        if not same and name not in may and not _may_differ(name):
            found.append(f"{name}={a} ({word} {b})")
    return ", ".join(found)


def _may_differ(name: str) -> bool:
    """True for the options of a process or its machine, which change no image and no step."""
    own = {*(f"config.data.{option}" for option in MACHINE), *(f"run.{option}" for option in OWN)}
    return name in own or f"config.{name}" in own


def finished_record(folder: Path, experiment: Experiment) -> dict[str, Any]:
    """The record of a finished run; ValueError if it is none of this experiment."""
    finished, record = read_record(folder / "result.json")
    theirs, ours = (flat_options(to_json(e)) for e in (finished, experiment))
    if names := differing(theirs, ours, "now"):
        raise ValueError(f"{folder} has the result of a run with {names}: remove it")
    return record


def flat_options(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The options of a nested configuration by name, as in {"optimizer.gamma": "0.001"}."""
    options: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, dict)
        options |= flat_options(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return options
