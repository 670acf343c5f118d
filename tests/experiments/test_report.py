"""The tables and figures are those of experiments/results, and bad records are named."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import benchmark_tables, records, report
from experiments.figures import over_runs
from experiments.methods import METHODS, at_point
from experiments.presets import PRESETS
from experiments.records import Result
from training.config import (
    Arrays,
    BinaryNet,
    Cifar10,
    Digits,
    Experiment,
    LatentAdam,
    Schedule,
    to_json,
)

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
SEED = RESULTS / "runs" / "digits-bop" / "seed0.json"
DIGITS = PRESETS["digits-bop"][1]
PAGE = "<!-- {0}: python -m experiments.report -->\n{1}<!-- end of {0} -->\n"


def make_record(experiment: Experiment, accuracy: float, **label: Any) -> dict[str, Any]:
    """A real record with another experiment and accuracy, and with its last epoch alone."""
    record = json.loads(SEED.read_text())
    split = "validation" if getattr(experiment.data, "held_out", 0) else "test"
    metrics = {k: v for k, v in record["metrics"][-1].items() if k != "test_accuracy"}
    record["metrics"] = [metrics | {f"{split}_accuracy": accuracy}]
    record["config"] = to_json(experiment)
    if label:
        del record["preset"]
    return record | label | {"result": {"seconds": 10.0, f"{split}_accuracy": accuracy}}


def write(path: Path, record: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


# ---- The records and pages of the repository -----------------------------------------------------


def test_every_result_is_a_record_of_this_version():
    paths = [p for p in RESULTS.rglob("*.json") if "benchmarks" not in p.parts]
    results = [result for path in paths for result in records.read(path)]
    assert len(results) == 15 + 45 + 100 + 5 + 3 + 1 + 59
    assert all(result.record["versions"]["jax"] for result in results)


@pytest.mark.parametrize("method", METHODS)
def test_the_comparison_reports_the_best_points_of_its_search(method):
    """And the defaults of the method are that best point."""
    search = records.read(RESULTS / "comparison" / "search.json")
    own = [r for r in search if r.record["method"] == method]
    best = max(own, key=lambda r: r.accuracy).experiment
    experiment = METHODS[method][0]
    assert best == replace(experiment, data=Cifar10(held_out=5000))
    reported = records.load(RESULTS / "comparison")[method]
    assert [r.experiment for r in reported] == [replace(experiment, seed=s) for s in (1, 2, 3)]


def test_the_pages_have_the_tables_of_the_results():
    tables = report.tables(RESULTS)
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = page.read_text()
        assert report.with_tables(text, tables) == text, page


# ---- Tables --------------------------------------------------------------------------------------


def test_runs_by_hand(tmp_path):
    wide = replace(DIGITS, model=replace(DIGITS.model, width=7), pad=0, flip=True)
    for seed, accuracy in ((0, 0.9), (1, 0.94)):
        record = make_record(replace(wide, seed=seed), accuracy)
        write(tmp_path / "runs" / "wide" / f"{seed}.json", record)
    write(tmp_path / "runs" / "preset" / "0.json", make_record(DIGITS, 0.5))
    preset, wide_row = report.tables(tmp_path)["runs"].splitlines()[2:]
    text = PRESETS["digits-bop"][0]
    assert preset == (
        f"| `python train.py digits-bop` | {text} | 50.00 % | 1 | 30 | 10 | 1 × cpu |"
    )
    assert wide_row == (  # the preset's text does not hold for it
        "| `python train.py digits-bop --width 7 --pad 0 --flip` | digits 8×8, BinaryNet of "
        "width 7, 30 epochs, Bop: gamma 0.001*0.1/15, threshold 1e-07 "
        "| 92.00 ± 2.83 % | 2 | 30 | 10 | 1 × cpu |"
    )


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        ({"epochs": 3, "seed": 7}, ["--epochs 3"]),
        ({"data": Arrays(Path("own.npz"), 5)}, ["--data own.npz", "--held-out 5"]),
        ({"data": Digits()}, ["--data digits"]),
        ({"data": Cifar10(Path("somewhere"))}, []),
        ({"model": BinaryNet(64, units=32)}, ["--width 64", "--units 32"]),
        (
            {"optimizer": LatentAdam(Schedule(0.01, factor=0.1, every=2), glorot_scaling=False)},
            ["--latent-learning-rate '0.01*0.1/2'", "--no-glorot-scaling"],
        ),
    ],
)
def test_the_flags_of_a_run(change, flags):
    start = PRESETS["cifar10-adam"][1]
    assert records.flags(start, replace(start, **change)) == flags


def test_the_search_by_hand(tmp_path):
    experiment, _ = METHODS["bop-staircase"]
    experiment = replace(experiment, data=Digits(held_out=100))
    points = [
        make_record(at_point(experiment, {"gamma": gamma}), accuracy, method="bop-staircase")
        for gamma, accuracy in ((1e-2, 0.5), (1e-4, 0.75), (1e-3, 0.625))
    ]
    write(tmp_path / "search.json", points)
    row = report.search_table(records.read(tmp_path / "search.json"))
    assert row.splitlines()[-1] == (
        "| `bop-staircase` | gamma, threshold | 0.0001, 1e-07 | 75.00 % "
        "| 3 of 6 | 62.5 (0.001, 1e-07), 50.0 (0.01, 1e-07) |"
    )
    write(tmp_path / "search.json", [*points, points[0]])
    with pytest.raises(ValueError, match=r"record 3 is of the same run as .*record 0"):
        report.search_table(records.read(tmp_path / "search.json"))


@pytest.mark.parametrize("point", [{"gamma": 0.5}, {"threshold": 1e-3}])
def test_points_off_the_grid_are_named(point, tmp_path):
    experiment = at_point(METHODS["bop-staircase"][0], point)
    write(tmp_path / "0.json", make_record(experiment, 0.5, method="bop-staircase"))
    with pytest.raises(ValueError, match=r"0.json is no point of the grid of bop-staircase"):
        report.search_table(records.read(tmp_path / "0.json"))


def test_the_comparison_by_hand(tmp_path):
    names = ("bop-staircase", "bop-linear", "cema-linear", "bop-threshold-decay-linear")
    for number, name in enumerate(names):
        for seed in (0, 1):
            experiment = replace(METHODS[name][0], seed=seed)
            record = make_record(experiment, 0.1 * number + 0.02 * seed, method=name)
            write(tmp_path / name / f"{seed}.json", record)
    table = report.comparison_table(records.load(tmp_path))
    assert table.splitlines()[2:] == [
        "| `bop` | 1.00 ± 1.41 % (2) | 11.00 ± 1.41 % (2) | 10 / 10 |",
        "| `bop-threshold-decay` |  | 31.00 ± 1.41 % (2) | 10 |",
        "| `cema` |  | 21.00 ± 1.41 % (2) | 10 |",
    ]


def test_the_summary_by_hand(tmp_path):
    for seed in (0, 1):
        record = make_record(replace(DIGITS, seed=seed), 0.9)
        write(tmp_path / "digits-bop" / f"{seed}.json", record)
    big = replace(PRESETS["cifar10-bop"][1], epochs=2)
    record = make_record(big, 0.8, method="bop-linear")
    record["device"] = {"platform": "gpu", "kind": "H100", "count": 2}
    methods = {"bop-linear": [Result("", big, record)]}
    rows = report.summary_table(records.load(tmp_path), methods, {}).splitlines()[2:]
    assert rows == [
        "| digits 8×8, BinaryNet of width 48, 30 epochs | Bop |  | 90.00 ± 0.00 % (2) | 10 s "
        "| 2 CPU cores | `python train.py digits-bop` |",
        "| CIFAR-10, BinaryNet of width 128, 2 epochs | Bop, γ linear to 0 |  | 80.00 % (1) "
        "| 10 s | 2 × H100 | `python -m experiments.compare` |",
        "| CIFAR-10, BinaryNet of width 128, 500 epochs | Bop | 91.3 % | not trained yet |  |  "
        "| `python train.py cifar10-bop` |",
    ]
    runs = {"cifar10-bop": [Result("", big, record | {"preset": "cifar10-bop"})]}
    *_, row = report.summary_table(runs, {}, {}).splitlines()
    assert "2 epochs | Bop |  | 80.00 % (1) |" in row  # the paper's figure is of 500 epochs
    assert "`python train.py cifar10-bop --epochs 2`" in row


def test_means_and_spreads_over_runs():
    runs = [[{"x": 1.0}, {"x": 5.0}], [{"x": 3.0}, {"x": 5.0}]]
    mean, spread = over_runs(runs, lambda m: m["x"])
    np.testing.assert_allclose(mean, [2, 5])
    np.testing.assert_allclose(spread, [2**0.5, 0])  # of a sample, as the tables'
    np.testing.assert_array_equal(over_runs(runs[:1], lambda m: m["x"])[1], [0, 0])


# ---- Records that do not belong ------------------------------------------------------------------

MALFORMED = ["{", "{}", "[[]]", '{"preset": "digits-bop", "config": {}}', "[" * 10**5]


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_results(text, tmp_path):
    (tmp_path / "seed0.json").write_text(text)
    with pytest.raises(ValueError, match=r"seed0.json is not the result.json of a run"):
        records.read(tmp_path / "seed0.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "format 1, this version reads 2"),
        ({"preset": "gone"}, "unknown preset gone"),
        ({"method": "gone"}, "unknown method gone"),
        ({"config": to_json(DIGITS) | {"warmup": 3}}, "argument 'warmup'"),
        ({"config": to_json(DIGITS) | {"epochs": "many"}}, "not supported between"),
        ({"result": {"seconds": 1.0}}, "no accuracy"),
    ],
)
def test_results_of_another_version(change, message, tmp_path):
    (tmp_path / "seed0.json").write_text(json.dumps(json.loads(SEED.read_text()) | change))
    with pytest.raises(ValueError, match=rf"seed0.json is not the result.json .*{message}"):
        records.read(tmp_path / "seed0.json")


def test_experiments_do_not_share_a_folder(tmp_path):
    folder = tmp_path / "runs" / "digits-bop"
    shutil.copytree(SEED.parent, folder)
    other = replace(DIGITS, model=replace(DIGITS.model, width=7))
    write(folder / "seed98.json", make_record(other, 0.5))
    with pytest.raises(ValueError, match=r"seed98.json is of another experiment than .*seed0.json"):
        report.tables(tmp_path)
    shutil.copy(SEED, folder / "seed98.json")
    with pytest.raises(ValueError, match=r"seed98.json is of the same run as .*seed0.json"):
        report.tables(tmp_path)


def test_runs_on_a_validation_split_are_not_reported_as_test_accuracies(tmp_path):
    held_out = replace(DIGITS, data=Digits(held_out=100))
    write(tmp_path / "runs" / "held" / "0.json", make_record(held_out, 0.5))
    with pytest.raises(ValueError, match=r"0.json was evaluated on held-out images"):
        report.tables(tmp_path)


ZEROS = '{"one_core": {"read": [0.0], "decode": [0.0], "decode_crop": [0.0]}}'


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"bytes": {"a net": 3}}', ZEROS, "[" * 10**5])
@pytest.mark.parametrize(
    "benchmark", ["memory", "pipeline", "engines", "collectives", "devices", "runs"]
)
def test_malformed_benchmarks(benchmark, text, tmp_path):
    shutil.copytree(SEED.parent, tmp_path / "runs" / "digits-bop")
    path = tmp_path / "benchmarks" / benchmark / "cpu.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=r"cpu.json is no record of a benchmark"):
        report.tables(tmp_path)


def race_record() -> dict[str, Any]:
    """A record of `python -m benchmarks race` in which one contestant failed."""
    setting = {"width": 64, "batch_size": 100, "gamma": 1e-3}
    curve = [{"seconds": 60.0 * i, "accuracy": 0.1 * i, "loss": 1.0} for i in (1, 3, 2)]
    ours = {"side": "ours", "name": "float32", "seconds": [], "results": [{"accuracy": 0.3}]}
    ours |= {"facts": {"setting": setting, "curve": curve}, "error": None}
    larq = {"side": "peer", "name": "Larq", "seconds": [], "results": [], "facts": {}}
    contestants = [ours, larq | {"error": "no wheel"}]
    known = json.loads(SEED.read_text())
    return {
        "date": "2026-11-24T00:00:00Z",
        "command": "python -m benchmarks race",
        "machine": {"cpu": "A CPU", "instructions": ["avx2"], "cores": 2},
        "peers": {"larq": {"larq": "0.14.0"}},
        "cases": [{"title": "a race", "unit": "%", "contestants": contestants}],
        **{key: known[key] for key in ("versions", "git_commit", "git_dirty")},
    }


def test_a_race_has_a_row_and_a_figure(tmp_path):
    assert benchmark_tables.tables(tmp_path)["benchmarks"] == ""  # no record, no block
    write(tmp_path / "benchmarks" / "runs" / "1.json", race_record())
    block = benchmark_tables.tables(tmp_path / "benchmarks")["benchmarks"]
    assert "| a race | float32 | 30.0 % |  |  |\n|  | Larq | missing |  |  |\n" in block
    assert block.endswith("(../experiments/results/race.png)\n")
    report.draw(tmp_path)
    assert (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")


def test_engines_by_hand():
    line = {"engine": "XLA", "bytes": 0, "seconds": [0.3, 0.1, 0.2], "same_classes": 99}
    other = {"engine": "LCE", "bytes": 1500, "seconds": [1.0], "same_classes": 100}
    lines = [line | {"largest_difference": 0.0}, other | {"largest_difference": 4.8e-7}]
    case = {"batch": 50, "images": 100, "engines": lines}
    record = {"network": "a network", "floats": 40_000, "cases": [case]}
    assert benchmark_tables.engine_rows(record) == [
        ("a network", "XLA", "40 kB", 50, "4", "99 of 100", "0"),
        ("a network", "LCE", "2 kB", 50, "20", "100 of 100", "5e-07"),
    ]


def test_collectives_by_hand():
    """A ring sends twice the bytes: 25 MB take 40 ms at 1.25 GB/s."""
    found = {"all-reduce": {"operations": 3, "bytes": 25_100_000}}
    network = {"gradients": 25_000_000, "collectives": found}
    record = {"command": "python -m benchmarks.collectives", "networks": {"a network": network}}
    assert benchmark_tables.collective_rows(record) == [
        ("a network", "", "25.00 MB", "all-reduce", 3, "25.10 MB")
    ]
    assert benchmark_tables.exchange_rows(record) == [
        ("a network", "float32", "40 ms", "4 ms", "1 ms"),
        ("a network", "8 bits", "10 ms", "1 ms", "0.25 ms"),
        ("a network", "1 bit", "1.2 ms", "0.12 ms", "0.031 ms"),
    ]
    divided = record | {"command": "python -m benchmarks.collectives --shard-averages"}
    assert benchmark_tables.collective_rows(divided)[0][1] == "`--shard-averages`"
    assert benchmark_tables.exchange_rows(divided) == []


def test_devices_by_hand():
    runs = [
        {"devices": 1, "differing": 0.0, "loss": [2.0, 1.0], "test_accuracy": [0.1, 0.8]},
        {"devices": 2, "differing": 0.125, "loss": [2.0, 1.5], "test_accuracy": [0.1, 0.9]},
        {"devices": 2, "differing": 0.25, "loss": [2.0, 0.5], "test_accuracy": [0.1, 0.8]},
    ]
    assert benchmark_tables.device_rows({"runs": runs}) == [
        (1, "–", "2.000000", "1.0000", "80.00%", 1),
        (2, "12.5% to 25.0%", "2.000000", "1.0000", "85.00% ± 7.07%", 2),
    ]


def test_precision_by_hand(tmp_path):
    for setting, backward, accuracies in (
        ("float32", "float32", (0.9, 0.8)),
        ("backward-4", 4, (0.7,)),
    ):
        for seed, accuracy in enumerate(accuracies):
            experiment = replace(DIGITS, backward=backward, seed=seed)
            path = tmp_path / setting / f"seed{seed}.json"
            write(path, make_record(experiment, accuracy, preset="digits-bop"))
    table = report.precision_table({"digits-bop": report.load(tmp_path), "other": {}})
    assert table.splitlines() == [
        "| option | digits-bop |",
        "| --- | --- |",
        "| none | 85.00 ± 7.07 % (2) |",
        "| `--backward 4` | 70.00 % (1) |",
    ]


# ---- Pages and figures ---------------------------------------------------------------------------


def test_tables_between_marks():
    page = "# Title\n" + PAGE.format("runs", "old\n") + "text\n" + PAGE.format("memory", "")
    new = "# Title\n" + PAGE.format("runs", "a\n") + "text\n" + PAGE.format("memory", "b\n")
    assert report.with_tables(page, {"runs": "a\n", "memory": "b\n", "search": ""}) == new
    with pytest.raises(ValueError, match="unknown table 'gone': choose from runs"):
        report.with_tables(PAGE.format("gone", ""), {"runs": ""})
    with pytest.raises(ValueError, match="table 'runs' has no line <!-- end of runs -->"):
        report.with_tables(PAGE.format("runs", "").replace("end", "End"), {"runs": ""})


def test_the_command_writes_all_pages_or_none(tmp_path, capsys):
    shutil.copytree(SEED.parent, tmp_path / "results" / "runs" / "digits-bop")
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "deep" / "page.md"
    page.parent.mkdir(parents=True)
    readme.write_text(PAGE.format("summary", ""))
    page.write_text(PAGE.format("gone", ""))
    with pytest.raises(SystemExit, match=r"page.md: unknown table 'gone'"):
        report.main(tmp_path / "results", tmp_path)
    assert readme.read_text() == PAGE.format("summary", "")
    page.write_text("no table")
    report.main(tmp_path / "results", tmp_path)
    assert "98.58 ± 0.33 % (10)" in readme.read_text()
    assert page.read_text() == "no table"
    assert f"{readme} has new tables." in capsys.readouterr().out


def test_no_results_leave_the_pages_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(PAGE.format("runs", "old\n"))
    with pytest.raises(SystemExit, match="holds no results"):
        report.main(tmp_path, tmp_path)
    assert readme.read_text() == PAGE.format("runs", "old\n")


def test_the_pages_show_figures_that_exist():
    found = 0
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for image in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
            found += image.endswith(".png")
            assert image.startswith("http") or (page.parent / image).is_file(), image
    assert found >= 2


def test_figures_are_drawn(tmp_path, monkeypatch):
    """The curves of flips: a method's colour is the same in steps and with a linear γ, dashed."""
    for name in ("bop-staircase", "sgd-staircase", "bop-linear"):
        record = make_record(METHODS[name][0], 0.5, method=name)
        write(tmp_path / "comparison" / name / "seed1.json", record)
    points = [{"gamma": gamma, "threshold": 1e-7} for gamma in (1e-3, 1e-4)]
    varied_at = {"gamma": 1e-3, "threshold": 1e-7}
    sweep = [make_record(at_point(DIGITS, p), 0.5) | {"varied_at": varied_at} for p in points]
    write(tmp_path / "sweep.json", sweep)
    figures, save = {}, Figure.savefig

    def savefig(figure, path, **options):
        figures[path.stem] = figure
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    report.draw(tmp_path)
    assert figures.keys() == {"figure1", "figure2-small", "flips-small"}
    for name in figures:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert [line.get_label() for line in figures["figure1"].axes[0].get_lines()][::2] == [
        "0.0001",
        "0.001",
    ]
    assert {
        line.get_label(): (line.get_linestyle(), line.get_color())
        for line in figures["flips-small"].axes[0].get_lines()
    } == {
        "bop-staircase": ("-", "C0"),
        "sgd-staircase": ("-", "C1"),
        "bop-linear": ("--", "C0"),
    }
