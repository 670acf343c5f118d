"""Two processes that share the batches, as two hosts do, have those of one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import hashlib
import json
import sys
from contextlib import closing
from itertools import islice

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType

processes, process, address = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8 // processes)
if processes > 1:
    jax.distributed.initialize(address, processes, process)

from tests.training.data.test_imagenet import make_records
from training.data.imagenet import ImageNet
from training.data.memory import digits

mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))


def digest(batch):
    arrays = process_allgather(batch, tiled=True) if processes > 1 else batch
    return [[x.shape, hashlib.sha256(np.asarray(x).tobytes()).hexdigest()] for x in arrays]


digests = []
streamed = ImageNet(make_records(), make_records(), image_shape=(16, 16, 3)).batches(8, mesh)
sources = [digits().batches(104, mesh), streamed]
jax.default_backend = lambda: "gpu"
sources += [digits().batches(104, mesh)]
for source in sources:
    with closing(source.training(seed=0, step=1)) as batches:
        digests += map(digest, islice(batches, 2))
    digests += map(digest, source.evaluation())
if process == 0:
    print(json.dumps(digests))
"""


@pytest.mark.slow
def test_two_processes_have_the_batches_of_one(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"

    def start(processes: int, process: int) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, tmp_path / "program.py", str(processes), str(process), address],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
            stdout=subprocess.PIPE,
            text=True,
        )

    programs = [start(2, 0), start(2, 1), start(1, 0)]
    outputs = [program.communicate(timeout=300)[0] for program in programs]
    assert [program.returncode for program in programs] == [0, 0, 0]
    together, _, alone = outputs
    digests = json.loads(alone.splitlines()[-1])
    assert json.loads(together.splitlines()[-1]) == digests
    assert len(digests) == (2 + 4) + (2 + 3) + (2 + 4)
