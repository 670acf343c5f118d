"""Sizes that no network can have."""

import pytest
from flax import nnx

from bop_optax import models

NETWORKS = sorted({*models.__all__} - {"BinaryDenseNet"})  # the base of four others


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (224, 224)}, r"must be \(height, width, channels\), got \(224, 224\)"),
        ({"image_shape": (224, 224, 0)}, "channels and num_classes must be ≥ 1, got 0 and 10"),
        ({"num_classes": 0}, "channels and num_classes must be ≥ 1, got 3 and 0"),
        ({"num_classes": -1}, "channels and num_classes must be ≥ 1, got 3 and -1"),
        ({"image_shape": (0, 224, 3)}, "images must be .* got 0×224"),
    ],
)
def test_sizes_that_no_network_can_have(name, options, message):
    sizes = {"image_shape": (224, 224, 3), "num_classes": 10}
    with pytest.raises(ValueError, match=message):
        getattr(models, name)(**sizes | options, rngs=nnx.Rngs(0))
