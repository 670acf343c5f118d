"""experiments.compare: a search on held-out images, then seeds of the best points; its workers."""

import dataclasses
import fcntl
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from experiments import compare, workers
from experiments.compare import Comparison
from experiments.methods import METHODS, at_point, on_edge
from experiments.presets import PRESETS
from training.config import Schedule, from_json
from training.interrupt import Interrupt, Stopped
from training.records import check_record, read_record, sealed, write_json

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results" / "comparison"
TINY = ["--data=digits", "--width=4", "--units=8", "--stages=1", "--batch-size=64", "--pad=1"]
TINY += ["--held-out=300", "--heartbeat=1", "--grace=3"]
DEADLINE = 240


def wait_for(condition):
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


# ---- Methods -------------------------------------------------------------------------------------


def test_every_method_has_a_grid_of_its_own_fields():
    """3 × 2 points, and one value more if the best of three was at an end; BOLD has one field."""
    sizes = {}
    for method, (experiment, grid) in METHODS.items():
        for name, values in grid.items():
            for value in values:
                new = getattr(at_point(experiment, {name: value}).optimizer, name)
                old = getattr(experiment.optimizer, name)
                scheduled = isinstance(old, Schedule)
                assert new == (dataclasses.replace(old, initial=value) if scheduled else value)
        sizes[method] = [len(values) for values in grid.values()]
    widened = {
        "adam-staircase",
        "sgd-staircase",
        "sgd-linear",
        "bop-threshold-decay-staircase",
        "bop-2nd-order-linear",
    }
    expected = {method: [4 if method in widened else 3, 2] for method in METHODS}
    assert sizes == expected | {"bold-linear": [6]}


def test_the_methods_differ_in_the_optimizer_alone():
    first, *others = [experiment for experiment, _ in METHODS.values()]
    for experiment in others:
        assert dataclasses.replace(experiment, optimizer=first.optimizer) == first


def test_the_methods_are_those_of_the_records():
    """The recorded runs are points of the grids, and the reported ones are the best points."""
    records = json.loads((RESULTS / "search.json").read_text())
    assert {r["method"] for r in records} == METHODS.keys()
    for method, (experiment, grid) in METHODS.items():
        points = {}
        for record in [r for r in records if r["method"] == method]:
            optimizer = from_json(record["config"]).optimizer
            values = {name: getattr(optimizer, name) for name in grid}
            point = {name: getattr(v, "initial", v) for name, v in values.items()}
            assert at_point(experiment, point).optimizer == optimizer
            points[tuple(point.values())] = record["result"]["validation_accuracy"]
        assert len(points) == compare.grid_size(grid)
        best = dict(zip(grid, max(points, key=points.__getitem__), strict=True))
        for seed in (1, 2, 3):
            record = json.loads((RESULTS / method / f"seed{seed}.json").read_text())
            recorded = check_record(record)
            assert dataclasses.replace(at_point(experiment, best), seed=seed) == recorded


def test_a_best_point_on_the_edge_of_its_grid():
    grid = METHODS["sgd-staircase"][1]
    point = {"latent_learning_rate": 10.0, "momentum": 0.9}
    assert on_edge(grid, point) == ["latent_learning_rate"]
    assert on_edge(grid, point | {"latent_learning_rate": 0.1}) == []


# ---- One worker ----------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch):
    """Calls main with options."""

    def call(*options):
        monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, options)])
        compare.main()

    return call


