"""The command line: presets, data, and options of members that are not used."""

import os
import platform
import re
import resource
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import jax
import pytest

from experiments.presets import PRESETS
from train import Options
from training.command import cache_programs, ending, parse
from training.config import Arrays, Cifar10, Digits, ImageNet, Schedule
from training.interrupt import Stopped
from training.run import RunError

ROOT = Path(__file__).parents[2]


def read(monkeypatch, *arguments: object) -> tuple[str, Options]:
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    return parse("train.py", PRESETS, "digits-bop", Options, "Trains.")


def test_presets_and_options(monkeypatch):
    assert read(monkeypatch) == ("digits-bop", Options(PRESETS["digits-bop"][1]))
    preset, options = read(monkeypatch, "cifar10-bop", "--gamma", "1e-3:0", "--threshold=0")
    assert preset == "cifar10-bop"
    assert options.experiment.optimizer.gamma == Schedule(1e-3, end=0.0)
    assert options.experiment.optimizer.threshold == Schedule(0.0)
    _, options = read(monkeypatch, "cifar10-adam", "--latent-learning-rate", "1e-2*0.1/5")
    rate = options.experiment.optimizer.latent_learning_rate
    assert rate == Schedule(1e-2, factor=0.1, every=5)
    _, options = read(monkeypatch, "--run-dir", "runs/x", "--resume", "--no-flip", "--width", 8)
    assert (options.run.run_dir, options.run.resume) == (Path("runs/x"), True)
    assert (options.experiment.flip, options.experiment.model.width) == (False, 8)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("digits", Digits()),
        ("cifar10", Cifar10()),
        ("imagenet2012", ImageNet()),
        ("my/arrays.npz", Arrays(Path("my/arrays.npz"))),
    ],
)
@pytest.mark.parametrize("spelling", [("--data", "{}"), ("--data={}",)])
def test_data_by_name(name, data, spelling, monkeypatch):
    arguments = [part.format(name) for part in spelling]
    _, options = read(monkeypatch, "cifar10-bop", *arguments, "--epochs", 3)
    assert options.experiment.data == data
    assert options.experiment.epochs == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["cifar10-adam", "--gamma", 0.1],
            "--gamma belongs to Bop, BopLayerwise, Bop2ndOrder, Cema, ProbBop; "
            "cifar10-adam has LatentAdam",
        ),
        (["--momentum=0.9"], "--momentum belongs to LatentSGD; digits-bop has Bop"),
        (["--no-glorot-scaling"], "--glorot-scaling belongs to LatentAdam, LatentSGD;"),
        (["--data-dir", "x"], "--data-dir belongs to Cifar10, ImageNet; this run has Digits"),
        (
            ["imagenet-birealnet-bop", "--held-out", 5],
            "--held-out belongs to Digits, Cifar10, Arrays; this run has ImageNet",
        ),
        (
            ["cifar10-birealnet-bop", "--stages", 2],
            "--stages belongs to BinaryNet; cifar10-birealnet-bop has BiRealNet",
        ),
        (["no-such-preset"], "unknown preset 'no-such-preset': choose from digits-bop, cifar10"),
        (["--data", "imagenet2012", "--held-out", 5], "this run has ImageNet"),
        (["--data"], "--data must be given once, with a name or FILE.npz"),
        (["--data", "digits", "--data=cifar10"], "--data must be given once"),
        (["--data", "x.txt"], "--data must be one of digits, cifar10, imagenet2012, or FILE.npz"),
    ],
)
def test_options_that_would_not_act_are_refused(arguments, message, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        read(monkeypatch, *arguments)
    assert message in str(stop.value.code)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", -8], "--batch-size must be at least 1, got -8"),
        (["--gamma", 2], "--gamma must be in (0, 1], got 2.0"),
        (["--gamma", "1e-3*2/5"], "the factor of a staircase must be in (0, 1]"),
        (["--gamma", "soon"], "'soon' is none of VALUE, VALUE:END and"),
        (["--no-such-option"], "--no-such-option"),
        (["--resume"], "--run-dir must be given with --resume"),
    ],
)
def test_values_that_are_wrong(arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        read(monkeypatch, *arguments)
    shown = f"{stop.value.code} {capsys.readouterr().err}"
    assert message in " ".join(shown.replace("│", "").split())


@pytest.mark.parametrize("preset", ["digits-bop", "cifar10-adam", "imagenet-birealnet-bop"])
def test_help_explains_every_option_that_acts_and_no_other(preset, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        read(monkeypatch, preset, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    experiment = PRESETS[preset][1]
    parts = (experiment.data, experiment.model, experiment.optimizer, experiment.real)
    names = {f.name for part in parts for f in fields(part)}
    names |= {"epochs", "batch_size", "pad", "flip", "seed"}
    names |= {"run_dir", "resume", "checkpoint_epochs", "keep"}
    for name in names:
        assert "--" + name.replace("_", "-") in text
    others = {"gamma", "momentum", "workers", "held_out", "stages", "latent_scale"} - names
    assert others
    for name in others:
        assert "--" + name.replace("_", "-") not in text
    for name in PRESETS:
        assert name in text


def test_a_programs_own_options_share_the_command_line(monkeypatch):
    @dataclass(frozen=True)
    class Own:
        """Options of a program."""

        experiment: object
        times: int = 1

    monkeypatch.setattr(sys, "argv", ["own", "--times", "3"])
    _, options = parse("own", PRESETS, "digits-bop", lambda e: Own(e), "Own.")
    assert options.times == 3


# --- the cache of compiled programs -----------------------------------------------------------

CACHE = """
import jax
from training.command import cache_programs
cache_programs()
print(jax.config.jax_compilation_cache_dir)
print(jax.config.jax_persistent_cache_min_compile_time_secs)
print(jax.jit(lambda x: x + 1)(1))
"""


def cache(**variables: object) -> tuple[str, str]:
    """The folder of compiled programs, and the seconds from which a program is kept."""
    env = {k: v for k, v in os.environ.items() if "_CACHE" not in k and k != "XDG_CACHE_HOME"}
    process = subprocess.run(
        [sys.executable, "-c", CACHE],
        cwd=Path(__file__).parents[2],
        env=env | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        check=True,
    )
    folder, seconds, two = process.stdout.splitlines()
    assert two == "2"
    return folder, seconds


def test_compiled_programs_are_kept_in_the_users_cache_folder(tmp_path):
    """A folder for each version of JAX, each kind of CPU and each number of cores."""
    cores = len(os.sched_getaffinity(0))
    name = f"jax-{jax.__version__}-{platform.machine()}-[0-9a-f]{{8}}-{cores}"
    folder, seconds = cache(HOME=tmp_path)
    assert re.fullmatch(f"{re.escape(str(tmp_path))}/.cache/bop_optax/{name}", folder)
    assert seconds == "0.1"
    assert Path(folder).is_dir()
    folder, _ = cache(HOME=tmp_path / "none", XDG_CACHE_HOME=tmp_path / "xdg")
    assert re.fullmatch(f"{re.escape(str(tmp_path))}/xdg/bop_optax/{name}", folder)
    keep_all = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0}
    folder, seconds = cache(XDG_CACHE_HOME=tmp_path / "xdg", **keep_all)
    assert seconds == "0.0"
    assert len(list(Path(folder).iterdir())) >= 1


def test_the_users_own_setting_of_the_cache_wins(tmp_path):
    chosen = {"JAX_COMPILATION_CACHE_DIR": tmp_path / "chosen", "HOME": tmp_path}
    assert cache(**chosen) == (str(tmp_path / "chosen"), "1.0")
    assert not (tmp_path / ".cache").exists()


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path):
    (tmp_path / "file").touch()
    assert cache(XDG_CACHE_HOME=tmp_path / "file") == ("None", "1.0")


def test_the_tests_leave_the_users_cache_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    cache_programs()
    assert jax.config.jax_compilation_cache_dir == before == os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert not list(tmp_path.iterdir())


FAULTS = """
import resource
import sys

from training.command import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(10):
    b"x" * 2**26
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="needs glibc")
def test_freed_memory_is_kept():
    """The pages of a freed array are not asked for again."""
    kept, freed = (
        int(subprocess.check_output([sys.executable, "-c", FAULTS, way]))
        for way in ("keep", "free")
    )
    pages = 2**26 // resource.getpagesize()
    assert freed - kept > 5 * pages


# ---- The end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "error", [ValueError("a bad value"), OSError("no such file"), RunError("damaged")]
)
def test_an_error_is_one_line_and_its_traceback_if_asked_for(capsys, error, debug):
    with pytest.raises(SystemExit) as stop, ending("-m experiments.sweep", debug):
        raise error
    assert stop.value.code == f"experiments.sweep: {error}"
    assert ("Traceback" in capsys.readouterr().err) == debug


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"), ending("train.py"):
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("arguments", "folder", "status", "last"),
    [
        (
            ["--epochs", "3"],
            "runs/a",
            143,
            "  python train.py --epochs 3 --run-dir=runs/a --resume",
        ),
        (["--run-dir", "b c", "--resume"], "b c", 1, "  python train.py --run-dir 'b c' --resume"),
        ([], None, 130, "The same command resumes."),
        ([], None, 1, "Stopped."),
    ],
)
def test_a_stopped_run_tells_what_resumes_it(monkeypatch, capsys, arguments, folder, status, last):
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stop, ending("train.py"):
        raise Stopped("Stopped.", status, folder and Path(folder))
    assert stop.value.code == status
    assert capsys.readouterr().err.splitlines()[-1] == last


def test_the_folder_to_resume_may_be_another(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweep"])
    for resumed, last in (
        (lambda run: run.parent, "  python -m experiments.sweep --run-dir=runs --resume"),
        (lambda run: None, "The same command resumes."),
    ):
        with pytest.raises(SystemExit), ending("-m experiments.sweep", False, resumed):
            raise Stopped("Stopped.", 1, Path("runs/lane1"))
        assert capsys.readouterr().err.splitlines()[-1] == last


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    ("stopped", "status"),
    [("Stopped('x', 143)", 143), ("ValueError('x')", 1), ("Stopped('x', 130, Path('run'))", 130)],
)
def test_a_closed_standard_error_keeps_the_status(stopped, status, debug):
    program = (
        "import sys; from pathlib import Path; from training.command import ending\n"
        "from training.interrupt import Stopped\n"
        "input()\n"
        f"with ending('train.py', {debug}): raise {stopped}"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=pipe, stderr=pipe, cwd=ROOT) as process:
        assert process.stderr is not None
        process.stderr.close()
        process.communicate(b"\n", timeout=120)
    assert process.returncode == status


def test_an_error_before_a_device_is_needed_asks_for_none(tmp_path):
    """A platform that is not there has no part in what is wrong with the data."""
    process = subprocess.run(
        [sys.executable, "train.py", "--data", "none.npz", "--run-dir", tmp_path / "run"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert process.stderr.startswith("train.py: none.npz is ")
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("platform", ["none", "cuda"])
@pytest.mark.parametrize("program", ["train.py", "-m experiments.sweep", "-m training.predict"])
def test_a_platform_that_is_not_there(tmp_path, platform, program):
    if platform in map(str, jax.devices()[:1]):
        pytest.skip("it is there")
    options = [tmp_path, tmp_path] if "predict" in program else ["--run-dir", tmp_path / "run"]
    process = subprocess.run(
        [sys.executable, *program.split(), *options],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    name = program.removeprefix("-m ")
    assert process.stderr.startswith(f"{name}: JAX finds no device of JAX_PLATFORMS='{platform}' (")
    assert process.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "path", [path for path in ROOT.glob("*/*.py") if "\nINTERRUPT =" in path.read_text()], ids=str
)
def test_signals_are_blocked_before_jax_is_imported(path):
    """Threads that JAX starts inherit the mask; without it one of them takes a signal."""
    before = path.read_text().partition("\nINTERRUPT =")[0]
    program = f"{before}\nimport sys; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
