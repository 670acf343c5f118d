"""Data sets and the batches that they yield: in memory, or streamed from files."""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jax.sharding import Mesh


class Batch(NamedTuple):
    """Images with labels, the one shape that every source of data yields.

    A stack of batches has a leading axis of steps on each array.

    Attributes:
        images: uint8, (batch, height, width, channels).
        labels: int32, (batch,), from 0 to the number of classes − 1.
        mask: bool, (batch,). False on padding and on images that could not be decoded.
    """

    images: Any
    labels: Any
    mask: Any


def in_flight(mesh: "Mesh") -> int:
    """Batches that may be dispatched before the first of them is done.

    Collectives of several steps in flight can starve each other on a CPU's few threads.
    """
    on_cpus = mesh.devices.flat[0].platform == "cpu"
    return 1 if on_cpus and mesh.size > 1 else 10


def check_batch_size(batch_size: int, num_train: int, mesh: "Mesh", accumulate: int = 1) -> None:
    """Raises a ValueError unless an epoch has a batch and the mesh's devices can share it.

    The batch of an update is `accumulate` times as large.
    """
    if not isinstance(batch_size, int):
        raise ValueError(f"--batch-size must be an integer, got {batch_size!r}")
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    if (whole := batch_size * accumulate) > num_train:
        raise ValueError(
            f"--batch-size must be at most the {num_train} training images, got {whole}"
        )
    if batch_size % mesh.size:
        parts = f" times the {accumulate} parts of --accumulate" if accumulate > 1 else ""
        raise ValueError(
            f"--batch-size must be a multiple of the {mesh.size} devices{parts}, got {whole}"
        )
