"""What a run consists of: data, network, optimizers. Each class builds what it describes.

An `Experiment` holds only what acts in its run: its data, its model and its optimizer are each one
member of a union, with the options of that member alone. A model or data set of your own is any
frozen dataclass with the same method, `build` or `load`.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import tyro

from bop_optax.layers import Product
from training.config.data import Arrays, Cifar10, Digits, ImageNet
from training.config.model import (
    BinaryAlexNet,
    BinaryNet,
    BiRealNet,
    QuickNet,
    ReActNet,
    XNORNet,
)
from training.config.optimizer import (
    Adam,
    Bold,
    Bop,
    Bop2ndOrder,
    BopLayerwise,
    Cema,
    LatentAdam,
    LatentSGD,
    ProbBop,
    schedules,
)
from training.config.ranges import require
from training.config.schedule import Schedule

__all__ = [
    "Adam",
    "Arrays",
    "BiRealNet",
    "BinaryAlexNet",
    "BinaryNet",
    "Bold",
    "Bop",
    "Bop2ndOrder",
    "BopLayerwise",
    "Cema",
    "Cifar10",
    "Digits",
    "Experiment",
    "ImageNet",
    "LatentAdam",
    "LatentSGD",
    "ProbBop",
    "QuickNet",
    "ReActNet",
    "RunConfig",
    "Schedule",
    "XNORNet",
    "from_json",
    "to_json",
]


if TYPE_CHECKING:  # a class of your own is a member, too
    Data = Model = Optimizer = Any
else:
    Data = Digits | Cifar10 | Arrays | ImageNet
    Model = BinaryNet | BiRealNet | BinaryAlexNet | XNORNet | QuickNet | ReActNet
    Optimizer = Bop | BopLayerwise | Bop2ndOrder | Cema | Bold | ProbBop | LatentAdam | LatentSGD


@dataclass(frozen=True)
class Experiment:
    """What one run trains, on what, and how."""

    data: Data = field(default_factory=Digits)
    model: Model = field(default_factory=BinaryNet)
    optimizer: Optimizer = field(default_factory=Bop)
    """Optimizer of the binary kernels. LatentAdam and LatentSGD train latent weights."""
    real: Adam = field(default_factory=Adam)
    """Optimizer of the real parameters."""
    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 100
    """Images in an update of the weights, over all devices."""
    accumulate: int = 1
    """Parts of a batch, one after another, to save memory; BatchNorm normalizes each by itself."""
    pad: int = 4
    """Augmentation: random shifts by up to this many pixels. 0: none."""
    flip: bool = True
    """Augmentation: mirror half of the training images."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations. Parameters, statistics and the arithmetic of BatchNorm are float32."""
    backward: Literal["float32", "bfloat16"] | int = "float32"
    """Rounding of incoming gradients of one-bit products: none, bfloat16, or to 2 to 8 bits."""
    teacher: Path | None = None
    """Folder of a finished run, whose probabilities replace the labels in the loss."""
    nonfinite: Literal["stop", "skip", "restore"] = "stop"
    """Action after a loss, gradient, statistic, weight or average that is not finite: stop the run,
    skip the step, or restore the last checkpoint, once from each."""
    seed: int = 0
    """Seed ≥ 0 of the weights, the order of the images and the augmentation."""

    def __post_init__(self):
        require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        require(self.epochs < 2**31, "epochs", "below 2³¹", self.epochs)
        require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        require(self.accumulate >= 1, "accumulate", "at least 1", self.accumulate)
        divides = f"a divisor of the batch size {self.batch_size}"
        require(self.batch_size % self.accumulate == 0, "accumulate", divides, self.accumulate)
        skips = self.accumulate > 1 and self.nonfinite == "skip"
        require(not skips, "nonfinite", "stop or restore with --accumulate", self.nonfinite)
        require(self.pad >= 0, "pad", "at least 0", self.pad)
        Product(backward=self.backward)
        require(0 <= self.seed < 2**32, "seed", "from 0 to 2³² − 1", self.seed)

    @property
    def step_images(self) -> int:
        """Images in a step: a batch, or the part of it that is accumulated."""
        return self.batch_size // self.accumulate

    @property
    def depends_on_epochs(self) -> bool:
        """True if a schedule ends with the last epoch, so that epochs cannot be added later."""
        configs = (self.optimizer, self.real)
        values = [getattr(config, f.name) for config in configs for f in fields(config)]
        return any(isinstance(v, Schedule) and v.end is not None for v in values)

    def hyperparameters(self, step: int, steps_per_epoch: int) -> dict[str, float]:
        """The value of every schedule at the last update of the weights up to a step."""
        length = (self.epochs, steps_per_epoch // self.accumulate)
        values = schedules(self.optimizer, *length) | schedules(self.real, *length)
        update = max((step + 1) // self.accumulate - 1, 0)
        at_step: dict[str, Any] = {k: v(update) if callable(v) else v for k, v in values.items()}
        return {name: float(value) for name, value in at_step.items()}


@dataclass(frozen=True)
class RunConfig:
    """Where a run goes, and how often it is saved."""

    run_dir: Path | None = None
    """Folder: new or empty, or with --resume that of the run. Default: runs/PRESET-TIME."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Resume from the newest checkpoint in --run-dir."""
    checkpoint_epochs: int = 1
    """Epochs from one checkpoint to the next."""
    keep: int = 2
    """Number of checkpoints to keep, the newest."""
    stop_within: float = 120
    """Seconds from Ctrl-C or SIGTERM to the end of the process, at most."""
    compare_steps: int = 1000
    """Steps from one comparison of the devices' copies of the state to the next."""
    shard_averages: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Divide the optimizers' averages among the devices, to save memory. The flips are the same."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the traceback of an error."""

    def __post_init__(self):
        if isinstance(self.run_dir, str):
            object.__setattr__(self, "run_dir", Path(self.run_dir))
        for name in ("checkpoint_epochs", "keep", "compare_steps"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.stop_within > 0, "stop_within", "above 0", self.stop_within)
        if self.resume and self.run_dir is None:
            raise ValueError("--run-dir must be given with --resume")


# ---- JSON ---------------------------------------------------------------------------------------


def to_json(config: Any) -> Any:
    """A configuration as JSON values; each dataclass names its type."""
    if isinstance(config, Schedule | Path):
        return str(config)
    if is_dataclass(config):
        options = {f.name: to_json(getattr(config, f.name)) for f in fields(config)}
        return {"type": type(config).__name__} | options
    return [to_json(x) for x in config] if isinstance(config, list | tuple) else config


def from_json(record: dict[str, Any], hint: Any = Experiment) -> Any:
    """The configuration that `to_json` wrote.

    Args:
        record: JSON values.
        hint: the dataclass, or the union of dataclasses, that the record is of.

    Raises:
        ValueError: for a type that `hint` does not have, and for options out of range.
        TypeError: for unknown options.
    """
    types = {cls.__name__: cls for cls in get_args(hint) or (hint,)}
    options = dict(record)
    name = options.pop("type")
    if name not in types:
        raise ValueError(f"{name} is none of {', '.join(types)}")
    hints = get_type_hints(types[name])
    return types[name](**{k: _option(v, hints.get(k)) for k, v in options.items()})


def _option(value: Any, hint: Any) -> Any:
    if isinstance(value, dict):
        return from_json(value, hint)
    if hint is Schedule:
        return Schedule.parse(value)
    types: list[Any] = [cls for cls in (hint, *get_args(hint)) if is_dataclass(cls)]
    if types:
        raise TypeError(f"{value!r} is none of {', '.join(cls.__name__ for cls in types)}")
    return Path(value) if value is not None and Path in (hint, *get_args(hint)) else value
