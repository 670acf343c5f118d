"""Records of what reduced precision costs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import precision
from experiments.presets import PRESETS
from training.config import to_json
from training.interrupt import Interrupt
from training.records import read_record, sealed, write_json

RECORD = Path("experiments/results/runs/digits-bop/seed0.json")
DIGITS = PRESETS["digits-bop"][1]


def test_every_setting_has_its_records(tmp_path, monkeypatch):
    """Without training: each run's accuracy is a number of its own."""
    reached = []

    def train(folder, name, experiment, interrupt):
        reached.append(0.5 + 0.01 * len(reached))
        record = json.loads(RECORD.read_text()) | {"config": to_json(experiment)}
        record["result"]["test_accuracy"] = reached[-1]
        folder.mkdir()
        write_json(folder / "result.json", sealed(record))
        return reached[-1]

    monkeypatch.setattr(precision, "run_network", train)
    settings = ("float32", "backward-4", "dtype-bfloat16", "ema-bfloat16")
    options = precision.Options(settings=settings, seeds=(1, 2), folder=tmp_path)
    accuracies = precision.accuracies(options, Interrupt())
    assert accuracies == {name: [reached[i], reached[i + 4]] for i, name in enumerate(settings)}
    expected = {
        "float32": DIGITS,
        "backward-4": replace(DIGITS, backward=4),
        "dtype-bfloat16": replace(DIGITS, dtype="bfloat16"),
        "ema-bfloat16": replace(DIGITS, optimizer=replace(DIGITS.optimizer, ema_dtype="bfloat16")),
    }
    for name, experiment in expected.items():
        for seed in (1, 2):
            path = tmp_path / "results" / "digits-bop" / name / f"seed{seed}.json"
            found, record = read_record(path)
            assert found == replace(experiment, seed=seed)
            assert record["result"]["test_accuracy"] == accuracies[name][seed - 1]


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_the_precision_changes_a_training(tmp_path, monkeypatch):
    about, digits = PRESETS["digits-bop"]
    small = replace(digits, model=replace(digits.model, width=4, units=16), epochs=1)
    monkeypatch.setitem(PRESETS, "digits-bop", (about, small))
    options = precision.Options(settings=("float32", "backward-4"), seeds=(1,), folder=tmp_path)
    reached = precision.accuracies(options, Interrupt())
    assert reached["float32"] != reached["backward-4"]
    assert precision.accuracies(options, Interrupt()) == reached  # nothing is trained again


def test_unknown_names():
    for options, message in (
        (precision.Options(preset="digits"), "unknown preset digits"),
        (precision.Options(settings=("int4",)), "unknown settings int4: choose from float32, "),
    ):
        with pytest.raises(ValueError, match=message):
            precision.accuracies(options, Interrupt())