def test_a_comparison_from_search_to_seeds(tmp_path, command, monkeypatch, capsys):
    """Two points, then two seeds of the better one; repeated, the command has nothing to do."""
    experiment, _ = METHODS["bop-staircase"]
    methods = {"bop-staircase": (experiment, {"gamma": (1e-2, 1e-5)})}
    monkeypatch.setattr(compare, "METHODS", methods)
    options = [f"--folder={tmp_path}", "--methods", "bop-staircase", "--epochs=1", *TINY]
    command(*options, "--seeds", 1, 2)
    first, *finished, last = capsys.readouterr().out.splitlines()
    assert first == "2 runs to search, then 2 more."
    assert len(finished) == 4
    assert all("accuracy" in line for line in finished)
    best = json.loads(last)["best"]["bop-staircase"]

    records = json.loads((tmp_path / "results" / "search.json").read_text())
    assert {record["method"] for record in records} == {"bop-staircase"}
    points = [from_json(record["config"]) for record in records]
    gammas = [point.optimizer.gamma for point in points]
    assert {str(gamma) for gamma in gammas} == {"0.01*0.1/2", "1e-05*0.1/2"}
    assert {(point.seed, point.data.held_out) for point in points} == {(0, 300)}
    accuracies = [record["result"]["validation_accuracy"] for record in records]
    assert best == {"gamma": gammas[accuracies.index(max(accuracies))].initial}
    means = []
    for seed in (1, 2):
        path = tmp_path / "results" / "bop-staircase" / f"seed{seed}.json"
        run, record = read_record(path)
        assert (run.optimizer.gamma.initial, run.seed) == (best["gamma"], seed)
        assert run.data.held_out == 0
        assert record["method"] == record["result"]["method"] == "bop-staircase"
        means.append(record["result"]["test_accuracy"])
    assert json.loads(last)["mean_test_accuracy"] == {"bop-staircase": sum(means) / 2}

    runs = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json")}
    command(*options, "--seeds", 1, 2)
    assert capsys.readouterr().out.splitlines() == [first, last]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json")} == runs
    command(*options, "--seeds", 3, 1)  # seeds may be added
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[1:-1]] == ["bop-staircase seed3"]
    for other in (["--width=5"], ["--search-seed=1"], ["--sampler=tpe", "--trials=2"]):
        with pytest.raises(SystemExit, match="another comparison: choose another --folder"):
            command(*options, *other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--held-out=0"], "--held-out must be at least 1"),
        (["--workers=0"], "--workers must be at least 1"),
        (["--seeds", "1", "1"], "--seeds must be different"),
        (["--methods", "bop"], "unknown method bop"),
        (["--trials=3"], "--trials must be left out with --sampler grid"),
        (["--sampler=tpe"], "--trials must be at least 1 with --sampler tpe"),
        (["--grace=10"], "--grace must be above --heartbeat"),
        (["--gamma=1e-3"], "--gamma"),
        (["--seed=7"], "--seed"),
        (["--data=digits", "--data-dir=/data"], "--data-dir is no option of Digits"),
        (["--data=imagenet2012"], "--held-out is no option of ImageNet"),
        (["--batch-size=0"], "--batch-size must be at least 1"),
    ],
)
def test_bad_comparisons(options, message, tmp_path, command, capsys):
    with pytest.raises(SystemExit) as ended:
        command(f"--folder={tmp_path / 'new'}", *options)
    assert ended.value.code == 2
    printed = "".join(capsys.readouterr()).replace("│", " ")
    assert message in " ".join(printed.split())
    assert not (tmp_path / "new").exists()


def test_the_best_point_is_that_of_records_of_this_version(tmp_path):
    comparison = Comparison(folder=tmp_path, methods=("sgd-staircase",))
    run = tmp_path / "search" / "sgd-staircase" / "latent_learning_rate=1-momentum=0.9"
    run.mkdir(parents=True)
    (run / "result.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not the result.json of a run"):
        compare.write_search(comparison)
    (tmp_path / "results").mkdir(exist_ok=True)
    (tmp_path / "results" / "search.json").write_text("[]")
    with pytest.raises(ValueError, match=r"search.json holds no records of this search"):
        compare.best_points(comparison)


def test_a_database_that_cannot_be_opened(tmp_path, command):
    nowhere = f"--storage=sqlite:///{tmp_path}/missing/optuna.db"
    with pytest.raises(SystemExit, match=r"database failed: .*unable to open database file"):
        command(f"--folder={tmp_path}", *TINY, nowhere)


# ---- Trials --------------------------------------------------------------------------------------


@pytest.fixture
def storage(tmp_path):
    url = f"sqlite:///{tmp_path}/optuna.db?timeout=60"
    with workers.open_storage(url, 1, 2, tmp_path / ".lock") as opened:
        yield opened


@contextmanager
def plain_storage(url: str):
    """A database without heartbeats."""
    opened = optuna.storages.RDBStorage(url)
    try:
        yield opened
    finally:
        opened.remove_session()
        opened.engine.dispose()


GRID = {"x": (1.0, 2.0)}


def suggest(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 1.0, 2.0, log=True)


def states(trials: workers.Trials) -> list[str]:
    return [trial.state.name for trial in trials.study.get_trials()]


def test_a_failed_trial_is_taken_again_first(storage):
    points = []

    def objective(trial):
        points.append(suggest(trial))
        if len(points) == 1:
            raise ValueError("no images")
        return points[-1]

    trials = workers.Trials.open("study", storage, GRID, objective)
    with pytest.raises(ValueError, match="no images"):
        trials.take()
    workers.work([trials], 0.1, Interrupt())
    assert points[1] == points[0]
    assert sorted(points[1:]) == [1.0, 2.0]
    assert states(trials) == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_trial_that_another_worker_has_ended_is_taken_again(storage):
    """As if its heartbeat had been late: Optuna refuses the value, the point is asked again."""
    points = []

    def objective(trial):
        points.append(suggest(trial))
        if len(points) == 1:
            trials.study.tell(trial.number, state=TrialState.FAIL)
        return points[-1]

    trials = workers.Trials.open("study", storage, GRID, objective)
    workers.work([trials], 0.1, Interrupt())
    assert sorted(points[1:]) == [1.0, 2.0]
    assert states(trials) == ["FAIL", "COMPLETE", "COMPLETE"]


