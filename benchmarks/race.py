"""A race: the best test accuracy on CIFAR-10 that each contestant reaches in the same time."""

import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.contest import Task, Worker, WorkerError, interleave
from benchmarks.measure import Workers, make_task, without_paths
from benchmarks.peers import Missing
from benchmarks.rows import CIFAR10, Contestant, larq, ours
from benchmarks.runs import Place, export
from training.config import BinaryNet, Bop, Cifar10, Experiment, Schedule, to_json

TRIAL = 1 / 6  # of the time of the race, for each setting
SPARE = 0.05  # of the time, for the start and for epochs that take longer than expected
HELD_OUT = 5000  # training images, for the trials
TRAIN_IMAGES, TEST_IMAGES = 50_000, 10_000


class Setting(NamedTuple):
    """What a contestant may choose; γ falls to 0 over the epochs that fit into its time."""

    width: int
    batch_size: int
    gamma: float


SETTINGS = (Setting(32, 50, 1e-3), Setting(64, 100, 1e-3), Setting(64, 100, 3e-4))


def entrants() -> list[Contestant]:
    """Each of our variants, and Larq."""
    return [*ours("whole_run"), larq("whole_run")[0]]


def race(
    place: Place, contestants: Sequence[Contestant], workers: Workers, minutes: float
) -> dict[str, Any]:
    """Tries the settings, then trains each contestant at its best one; a case of the record."""
    record = []
    for contestant in contestants:
        print(f"race: {contestant.name} ...", file=sys.stderr, flush=True)
        measured: dict[str, Any] = {"seconds": [], "facts": {}, "results": [], "error": None}
        try:
            measured |= race_one(place, contestant, workers, minutes)
        except (WorkerError, Missing) as error:
            measured["error"] = str(error)
        record.append(without_paths(contestant._asdict() | measured))
    title = f"best test accuracy on CIFAR-10 after {minutes:g} minutes"
    return {"title": title, "unit": "%", "contestants": record}


def race_one(
    place: Place, contestant: Contestant, workers: Workers, minutes: float
) -> dict[str, Any]:
    """Tries each setting for a part of the time, on a validation split; then the best of them."""
    lengths = {setting: epoch_seconds(contestant, setting, workers) for setting in SETTINGS}

    def curve(setting: Setting, minutes: float, held_out: int) -> list[dict[str, float]]:
        epochs = max(1, int(60 * (1 - SPARE) * minutes / lengths[setting]))
        experiment = make_experiment(setting, epochs, Cifar10(place.data_dir, held_out))
        options = {**contestant.options, "experiment": to_json(experiment)}
        if contestant.worker == "larq":
            options |= export(experiment.data, place.folder)
        task = make_task(contestant._replace(options=options), workers)
        return train(task, epochs, 60 * minutes)

    tried = {setting: curve(setting, TRIAL * minutes, HELD_OUT) for setting in SETTINGS}
    setting = max(SETTINGS, key=lambda setting: best(tried[setting]))
    if tried[setting]:  # its epochs tell more than single steps
        lengths[setting] = min(point["epoch_seconds"] for point in tried[setting])
    final = curve(setting, minutes, 0)
    trials = [s._asdict() | {"validation_accuracy": best(tried[s])} for s in SETTINGS]
    facts = {"setting": setting._asdict(), "trials": trials, "curve": final}
    return {"facts": facts, "results": [{"accuracy": best(final)}]}


def make_experiment(setting: Setting, epochs: int, data: Any) -> Experiment:
    """The experiment of a setting."""
    return Experiment(
        data=data,
        model=BinaryNet(setting.width),
        optimizer=Bop(Schedule(setting.gamma, end=0.0)),
        batch_size=setting.batch_size,
        epochs=epochs,
    )


def epoch_seconds(contestant: Contestant, setting: Setting, workers: Workers) -> float:
    """The time of an epoch and its evaluation, from single steps on random images.

    Raises:
        WorkerError: if a step fails.
    """
    experiment = to_json(make_experiment(setting, 1, Cifar10()))
    options = {**contestant.options, "experiment": experiment, **CIFAR10}
    tasks = {
        job: make_task(contestant._replace(job=job, options=options), workers)
        for job in ("step", "evaluate")
    }
    measured = interleave(tasks, 1, 2.0)
    for error in (m.error for m in measured.values() if m.error):
        raise WorkerError(error)
    batches = {
        "step": TRAIN_IMAGES // setting.batch_size,
        "evaluate": TEST_IMAGES // setting.batch_size,
    }
    return sum(batches[job] * measured[job].seconds[0] for job in batches)


def train(task: Task, epochs: int, seconds: float) -> list[dict[str, float]]:
    """Trains until the time is over, the start included; the epochs that ended within it."""
    start, curve = time.perf_counter(), []
    with Worker(task) as worker:
        worker.ask(job=task.job, options=task.options)
        for _ in range(epochs):
            before = time.perf_counter()
            answer = worker.ask(run=1)
            now = time.perf_counter()
            if now - start > seconds:
                break
            curve.append(answer | {"seconds": now - start, "epoch_seconds": now - before})
    return curve


def best(curve: Sequence[dict[str, float]]) -> float:
    """The highest accuracy; 0 without an epoch."""
    return max((point["accuracy"] for point in curve), default=0.0)
