"""Lines on standard output and standard error; closed ones do not end a run."""

import os
import sys
from typing import TextIO


def say(text: str) -> None:
    """Prints a line, also if standard output is closed, as of `train.py | head -1`."""
    _print(text, sys.stdout)


def warn(text: str) -> None:
    """Prints a line on standard error, also if it is closed, as of `train.py 2>&1 | tee log`."""
    _print(text, sys.stderr)


def _print(text: str, stream: TextIO | None) -> None:
    if stream is None:  # closed since the start
        return
    try:
        print(text, file=stream, flush=True)
    except UnicodeEncodeError:
        _print(text.encode("ascii", "backslashreplace").decode(), stream)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
