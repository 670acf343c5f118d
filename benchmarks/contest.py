"""Measures workers in turn, round after round, so that all of them see the same machine."""

import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
MOST_STEPS = 10_000  # of one measurement


class WorkerError(Exception):
    """A worker failed or ended."""


class Task(NamedTuple):
    """One worker's part in a comparison.

    Attributes:
        command: starts the worker.
        job: the job that the worker sets up. None: the command itself is the work.
        options: of the job.
        environment: variables to add to those of this process.
    """

    command: Sequence[str]
    job: str | None
    options: Mapping[str, Any] = {}
    environment: Mapping[str, str] = {}


class Measured(NamedTuple):
    """What was measured of one task.

    Attributes:
        seconds: of one step, for each round.
        facts: what the job answered to its setup.
        results: what the last step of each round returned.
        error: why a round is missing, or None.
    """

    seconds: list[float]
    facts: dict[str, Any]
    results: list[dict[str, Any]]
    error: str | None = None


class Worker:
    """A process that serves one job; a context manager that ends it."""

    def __init__(self, task: Task):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            task.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(task.environment),
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for the answer.

        Raises:
            WorkerError: for an answer that is an error, and for a worker that ended.
        """
        process: Any = self._process
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"ended with status {process.wait()}: {self._last_error()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def result(self) -> dict[str, Any]:
        """Waits for the end of a command; returns the JSON in its last line.

        Raises:
            WorkerError: for a command that fails.
        """
        output, _ = self._process.communicate()
        if self._process.returncode:
            status = self._process.returncode
            raise WorkerError(f"ended with status {status}: {self._last_error()}")
        return json.loads(output.strip().splitlines()[-1])

    def _last_error(self) -> str:
        self._errors.seek(0)
        return (self._errors.read().strip().splitlines() or ["no message"])[-1]


def interleave(tasks: Mapping[str, Task], repeats: int, seconds: float) -> dict[str, Measured]:
    """Measures a step of each task, in turn; if a worker fails, the others go on.

    Args:
        tasks: by name.
        repeats: number of rounds.
        seconds: the least time of one measurement; the number of its steps follows from it.
    """
    measured = {name: Measured([], {}, []) for name in tasks}
    steps = dict.fromkeys(tasks, 1)
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}

        def run(name: str, number: int) -> tuple[float, dict[str, Any]] | None:
            try:
                answer = workers[name].ask(run=number)
                return answer.pop("seconds") / number, answer
            except WorkerError as error:
                measured[name] = measured[name]._replace(error=str(error))
                del workers[name]

        for name, task in tasks.items():
            workers[name] = stack.enter_context(Worker(task))
            try:
                facts = workers[name].ask(job=task.job, options=task.options)
                measured[name].facts.update(facts)
            except WorkerError as error:
                measured[name] = measured[name]._replace(error=str(error))
                del workers[name]
                continue
            if run(name, 1) and (second := run(name, 1)):  # the first run compiles
                steps[name] = max(1, min(MOST_STEPS, math.ceil(seconds / max(second[0], 1e-9))))
        for _ in range(repeats):
            for name in list(workers):
                if done := run(name, steps[name]):
                    measured[name].seconds.append(done[0])
                    measured[name].results.append(done[1])
    return measured


def whole_processes(tasks: Mapping[str, Sequence[Task]], runs: int) -> dict[str, Measured]:
    """Measures whole processes in turn, from their start to the last answer.

    Args:
        tasks: by name; one for each round.
        runs: requests for one step that each process gets.
    """
    measured = {name: Measured([], {}, []) for name in tasks}
    for name, task in (
        (n, own[i]) for i in range(max(map(len, tasks.values()))) for n, own in tasks.items()
    ):
        start = time.perf_counter()
        try:
            with Worker(task) as worker:
                if task.job is None:
                    result = worker.result()
                else:
                    measured[name].facts.update(worker.ask(job=task.job, options=task.options))
                    result = {}
                    for _ in range(runs):
                        result = worker.ask(run=1)
                seconds = time.perf_counter() - start
        except WorkerError as error:
            measured[name] = measured[name]._replace(error=str(error))
        else:
            measured[name].seconds.append(seconds)
            measured[name].results.append(result)
    return measured
