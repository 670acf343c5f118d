"""The forward pass of a network as a jaxpr, for the writers of files of other runtimes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from bop_optax.layers import BinaryConv, BinaryLinear, LatentParam
from bop_optax.packing import LAYER_CALLS
from bop_optax.processor import traced_for

# Primitives that call a jaxpr, and the parameter that holds it.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr"}
CALLS |= {"custom_vjp_call": "call_jaxpr", "custom_vmap_call": "call"}
CALLS |= dict.fromkeys(("remat2", "checkpoint"), "jaxpr")


def forward_jaxpr(model: nnx.Module, *inputs: Any) -> ClosedJaxpr:
    """The operations of a forward pass in evaluation mode, with one-bit kernels as floats of ±α.

    Args:
        model: binary, latent, packed or folded.
        inputs: its arguments, as shapes. A dimension may be symbolic.
    """
    model = nnx.clone(model)
    model.eval()
    for _, layer in nnx.iter_modules(model):
        if not isinstance(layer, BinaryConv | BinaryLinear):
            continue
        if type(layer).__call__ in LAYER_CALLS and layer.has_binary_kernel():
            layer.kernel, layer.kernel_quantizer = LatentParam(layer.binary_kernel()), None
    graphdef, state = nnx.split(model)

    def forward(*inputs: Any) -> Any:
        merged: Any = nnx.merge(graphdef, state, copy=True)  # of this trace
        return merged(*inputs)

    with traced_for("file"):
        return jax.make_jaxpr(forward)(*inputs)


def evaluate(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    inputs: Sequence[Any],
    translate: Callable[[Any, list[Any]], list[Any]],
) -> list[Any]:
    """Evaluates a jaxpr, the calls in it inline, by `translate(eqn, operands) → results`."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name in CALLS:
            inner = eqn.params[CALLS[eqn.primitive.name]]
            closed = isinstance(inner, ClosedJaxpr)
            called, constants = (inner.jaxpr, inner.consts) if closed else (inner, ())
            results = evaluate(called, constants, operands, translate)
        else:
            results = translate(eqn, operands)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Evaluates an operation by JAX."""
    results = eqn.primitive.bind(*operands, **eqn.params)
    return list(results) if eqn.primitive.multiple_results else [results]
