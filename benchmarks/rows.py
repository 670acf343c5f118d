"""What is measured: the rows of the benchmark, each with its contestants."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from benchmarks.worker import VARIANTS
from training.config import BinaryNet, BiRealNet, Experiment, LatentAdam, to_json

CIFAR10 = {"image_shape": [32, 32, 3], "num_classes": 10}
IMAGENET = {"image_shape": [224, 224, 3], "num_classes": 1000}
SIZES = ((128, 50), (64, 100))  # width and batch size of BinaryNet
WEIGHTS = 14_000_000


class Contestant(NamedTuple):
    """One of those that a case compares.

    Attributes:
        side: ours, a peer, or the machine's limit.
        name: as the table shows it.
        worker: "ours", or a name of `benchmarks.peers.PEERS`.
        job: of the worker, with its options. None: the options are arguments of train.py.
    """

    side: Literal["ours", "peer", "limit"]
    name: str
    worker: str
    job: str | None
    options: dict[str, Any]


class Case(NamedTuple):
    """One line of the table.

    Attributes:
        title: what is measured.
        unit: "ms" of a step, "images/s", "MiB" among the facts of the job, "s" of a whole process.
        contestants: measured in turn.
        images: in a step.
        runs: steps of each process, if whole processes are measured.
        rounds: at most.
    """

    title: str
    unit: Literal["ms", "images/s", "MiB", "s"]
    contestants: list[Contestant]
    images: int = 0
    runs: int = 0
    rounds: int = 100


def ours(job: str, **options: Any) -> list[Contestant]:
    """Each of our variants."""
    return [Contestant("ours", v, "ours", job, {"variant": v, **options}) for v in VARIANTS]


def larq(job: str, **options: Any) -> list[Contestant]:
    """Larq as TensorFlow runs it, and compiled by XLA."""
    return [
        Contestant("peer", "Larq", "larq", job, options),
        Contestant("peer", "Larq XLA", "larq", job, {**options, "jit": True}),
    ]


def pytorch(job: str, **options: Any) -> list[Contestant]:
    """PyTorch without and with torch.compile."""
    return [
        Contestant("peer", "PyTorch", "torch", job, options),
        Contestant("peer", "PyTorch compiled", "torch", job, {**options, "compiled": True}),
    ]


def limit(name: str, job: str, **options: Any) -> Contestant:
    """A rate of the machine, measured in the same rounds."""
    return Contestant("limit", name, "ours", job, options)


# ---- Rows ----------------------------------------------------------------------------------------


def step() -> list[Case]:
    """Training steps of BinaryNet."""
    return [_binarynet("step", *size) for size in SIZES]


def evaluate() -> list[Case]:
    """Evaluations of BinaryNet."""
    return [_binarynet("evaluate", *size) for size in SIZES]


def _binarynet(job: str, width: int, batch_size: int) -> Case:
    experiment = Experiment(model=BinaryNet(width), batch_size=batch_size, pad=0, flip=False)
    options = {"experiment": to_json(experiment), **CIFAR10}
    own = ours(job, **options)
    if job == "evaluate":  # which computes no gradients
        own = [c for c in own if c.name in ("float32", "popcount")]
    contestants = [*own, *larq(job, **options), *pytorch(job, **options)]
    contestants.append(limit("float32 products", "matrix_rate", of=job, **options))
    what = "training step" if job == "step" else "evaluation"
    title = f"{what}, BinaryNet, width {width}, batch {batch_size}"
    return Case(title, "ms" if job == "step" else "images/s", contestants, batch_size)


def birealnet(batch_size: int = 16) -> list[Case]:
    """A training step of Bi-Real Net-18, against Larq Zoo's."""
    experiment = Experiment(model=BiRealNet(), batch_size=batch_size, pad=0, flip=False)
    latent = replace(experiment, optimizer=LatentAdam())
    bop, adam = ({"experiment": to_json(e), **IMAGENET} for e in (experiment, latent))
    contestants = [
        *ours("step", **bop),
        Contestant("peer", "Larq Zoo", "larq", "step", adam),
        Contestant("peer", "Larq Zoo with Bop", "larq", "step", bop),
        limit("float32 products", "matrix_rate", of="step", **bop),
    ]
    return [Case(f"training step, Bi-Real Net-18, 224×224, batch {batch_size}", "ms", contestants)]


def memory() -> list[Case]:
    """Bytes of a training step by the compiled program, against latent weights with Adam."""
    width, batch_size = SIZES[0]
    experiment = Experiment(model=BinaryNet(width), batch_size=batch_size, pad=0, flip=False)
    cases = []
    for part in ("temporaries", "arguments"):
        options = {"part": part, **CIFAR10}
        bop = ours("memory", experiment=to_json(experiment), **options)
        latent = to_json(replace(experiment, optimizer=LatentAdam()))
        options |= {"variant": "float32", "experiment": latent}
        adam = Contestant("peer", "latent Adam", "ours", "memory", options)
        title = f"{part} of a step, BinaryNet, width {width}, batch {batch_size}"
        cases.append(Case(title, "MiB", [*bop, adam]))
    return cases


def optimizer(weights: int = WEIGHTS) -> list[Case]:
    """The update of many weights, in one array and in 30."""
    cases = []
    for leaves in (1, 30):
        options = {"weights": weights, "leaves": leaves}
        contestants = [
            Contestant("ours", "bop", "ours", "optimizer", {"name": "bop", **options}),
            Contestant("peer", "optax.adam", "ours", "optimizer", {"name": "adam", **options}),
            *larq("optimizer", **options),
            limit("memory stream", "stream", weights=weights),
        ]
        arrays = "1 array" if leaves == 1 else f"{leaves} arrays"
        title = f"optimizer step, {weights / 1e6:.3g} M weights in {arrays}"
        cases.append(Case(title, "ms", contestants))
    return cases


def sweep(width: int = 16, batch_size: int = 100) -> list[Case]:
    """A step of several networks in one program, against one network after another."""
    experiment = Experiment(model=BinaryNet(width), batch_size=batch_size, pad=0, flip=False)
    options = {"experiment": to_json(experiment), "variant": "popcount", **CIFAR10}
    return [
        Case(
            f"a step of {networks} networks, BinaryNet, width {width}, batch {batch_size}",
            "ms",
            [
                Contestant("ours", "vmapped", "ours", "sweep", {**options, "networks": networks}),
                Contestant("peer", "one by one", "ours", "step", {**options, "networks": networks}),
            ],
        )
        for networks in (1, 4, 16)
    ]


ROWS: dict[str, Callable[[], list[Case]]] = {
    "step": step,
    "evaluate": evaluate,
    "birealnet": birealnet,
    "memory": memory,
    "optimizer": optimizer,
    "sweep": sweep,
}
