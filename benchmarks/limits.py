"""What the machine can do: its float32 matrix rate, its memory stream; the work of a network."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.protocol import Job

LAYOUTS: dict[str, Callable[..., jax.Array]] = {
    "x @ y": jnp.matmul,
    "x @ y.T": lambda x, y: x @ y.T,
}


def matrix_rate(flops: int, sizes: tuple[int, ...] = (1536, 2048)) -> Job:
    """Products of square float32 matrices, in the fastest of several sizes and layouts.

    Args:
        flops: of the work that the rate is the limit of.
        sizes: of the matrices.
    """
    choices = [(size, name) for size in sizes for name in LAYOUTS]
    made = {choice: _product(*choice) for choice in choices}
    rates = {choice: choice[0] ** 3 / _median_time(made[choice]) for choice in choices}
    size, name = max(choices, key=lambda choice: rates[choice])
    multiply = made[size, name]

    def run(steps: int) -> dict[str, Any]:
        jax.block_until_ready([multiply() for _ in range(steps)])
        return {}

    facts = {"rate": "GFLOP/s", "amount": 2e-9 * size**3, "needed": 1e-9 * flops}
    return Job(run, facts=facts | {"size": size, "layout": name})


def _product(size: int, layout: str) -> Callable[[], jax.Array]:
    x = jax.random.normal(jax.random.key(0), (size, size))
    multiply = jax.jit(LAYOUTS[layout])
    return lambda: multiply(x, x)


def _median_time(function: Callable[[], Any], repeats: int = 5) -> float:
    jax.block_until_ready(function())  # compiles
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def stream(weights: int, leaves: int = 1) -> Job:
    """Reads three arrays and writes two, as Bop does with weights, averages and gradients."""
    del leaves
    update = jax.jit(lambda w, m, g: (w + g, m - g), donate_argnums=(0, 1))
    w, m, g = (jnp.full(weights, value, jnp.float32) for value in (1, 0, 0))

    def run(steps: int) -> dict[str, Any]:
        nonlocal w, m
        for _ in range(steps):
            w, m = update(w, m, g)
        jax.block_until_ready(m)
        return {}

    traffic = 5 * 4e-9 * weights
    return Job(run, facts={"rate": "GB/s", "amount": traffic, "needed": traffic})


def product_flops(jaxpr: Any) -> int:
    """Floating-point operations of all matrix products and convolutions, also of nested programs.

    A product of padding counts, too.
    """
    flops = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval, equation.params["dimension_numbers"]
            window = kernel.size // kernel.shape[numbers.rhs_spec[0]]
            zeros = int(np.prod(equation.params["lhs_dilation"]))  # between pixels, not multiplied
            flops += 2 * equation.outvars[0].aval.size * window // zeros
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            flops += (
                2 * equation.outvars[0].aval.size * int(np.prod([shape[i] for i in contracted]))
            )
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program)
        flops += sum(product_flops(program) for program in inner if _is_program(program))
    return flops


def _is_program(x: Any) -> bool:
    return hasattr(x, "eqns")
