"""The optimizers of a run: one for the binary kernels, and Adam for the real parameters.

`build(epochs, steps_per_epoch, **initial)` returns an Optax transform. `initial` replaces the first
value of a schedule by its field's name; it may be traced, as in a vmapped sweep.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_type_hints

import jax
import jax.numpy as jnp
import optax

import bop_optax
from bop_optax import ste_sign
from bop_optax.latent import clip_latent, scale_by_glorot
from bop_optax.layers import glorot_uniform
from training.config.ranges import require
from training.config.schedule import Schedule, ScheduleField

LEAST, MOST = float(jnp.finfo("float32").tiny), float(jnp.finfo("float32").max)


def schedules(config: Any, epochs: int, steps_per_epoch: int, **initial: Any) -> dict[str, Any]:
    """The numbers and Optax schedules of an optimizer's configuration, by field."""
    return {
        f.name: value.over(epochs, steps_per_epoch, initial.get(f.name))
        for f in fields(config)
        if isinstance(value := getattr(config, f.name), Schedule)
    }


def _read_schedules(config: Any) -> None:
    """Makes schedules of numbers and of texts: `Bop(1e-3)` is `Bop(Schedule(1e-3))`."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if hint is Schedule and not isinstance(value, Schedule):
            object.__setattr__(config, name, Schedule.parse(str(value)))


def _check_rate(name: str, rate: Schedule) -> None:
    require(0 < rate.initial <= 1, name, "in (0, 1]", rate)
    require(rate.initial >= LEAST, name, f"at least {LEAST:.2g}, float32's least", rate)
    require(rate.end is None or 0 <= rate.end <= 1, name, "in [0, 1] at its end", rate)


def _check_threshold(threshold: Schedule) -> None:
    require(threshold.initial >= 0, "threshold", "at least 0", threshold)
    if threshold.end is not None:
        require(threshold.end >= 0, "threshold", "at least 0 at its end", threshold)
        largest = max(threshold.initial, threshold.end)
        require(largest < float("inf"), "threshold", "finite if it changes", threshold)


def _check_learning_rate(name: str, rate: Schedule) -> None:
    require(0 < rate.initial < float("inf"), name, "above 0 and finite", rate)
    in_range = LEAST <= rate.initial <= MOST
    require(in_range, name, f"from {LEAST:.2g} to {MOST:.2g}, as float32", rate)
    require(0 <= (rate.end or 0) < float("inf"), name, "at least 0 and finite at its end", rate)


# ---- Rules that flip -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Bop:
    """Bop, the paper's Algorithm 2."""

    gamma: ScheduleField = Schedule(1e-4)
    """Adaptivity rate γ in (0, 1]: share of the new gradient in the moving average."""
    threshold: ScheduleField = Schedule(1e-8)
    """Threshold τ ≥ 0, in units of the gradient: a weaker average flips nothing."""
    ema_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the moving average; bfloat16 is rounded stochastically."""
    kernel_options: ClassVar[dict[str, Any]] = {}

    def __post_init__(self):
        _read_schedules(self)
        _check_rate("gamma", self.gamma)
        _check_threshold(self.threshold)

    def build(self, *steps: int, **initial: Any) -> optax.GradientTransformation:
        """Returns `bop_optax.bop`."""
        rounding_key = 0 if self.ema_dtype == "bfloat16" else None
        return bop_optax.bop(
            **schedules(self, *steps, **initial),
            ema_dtype=self.ema_dtype,
            rounding_key=rounding_key,
        )


@dataclass(frozen=True)
class BopLayerwise:
    """Bop with a threshold relative to each layer (section 6)."""

    gamma: ScheduleField = Schedule(1e-4)
    """Adaptivity rate γ in (0, 1]: share of the new gradient in the moving average."""
    threshold: ScheduleField = Schedule(1.0)
    """Threshold τ ≥ 0, in multiples of the RMS of a layer's averages."""
    kernel_options: ClassVar[dict[str, Any]] = {}

    def __post_init__(self):
        _read_schedules(self)
        _check_rate("gamma", self.gamma)
        _check_threshold(self.threshold)

    def build(self, *steps: int, **initial: Any) -> optax.GradientTransformation:
        """Returns `bop_optax.bop_layerwise`."""
        return bop_optax.bop_layerwise(**schedules(self, *steps, **initial))


