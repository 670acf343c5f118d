"""The methods that experiments.compare compares: for each, an experiment and a grid."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from experiments.presets import CIFAR10_SMALL, staircase
from training.config import (
    Bold,
    Bop,
    Bop2ndOrder,
    BopLayerwise,
    Cema,
    Experiment,
    LatentAdam,
    LatentSGD,
    ProbBop,
    Schedule,
)

Point = dict[str, float]
Grid = dict[str, tuple[float, ...]]

BOP: Grid = {"gamma": (1e-2, 1e-3, 1e-4), "threshold": (1e-6, 1e-7)}
LAYERWISE: Grid = {"gamma": (1e-2, 1e-3, 1e-4), "threshold": (1.0, 0.3)}
SECOND_ORDER: Grid = {"gamma": (1e-2, 1e-3, 1e-4), "threshold": (1e-2, 1e-3)}
CEMA: Grid = {"alpha": (1e-2, 1e-3, 1e-4), "gamma": (1e-1, 1e-2)}
BOLD: Grid = {"eta": (1e4, 3e3, 1e3, 3e2, 1e2, 30.0)}  # its one hyperparameter
PROB_BOP: Grid = {"gamma": (1e-2, 1e-3, 1e-4), "threshold": (1e-7, 1e-8)}
ADAM: Grid = {"latent_learning_rate": (1e-2, 1e-3, 1e-4), "b1": (0.9, 0.99)}
SGD: Grid = {"latent_learning_rate": (10.0, 1.0, 0.1, 0.01), "momentum": (0.9, 0.99)}
# 3 × 2 points, and one more value of the first hyperparameter if the best of three was at an end.
WIDE_ADAM: Grid = ADAM | {"latent_learning_rate": (0.1, 1e-2, 1e-3, 1e-4)}
WIDE_BOP: Grid = BOP | {"gamma": (0.1, 1e-2, 1e-3, 1e-4)}
WIDE_SECOND_ORDER: Grid = SECOND_ORDER | {"gamma": (1e-2, 1e-3, 1e-4, 1e-5)}
STAIRS, TO_0 = partial(staircase, every=2), partial(Schedule, end=0.0)
OPTIMIZERS = {
    "bop-staircase": (Bop(STAIRS(1e-3), Schedule(1e-7)), BOP),
    "adam-staircase": (LatentAdam(STAIRS(1e-2), b1=0.99), WIDE_ADAM),
    "sgd-staircase": (LatentSGD(STAIRS(1.0), momentum=0.9), SGD),
    "bop-threshold-decay-staircase": (Bop(STAIRS(1e-2), Schedule(1e-6, end=1e-8)), WIDE_BOP),
    "bop-layerwise-staircase": (BopLayerwise(STAIRS(1e-3), Schedule(0.3)), LAYERWISE),
    "bop-2nd-order-staircase": (Bop2ndOrder(STAIRS(1e-3), Schedule(1e-3)), SECOND_ORDER),
    "bop-linear": (Bop(TO_0(1e-3), Schedule(1e-7)), BOP),
    "adam-linear": (LatentAdam(TO_0(1e-3), b1=0.9), ADAM),
    "sgd-linear": (LatentSGD(TO_0(0.1), momentum=0.9), SGD),
    "bop-threshold-decay-linear": (Bop(TO_0(1e-3), Schedule(1e-7, end=1e-8)), BOP),
    "bop-layerwise-linear": (BopLayerwise(TO_0(1e-3), Schedule(0.3)), LAYERWISE),
    "bop-2nd-order-linear": (Bop2ndOrder(TO_0(1e-4), Schedule(1e-3)), WIDE_SECOND_ORDER),
    "cema-linear": (Cema(Schedule(1e-1), TO_0(1e-3)), CEMA),
    "bold-linear": (Bold(TO_0(300)), BOLD),
    "prob-bop-linear": (ProbBop(TO_0(1e-3), Schedule(1e-7)), PROB_BOP),
}
METHODS: dict[str, tuple[Experiment, Grid]] = {
    name: (replace(CIFAR10_SMALL, optimizer=optimizer), grid)
    for name, (optimizer, grid) in OPTIMIZERS.items()
}
"""By name, the experiment and the values of its hyperparameters. A value replaces the first
value of a schedule."""


def at_point(experiment: Experiment, point: Point) -> Experiment:
    """Replaces hyperparameters of the optimizer: the first value of a schedule, or a number."""
    own = {name: getattr(experiment.optimizer, name) for name in point}
    values = {
        name: replace(own[name], initial=value) if isinstance(own[name], Schedule) else value
        for name, value in point.items()
    }
    return replace(experiment, optimizer=replace(experiment.optimizer, **values))


def point_of(experiment: Experiment, names: Iterable[str]) -> Point:
    """The named hyperparameters of the optimizer: a number, or the first value of a schedule."""
    own = {name: getattr(experiment.optimizer, name) for name in names}
    return {name: getattr(value, "initial", value) for name, value in own.items()}


def grid_size(grid: Grid) -> int:
    """The number of points of a grid."""
    return math.prod(len(values) for values in grid.values())


def on_edge(grid: Grid, point: Point) -> list[str]:
    """The hyperparameters of a point that are the first or the last of three or more values."""
    return [k for k, v in point.items() if len(grid[k]) > 2 and v in (grid[k][0], grid[k][-1])]
