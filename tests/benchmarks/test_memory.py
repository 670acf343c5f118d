"""The memory of a training step, as the benchmark measures it."""

import json
from pathlib import Path

import pytest

from benchmarks.memory import step_memory

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_a_step_needs_memory_for_the_state_and_for_each_image():
    """The record of batch 256 has the same state; the activations grow with the batch."""
    record = json.loads((ROOT / "experiments/results/benchmarks/memory/cpu.json").read_text())
    small, large = (step_memory("imagenet-alexnet-bop-released", batch) for batch in (1, 9))
    assert small["state"] == large["state"] == record["bytes"]["Binary AlexNet"]["state"]
    images = 8 * 224 * 224 * 3 * (1 + 4)  # as they come, and as float32
    assert small["state"] < small["total"] < large["total"] - images
