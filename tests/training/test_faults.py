"""Faults on purpose, fewer than `python -m tests.faults` makes."""

import random

import pytest

from tests import faults


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "whole"
    faults.train_to_the_end(folder)
    return folder


# TensorStore drops its other reads when one fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_flipped_bit_is_restored(whole):
    found = faults.flip_bits(whole / "checkpoints", 60)
    assert found["wrong"] == 0
    assert found["refused"] > 20


@pytest.mark.parametrize("name", ["weights", "configuration", "metrics", "results"])
def test_no_mutated_file_is_read(whole, name):
    path, reader = faults.readers(whole)[name]
    found = faults.mutate(path, reader, 300)
    assert found["wrong"] == 0
    assert found["refused"] > 30


@pytest.mark.slow
def test_killed_runs_end_as_one_never_killed(whole, tmp_path):
    draw, kills = random.Random(0), 0
    for number in range(100):
        folder = tmp_path / str(number)
        kills += faults.kill_until_done(folder, draw)
        assert not faults.differences(folder, whole)
        if kills >= 30:
            break
    assert kills >= 30