def test_nothing_is_taken_while_other_workers_have_all_trials(storage):
    trials = workers.Trials.open("study", storage, GRID, suggest)
    with plain_storage(storage.url) as other:
        sampler = optuna.samplers.RandomSampler(seed=0)
        study = optuna.load_study(study_name="study", storage=other, sampler=sampler)
        others = [study.ask() for _ in range(2)]
        for trial in others:
            suggest(trial)
        assert not trials.take()
        assert not trials.complete()
        study.tell(others[0], 1.0)
        assert not trials.take()
        study.tell(others[1], state=TrialState.FAIL)
    assert trials.take()
    assert trials.complete()


def test_a_signal_ends_the_work(storage):
    trials = workers.Trials.open("study", storage, GRID, suggest)
    interrupt = Interrupt()
    interrupt.number = signal.SIGTERM
    with pytest.raises(Stopped) as stopped:
        workers.work([trials], 0.1, interrupt)
    assert stopped.value.status == 128 + signal.SIGTERM
    assert states(trials) == ["COMPLETE"]


def test_tpe_runs_a_number_of_trials_between_the_ends_of_the_grid(storage):
    points = []

    def objective(trial):
        points.append(suggest(trial))
        return points[-1]

    trials = workers.Trials.open("study", storage, GRID, objective, tpe_trials=12)
    workers.work([trials], 0.1, Interrupt())
    assert len(set(points)) == len(points) == 12
    assert all(1 <= x <= 2 for x in points)


def test_a_run_that_another_worker_trains_is_awaited(tmp_path, monkeypatch):
    monkeypatch.setattr(workers.train, "run", pytest.fail)
    folder, entered = tmp_path / "run", threading.Event()
    record = json.loads((RESULTS / "bop-linear" / "seed1.json").read_text())

    def other():
        with workers.locked(tmp_path / "run.lock"):
            entered.set()
            time.sleep(0.5)
            folder.mkdir()
            write_json(folder / "result.json", sealed(record))

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    experiment = check_record(record)
    accuracy = workers.run_network(folder, "bop-linear", experiment, Interrupt())
    thread.join()
    assert accuracy == record["result"]["test_accuracy"]
    other = dataclasses.replace(experiment, seed=9)
    with pytest.raises(ValueError, match=r"run has the result of a run with seed=1 \(now 9\)"):
        workers.run_network(folder, "bop-linear", other, Interrupt())


# ---- Processes -----------------------------------------------------------------------------------

ONE_FAILS = """
import os, sys, time
print(*os.sched_getaffinity(0), file=open(f"{sys.argv[1]}/{os.getpid()}", "w"))
try:
    os.mkdir(f"{sys.argv[1]}/first")
except FileExistsError:
    sys.exit("no images")
time.sleep(600)
"""


def test_a_worker_that_fails_ends_the_others(tmp_path):
    cores = os.sched_getaffinity(0)
    with pytest.raises(Stopped, match="no images\nA worker ended with status 1") as stopped:
        workers.start_workers([sys.executable, "-c", ONE_FAILS, str(tmp_path)], 2, Interrupt())
    assert stopped.value.status == 1
    pids = [path for path in tmp_path.iterdir() if path.is_file()]
    assert [len(path.read_text().split()) for path in pids] == [1, 1]
    assert not [path for path in pids if Path("/proc", path.name).exists()]
    assert os.sched_getaffinity(0) == cores


def start(folder: Path, *options: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "experiments.compare", f"--folder={folder}", *TINY, "--seeds=1"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*line, *map(str, options)], cwd=ROOT, stdout=pipe, stderr=pipe, text=True
    )


def under_way(folder: Path) -> list[Path]:
    """Runs that have a checkpoint and a finished epoch, but no result."""
    runs = [path.parent for path in folder.glob("search/*/*/metrics.jsonl") if path.read_text()]
    saved = [run for run in runs if any(p.name.isdigit() for p in run.glob("checkpoints/*"))]
    return [run for run in saved if not (run / "result.json").exists()]


def resumes(run: Path) -> int:
    return len(json.loads((run / "config.json").read_text()).get("resumed", []))


