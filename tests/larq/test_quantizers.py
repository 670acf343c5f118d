"""The quantizers compared with those of Larq 0.13.3, whose outputs quantizers.json has."""

import ast
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bop_optax import quantizers

LARQ = json.loads(Path(__file__).with_name("quantizers.json").read_text())
INPUTS, WEIGHTS = (np.asarray(LARQ[name], np.float32) for name in ("inputs", "weights"))
# Means, divisions, tanh and cosh may differ by the last bits.
ROUNDED = ("magnitude_aware_sign", "swish_sign", "dorefa")


def quantizer_of(name):
    function, *options = name.split()
    pairs = [option.split("=") for option in options]
    keywords = {key: ast.literal_eval(value) for key, value in pairs}
    quantizer = getattr(quantizers, function)
    return partial(quantizer, **keywords) if keywords else quantizer


@pytest.mark.parametrize("name", LARQ["cases"])
def test_outputs_and_gradients_are_larqs(name):
    quantizer, larq = quantizer_of(name), LARQ["cases"][name]
    tolerance = {"rtol": 2e-6, "atol": 3e-7} if name.startswith(ROUNDED) else {"rtol": 0}
    for f in (quantizer, jax.jit(quantizer)):
        outputs, backward = jax.vjp(f, jnp.asarray(INPUTS))
        assert outputs.dtype == jnp.float32
        np.testing.assert_allclose(outputs, np.float32(larq["outputs"]), **tolerance)
        (gradient,) = backward(jnp.asarray(WEIGHTS))
        np.testing.assert_allclose(gradient, np.float32(larq["gradient"]), **tolerance)
    assert quantizers.precision(quantizer) == larq["precision"]


def test_every_quantizer_is_compared():
    compared = {name.split()[0] for name in LARQ["cases"]}
    assert compared == {
        *("ste_sign", "approx_sign", "swish_sign", "magnitude_aware_sign", "ste_tern"),
        *("ste_heaviside", "dorefa"),
    }
