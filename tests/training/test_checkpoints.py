"""Checkpoints: checksums see every bit, and a damaged state is never restored."""

import gc
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bop_optax.layers import BinaryParam
from training.checkpoints import Checkpoints, DamagedCheckpoint
from training.checksums import checksums
from training.devices import device_mesh


def words_of(array):
    """The bytes of an array as words of at most 32 bits, and their positions."""
    size = min(array.dtype.itemsize, 4)
    return np.frombuffer(array.tobytes(), f"u{size}").astype(np.uint64)


def oracle(array):
    """The checksum in Python's integers."""
    total = 0
    for position, word in enumerate(words_of(np.asarray(array)).tolist()):
        h = (word + position * 0x9E3779B9) % 2**32
        h = ((h ^ (h >> 16)) * 0x85EBCA6B) % 2**32
        h = ((h ^ (h >> 13)) * 0xC2B2AE35) % 2**32
        total += h ^ (h >> 16)
    return total % 2**32


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int8", "uint16", "int32", "bool"]
)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 2), (2, 3, 4)])
def test_checksums_are_those_of_integers(dtype, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape) * 3, dtype)
    np.testing.assert_array_equal(checksums({"a": x, "b": x}), [oracle(x)] * 2)


def test_words_of_64_bits():
    with jax.enable_x64():
        x = jnp.asarray([1.5, -2.5, 1e-300])
        assert checksums(x)[0] == oracle(x)


def test_random_keys_have_a_checksum():
    one, other = checksums([jax.random.key(1), jax.random.key(2)])
    assert one != other


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_every_single_bit_counts(dtype):
    """Each flipped bit, and each exchange of two weights of different signs."""
    x = np.where(np.random.default_rng(1).random(40) < 0.5, -1, 1)
    x = np.asarray(jnp.asarray(x, dtype))
    variants = [x]
    for byte in range(x.nbytes):
        for bit in range(8):
            content = bytearray(x.tobytes())
            content[byte] ^= 1 << bit
            variants.append(np.frombuffer(bytes(content), x.dtype))
    for i in range(len(x)):
        for j in range(i):
            if x[i] != x[j]:
                variants.append(x.copy())
                variants[-1][[i, j]] = x[[j, i]]
    found = np.asarray(checksums([jnp.asarray(variant) for variant in variants]))
    assert len(set(found.tolist())) == len(variants)


def test_checksums_do_not_depend_on_the_sharding():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(16, 24)), jnp.float32)
    mesh = device_mesh()
    for spec in (PartitionSpec(), PartitionSpec("batch"), PartitionSpec(None, "batch")):
        assert int(checksums(jax.device_put(x, NamedSharding(mesh, spec)))[0]) == oracle(x)


# ---- Checkpoints ---------------------------------------------------------------------------------


class State(NamedTuple):
    step: jax.Array
    params: dict


def state(step=7, networks=None, **changed):
    kernel = np.where(np.random.default_rng(3).random((64, 32)) < 0.5, -1.0, 1.0)
    params = {"kernel": BinaryParam(jnp.asarray(kernel, jnp.float32)), "bias": jnp.zeros(32)}
    one = State(jnp.asarray(step, jnp.int32), params | changed)
    return one if networks is None else jax.tree.map(lambda x: jnp.stack([x] * networks), one)


def saved(folder, state, step=7):
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(state, step)
    return folder


@pytest.mark.parametrize("networks", [None, 3])
def test_a_restored_state_is_the_saved_one(tmp_path, networks):
    before = state(networks=networks)
    with Checkpoints(saved(tmp_path, before), keep=2) as checkpoints:
        assert checkpoints.steps() == [7]
        after = checkpoints.restore(7, jax.tree.map(jnp.zeros_like, before))
    jax.tree.map(np.testing.assert_array_equal, before, after)


NOT_BINARY = jnp.ones((64, 32)).at[3, 4].set(0.5)
MIXED = [
    (state(bias=jnp.zeros(32).at[5].set(jnp.nan)), "params.bias is not finite"),
    (state(kernel=BinaryParam(NOT_BINARY)), "kernel is not −α or \\+α with one α for each output"),
    (state(networks=2, kernel=BinaryParam(NOT_BINARY)), "kernel is not −α or \\+α"),
    (state(step=6), "it is the state of step 6"),
]


@pytest.mark.parametrize(("wrong", "message"), MIXED)
def test_wrong_states_are_not_restored(tmp_path, wrong, message):
    saved(tmp_path, wrong)
    with (
        Checkpoints(tmp_path, keep=2) as checkpoints,
        pytest.raises(DamagedCheckpoint, match=message),
    ):
        checkpoints.restore(7, wrong)


def test_a_state_of_another_network_is_not_restored(tmp_path):
    with Checkpoints(saved(tmp_path, state()), keep=2) as checkpoints:
        for other in (state(scale=jnp.ones(3)), state(bias=jnp.zeros(31))):
            with pytest.raises(DamagedCheckpoint):
                checkpoints.restore(7, other)


def test_an_error_without_a_message_is_named(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise EOFError

    with Checkpoints(saved(tmp_path, state()), keep=2) as checkpoints:
        monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)
        with pytest.raises(DamagedCheckpoint, match="EOFError"):
            checkpoints.restore(7, state())


def test_a_checkpoint_set_aside_is_none(tmp_path):
    with Checkpoints(saved(tmp_path, state()), keep=2) as checkpoints:
        checkpoints.set_aside(7)
        assert checkpoints.steps() == []
        checkpoints.save(state(), 7)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.steps() == [7]
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(7, state()), state())


COROUTINE = """
async def read():
    try:
        await Waiting()
    finally:
        raise ValueError("a read that was given up")

class Waiting:
    def __await__(self):
        yield
"""


@pytest.mark.parametrize(("library", "shown"), [("orbax", False), ("another", True)])
def test_reads_that_orbax_gives_up_say_nothing(library, shown, tmp_path, monkeypatch, capsys):
    """When one array is damaged, the reads of others end with an error that nobody awaits."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with Checkpoints(tmp_path):
        names = {}
        exec(compile(COROUTINE, f"/lib/{library}/checkpoint/read.py", "exec"), names)
        coroutine = names["read"]()
        coroutine.send(None)
        del coroutine
        gc.collect()
    assert ("a read that was given up" in capsys.readouterr().err) == shown


def test_checkpoints_of_one_step_set_aside_twice(tmp_path):
    for name in ("damaged-7", "damaged-7-2", "damaged-7-3"):
        saved(tmp_path, state())
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            assert checkpoints.set_aside(7) == name
    assert len(list(tmp_path.glob("damaged-*"))) == 3


def test_reading_makes_no_folder(tmp_path):
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.steps() == []
    assert not (tmp_path / "none").exists()
