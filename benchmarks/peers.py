"""The environments of the peers: virtual environments that this module makes with pip."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from training.machine import cache_folder

DEFAULT_FOLDER = cache_folder() / "peers"
VERSIONS = (
    "import json, sys; from importlib.metadata import version; "
    "print(json.dumps({p: version(p).partition('+')[0] for p in sys.argv[1:]}))"
)


class Missing(Exception):
    """A peer cannot be installed here."""


class Peer(NamedTuple):
    """A library to compare with.

    Attributes:
        packages: exact versions of the packages that are compared, by name.
        others: further requirements of pip.
        environment: variables of its worker.
        worker: its module in benchmarks/.
    """

    packages: dict[str, str]
    others: tuple[str, ...]
    environment: dict[str, str]
    worker: str


PEERS = {
    "larq": Peer(
        {
            "larq": "0.14.0",
            "larq-zoo": "2.4.0",
            "tensorflow-cpu": "2.17.1",
            "tf-keras": "2.17.0",
        },
        ("numpy<2",),
        {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        "larq_worker",
    ),
    "torch": Peer({"torch": "2.13.0"}, ("numpy",), {}, "torch_worker"),
    "engines": Peer(
        {"onnxruntime": "1.32.0", "openvino": "2026.4.1"}, ("numpy",), {}, "engine_worker"
    ),
    # Its interpreter takes arrays of NumPy 1.
    "lce": Peer({"larq-compute-engine": "0.16.0"}, ("numpy<2",), {}, "engine_worker"),
}


def prepare(name: str, folder: Path) -> str:
    """Installs a peer into `folder / name` unless it is there; returns its Python.

    Raises:
        Missing: with the last line of the command that failed.
    """
    peer, place = PEERS[name], folder / name
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        print(f"Installing {name} into {place} ...", file=sys.stderr, flush=True)
        _run([sys.executable, "-m", "venv", str(place)])
    if _versions(python, peer) != peer.packages:
        pinned = [f"{package}=={version}" for package, version in peer.packages.items()]
        _run([str(python), "-m", "pip", "install", "-q", *pinned, *peer.others])
    return str(python)


def _versions(python: Path, peer: Peer) -> dict[str, str] | None:
    try:
        return json.loads(_run([str(python), "-c", VERSIONS, *peer.packages]))
    except (Missing, ValueError):
        return None


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except OSError as error:
        raise Missing(str(error)) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-1:]
        raise Missing(last[0] if last else f"{command[0]} failed") from error
