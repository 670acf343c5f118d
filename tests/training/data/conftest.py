"""The mesh that the tests of this folder share."""

import jax
import pytest
from jax.sharding import AxisType, Mesh


@pytest.fixture
def mesh() -> Mesh:
    """The eight CPU devices."""
    return jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
