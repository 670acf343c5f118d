"""The machine that a process runs on: its cores and the user's cache folder."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`bop_optax` in `$XDG_CACHE_HOME`, else in ~/.cache, which `Path.expanduser` finds."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "bop_optax")


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def expanded(path: Path | str) -> Path:
    """The path with the user's home in place of ~.

    Raises:
        ValueError: for a user who has no home here, and for a path that no file can have.
    """
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r} holds a null byte: no file has such a name")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: there is no such home: write the folder without ~") from error
