"""Our worker: python -m benchmarks.worker serves the jobs below (see protocol.py)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import train
from benchmarks.engine_worker import classification
from benchmarks.limits import matrix_rate, product_flops, stream
from benchmarks.protocol import Job, finite, serve
from bop_optax import bop
from bop_optax.folding import fold
from bop_optax.layers import BinaryConv, BinaryLinear, Product
from bop_optax.packing import pack
from training import command
from training.config import Experiment, from_json
from training.data import Batch
from training.devices import device_mesh, replicated
from training.network import (
    TrainState,
    binary_layers,
    compiled,
    first_state,
    make_network,
)
from training.trained import load_run


class Variant(NamedTuple):
    """One way to compute the products.

    Attributes:
        change: experiment → the experiment of this variant.
        packed: whether it is evaluated on packed kernels; None: as train.py does.
    """

    change: Callable[[Experiment], Experiment] = lambda experiment: experiment
    packed: bool | None = None


@dataclass(frozen=True)
class FloatProducts:
    """A model whose one-bit products are XLA's float products."""

    model: Any

    def build(self, *args: Any, **options: Any) -> nnx.Module:
        return self.model.build(*args, product=Product("float"), **options)


def backward(rounding: Any) -> Callable[[Experiment], Experiment]:
    return lambda experiment: replace(experiment, backward=rounding)


VARIANTS = {
    "float32": Variant(
        lambda experiment: replace(experiment, model=FloatProducts(experiment.model)), packed=False
    ),
    "popcount": Variant(),
    "popcount, bfloat16 gradients": Variant(backward("bfloat16")),
    "popcount, 8-bit gradients": Variant(backward(8)),
    "popcount, 4-bit gradients": Variant(backward(4)),
}


class Training:
    """The network and the compiled programs of an experiment.

    Args:
        variant: of VARIANTS.
        experiment: as from `training.config.to_json`.
        data: has the shape, the classes and the scaling of the images. None: what the experiment
            loads.
    """

    def __init__(self, variant: str, experiment: dict[str, Any], data: Any = None):
        change, packed = VARIANTS[variant]
        self.experiment = change(from_json(experiment))
        self.data = data or self.experiment.data.load()
        steps = getattr(self.data, "num_train", 10**5) // self.experiment.batch_size
        self.network = make_network(self.experiment, self.data, packed)
        self.optimizer = train.make_optimizer(self.experiment, self.network.labels, steps)
        source = SimpleNamespace(steps_per_epoch=steps)
        self.plain_step = train.make_train_step(self.experiment, self.network, source)
        self.step = compiled(self.plain_step, donate_argnums=0)
        self.eval_state = compiled(self.network.eval_state)
        self.count = compiled(train.make_count_correct(self.network))

    def first_state(self, seed: Any) -> TrainState:
        """Draws the weights of a seed."""
        return first_state(self.network, self.optimizer, seed)

    def check(self, state: TrainState) -> None:
        """Raises AssertionError unless every binary weight is ±1."""
        check_binary(binary_layers(state.params, self.network.labels))


class OneBatch(Training):
    """Trains on one batch of random images."""

    def __init__(
        self, variant: str, experiment: dict[str, Any], image_shape: list[int], num_classes: int
    ):
        shape = tuple(image_shape)
        data = SimpleNamespace(image_shape=shape, num_classes=num_classes, mean=127.5, std=127.5)
        super().__init__(variant, experiment, data)
        rng, number = np.random.default_rng(0), self.experiment.batch_size
        images = rng.integers(0, 256, (number, *shape), np.uint8)
        labels = rng.integers(0, num_classes, number, np.int32)
        self.batch = Batch(*map(jnp.asarray, (images, labels, np.ones(number, np.bool_))))

    def arguments(self, seed: int = 0) -> tuple[Any, ...]:
        """The first arguments of `step`."""
        return jax.jit(self.first_state)(np.uint32(seed)), self.batch, jax.random.key(0), {}


def check_binary(weights: dict[str, jax.Array]) -> None:
    """Raises AssertionError unless all weights are ±1."""
    for name, kernel in weights.items():
        assert bool(jnp.all(jnp.abs(kernel) == 1)), f"the weights of {name} are not ±1"


# ---- One batch -----------------------------------------------------------------------------------


def step(networks: int = 1, **options: Any) -> Job:
    """Training steps of one network, or of several in turn."""
    training = OneBatch(**options)
    states = [training.arguments(seed)[0] for seed in range(networks)]
    _, *rest = training.arguments()

    def run(steps: int) -> dict[str, Any]:
        loss = jnp.zeros([])
        for _ in range(steps):
            for i in range(networks):
                states[i], (loss, *_) = training.step(states[i], *rest)
        jax.block_until_ready(states)
        return {"loss": finite(float(loss))}

    def check() -> None:
        for state in states:
            training.check(state)

    return Job(run, check)


