"""The checkpoints of a run, each with a checksum of every array."""

import errno
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding

from bop_optax import check_binary
from training import hosts
from training.checksums import checksums
from training.devices import replicated

Tree = TypeVar("Tree")
CHECKSUMS = "checksums"  # the array in a checkpoint that holds them
WAIT = 30  # seconds for the other processes to say whether they could read a checkpoint
MARGIN = 2**20  # bytes for its description, and for the other files of a run


class DamagedCheckpoint(Exception):
    """A checkpoint that is not as it was saved, or not one of a sound run."""


class Checkpoints:
    """The checkpoints in a run's folder, by step.

    Args:
        folder: where they lie, one folder for each step. It is made if need be.
        keep: number of checkpoints that are kept, the newest ones. None: they are only read.
    """

    def __init__(self, folder: Path, keep: int | None = None):
        for name in ("absl", "asyncio"):  # Orbax raises its errors, too
            logging.getLogger(name).setLevel(logging.CRITICAL)
        sys.unraisablehook = _unraisable
        self._folder = folder
        self._manager = ocp.CheckpointManager(
            folder,
            item_handlers=ocp.StandardCheckpointHandler(),  # not guessed from what lies there
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=keep is not None, read_only=keep is None
            ),
        )

    def steps(self) -> list[int]:
        """The steps of all checkpoints, the newest first."""
        return hosts.from_first(lambda: sorted(self._manager.all_steps(), reverse=True))

    def save(self, state: Any, step: int) -> None:
        """Starts to write a checkpoint; returns when `state` may be donated to the next step.

        Raises:
            OSError: if this checkpoint, or the one before, could not be written.
        """
        if step != self._manager.latest_step():
            arrays = jax.tree.map(jnp.copy, leaves_by_name(state)[0])
            arrays[CHECKSUMS] = checksums(arrays)
            needed = sum(array.nbytes for array in arrays.values())
            if shutil.disk_usage(self._folder).free < needed + MARGIN:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
            with self._writing():
                self._manager.save(step, args=ocp.args.StandardSave(arrays), force=True)

    def read(self, step: int, template: dict[str, Any] | None = None) -> dict[str, jax.Array]:
        """Reads the arrays of a checkpoint by name.

        Args:
            step: one of `steps()`.
            template: shapes, dtypes and shardings. None: as saved, on the first device.

        Raises:
            DamagedCheckpoint: for a checkpoint that cannot be read, or with another checksum.
        """
        arrays = self._arrays(step, template)
        expected, found = np.asarray(arrays.pop(CHECKSUMS)), np.asarray(checksums(arrays))
        fault = None
        if len(found) != len(expected):
            fault = f"it has {len(found)} arrays, not {len(expected)}"
        elif (found != expected).any():
            names = np.array(sorted(arrays))[found != expected]
            fault = f"the checksum of {', '.join(names[:3])} is another"
        if first := hosts.first_fault(fault):  # before all processes compute anything together
            raise DamagedCheckpoint(first)
        return arrays

    def _arrays(self, step: int, template: dict[str, Any] | None) -> dict[str, Any]:
        """The arrays and their checksums; every process of a run calls it, and all get an error.

        Raises:
            OSError: if this process alone cannot read them, and the others wait for it.
        """
        arrays: Any = {}
        try:
            if template is None:
                here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
                saved: Any = self._manager.item_metadata(step)
                template = {k: _shape(x.shape, x.dtype, here) for k, x in saved.items()}
            else:
                number = _shape((len(template),), jnp.uint32, _of_all(template))
                template = template | {CHECKSUMS: number}
            arrays = self._manager.restore(step, args=ocp.args.StandardRestore(template))
            fault = None if CHECKSUMS in arrays else "it has no checksums"
        except Exception as error:  # Orbax and TensorStore raise their own
            fault = str(error).partition("\n")[0] or repr(error)
        try:
            first = hosts.first_fault(fault, *([WAIT] if fault else []))
        except TimeoutError as error:
            raise OSError(f"{self._folder / str(step)} cannot be read here ({fault})") from error
        if first:
            raise DamagedCheckpoint(first)
        return arrays

    def restore(self, step: int, state: Tree) -> Tree:
        """Reads a checkpoint of a training state.

        Args:
            step: one of `steps()`.
            state: a state whose shapes, dtypes and shardings it gets.

        Raises:
            DamagedCheckpoint: as `read`; for the state of another step; for numbers that are not
                finite, and for binary kernels that are not ±α.
        """
        flat, treedef = leaves_by_name(state)
        arrays = self.read(step, jax.tree.map(ocp.utils.to_shape_dtype_struct, flat))
        restored: Any = treedef.unflatten([arrays[name] for name in flat])
        if np.any(restored.step != step):
            raise DamagedCheckpoint(f"it is the state of step {np.max(restored.step)}")
        real = [n for n, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)]
        if names := [name for name in real if not jnp.isfinite(arrays[name]).all()]:
            raise DamagedCheckpoint(f"{', '.join(names[:3])} is not finite")
        try:
            for params in _networks(restored):
                check_binary(params)
        except ValueError as error:
            raise DamagedCheckpoint(str(error).partition(";")[0]) from error
        return restored

    def set_aside(self, step: int) -> str:
        """Renames a damaged checkpoint, so that it is none of `steps()`; returns its new name."""

        def rename() -> str:
            names = chain([f"damaged-{step}"], (f"damaged-{step}-{n}" for n in count(2)))
            name = next(name for name in names if not (self._folder / name).exists())
            (self._folder / str(step)).rename(self._folder / name)
            return name

        name = hosts.from_first(rename)
        self._manager.reload()
        return name

    def close(self) -> None:
        """Waits for unfinished checkpoints.

        Raises:
            OSError: if one could not be written.
        """
        with self._writing():
            self._manager.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns the errors of Orbax and TensorStore, maybe of a save before, into an OSError."""
        try:
            yield
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise OSError(f"{self._folder} cannot be written ({reason})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shape(shape: Any, dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _of_all(template: dict[str, Any]) -> Any:
    """The sharding of an array that is as a whole on each device of the template."""
    sharding = next(iter(template.values())).sharding
    named = isinstance(sharding, NamedSharding)
    return replicated(cast(Mesh, sharding.mesh)) if named else sharding


def _unraisable(unraisable: Any) -> None:
    """Hides what Orbax and TensorStore report of other reads and writes when one has failed."""
    code = getattr(unraisable.object, "cr_code", None)  # of a coroutine
    of_orbax = code is not None and "orbax" in Path(code.co_filename).parts
    if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def leaves_by_name(state: Any) -> tuple[dict[str, jax.Array], Any]:
    """Leaves by name: a checkpoint's format, which needs neither Flax nor Optax to be read."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in flat}, treedef


def _networks(state: Any) -> list[Any]:
    """The parameters of each network in a state, which may be of several stacked ones."""
    if not state.step.ndim:
        return [state.params]
    return [jax.tree.map(lambda x, i=i: x[i], state.params) for i in range(len(state.step))]
