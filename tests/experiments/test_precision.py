"""Records of what reduced precision costs."""

from dataclasses import replace

import pytest

from experiments import precision
from experiments.presets import PRESETS
from training.interrupt import Interrupt
from training.records import read_record


@pytest.mark.usefixtures("standard_promotion")
def test_records_and_accuracies(tmp_path, monkeypatch):
    about, digits = PRESETS["digits-bop"]
    small = replace(digits, model=replace(digits.model, width=4, units=16), epochs=1)
    monkeypatch.setitem(PRESETS, "digits-bop", (about, small))
    changed = {
        "float32": small,
        "backward-4": replace(small, backward=4),
        "ema-bfloat16": replace(small, optimizer=replace(small.optimizer, ema_dtype="bfloat16")),
    }
    options = precision.Options(settings=tuple(changed), seeds=(1, 2), folder=tmp_path)
    reached = precision.accuracies(options, Interrupt())
    for name, expected in changed.items():
        for seed, accuracy in zip((1, 2), reached[name], strict=True):
            path = tmp_path / "results" / "digits-bop" / name / f"seed{seed}.json"
            experiment, record = read_record(path)
            assert experiment == replace(expected, seed=seed)
            assert record["result"]["test_accuracy"] == accuracy
    assert reached["float32"] != reached["backward-4"]
    assert precision.accuracies(options, Interrupt()) == reached  # nothing is trained again


def test_unknown_names():
    for options, message in (
        (precision.Options(preset="digits"), "unknown preset digits"),
        (precision.Options(settings=("int4",)), "unknown settings int4: choose from float32, "),
    ):
        with pytest.raises(ValueError, match=message):
            precision.accuracies(options, Interrupt())
