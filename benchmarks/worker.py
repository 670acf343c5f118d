"""Our worker: python -m benchmarks.worker serves the jobs below (see protocol.py)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import train
from benchmarks.limits import matrix_rate, product_flops, stream
from benchmarks.protocol import Job, serve
from bop_optax import bop
from bop_optax.layers import Product
from training import command
from training.config import Experiment, from_json
from training.data import Batch
from training.network import binary_layers, first_state, make_network

STEPS_PER_EPOCH = 1000  # of an endless epoch on one batch


class Variant(NamedTuple):
    """One way to compute the products.

    Attributes:
        change: experiment → the experiment of this variant.
        compiler_options: XLA's, for the step and the evaluation.
    """

    change: Callable[[Experiment], Experiment] = lambda experiment: experiment
    compiler_options: dict[str, Any] | None = None


@dataclass(frozen=True)
class FloatProducts:
    """A model whose one-bit products are XLA's float products."""

    model: Any

    def build(self, *args: Any, **options: Any) -> nnx.Module:
        return self.model.build(*args, product=Product("float"), **options)


def backward(rounding: Any) -> Callable[[Experiment], Experiment]:
    return lambda experiment: replace(experiment, backward=rounding)


WIDE: dict[str, Any] = {"xla_cpu_prefer_vector_width": 512}
VARIANTS = {
    "float32": Variant(
        lambda experiment: replace(experiment, model=FloatProducts(experiment.model))
    ),
    "popcount": Variant(),
    "popcount, 512-bit vectors": Variant(compiler_options=WIDE),
    "popcount, 8-bit gradients": Variant(backward(8), WIDE),
    "popcount, 4-bit gradients": Variant(backward(4), WIDE),
}


class Training:
    """The compiled programs of an experiment, and one batch of random images.

    Args:
        variant: of VARIANTS.
        experiment: as from `training.config.to_json`.
        image_shape: height, width and channels.
        num_classes: number of classes.
    """

    def __init__(
        self, variant: str, experiment: dict[str, Any], image_shape: list[int], num_classes: int
    ):
        change, options = VARIANTS[variant]
        self.experiment = change(from_json(experiment))
        data = SimpleNamespace(
            image_shape=tuple(image_shape), num_classes=num_classes, mean=127.5, std=127.5
        )
        self.network = make_network(self.experiment, data)
        self.optimizer = train.make_optimizer(self.experiment, self.network.labels, STEPS_PER_EPOCH)
        source = SimpleNamespace(steps_per_epoch=STEPS_PER_EPOCH)
        self.plain_step = train.make_train_step(self.experiment, self.network, source)
        self.compile: Any = lambda f, **rest: jax.jit(f, compiler_options=options, **rest)
        self.step = self.compile(self.plain_step, donate_argnums=0)
        self.count = self.compile(train.make_count_correct(self.network))
        rng, number = np.random.default_rng(0), self.experiment.batch_size
        images = rng.integers(0, 256, (number, *image_shape), np.uint8)
        labels = rng.integers(0, num_classes, number, np.int32)
        self.batch = Batch(*map(jnp.asarray, (images, labels, np.ones(number, np.bool_))))

    def arguments(self, seed: Any = 0) -> tuple[Any, ...]:
        """The first arguments of `step`."""
        state = jax.jit(lambda s: first_state(self.network, self.optimizer, s))(
            jnp.asarray(seed, jnp.uint32)
        )
        return state, self.batch, jax.random.key(0), {}

    def check(self, params: Any) -> None:
        """Raises AssertionError unless every binary weight is ±1."""
        check_binary(binary_layers(params, self.network.labels))


def check_binary(weights: dict[str, jax.Array]) -> None:
    """Raises AssertionError unless all weights are ±1."""
    for name, kernel in weights.items():
        assert bool(jnp.all(jnp.abs(kernel) == 1)), f"the weights of {name} are not ±1"


def finite(loss: Any) -> float:
    """The mean loss as a number; AssertionError if it is not finite."""
    mean = float(jnp.mean(loss))
    assert np.isfinite(mean), f"the loss is {mean}"
    return mean


