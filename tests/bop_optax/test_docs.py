"""The docstrings: their examples run as printed, and no public name is without one."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import bop_optax

MODULES = [
    importlib.import_module(f"bop_optax.{info.name}")
    for info in pkgutil.iter_modules(bop_optax.__path__)
]
EXAMPLES = {
    test.name: test
    for module in MODULES
    for test in doctest.DocTestFinder(exclude_empty=True).find(
        module,
        extraglobs={"jax": jax, "jnp": jnp, "nnx": nnx, "optax": optax, **vars(module)},
    )
    if test.examples
}
LAYERS = ["BinaryBox", "BinaryConv", "BinaryLinear", "BinaryParam", "with_binary"]
# Made and read by others: by the optimizers, and by `with_binary`, whose examples show them.
WITHOUT_EXAMPLE = {"BopState", "Bop2ndOrderState", "CemaState", "BinaryBox"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    report = []
    result = doctest.DocTestRunner(optionflags=flags).run(EXAMPLES[name], out=report.append)
    assert result.attempted
    assert not result.failed, "".join(report)


@pytest.mark.parametrize(
    "public",
    [getattr(bop_optax, name) for name in bop_optax.__all__]
    + [getattr(importlib.import_module("bop_optax.layers"), name) for name in LAYERS],
    ids=lambda public: public.__name__,
)
def test_public_names_are_documented(public):
    assert public.__doc__
    name = public.__name__
    assert name in WITHOUT_EXAMPLE or f"{public.__module__}.{name}" in EXAMPLES


def test_modules_say_what_they_are_for():
    assert all(module.__doc__ for module in [bop_optax, *MODULES])
