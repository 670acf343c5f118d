"""The named runs: where each comes from, and what it is reported to reach."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Experiment:
    """One training run: Bop or a variant of it, or the latent-weight baseline of Algorithm 1."""

    dataset: Literal["digits", "cifar10", "imagenet2012"] = "digits"
    """Images to train on. digits comes with scikit-learn; the others are read from --data-dir."""
    model: Literal["binarynet", "birealnet", "binary_alexnet", "xnornet"] = "binarynet"
    """The network, of models/."""
    width: int = 128
    """Channels of the first stage; of the later ones, the model's multiples of it."""
    units: int | None = None
    """Units of each hidden dense layer. None: 8 × width, as in the paper (1024 at width 128)."""
    stages: int = 3
    """How many times two convolutions and a 2×2 pooling are stacked (binarynet)."""
    first_padding: Literal["VALID", "SAME"] = "VALID"
    """Padding of the first convolution: VALID as the authors' code has it, SAME as the paper
    (binarynet)."""
    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 100
    """Images per step, over all devices."""
    optimizer: Literal["bop", "bop_layerwise", "bop_2nd_order", "cema", "adam", "sgd"] = "bop"
    """What trains the kernels: bop or a variant; or adam or sgd on latent weights, ste_sign's."""
    gamma: float = 1e-3
    """Bop's adaptivity rate γ in (0, 1]: the new gradient's share in the moving average."""
    gamma_end: float | None = None
    """γ falls to this linearly over all epochs; None: as --decay says."""
    threshold: float = 1e-6
    """Bop's threshold τ ≥ 0: weaker averages flip nothing. In units of the gradient; for
    bop_layerwise of the layer's RMS, for bop_2nd_order of the gradient's RMS over time."""
    threshold_end: float | None = None
    """τ goes to this linearly over all epochs; None: τ is constant."""
    sigma: float = 1e-3
    """Rate σ in (0, 1] of the average squared gradient (bop_2nd_order)."""
    sigma_end: float | None = None
    """σ goes to this linearly over all epochs; None: σ is constant."""
    unbiased: bool = False
    """Correct both averages for their start at 0 (bop_2nd_order)."""
    alpha: float = 1e-3
    """Rate α in (0, 1] of the second average, falling linearly to 0 over all epochs (cema)."""
    latent_learning_rate: float = 1e-3
    """Learning rate > 0 of the latent weights (adam, sgd)."""
    latent_learning_rate_end: float | None = None
    """The same falls to this linearly over all epochs; None: as --decay says."""
    momentum: float = 0.0
    """Momentum in [0, 1) of the latent weights (sgd)."""
    b1: float = 0.9
    """Adam's β₁ in [0, 1), its decay of the average gradient, for the latent weights (adam)."""
    glorot_scaling: bool = True
    """Scale each latent kernel's steps by the inverse of its Glorot coefficient."""
    latent_limit: float = 1.0
    """Latent weights are clipped to [−limit, limit], > 0; inf does not clip."""
    latent_scale: float = 1.0
    """Factor > 0 on the latent weights' Glorot initialization."""
    decay: float = 1.0
    """Factor in (0, 1] on γ, or on the latent learning rate, after every --decay-epochs."""
    decay_epochs: int = 100
    """Epochs between two decays."""
    learning_rate: float = 0.01
    """Adam's learning rate, > 0, for the real parameters."""
    learning_rate_end: float | None = None
    """The same falls to this linearly over all epochs; None: it is constant."""
    l2: float = 0.0
    """Penalty ≥ 0 on the squares of the real kernels."""
    pad: int = 4
    """Augmentation: random shifts by up to this many pixels; 0 for none. ImageNet's images are
    cropped at random in any case."""
    flip: bool = True
    """Augmentation: mirror half of the training images."""
    held_out: int = 0
    """Training images held out, to validate on in place of the test images; 0 for none."""
    seed: int = 0
    """Seed ≥ 0 of the weights, the order of the images and the augmentation."""
    data_dir: Path | None = None
    """TFDS directory. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    workers: int | None = None
    """Processes that read and decode images (imagenet2012). None: one for each core; 0: the
    training process itself."""
    bad_images: Literal["stop", "skip"] = "stop"
    """An image file that does not decode: stop, or name it, count it and leave it out."""
    run_dir: Path | None = None
    """Folder of this run, new or empty. Default: runs/PRESET-TIME."""
    checkpoint_epochs: int = 1
    """Epochs between two checkpoints."""
    keep: int = 2
    """Checkpoints kept, the newest ones."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on from the newest checkpoint in --run-dir."""

    @property
    def latent(self) -> bool:
        """Whether real numbers behind a sign are trained, the baseline of Algorithm 1."""
        return self.optimizer in ("adam", "sgd")

    @property
    def evaluated_on(self) -> Literal["test", "validation"]:
        """Which images the accuracy after every epoch is of."""
        return "validation" if self.held_out or self.dataset == "imagenet2012" else "test"

    @property
    def accuracy(self) -> str:
        """The name of that accuracy, in a run's metrics and result."""
        return f"{self.evaluated_on}_accuracy"

    @property
    def top5(self) -> str:
        """The same, of the five likeliest classes."""
        return f"{self.evaluated_on}_top5"

    @property
    def linear(self) -> bool:
        """Whether what sets the pace of flips, γ, α or the latent rate, falls linearly."""
        end = self.latent_learning_rate_end if self.latent else self.gamma_end
        return self.optimizer == "cema" or end is not None

    @property
    def falls_until_the_end(self) -> bool:
        """Whether a hyperparameter's schedule depends on the number of epochs."""
        ends = [field.name for field in fields(self) if field.name.endswith("_end")]
        return self.optimizer == "cema" or any(getattr(self, end) is not None for end in ends)

    def check(self) -> None:
        """Raises ValueError for the first field out of range, naming the value and the range."""
        counts = ("width", "stages", "epochs", "batch_size", "decay_epochs")
        for name in (*counts, "checkpoint_epochs", "keep"):
            _require(getattr(self, name) >= 1, self, name, "at least 1")
        _require(self.units is None or self.units >= 1, self, "units", "at least 1")
        for name in ("gamma", "decay", "sigma", "alpha"):
            _require(0 < getattr(self, name) <= 1, self, name, "in (0, 1]")
        for name in ("gamma_end", "sigma_end"):
            _require(0 <= (getattr(self, name) or 0) <= 1, self, name, "in [0, 1]")
        for name in ("threshold_end", "learning_rate_end", "latent_learning_rate_end", "l2"):
            value = getattr(self, name) or 0
            _require(0 <= value < float("inf"), self, name, "at least 0 and finite")
        for name in ("momentum", "b1"):
            _require(0 <= getattr(self, name) < 1, self, name, "in [0, 1)")
        for name in ("learning_rate", "latent_learning_rate", "latent_scale"):
            _require(0 < getattr(self, name) < float("inf"), self, name, "above 0 and finite")
        _require(self.latent_limit > 0, self, "latent_limit", "above 0")
        _require(self.threshold >= 0, self, "threshold", "at least 0")
        if self.threshold_end is not None:
            _require(self.threshold < float("inf"), self, "threshold", "finite, to change")
        for name in ("pad", "held_out", "workers"):
            _require((getattr(self, name) or 0) >= 0, self, name, "at least 0")
        streamed = self.dataset == "imagenet2012"
        _require(not (streamed and self.held_out), self, "held_out", "0 with imagenet2012")
        _require(0 <= self.seed < 2**32, self, "seed", "from 0 to 2³² − 1")
        _require(not self.resume or self.run_dir is not None, self, "run_dir", "given to --resume")


