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

OWN_EXTRA = {  # modules that may lack their packages
    f"bop_optax.{name}" for name in ("_onnx_kernels", "onnx", "tflite")
}


def import_modules():
    for info in pkgutil.walk_packages(bop_optax.__path__, "bop_optax."):
        try:
            yield importlib.import_module(info.name)
        except ImportError:
            if info.name not in OWN_EXTRA:
                raise


MODULES = list(import_modules())
EXAMPLES = {
    test.name: test
    for module in MODULES
    for test in doctest.DocTestFinder(exclude_empty=True).find(
        module,
        extraglobs={"jax": jax, "jnp": jnp, "nnx": nnx, "optax": optax, **vars(module)},
    )
    if test.examples
}
# The states are made and read by the optimizers, whose examples show them.
WITHOUT_EXAMPLE = {"BoldState", "BopState", "Bop2ndOrderState", "CemaState", "ProbBopState"}


def public_names(module):
    """The classes and functions that a module defines."""
    names = [name for name in vars(module) if not name.startswith("_")]
    own = [getattr(module, name) for name in names]
    return [x for x in own if getattr(x, "__module__", None) == module.__name__]


PUBLIC_MODULES = [m for m in MODULES if "._" not in m.__name__]
PUBLIC = [getattr(bop_optax, name) for name in bop_optax.__all__]
PUBLIC += [x for module in PUBLIC_MODULES for x in public_names(module) if x not in PUBLIC]


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    report = []
    result = doctest.DocTestRunner(optionflags=flags).run(EXAMPLES[name], out=report.append)
    assert result.attempted
    assert not result.failed, "".join(report)


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_public_names_are_documented(public):
    assert public.__doc__
    name = public.__name__
    assert name in WITHOUT_EXAMPLE or f"{public.__module__}.{name}" in EXAMPLES


def test_modules_say_what_they_are_for():
    assert all(module.__doc__ for module in [bop_optax, *MODULES])
