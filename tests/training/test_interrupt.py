"""Signals: the first is noted, a second ends the process, and one sent twice at once is one."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import signal, sys, time
from training.interrupt import Interrupt

interrupt = Interrupt().watch()
interrupt.can_save = sys.argv[1] == "can save"
if "unblocked" in sys.argv:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
if "deadline" in sys.argv:
    interrupt.deadline = 0.5
print("ready", flush=True)
time.sleep(float(sys.argv[2]))
print(interrupt.number, flush=True)
"""


def start(can_save: str, seconds: float, *more: str) -> subprocess.Popen[str]:
    pipe, command = subprocess.PIPE, [sys.executable, "-c", PROGRAM, can_save, str(seconds), *more]
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_with_nothing_to_save_ends_at_once(number):
    process = start("nothing", 60)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert errors == "\nStopped at once, without a checkpoint.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sent_twice_at_once_is_one(number):
    """As `timeout` sends it: to the process, and to its group."""
    process = start("can save", 2)
    for _ in range(2):
        process.send_signal(number)
        time.sleep(0.05)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, f"{number.value}\n")
    assert errors.count("Stopping after the steps already started.") == 1


def test_a_second_signal_ends_at_once():
    process = start("can save", 60)
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.endswith("Stopped at once, without a checkpoint.\n")


def test_a_process_that_hangs_ends_at_the_deadline():
    """As in a collective whose other hosts are gone."""
    process = start("can save", 60, "deadline")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert errors.endswith("Nothing ended within 0.5 s: stopped, without a checkpoint.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_thread_that_a_library_unblocks_does_not_end_the_process(number):
    """As multiprocessing's resource tracker does in the thread that starts it."""
    process = start("can save", 2, "unblocked")
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, f"{number.value}\n")


@pytest.mark.parametrize("more", [["nothing", "60"], ["can save", "60", "deadline"]])
def test_a_closed_standard_error_stops_no_signal(more):
    """As of `train.py 2>&1 | tee log`, whose tee ends at Ctrl-C, too."""
    with start(*more) as process:
        assert process.stderr is not None
        process.stderr.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
