"""Bop, its variants and latent weights on CIFAR-10, each at the best of its hyperparameters.

    python -m experiments.compare --data-dir DIR --workers 2    # about eight hours on two cores

All methods train the same network on the same images for the same epochs. First a grid over each
method's hyperparameters is judged on held-out training images. Then the best point trains on
all training images with other seeds; these runs alone see the test images. The last line on
standard output is a JSON object with the best points and the mean test accuracies.

Any number of processes, on any number of machines, may run the same command: they share the folder
and the database, and each takes the next run (docs/many_devices.md).
"""

from training.interrupt import Interrupt

INTERRUPT = Interrupt()
if __name__ == "__main__":  # before JAX starts its threads, which inherit the mask of signals
    INTERRUPT.watch()

import json
import statistics
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import optuna
import tyro
from optuna.exceptions import OptunaError
from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from experiments.methods import METHODS, Point, at_point, grid_size, on_edge, point_of
from experiments.workers import Trials, locked, open_storage, run_network, start_workers, work
from training.command import ending, prepare_process
from training.config import Experiment, to_json
from training.config.data import MANY, MOST_WORKERS, data_from_name
from training.config.ranges import require, require_different
from training.data import check_batch_size
from training.devices import device_mesh
from training.machine import expanded
from training.messages import say
from training.network import make_network
from training.records import check_record, read_record, sealed, write_json


@dataclass(frozen=True)
class Comparison:
    """The runs of a comparison, and the processes that train them."""

    folder: Path = Path("runs", "compare")
    """Folder of all runs, which the workers share. results/ in it holds the records."""
    workers: int = 1
    """Processes on this machine. Two or more are pinned to a CPU core each."""
    storage: str | None = None
    """Database, as in postgresql+psycopg://HOST/NAME. Default: an SQLite file in --folder, for the
    processes of one machine."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Methods to compare."""
    sampler: Literal["grid", "tpe"] = "grid"
    """Choice of the points: each point of the grid, or Optuna's TPE between the grid's ends."""
    trials: int | None = None
    """Points of each method, with --sampler tpe."""
    held_out: int = 5000
    """Training images for the validation split that judges the points."""
    search_seed: int = 0
    """Seed of the search."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of the reported runs. Seeds may be added to a finished comparison."""
    data: str | None = None
    """digits, cifar10 or FILE.npz. The options from --data to --flip replace those of all
    methods."""
    data_dir: Path | None = None
    """TFDS directory. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    width: int | None = None
    """Channels of the first stage."""
    units: int | None = None
    """Units of each hidden dense layer."""
    stages: int | None = None
    """Stages of two convolutions and a pooling."""
    epochs: int | None = None
    """Passes over the training images."""
    batch_size: int | None = None
    """Images in a step."""
    pad: int | None = None
    """Augmentation: random shifts by up to this many pixels."""
    flip: bool | None = None
    """Augmentation: mirror half of the training images."""
    heartbeat: int = 10
    """Seconds between two heartbeats of a run."""
    grace: int = 60
    """Seconds without a heartbeat after which another worker takes the run."""
    quiet: bool = False
    """Do not print the summary and the final JSON. Set for the processes that --workers starts."""
    debug: bool = False
    """Print the traceback of an error."""

    def __post_init__(self):
        object.__setattr__(self, "folder", expanded(self.folder).absolute())
        for name in ("workers", "held_out", "heartbeat"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.workers <= MOST_WORKERS, "workers", MANY, self.workers)
        for name in ("trials", "grace"):
            value = getattr(self, name)
            require(value is None or value <= 10**6, name, "at most 10⁶", value)
        if self.storage is not None:
            try:
                make_url(self.storage)
            except SQLAlchemyError:
                address = "an address as postgresql+psycopg://HOST/NAME"
                require(False, "storage", address, repr(self.storage))
        if self.sampler == "tpe":
            require((self.trials or 0) >= 1, "trials", "at least 1 with --sampler tpe", self.trials)
        else:
            require(self.trials is None, "trials", "left out with --sampler grid", self.trials)
        above = f"above --heartbeat {self.heartbeat}"
        require(self.grace > self.heartbeat, "grace", above, self.grace)
        for name in ("seeds", "methods"):
            require_different(name, getattr(self, name))
        in_range = all(0 <= seed < 2**32 for seed in self.seeds)
        require(in_range, "seeds", "from 0 to 2³² − 1", self.seeds)
        in_range = 0 <= self.search_seed < 2**32
        require(in_range, "search_seed", "from 0 to 2³² − 1", self.search_seed)
        for method in self.methods:
            if method not in METHODS:
                raise ValueError(f"unknown method {method}: choose from {', '.join(METHODS)}")
            self.search_experiment(method)

    def experiment(self, method: str) -> Experiment:
        """The experiment of a method, with the options of the command."""
        own = METHODS[method][0]
        data = own.data if self.data is None else data_from_name(self.data)
        data = with_options(data, data_dir=self.data_dir)
        model = with_options(own.model, width=self.width, units=self.units, stages=self.stages)
        options = {name: getattr(self, name) for name in ("epochs", "batch_size", "pad", "flip")}
        return with_options(own, data=data, model=model, **options)

    def search_experiment(self, method: str) -> Experiment:
        """The experiment of a method, evaluated on held-out training images."""
        experiment = self.experiment(method)
        data = with_options(experiment.data, held_out=self.held_out)
        return replace(experiment, data=data, seed=self.search_seed)

    @property
    def size(self) -> str:
        """The number of runs, in words."""
        grids = [METHODS[method][1] for method in self.methods]
        points = [self.trials or grid_size(grid) for grid in grids]
        return f"{sum(points)} runs to search, then {len(points) * len(self.seeds)} more."

    @property
    def identity(self) -> dict[str, Any]:
        """What identifies a comparison, in JSON: all options but seeds, paths and workers."""
        identity = {n: getattr(self, n) for n in ("held_out", "search_seed", "sampler", "trials")}
        identity["grids"] = {method: METHODS[method][1] for method in self.methods}
        identity["experiments"] = {m: to_json(self.experiment(m)) for m in self.methods}
        for experiment in identity["experiments"].values():
            experiment["data"].pop("data_dir", None)
        return json.loads(json.dumps(identity))


def with_options(config: Any, **options: Any) -> Any:
    """Replaces the options that are not None; raises ValueError for one that `config` lacks."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in [f.name for f in fields(config)]:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is no option of {type(config).__name__}")
    return replace(config, **given)


