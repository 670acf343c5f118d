"""The processes of a run on several hosts: they start together, agree, and end together.

Process 0 alone writes files and prints. In a program of one process all of this does nothing.
"""

import atexit
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # no public way to the key-value store; Orbax and Flax use it, too
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from training.messages import warn

HEARTBEAT = 30  # seconds without a sign of life after which JAX ends all processes
PATIENCE = 3600  # seconds to wait for a process that is slower than this one
FAREWELL = 2  # seconds for the others to learn why a process ends
POLL = 0.2  # seconds from one look for such a message to the next
END = "bop_optax/end"
_gatherings = itertools.count()
_joined = threading.Event()


@dataclass(frozen=True)
class HostConfig:
    """The processes of one run. On SLURM, Open MPI 4, GKE and TPU pods there is nothing to give."""

    coordinator: str | None = None
    """HOST:PORT at which process 0 listens for the others; any free port of its host. Default: as
    SLURM, Open MPI 4, GKE or the TPU pod says, else there is one process."""
    num_processes: int | None = None
    """Number of processes, of all hosts together."""
    process_id: int | None = None
    """Number of this process, from 0."""

    def __post_init__(self):
        given = (self.coordinator, self.num_processes, self.process_id)
        if self.coordinator is None or self.num_processes is None or self.process_id is None:
            if any(value is not None for value in given):
                raise ValueError(
                    "--coordinator, --num-processes and --process-id must be given together"
                )
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f"--coordinator must be HOST:PORT, got {self.coordinator}")
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"--process-id must be from 0 to --num-processes − 1, got {self.process_id} "
                f"of {self.num_processes}"
            )


def connect(config: HostConfig = HostConfig()) -> None:
    """Joins the processes of a run; call it before JAX looks for devices.

    Raises:
        ValueError: if they cannot be joined.
    """
    if config.coordinator is None and not _has_launcher():
        return
    names = ("coordinator", "num_processes", "process_id")
    address, number, process = (getattr(config, name) for name in names)
    note = threading.Timer(10, warn, ["Waiting for the other processes of the run ..."])
    note.daemon = True
    note.start()
    try:
        jax.distributed.initialize(address, number, process, heartbeat_timeout_seconds=HEARTBEAT)
    except ValueError as error:
        if "coordinator_address" not in str(error):  # which says that JAX found no other process
            raise
        return
    except RuntimeError as error:
        raise ValueError(f"The processes cannot be joined: {error}") from error
    finally:
        note.cancel()
    _joined.set()
    leave = threading.Event()
    listener = threading.Thread(target=_end_with_others, args=[leave], daemon=True)
    listener.start()
    atexit.register(lambda: (leave.set(), listener.join()))
    stdout = sys.stdout and os.dup(sys.stdout.fileno())  # None if it is closed
    if stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Gloo prints there
    _join_devices()
    if stdout and is_first():
        os.dup2(stdout, sys.stdout.fileno())


def _join_devices() -> None:
    """Lets all processes agree and all devices add up a number, while they are at one point.

    Gloo, for CPUs, connects devices at their first common operation, and waits 30 seconds for the
    last of them; in later operations it waits long.
    """
    number = len(all_devices())
    agreed(0)
    everything = jax.make_mesh((number,), ("all",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(everything, PartitionSpec("all"))
    ones = jax.make_array_from_callback((number,), sharding, lambda _: np.ones(1))
    jax.block_until_ready(jax.jit(jnp.sum)(ones))


def all_devices() -> list[Any]:
    """The devices of all processes; ValueError if this one has none."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: no GPU for JAX_PLATFORMS=cuda
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise ValueError(f"JAX finds no device of JAX_PLATFORMS={platforms!r} ({error})") from error


def _has_launcher() -> bool:
    """Whether one of the launchers that JAX knows started several processes."""
    if "SLURM_STEP_NODELIST" in os.environ:
        return int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if "OMPI_MCA_orte_hnp_uri" in os.environ:
        return int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    if "JOB_COMPLETION_INDEX" in os.environ:  # of Kubernetes
        return find_spec("kubernetes") is not None
    return find_spec("libtpu") is not None


# ---- Agreement: every process makes these calls, in the same order -------------------------------


def is_first() -> bool:
    """True in process 0, which writes and prints for all."""
    return _process_id() == 0


def are_several() -> bool:
    """True if this run has other processes; it starts no device, as `jax.process_count` does."""
    return distributed.global_state.num_processes > 1


def gather(value: Any, seconds: float = PATIENCE) -> list[Any]:
    """The JSON values of all processes, in their order.

    Raises:
        TimeoutError: if a process does not give one within so many seconds.
        ConnectionError: if process 0 is gone.
    """
    if not are_several():
        return [value]
    client, name = distributed.global_state.client, f"bop_optax/{next(_gatherings)}"
    assert client is not None
    values = []
    try:
        client.key_value_set(f"{name}/{_process_id()}", json.dumps(value))
        for process in range(distributed.global_state.num_processes):
            text = client.blocking_key_value_get(f"{name}/{process}", int(1000 * seconds))
            values.append(json.loads(text))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error):
            late = f"process {len(values)} gave no answer for {seconds:g} s"
            raise TimeoutError(late) from error
        raise ConnectionError(f"process 0 is gone ({error})") from error
    return values


def first_fault(fault: str | None, seconds: float = PATIENCE) -> str | None:
    """The fault of the first process that has one, else None; raises as `gather`."""
    return next(filter(None, gather(fault, seconds)), None)


def from_first(make: Callable[[], Any]) -> Any:
    """A JSON value that process 0 makes, for all."""
    return gather(make() if is_first() else None)[0]


def wait_for_all() -> None:
    """Waits until every process calls it."""
    gather(None)


def agreed(number: int) -> int:
    """The largest number of all processes."""
    return int(np.max(process_allgather(np.int32(number)))) if are_several() else number


# ---- The end -------------------------------------------------------------------------------------


def announce(message: str, status: int = 1) -> None:
    """Tells the other processes why this one ends, alone, and so ends them, too.

    Returns when all know it, at the latest after some seconds: one may be killed, or hang.
    """
    if _joined.is_set():
        teller = threading.Thread(target=_tell, args=[message, status], daemon=True)
        teller.start()
        teller.join(FAREWELL)


def _tell(message: str, status: int) -> None:
    client: Any = distributed.global_state.client
    with suppress(Exception):  # another one was first, or process 0 is gone
        client.key_value_set(END, json.dumps([_process_id(), status, message]))
    _until_all_know(client)


def _end_with_others(leave: threading.Event) -> None:
    """Ends this process when another one announces its end."""
    client: Any = distributed.global_state.client
    while not leave.wait(POLL):
        with suppress(jax.errors.JaxRuntimeError):  # there is no announcement
            process, status, message = json.loads(client.key_value_try_get(END))
            if process == _process_id():
                return
            warn(f"Process {process} ended: {message}")
            _until_all_know(client)
            os._exit(status)


def _until_all_know(client: Any) -> None:
    """Waits until every process knows the cause; process 0, which they ask, ends last."""
    with suppress(Exception):  # one was killed
        client.wait_at_barrier(END, int(1000 * FAREWELL))
    if _process_id() == 0:
        time.sleep(POLL)


def _process_id() -> int:
    """`jax.process_index()`, which would start the backends."""
    return distributed.global_state.process_id
