"""The devices of a run: their mesh, and their copies of the training state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from training import hosts
from training.checksums import checksums
from training.interrupt import Stopped


def device_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh whose one axis, "batch", divides the images among the devices. None: all devices.

    Raises:
        ValueError: if JAX finds no device.
    """
    devices = devices or hosts.all_devices()
    return jax.make_mesh((len(devices),), ("batch",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array of which each device of the mesh has a copy.

    A training state has it from the start; without it a step compiles twice.
    """
    return NamedSharding(mesh, PartitionSpec())


def divided(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The sharding of an array that the devices divide along its largest dimension, if they can."""
    axes: list[str | None] = [None] * len(shape)
    sizes = {size: axis for axis, size in enumerate(shape) if size % mesh.size == 0 and size}
    if sizes:
        axes[sizes[max(sizes)]] = "batch"
    return NamedSharding(mesh, PartitionSpec(*axes))


def compare_replicas(arrays: dict[str, jax.Array], step: int, folder: Path) -> None:
    """Compares the copies that the devices of all hosts have of each array, by their checksums.

    Args:
        arrays: arrays of a training state by name.
        step: number of the steps that led to it.
        folder: the run's.

    Raises:
        Stopped: if a bit differs, as after a fault of a device or of the network.
    """
    if all(array.sharding.num_devices == 1 for array in arrays.values()):
        return
    found = np.stack([np.asarray(s.data) for s in checksums(arrays).addressable_shards])
    if hosts.are_several():
        found = np.concatenate(process_allgather(found))
    differ = np.any(found != found[0], axis=0)
    if names := [name for name, differs in zip(sorted(arrays), differ, strict=True) if differs]:
        raise Stopped(
            f"The devices' copies of {', '.join(names[:3])} differ at step {step}, as after a "
            "fault of a device or of the network: stopped.",
            folder=folder,
        )