# ---- Trials --------------------------------------------------------------------------------------


def search_trial(
    comparison: Comparison, method: str, interrupt: Interrupt, trial: optuna.Trial
) -> float:
    """Trains the point that Optuna chooses for a method; returns the validation accuracy."""
    texts = {
        name: f"{trial.suggest_float(name, min(values), max(values), log=True):g}"
        for name, values in METHODS[method][1].items()
    }
    point = {name: float(text) for name, text in texts.items()}
    name = "-".join(f"{name}={text}" for name, text in texts.items())
    experiment = at_point(comparison.search_experiment(method), point)
    return run_network(comparison.folder / "search" / method / name, method, experiment, interrupt)


def seed_trial(
    comparison: Comparison,
    best: dict[str, Point],
    seed: int,
    interrupt: Interrupt,
    trial: optuna.Trial,
) -> float:
    """Trains the best point of the method that Optuna chooses; returns the test accuracy."""
    method = trial.suggest_categorical("method", comparison.methods)
    experiment = replace(at_point(comparison.experiment(method), best[method]), seed=seed)
    return run_network(comparison.folder / method / f"seed{seed}", method, experiment, interrupt)


def compare(comparison: Comparison, name: str, interrupt: Interrupt) -> None:
    """Searches, then trains the best points, together with all other workers.

    Raises:
        ValueError, OSError, RunError, Stopped: as `train.run`.
        OptunaError, SQLAlchemyError: for a database that cannot be used.
    """
    url = comparison.storage
    if url is None:
        file, wait = comparison.folder / "optuna.db", {"timeout": "60"}
        url = URL.create("sqlite", database=str(file), query=wait).render_as_string()
    lock = comparison.folder / ".lock"
    with open_storage(url, comparison.heartbeat, comparison.grace, lock) as storage:
        if not (comparison.folder / "results" / "search.json").exists():
            searches = []
            for method in comparison.methods:
                objective = partial(search_trial, comparison, method, interrupt)
                arguments = (storage, METHODS[method][1], objective, comparison.trials)
                searches.append(Trials.open(f"{name}/{method}", *arguments))
            work(searches, comparison.heartbeat, interrupt)
            write_search(comparison)
        best = best_points(comparison)
        if not comparison.quiet:
            warn_of_edges(best)
        runs = []
        for seed in comparison.seeds:  # in this order: a stopped comparison has all methods
            objective = partial(seed_trial, comparison, best, seed, interrupt)
            grid = {"method": comparison.methods}
            runs.append(Trials.open(f"{name}/seed{seed}", storage, grid, objective))
        work(runs, comparison.heartbeat, interrupt)


# ---- Records -------------------------------------------------------------------------------------


