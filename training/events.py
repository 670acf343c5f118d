"""Metrics for TensorBoard, written at once: SummaryWriter's thread loses an error of the disk."""

import time
from pathlib import Path
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

Event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]


class Events:
    """A new file of events in a run's folder.

    Args:
        folder: the run's folder.
        first_epoch: TensorBoard drops what older files of the folder have from this epoch on.
    """

    def __init__(self, folder: Path, first_epoch: int):
        self._writer = EventsWriter(str(folder / "events"))
        event = Event(wall_time=time.time(), step=first_epoch)
        event.session_log.status = event.session_log.START
        self._writer.write_event(event)

    def add(self, metrics: dict[str, Any]) -> None:
        """Writes the numbers of an epoch; their names have a slash between the levels."""
        event = Event(wall_time=time.time(), step=metrics["epoch"])
        for path, number in jax.tree_util.tree_leaves_with_path(metrics):
            tag = jax.tree_util.keystr(path, simple=True, separator="/")
            event.summary.value.add(tag=tag, simple_value=number)
        self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
