"""Optuna trials that any number of processes share, on one machine or on many.

Every worker runs the same code: it takes a trial that no other worker has, until all are complete.
The storage is Optuna's `RDBStorage`, which alone has heartbeats: the trial of a killed worker turns
stale, and another worker takes it.
"""

import fcntl
import itertools
import math
import os
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

import train
from training.config import Experiment, RunConfig
from training.folder import finished_record
from training.interrupt import Interrupt, Stopped
from training.messages import say
from training.records import accuracy_name

Grid = Mapping[str, Sequence[Any]]

# One process per core is faster than two processes that share two cores.
PINNED = hasattr(os, "sched_setaffinity")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process, on any machine that shares the folder, holds this lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def experimental() -> Iterator[None]:
    """Hides Optuna's warnings that heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextmanager
def open_storage(url: str, heartbeat: int, grace: int, lock: Path) -> Iterator[RDBStorage]:
    """Opens the database, and closes it.

    Args:
        url: address of the database, as SQLAlchemy spells it.
        heartbeat: seconds between two heartbeats of a running trial.
        grace: seconds without a heartbeat after which a trial is stale.
        lock: file that all workers lock, because only one may make the tables.

    Raises:
        ValueError: for a database whose driver is not installed.
        SQLAlchemyError: for a database that cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with locked(lock), experimental():
            storage = RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True},  # a connection is idle while a run lasts
                heartbeat_interval=heartbeat,
                grace_period=grace,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
    except ImportError as error:
        raise ValueError(f"the database needs a driver, as psycopg[binary]: {error}") from error
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


class Trials(NamedTuple):
    """The trials of one study.

    Attributes:
        study: the study in the database.
        number: number of different points that completes the study. Workers that take a trial at
            the same instant may add one to TPE's.
        objective: runs a trial, as `run_network` does: it returns at once for a point that has a
            result, and waits if another worker has the point. Optuna may give a point to two.
    """

    study: optuna.Study
    number: int
    objective: Callable[[optuna.Trial], float]

    @classmethod
    def open(
        cls,
        name: str,
        storage: RDBStorage,
        grid: Grid,
        objective: Callable[[optuna.Trial], float],
        tpe_trials: int | None = None,
    ) -> "Trials":
        """Opens a study that maximizes, and makes it if need be.

        Args:
            name: name of the study.
            storage: the database.
            grid: values of each parameter.
            objective: as in the attributes.
            tpe_trials: number of trials that TPE chooses. None: one for each point of the grid.
        """
        with experimental():
            tpe = optuna.samplers.TPESampler(constant_liar=True)  # with trials at the same time
        study = optuna.create_study(
            storage=storage,
            sampler=optuna.samplers.GridSampler(grid) if tpe_trials is None else tpe,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
        )
        return cls(study, tpe_trials or math.prod(map(len, grid.values())), objective)

    def points(self, *states: TrialState) -> dict[tuple[tuple[str, float], ...], FrozenTrial]:
        """The trials in these states by point; one that has no point yet is left out."""
        trials = self.study.get_trials(deepcopy=False, states=states)
        return {tuple(trial.params.items()): trial for trial in trials if trial.params}

    def complete(self) -> bool:
        """True if no trial is left to run."""
        return len(self.points(TrialState.COMPLETE)) >= self.number

    def take(self) -> bool:
        """Runs a trial; returns False if there is none that no other worker has.

        The trials of workers that were stopped, were killed or failed come first.
        """
        with experimental():
            fail_stale_trials(self.study)
            retry = RetryHeartbeatStaleTrialCallback()
        taken = self.points(TrialState.RUNNING, TrialState.COMPLETE)
        waiting = self.points(TrialState.WAITING)
        for point, trial in self.points(TrialState.FAIL).items():
            if point not in taken | waiting:
                retry(self.study, trial)
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not waiting and len(taken) >= self.number:
            return False
        returned = []

        def objective(trial: optuna.Trial) -> float:
            returned.append(self.objective(trial))
            return returned[0]

        try:
            self.study.optimize(objective, n_trials=1)
        except (AssertionError, ValueError, UpdateFinishedTrialError):
            # Optuna's answers to the result of a trial that another worker has ended: it was stale,
            # or SQLite gave a waiting trial to both. The result counts; it is in the run's folder.
            if not returned:
                raise
        return True


def work(queue: Sequence[Trials], pause: float, interrupt: Interrupt) -> None:
    """Takes trials until all are complete; looks every `pause` seconds while others run the last.

    Raises:
        Stopped: after a signal.
    """
    while queue := [trials for trials in queue if not trials.complete()]:
        if not any(trials.take() for trials in queue):
            time.sleep(pause)
        if interrupt.number:
            raise Stopped("Stopped.", 128 + interrupt.number)


def run_network(folder: Path, method: str, experiment: Experiment, interrupt: Interrupt) -> float:
    """Trains a network, from its checkpoint if there is one; returns its accuracy.

    A finished run is not repeated. If another worker trains this network, its result is awaited.

    Raises:
        ValueError: for the finished run of another experiment.
    """
    with locked(folder.with_name(f"{folder.name}.lock")):
        finished = (folder / "result.json").exists()
        if not finished:
            config = RunConfig(run_dir=folder, resume=folder.exists())
            try:
                with open(os.devnull, "w") as null, redirect_stdout(null):  # the lines of epochs
                    train.run(experiment, config, method, interrupt)
            finally:
                interrupt.can_save = False
        result = finished_record(folder, experiment)["result"]
    name = accuracy_name(result)
    if not finished:
        line = f"{name} {result[name]:.2%} in {result['seconds']:,.0f} s"
        say(f"{method} {folder.name}: {line}")
    return result[name]


def start_workers(
    command: Sequence[str],
    number: int,
    interrupt: Interrupt,
    pinned: bool = PINNED,
    **options: Any,
) -> None:
    """Runs a command in several processes until all have ended.

    A signal is passed on to them. If one fails, the others are stopped too.

    Args:
        command: the command.
        number: number of processes.
        interrupt: the signals.
        pinned: whether each is pinned to a CPU core.
        **options: those of `subprocess.Popen`.

    Raises:
        Stopped: after a signal; and for a process that failed, with its standard error.
    """
    interrupt.can_save = True  # the processes do
    cores = sorted(os.sched_getaffinity(0)) if pinned else [0]
    processes: list[subprocess.Popen[bytes]] = []
    failed = None
    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(number)]
        try:
            for log, core in zip(logs, itertools.cycle(cores), strict=False):
                if pinned:
                    os.sched_setaffinity(0, {core})  # of this thread, and of what it starts
                # In a group of its own: Ctrl-C reaches it once, from here.
                process: Any = subprocess.Popen(command, stderr=log, process_group=0, **options)
                processes.append(process)
            while not interrupt.number and failed is None:
                running = [process for process in processes if process.poll() is None]
                failed = next((i for i, p in enumerate(processes) if p.returncode), None)
                if not running:
                    break
                time.sleep(0.2)
        finally:
            if pinned:
                os.sched_setaffinity(0, cores)
            for process in processes:
                process.send_signal(interrupt.number or signal.SIGTERM)  # it saves a checkpoint
            for process in processes:
                process.wait()
        if interrupt.number:
            raise Stopped("Stopped.", 128 + interrupt.number)
        if failed is not None:
            logs[failed].seek(0)
            message = f"A worker ended with status {processes[failed].returncode}."
            raise Stopped(f"{logs[failed].read()}{message}")
