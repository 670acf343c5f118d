"""Exports the network of a finished run: `python -m training.export RUN --to bits`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import tyro

from bop_optax.folding import fold
from bop_optax.saving import save
from training.machine import expanded
from training.trained import TrainedModel, load_run

Format = Literal["bits", "onnx", "qonnx", "tflite"]
FILES: dict[Format, str] = {
    "bits": "folded.safetensors",
    "onnx": "model.onnx",
    "qonnx": "qonnx.onnx",
    "tflite": "model.tflite",
}
EXTRAS: dict[Format, str] = {
    "bits": "train",
    "onnx": "export",
    "qonnx": "export",
    "tflite": "tflite",
}


def export(trained: TrainedModel, to: Format, path: Path) -> None:
    """Writes the network of a run in a format.

    Args:
        trained: the loaded run.
        to: "bits": `bop_optax.saving.save` of the folded network; "onnx" and "qonnx":
            `bop_optax.onnx.to_onnx` of it; "tflite": `bop_optax.tflite.to_tflite` of it.
        path: the file.

    Raises:
        ImportError: if the packages of the format are not installed.
        NotImplementedError: for an operation that the format has not.
    """
    images = jax.ShapeDtypeStruct((1, *trained.image_shape), jnp.float32)
    folded = fold(trained.model, images)
    if to == "bits":
        save(folded, path)
    elif to == "tflite":
        from bop_optax.tflite import to_tflite

        to_tflite(folded, trained.image_shape, path)
    else:
        from bop_optax.onnx import to_onnx

        to_onnx(folded, trained.image_shape, path, qonnx=to == "qonnx")


def main(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    /,
    to: Format,
    output: Path | None = None,
) -> None:
    """Exports the network of a finished run.

    The network takes scaled images, (x − mean) ÷ std with the run's mean and std of config.json,
    and returns logits.

    Args:
        run: Folder of a finished run of train.py.
        to: Format. `bits`: weights as one bit each, BatchNorm before a sign as a threshold, in a
            safetensors file. `onnx`: the same network for any ONNX runtime. `qonnx`: for FINN and
            hls4ml. `tflite`: for Larq Compute Engine.
        output: File to write. Default: a file in RUN.
    """
    try:
        path = expanded(output or run / FILES[to])
        if path.is_dir():
            raise ValueError(f"{path} is a folder: name a file with --output")
        export(load_run(run), to, path)
    except ImportError as error:
        sys.exit(f"training.export: {error}; pip install -e '.[{EXTRAS[to]}]'")
    except (ValueError, OSError, NotImplementedError) as error:
        sys.exit(f"training.export: {error}")
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m training.export")
