"""The machine that a process runs on: its processor, its cores, the user's cache folder."""

import os
from functools import cache
from pathlib import Path


def cache_folder() -> Path:
    """`bop_optax` in `$XDG_CACHE_HOME`, else in ~/.cache, which `Path.expanduser` finds."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "bop_optax")


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """What Linux says of the first core, as in {"model name": ..., "flags": ...}; else {}."""
    entries: dict[str, str] = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            entries.setdefault(key.strip(), value.strip())
    return entries


def instructions(entries: dict[str, str]) -> str:
    """The instruction sets of a `processor`: x86 calls them flags, ARM features."""
    return entries.get("flags") or entries.get("Features") or ""


@cache
def compiler_options() -> dict[str, int]:
    """Options of XLA for this processor: 512-bit vectors if it can count their bits.

    XLA prefers 256 bits otherwise.
    """
    wide = "avx512_vpopcntdq" in instructions(processor()).split()
    return {"xla_cpu_prefer_vector_width": 512} if wide else {}


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
