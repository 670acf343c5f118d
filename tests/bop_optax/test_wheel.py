"""The wheel: the library with its networks, as it is installed without a clone."""

import subprocess
import sys
import zipfile

import pytest

PROGRAM = """
import jax.numpy as jnp
from flax import nnx
import bop_optax
from bop_optax.models import BinaryNet

assert bop_optax.__file__.startswith({folder!r}), bop_optax.__file__
print(BinaryNet(8, 16, rngs=nnx.Rngs(0))(jnp.zeros((2, 32, 32, 3))).shape)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), "."]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_library_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        folders = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"bop_optax"}


def test_networks_are_built_without_a_clone(wheel, tmp_path):
    place = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)  # a wheel of pure Python needs no more than this
    program = PROGRAM.format(folder=str(place))
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(place), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "(2, 10)\n", run.stderr