@dataclass(frozen=True)
class Bop2ndOrder:
    """Bop2ndOrder of Suarez-Ramirez et al. (2021)."""

    gamma: ScheduleField = Schedule(1e-7)
    """Adaptivity rate γ in (0, 1]: share of the new gradient in the moving average."""
    threshold: ScheduleField = Schedule(1e-6)
    """Threshold τ ≥ 0, in multiples of the RMS of a weight's gradient over time."""
    sigma: ScheduleField = Schedule(1e-3)
    """Share σ in (0, 1] of the new squared gradient in its moving average."""
    unbiased: bool = False
    """Correct both averages for their start at 0."""
    kernel_options: ClassVar[dict[str, Any]] = {}

    def __post_init__(self):
        _read_schedules(self)
        _check_rate("gamma", self.gamma)
        _check_threshold(self.threshold)
        _check_rate("sigma", self.sigma)

    def build(self, *steps: int, **initial: Any) -> optax.GradientTransformation:
        """Returns `bop_optax.bop_2nd_order`."""
        values = schedules(self, *steps, **initial)
        return bop_optax.bop_2nd_order(**values, unbiased=self.unbiased)


@dataclass(frozen=True)
class Cema:
    """CEMA of Quist et al. (2023): two cascaded averages, no threshold."""

    gamma: ScheduleField = Schedule(1e-1)
    """Share γ in (0, 1] of the new gradient in the first average."""
    alpha: ScheduleField = Schedule(1e-3, end=0.0)
    """Share α in (0, 1] of the first average in the second."""
    kernel_options: ClassVar[dict[str, Any]] = {}

    def __post_init__(self):
        _read_schedules(self)
        _check_rate("gamma", self.gamma)
        _check_rate("alpha", self.alpha)

    def build(self, *steps: int, **initial: Any) -> optax.GradientTransformation:
        """Returns `bop_optax.cema`."""
        return bop_optax.cema(**schedules(self, *steps, **initial))


@dataclass(frozen=True)
class Bold:
    """BOLD's Boolean optimizer of Nguyen et al. (2024): an accumulator that a flip resets."""

    eta: ScheduleField = Schedule(1e3, end=0.0)
    """Learning rate η > 0: factor of the gradients, whose sum flips a weight at 1."""
    kernel_options: ClassVar[dict[str, Any]] = {}

    def __post_init__(self):
        _read_schedules(self)
        _check_learning_rate("eta", self.eta)

    def build(self, *steps: int, **initial: Any) -> optax.GradientTransformation:
        """Returns `bop_optax.bold`."""
        return bop_optax.bold(**schedules(self, *steps, **initial))


@dataclass(frozen=True)
class ProbBop:
    """ProbBop of He et al. (2025): a random threshold that grows with each flip of a weight."""

    gamma: ScheduleField = Schedule(1e-4)
    """Adaptivity rate γ in (0, 1]: share of the new gradient in the moving average."""
    threshold: ScheduleField = Schedule(1e-8)
    """Threshold τ ≥ 0 of a weight that never flipped, in units of the gradient."""
    alpha: ScheduleField = Schedule(0.5)
    """Base α in (0, 1]: the band of random flips narrows as α to the power of the epoch."""
    kernel_options: ClassVar[dict[str, Any]] = {}

    def __post_init__(self):
        _read_schedules(self)
        _check_rate("gamma", self.gamma)
        _check_threshold(self.threshold)
        _check_rate("alpha", self.alpha)

    def build(
        self, epochs: int, steps_per_epoch: int, **initial: Any
    ) -> optax.GradientTransformation:
        """Returns `bop_optax.prob_bop`."""
        values = schedules(self, epochs, steps_per_epoch, **initial)
        return bop_optax.prob_bop(
            **values, epoch=lambda t: 1 + jnp.floor_divide(t, steps_per_epoch)
        )


