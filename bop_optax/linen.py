"""Binary parameters for Flax Linen: an initializer that marks them for `binary_labels`.

`import bop_optax` does not import this module, which needs Flax.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import struct
from flax.core import meta

from bop_optax.layers import rademacher


class BinaryBox(struct.PyTreeNode, meta.AxisMetadata[Any]):
    """Marks a Linen parameter as binary.

    `with_binary` makes the box. Linen itself removes it when a module reads the parameter.

    Attributes:
        value: the array of binary weights.

    Example:
        >>> import jax.numpy as jnp
        >>> from bop_optax import binary_labels
        >>> binary_labels({"kernel": BinaryBox(jnp.ones((4, 2)))})
        {'kernel': 'binary'}
    """

    value: Any
    is_binary = True

    def unbox(self) -> Any:
        """Returns the array."""
        return self.value

    def replace_boxed(self, val: Any) -> "BinaryBox":
        """Returns a box of another array."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "BinaryBox":
        """Returns the box as it is: a new axis leaves the weights binary."""
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "BinaryBox":
        """Returns the box as it is: the weights stay binary without the axis."""
        return self


def with_binary(init: Callable[..., jax.Array] = rademacher) -> Callable[..., BinaryBox]:
    """Wraps a Linen initializer so that `binary_labels` labels the parameter "binary".

    Args:
        init: an initializer `init(key, shape, dtype)` that returns ±1. Default: −1 and +1 with
            equal probability.

    Returns:
        An initializer that returns the same array in a `BinaryBox`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from bop_optax import binary_labels
        >>> dense = nn.Dense(8, use_bias=False, kernel_init=with_binary())
        >>> params = dense.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
        >>> binary_labels(params)
        {'kernel': 'binary'}
    """
    return lambda *args, **kwargs: BinaryBox(init(*args, **kwargs))
