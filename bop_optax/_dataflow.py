"""Which BatchNorms of a network feed nothing but signs, read off its jaxpr."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeGuard, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Literal

from bop_optax.processor import traced_for
from bop_optax.quantizers import binarize, is_one_bit

# Names of values in the jaxpr.
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
    return type(module).__call__ is nnx.BatchNorm.__call__ and module.axis in (-1, (-1,))


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
    for _, layer in nnx.iter_modules(model):
        for name in ("input_quantizer", "kernel_quantizer"):
            quantizer = getattr(layer, name, None)
            if is_one_bit(quantizer) and _is_binarize(quantizer):
                setattr(layer, name, lambda x: checkpoint_name(x, SIGN))
    with traced_for("file"), jax.disable_jit():  # one flat jaxpr
        closed = jax.make_jaxpr(cast(Any, model))(*inputs)
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


def _is_binarize(quantizer: Any) -> bool:
    """Whether a quantizer of ±1 is +1 exactly at 0 and above."""
    tiny = np.finfo(np.float32).tiny
    probe = jnp.asarray([-jnp.inf, -2.0, -1.0, -tiny, -0.0, 0.0, tiny, 1.0, 2.0, jnp.inf])
    return np.array_equal(quantizer(probe), binarize(probe))


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
        if name == SIGN or whole or eqn.outvars[0].aval.dtype == bool:
            integers.update(eqn.outvars)

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
            found[int(place)] = Norm(x.aval.dtype, eqn.outvars[0].aval.dtype, x in integers)
    return found


def _whole(values: Any) -> bool:
    """Whether all values are integers, or the −∞ of a maximum over nothing."""
    values = np.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return True
    return bool(((values == np.round(values)) | (values == -np.inf)).all())
