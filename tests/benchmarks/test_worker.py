"""Our worker's jobs on tiny networks; the peers' workers, where they are installed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import peers, rows, runs, worker
from benchmarks.contest import Worker
from benchmarks.limits import matrix_rate, product_flops
from benchmarks.measure import find_workers, make_task
from bop_optax import ste_sign
from bop_optax.layers import BinaryConv, Product
from training.config import Arrays, BinaryNet, BiRealNet, Bop, Experiment, LatentAdam, to_json

pytestmark = pytest.mark.usefixtures("standard_promotion")
TINY = Experiment(model=BinaryNet(4, stages=1), batch_size=8, pad=0, flip=False, epochs=2)
SMALL = {"image_shape": [8, 8, 3], "num_classes": 10}
OPTIONS = {"experiment": to_json(TINY), "variant": "float32", **SMALL}


def run(job):
    job.run(1)
    result = job.run(2)
    job.check()
    return result


def test_steps_of_networks_in_turn():
    assert 0 < run(worker.step(networks=2, **OPTIONS))["loss"] < 5


@pytest.mark.slow
def test_steps_of_networks_in_one_program():
    assert 0 < run(worker.sweep(networks=2, **OPTIONS))["loss"] < 5


def test_an_evaluation():
    assert 0 <= run(worker.evaluate(**OPTIONS))["correct"] <= 8


def test_latent_weights_take_more_arguments():
    sizes = []
    for experiment in (TINY, replace(TINY, optimizer=LatentAdam())):
        options = OPTIONS | {"experiment": to_json(experiment)}
        sizes.append(worker.memory("arguments", **options).facts["MiB"])
    binary = 4 * 9 * (3 + 4) + 4 * 9 * 32 + 32 * 32 + 32 * 10  # kernels of the tiny network
    assert (sizes[1] - sizes[0]) * 2**20 == pytest.approx(4 * binary, rel=0.05)


@pytest.mark.parametrize("leaves", [1, 3])
def test_an_optimizer_step(leaves):
    for name in worker.OPTIMIZERS:
        run(worker.optimizer(name, 12, leaves))


def test_weights_that_are_not_binary_are_found():
    with pytest.raises(AssertionError, match="the weights of a are not ±1"):
        worker.check_binary({"a": jnp.array([1.0, 0.5])})
    with pytest.raises(AssertionError, match="the loss is nan"):
        worker.finite(jnp.nan)


def test_a_whole_run(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = (rng.integers(0, 100, (64, 8, 8, 1)) + 100 * labels[:, None, None, None]).astype("u1")
    path = tmp_path / "data.npz"
    arrays = {"train_images": images, "train_labels": labels}
    np.savez(path, **arrays, test_images=images, test_labels=labels)
    experiment = to_json(replace(TINY, data=Arrays(path), optimizer=Bop(1e-2)))
    result = run(worker.whole_run(variant="float32", experiment=experiment))
    assert 0.5 <= result["accuracy"] <= 1
    assert result["loss"] > 0
    assert "accuracy" not in run(worker.whole_run("step", variant="float32", experiment=experiment))
    options = runs.export(Arrays(path), tmp_path)
    with np.load(options["data"]) as exported:
        np.testing.assert_array_equal(exported["test_labels"], labels)


def test_every_row_has_jobs_that_exist():
    for row in rows.ROWS.values():
        for case in row():
            assert len({c.name for c in case.contestants}) == len(case.contestants)
            assert all(c.worker != "ours" or c.job in worker.JOBS for c in case.contestants)
            json.dumps(case._asdict())


# ---- Limits --------------------------------------------------------------------------------------


def test_the_flops_of_products_by_hand():
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))

    def product(x, kernel, strides=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, kernel, (strides, strides), "SAME", dimension_numbers=numbers
        )
        return y.reshape(-1, 4) @ jnp.zeros((4, 5))

    forward = 2 * 2 * 64 * 27 * 4
    dense = 2 * 2 * 64 * 4 * 5
    assert product_flops(jax.make_jaxpr(jax.jit(product))(x, kernel)) == forward + dense
    gradient = jax.grad(lambda *a: product(*a).sum(), (0, 1))
    assert product_flops(jax.make_jaxpr(gradient)(x, kernel)) == 3 * forward + 2 * dense
    strided = jax.grad(lambda *a: product(*a, strides=2).sum(), (0, 1))
    assert product_flops(jax.make_jaxpr(strided)(x, kernel)) == (3 * forward + 2 * dense) / 4


def test_a_step_counts_each_product_of_a_layer_once():
    """The forward product, the input's gradient, the kernel's gradient."""
    way = {"input_quantizer": ste_sign, "product": Product("float"), "rngs": nnx.Rngs(0)}
    layer, x = BinaryConv(3, 4, (3, 3), **way), jnp.zeros((2, 8, 8, 3))
    program = jax.make_jaxpr(jax.grad(lambda x, layer: layer(x).sum(), (0, 1)))(x, layer)
    assert product_flops(program) == 3 * 2 * 2 * 64 * 27 * 4


def test_the_limits_run():
    job = matrix_rate(10**9, sizes=(8,))
    assert job.facts["needed"] == 1
    assert job.facts["amount"] == pytest.approx(2e-9 * 8**3)
    run(job)
    assert run(worker.JOBS["stream"](12, splits=(1, 3))) == {}
    assert worker.needed_products("step", **_without_variant()).facts["needed"] > 0


def _without_variant():
    return {name: value for name, value in OPTIONS.items() if name != "variant"}


# ---- Processes -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_shows_its_options():
    command = [sys.executable, "-m", "benchmarks", "--help"]
    assert "--peers" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def task(name, job, **options):
    """A job of ours or of a peer; skips the test if the peer's environment is not made yet."""
    folder = Path(os.environ.get("BOP_OPTAX_PEERS", peers.DEFAULT_FOLDER)).expanduser()
    if name != "ours" and not (folder / name).exists():
        pytest.skip(f"{name} is not in {folder}: run python -m benchmarks, or set BOP_OPTAX_PEERS")
    contestant = rows.Contestant("peer", name, name, job, options)
    return make_task(contestant, find_workers({name}, folder))


