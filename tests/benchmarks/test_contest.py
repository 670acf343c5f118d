"""The parent of the benchmark, with workers that only count: their order, failures, the record."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import measure, peers, table
from benchmarks.contest import Task, Worker, WorkerError, interleave, whole_processes
from benchmarks.machine import machine
from benchmarks.race import best, train
from benchmarks.rows import Case, Contestant

# A peer's script: it logs each run, takes `pace` seconds a step by its own account, and may fail.
WORKER = """
import sys, time
from benchmarks.protocol import Job, serve

def count(log, name, fails_at=None, accuracies=()):
    runs, left = [], list(accuracies)
    print("a library prints")

    def run(steps):
        runs.append(steps)
        if len(runs) == fails_at:
            raise RuntimeError("out of order")
        time.sleep(0.002 * steps)
        with open(log, "a") as file:
            file.write(f"{name}{steps} ")
        return {"accuracy": left.pop(0)} if left else {"loss": 1.0}

    def check():
        assert name != "wrong", "a weight is not ±1"

    return Job(run, check, {"name": name})

serve({"count": count})
"""


@pytest.fixture
def worker(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def make(name, **options):
        options |= {"log": str(tmp_path / "log"), "name": name}
        return Task([sys.executable, str(script)], "count", options)

    return make


def test_workers_take_turns(worker, tmp_path):
    measured = interleave({name: worker(name) for name in "ab"}, 3, 0)
    assert (tmp_path / "log").read_text().split() == ["a1", "a1", "b1", "b1", *3 * ["a1", "b1"]]
    for name, own in measured.items():
        assert len(own.seconds) == 3
        assert all(0.002 <= s < 1 for s in own.seconds)
        assert own.facts["name"] == name
        assert own.results == 3 * [{"loss": 1.0}]
        assert own.error is None


def test_a_measurement_has_enough_steps(worker, tmp_path):
    interleave({"a": worker("a")}, 1, 0.02)
    *warm, last = (tmp_path / "log").read_text().split()
    assert warm == ["a1", "a1"]
    assert 2 <= int(last[1:]) <= 10


@pytest.mark.parametrize("fails_at", [1, 2, 4])
def test_a_failure_leaves_the_others(worker, fails_at):
    tasks = {"bad": worker("bad", fails_at=fails_at), "good": worker("good")}
    measured = interleave(tasks, 3, 0)
    assert measured["bad"].error == "RuntimeError: out of order"
    assert len(measured["bad"].seconds) == max(0, fails_at - 3)
    assert len(measured["good"].seconds) == 3


def test_wrong_weights_and_lost_processes_are_errors(worker):
    tasks = {"wrong": worker("wrong"), "gone": Task([sys.executable, "-c", "1 / 0"], "count")}
    measured = interleave(tasks, 1, 0)
    assert measured["wrong"].error == "AssertionError: a weight is not ±1"
    assert measured["gone"].error == "ended with status 1: ZeroDivisionError: division by zero"
    with Worker(worker("a")) as started, pytest.raises(WorkerError, match="KeyError: 'other'"):
        started.ask(job="other", options={})


def test_whole_processes(worker, tmp_path):
    printing = "import json; print('first'); print(json.dumps({'test_accuracy': 0.5}))"
    tasks = {
        "a": 2 * [worker("a", accuracies=[0.25, 0.75])],
        "command": 2 * [Task([sys.executable, "-c", printing], None)],
        "gone": 2 * [Task([sys.executable, "-c", "1 / 0"], None)],
    }
    measured = whole_processes(tasks, 2)
    assert (tmp_path / "log").read_text().split() == 4 * ["a1"]
    assert [result["accuracy"] for result in measured["a"].results] == [0.75, 0.75]
    assert measured["command"].results == 2 * [{"test_accuracy": 0.5}]
    assert all(s > 0.01 for own in measured.values() for s in own.seconds)
    assert not measured["gone"].seconds
    assert measured["gone"].error == "ended with status 1: ZeroDivisionError: division by zero"


def test_a_race_ends_with_its_time(worker):
    curve = train(worker("a", accuracies=[0.1, 0.3, 0.2]), 3, 60)
    assert [point["accuracy"] for point in curve] == [0.1, 0.3, 0.2]
    assert curve[0]["seconds"] < curve[1]["seconds"]
    assert best(curve) == 0.3
    assert train(worker("a", accuracies=[0.1]), 3, 0) == []
    assert best([]) == 0


# ---- Peers and the machine -----------------------------------------------------------------------


def test_a_peer_that_does_not_install_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(peers.sys, "executable", str(tmp_path / "no_python"))
    with pytest.raises(peers.Missing, match="no_python"):
        peers.prepare("larq", tmp_path)
    workers = measure.find_workers({"larq", "ours"}, tmp_path)
    assert isinstance(workers["larq"], peers.Missing)


def test_the_pinned_versions_are_checked(tmp_path, monkeypatch):
    peer = peers.PEERS["torch"]
    found, commands = [{"torch": "1.0"}, {"torch": "2.13.0"}], []

    def run(arguments):
        commands.append(arguments[1:])
        return json.dumps(found.pop(0)) if "-c" in arguments else ""

    monkeypatch.setattr(peers, "_run", run)
    assert peers.prepare("torch", tmp_path).startswith(str(tmp_path / "torch"))
    venv, checked, installed = commands
    assert venv == ["-m", "venv", str(tmp_path / "torch")]
    assert checked[0] == "-c"
    assert installed == ["-m", "pip", "install", "-q", "torch==2.13.0", *peer.others]


def test_the_processor(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: A CPU\nflags\t\t: fpu avx512f amx_tile\nflags\t: avx2\n")
    assert machine(cpuinfo)["cpu"] == "A CPU"
    assert machine(cpuinfo)["instructions"] == ["avx512f", "amx_tile"]
    assert machine(tmp_path / "none")["instructions"] == []


# ---- The table and the record --------------------------------------------------------------------


def measured(side, name, seconds=(), facts=None, results=(), error=None):
    entry = {"side": side, "name": name, "seconds": list(seconds), "facts": facts or {}}
    return entry | {"results": list(results), "error": error}


def test_the_table_by_hand():
    limit = {"needed": 30.0, "amount": 10.0, "rate": "GFLOP/s"}
    contestants = [
        measured("ours", "float32", [0.2, 0.4, 0.6]),
        measured("ours", "4 bits", [0.1, 0.1, 0.2]),
        measured("peer", "Larq", [0.1, 0.3, 0.9]),
        measured("peer", "slow", [9.0, 9.0, 9.0]),
        measured("peer", "gone", error="no wheel"),
        measured("limit", "products", [0.1, 0.05, 0.1], limit),
    ]
    case = {"title": "a step", "unit": "ms", "images": 0, "contestants": contestants}
    assert table.rows(case) == [
        ("a step", "float32", "400 ms", "0.75", "0.50"),  # medians of (1/2, 3/4, 3/2), (3/2, ...)
        ("", "4 bits", "100 ms", "3.00", "1.50"),
        ("", "Larq", "300 ms", "", "0.50"),
        ("", "slow", "9,000 ms", "", "0.03"),
        ("", "gone", "missing", "", ""),
        ("", "products", "300 ms (100 GFLOP/s)", "", ""),
    ]
    images = case | {"unit": "images/s", "images": 50}
    assert [row[2] for row in table.rows(images)] == [
        "125 images/s",
        "500 images/s",
        "167 images/s",
        "5.56 images/s",
        "missing",
        "167 images/s (100 GFLOP/s)",
    ]
    assert [row[3:] for row in table.rows(images)] == [row[3:] for row in table.rows(case)]


def test_memory_runs_and_races_by_hand():
    sizes = [measured("ours", "a", facts={"MiB": 50.0}), measured("peer", "b", facts={"MiB": 75.0})]
    case = {"title": "t", "unit": "MiB", "contestants": sizes}
    assert table.rows(case) == [("t", "a", "50 MiB", "1.50", ""), ("", "b", "75 MiB", "", "")]
    results = [{"accuracy": 0.5}, {"accuracy": 0.75}]
    runs = [
        measured("ours", "a", [2.0, 4.0], results=results),
        measured("ours", "train.py", [8.0, 8.0], results=[{"test_accuracy": 0.5}]),
    ]
    case = {"title": "t", "unit": "s", "contestants": runs}
    assert [row[2] for row in table.rows(case)] == ["3 s (62.5 %)", "8 s (50.0 %)"]
    case = {"title": "t", "unit": "%", "contestants": [measured("ours", "a", results=results[1:])]}
    assert table.rows(case) == [("t", "a", "75.0 %", "", "")]


def record(date, cpu, *titles):
    cases = [
        {"title": t, "unit": "s", "contestants": [measured("ours", date, [1])]} for t in titles
    ]
    return {
        "date": date,
        "command": "python -m benchmarks",
        "machine": {"cpu": cpu, "instructions": ["avx2"], "cores": 2},
        "versions": {"jax": "1"},
        "peers": {"larq": {"larq": "2"}},
        "git_commit": date,
        "git_dirty": False,
        "cases": cases,
    }


def test_the_page_has_the_newest_cases_of_each_machine():
    records = [record("3", "b", "x"), record("2", "b", "x", "y"), record("1", "a", "x", "z")]
    block = table.page_block(records)
    assert [line for line in block.splitlines() if "1 s" in line] == [
        "| x | 3 | 1 s |  |  |",
        "| y | 2 | 1 s |  |  |",
        "| x | 1 | 1 s |  |  |",
        "| z | 1 | 1 s |  |  |",
    ]
    headings = [line for line in block.splitlines() if line.startswith("#")]
    assert headings == ["### b, 2 cores, avx2", "### a, 2 cores, avx2"]
    assert "- Versions: jax 1, larq 2." in block
    assert "- Commits: 3, 2." in block
    assert table.page_block([]) == ""


def test_the_command_writes_a_record(worker, tmp_path, monkeypatch, capsys):
    task = worker("a")
    contestants = [
        Contestant("ours", "a", "ours", "count", dict(task.options)),
        Contestant("peer", "Larq", "larq", "count", {"data": "/a/path"}),
    ]
    monkeypatch.setitem(command.ROWS, "step", lambda: [Case("counting", "ms", contestants)])
    workers = {"ours": list(task.command), "larq": peers.Missing("no wheel")}
    monkeypatch.setattr(command, "find_workers", lambda names, folder: workers)
    command.main(("step",), repeats=2, seconds=0, out=tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.json")
    written = json.loads(path.read_text())
    ours, larq = written["cases"][0]["contestants"]
    assert len(ours["seconds"]) == 2
    assert (larq["seconds"], larq["error"], larq["options"]) == ([], "no wheel", {})
    assert written["machine"]["cores"] >= 1
    output = capsys.readouterr()
    assert "| counting | a " in output.out
    assert "| Larq | missing |" in output.out
    assert "Larq is missing: no wheel" in output.err
    assert "- Commits: " in table.page_block([written])


def test_unknown_variants_and_missing_data_end_the_command(tmp_path):
    with pytest.raises(SystemExit, match=r"--variants must be among .*float32.*, got fast"):
        command.main(("step",), ("fast",), out=tmp_path)
    with pytest.raises(SystemExit, match="cifar10 is not prepared"):
        command.main(("cifar10",), data_dir=Path(tmp_path), out=tmp_path)
