"""What the devices exchange in one training step, from the compiled program: nothing is trained.

    python -m benchmarks.collectives                    # BinaryNet and Bi-Real Net-18, 8 devices
    python -m benchmarks.collectives --shard-averages
    python -m benchmarks.collectives --out FILE.json

The devices are simulated on a CPU. A byte counts once, as it lies in the operation's result: how
often it crosses the network depends on the algorithm (twice, nearly, in a ring's all-reduce).
"""

import re
import sys
from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import tyro

from benchmarks.memory import IMAGENET, abstract_step
from experiments.presets import PRESETS
from training.devices import device_mesh
from training.records import describe_origin, write_json

CIFAR10: Any = SimpleNamespace(
    num_classes=10, image_shape=(32, 32, 3), mean=(0.0,) * 3, std=(1.0,) * 3
)
NETWORKS = {
    "BinaryNet": ("cifar10-bop", CIFAR10),
    "Bi-Real Net-18": ("imagenet-birealnet-bop", IMAGENET),
}
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
OPERATION = re.compile(rf"^ *(?:ROOT )?%\S+ = (.*?) ({KINDS})(?:-start)?\(", re.MULTILINE)
ARRAY = re.compile(r"\b[a-z]+(\d+)(?:e\d+m\d+\w*)?\[([\d,]*)\]")


def collectives(program: str) -> dict[str, dict[str, int]]:
    """The collective operations of a compiled program.

    Args:
        program: its text, as from `compiled.as_text()`.

    Returns:
        By kind, as in "all-reduce": number of "operations", and "bytes" of their results.

    Example:
        >>> collectives("  %a.1 = (f32[2,3]{1,0}, s32[]) all-reduce(%x, %y), channel_id=1")
        {'all-reduce': {'operations': 1, 'bytes': 28}}
    """
    numbers, sizes = Counter[str](), Counter[str]()
    for arrays, kind in OPERATION.findall(program):
        numbers[kind] += 1
        for bits, shape in ARRAY.findall(arrays):
            sizes[kind] += int(bits) // 8 * prod(int(n) for n in shape.split(",") if n)
    return {kind: {"operations": numbers[kind], "bytes": sizes[kind]} for kind in numbers}


def step_collectives(
    name: str, devices: int, images: int = 4, shard_averages: bool = False
) -> dict[str, Any]:
    """The collectives of a step of a network, and the bytes of its gradients.

    Args:
        name: one of `NETWORKS`.
        devices: devices that share a batch.
        images: images of each device. No collective depends on it.
        shard_averages: whether they divide the averages of the optimizers.
    """
    preset, data = NETWORKS[name]
    experiment = replace(PRESETS[preset][1], batch_size=images * devices)
    mesh = device_mesh(jax.devices()[:devices])
    step, arguments = abstract_step(experiment, data, mesh, shard_averages)
    found = collectives(step.lower(*arguments).compile().as_text())
    gradients = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arguments[0].params))
    return {"gradients": gradients, "collectives": found}


def main(devices: int = 8, shard_averages: bool = False, out: Path | None = None) -> None:
    """Compiles a training step of each network and prints its collective operations.

    Args:
        devices: Devices that share a batch.
        shard_averages: Divide the averages of the optimizers among the devices, as train.py does.
        out: File to write the numbers to, as JSON.
    """
    if devices < 2:
        sys.exit(f"benchmarks.collectives: --devices must be at least 2, got {devices}")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    networks = {}
    for name in NETWORKS:
        networks[name] = step = step_collectives(name, devices, shard_averages=shard_averages)
        kinds = (
            f"{kind} {n['operations']} with {n['bytes'] / 1e6:.2f} MB"
            for kind, n in step["collectives"].items()
        )
        gradients = f"gradients {step['gradients'] / 1e6:.2f} MB"
        print(name, gradients, *kinds, sep=", ", flush=True)
    if out:
        command = f"python -m benchmarks.collectives --devices {devices}"
        command += " --shard-averages" if shard_averages else ""
        record = describe_origin() | {"command": command, "networks": networks}
        write_json(out, record)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.collectives")
