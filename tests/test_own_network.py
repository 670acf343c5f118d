"""The documented example of a user's own network and images, run as the user would."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.trained import load_run

ROOT = Path(__file__).parents[1]


def test_own_network_on_own_images(tmp_path, monkeypatch):
    script, folder = ROOT / "docs/examples/own_network.py", tmp_path / "run"
    process = subprocess.run(
        [sys.executable, script, folder], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    record = json.loads((folder / "result.json").read_text())
    assert record["result"]["test_accuracy"] > 0.9  # chance is 0.5
    assert record["config"]["model"] == {"type": "TwoLayers", "units": 64}

    monkeypatch.syspath_prepend(script.parent)
    import own_network

    with pytest.raises(ValueError, match=r"TwoLayers is none of BinaryNet, .*: use load_run"):
        load_run(folder)
    trained = load_run(folder, own_network.TwoLayers())
    data = own_network.Stripes().load()
    probabilities = trained.probabilities(data.test_images)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    accuracy = np.mean(probabilities.argmax(-1) == data.test_labels)
    assert accuracy == pytest.approx(record["result"]["test_accuracy"])
