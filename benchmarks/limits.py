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


def stream(weights: int, splits: tuple[int, ...] = (1, 10, 30, 100)) -> Job:
    """Adds one array to another: how fast the machine could move the numbers of a step of Bop.

    Bop reads weight, average and gradient and writes weight and average: five numbers a weight. The
    addition reads two and writes one.

    Args:
        weights: number of weights.
        splits: numbers of pieces of the arrays; the fastest is used.
    """
    additions = {split: _addition(weights, split) for split in splits}
    times = {split: _median_time(additions[split]) for split in splits}
    split = min(splits, key=lambda split: times[split])

    def run(steps: int) -> dict[str, Any]:
        for _ in range(steps):
            jax.block_until_ready(additions[split]())
        return {}

    amount, needed = (numbers * 4e-9 * weights for numbers in (3, 5))
    return Job(run, facts={"rate": "GB/s", "amount": amount, "needed": needed, "pieces": split})


def _addition(number: int, split: int) -> Callable[[], Any]:
    """Adds arrays in place."""
    add = jax.jit(lambda x, y: jax.tree.map(jnp.add, x, y), donate_argnums=0)
    x, y = (
        [jnp.full(number // split, value, jnp.float32) for _ in range(split)] for value in (1, 0)
    )

    def run() -> Any:
        nonlocal x
        x = add(x, y)
        return x

    return run


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
