"""Runs exported files in their engines: python -m benchmarks.engine_worker (see protocol.py).

It runs in the environments of the engines and imports nothing of ours but the protocol.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocol import Job, serve

Call = Callable[[np.ndarray], np.ndarray]


def onnx(file: str, threads: int) -> Call:
    """Onnxruntime, which multiplies floats."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def openvino(file: str, threads: int) -> Call:
    """OpenVINO's CPU plugin: one-bit products of `BinaryConvolution`."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(file, "CPU", settings)
    return lambda images: compiled(images)[0]


def lce(file: str, threads: int) -> Call:
    """Larq Compute Engine's interpreter; `import larq_compute_engine` would import TensorFlow."""
    found: Any = importlib.util.find_spec("larq_compute_engine")
    name = "interpreter_wrapper_lite"
    path = Path(found.origin).parent / f"tflite/python/{name}.so"
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # The flags: reference kernels, indirect products, XNNPACK.
    interpreter = module.LiteInterpreter(Path(file).read_bytes(), threads, False, False, False)
    return lambda images: np.concatenate([interpreter.predict([i[None]])[0] for i in images])


ENGINES = {"onnx": onnx, "openvino": openvino, "lce": lce}


def classify(engine: str, file: str, images: str, logits: str, batch: int, threads: int = 2) -> Job:
    """Classifies batches of images by an engine.

    Args:
        engine: of ENGINES.
        file: what to run.
        images, logits, batch: see `classification`.
        threads: of the engine.
    """
    return classification(ENGINES[engine](file, threads), images, logits, batch)


def classification(call: Call, images: str, logits: str, batch: int) -> Job:
    """Classifies batches of images; keeps the logits of all images.

    Args:
        call: maps a batch of images to logits.
        images: .npy file of float32, `(number, *image_shape)`.
        logits: .npy file to write.
        batch: images of a call; must divide their number.
    """
    loaded = np.load(images)
    batches = np.split(loaded, len(loaded) // batch)
    np.save(logits, np.concatenate([call(one) for one in batches]))

    def run(number: int) -> dict[str, Any]:
        for i in range(number):
            call(batches[i % len(batches)])
        return {}

    return Job(run)


if __name__ == "__main__":
    serve({"classify": classify})
