"""The README's tables and figures are those of results/, and bad results are refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import report
from figures import over_runs
from runs import read_result

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
SEED = RESULTS / "digits-bop" / "seed0.json"


def test_the_readme_has_the_tables_of_results():
    readme = (ROOT / "README.md").read_text()
    assert report.with_tables(readme, report.tables(RESULTS)) == readme


def test_every_result_is_a_record_of_this_version():
    paths = [p for p in RESULTS.rglob("*.json") if "benchmarks" not in p.parts]
    assert len(paths) >= 11
    for path in paths:
        config, record = read_result(path)
        config.check()
        assert record["versions"]["jax"]


def written(path: Path, change: dict, **result: float) -> None:
    """A copy of a real record with other values in it, and with its last epoch alone."""
    record = json.loads(SEED.read_text())
    record["metrics"] = [record["metrics"][-1] | result]
    record["config"] |= change
    record["result"] = {"seconds": 10.0} | result
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def test_tables_by_hand(tmp_path):
    for seed, accuracy in ((0, 0.9), (1, 0.94)):
        written(tmp_path / f"ours/{seed}.json", {"seed": seed, "width": 7}, test_accuracy=accuracy)
    table = report.tables(tmp_path)["runs"]
    assert "| `train.py digits-bop --width 7` |" in table
    assert "| 92.00 ± 2.83 % | 2 | 30 | 10 | 1 × cpu |" in table

    search = tmp_path / "search" / "ours"
    for gamma, accuracy in ((1e-2, 0.5), (1e-4, 0.75), (1e-3, 0.625)):
        change = {"gamma": gamma, "held_out": 100, "flip": True}
        written(search / f"{gamma}.json", change, validation_accuracy=accuracy)
    row = report.search_table({"cifar10-bop-small": report.load_results(search.parent)["ours"]})
    assert row.splitlines()[-1] == (
        "| `cifar10-bop-small` | gamma, threshold | 0.0001, 1e-07 | 75.00 % "
        "| 3 of 6 | 62.5 (0.001, 1e-07), 50.0 (0.01, 1e-07) |"
    )


def test_the_comparison_by_hand(tmp_path):
    changes = {
        "steps": {},
        "linear": {"gamma_end": 0.0},
        "cema": {"optimizer": "cema"},
        "both": {"gamma_end": 0.0, "threshold_end": 1e-8},
    }
    for number, (name, change) in enumerate(changes.items()):
        for seed in (0, 1):
            accuracy = {"test_accuracy": 0.1 * number + 0.02 * seed}
            written(tmp_path / f"{name}/{seed}.json", {"seed": seed} | change, **accuracy)
    table = report.comparison_table(report.load_results(tmp_path)[name] for name in changes)
    assert table.splitlines()[2:] == [
        "| `bop` | 1.00 ± 1.41 % | 11.00 ± 1.41 % |",
        "| `cema` |  | 21.00 ± 1.41 % |",
        "| `bop`, τ falling to 1e-08 |  | 31.00 ± 1.41 % |",
    ]


@pytest.mark.parametrize("points", [{"gamma": 0.5}, {"threshold": 1e-3}])
def test_points_off_the_grid_are_named(points, tmp_path):
    written(tmp_path / "ours/0.json", {"held_out": 100} | points, validation_accuracy=0.5)
    results = report.load_results(tmp_path)["ours"]
    for preset in ("cifar10-bop-small", "cifar10-bop"):
        with pytest.raises(ValueError, match=r"0.json is of no point that compare.py searches"):
            report.search_table({preset: results})


def test_means_and_spreads_over_runs():
    runs = [[{"x": 1.0}, {"x": 5.0}], [{"x": 3.0}, {"x": 5.0}]]
    mean, spread = over_runs(runs, lambda m: m["x"])
    np.testing.assert_allclose(mean, [2, 5])
    np.testing.assert_allclose(spread, [2**0.5, 0])  # of a sample, as the tables'
    np.testing.assert_array_equal(over_runs(runs[:1], lambda m: m["x"])[1], [0, 0])


MALFORMED = ["{", "{}", "[]", '{"preset": "digits-bop", "config": {}}', "[" * 10**5]


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_results(text, tmp_path):
    (tmp_path / "seed0.json").write_text(text)
    with pytest.raises(ValueError, match=r"seed0.json is not the result.json of a run"):
        read_result(tmp_path / "seed0.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "another version: format 2, .* reads format 1"),
        ({"preset": "gone"}, "another version: .* preset gone"),
        ({"config": {"warmup": 3, "width": 8}}, "another version: .* argument 'warmup'"),
        ({"config": {"width": "wide"}}, "another version: .* not supported between"),
    ],
)
def test_results_of_another_version(change, message, tmp_path):
    (tmp_path / "seed0.json").write_text(json.dumps(json.loads(SEED.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        read_result(tmp_path / "seed0.json")


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (float("nan"), "nan is not a finite number"),
        ("0.9", "'0.9' is not a finite number"),
        (None, "None is not a finite number"),
        (10**400, "OverflowError"),
    ],
)
@pytest.mark.parametrize("name", ["seconds", "test_accuracy"])
def test_results_that_are_no_numbers(name, value, fault, tmp_path):
    record = json.loads(SEED.read_text())
    record["result"][name] = value
    (tmp_path / "seed0.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"not the result.json of a run \(.*{fault}"):
        read_result(tmp_path / "seed0.json")


@pytest.mark.parametrize("part", ["result", "metrics"])
def test_results_without_an_accuracy(part, tmp_path):
    record = json.loads(SEED.read_text())
    places = record["metrics"][-1:] if part == "metrics" else [record["result"]]
    for place in places:
        del place["test_accuracy"]
    (tmp_path / "seed0.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"not the result.json of a run \(KeyError"):
        read_result(tmp_path / "seed0.json")


def test_experiments_do_not_share_a_folder(tmp_path):
    shutil.copytree(SEED.parent, tmp_path / "digits-bop")
    written(tmp_path / "digits-bop" / "seed98.json", {"width": 7}, test_accuracy=0.5)
    with pytest.raises(ValueError, match=r"seed98.json is of another experiment than seed0.json"):
        report.tables(tmp_path)
    shutil.copy(SEED, tmp_path / "digits-bop" / "seed98.json")
    with pytest.raises(ValueError, match=r"seed98.json is of the same run as one beside it"):
        report.tables(tmp_path)


def test_no_results_leave_the_readme_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text())
    with pytest.raises(SystemExit, match="holds no results"):
        report.main(tmp_path, readme)
    assert readme.read_text() == (ROOT / "README.md").read_text()


def test_the_readme_shows_figures_that_are_there():
    images = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(images) >= 2
    for image in images:
        assert (ROOT / image).is_file(), image


ZEROS = '{"one_core": {"read": [0.0], "decode": [0.0], "decode_crop": [0.0]}}'


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"bytes": {"a net": 3}}', ZEROS, "[" * 10**5])
@pytest.mark.parametrize("benchmark", ["memory", "pipeline"])
def test_malformed_benchmarks(benchmark, text, tmp_path):
    shutil.copytree(SEED.parent, tmp_path / "digits-bop")
    path = tmp_path / "benchmarks" / benchmark / "cpu.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=r"cpu.json is not what its benchmark writes"):
        report.tables(tmp_path)


def test_a_readme_without_the_place_of_a_table():
    with pytest.raises(ValueError, match="0 places for the table 'runs'"):
        report.with_tables("# bop_optax", {"runs": ""})


def test_figures_are_drawn(tmp_path, monkeypatch):
    """The curves of flips: a method's colour is the same in steps and with a linear γ, dashed."""
    for name in ("cifar10-bop-small", "cifar10-sgd-small"):
        shutil.copytree(SEED.parent, tmp_path / name)
    linear = json.loads(SEED.read_text())
    linear["config"] |= {"gamma_end": 0.0}
    (tmp_path / "cifar10-bop-falling-gamma-small").mkdir()
    (tmp_path / "cifar10-bop-falling-gamma-small" / "seed1.json").write_text(json.dumps(linear))
    for gamma in (1e-3, 1e-4):
        record = json.loads(SEED.read_text())
        record |= {"varied_at": {"gamma": 1e-3, "threshold": 1e-7}}
        record["config"] |= {"gamma": gamma, "threshold": 1e-7}
        (tmp_path / "sweep").mkdir(exist_ok=True)
        (tmp_path / "sweep" / f"{gamma}.json").write_text(json.dumps(record))
    figures, save = {}, Figure.savefig

    def savefig(figure, path, **options):
        figures[path.stem] = figure
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    report.draw(tmp_path, tmp_path)
    assert figures.keys() == {"figure1", "figure2-small", "flips-small"}
    for name in figures:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert {
        line.get_label(): (line.get_linestyle(), line.get_color())
        for line in figures["flips-small"].axes[0].get_lines()
    } == {
        "cifar10-bop-small": ("-", "C0"),
        "cifar10-sgd-small": ("-", "C1"),
        "cifar10-bop-falling-gamma-small": ("--", "C0"),
    }
