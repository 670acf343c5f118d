"""The folder of a run: made, or found; and the options that the run in it must share."""

import itertools
import time
from pathlib import Path
from typing import Any

from training.config import RunConfig
from training.machine import expanded
from training.records import MACHINE


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
    """Whether a folder has more than what a process leaves that is killed at its start."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return any(file.suffix != ".tmp" and file.name != ".lock" for file in files)


def may_differ(name: str) -> bool:
    """True for the options of a machine, which change no image."""
    return name.removeprefix("config.") in {f"data.{option}" for option in MACHINE}


def flat_options(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The options of a nested configuration by name, as in {"optimizer.gamma": "0.001"}."""
    options: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, dict)
        options |= flat_options(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return options
