"""Records of what rounded gradients cost."""

from dataclasses import replace

import pytest

from experiments import rounding
from experiments.presets import PRESETS
from training.interrupt import Interrupt
from training.records import read_record


@pytest.mark.usefixtures("standard_promotion")
def test_records_and_accuracies(tmp_path, monkeypatch):
    about, digits = PRESETS["digits-bop"]
    small = replace(digits, model=replace(digits.model, width=4, units=16), epochs=1)
    monkeypatch.setitem(PRESETS, "digits-bop", (about, small))
    options = rounding.Options(roundings=("float32", "4"), seeds=(1, 2), folder=tmp_path)
    reached = rounding.accuracies(options, Interrupt())
    for name, backward in (("float32", "float32"), ("4", 4)):
        for seed, accuracy in zip((1, 2), reached[name], strict=True):
            path = tmp_path / "results" / "digits-bop" / name / f"seed{seed}.json"
            experiment, record = read_record(path)
            assert experiment == replace(small, backward=backward, seed=seed)
            assert record["result"]["test_accuracy"] == accuracy
    assert reached["float32"] != reached["4"]
    assert rounding.accuracies(options, Interrupt()) == reached  # nothing is trained again


def test_unknown_names(tmp_path):
    for options, message in (
        (rounding.Options(preset="digits"), "unknown preset digits"),
        (rounding.Options(roundings=("9",), folder=tmp_path), "backward must be"),
    ):
        with pytest.raises(ValueError, match=message):
            rounding.accuracies(options, Interrupt())
