"""What devices exchange in a step: the operations are read from the program's text."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.collectives import NETWORKS, collectives, step_collectives
from training.devices import device_mesh, replicated

PROGRAM = """
  %p = f32[8,4]{1,0} parameter(0)
  %all-reduce.1 = (f32[48]{0}, f32[144,48]{1,0}, /*index=2*/s32[]) all-reduce(%a, %b, %c), x=1
  ROOT %all-gather = u32[18,6144]{0,1} all-gather(%d), channel_id=3, dimensions={1}
  %s = bf16[10]{0} all-reduce-start(%e), channel_id=4
  %t = bf16[10]{0} all-reduce-done(%s)
  %r = pred[7]{0} collective-permute(%f), channel_id=5
  %f8 = f8e4m3fn[16]{0} all-to-all(%g)
  %fusion = f32[9]{0} fusion(%all-reduce.1), kind=kLoop, calls=%all-reduce.2
"""


def test_operations_and_bytes_by_hand():
    assert collectives(PROGRAM.replace("pred[7]", "u8[7]")) == {
        "all-reduce": {"operations": 2, "bytes": 4 * 48 + 4 * 144 * 48 + 4 + 2 * 10},
        "all-gather": {"operations": 1, "bytes": 4 * 18 * 6144},
        "collective-permute": {"operations": 1, "bytes": 7},
        "all-to-all": {"operations": 1, "bytes": 16},
    }
    assert collectives("") == {}


def test_a_sum_over_devices_is_one_all_reduce():
    mesh = device_mesh()
    by_batch = NamedSharding(mesh, PartitionSpec("batch"))
    x = jax.ShapeDtypeStruct((16, 5), jnp.float32, sharding=by_batch)
    program = jax.jit(lambda x: jnp.sum(x, 0), out_shardings=replicated(mesh)).lower(x).compile()
    assert collectives(program.as_text()) == {"all-reduce": {"operations": 1, "bytes": 20}}


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_exchanges_its_gradients_and_little_else(name):
    """One all-reduce; the rest, of BatchNorm and the metrics, is below one in a hundred."""
    step = step_collectives(name, 8)
    assert list(step["collectives"]) == ["all-reduce"]
    assert 1 <= step["collectives"]["all-reduce"]["bytes"] / step["gradients"] < 1.01


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_divided_averages_add_a_gathering_of_the_weights():
    step = step_collectives("BinaryNet", 8, shard_averages=True)
    assert set(step["collectives"]) == {"all-reduce", "all-gather"}
    for found in step["collectives"].values():
        assert found["bytes"] / step["gradients"] < 1.01
