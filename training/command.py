"""The command line of a program that starts from a preset: `PROGRAM [PRESET] [options]`."""

import ctypes
import hashlib
import os
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import jax
import tyro

from bop_optax.processor import instructions
from training import hosts
from training.config import Experiment
from training.config.data import NAMED, data_from_name
from training.interrupt import Stopped
from training.machine import cache_folder, cores
from training.messages import warn
from training.run import RunError

Options = TypeVar("Options")
Presets = Mapping[str, tuple[str, Experiment]]


def parse(
    program: str,
    presets: Presets,
    default: str,
    options_of: Callable[[Experiment], Options],
    description: str,
) -> tuple[str, Options]:
    """Reads the command line; ends the process, with a message, if it is wrong.

    Args:
        program: the command after "python", as in "train.py" or "-m experiments.sweep".
        presets: by name, what each is, and its experiment.
        default: the preset of a command that names none.
        options_of: experiment → all options of the command; a frozen dataclass.
        description: first lines of --help.

    Returns:
        The preset's name, and the options.
    """
    name, arguments = program.removeprefix("-m "), sys.argv[1:]
    preset = arguments.pop(0) if arguments and not arguments[0].startswith("-") else default
    if preset not in presets:
        sys.exit(f"{name}: unknown preset {preset!r}: choose from {', '.join(presets)}")
    about = "\n".join(f"  {key}: {text}" for key, (text, _) in presets.items())
    try:
        experiment, arguments = _replace_data(presets[preset][1], arguments)
        _check_members(preset, experiment, arguments)
        options = options_of(experiment)
        return preset, tyro.cli(
            type(options),
            prog=f"python {program} {preset}",
            description=f"{description}\n\n"
            f"python {program} [PRESET] [options]. Default preset: {default}.\n{about}\n\n"
            f"--data {'|'.join(NAMED)}|FILE.npz replaces the preset's data.\n"
            f"The defaults below are those of {preset}.",
            default=options,
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands),
        )
    except ValueError as error:
        sys.exit(f"{name}: {error}")


def prepare_process() -> None:
    """Keeps compiled programs on disk and freed memory in the process."""
    cache_programs()
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Lets glibc keep the buffers that XLA frees after a step, for the next step.

    By default glibc returns large buffers to the system, which then hands them out again page by
    page: a fifth of the time of a step whose products take little time. Does nothing with another C
    library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    arena_max, mmap_max, trim_threshold = -8, -4, -1  # M_ARENA_MAX and so on, of malloc.h
    for option, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, 2**31 - 1)):
        mallopt(option, value)


def cache_programs() -> None:
    """Keeps compiled programs on disk: the next process that needs one loads it.

    The folder is `~/.cache/bop_optax`, or `bop_optax` in `$XDG_CACHE_HOME`. JAX's own settings win:
    `JAX_COMPILATION_CACHE_DIR` names another folder, and `JAX_ENABLE_COMPILATION_CACHE=0` turns the
    cache off. If the folder cannot be written to, there is no cache.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        folder = cache_folder().expanduser() / f"jax-{jax.__version__}-{_machine()}"
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _machine() -> str:
    """A name of the CPU cores that a program is compiled for, which JAX's cache takes for alike.

    A program may fail on a CPU that lacks an instruction. One that was compiled for a single core,
    as in a pinned worker, runs on a single core wherever it is loaded.
    """
    features = " ".join(instructions()) or platform.processor()
    digest = hashlib.sha256(features.encode()).hexdigest()[:8]
    return f"{platform.machine()}-{digest}-{cores()}"


def _replace_data(experiment: Experiment, arguments: list[str]) -> tuple[Experiment, list[str]]:
    given = [i for i, argument in enumerate(arguments) if argument.split("=")[0] == "--data"]
    if not given:
        return experiment, arguments
    (i, *others), rest = given, list(arguments)
    _, has_value, name = rest.pop(i).partition("=")
    if others or (not has_value and i == len(rest)):
        raise ValueError("--data must be given once, with a name or FILE.npz")
    name = name if has_value else rest.pop(i)
    return replace(experiment, data=data_from_name(name)), rest


def _check_members(preset: str, experiment: Experiment, arguments: list[str]) -> None:
    """Raises ValueError for an option of a data set, model or optimizer that is not used."""
    names = {a.split("=")[0][2:].replace("-", "_") for a in arguments if a.startswith("--")}
    for name in sorted({*names, *(n.removeprefix("no_") for n in names)}):
        for part, hint in get_type_hints(Experiment).items():
            members: list[Any] = [cls for cls in get_args(hint) if is_dataclass(cls)]
            owners = [cls for cls in members if name in [f.name for f in fields(cls)]]
            used = type(getattr(experiment, part))
            owner = "this run" if part == "data" else preset
            if owners and used not in owners:
                raise ValueError(
                    f"--{name.replace('_', '-')} belongs to "
                    f"{', '.join(cls.__name__ for cls in owners)}; {owner} has {used.__name__}"
                )


@contextmanager
def ending(
    program: str, debug: bool = False, resumed: Callable[[Path], Path | None] = lambda run: run
) -> Iterator[None]:
    """Ends the process, and with it the others of its run, if the block fails.

    A line on standard error tells why. If the run can be resumed, a second one tells how.

    Args:
        program: as that of `parse`.
        debug: whether the traceback is printed, too.
        resumed: the folder of a run → the folder to resume. None: the same command resumes.
    """
    name = program.removeprefix("-m ")
    try:
        yield
    except Stopped as stopped:
        message = f"{stopped}{_resume_hint(program, stopped, resumed)}"
        if stopped.alone or hosts.is_first():
            warn(message)
        _leave(message, stopped.status, debug, stopped.alone)
    except (ValueError, OSError, RunError) as error:
        message = f"{name}: {error}"
        _leave(message, message, debug)
    except Exception as error:
        if not hosts.are_several():
            raise
        reason, *_ = str(error).splitlines() or [""]
        message = f"{name}: {type(error).__name__}: {reason}"
        if isinstance(error, jax.errors.JaxRuntimeError):
            time.sleep(1)  # a process that knows the cause tells it first
            message += "; another process may have been killed"
        _leave(message, message, debug=True)


def _leave(message: str, code: int | str, debug: bool, alone: bool = True) -> NoReturn:
    """Ends the process with a status, or with 1 and a line; and others, if they do not know why."""
    if debug:
        warn(traceback.format_exc())
    if alone and hosts.are_several():
        if isinstance(code, str):
            warn(code)
            code = 1
        hosts.announce(message, code)
        os._exit(code)  # JAX would wait for the others
    sys.exit(code)


def _resume_hint(program: str, stopped: Stopped, resumed: Callable[[Path], Path | None]) -> str:
    folder = stopped.folder and resumed(stopped.folder)
    if folder and hosts.are_several():
        return f"\nResume by starting all processes again with --run-dir={folder} --resume"
    if folder is None:
        return "\nThe same command resumes." if stopped.folder or stopped.status > 128 else ""
    arguments = sys.argv[1:]
    if not any(argument.startswith("--run-dir") for argument in arguments):
        arguments.append(f"--run-dir={folder}")
    if "--resume" not in arguments:
        arguments.append("--resume")
    return f"\nResume with\n  python {program} {shlex.join(arguments)}"