def register(comparison: Comparison) -> str:
    """Writes comparison.json, the options of a folder; returns the name in the database.

    Raises:
        ValueError: for a folder that holds another comparison, or a damaged one.
    """
    path = comparison.folder / "comparison.json"
    if not path.exists():
        with locked(comparison.folder / ".lock"):
            if not path.exists():
                name = f"{comparison.folder.name}-{uuid.uuid4().hex[:8]}"
                write_json(path, {"name": name, **comparison.identity})
    try:
        noted = dict(json.loads(path.read_bytes()))
        name = str(noted.pop("name"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): choose another --folder") from error
    if noted != comparison.identity:
        raise ValueError(f"{path} is of another comparison: choose another --folder")
    return name


def check_data(comparison: Comparison) -> None:
    """Loads the data once and describes the network, before a folder is made.

    Raises:
        ValueError, OSError: for a folder, data, a validation split, a batch or a network that
            cannot be had.
    """
    if comparison.folder.exists() and not comparison.folder.is_dir():
        raise ValueError(f"{comparison.folder} is no folder: choose another --folder")
    experiment = comparison.search_experiment(comparison.methods[0])
    data = experiment.data.load()
    number = data.num_train
    most = f"at most the {number} training images of the search"
    require(experiment.batch_size <= number, "batch_size", most, experiment.batch_size)
    check_batch_size(experiment.batch_size, number, device_mesh())
    make_network(experiment, data)


def method_record(path: Path) -> dict[str, Any]:
    """The record of a run, which names a method in place of a preset."""
    _, record = read_record(path)
    for part in (record, record["result"]):
        part["method"] = part.pop("preset")
    return record


def write_search(comparison: Comparison) -> None:
    """Writes results/search.json, the records of all points; the first worker's file stays."""
    path, records = comparison.folder / "results" / "search.json", []
    with locked(comparison.folder / ".lock"):
        if path.exists():
            return
        for method in comparison.methods:
            runs = sorted((comparison.folder / "search" / method).glob("*/result.json"))
            records += [method_record(run) for run in runs]
        path.parent.mkdir(exist_ok=True)
        write_json(path, records)


def write_seed(comparison: Comparison, method: str, seed: int) -> float:
    """Writes results/METHOD/seedN.json; returns the test accuracy."""
    name = f"{method}/seed{seed}"
    record = method_record(comparison.folder / name / "result.json")
    path = comparison.folder / "results" / f"{name}.json"
    with locked(comparison.folder / ".lock"):
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_json(path, sealed(record))
    return record["result"]["test_accuracy"]


def best_points(comparison: Comparison) -> dict[str, Point]:
    """The point of each method with the highest validation accuracy, from results/search.json.

    Raises:
        ValueError: for a file that holds no records of this search.
    """
    path, best = comparison.folder / "results" / "search.json", {}
    try:
        records = json.loads(path.read_text())
        for method in comparison.methods:
            own = [record for record in records if record["method"] == method]
            record = max(own, key=lambda record: record["result"]["validation_accuracy"])
            best[method] = point_of(check_record(record), METHODS[method][1])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no records of this search ({error!r})") from error
    return best


def warn_of_edges(best: dict[str, Point]) -> None:
    """Prints a line for each method whose grid should be wider."""
    for method, point in best.items():
        if edges := on_edge(METHODS[method][1], point):
            say(f"{method}: best at the edge of its grid in {', '.join(edges)}")


# ---- Command line --------------------------------------------------------------------------------


@contextmanager
def naming_database() -> Iterator[None]:
    """Turns the errors of the database into an OSError."""
    try:
        yield
    except (OptunaError, SQLAlchemyError) as error:
        raise OSError(f"the database failed: {error.__cause__ or error}") from error


def main() -> None:
    """Compares the methods that the command line names, in this process or in several."""
    prepare_process()
    comparison = tyro.cli(Comparison, prog="python -m experiments.compare", description=__doc__)
    with ending("-m experiments.compare", comparison.debug, lambda run: None), naming_database():
        check_data(comparison)
        name = register(comparison)
        if not comparison.quiet:
            say(comparison.size)
        if comparison.workers == 1:
            compare(comparison, name, INTERRUPT)
        else:
            command = [sys.executable, "-m", "experiments.compare", *sys.argv[1:]]
            start_workers([*command, "--workers=1", "--quiet"], comparison.workers, INTERRUPT)
            warn_of_edges(best_points(comparison))
        means = {
            method: statistics.mean(write_seed(comparison, method, s) for s in comparison.seeds)
            for method in comparison.methods
        }
        best = best_points(comparison)
    if not comparison.quiet:
        say(json.dumps({"best": best, "mean_test_accuracy": means}))


if __name__ == "__main__":
    main()
