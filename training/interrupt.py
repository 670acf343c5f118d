"""A thread handles Ctrl-C and SIGTERM, so that they work while XLA compiles too.

The process saves and ends. If it does not within `Interrupt.deadline` seconds, as in a collective
whose other hosts are gone, it ends without a checkpoint.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from training.messages import warn

Item = TypeVar("Item")
SIGNALS = {signal.SIGINT, signal.SIGTERM}


class Stopped(Exception):
    """A run that ended before its last epoch.

    Attributes:
        status: exit status of the process: 128 + the signal, or 1.
        folder: the run's folder, if the run can be resumed.
        alone: True if the other processes of the run know nothing of it.
    """

    def __init__(
        self, message: str, status: int = 1, folder: Path | None = None, alone: bool = False
    ):
        super().__init__(message)
        self.status, self.folder, self.alone = status, folder, alone


def before_each(check: Callable[[], None], items: Iterable[Item]) -> Iterator[Item]:
    """Yields items, and calls `check` before each."""
    for item in items:
        check()
        yield item


class Interrupt:
    """The first signal asks a run to save and stop; a second one ends the process at once.

    An object that does not `watch` never sees a signal: Python's own handlers stay in place.

    Attributes:
        number: the signal that arrived, 0 before.
        can_save: False while a run has nothing to save; a signal then ends the process at once.
        deadline: seconds from the first signal to the end of the process, at most.
        announce: tells the other processes of the run why this one ends at once.
    """

    def __init__(self):
        self.number = 0
        self.can_save = False
        self.deadline = 120.0
        self.announce: Callable[[str, int], None] = lambda message, status: None
        self._since = 0.0

    def watch(self) -> "Interrupt":
        """Blocks the signals in all threads but a new one, which waits for them; returns itself.

        Call it before JAX is imported: threads inherit the mask, and a thread without it would take
        the signal.
        """
        for number in SIGNALS:  # for a thread that a library unblocks, as multiprocessing does
            signal.signal(number, lambda number, _: self._receive(number))
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=self._wait, daemon=True).start()
        return self

    def _wait(self) -> None:
        while True:
            self._receive(signal.sigwait(SIGNALS))

    def _receive(self, number: int) -> None:
        if self.number and time.monotonic() - self._since < 1:
            return  # a supervisor may signal the process, and then its group
        if self.number or not self.can_save:
            self._end(number, "Stopped at once, without a checkpoint.")
        self.number, self._since = number, time.monotonic()
        message = f"Nothing ended within {self.deadline:g} s: stopped, without a checkpoint."
        late = threading.Timer(self.deadline, self._end, [number, message])
        late.daemon = True
        late.start()
        warn(
            "\nStopping after the steps already started. "
            "A second signal stops at once, without a checkpoint."
        )

    def _end(self, number: int, message: str) -> None:
        warn(f"\n{message}")
        self.announce(message, 128 + number)
        os._exit(128 + number)
