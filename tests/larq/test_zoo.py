"""Our networks with Larq Zoo's weights: random ones of the Zoo's networks, and the Zoo's logits.

The Zoo runs in the environment that `python -m benchmarks` makes for Larq.
"""

import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import peers
from bop_optax import models
from bop_optax.larq import from_larq
from bop_optax.layers import Product

WRITER = Path(__file__).with_name("write_zoo.py")
SIZES = {  # sides of the images, by network
    "BiRealNet": 64,
    "BinaryAlexNet": 64,
    "BinaryDenseNet28": 64,
    "BinaryDenseNet37": 64,
    "BinaryDenseNet37Dilated": 64,
    "BinaryDenseNet45": 64,
    "BinaryResNetE18": 64,
    "MeliusNet22": 40,
    "QuickNet": 64,
    "QuickNetLarge": 64,
    "QuickNetSmall": 64,
    "RealToBinaryNet": 40,
    "XNORNet": 224,
}


@pytest.fixture(scope="module", params=SIZES)
def zoo(request, tmp_path_factory):
    """The name of a network, and the folder with its weights, images and logits."""
    environments = Path(os.environ.get("BOP_OPTAX_PEERS", peers.DEFAULT_FOLDER)).expanduser()
    if not (environments / "larq").exists():
        pytest.skip(f"larq is not in {environments}: run python -m benchmarks")
    folder = tmp_path_factory.mktemp(request.param)
    command = [peers.prepare("larq", environments), WRITER, request.param]
    environment = os.environ | peers.PEERS["larq"].environment
    subprocess.run([*command, str(SIZES[request.param]), folder], env=environment, check=True)
    yield request.param, folder
    (folder / "weights.h5").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("latent", [True, False])
def test_logits_are_the_zoos(zoo, latent, record_property):
    network, folder = zoo
    cls, images = getattr(models, network), np.load(folder / "images.npy")
    with jax.enable_x64():  # in float32 a rounding error may turn a sign
        model = cls(
            num_classes=10,
            image_shape=images.shape[1:],
            kernel_quantizer=cls.larq_quantizer if latent else None,
            product=Product("float"),  # which compiles sooner
            dtype=jnp.float64,
            rngs=nnx.Rngs(0),
        )
        from_larq(model, folder / "weights.h5").eval()
        logits = nnx.jit(lambda model, x: model(x))(model, jnp.asarray(images))
    expected = np.load(folder / "logits.npy").reshape(logits.shape)
    assert expected.std() > 0
    difference = np.abs(np.asarray(logits) - expected).max() / np.abs(expected).max()
    record_property("largest_difference", float(difference))
    assert difference < 1e-6  # the weights are float32 in our network