@pytest.mark.slow
def test_sigterm_stops_all_workers_and_the_same_command_resumes(tmp_path):
    """Two workers, two runs of TPE: a run under way is saved, one that still compiles is not."""
    options = ["--workers=2", "--methods=cema-linear", "--sampler=tpe", "--trials=2", "--epochs=16"]
    with start(tmp_path, *options) as process:
        try:
            runs = wait_for(lambda: under_way(tmp_path))
            process.terminate()
            output, errors = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.splitlines()[-1] == "The same command resumes."
    assert len(output.splitlines()) == 1
    for run in runs:
        assert not (run / "result.json").exists()
        for lock in (run / ".lock", run.with_name(f"{run.name}.lock")):
            with lock.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no worker holds it

    with start(tmp_path, *options) as process:
        output, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors
    assert all(resumes(run) == 1 for run in runs)
    first, *finished, last = output.splitlines()
    assert first == "2 runs to search, then 1 more."
    assert len(finished) == 3
    assert finished[-1].startswith("cema-linear seed1: test_accuracy")
    assert {run.name for run in runs} <= {line.split()[1].rstrip(":") for line in finished}
    assert list(json.loads(last)["best"]["cema-linear"]) == ["alpha", "gamma"]


@contextmanager
def postgresql():
    """A server of its own, as a user other than root; yields the address of its database."""
    places = [*os.get_exec_path(), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    programs = [p for p in map(Path, places) if (p / "initdb").exists() and (p / "pg_ctl").exists()]
    if not programs:
        pytest.skip("no initdb and pg_ctl: apt-get install postgresql")
    user = {}
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        owner = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the name of a socket has a limit
    if user:
        os.chown(folder, user["user"], user["group"])
    call = partial(subprocess.run, cwd=folder, check=True, stdout=subprocess.DEVNULL, **user)
    data = folder / "data"
    settings = f"-k {folder} -c listen_addresses= -c fsync=off"
    try:
        call([programs[0] / "initdb", "-D", data, "-U", "bop", "-A", "trust", "--no-sync"])
        server = [programs[0] / "pg_ctl", "-D", data, "-l", folder / "log", "-w"]
        call([*server, "-o", settings, "start"])
        try:
            yield f"postgresql+psycopg://bop@/postgres?host={folder}"
        finally:
            call([*server, "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(folder)


@contextmanager
def sqlite():
    yield None


def kill_in_a_run(process: subprocess.Popen[str], folder: Path) -> Path | None:
    """Kills a worker if it is in the middle of a run; returns that run."""
    if not under_way(folder):
        return None
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    opened = {os.path.realpath(file) for file in Path(f"/proc/{process.pid}/fd").iterdir()}
    for run in under_way(folder):
        if f"{run}.lock" in opened:
            process.kill()
            return run
    process.send_signal(signal.SIGCONT)
    return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database", "sampler", "points"),
    [
        pytest.param(sqlite, ["--sampler=tpe", "--trials=3"], 3, id="sqlite"),
        pytest.param(postgresql, [], 6, id="postgresql"),
    ],
)
def test_the_run_of_a_killed_worker_is_taken_and_resumed(database, sampler, points, tmp_path):
    """Two processes of the same command: all points run once, the killed one's in two parts."""
    options = ["--methods=bop-linear", "--epochs=4", *sampler]
    with database() as url:
        options += [f"--storage={url}"] if url else []
        with start(tmp_path, *options) as first, start(tmp_path, *options) as second:
            try:
                killed = wait_for(lambda: kill_in_a_run(first, tmp_path))
                before, _ = first.communicate(timeout=DEADLINE)
                after, errors = second.communicate(timeout=DEADLINE)
            finally:
                first.kill()
                second.kill()
        assert second.returncode == 0, errors
        name = json.loads((tmp_path / "comparison.json").read_text())["name"]
        address = url or f"sqlite:///{tmp_path}/optuna.db"
        with plain_storage(address) as storage:
            trials = optuna.load_study(study_name=f"{name}/bop-linear", storage=storage).trials
    search = tmp_path / "search" / "bop-linear"
    runs = [path.parent for path in search.glob("*/result.json")]
    assert {run: resumes(run) for run in runs} == {run: int(run == killed) for run in runs}
    lines = before.splitlines()[1:] + after.splitlines()[1:-1]
    finished = sorted(line.split(":")[0] for line in lines if "accuracy" in line)
    assert finished == sorted(f"bop-linear {name}" for name in ["seed1", *(r.name for r in runs)])
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len({tuple(trial.params.items()) for trial in complete}) == len(runs) == points
    retried = [trial for trial in complete if trial.system_attrs.get("retry_history")]
    names = ["-".join(f"{k}={v:g}" for k, v in trial.params.items()) for trial in retried]
    assert killed.name in names
    records = json.loads((tmp_path / "results" / "search.json").read_text())
    assert len(records) == points
    metrics = (killed / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in metrics] == [1, 2, 3, 4]


def test_the_presets_of_the_small_scale_are_methods():
    for name in ("bop", "adam", "sgd"):
        assert METHODS[f"{name}-staircase"][0] == PRESETS[f"cifar10-{name}-small"][1]
