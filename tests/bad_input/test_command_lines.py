"""Wrong command lines: each ends with a message, another status than 0, and leaves every file."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tyro
from flax import nnx
from PIL import Image

import train
from benchmarks import __main__ as benchmarks
from benchmarks import engines, imagenet_pipeline, memory
from bop_optax.saving import save
from experiments import compare, latent_weights, precision, report, sweep
from tests.bad_input.table import matches
from training import export, predict
from training.config import BinaryNet, Digits, Experiment
from training.data import prepare
from training.records import describe, sealed, write_json
from training.run import WEIGHTS

pytestmark = pytest.mark.usefixtures("standard_promotion_throughout")
PROGRAMS: dict[str, Callable[[], object]] = {
    "train.py": train.main,
    "sweep": sweep.main,
    "compare": compare.main,
    "precision": precision.main,
    "latent_weights": latent_weights.cli,
    "report": lambda: tyro.cli(report.main),
    "predict": lambda: tyro.cli(predict.main),
    "export": lambda: tyro.cli(export.main),
    "prepare": prepare.main,
    "benchmarks": lambda: tyro.cli(benchmarks.main),
    "engines": lambda: tyro.cli(engines.main),
    "memory": lambda: tyro.cli(memory.main),
    "imagenet_pipeline": lambda: tyro.cli(imagenet_pipeline.main),
}
SMALL = {  # options of a program that come first
    "train.py": "--width 8 --units 16 --epochs 1",
    "sweep": "--width 8 --units 16 --epochs 1",
    "compare": "--data digits --held-out 300 --batch-size 24 --width 4 --units 8 --stages 1"
    " --epochs 1 --folder c --methods bop-linear",
}


def fill(folder: Path) -> None:
    """Makes a file, an image, one that is damaged, a folder, and a finished run."""
    folder.joinpath("file").write_text("text")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "digit.png")
    folder.joinpath("bad.png").write_bytes(b"\x89PNG\r\n")
    run = folder / "run"
    run.mkdir()
    experiment, data = Experiment(model=BinaryNet(4, 8, 1)), Digits().load()
    description = describe(experiment, "digits-bop", data)
    write_json(run / "config.json", sealed(description))
    result = {"format": 2, "result": {"test_accuracy": 0.5}, "metrics": []}
    write_json(run / "result.json", sealed(description | result))
    save(experiment.model.build((8, 8, 1), 10, rngs=nnx.Rngs(0)), run / WEIGHTS)


def content(folder: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def end(command: str) -> object:
    """The status, or the message, that a command ends with."""
    program, *arguments = command.split()
    options = [] if program not in SMALL or arguments[:1] == ["only"] else SMALL[program].split()
    arguments = [argument.replace("EMPTY", "") for argument in arguments if argument != "only"]
    presets = [a for a in arguments[:1] if program in ("train.py", "sweep") and a[:1].isalpha()]
    sys.argv = [program, *presets, *options, *arguments[len(presets) :]]
    with pytest.raises(SystemExit) as ended:
        PROGRAMS[program]()
    return ended.value.code


TABLE = [
    (
        "averages that a sweep does not divide",
        "sweep --shard-averages",
        "experiments.sweep: --shard-averages is of train.py alone: leave it out of a sweep",
    ),
    (
        "the home of nobody",
        "train.py --run-dir ~nosuchuser/x",
        "train.py: ~nosuchuser/x: there is no such home: write the folder without ~",
    ),
    (
        "a file as run",
        "train.py --run-dir file",
        "train.py: .../file is no folder: choose another --run-dir",
    ),
    (
        "a run in a file",
        "train.py --run-dir file/x",
        "train.py: [Errno 20] Not a directory: '.../file/x'",
    ),
    (
        "a folder with files as run",
        "train.py --run-dir .",
        ("train.py: ... is not empty: resume that run with --resume, or choose another --run-dir"),
    ),
    (
        "a run in a folder that cannot be",
        "train.py --run-dir /proc/x",
        "train.py: [Errno 2] No such file or directory: '/proc/x'",
    ),
    (
        "nothing to resume",
        "train.py --run-dir nowhere --resume",
        "train.py: .../nowhere holds no run to resume: there is no such folder",
    ),
    (
        "10³⁰ epochs",
        "train.py --epochs 1000000000000000000000000000000",
        "train.py: --epochs must be below 2³¹, got 1000000000000000000000000000000",
    ),
    (
        "epochs that are negative",
        "train.py --epochs -1",
        "train.py: --epochs must be at least 1, got -1",
    ),
    (
        "epochs of a fraction",
        "train.py --epochs 1.5",
        "Error parsing --epochs: invalid literal for int() with base 10: '1.5'",
    ),
    (
        "10¹² images in a step",
        "train.py --batch-size 1000000000000",
        "train.py: --batch-size must be at most the 1437 training images, got 1000000000000",
    ),
    (
        "images that 8 devices cannot share",
        "train.py --batch-size 7",
        "train.py: --batch-size must be a multiple of the 8 devices, got 7",
    ),
    (
        "a pad of the image",
        "train.py --pad 8",
        "train.py: --pad must be less than the 8×8 pixels of an image, got 8",
    ),
    (
        "a pad of 10⁹",
        "train.py --pad 1000000000",
        "train.py: --pad must be less than the 8×8 pixels of an image, got 1000000000",
    ),
    (
        "a negative pad",
        "train.py --pad -1",
        "train.py: --pad must be at least 0, got -1",
    ),
    (
        "a seed of 2³²",
        "train.py --seed 4294967296",
        "train.py: --seed must be from 0 to 2³² − 1, got 4294967296",
    ),
    (
        "a seed of 10³⁰",
        "train.py --seed 1000000000000000000000000000000",
        "train.py: --seed must be from 0 to 2³² − 1, got 1000000000000000000000000000000",
    ),
    (
        "a negative seed",
        "train.py --seed -1",
        "train.py: --seed must be from 0 to 2³² − 1, got -1",
    ),
    (
        "a seed of a letter",
        "train.py --seed x",
        "Error parsing --seed: invalid literal for int() with base 10: 'x'",
    ),
    (
        "no checkpoint to keep",
        "train.py --keep 0",
        "train.py: --keep must be at least 1, got 0",
    ),
    (
        "a negative number of checkpoints",
        "train.py --keep -5",
        "train.py: --keep must be at least 1, got -5",
    ),
    (
        "a checkpoint after 0 epochs",
        "train.py --checkpoint-epochs 0",
        "train.py: --checkpoint-epochs must be at least 1, got 0",
    ),
    (
        "no time to stop",
        "train.py --stop-within 0",
        "train.py: --stop-within must be above 0, got 0.0",
    ),
    (
        "NaN seconds to stop",
        "train.py --stop-within nan",
        "train.py: --stop-within must be above 0, got nan",
    ),
    (
        "γ below float32",
        "train.py --gamma 1e-50",
        "train.py: --gamma must be at least 1.2e-38, float32's least, got 1e-50",
    ),
    (
        "γ of 0",
        "train.py --gamma 0",
        "train.py: --gamma must be in (0, 1], got 0.0",
    ),
    (
        "γ of NaN",
        "train.py --gamma nan",
        "train.py: --gamma must be in (0, 1], got nan",
    ),
    (
        "γ that ends below 0",
        "train.py --gamma 1e-3:-1",
        "train.py: --gamma must be in [0, 1] at its end, got 0.001:-1.0",
    ),
    (
        "γ that ends in NaN",
        "train.py --gamma 1e-3:nan",
        "train.py: --gamma must be in [0, 1] at its end, got 0.001:nan",
    ),
    (
        "γ that ends beyond float64",
        "train.py --gamma 1e-3:1e999",
        "train.py: --gamma must be in [0, 1] at its end, got 0.001:inf",
    ),
    (
        "γ of stairs of 0 epochs",
        "train.py --gamma 1e-3*0.1/0",
        "Error parsing --gamma: a stair must be at least 1 epoch long, got 0.001*0.1/0",
    ),
    (
        "γ of stairs of factor 0",
        "train.py --gamma 1e-3*0/5",
        "Error parsing --gamma: the factor of a staircase must be in (0, 1], got 0.001*0.0/5",
    ),
    (
        "γ of three numbers",
        "train.py --gamma 1e-3:1e-4:1e-5",
        (
            "Error parsing --gamma: '1e-3:1e-4:1e-5' is none of VALUE, VALUE:END and "
            "VALUE*FACTOR/EPOCHS"
        ),
    ),
    (
        "no γ",
        "train.py --gamma",
        "Missing value for argument '--gamma'. Expected 1 values.",
    ),
    (
        "a negative τ",
        "train.py --threshold -1e-8",
        "train.py: --threshold must be at least 0, got -1e-08",
    ),
    (
        "τ that ends below 0",
        "train.py --threshold 1e-8:-1",
        "train.py: --threshold must be at least 0 at its end, got 1e-08:-1.0",
    ),
    (
        "a learning rate of 0",
        "train.py --learning-rate 0",
        "Error parsing experiment.real: --learning-rate must be above 0 and finite, got 0.0",
    ),
    (
        "a learning rate below float32",
        "train.py --learning-rate 1e-50",
        (
            "Error parsing experiment.real: --learning-rate must be from 1.2e-38 to 3.4e+38, as "
            "float32, got 1e-50"
        ),
    ),
    (
        "a learning rate beyond float32",
        "train.py --learning-rate 1e39",
        (
            "Error parsing experiment.real: --learning-rate must be from 1.2e-38 to 3.4e+38, as "
            "float32, got 1e+39"
        ),
    ),
    (
        "a penalty beyond float32",
        "train.py --l2 1e300",
        "Error parsing experiment.real: --l2 must be at most 1.7e+38, as float32, got 1e+300",
    ),
    (
        "a latent limit below float32",
        "train.py cifar10-adam --latent-limit 1e-50",
        "train.py: --latent-limit must be from 1.2e-38 to 3.4e+38, as float32, got 1e-50",
    ),
    (
        "a latent scale beyond float32",
        "train.py cifar10-adam --latent-scale 1e39",
        "train.py: --latent-scale must be from 1.2e-38 to 3.4e+38, as float32, got 1e+39",
    ),
    (
        "β₁ of 1",
        "train.py cifar10-adam --b1 1",
        "train.py: --b1 must be in [0, 1), got 1.0",
    ),
    (
        "an unknown dtype of averages",
        "train.py --ema-dtype int8",
        (
            "invalid choice 'int8' for argument '--ema-dtype'. Expected one of ('float32', "
            "'bfloat16')."
        ),
    ),
    (
        "an unknown dtype",
        "train.py --dtype float16",
        (
            "invalid choice 'float16' for argument '--dtype'. Expected one of ('float32', "
            "'bfloat16')."
        ),
    ),
    (
        "gradients of 1 bit",
        "train.py --backward 1",
        ('train.py: backward must be "float32", "bfloat16" or a number of bits from 2 to 8, got 1'),
    ),
    (
        "gradients of a word",
        "train.py --backward half",
        (
            "Error parsing --backward: no type matching {float32,bfloat16}|INT could be "
            "instantiated from ['half']. Got errors: - typing.Literal['float32', 'bfloat16']: "
            "['half'] does not match choices ('float32',..."
        ),
    ),
    (
        "no stages",
        "train.py --stages 0",
        "train.py: --stages must be at least 1, got 0",
    ),
    (
        "10⁹ stages",
        "train.py --stages 1000000000",
        "train.py: stages=1000000000 poolings leave nothing of images of 8×8; use fewer",
    ),
    (
        "stages that leave nothing",
        "train.py --stages 4",
        "train.py: stages=4 poolings leave nothing of images of 8×8; use fewer",
    ),
    (
        "10⁹ channels",
        "train.py --width 1000000000",
        "train.py: a kernel has fewer than 2³¹ weights, got (3, 3, 1, 1000000000)",
    ),
    (
        "10³⁰ channels",
        "train.py --width 1000000000000000000000000000000",
        ("train.py: a kernel has fewer than 2³¹ weights, got (1, 1000000000000000000000000000000)"),
    ),
    (
        "10⁹ units",
        "train.py --units 1000000000",
        "train.py: a kernel has fewer than 2³¹ weights, got (64, 1000000000)",
    ),
    (
        "an unknown padding",
        "train.py --first-padding FULL",
        (
            "invalid choice 'FULL' for argument '--first-padding'. Expected one of ('VALID', "
            "'SAME')."
        ),
    ),
    (
        "all training images held out",
        "train.py --held-out 1437",
        ("train.py: --held-out must be from 1 to 1436, fewer than the training images, got 1437"),
    ),
    (
        "a negative number of images held out",
        "train.py --held-out -1",
        "train.py: --held-out must be from 1 to 1436, fewer than the training images, got -1",
    ),
    (
        "a teacher that is nowhere",
        "train.py --teacher nowhere",
        (
            "train.py: nowhere holds no finished run: config.json ([Errno 2] No such file or "
            "directory: 'nowhere/config.json')"
        ),
    ),
    (
        "a file as teacher",
        "train.py --teacher file",
        (
            "train.py: file holds no finished run: config.json ([Errno 20] Not a directory: "
            "'file/config.json')"
        ),
    ),
    (
        "a teacher in nobody's home",
        "train.py --teacher ~nosuchuser/x",
        "train.py: ~nosuchuser/x: there is no such home: write the folder without ~",
    ),
    (
        "an unknown answer to infinity",
        "train.py --nonfinite ignore",
        (
            "invalid choice 'ignore' for argument '--nonfinite'. Expected one of ('stop', 'skip',"
            " 'restore')."
        ),
    ),
    (
        "data that is nowhere",
        "train.py --data nowhere.npz",
        (
            "train.py: nowhere.npz is not a data set ([Errno 2] No such file or directory: "
            "'nowhere.npz'): write it with np.savez(path, train_images=..., train_labels=..., "
            "test_images=..., test_labels=...),..."
        ),
    ),
    (
        "data in nobody's home",
        "train.py --data ~nosuchuser/x.npz",
        (
            "train.py: ~nosuchuser/x.npz is not a data set (~nosuchuser/x.npz: there is no such "
            "home: write the folder without ~): write it with np.savez(path, train_images=..., "
            "train_labels=..., test_images=...,..."
        ),
    ),
    (
        "a file that is no archive",
        "train.py --data file",
        "train.py: --data must be one of digits, cifar10, imagenet2012, or FILE.npz, got file",
    ),
    (
        "CIFAR-10 that is nowhere",
        "train.py --data cifar10 --data-dir nowhere",
        (
            "train.py: cifar10 is not prepared in nowhere: no cifar10/VERSION/dataset_info.json "
            "there...."
        ),
    ),
    (
        "CIFAR-10 in nobody's home",
        "train.py --data cifar10 --data-dir ~nosuchuser/x",
        "train.py: ~nosuchuser/x: there is no such home: write the folder without ~",
    ),
    (
        "10⁶ workers",
        "train.py --data imagenet2012 --workers 1000000",
        "train.py: --workers must be at most 1000, about one for each core, got 1000000",
    ),
    (
        "−1 workers",
        "train.py --data imagenet2012 --workers -1",
        "train.py: --workers must be at least 0, got -1",
    ),
    (
        "an unknown answer to bad images",
        "train.py --data imagenet2012 --bad-images fail",
        "invalid choice 'fail' for argument '--bad-images'. Expected one of ('stop', 'skip').",
    ),
    (
        "an option of another program",
        "train.py --gammas 1e-3",
        "Unrecognized options: --gammas, 1e-3",
    ),
    (
        "two presets",
        "train.py only digits-bop digits-bop",
        "Unrecognized options: digits-bop",
    ),
    # Sweeps
    (
        "γ of 0 in a sweep",
        "sweep --gammas 0",
        (
            "experiments.sweep: network gamma=0.0-threshold=1e-07-seed=0: --gamma must be in (0, "
            "1], got 0.0*0.1/15"
        ),
    ),
    (
        "γ of NaN in a sweep",
        "sweep --gammas nan",
        (
            "experiments.sweep: network gamma=nan-threshold=1e-07-seed=0: --gamma must be in (0, "
            "1], got nan*0.1/15"
        ),
    ),
    (
        "γ below float32 in a sweep",
        "sweep --gammas 1e-50",
        (
            "experiments.sweep: network gamma=1e-50-threshold=1e-07-seed=0: --gamma must be at "
            "least 1.2e-38, float32's least, got 1e-50*0.1/15"
        ),
    ),
    (
        "a schedule as γ in a sweep",
        "sweep --gammas 1e-3:0",
        "Error parsing --gammas: Could not find valid parse for arguments: ['1e-3:0']",
    ),
    (
        "a negative τ in a sweep",
        "sweep --thresholds -1",
        (
            "experiments.sweep: network gamma=0.001-threshold=-1.0-seed=0: --threshold must be at"
            " least 0, got -1.0"
        ),
    ),
    (
        "no seed in a sweep",
        "sweep --seeds",
        "experiments.sweep: --seeds must be different values and at least one, got ()",
    ),
    (
        "a seed of 2³² in a sweep",
        "sweep --seeds 4294967296",
        (
            "experiments.sweep: network gamma=0.01-threshold=1e-07-seed=4294967296: --seed must "
            "be from 0 to 2³² − 1, got 4294967296"
        ),
    ),
    (
        "an unknown order",
        "sweep --order random",
        ("invalid choice 'random' for argument '--order'. Expected one of ('shared', 'separate')."),
    ),
    (
        "a sweep over momentum",
        "sweep --momentum 0.9",
        "experiments.sweep: --momentum belongs to LatentSGD; digits-bop has Bop",
    ),
    (
        "a sweep over α",
        "sweep --alpha 0.5",
        "experiments.sweep: --alpha belongs to Cema, ProbBop; digits-bop has Bop",
    ),
    (
        "trials of a sweep",
        "sweep --trials 3",
        "Unrecognized options: --trials, 3",
    ),
    (
        "methods of a sweep",
        "sweep --methods bop-linear",
        "Unrecognized options: --methods, bop-linear",
    ),
    (
        "a sweep in nobody's home",
        "sweep --run-dir ~nosuchuser/x",
        "experiments.sweep: ~nosuchuser/x: there is no such home: write the folder without ~",
    ),
    (
        "a file as sweep",
        "sweep --run-dir file",
        "experiments.sweep: .../file is no folder: choose another --run-dir",
    ),
    (
        "a pad of the image in a sweep",
        "sweep --pad 8",
        "experiments.sweep: --pad must be less than the 8×8 pixels of an image, got 8",
    ),
    (
        "10⁹ channels in a sweep",
        "sweep --width 1000000000",
        "experiments.sweep: a kernel has fewer than 2³¹ weights, got (3, 3, 1, 1000000000)",
    ),
    (
        "a sweep without γ",
        "sweep cifar10-adam --gammas 1e-3",
        (
            "experiments.sweep: LatentAdam lacks γ or τ: give --gammas and --thresholds without "
            "values, to train several seeds"
        ),
    ),
    (
        "a sweep of ImageNet",
        "sweep only imagenet-birealnet-bop",
        "experiments.sweep: imagenet2012 does not fit into memory: a sweep needs other data",
    ),
    # Comparisons
    (
        "a comparison in nobody's home",
        "compare --folder ~nosuchuser/x",
        (
            "Error parsing Comparison: ~nosuchuser/x: there is no such home: write the folder "
            "without ~"
        ),
    ),
    (
        "a file as comparison",
        "compare --folder file",
        "experiments.compare: .../file is no folder: choose another --folder",
    ),
    (
        "a comparison in a file",
        "compare --folder file/x",
        "experiments.compare: [Errno 20] Not a directory: '.../file/x'",
    ),
    (
        "10⁶ workers of a comparison",
        "compare --workers 1000000",
        (
            "Error parsing Comparison: --workers must be at most 1000, about one for each core, "
            "got 1000000"
        ),
    ),
    (
        "an address that is none",
        "compare --storage foo",
        (
            "Error parsing Comparison: --storage must be an address as "
            "postgresql+psycopg://HOST/NAME, got 'foo'"
        ),
    ),
    (
        "an empty address",
        "compare --storage=EMPTY",
        (
            "Error parsing Comparison: --storage must be an address as "
            "postgresql+psycopg://HOST/NAME, got ''"
        ),
    ),
    (
        "a negative seed of the search",
        "compare --search-seed -1",
        "Error parsing Comparison: --search-seed must be from 0 to 2³² − 1, got -1",
    ),
    (
        "a seed of the search of 2³²",
        "compare --search-seed 4294967296",
        "Error parsing Comparison: --search-seed must be from 0 to 2³² − 1, got 4294967296",
    ),
    (
        "10³⁰ trials",
        "compare --sampler tpe --trials 1000000000000000000000000000000",
        (
            "Error parsing Comparison: --trials must be at most 10⁶, got "
            "1000000000000000000000000000000"
        ),
    ),
    (
        "an unknown sampler",
        "compare --sampler random",
        "invalid choice 'random' for argument '--sampler'. Expected one of ('grid', 'tpe').",
    ),
    (
        "more held-out images than there are",
        "compare --held-out 1000000000",
        (
            "experiments.compare: --held-out must be from 1 to 1436, fewer than the training "
            "images, got 1000000000"
        ),
    ),
    (
        "γ of a comparison",
        "compare --gamma 1e-3",
        "Unrecognized options: --gamma, 1e-3",
    ),
    (
        "a learning rate of a comparison",
        "compare --learning-rate 1",
        "Unrecognized options: --learning-rate, 1",
    ),
    (
        "a comparison to resume",
        "compare --resume",
        "Unrecognized options: --resume",
    ),
    (
        "a teacher of a comparison",
        "compare --teacher run",
        "Unrecognized options: --teacher, run",
    ),
    (
        "a folder of runs of a comparison",
        "compare --run-dir x",
        "Unrecognized options: --run-dir, x",
    ),
    (
        "images that 8 devices cannot share in a comparison",
        "compare --batch-size 7",
        "experiments.compare: --batch-size must be a multiple of the 8 devices, got 7",
    ),
    (
        "10⁹ channels in a comparison",
        "compare --width 1000000000",
        "experiments.compare: a kernel has fewer than 2³¹ weights, got (3, 3, 1, 1000000000)",
    ),
    (
        "too many stages in a comparison",
        "compare --stages 9",
        "experiments.compare: stages=9 poolings leave nothing of images of 8×8; use fewer",
    ),
    (
        "a pad of the image in a comparison",
        "compare --pad 8",
        "experiments.compare: --pad must be less than the 8×8 pixels of an image, got 8",
    ),
    (
        "10³⁰ epochs in a comparison",
        "compare --epochs 1000000000000000000000000000000",
        (
            "Error parsing Comparison: --epochs must be below 2³¹, got "
            "1000000000000000000000000000000"
        ),
    ),
    (
        "10³⁰ seconds of grace",
        "compare --grace 1000000000000000000000000000000",
        (
            "Error parsing Comparison: --grace must be at most 10⁶, got "
            "1000000000000000000000000000000"
        ),
    ),
    (
        "NaN seconds of grace",
        "compare --grace nan",
        "Error parsing --grace: invalid literal for int() with base 10: 'nan'",
    ),
    (
        "data of a comparison that is nowhere",
        "compare --data nowhere.npz",
        (
            "experiments.compare: nowhere.npz is not a data set ([Errno 2] No such file or "
            "directory: 'nowhere.npz'): write it with np.savez(path, train_images=..., "
            "train_labels=..., test_images=...,..."
        ),
    ),
    # Other experiments
    (
        "an unknown preset of precision",
        "precision --preset nothing",
        (
            "experiments.precision: unknown preset nothing: choose from digits-bop, cifar10-bop, "
            "cifar10-adam, cifar10-sgd, cifar10-bop-sweep, cifar10-bop-threshold-decay, "
            "cifar10-bop-2nd-order,..."
        ),
    ),
    (
        "no settings of precision",
        "precision --settings",
        "experiments.precision: --settings must be different, at least one, got ()",
    ),
    (
        "no seeds of precision",
        "precision --seeds",
        "experiments.precision: --seeds must be different, at least one, got ()",
    ),
    (
        "a seed of precision twice",
        "precision --seeds 1 1",
        "experiments.precision: --seeds must be different, at least one, got (1, 1)",
    ),
    (
        "a negative seed of precision",
        "precision --seeds -1",
        "experiments.precision: --seed must be from 0 to 2³² − 1, got -1",
    ),
    (
        "precision in nobody's home",
        "precision --folder ~nosuchuser/x",
        ("experiments.precision: ~nosuchuser/x: there is no such home: write the folder without ~"),
    ),
    (
        "a data directory of the digits",
        "precision --data-dir nowhere",
        (
            "experiments.precision: digits-bop lacks an option of this command: Digits.__init__()"
            " got an unexpected keyword argument 'data_dir'"
        ),
    ),
    (
        "averages of latent weights",
        "precision --preset cifar10-adam --settings ema-bfloat16",
        (
            "experiments.precision: cifar10-adam lacks an option of this command: "
            "LatentAdam.__init__() got an unexpected keyword argument 'ema_dtype'"
        ),
    ),
    (
        "latent weights of nothing",
        "latent_weights nowhere",
        ("experiments.latent_weights: [Errno 2] No such file or directory: 'nowhere/result.json'"),
    ),
    (
        "latent weights of Bop",
        "latent_weights run",
        "experiments.latent_weights: run was trained by Bop: it has no latent weights",
    ),
    (
        "latent weights in nobody's home",
        "latent_weights ~nosuchuser/x",
        (
            "experiments.latent_weights: ~nosuchuser/x: there is no such home: write the folder "
            "without ~"
        ),
    ),
    (
        "latent weights of a file",
        "latent_weights file",
        "experiments.latent_weights: [Errno 20] Not a directory: 'file/result.json'",
    ),
    (
        "a report of nothing",
        "report --results nowhere",
        "experiments.report: nowhere holds no results",
    ),
    (
        "a report of a file",
        "report --results file",
        "experiments.report: file holds no results",
    ),
    # Finished runs
    (
        "no run to predict",
        "predict",
        "Missing from predict: RUN Folder of a finished run of train.py. (required)",
    ),
    (
        "no image",
        "predict run",
        "training.predict: name at least one image file",
    ),
    (
        "a prediction of nothing",
        "predict nowhere digit.png",
        (
            "training.predict: nowhere holds no finished run: config.json ([Errno 2] No such file"
            " or directory: 'nowhere/config.json')"
        ),
    ),
    (
        "an image that is nowhere",
        "predict run nowhere.png",
        "training.predict: [Errno 2] No such file or directory: 'nowhere.png'",
    ),
    (
        "an image that is damaged",
        "predict run bad.png",
        "training.predict: bad.png does not decode: no known image format",
    ),
    (
        "a folder as image",
        "predict run run",
        "training.predict: [Errno 21] Is a directory: 'run'",
    ),
    (
        "an image in nobody's home",
        "predict run ~nosuchuser/a.png",
        ("training.predict: ~nosuchuser/a.png: there is no such home: write the folder without ~"),
    ),
    (
        "no class",
        "predict run digit.png --top 0",
        "training.predict: --top must be at least 1, got 0",
    ),
    (
        "an unknown format",
        "export run --to pdf",
        (
            "invalid choice 'pdf' for argument '--to'. Expected one of ('bits', 'onnx', 'qonnx', "
            "'tflite')."
        ),
    ),
    (
        "no format",
        "export run",
        (
            "Missing from export: --to {bits,onnx,qonnx,tflite} Format. `bits`: weights as one "
            "bit each, BatchNorm before a sign as a threshold, in a safetensors file. `onnx`: the"
            " same network for any ONNX..."
        ),
    ),
    (
        "an export of nothing",
        "export nowhere --to bits",
        (
            "training.export: nowhere holds no finished run: config.json ([Errno 2] No such file "
            "or directory: 'nowhere/config.json')"
        ),
    ),
    (
        "an export to a missing folder",
        "export run --to bits --output nowhere/x",
        "training.export: [Errno 2] No such file or directory: 'nowhere/x'",
    ),
    (
        "an export to a folder",
        "export run --to bits --output run",
        "training.export: run is a folder: name a file with --output",
    ),
    (
        "an export into a file",
        "export run --to bits --output file/x",
        "training.export: [Errno 20] Not a directory: 'file/x.part'",
    ),
    (
        "an export to nobody's home",
        "export run --to bits --output ~nosuchuser/x",
        "training.export: ~nosuchuser/x: there is no such home: write the folder without ~",
    ),
    (
        "an unknown data set",
        "prepare mnist",
        (
            "invalid choice 'mnist' for argument 'name'. Expected one of ('cifar10', "
            "'imagenet2012')."
        ),
    ),
    (
        "a data set in nobody's home",
        "prepare cifar10 --data-dir ~nosuchuser/x",
        ("training.data.prepare: ~nosuchuser/x: there is no such home: write the folder without ~"),
    ),
    (
        "ImageNet without its archives",
        "prepare imagenet2012 --data-dir nowhere",
        ("training.data.prepare: nowhere/downloads/manual/ILSVRC2012_img_train.tar is missing...."),
    ),
    # Benchmarks
    (
        "an unknown row",
        "benchmarks nothing",
        "invalid choice 'nothing' for argument 'rows'. Expected one of (...",
    ),
    (
        "an unknown variant",
        "benchmarks step --variants nothing",
        (
            "benchmarks: --variants must be among float32, popcount, popcount, bfloat16 "
            "gradients, popcount, 8-bit gradients, popcount, 4-bit gradients, got nothing"
        ),
    ),
    (
        "no variant",
        "benchmarks step --variants",
        "benchmarks: --variants must be at least one, got ()",
    ),
    (
        "0 rounds",
        "benchmarks step --repeats 0",
        "benchmarks: --repeats must be at least 1, got 0",
    ),
    (
        "NaN seconds of a measurement",
        "benchmarks step --seconds nan",
        "benchmarks: --seconds must be at least 0 and finite, got nan",
    ),
    (
        "0 minutes of a race",
        "benchmarks race --minutes 0",
        "benchmarks: --minutes must be above 0 and finite, got 0.0",
    ),
    (
        "records in a file",
        "benchmarks step --out file",
        "benchmarks: --out must be a folder, got file",
    ),
    (
        "peers in nobody's home",
        "benchmarks step --peers ~nosuchuser/x",
        "benchmarks: ~nosuchuser/x: there is no such home: write the folder without ~",
    ),
    (
        "CIFAR-10 of a benchmark that is nowhere",
        "benchmarks cifar10 --data-dir nowhere",
        (
            "benchmarks: cifar10 is not prepared in nowhere: no cifar10/VERSION/dataset_info.json"
            " there...."
        ),
    ),
    (
        "engines of nothing",
        "engines nowhere",
        (
            "benchmarks.engines: nowhere holds no finished run: config.json ([Errno 2] No such "
            "file or directory: 'nowhere/config.json')"
        ),
    ),
    (
        "0 images of engines",
        "engines run --images 0",
        "benchmarks.engines: --images must be at least 1, got 0",
    ),
    (
        "a batch of 0 images",
        "engines run --batches 0",
        "benchmarks.engines: --batches must be from 1 to the 360 images, got (0,)",
    ),
    (
        "more images in a batch than there are",
        "engines run --batches 1000",
        "benchmarks.engines: --batches must be from 1 to the 360 images, got (1000,)",
    ),
    (
        "−1 seconds of engines",
        "engines run --seconds -1",
        "benchmarks.engines: --seconds must be above 0 and finite, got -1.0",
    ),
    (
        "memory of no image",
        "memory --batch-size 0",
        "benchmarks.memory: --batch-size must be at least 1, got 0",
    ),
    (
        "memory of 10¹² images",
        "memory --batch-size 1000000000000",
        (
            "benchmarks.memory: --batch-size must be at most 14266, since XLA counts in 32 bits, "
            "got 1000000000000"
        ),
    ),
    (
        "memory of an unknown card",
        "memory --target tpu",
        "invalid choice 'tpu' for argument '--target'. Expected one of ('here', 'h100') .",
    ),
    (
        "a record of memory in a missing folder",
        "memory --out nowhere/x",
        "benchmarks.memory: --out must be a file in a folder that exists, got nowhere/x",
    ),
    (
        "a pipeline of nothing",
        "imagenet_pipeline --data-dir nowhere",
        (
            "benchmarks.imagenet_pipeline: imagenet2012 is not prepared in nowhere: no "
            "imagenet2012/VERSION/dataset_info.json there...."
        ),
    ),
    (
        "10⁶ workers of a pipeline",
        "imagenet_pipeline --workers 1000000",
        (
            "benchmarks.imagenet_pipeline: --workers must be from 0 to 1000, at least one, got "
            "(1000000,)"
        ),
    ),
    (
        "batches of 0 images of a pipeline",
        "imagenet_pipeline --batch-size 0",
        "benchmarks.imagenet_pipeline: --batch-size must be at least 1, got 0",
    ),
]
parameters = [pytest.param(command, text, id=what) for what, command, text in TABLE]


@pytest.mark.parametrize(("command", "message"), parameters)
def test_a_wrong_command_line(command, message, files, capsys):
    code = end(command)
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    if isinstance(code, str):
        assert matches(message, code), code
    else:
        assert code == 2
        shown = " ".join(shown.replace("│", "").split())
        assert matches(f"... {message} ...", shown), shown
    assert content(Path()) == files


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The content of a folder, in which the command runs."""
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr("training.command.keep_freed_memory", lambda: None)
    return content(Path())
