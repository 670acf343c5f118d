"""How the benchmark talks to its workers: lines of JSON on their standard input and output.

    {"job": "step", "options": {...}}  →  {"ready": true, ...facts of the job}
    {"run": 3}                         →  {"seconds": 1.2, ...results of the run}

A worker sets up one job, then runs as many of its steps as it is asked for. It waits in between,
so that several workers can be measured in turn. An answer {"error": "..."} ends the worker.
This file imports the standard library alone: the environments of the peers import it, too.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Job(NamedTuple):
    """What a worker does on request.

    Attributes:
        run: performs a number of steps, waits for them, returns results.
        check: raises an error if the state of the job is wrong; its time does not count.
        facts: what is known before the first step.
    """

    run: Callable[[int], dict[str, Any]]
    check: Callable[[], None] = lambda: None
    facts: Mapping[str, Any] = {}


def finite(loss: float) -> float:
    """The loss; AssertionError if it is not finite."""
    assert math.isfinite(loss), f"the loss is {loss}"
    return loss


def serve(jobs: Mapping[str, Callable[..., Job]]) -> None:
    """Answers requests until the end of the standard input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    job = Job(lambda n: {})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "job" in request:
                job = jobs[request["job"]](**request["options"])
                answer = {"ready": True, **job.facts}
            else:
                start = time.perf_counter()
                results = job.run(request["run"])
                answer = {"seconds": time.perf_counter() - start, **results}
                job.check()
        except Exception as error:
            answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
            raise
        answers.write(json.dumps(answer) + "\n")
