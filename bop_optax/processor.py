"""The processor of this machine, how XLA should compile for it, and other targets."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import jax

_target: ContextVar[str | None] = ContextVar("target", default=None)
CPUINFO = Path("/proc/cpuinfo")
PLATFORMS = ("cpu", "cuda", "gpu", "rocm", "tpu", "file")


def processor(cpuinfo: Path = CPUINFO) -> dict[str, str]:
    """What Linux says of the first core, as in {"model name": ..., "flags": ...}.

    Args:
        cpuinfo: the file that says so.

    Returns:
        The entries by name; none without the file.

    Example:
        >>> processor(Path("missing"))
        {}
    """
    return dict(_entries(cpuinfo))


def instructions(cpuinfo: Path = CPUINFO) -> list[str]:
    """Names of the processor's instruction sets, as in ["fma", "avx2", ...].

    Args:
        cpuinfo: the file that lists them.

    Returns:
        The names; none without the file.

    Example:
        >>> instructions(Path("missing"))
        []
    """
    entries = _entries(cpuinfo)
    return (entries.get("flags") or entries.get("Features") or "").split()  # x86 or ARM


@cache
def _entries(cpuinfo: Path) -> dict[str, str]:
    entries: dict[str, str] = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            entries.setdefault(key.strip(), value.strip())
    return entries


def compiler_options() -> dict[str, int]:
    """Options of XLA for one-bit products: 512-bit vectors if the CPU can count their bits.

    XLA prefers 256 bits otherwise. Other backends refuse these options.

    Example:
        >>> step = jax.jit(lambda x: x + 1, compiler_options=compiler_options())
    """
    return {"xla_cpu_prefer_vector_width": 512} if counts_words() else {}


@contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Operations that are traced inside are chosen for this platform, not for this machine's.

    It is for programs that are compiled or exported for an absent device.

    Args:
        platform: JAX's name for it: "cpu", "gpu", "cuda", "rocm" or "tpu"; "file" for a file that
            another runtime reads: convolutions, matrix products and max-pools as one operation
            each.

    Raises:
        ValueError: for another name.

    Example:
        >>> with traced_for("cuda"):
        ...     exported = jax.export.export(jax.jit(jnp.sin), platforms=["cuda"])(jnp.ones(3))
    """
    if platform not in PLATFORMS:
        raise ValueError(f"platform must be one of {', '.join(PLATFORMS)}, got {platform!r}")
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


def for_cpu() -> bool:
    """Whether products are traced for a CPU: this machine's, unless inside `traced_for`.

    Example:
        >>> with traced_for("cuda"):
        ...     for_cpu()
        False
    """
    return (_target.get() or jax.default_backend()) == "cpu"


def for_file() -> bool:
    """Whether operations are traced for a file, inside `traced_for("file")`.

    Example:
        >>> for_file()
        False
    """
    return _target.get() == "file"


def counts_words() -> bool:
    """Whether the processor counts the ones of each word of a vector by one instruction.

    Example:
        >>> isinstance(counts_words(), bool)
        True
    """
    return "avx512_vpopcntdq" in instructions()
