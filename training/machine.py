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
