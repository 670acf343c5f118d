"""The command line of a program that starts from a preset: `PROGRAM [PRESET] [options]`."""

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import tyro

from training.config import Experiment
from training.config.data import named

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
        program: what the command is called, as in "train.py".
        presets: by name, what each is, and its experiment.
        default: the preset of a command that names none.
        options_of: experiment → all options of the command; a frozen dataclass.
        description: first lines of --help.

    Returns:
        The preset's name, and the options.
    """
    arguments = sys.argv[1:]
    preset = arguments.pop(0) if arguments and not arguments[0].startswith("-") else default
    if preset not in presets:
        sys.exit(f"{program}: unknown preset {preset!r}: choose from {', '.join(presets)}")
    about = "\n".join(f"  {name}: {text}" for name, (text, _) in presets.items())
    try:
        experiment, arguments = _replace_data(presets[preset][1], arguments)
        _check_members(preset, experiment, arguments)
        options = options_of(experiment)
        return preset, tyro.cli(
            type(options),
            prog=f"{program} {preset}",
            description=f"{description}\n\n"
            f"{program} [PRESET] [options]. Default preset: {default}.\n{about}\n\n"
            "--data digits|cifar10|imagenet2012|FILE.npz replaces the preset's data.\n"
            f"The defaults below are those of {preset}.",
            default=options,
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands),
        )
    except ValueError as error:
        sys.exit(f"{program}: {error}")


def _replace_data(experiment: Experiment, arguments: list[str]) -> tuple[Experiment, list[str]]:
    rest = list(arguments)
    for i, argument in enumerate(arguments):
        if argument == "--data" and i + 1 < len(arguments):
            del rest[i : i + 2]
            return replace(experiment, data=named(arguments[i + 1])), rest
        if argument.startswith("--data="):
            del rest[i]
            return replace(experiment, data=named(argument.removeprefix("--data="))), rest
    return experiment, rest


def _check_members(preset: str, experiment: Experiment, arguments: list[str]) -> None:
    """Raises ValueError for an option of a data set, model or optimizer that is not used."""
    names = {a.split("=")[0][2:].replace("-", "_") for a in arguments if a.startswith("--")}
    for name in sorted({*names, *(n.removeprefix("no_") for n in names)}):
        for part, hint in get_type_hints(Experiment).items():
            members: list[Any] = [cls for cls in get_args(hint) if is_dataclass(cls)]
            owners = [cls for cls in members if name in [f.name for f in fields(cls)]]
            used = type(getattr(experiment, part))
            if owners and used not in owners:
                raise ValueError(
                    f"--{name.replace('_', '-')} belongs to "
                    f"{', '.join(cls.__name__ for cls in owners)}; {preset} has {used.__name__}"
                )


def end(message: str, status: int, folder: Path | None) -> NoReturn:
    """Ends a stopped process; if a signal stopped it, prints the command that resumes."""
    print(message, file=sys.stderr)
    if status > 128 and folder is not None:
        name = Path(sys.argv[0]).stem
        module = name not in ("train",)
        command = ["python", *(["-m", f"experiments.{name}"] if module else sys.argv[:1])]
        command += sys.argv[1:]
        command += (
            [] if any(a.startswith("--run-dir") for a in sys.argv) else [f"--run-dir={folder}"]
        )
        command += [] if "--resume" in sys.argv else ["--resume"]
        print(f"Resume with\n  {shlex.join(command)}", file=sys.stderr)
    sys.exit(status)