def sweep(networks: int, **options: Any) -> Job:
    """Training steps of several networks in one program, as in experiments.sweep --vmap."""
    training = OneBatch(**options)
    vmapped = jax.vmap(training.plain_step, in_axes=(0, None, None, None))
    step = compiled(vmapped, donate_argnums=0)
    states = jax.jit(jax.vmap(training.first_state))(np.arange(networks, dtype=np.uint32))
    _, *rest = training.arguments()

    def run(steps: int) -> dict[str, Any]:
        nonlocal states
        losses = jnp.zeros([])
        for _ in range(steps):
            states, (losses, *_) = step(states, *rest)
        jax.block_until_ready(states)
        return {"loss": finite(float(jnp.mean(losses)))}

    return Job(run, lambda: training.check(states))


def evaluate(**options: Any) -> Job:
    """Evaluations."""
    training = OneBatch(**options)
    state, batch, *_ = training.arguments()
    evaluated = training.eval_state(state)

    def run(steps: int) -> dict[str, Any]:
        counted = [training.count(evaluated, batch) for _ in range(steps)]
        return {"correct": int(jax.device_get(counted)[-1][0])}

    return Job(run, lambda: training.check(state))


def memory(part: str, **options: Any) -> Job:
    """The MiB of a step's temporaries or arguments, by the compiled program; nothing runs."""
    training = OneBatch(**options)
    program = training.step.lower(*jax.eval_shape(training.arguments)).compile()
    analysis = program.memory_analysis()
    size = {
        "temporaries": analysis.temp_size_in_bytes,
        "arguments": analysis.argument_size_in_bytes,
    }
    return Job(lambda _: {}, facts={"MiB": size[part] / 2**20})


def needed_products(of: str, **options: Any) -> Job:
    """The products of a step or of an evaluation, at the machine's matrix rate."""
    training = OneBatch(variant="float32", **options)
    state, batch, *rest = jax.eval_shape(training.arguments)
    if of == "step":
        program = jax.make_jaxpr(training.plain_step)(state, batch, *rest)
    else:
        count = train.make_count_correct(training.network)
        program = jax.make_jaxpr(count)(jax.eval_shape(training.eval_state, state), batch)
    return matrix_rate(product_flops(program))


# ---- Whole runs ----------------------------------------------------------------------------------


def whole_run(unit: str = "epoch", cached: bool = True, **options: Any) -> Job:
    """Steps, or epochs with an evaluation after each, on the experiment's own data.

    Unless `cached`, no compiled program is loaded from the disk.
    """
    jax.config.update("jax_enable_compilation_cache", cached)
    training = Training(**options)
    mesh, seed = device_mesh(), training.experiment.seed
    experiment = training.experiment
    source = training.data.batches(experiment.step_images, mesh, experiment.accumulate)
    batches, key = source.training(seed), jax.random.key(seed)
    draw = jax.jit(training.first_state, out_shardings=replicated(mesh))
    state = draw(np.uint32(seed))
    loss = jnp.zeros([])

    def steps(number: int) -> None:
        nonlocal state, loss
        for i, batch in enumerate(islice(batches, number), 1):
            state, (loss, *_) = training.step(state, batch, key, {})
            if i % source.dispatched == 0:
                jax.block_until_ready(loss)

    def run(number: int) -> dict[str, Any]:
        if unit == "step":
            steps(number)
            return {"loss": finite(float(loss))}
        steps(number * source.steps_per_epoch)
        evaluated = training.eval_state(state)
        accuracy, _ = train.evaluate(
            training.count, evaluated, source.evaluation(), source.in_flight
        )
        return {"loss": finite(float(loss)), "accuracy": float(accuracy)}

    return Job(run, lambda: training.check(state))


# ---- A finished run ------------------------------------------------------------------------------


def classify(variant: str, run: str, images: str, logits: str, batch: int) -> Job:
    """Classifies batches of images with the network of a finished run.

    Args:
        variant: "float32" or "popcount", the packed network.
        run: the run's folder.
        images, logits, batch: see `benchmarks.engine_worker.classification`.
    """
    model = load_run(run).model
    if variant == "popcount":
        model = pack(fold(model, jax.ShapeDtypeStruct(np.load(images)[:batch].shape, jnp.float32)))
    for _, layer in nnx.iter_modules(model):
        if variant == "float32" and isinstance(layer, BinaryConv | BinaryLinear):
            layer.product = Product("float")
    graphdef, state = nnx.split(model)
    call = compiled(lambda state, x: nnx.merge(graphdef, state)(x))
    return classification(lambda x: np.asarray(call(state, x)), images, logits, batch)


# ---- The optimizer -------------------------------------------------------------------------------

OPTIMIZERS = {"bop": bop, "adam": lambda: optax.adam(1e-3)}


def optimizer(name: str, weights: int, leaves: int) -> Job:
    """Updates of weights in a number of arrays; weights and state are donated."""
    transform = OPTIMIZERS[name]()
    keys, shape = jax.random.split(jax.random.key(0), leaves), (weights // leaves,)
    params = {f"{i}": jax.random.rademacher(k, shape, jnp.float32) for i, k in enumerate(keys)}
    grads = {f"{i}": jax.random.normal(k, shape) for i, k in enumerate(keys)}
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
    "whole_run": whole_run,
    "classify": classify,
    "optimizer": optimizer,
    "stream": stream,
}

if __name__ == "__main__":
    command.prepare_process()  # as train.py does
    serve(JOBS)