def results(task, runs):
    """The answers to one setup and a number of runs."""
    with Worker(task) as process:
        process.ask(job=task.job, options=task.options)
        return [process.ask(run=number) for number in runs]


LEARNING = Experiment(model=BinaryNet(32), batch_size=32, optimizer=Bop(1e-3), pad=0, flip=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours", "larq", "torch"])
def test_all_learn_one_batch_at_the_same_pace(name):
    experiment = to_json(LEARNING)
    options = {"experiment": experiment, "image_shape": [32, 32, 3], "num_classes": 10}
    if name == "ours":
        options["variant"] = "float32"
    losses = [result["loss"] for result in results(task(name, "step", **options), 20 * [1])]
    assert 2 < losses[0] < 4
    assert 0.3 < losses[-1] < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["larq", "torch"])
def test_peers_evaluate(name):
    options = {"experiment": to_json(LEARNING), "image_shape": [32, 32, 3], "num_classes": 10}
    (result,) = results(task(name, "evaluate", **options), [1])
    assert 0 <= result["correct"] <= 32


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [Bop(), LatentAdam()])
def test_larq_zoo_learns_one_batch(optimizer):
    experiment = replace(LEARNING, model=BiRealNet(8), optimizer=optimizer, batch_size=8)
    options = {"experiment": to_json(experiment), "image_shape": [64, 64, 3], "num_classes": 10}
    first, *_, last = results(task("larq", "step", **options), 20 * [1])
    assert last["loss"] < first["loss"]


@pytest.mark.slow
def test_larq_updates_weights_alone():
    results(task("larq", "optimizer", weights=60, leaves=3), [1, 5])


@pytest.mark.slow
def test_digits_end_alike(tmp_path):
    """Six epochs of the same data, schedules and augmentation."""
    experiment = replace(runs.digits_experiment(runs.Place(None, tmp_path)), epochs=6)
    own = {"experiment": to_json(experiment)}
    data = runs.export(experiment.data, tmp_path)
    ours = results(task("ours", "whole_run", variant="float32", **own), [6])
    larq = results(task("larq", "whole_run", **own, **data), [6])
    assert ours[0]["accuracy"] == pytest.approx(larq[0]["accuracy"], abs=0.1)
    assert ours[0]["accuracy"] > 0.8
