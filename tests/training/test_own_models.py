"""Networks of a user's own: what they may hold, and mistakes in them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from flax import nnx

import train
from bop_optax import ste_sign
from bop_optax.layers import BinaryLinear
from tests.test_train import TINY
from training.config import Bop, RunConfig
from training.data.memory import digits
from training.trained import load_run

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")


@dataclass(frozen=True)
class Own:
    """Two binary layers, Dropout between them, and `outputs` logits."""

    outputs: int = 10
    shape: tuple[int, ...] = (64, 16)

    def build(self, image_shape: Any, num_classes: int, *, rngs: nnx.Rngs, **options: Any):
        return nnx.Sequential(
            lambda x: x.reshape(len(x), -1),
            BinaryLinear(*self.shape, rngs=rngs, **options),
            nnx.BatchNorm(16, use_scale=False, rngs=rngs),
            nnx.Dropout(0.1, rngs=rngs),
            BinaryLinear(16, self.outputs, input_quantizer=ste_sign, rngs=rngs, **options),
            nnx.BatchNorm(self.outputs, use_scale=False, rngs=rngs),
        )


def test_random_state_and_tuples_are_saved_resumed_and_loaded(tmp_path):
    experiment = replace(TINY, model=Own(), optimizer=Bop(1e-2, 1e-6), epochs=1)
    train.run(experiment, RunConfig(tmp_path / "run"))
    longer = replace(experiment, epochs=2)
    result = train.run(longer, RunConfig(tmp_path / "run", resume=True))
    data = digits()
    probabilities = load_run(tmp_path / "run", Own()).probabilities(data.test_images)
    accuracy = np.mean(probabilities.argmax(-1) == data.test_labels)
    assert accuracy == pytest.approx(result["test_accuracy"])


@pytest.mark.parametrize("outputs", [5, 11])
def test_a_wrong_number_of_logits(outputs, tmp_path):
    experiment = replace(TINY, model=Own(outputs))
    message = (
        rf"Own must map \(2, 8, 8, 1\) images to logits of shape \(2, 10\), got \(2, {outputs}\)"
    )
    with pytest.raises(ValueError, match=message):
        train.run(experiment, RunConfig(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is no folder: choose another --run-dir"):
        train.run(TINY, RunConfig(tmp_path / "file"))