def _require(holds: bool, experiment: Experiment, name: str, what: str) -> None:
    if not holds:
        option = "--" + name.replace("_", "-")
        raise ValueError(f"{option} must be {what}, got {getattr(experiment, name)}")


CIFAR10_BOP = Experiment(
    dataset="cifar10",
    epochs=500,
    batch_size=50,
    gamma=1e-4,
    decay=0.1,
    decay_epochs=100,
    threshold=1e-8,
)
CIFAR10_ADAM = replace(CIFAR10_BOP, optimizer="adam", latent_learning_rate=1e-3)
CIFAR10_SGD = replace(CIFAR10_BOP, optimizer="sgd", latent_learning_rate=1e-2, momentum=0.9)
# For two CPU cores: an eighth of the width; γ, or the learning rate, falls twice.
SMALL = {"width": 16, "epochs": 6, "decay_epochs": 2}
IMAGENET_BOP = Experiment(
    dataset="imagenet2012",
    model="birealnet",
    width=64,
    epochs=100,
    batch_size=256,
    gamma=5e-4,
    gamma_end=2.5e-6,
    threshold=1e-7,
    learning_rate=2.5e-3,
    learning_rate_end=2.5e-6,
    pad=0,
)
IMAGENET_BOP_RELEASED = replace(
    IMAGENET_BOP,
    epochs=300,
    batch_size=1024,
    gamma=1e-4,
    gamma_end=1e-6,
    threshold=1e-8,
    learning_rate_end=5e-6,
)
SMALL_BOP = replace(CIFAR10_BOP, **SMALL, gamma=1e-3, threshold=1e-7)
SMALL_BOP_LAYERWISE = replace(SMALL_BOP, optimizer="bop_layerwise", threshold=0.3)
SMALL_BOP_2ND_ORDER = replace(SMALL_BOP, optimizer="bop_2nd_order", threshold=1e-3)
SMALL_ADAM = replace(CIFAR10_ADAM, **SMALL, latent_learning_rate=1e-2, b1=0.99)
SMALL_SGD = replace(CIFAR10_SGD, **SMALL, momentum=0.0, decay=1.0, glorot_scaling=False)

