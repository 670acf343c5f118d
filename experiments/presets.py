"""The named runs: where each comes from, and what it is reported to reach."""

from dataclasses import replace

from training.config import (
    Adam,
    BinaryAlexNet,
    BinaryNet,
    BiRealNet,
    Bop,
    Bop2ndOrder,
    Cifar10,
    Digits,
    Experiment,
    ImageNet,
    LatentAdam,
    LatentSGD,
    QuickNet,
    ReActNet,
    Schedule,
    XNORNet,
)


def staircase(initial: float, every: int) -> Schedule:
    """× 0.1 after `every` epochs, as in section 5.2."""
    return Schedule(initial, factor=0.1, every=every)


CIFAR10_BOP = Experiment(
    data=Cifar10(),
    model=BinaryNet(),
    optimizer=Bop(staircase(1e-4, 100), Schedule(1e-8)),
    epochs=500,
    batch_size=50,
)
# For two CPU cores: an eighth of the width, two stairs in six epochs.
CIFAR10_SMALL = replace(
    CIFAR10_BOP,
    model=BinaryNet(width=16),
    optimizer=Bop(staircase(1e-3, 2), Schedule(1e-7)),
    epochs=6,
)
SGD_SMALL = LatentSGD(Schedule(1.0), glorot_scaling=False)
IMAGENET_BOP = Experiment(
    data=ImageNet(),
    model=BiRealNet(),
    optimizer=Bop(Schedule(5e-4, end=2.5e-6), Schedule(1e-7)),
    real=Adam(Schedule(2.5e-3, end=2.5e-6)),
    epochs=100,
    batch_size=256,
    pad=0,
)
IMAGENET_BOP_RELEASED = replace(
    IMAGENET_BOP,
    optimizer=Bop(Schedule(1e-4, end=1e-6), Schedule(1e-8)),
    real=Adam(Schedule(2.5e-3, end=5e-6)),
    epochs=300,
    batch_size=1024,
)

PRESETS: dict[str, tuple[str, Experiment]] = {
    "digits-bop": (
        "8×8 handwritten digits: about 98.6 %, in half a minute on two CPU cores.",
        Experiment(
            data=Digits(),
            model=BinaryNet(width=48, units=128, stages=2, first_padding="SAME"),
            optimizer=Bop(staircase(1e-3, 15), Schedule(1e-7)),
            epochs=30,
            batch_size=32,
            pad=1,
            flip=False,
        ),
    ),
    "cifar10-bop": (
        "Section 5.2, Bop: 91.3 % reported after 500 epochs (on a V100).",
        CIFAR10_BOP,
    ),
    "cifar10-adam": (
        "Section 5.2, the baseline: Adam on latent weights, 90.9 % reported after 500 epochs.",
        replace(CIFAR10_BOP, optimizer=LatentAdam(staircase(1e-3, 100))),
    ),
    "cifar10-sgd": (
        "SGD with momentum on latent weights, in the setting of section 5.2.",
        replace(CIFAR10_BOP, optimizer=LatentSGD(staircase(1e-2, 100), momentum=0.9)),
    ),
    "cifar10-bop-sweep": (
        "Section 5.1, one point of Figure 1: batch 100, γ = 1e-3, τ = 1e-6.",
        Experiment(Cifar10(), BinaryNet(), Bop(Schedule(1e-3), Schedule(1e-6))),
    ),
    "cifar10-bop-threshold-decay": (
        "Section 6: γ and τ both decay, in the setting of section 5.2.",
        replace(CIFAR10_BOP, optimizer=Bop(staircase(1e-3, 100), Schedule(1e-6, end=1e-8))),
    ),
    "cifar10-bop-2nd-order": (
        "Bop2ndOrder, biased, with its authors' schedules: 91.9 % reported after 500 epochs.",
        replace(
            CIFAR10_BOP,
            optimizer=Bop2ndOrder(
                Schedule(1e-2, end=1e-5), Schedule(1e-5, end=1e-8), Schedule(1e-7, end=1e-2)
            ),
            real=Adam(Schedule(1e-2, end=1e-3)),
        ),
    ),
    "cifar10-birealnet-bop": (
        "Bi-Real Net-18 on CIFAR-10, with a stem for small images.",
        replace(IMAGENET_BOP, data=Cifar10(), epochs=30, batch_size=100, pad=4),
    ),
    "imagenet-birealnet-bop": (
        "Section 5.3: 54.2 % top-1, 77.2 % top-5 reported after 100 epochs.",
        IMAGENET_BOP,
    ),
    "imagenet-birealnet-bop-released": (
        "Bi-Real Net-18 in the authors' later code: 56.6 % top-1 reported after 300 epochs.",
        IMAGENET_BOP_RELEASED,
    ),
    "imagenet-alexnet-bop-released": (
        "Binary AlexNet in the authors' later code: 41.1 % top-1 reported after 150 epochs.",
        replace(IMAGENET_BOP_RELEASED, model=BinaryAlexNet(), epochs=150),
    ),
    "imagenet-xnornet-bop-released": (
        "XNOR-Net in the authors' later code: 45.9 % top-1 reported after 100 epochs.",
        replace(
            IMAGENET_BOP_RELEASED,
            model=XNORNet(),
            real=replace(IMAGENET_BOP_RELEASED.real, l2=5e-7),
            epochs=100,
        ),
    ),
    "imagenet-quicknet-bop": (
        "QuickNet with section 5.3's hyperparameters of Bi-Real Net; no published result of Bop.",
        replace(IMAGENET_BOP, model=QuickNet()),
    ),
    "imagenet-reactnet-bop": (
        "ReActNet-A with its authors' Adam, section 5.3's γ and τ; no published result of Bop.",
        replace(
            IMAGENET_BOP,
            model=ReActNet(),
            # mobilenet/2_step2/run.sh of github.com/liuzechun/ReActNet, for latent weights.
            real=Adam(Schedule(1.25e-3, end=0.0)),
            epochs=128,
        ),
    ),
    "cifar10-bop-small": (
        "Section 5.2 scaled down: BinaryNet of width 16, 6 epochs.",
        CIFAR10_SMALL,
    ),
    "cifar10-adam-small": (
        "Adam on latent weights; BinaryNet of width 16, 6 epochs.",
        replace(CIFAR10_SMALL, optimizer=LatentAdam(staircase(1e-2, 2), b1=0.99)),
    ),
    "cifar10-sgd-small": (
        "SGD with momentum on latent weights; BinaryNet of width 16, 6 epochs.",
        replace(CIFAR10_SMALL, optimizer=LatentSGD(staircase(1.0, 2), momentum=0.9)),
    ),
    "cifar10-sgd-rate-1": (
        "Section 3: SGD at learning rate 1 from Glorot weights.",
        replace(CIFAR10_SMALL, optimizer=SGD_SMALL),
    ),
    "cifar10-sgd-rate-0.01": (
        "Section 3: SGD at learning rate 0.01 from Glorot weights.",
        replace(CIFAR10_SMALL, optimizer=replace(SGD_SMALL, latent_learning_rate=Schedule(0.01))),
    ),
    "cifar10-sgd-rate-0.01-weights-0.01": (
        "Section 3: SGD at learning rate 0.01 from Glorot weights × 0.01.",
        replace(
            CIFAR10_SMALL,
            optimizer=replace(SGD_SMALL, latent_learning_rate=Schedule(0.01), latent_scale=0.01),
        ),
    ),
}
DEFAULT_PRESET = "digits-bop"
