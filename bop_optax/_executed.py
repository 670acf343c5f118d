"""What each layer of a network outputs and multiplies, read off the jaxpr of a forward pass."""

import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache, wraps
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import jaxprs_in_params

from bop_optax._binary_layer import BinaryLayer
from bop_optax._forward import CALLS
from bop_optax.layers import BinaryConv, BinaryLinear, Product
from bop_optax.quantizers import precision

PRODUCTS = {"dot_general", "conv_general_dilated"}
# Scopes in the jaxpr, which the number of a layer follows, and the name of an output.
LAYER, PRODUCT, OUTPUT = "bop_optax layer", "bop_optax product", "bop_optax output"
SCOPE = re.compile(rf"({LAYER}|{PRODUCT}) (\d+)")


class Executed(NamedTuple):
    """What a layer did in all its calls.

    Attributes:
        outputs: the shapes of its outputs.
        macs: {bits: number of multiply-accumulates}; the bits are those of the wider operand.
    """

    outputs: set[tuple[int, ...]]
    macs: Counter[int]


def executed(
    model: nnx.Module, layers: Sequence[Any], inputs: Sequence[Any]
) -> dict[int, Executed]:
    """Traces a forward pass.

    Args:
        model: holds shapes. The classes of its layers are replaced.
        layers: all its layers.
        inputs: arguments of its call, as shapes.

    Returns:
        What the layers did, by their index, in the order in which they did it.
    """
    for number, layer in enumerate(layers):
        if isinstance(layer, BinaryConv | BinaryLinear):
            layer.product = Product("float")  # one operation
        if callable(layer):
            _mark(layer, number)
    graphdef, state = nnx.split(model)

    def forward(state: Any, inputs: Sequence[Any]) -> Any:
        merged: Any = nnx.merge(graphdef, state)
        return merged(*inputs)

    done: dict[int, Executed] = defaultdict(lambda: Executed(set(), Counter()))
    for eqn, scope, runs in _equations(jax.make_jaxpr(forward)(state, inputs).jaxpr):
        role, number = SCOPE.findall(scope)[-1]
        outputs, macs = done[int(number)]
        if eqn.primitive.name in PRODUCTS:
            bits = _precision(eqn, layers[int(number)] if role == PRODUCT else None)
            macs[bits] += runs * _macs(eqn)
        elif eqn.params["name"] == OUTPUT:
            outputs.add(eqn.outvars[0].aval.shape)
    return done


def _mark(layer: Any, number: int) -> None:
    is_pytree = not jax.tree_util.all_leaves([layer])  # as its class was defined
    layer.__class__ = _marked(type(layer), is_pytree)
    layer.number_in_summary = number


@cache
def _marked(cls: Any, is_pytree: bool) -> Any:
    """A class whose calls and products have a scope in the jaxpr, and its outputs a name."""

    class Marked(cls, pytree=is_pytree):  # pyright: ignore
        @wraps(cls.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with jax.named_scope(f"{LAYER} {self.number_in_summary}"):
                y = super().__call__(*args, **kwargs)
                return checkpoint_name(y, OUTPUT) if isinstance(y, jax.Array) else y

        if issubclass(cls, BinaryLayer):

            def _apply(self, *args: Any, **kwargs: Any) -> jax.Array:
                with jax.named_scope(f"{PRODUCT} {self.number_in_summary}"):
                    return super()._apply(*args, **kwargs)

    Marked.__name__ = cls.__name__  # for errors
    return Marked


def _equations(jaxpr: Any, outer: str = "", runs: int = 1) -> Iterator[tuple[Any, str, int]]:
    """The products and names in a jaxpr and its calls: each with its scope and number of runs."""
    for eqn in jaxpr.eqns:
        name, scope = eqn.primitive.name, f"{outer}/{eqn.source_info.name_stack}"
        if name in PRODUCTS or name == "name":
            yield eqn, scope, runs
        elif name in CALLS:
            inner = eqn.params[CALLS[name]]
            yield from _equations(getattr(inner, "jaxpr", inner), scope, runs)
        elif name == "scan":
            yield from _equations(eqn.params["jaxpr"].jaxpr, scope, runs * eqn.params["length"])
        elif any(map(_multiplies, jaxprs_in_params(eqn.params))):
            warnings.warn(f"the products inside a `{name}` are not counted", stacklevel=4)


def _multiplies(jaxpr: Any) -> bool:
    return any(
        eqn.primitive.name in PRODUCTS or any(map(_multiplies, jaxprs_in_params(eqn.params)))
        for eqn in jaxpr.eqns
    )


def _precision(eqn: Any, layer: Any) -> int:
    """Bits of the wider operand of a product. A binary layer knows the bits of its operands."""
    x, kernel = (jax.dtypes.itemsize_bits(atom.aval.dtype) for atom in eqn.invars[:2])
    if layer is not None:
        x = precision(layer.input_quantizer) or x
        kernel = kernel_precision(layer) or kernel
    return max(x, kernel)


def kernel_precision(layer: BinaryLayer) -> int | None:
    """Bits of each weight of a binary layer; None if its quantizer does not tell."""
    return 1 if layer.has_binary_kernel() else precision(layer.kernel_quantizer)


def _macs(eqn: Any) -> int:
    """The multiply-accumulates of a product, with those of padded zeros."""
    x, kernel = (atom.aval.shape for atom in eqn.invars[:2])
    y, numbers = eqn.outvars[0].aval.shape, eqn.params["dimension_numbers"]
    if eqn.primitive.name == "dot_general":
        return math.prod(y) * math.prod(x[axis] for axis in numbers[0][0])
    if max(eqn.params["lhs_dilation"], default=1) > 1:  # transposed: without the zeros between
        positions = [x[axis] for axis in numbers.lhs_spec[2:]]
    else:
        positions = [y[axis] for axis in numbers.out_spec[2:]]
    return y[numbers.out_spec[0]] * math.prod(positions) * math.prod(kernel)
