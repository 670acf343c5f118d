"""Every transform of the library with hyperparameters, for the contract tests."""

import inspect
from functools import cache

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bop_optax import bold, bop, bop_2nd_order, bop_layerwise, cema, prob_bop
from bop_optax.latent import clip_latent, scale_by_glorot

CASES = {
    "bop": (bop, {"gamma": 0.25, "threshold": 0.125}),
    "rounded": (
        bop,
        {"gamma": 0.25, "threshold": 0.125, "ema_dtype": "bfloat16", "rounding_key": 0},
    ),
    "layerwise": (bop_layerwise, {"gamma": 0.25, "threshold": 0.5}),
    "2nd-order": (bop_2nd_order, {"gamma": 0.25, "threshold": 0.3, "sigma": 0.125}),
    "unbiased": (
        bop_2nd_order,
        {"gamma": 0.25, "threshold": 0.3, "sigma": 0.125, "unbiased": True},
    ),
    "cema": (cema, {"gamma": 0.25, "alpha": 0.25}),
    "bold": (bold, {"eta": 1.0}),
    "prob": (
        prob_bop,
        {"gamma": 0.25, "threshold": 0.125, "alpha": 0.5, "epoch": 1.0, "key": 0},
    ),
    "scale_by_glorot": (scale_by_glorot, {}),
    "clip_latent": (clip_latent, {"limit": 0.5}),
}
FLIPPING = ["bop", "rounded", "layerwise", "2nd-order", "unbiased", "cema", "bold", "prob"]
RANDOM = ["rounded", "prob"]  # their noise differs from array to array
every = pytest.mark.parametrize("name", CASES)
flipping = pytest.mark.parametrize("name", FLIPPING)
flipping_in_float32 = pytest.mark.parametrize("name", [n for n in FLIPPING if n != "rounded"])
deterministic = pytest.mark.parametrize("name", [n for n in FLIPPING if n not in RANDOM])
STATIC = {"rounding_key", "key"}  # of optax.inject_hyperparams
POSITIVE = {"eta", "epoch"}  # the range of these is (0, inf), that of rates (0, 1]
HYPERPARAMETERS = {
    name: [key for key in options if key not in STATIC | {"ema_dtype", "unbiased"}]
    for name, (_, options) in CASES.items()
}


@cache
def _default(name):
    make, options = CASES[name]
    return optax.with_extra_args_support(make(**options))


def new(name, **options):
    """The transform of a case, with other options if some are given."""
    make, defaults = CASES[name]
    if not options:
        return _default(name)  # always the same object, so that `run` compiles it once
    return optax.with_extra_args_support(make(**{**defaults, **options}))


def injected(name, **options):
    make, defaults = CASES[name]
    static = STATIC & set(inspect.signature(make).parameters)
    inject = optax.inject_hyperparams(make, static_args=static, hyperparam_dtype=jnp.float32)
    return inject(**{**defaults, **options})


def averages(state):
    """The average of each weight, or its accumulator: the field after the count."""
    return state[1]


def map_hyperparameters(f, name):
    return {key: f(CASES[name][1][key]) for key in HYPERPARAMETERS[name]}


def assert_same(actual, expected, name):
    """Equal to the bit, except for numbers that a compiler may round differently."""
    (w, state), (w_expected, state_expected) = actual, expected
    if name in FLIPPING:
        np.testing.assert_array_equal(w, w_expected)
    else:
        np.testing.assert_allclose(w, w_expected, rtol=1e-6, atol=1e-6)
    if name in ("2nd-order", "unbiased"):
        chex.assert_trees_all_close(state, state_expected, rtol=1e-6)
    else:
        chex.assert_trees_all_equal(state, state_expected)