# ---- Latent weights ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Latent:
    """What both optimizers of latent weights share, the baseline of Algorithm 1."""

    latent_learning_rate: ScheduleField = Schedule(1e-3)
    """Learning rate > 0 of the latent weights."""
    glorot_scaling: bool = True
    """Scale the steps of each latent kernel by the inverse of its Glorot coefficient."""
    latent_limit: float = 1.0
    """Limit > 0: latent weights are clipped to [−limit, limit]. inf: no clipping."""
    latent_scale: float = 1.0
    """Factor > 0 of the Glorot initialization of the latent weights."""

    def __post_init__(self):
        _read_schedules(self)
        _check_learning_rate("latent_learning_rate", self.latent_learning_rate)
        require(self.latent_limit > 0, "latent_limit", "above 0", self.latent_limit)
        finite = 0 < self.latent_scale < float("inf")
        require(finite, "latent_scale", "above 0 and finite", self.latent_scale)
        for name in ("latent_limit", "latent_scale"):
            value = getattr(self, name)
            in_range = LEAST <= value <= MOST or value == float("inf")
            require(in_range, name, f"from {LEAST:.2g} to {MOST:.2g}, as float32", value)

    @property
    def kernel_options(self) -> dict[str, Any]:
        """Options that make a binary layer hold latent weights."""

        def scaled_glorot(*args: Any, **kwargs: Any) -> jax.Array:
            return self.latent_scale * glorot_uniform(*args, **kwargs)

        return {"kernel_quantizer": ste_sign, "kernel_init": scaled_glorot}

    def _chain(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        scaling = scale_by_glorot() if self.glorot_scaling else optax.identity()
        return optax.chain(optimizer, scaling, clip_latent(self.latent_limit))


@dataclass(frozen=True)
class LatentAdam(_Latent):
    """Adam on latent weights, the paper's baseline."""

    b1: float = 0.9
    """β₁ in [0, 1), Adam's decay of the average gradient."""

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.b1 < 1, "b1", "in [0, 1)", self.b1)

    def build(self, *steps: int, **initial: Any) -> optax.GradientTransformation:
        """Returns Adam, Glorot scaling and clipping."""
        rate = schedules(self, *steps, **initial)["latent_learning_rate"]
        return self._chain(optax.adam(rate, self.b1))


@dataclass(frozen=True)
class LatentSGD(_Latent):
    """SGD on latent weights."""

    momentum: float = 0.0
    """Momentum in [0, 1)."""

    def __post_init__(self):
        super().__post_init__()
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)

    def build(self, *steps: int, **initial: Any) -> optax.GradientTransformation:
        """Returns SGD, Glorot scaling and clipping."""
        rate = schedules(self, *steps, **initial)["latent_learning_rate"]
        return self._chain(optax.sgd(rate, self.momentum))


# ---- Real parameters -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Adam:
    """Adam for the real parameters: biases, BatchNorm, real kernels."""

    learning_rate: ScheduleField = Schedule(0.01)
    """Adam's learning rate, > 0, for the real parameters."""
    l2: float = 0.0
    """Penalty ≥ 0 on the squares of the real kernels."""

    def __post_init__(self):
        _read_schedules(self)
        _check_learning_rate("learning_rate", self.learning_rate)
        require(0 <= self.l2 < float("inf"), "l2", "at least 0 and finite", self.l2)
        require(2 * self.l2 <= MOST, "l2", f"at most {MOST / 2:.2g}, as float32", self.l2)

    def build(self, *steps: int, **initial: Any) -> optax.GradientTransformation:
        """Returns Adam, after the gradient of the penalty if there is one."""
        adam = optax.adam(schedules(self, *steps, **initial)["learning_rate"])
        if not self.l2:
            return adam
        # The penalty's gradient joins the loss's, as if the loss had the penalty.
        return optax.chain(optax.add_decayed_weights(2 * self.l2, mask=_are_kernels), adam)


def _are_kernels(params: Any) -> Any:
    """True for kernels, False for the scales and biases of BatchNorm."""
    return jax.tree.map(lambda w: w.ndim > 1, params)