# ---- Jobs ----------------------------------------------------------------------------------------


def step(networks: int = 1, **options: Any) -> Job:
    """Training steps on one batch of random images, of one network or of several in turn."""
    training = Training(**options)
    states = [training.arguments(seed)[0] for seed in range(networks)]
    _, *rest = training.arguments()

    def run(steps: int) -> dict[str, Any]:
        losses = jnp.zeros(())
        for _ in range(steps):
            for i in range(networks):
                states[i], losses = training.step(states[i], *rest)
        jax.block_until_ready(states)
        return {"loss": finite(losses)}

    def check() -> None:
        for state in states:
            training.check(state.params)

    return Job(run, check)


def sweep(networks: int, **options: Any) -> Job:
    """Training steps of several networks in one program, as experiments.sweep --vmap."""
    training = Training(**options)
    vmapped = jax.vmap(training.plain_step, in_axes=(0, None, None, None))
    step = training.compile(vmapped, donate_argnums=0)
    _, *rest = training.arguments()
    states, *_ = jax.vmap(lambda s: training.arguments(s)[:1])(
        jnp.arange(networks, dtype=np.uint32)
    )

    def run(steps: int) -> dict[str, Any]:
        nonlocal states
        losses = jnp.zeros(())
        for _ in range(steps):
            states, losses = step(states, *rest)
        return {"loss": finite(losses)}

    return Job(run, lambda: training.check(states.params))


def evaluate(**options: Any) -> Job:
    """Evaluations of one batch of random images."""
    training = Training(**options)
    state, batch, *_ = training.arguments()

    def run(steps: int) -> dict[str, Any]:
        counted = [training.count(state, batch) for _ in range(steps)]
        return {"correct": int(jax.device_get(counted)[-1][0])}

    return Job(run, lambda: training.check(state.params))


def memory(part: str, **options: Any) -> Job:
    """The MiB of a step's temporaries or arguments, by the compiled program; nothing runs."""
    training = Training(**options)
    compiled = training.step.lower(*jax.eval_shape(training.arguments)).compile()
    analysis = compiled.memory_analysis()
    size = {
        "temporaries": analysis.temp_size_in_bytes,
        "arguments": analysis.argument_size_in_bytes,
    }
    return Job(lambda _: {}, facts={"MiB": size[part] / 2**20})


def needed_products(of: str, **options: Any) -> Job:
    """The products of a step or of an evaluation, at the machine's matrix rate."""
    training = Training(variant="float32", **options)
    state, batch, *rest = jax.eval_shape(training.arguments)
    if of == "step":
        program = jax.make_jaxpr(training.step)(state, batch, *rest)
    else:
        program = jax.make_jaxpr(training.count)(state, batch)
    return matrix_rate(product_flops(program))


OPTIMIZERS = {"bop": bop, "adam": lambda: optax.adam(1e-3)}


def optimizer(name: str, weights: int, leaves: int) -> Job:
    """Updates of weights in a number of arrays; weights and state are donated."""
    transform = OPTIMIZERS[name]()
    keys = jax.random.split(jax.random.key(0), leaves)
    params = {
        f"{i}": jax.random.rademacher(k, (weights // leaves,), jnp.float32)
        for i, k in enumerate(keys)
    }
    grads = {f"{i}": jax.random.normal(k, (weights // leaves,)) for i, k in enumerate(keys)}
    state = transform.init(params)

    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(update, donate_argnums=(0, 1))

    def run(steps: int) -> dict[str, Any]:
        nonlocal params, state
        for _ in range(steps):
            params, state = step(params, state, grads)
        jax.block_until_ready((params, state))
        return {}

    return Job(run, lambda: check_binary(params) if name == "bop" else None)


JOBS: dict[str, Callable[..., Job]] = {
    "step": step,
    "sweep": sweep,
    "evaluate": evaluate,
    "memory": memory,
    "matrix_rate": needed_products,
    "optimizer": optimizer,
    "stream": stream,
}

if __name__ == "__main__":
    command.keep_freed_memory()
    serve(JOBS)
