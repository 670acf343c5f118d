"""The machine of a record: its processor, the instruction sets that matter here, its cores."""

import platform
from pathlib import Path
from typing import Any

from bop_optax.processor import instructions, processor
from training.machine import cores

# Of x86 and of ARM, as /proc/cpuinfo spells them.
INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("avx512_vpopcntdq", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Describes the processor; without /proc it has no list of instruction sets."""
    entries = processor(cpuinfo)
    known = instructions(cpuinfo)
    return {
        "cpu": entries.get("model name") or platform.processor() or platform.machine(),
        "family_model": [entries.get("cpu family"), entries.get("model")],
        "instructions": [name for name in INSTRUCTIONS if name in known],
        "cores": cores(),
        "platform": platform.platform(),
    }
