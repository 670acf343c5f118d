"""The README's tables and figures are those of results/, and bad results are refused."""

import json
import shutil
from pathlib import Path

import pytest

import report
from runs import read_result

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
SEED = RESULTS / "digits-bop" / "seed0.json"


def test_the_readme_has_the_tables_of_results():
    readme = (ROOT / "README.md").read_text()
    assert report.with_tables(readme, report.tables(RESULTS)) == readme


def test_every_result_is_a_record_of_this_version():
    paths = list(RESULTS.rglob("*.json"))
    assert len(paths) >= 11
    for path in paths:
        config, record = read_result(path)
        config.check()
        assert record["versions"]["jax"]


def written(path: Path, change: dict, **result: float) -> None:
    """A copy of a real record with other values in it, and without its epochs."""
    record = json.loads(SEED.read_text())
    del record["metrics"]
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
    for gamma, accuracy in ((1e-2, 0.5), (1e-4, 0.75), (1e-5, 0.625)):
        change = {"gamma": gamma, "held_out": 100, "flip": True}
        written(search / f"{gamma}.json", change, validation_accuracy=accuracy)
    row = report.tables(tmp_path)["search"].splitlines()[-1]
    assert row == "| `digits-bop --gamma 0.0001 --flip` | 75.00 % | 62.5, 50.0 |"


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"preset": "digits-bop", "config": {}}'])
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


def test_a_readme_without_the_place_of_a_table():
    with pytest.raises(ValueError, match="0 places for the table 'runs'"):
        report.with_tables("# bop_optax", {"runs": ""})


def test_figures_are_drawn(tmp_path):
    for name in ("cifar10-bop-small", "cifar10-sgd-small", "sweep"):
        shutil.copytree(SEED.parent, tmp_path / name)
    report.draw(tmp_path, tmp_path)
    for name in ("figure1", "figure2-small"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "figure2.png").exists()
