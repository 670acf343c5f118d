"""Faults on purpose, counted: bits flipped, files mutated, runs killed or signalled.

python -m tests.faults bits 1200       # flips one bit of a checkpoint, 1200 times
python -m tests.faults mutations 2000  # changes each file of a run in one place, 2000 times
python -m tests.faults kills 200       # kills a run at a random time and resumes it, 200 times
python -m tests.faults signals 200     # sends Ctrl-C or SIGTERM at a random time, 200 times
"""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bop_optax.saving import load
from training.checkpoints import Checkpoints, DamagedCheckpoint
from training.records import read_json, read_metrics, read_record

ROOT = Path(__file__).parents[1]
OPTIONS = ["--width=8", "--units=32", "--batch-size=24", "--epochs=6"]


# ---- Bits ----------------------------------------------------------------------------------------


def flip_bits(folder: Path, number: int, seed: int = 0) -> Counter[str]:
    """Flips one random bit of the newest checkpoint `number` times, each time in a copy.

    Half of the bits are drawn from all bits of the checkpoint; the other half from those of a
    random file, so that the small files, which describe the arrays, are hit, too.

    Args:
        folder: the folder of checkpoints.
        number: number of bits.
        seed: draws them.

    Returns:
        How many checkpoints were "refused", "unharmed" (the arrays are as they were), "wrong".
    """
    draw, found = random.Random(seed), Counter[str]()
    with Checkpoints(folder) as checkpoints:
        step = checkpoints.steps()[0]
        arrays = checkpoints.read(step)
    for i in range(number):
        with tempfile.TemporaryDirectory() as copy:
            shutil.copytree(folder / str(step), Path(copy, str(step)))
            files = sorted(p for p in Path(copy).rglob("*") if p.is_file() and p.stat().st_size)
            weights = [file.stat().st_size for file in files] if i % 2 else None
            flip_bit(draw.choices(files, weights)[0], draw)
            found[outcome(Path(copy), arrays, step)] += 1
    return found


