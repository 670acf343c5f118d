"""How every test runs: on eight CPU devices, without promotion of dtypes, warnings as errors."""

import os
import tempfile

import jax
import pytest

# Before JAX starts: pmap and shard_map need devices, and a promotion is a bug in a library whose
# weights may be bfloat16 and their average float32.
if not os.environ.get("JAX_PLATFORMS"):  # JAX_PLATFORMS=cuda,cpu runs the tests on a GPU
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The tests of a session, and the processes that they start, share compiled programs.
if "PYTEST_XDIST_WORKER" not in os.environ:  # its workers have the session's folder
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture
def standard_promotion():
    """For Optax's own promotions: the integer counts of Adam, MultiSteps, cosine decay."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def standard_promotion_throughout():
    """The same for a whole module, such as those that train real parameters by Adam."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def use_instructions(monkeypatch):
    """A function that lets the processor have some instruction sets alone."""

    def use(instructions):
        flags = {"flags": " ".join(instructions)}
        monkeypatch.setattr("bop_optax.processor._entries", lambda cpuinfo: flags)

    return use
