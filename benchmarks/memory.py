"""How much memory one training step takes, from the compiled program: nothing is trained.

    python benchmarks/memory.py                   # each ImageNet network at batch 256
    python benchmarks/memory.py --out FILE.json

The numbers are XLA's own, for the kind of device that it compiles for here.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments import PRESETS
from networks import build
from runs import describe
from train import make_train_step

NETWORKS = {
    "Bi-Real Net-18": "imagenet-birealnet-bop",
    "Binary AlexNet": "imagenet-alexnet-bop-released",
    "XNOR-Net": "imagenet-xnornet-bop-released",
}
IMAGENET: Any = SimpleNamespace(
    num_train=1_281_167,
    num_classes=1000,
    image_shape=(224, 224, 3),
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
)


def step_memory(preset: str, batch_size: int) -> dict[str, int]:
    """Bytes of one step: of the state, which stays, and at its peak with all that it computes."""
    config = replace(PRESETS[preset][1], batch_size=batch_size)
    program, state = build(config, IMAGENET, jax.devices()[:1])
    images = jax.ShapeDtypeStruct((batch_size, *IMAGENET.image_shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    step = jax.jit(make_train_step(program, config), donate_argnums=0)
    analysis: Any = step.lower(state, (images, labels)).compile().memory_analysis()
    arguments, outputs = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    return {
        "state": sum(x.nbytes for x in jax.tree.leaves(state)),
        "total": arguments + outputs - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes,
    }


def main(batch_size: int = 256, out: Path | None = None) -> None:
    """Compiles a training step of each network and prints the memory it needs.

    Args:
        batch_size: Images a step.
        out: File to write the numbers to, as JSON.
    """
    networks = {name: step_memory(preset, batch_size) for name, preset in NETWORKS.items()}
    for name, memory in networks.items():
        print(name, *(f"{key} {size / 2**30:.2f} GiB" for key, size in memory.items()), sep=", ")
    if out:
        known = describe(PRESETS[NETWORKS["Bi-Real Net-18"]][1], "")
        record = {key: known[key] for key in ("versions", "device", "git_commit", "git_dirty")}
        command = f"python benchmarks/memory.py --batch-size {batch_size}"
        record |= {"command": command, "batch_size": batch_size, "bytes": networks}
        out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
