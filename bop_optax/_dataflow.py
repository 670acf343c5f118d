"""Which BatchNorms of a network feed nothing but signs, read off its jaxpr."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Literal

from bop_optax._forward import forward_jaxpr
from bop_optax.quantizers import function_of, is_sign

# Names of values in the jaxpr.
QUANTIZERS = "bop_optax.quantizers"
SIGN, INTO, OUT_OF = "bop_optax sign", "bop_optax into", "bop_optax out of"
# Results that are entries of the operands, in other places.
LAYOUT = {"reshape", "transpose", "squeeze", "slice", "broadcast_in_dim", "expand_dims", "copy"}
# Results that are integers if all operands are.
INTEGERS = {"conv_general_dilated", "dot_general", "select_n", "max", "min", "reduce_max"}
INTEGERS |= {"add", "add_any", "sub", "mul", "neg", "pad", "concatenate", "rev", "reduce_sum"}
INTEGERS |= {"reduce_window_max", "convert_element_type", "sign", "abs"} | LAYOUT


class Norm(NamedTuple):
    """A BatchNorm that feeds nothing but signs.

    Attributes:
        in_dtype, out_dtype: of its input and output.
        integers: whether every input is an integer.
    """

    in_dtype: np.dtype
    out_dtype: np.dtype
    integers: bool


def is_foldable(module: Any) -> TypeGuard[nnx.BatchNorm]:
    """Whether a module normalizes each entry of its last axis by itself, as `nnx.BatchNorm`."""
    if type(module).__call__ is not nnx.BatchNorm.__call__:
        return False
    return module.axis in (-1, (-1,)) and module.mean.shape == (module.num_features,)


def norms_before_signs(model: nnx.Module, inputs: Iterable[Any]) -> dict[int, Norm]:
    """Finds the BatchNorms whose outputs reach the outputs of a model as signs only.

    Args:
        model: in evaluation mode.
        inputs: its arguments, arrays or shapes.

    Returns:
        What is known of each, by its place among the foldable modules of `nnx.iter_modules`.
    """
    model = nnx.clone(model)
    norms: list[Any] = [norm for _, norm in nnx.iter_modules(model) if is_foldable(norm)]
    calls: list[int] = []
    for place, norm in enumerate(norms):
        norm.__class__ = _NamedNorm
        norm.place, norm.record = place, calls.append
    layers: list[Any] = [layer for _, layer in nnx.iter_modules(model)]
    for layer in layers:
        if _is_library_sign(getattr(layer, "input_quantizer", None)):
            layer.input_quantizer = _NamedSign()
    with jax.disable_jit():  # one flat jaxpr
        closed = forward_jaxpr(model, *inputs)
    found = _signs_only(closed)
    return {i: norm for i, norm in found.items() if calls.count(i) == 1}


class _NamedNorm(nnx.BatchNorm):
    """A BatchNorm whose input and output have a name in the jaxpr."""

    place: int
    record: Callable[[int], None]  # of each call

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        self.record(self.place)
        y = super().__call__(checkpoint_name(x, f"{INTO} {self.place}"), *args, **kwargs)
        role = "bop_optax other" if args or kwargs else OUT_OF
        return checkpoint_name(y, f"{role} {self.place}")


class _NamedSign:
    """A one-bit quantizer that has a name in the jaxpr."""

    is_sign = True

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        del args, kwargs  # of the pseudo-gradient
        return checkpoint_name(x, SIGN)


def _is_library_sign(quantizer: Any) -> bool:
    """Whether a quantizer is one of the library's, which are +1 exactly at 0 and above."""
    function = function_of(quantizer)
    return is_sign(function) and getattr(function, "__module__", "") == QUANTIZERS


def _signs_only(closed: ClosedJaxpr) -> dict[int, Norm]:
    jaxpr = closed.jaxpr
    integers = {v for v, c in zip(jaxpr.constvars, closed.consts, strict=True) if _whole(c)}
    users: dict[Any, list[Any]] = defaultdict(list)
    for eqn in jaxpr.eqns:
        operands = [v for v in eqn.invars if not isinstance(v, Literal)]
        for variable in operands:
            users[variable].append(eqn)
        constants = [v.val for v in eqn.invars if isinstance(v, Literal)]
        name = eqn.params["name"] if eqn.primitive.name == "name" else ""
        whole = eqn.primitive.name in INTEGERS or name.startswith(INTO)
        whole = whole and integers.issuperset(operands) and all(map(_whole, constants))
        integers.update(v for v in eqn.outvars if name == SIGN or whole or v.aval.dtype == bool)

    def only_signs(variable: Any) -> bool:
        return variable not in jaxpr.outvars and all(
            (eqn.primitive.name == "name" and eqn.params["name"] == SIGN)
            or (eqn.primitive.name in LAYOUT and only_signs(eqn.outvars[0]))
            for eqn in users[variable]
        )

    found, inputs = {}, {}
    for eqn in jaxpr.eqns:
        role, _, place = str(eqn.params.get("name", "")).rpartition(" ")
        if role == INTO:
            inputs[place] = eqn.outvars[0]
        elif role == OUT_OF and only_signs(eqn.outvars[0]):
            x = inputs[place]
            if not jnp.issubdtype(x.aval.dtype, jnp.floating):
                continue
            found[int(place)] = Norm(x.aval.dtype, eqn.outvars[0].aval.dtype, x in integers)
    return found


def _whole(values: Any) -> bool:
    """Whether all values are integers, or the −∞ of a maximum over nothing."""
    dtype = jax.dtypes.result_type(values)
    if not jnp.issubdtype(dtype, jnp.floating):
        return jnp.issubdtype(dtype, jnp.integer) or dtype == np.bool_
    values = np.asarray(values)
    return bool(((values == np.round(values)) | (values == -np.inf)).all())
