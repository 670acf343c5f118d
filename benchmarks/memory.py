"""How much memory one training step takes, from the compiled program: nothing is trained.

    python benchmarks/memory.py                   # each ImageNet network at batch 256
    python benchmarks/memory.py --target h100     # without one: needs the extra cuda
    python benchmarks/memory.py --out FILE.json

The numbers are XLA's own, for the kind of device that is here or for an NVIDIA H100. Without the
card XLA cannot time kernels to choose among them: the ones chosen on it may take more memory.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

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


# What XLA wants to know of a GPU that is not there; the figures are NVIDIA's.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  device_memory_size: 84929347584
}
platform_name: "CUDA"
runtime_version { major: 13 }
dnn_version_info { major: 9 minor: 28 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def absent_h100() -> Any:
    """A device that programs can be compiled for, not run on."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # which asks the driver
    try:
        topology = topologies.get_topology_desc(
            "h100", platform="cuda", topology="1x1x1", target_config=H100
        )
    except NotImplementedError:
        sys.exit("memory.py: --target h100 needs JAX for CUDA: pip install -e '.[cuda]'")
    return topology.devices[0]


def step_memory(preset: str, batch_size: int, target: Any = None) -> dict[str, int]:
    """Bytes of one step: of the state, which stays, and at its peak with all that it computes."""
    config = replace(PRESETS[preset][1], batch_size=batch_size)
    program, state = build(config, IMAGENET, jax.devices()[:1])
    images = jax.ShapeDtypeStruct((batch_size, *IMAGENET.image_shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    arguments = (state, (images, labels))
    step = jax.jit(make_train_step(program, config), donate_argnums=0)
    if target is None:
        compiled = step.lower(*arguments).compile()
    else:
        place = SingleDeviceSharding(target)
        arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments
        )
        lowered = step.trace(*arguments).lower(lowering_platforms=("cuda",))
        compiled = lowered.compile(compiler_options={"xla_gpu_autotune_level": "0"})
    analysis: Any = compiled.memory_analysis()
    taken, given = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    return {
        "state": sum(x.nbytes for x in jax.tree.leaves(state)),
        "total": taken + given - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes,
    }


def main(
    batch_size: int = 256, target: Literal["here", "h100"] = "here", out: Path | None = None
) -> None:
    """Compiles a training step of each network and prints the memory it needs.

    Args:
        batch_size: Images a step.
        target: The device to compile for.
        out: File to write the numbers to, as JSON.
    """
    if batch_size < 1:
        sys.exit(f"memory.py: --batch-size must be at least 1, got {batch_size}")
    device = absent_h100() if target == "h100" else None
    networks = {}
    for name, preset in NETWORKS.items():
        networks[name] = memory = step_memory(preset, batch_size, device)
        sizes = (f"{key} {size / 2**30:.2f} GiB" for key, size in memory.items())
        print(name, *sizes, sep=", ", flush=True)
    if out:
        known = describe(PRESETS[NETWORKS["Bi-Real Net-18"]][1], "")
        record = {key: known[key] for key in ("versions", "device", "git_commit", "git_dirty")}
        if device:
            record["device"] = {"kind": f"{device.device_kind}, absent"}
        command = f"python benchmarks/memory.py --batch-size {batch_size} --target {target}"
        record |= {"command": command, "batch_size": batch_size, "bytes": networks}
        out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
