"""How much memory one training step takes, from the compiled program: nothing is trained.

    python -m benchmarks.memory                   # each ImageNet network at batch 256
    python -m benchmarks.memory --target h100     # an absent card; needs the extra cuda
    python -m benchmarks.memory --out FILE.json

The numbers are XLA's own, for the device of this machine or for an NVIDIA H100. Without the card
XLA cannot time kernels to choose among them: the ones chosen on the card may take more memory.
"""

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
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from bop_optax.processor import traced_for
from experiments.presets import PRESETS
from train import make_optimizer, make_train_step
from training.config import Experiment
from training.data import Batch
from training.devices import replicated
from training.network import first_state, make_network, state_shardings
from training.records import describe_origin, write_json

NETWORKS = {
    "Bi-Real Net-18": "imagenet-birealnet-bop",
    "Binary AlexNet": "imagenet-alexnet-bop-released",
    "XNOR-Net": "imagenet-xnornet-bop-released",
}
STEPS_PER_EPOCH = 5004
MOST_IMAGES = 2**31 // (224 * 224 * 3)
IMAGENET: Any = SimpleNamespace(
    num_classes=1000,
    image_shape=(224, 224, 3),
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
)
# What XLA needs to know of an absent GPU; the figures are NVIDIA's.
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
    """A device that programs can be compiled for, but not run on."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # which asks the driver
    try:
        topology = topologies.get_topology_desc(
            "h100", platform="cuda", topology="1x1x1", target_config=H100
        )
    except NotImplementedError:
        sys.exit("benchmarks.memory: --target h100 needs JAX for CUDA: pip install -e '.[cuda]'")
    return topology.devices[0]


def abstract_step(
    experiment: Experiment, data: Any, mesh: Mesh | None = None, divide: bool = False
) -> tuple[Any, tuple[Any, ...]]:
    """A jitted training step, and the shapes of its arguments.

    Args:
        experiment: what is trained.
        data: shape, classes, mean and standard deviation of its images.
        mesh: the devices that share a batch. None: one device.
        divide: whether they divide the averages of the optimizers, as `--shard-averages`.
    """
    network = make_network(experiment, data)
    optimizer = make_optimizer(experiment, network.labels, STEPS_PER_EPOCH)
    state = jax.eval_shape(lambda: first_state(network, optimizer, 0))
    number = experiment.step_images
    batch = Batch(
        jax.ShapeDtypeStruct((number, *data.image_shape), jnp.uint8),
        jax.ShapeDtypeStruct((number,), jnp.int32),
        jax.ShapeDtypeStruct((number,), jnp.bool_),
    )
    shardings = None
    if mesh is not None:
        shardings = state_shardings(network, optimizer, mesh, divide)
        state = jax.tree.map(with_sharding, state, shardings)
        by_batch = NamedSharding(mesh, PartitionSpec("batch"))
        batch = jax.tree.map(lambda x: with_sharding(x, by_batch), batch)
    source = SimpleNamespace(steps_per_epoch=STEPS_PER_EPOCH)
    step = make_train_step(experiment, network, source, mesh and replicated(mesh))
    arguments = (state, batch, jax.eval_shape(lambda: jax.random.key(0)), {})
    out_shardings = shardings and (shardings, None)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings), arguments


def with_sharding(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def step_memory(preset: str, batch_size: int, target: Any = None) -> dict[str, int]:
    """Bytes of one step: of the state, which stays, and of everything at the peak."""
    experiment = replace(PRESETS[preset][1], batch_size=batch_size)
    step, arguments = abstract_step(experiment, IMAGENET)
    if target is None:
        compiled = step.lower(*arguments).compile()
    else:
        place = SingleDeviceSharding(target)
        arguments = jax.tree.map(lambda x: with_sharding(x, place), arguments)
        with traced_for("cuda"):
            lowered = step.trace(*arguments).lower(lowering_platforms=("cuda",))
        compiled = lowered.compile(compiler_options={"xla_gpu_autotune_level": "0"})
    analysis: Any = compiled.memory_analysis()
    taken, given = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    state = jax.tree.leaves(arguments[0])
    return {
        "state": sum(x.size * x.dtype.itemsize for x in state),
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
        sys.exit(f"benchmarks.memory: --batch-size must be at least 1, got {batch_size}")
    if batch_size > MOST_IMAGES:
        most = f"at most {MOST_IMAGES}, since XLA counts in 32 bits"
        sys.exit(f"benchmarks.memory: --batch-size must be {most}, got {batch_size}")
    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        sys.exit(f"benchmarks.memory: --out must be a file in a folder that exists, got {out}")
    device = absent_h100() if target == "h100" else None
    networks = {}
    for name, preset in NETWORKS.items():
        networks[name] = memory = step_memory(preset, batch_size, device)
        sizes = (f"{key} {size / 2**30:.2f} GiB" for key, size in memory.items())
        print(name, *sizes, sep=", ", flush=True)
    if out:
        record = describe_origin()
        if device:
            record["device"] = {"kind": f"{device.device_kind}, absent"}
        command = f"python -m benchmarks.memory --batch-size {batch_size} --target {target}"
        record |= {"command": command, "batch_size": batch_size, "bytes": networks}
        write_json(out, record)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.memory")