def flip_bit(path: Path, draw: random.Random) -> None:
    """Flips a random bit of a file."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def outcome(folder: Path, arrays: dict[str, jax.Array], step: int) -> str:
    """What becomes of a checkpoint of these arrays."""
    with Checkpoints(folder) as checkpoints:
        if step not in checkpoints.steps():
            return "refused"
        try:
            found = checkpoints.read(step, jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays))
        except DamagedCheckpoint:
            return "refused"
    equal = (np.array_equal(found[name], array) for name, array in arrays.items())
    return "unharmed" if all(equal) else "wrong"


# ---- Mutated files -------------------------------------------------------------------------------


def mutate(path: Path, reader: Callable[[Path], Any], number: int, seed: int = 0) -> Counter[str]:
    """Changes a file in one place, `number` times, and reads it.

    Args:
        path: the file; it is as it was in the end.
        reader: reads it, and raises ValueError or OSError if it is not sound.
        number: number of changes.
        seed: draws them.

    Returns:
        How often the file was "refused", "unharmed" (the values are as they were), "wrong".
    """
    draw, content, sound = random.Random(seed), path.read_bytes(), reader(path)
    found = Counter[str]()
    for _ in range(number):
        path.write_bytes(changed(content, draw))
        try:
            found["unharmed" if same(reader(path), sound) else "wrong"] += 1
        except (ValueError, OSError):
            found["refused"] += 1
    path.write_bytes(content)
    return found


def changed(content: bytes, draw: random.Random) -> bytes:
    """The content with a flipped bit, with up to eight bytes replaced, inserted or removed; cut."""
    start = draw.randrange(len(content))
    end, new = start + draw.randrange(1, 9), draw.randbytes(draw.randrange(1, 9))
    kind = draw.choice(["flip", "replace", "insert", "remove", "cut"])
    if kind == "flip":
        end, new = start + 1, bytes([content[start] ^ 1 << draw.randrange(8)])
    elif kind == "insert":
        end = start
    elif kind == "remove":
        new = b""
    elif kind == "cut":
        end, new = len(content), b""
    return content[:start] + new + content[end:]


def same(ours: Any, theirs: Any) -> bool:
    """Whether two values are equal."""
    if isinstance(theirs, dict) and any(isinstance(v, np.ndarray) for v in theirs.values()):
        equal = (np.array_equal(ours[name], array) for name, array in theirs.items())
        return ours.keys() == theirs.keys() and all(equal)
    return ours == theirs


def all_records(path: Path, number: int) -> list[dict[str, Any]]:
    """The records of a run; raises ValueError if some are not sound."""
    records = read_metrics(path)
    if len(records) != number:
        raise ValueError(f"{len(records)} records of {number}")
    return records


def readers(run: Path) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
    """The files of a run, and what reads them."""
    weights = load(run / "weights.safetensors")
    return {
        "weights": (run / "weights.safetensors", lambda path: load(path, weights)),
        "configuration": (run / "config.json", read_json),
        "metrics": (run / "metrics.jsonl", partial(all_records, number=6)),
        "results": (run / "result.json", lambda path: read_record(path)[1]),
    }


# ---- Kills ---------------------------------------------------------------------------------------


def train_to_the_end(folder: Path) -> None:
    """Trains the network of `OPTIONS` in a process that nothing kills."""
    subprocess.run(command(folder), cwd=ROOT, check=True, capture_output=True)


def kill_until_done(folder: Path, draw: random.Random, longest: float = 12) -> int:
    """Kills a run again and again, each time after a random time; returns the number of kills.

    Args:
        folder: the run's folder, which does not exist yet.
        draw: draws the times.
        longest: seconds that a process has at most, more than it needs for one epoch.

    Raises:
        RuntimeError: for a process that failed by itself, with its output.
    """
    for kills in range(1000):
        process = subprocess.Popen(
            command(folder), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            output, _ = process.communicate(timeout=draw.uniform(0, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            continue
        if process.returncode:
            raise RuntimeError(f"after {kills} kills: {output}")
        return kills
    raise RuntimeError("the run made no progress")


# ---- Signals -------------------------------------------------------------------------------------


def signal_once(folder: Path, number: int, seconds: float) -> str:
    """Signals a new run after some seconds; says how it ended.

    Returns:
        "done" for a run that was done before the signal; "saved" or "unsaved" for one that ended
        with the signal's status and a line that says so; else the status and the whole output.
    """
    process = subprocess.Popen(
        command(folder), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    lines = output.splitlines()
    if process.returncode == 0:
        return "done"
    if process.returncode == 128 + number and "Traceback" not in output:
        if "Resume with" in lines[-2:]:
            return "saved"
        if lines[-1:] == ["Stopped at once, without a checkpoint."]:
            return "unsaved"
    return f"status {process.returncode}: {output}"


def command(folder: Path) -> list[str]:
    """The command that starts a run, or resumes the one that is there."""
    resume = ["--resume"] if folder.exists() else []
    return [sys.executable, "train.py", *OPTIONS, "--run-dir", str(folder), *resume]


def differences(run: Path, whole: Path) -> list[str]:
    """What two runs do not have in common: epochs of metrics.jsonl, and weights."""
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (run, whole))
    found = [f"{len(ours)} and {len(theirs)} epochs"] if len(ours) != len(theirs) else []
    for a, b in zip(ours, theirs, strict=False):
        keys = [k for k in a | b if "second" not in k and a.get(k) != b.get(k)]
        found += [f"epoch {a['epoch']}: {key}" for key in keys]
    weights, others = (load(folder / "weights.safetensors") for folder in (run, whole))
    found += [n for n in weights | others if not np.array_equal(weights[n], others[n])]
    return found


# ---- Command line --------------------------------------------------------------------------------


def main() -> None:
    """Counts as many faults as the command line says; ends with status 1 if one went unnoticed."""
    kind, number = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as temporary:
        whole, draw = Path(temporary, "whole"), random.Random(number)
        train_to_the_end(whole)
        if kind == "bits":
            found = flip_bits(whole / "checkpoints", number)
            print(f"{number} bits: {dict(found)}")
            sys.exit(found["wrong"])
        if kind == "mutations":
            wrong = 0
            for name, (path, reader) in readers(whole).items():
                found = mutate(path, reader, number)
                print(f"{name}: {number} mutations: {dict(found)}", flush=True)
                wrong += found["wrong"]
            sys.exit(wrong)
        if kind == "signals":
            found = Counter[str]()
            for i in range(number):
                which = draw.choice([signal.SIGINT, signal.SIGTERM])
                found[signal_once(Path(temporary, str(i)), which, draw.uniform(0, 12))] += 1
            print(f"{number} signals: {dict(found)}")
            sys.exit(bool(found.keys() - {"done", "saved", "unsaved"}))
        kills = runs = 0
        while kills < number:
            runs += 1
            folder = Path(temporary, str(runs))
            kills += kill_until_done(folder, draw)
            if found := differences(folder, whole):
                sys.exit(f"run {runs}, after {kills} kills, differs: {', '.join(found)}")
            print(
                f"{kills} kills in {runs} runs, all equal to a run that nothing killed", flush=True
            )


if __name__ == "__main__":
    main()