PRESETS: dict[str, tuple[str, Experiment]] = {
    "digits-bop": (
        "8×8 handwritten digits: about 98.6 %, in half a minute on two CPU cores.",
        Experiment(
            dataset="digits",
            width=48,
            units=128,
            stages=2,
            first_padding="SAME",
            epochs=30,
            batch_size=32,
            gamma=1e-3,
            decay=0.1,
            decay_epochs=15,
            threshold=1e-7,
            pad=1,
            flip=False,
        ),
    ),
    "cifar10-bop": (
        "The paper's section 5.2: 91.3 % reported after 500 epochs (on a V100).",
        CIFAR10_BOP,
    ),
    "cifar10-bop-sweep": (
        "The paper's section 5.1, one point of Figure 1: batch 100, γ = 1e-3, τ = 1e-6.",
        Experiment(dataset="cifar10"),
    ),
    "cifar10-adam": (
        "Section 5.2's baseline, Adam on latent weights: 90.9 % reported after 500 epochs.",
        CIFAR10_ADAM,
    ),
    "cifar10-sgd": (
        "SGD with momentum on latent weights, in the setting of section 5.2.",
        CIFAR10_SGD,
    ),
    "cifar10-bop-falling-threshold": (
        "Section 6: both γ and τ from high to low, in the setting of section 5.2.",
        replace(CIFAR10_BOP, gamma=1e-3, threshold=1e-6, threshold_end=1e-8),
    ),
    "cifar10-bop-2nd-order": (
        "Bop2ndOrder, biased, with its authors' schedules: 91.9 % reported after 500 epochs.",
        replace(
            CIFAR10_BOP,
            optimizer="bop_2nd_order",
            gamma=1e-2,
            gamma_end=1e-5,
            threshold=1e-5,
            threshold_end=1e-8,
            sigma=1e-7,
            sigma_end=1e-2,
            learning_rate_end=1e-3,
        ),
    ),
    "imagenet-birealnet-bop": (
        "The paper's section 5.3: 54.2 % top-1, 77.2 % top-5 reported after 100 epochs.",
        IMAGENET_BOP,
    ),
    "imagenet-birealnet-bop-released": (
        "Bi-Real Net-18 in the authors' later code: 56.6 % top-1 reported after 300 epochs.",
        IMAGENET_BOP_RELEASED,
    ),
    "imagenet-alexnet-bop-released": (
        "Binary AlexNet in the authors' later code: 41.1 % top-1 reported after 150 epochs.",
        replace(IMAGENET_BOP_RELEASED, model="binary_alexnet", units=4096, epochs=150),
    ),
    "imagenet-xnornet-bop-released": (
        "XNOR-Net in the authors' later code: 45.9 % top-1 reported after 100 epochs.",
        replace(IMAGENET_BOP_RELEASED, model="xnornet", width=32, units=4096, epochs=100, l2=5e-7),
    ),
    "cifar10-birealnet-bop": (
        "Whether Bi-Real Net-18 learns: on CIFAR-10, with a stem for small images.",
        replace(IMAGENET_BOP, dataset="cifar10", epochs=30, batch_size=100, pad=4),
    ),
    "cifar10-bop-small": (
        "Section 5.2 at width 16 for 6 epochs, γ and τ by compare.py: seven minutes on a CPU core.",
        SMALL_BOP,
    ),
    "cifar10-adam-small": (
        "Its baseline, Adam on latent weights, at the same small scale.",
        SMALL_ADAM,
    ),
    "cifar10-sgd-small": (
        "SGD with momentum on latent weights, at the same small scale.",
        replace(CIFAR10_SGD, **SMALL, latent_learning_rate=1.0),
    ),
    "cifar10-bop-falling-gamma-small": (
        "At the same small scale, Bop with γ falling linearly to 0, as CEMA's α does.",
        replace(SMALL_BOP, gamma_end=0.0),
    ),
    "cifar10-adam-falling-rate-small": (
        "At the same small scale, Adam with its rate falling linearly to 0.",
        replace(SMALL_ADAM, latent_learning_rate=1e-3, latent_learning_rate_end=0.0, b1=0.9),
    ),
    "cifar10-sgd-falling-rate-small": (
        "At the same small scale, SGD with momentum, its rate falling linearly to 0.",
        replace(CIFAR10_SGD, **SMALL, latent_learning_rate=0.1, latent_learning_rate_end=0.0),
    ),
    "cifar10-bop-falling-gamma-and-threshold-small": (
        "At the same small scale, Bop with γ falling linearly to 0 and τ to 1e-8.",
        replace(SMALL_BOP, gamma_end=0.0, threshold_end=1e-8),
    ),
    "cifar10-bop-2nd-order-falling-gamma-small": (
        "At the same small scale, Bop2ndOrder with γ falling linearly to 0.",
        replace(SMALL_BOP_2ND_ORDER, gamma=1e-4, gamma_end=0.0),
    ),
    "cifar10-bop-layerwise-falling-gamma-small": (
        "At the same small scale, thresholds relative to layers' RMS, γ falling linearly to 0.",
        replace(SMALL_BOP_LAYERWISE, gamma_end=0.0),
    ),
    "cifar10-bop-falling-threshold-small": (
        "Section 6 at the same small scale: Bop with τ falling to 1e-8, γ in steps.",
        replace(SMALL_BOP, gamma=1e-2, threshold=1e-6, threshold_end=1e-8),
    ),
    "cifar10-bop-layerwise-small": (
        "Section 6 at the same small scale: thresholds relative to each layer's RMS.",
        SMALL_BOP_LAYERWISE,
    ),
    "cifar10-bop-2nd-order-small": (
        "Bop2ndOrder (Suarez-Ramirez et al. 2021), biased, at the same small scale.",
        SMALL_BOP_2ND_ORDER,
    ),
    "cifar10-cema-small": (
        "CEMA (Quist et al. 2023), α falling to 0, at the same small scale.",
        replace(SMALL_BOP, optimizer="cema", gamma=1e-1, decay=1.0),
    ),
    "cifar10-sgd-rate-1": (
        "Section 3: SGD at learning rate 1 from Glorot weights.",
        replace(SMALL_SGD, latent_learning_rate=1.0),
    ),
    "cifar10-sgd-rate-0.01": (
        "Section 3: SGD at learning rate 0.01 from Glorot weights.",
        replace(SMALL_SGD, latent_learning_rate=0.01),
    ),
    "cifar10-sgd-rate-0.01-weights-0.01": (
        "Section 3: SGD at learning rate 0.01 from Glorot weights × 0.01: as at 1, says the paper.",
        replace(SMALL_SGD, latent_learning_rate=0.01, latent_scale=0.01),
    ),
}
DEFAULT_PRESET = "digits-bop"
