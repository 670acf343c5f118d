"""Wrong files and data: weights, records, archives, prepared data sets, finished runs, arrays."""

import json
from functools import cache
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

from bop_optax.folding import fold
from bop_optax.larq import from_larq
from bop_optax.layers import BinaryLinear
from bop_optax.models import BinaryNet, QuickNet
from bop_optax.packing import pack
from bop_optax.saving import load, save
from bop_optax.summary import summary
from experiments import records
from tests.bad_input.table import refuse, rows
from training import config
from training.config import Experiment
from training.data import tfds
from training.data.augment import augment
from training.data.memory import Dataset, digits, load_npz
from training.devices import device_mesh
from training.records import describe, read_json, read_record, sealed, write_json
from training.run import WEIGHTS
from training.trained import load_latent_run, load_run

PARAMS = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
IMAGES, LABELS = np.zeros((16, 8, 8, 1), np.uint8), np.arange(16) % 4
ARRAYS = {f"{split}_images": IMAGES for split in ("train", "test")}
ARRAYS |= {f"{split}_labels": LABELS for split in ("train", "test")}
EXPERIMENT = Experiment(model=config.BinaryNet(4, 8, 1))
KEY = jax.random.key(0)
BATCH = jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.uint8)


def is_kernel(name, _):
    return name == "kernel"


def written(content, name="file.json"):
    """A file of some bytes, text or JSON."""
    path = Path(name)
    if not isinstance(content, bytes | str):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def weights(change=None, **arrays):
    """A file of weights, of which the description, or the arrays, are changed."""
    path = Path("weights.safetensors")
    save(PARAMS, path, is_kernel)
    with safetensors.safe_open(path, "numpy") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = json.loads(file.metadata()["bop_optax"])
    description.pop("sha256")
    description = change(description) if change else description
    stored = {name: array for name, array in (stored | arrays).items() if array is not None}
    safetensors.numpy.save_file(stored, path, {"bop_optax": json.dumps(description)})
    return path


def one_bit(**entry):
    """A change of what a description says of the kernel."""
    return lambda d: d | {"one_bit": {"kernel": d["one_bit"]["kernel"] | entry}}


@cache
def sound_run():
    """The description of a finished run, and its weights."""
    save(EXPERIMENT.model.build((8, 8, 1), 10, rngs=nnx.Rngs(0)), "sound")
    return json.dumps(describe(EXPERIMENT, "digits-bop", digits())), Path("sound").read_bytes()


def run(changes=None, images=None, model=None, top=None):
    """The folder of a finished run whose config.json is changed, and sealed again."""
    text, content = sound_run()
    description = json.loads(text)
    description["images"] |= images or {}
    description["config"] |= changes or {}
    description["config"]["model"] |= model or {}
    Path("run").mkdir()
    write_json(Path("run", "config.json"), sealed(description | (top or {})))
    return written(content, Path("run", WEIGHTS)).parent


def record(changes=None, **top):
    """A result.json that is changed, and sealed again."""
    description = json.loads(sound_run()[0])
    description["config"] |= changes or {}
    result = {"format": 2, "result": {"test_accuracy": 0.5}, "metrics": []}
    kept = {k: v for k, v in (description | result | top).items() if v is not None}
    return written(sealed(kept), "result.json")


def larq(**attributes):
    """An HDF5 file with some attributes."""
    with h5py.File("weights.h5", "w") as file:
        file.attrs.update(attributes)
    return "weights.h5"


def zoo(path):
    return from_larq(QuickNet(((1, 8),), 10, image_shape=(32, 32, 3), rngs=nnx.Rngs(0)), path)


def dataset(**changes):
    return Dataset(**ARRAYS | changes)


def archive(**changes):
    np.savez("data.npz", **{k: v for k, v in (ARRAYS | changes).items() if v is not None})
    return load_npz(Path("data.npz"))


def augmented(pad):
    return jax.eval_shape(lambda images: augment(KEY, images, pad, True), BATCH)


def splits(lengths, **options):
    """A description of the training split alone."""
    return {"splits": [{"name": "train", "shardLengths": lengths} | options]}


def prepared(info=None, features=None, version="3.0.2", name="cifar10"):
    """A TFDS directory with a data set of some descriptions and no records."""
    folder = Path(name, version)
    folder.mkdir(parents=True)
    splits = [{"name": split, "shardLengths": ["1"]} for split in ("train", "test")]
    sound = {"name": name, "fileFormat": "array_record", "splits": splits}
    changed = sound | (info or {}) if isinstance(info, dict | type(None)) else info
    written(changed, folder / "dataset_info.json")
    written({} if features is None else features, folder / "features.json")
    for split in ("train", "test"):
        written(b"", folder / f"{name}-{split}.array_record-00000-of-00001")
    return tfds.find(name, Path())


TABLE = [
    # Weights
    (
        "weights that are nowhere",
        lambda: load("nowhere.safetensors"),
        "FileNotFoundError: No such file or directory: nowhere.safetensors",
    ),
    (
        "weights of a folder",
        lambda: load(Path()),
        "IsADirectoryError: [Errno 21] Is a directory: '.'",
    ),
    (
        "weights of nothing",
        lambda: load(written(b"")),
        ("ValueError: file.json is damaged (Error while deserializing header: header too small)"),
    ),
    (
        "weights of text",
        lambda: load(written("weights")),
        ("ValueError: file.json is damaged (Error while deserializing header: header too small)"),
    ),
    (
        "weights with a header of 2⁶³ bytes",
        lambda: load(written(b"\xff" * 7 + b"\x7f{}")),
        ("ValueError: file.json is damaged (Error while deserializing header: header too large)"),
    ),
    (
        "weights of JSON",
        lambda: load(written({"kernel": [1.0]})),
        ("ValueError: file.json is damaged (Error while deserializing header: header too large)"),
    ),
    (
        "weights of a pickle",
        lambda: load(written(b"\x80\x04K\x01.")),
        ("ValueError: file.json is damaged (Error while deserializing header: header too small)"),
    ),
    (
        "weights of another version",
        lambda: load(weights(lambda d: d | {"version": 2})),
        "ValueError: weights.safetensors is damaged (its format has the version 2, not 1)",
    ),
    (
        "weights without a version",
        lambda: load(weights(lambda d: {"one_bit": {}})),
        "ValueError: weights.safetensors is damaged ('version')",
    ),
    (
        "a list as description of weights",
        lambda: load(weights(lambda d: [])),
        (
            "ValueError: weights.safetensors is damaged (list indices must be integers or slices,"
            " not str)"
        ),
    ),
    (
        "null as description of weights",
        lambda: load(weights(lambda d: None)),
        "ValueError: weights.safetensors is damaged ('NoneType' object is not subscriptable)",
    ),
    (
        "bits of a kernel that is missing",
        lambda: load(weights(kernel=None)),
        "ValueError: weights.safetensors is damaged ('kernel')",
    ),
    (
        "bits of another shape",
        lambda: load(weights(one_bit(shape=[30, 20]))),
        ("ValueError: weights.safetensors is damaged (uint8 of shape (1,) cannot hold 600 bits)"),
    ),
    (
        "bits of 10¹⁸ weights",
        lambda: load(weights(one_bit(shape=[10**9, 10**9]))),
        (
            "ValueError: weights.safetensors is damaged (uint8 of shape (1,) cannot hold "
            "1000000000000000000 bits)"
        ),
    ),
    (
        "bits of a negative shape",
        lambda: load(weights(one_bit(shape=[-3, -2]))),
        "ValueError: weights.safetensors is damaged (can only specify one unknown dimension)",
    ),
    (
        "bits of a shape of strings",
        lambda: load(weights(one_bit(shape=["3", "2"]))),
        (
            "ValueError: weights.safetensors is damaged (can't multiply sequence by non-int of "
            "type 'str')"
        ),
    ),
    (
        "bits of a shape of fractions",
        lambda: load(weights(one_bit(shape=[1.5, 4]))),
        (
            "ValueError: weights.safetensors is damaged ('float' object cannot be interpreted as "
            "an integer)"
        ),
    ),
    (
        "bits of no shape",
        lambda: load(weights(one_bit(shape=None))),
        "ValueError: weights.safetensors is damaged ('NoneType' object is not iterable)",
    ),
    (
        "bits of an unknown dtype",
        lambda: load(weights(one_bit(dtype="float31"))),
        "ValueError: weights.safetensors is damaged (data type 'float31' not understood)",
    ),
    (
        "bits of unsigned integers",
        lambda: load(weights(one_bit(dtype="uint8"))),
        "ValueError: weights.safetensors is damaged (uint8 has no sign)",
    ),
    (
        "bits of objects",
        lambda: load(weights(one_bit(dtype="object"))),
        "ValueError: weights.safetensors is damaged (object has no sign)",
    ),
    (
        "α of another shape",
        lambda: load(weights(**{"kernel/scale": np.ones(3, np.float32)})),
        (
            "ValueError: weights.safetensors is damaged (α is float32 of shape (3,), or not above"
            " 0 and finite)"
        ),
    ),
    (
        "α of another dtype",
        lambda: load(weights(**{"kernel/scale": np.ones(2, np.float64)})),
        (
            "ValueError: weights.safetensors is damaged (α is float64 of shape (2,), or not above"
            " 0 and finite)"
        ),
    ),
    (
        "α of 0",
        lambda: load(weights(**{"kernel/scale": np.zeros(2, np.float32)})),
        (
            "ValueError: weights.safetensors is damaged (α is float32 of shape (2,), or not above"
            " 0 and finite)"
        ),
    ),
    (
        "α of NaN",
        lambda: load(weights(**{"kernel/scale": np.full(2, np.nan, np.float32)})),
        (
            "ValueError: weights.safetensors is damaged (α is float32 of shape (2,), or not above"
            " 0 and finite)"
        ),
    ),
    (
        "weights of another network",
        lambda: load(weights(), {"kernel": jnp.ones((3, 2))}),
        (
            "ValueError: weights.safetensors does not fit: bias is float32 (2,), not missing; "
            "load it into what was saved"
        ),
    ),
    (
        "weights of another shape",
        lambda: load(weights(), PARAMS | {"bias": jnp.zeros(3)}),
        (
            "ValueError: weights.safetensors does not fit: bias is float32 (2,), not float32 (3,); "
            "load it into what was saved"
        ),
    ),
    (
        "weights of another dtype",
        lambda: load(weights(), PARAMS | {"bias": jnp.zeros(2, jnp.bfloat16)}),
        (
            "ValueError: weights.safetensors does not fit: bias is float32 (2,), not bfloat16 "
            "(2,); load it into what was saved"
        ),
    ),
    (
        "a bias of NaN",
        lambda: load(weights(bias=np.full(2, np.nan, np.float32)), PARAMS),
        "ValueError: weights.safetensors: bias has numbers that are not finite",
    ),
    (
        "weights for a string",
        lambda: load(weights(), "model"),
        "TypeError: like must be a module or a tree of arrays, got a str ",
    ),
    (
        "weights to a folder that is missing",
        lambda: save(PARAMS, "nowhere/weights.safetensors", is_kernel),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'nowhere/weights.safetensors'"),
    ),
    (
        "weights to a folder",
        lambda: save(PARAMS, Path(), is_kernel),
        "IsADirectoryError: [Errno 21] Is a directory: '.'",
    ),
    (
        "binary weights of two magnitudes",
        lambda: save({"kernel": np.array([[1.0], [2.0]])}, "w", is_kernel),
        (
            "ValueError: kernel is not −α or +α, with one α for each output, its last axis: its "
            "magnitudes are 1 to 2; let is_binary leave this array out, or move the "
            "axis of its outputs to the end"
        ),
    ),
    (
        "binary weights of 0 to save",
        lambda: save({"kernel": np.zeros((2, 2))}, "w", is_kernel),
        (
            "ValueError: kernel is not −α or +α, with one α for each output, its last axis: its "
            "magnitudes are 0 to 0; let is_binary leave this array out, or move the "
            "axis of its outputs to the end"
        ),
    ),
    (
        "binary weights of NaN to save",
        lambda: save({"kernel": np.full((2, 2), np.nan)}, "w", is_kernel),
        (
            "ValueError: kernel is not −α or +α, with one α for each output, its last axis: its "
            "magnitudes are nan to nan; let is_binary leave this array out, or move the "
            "axis of its outputs to the end"
        ),
    ),
    (
        "binary integers without a sign to save",
        lambda: save({"kernel": np.ones((2, 2), np.uint8)}, "w", is_kernel),
        (
            "ValueError: kernel is uint8, which holds no −α and +α; let is_binary leave this array "
            "out, or move the axis of its outputs to the end"
        ),
    ),
    (
        "strings to save",
        lambda: save({"name": np.array("digits")}, "w"),
        "TypeError: name is <U6, not numbers: leave it out",
    ),
    (
        "a string to save",
        lambda: save({"name": "digits"}, "w"),
        "TypeError: name is <U6, not numbers: leave it out",
    ),
    (
        "a rule for saving that is a string",
        lambda: save(PARAMS, "w", "kernel"),
        "TypeError: 'str' object is not callable",
    ),
    # Weights of Larq
    (
        "weights of the Zoo that are nowhere",
        lambda: zoo("nowhere.h5"),
        (
            "FileNotFoundError: [Errno 2] nowhere.h5 cannot be read ([Errno 2] Unable to "
            "synchronously open file (unable to open file: name = 'nowhere.h5', errno = 2, error "
            "message = 'No such file or directory', flags = 0, o_flags = 0))"
        ),
    ),
    (
        "text as weights of the Zoo",
        lambda: zoo(written("text")),
        (
            "OSError: [Errno 5] file.json cannot be read (Unable to synchronously open file (file"
            " signature not found))"
        ),
    ),
    (
        "an HDF5 file without layers",
        lambda: zoo(larq()),
        (
            "ValueError: weights.h5 is no file of Keras 2's save_weights in HDF5, as the Zoo's "
            "are (\"Unable to synchronously open attribute (can't locate attribute: "
            "'layer_names')\")"
        ),
    ),
    (
        "layers of the Zoo that are missing",
        lambda: zoo(larq(layer_names=["conv"])),
        (
            "ValueError: weights.h5 is no file of Keras 2's save_weights in HDF5, as the Zoo's "
            "are (\"Unable to synchronously open object (object 'conv' doesn't exist)\")"
        ),
    ),
    (
        "layers of the Zoo that are a number",
        lambda: zoo(larq(layer_names=3)),
        (
            "ValueError: weights.h5 is no file of Keras 2's save_weights in HDF5, as the Zoo's "
            "are ('numpy.int64' object is not iterable)"
        ),
    ),
    (
        "no layers of the Zoo",
        lambda: zoo(larq(layer_names=np.array([], "S1"))),
        "ValueError: weights.h5 has 0 layers with weights, not 9",
    ),
    (
        "a network that is not of the Zoo",
        lambda: from_larq(BinaryNet(4, 8, rngs=nnx.Rngs(0)), "weights.h5"),
        "TypeError: Larq Zoo has no BinaryNet: read weights of ours by bop_optax.saving.load",
    ),
    # What is made of a network
    (
        "a summary of a function",
        lambda: summary(len),
        "TypeError: summary takes an NNX module, got builtin_function_or_method",
    ),
    (
        "a summary of parameters",
        lambda: summary(PARAMS),
        "TypeError: summary takes an NNX module, got dict",
    ),
    (
        "a summary of an image of negative rows",
        lambda: summary(BinaryLinear(4, 2, rngs=nnx.Rngs(0)), (-1, 4)),
        "ValueError: a shape has no negative size, got (-1, 4): give the batch as 1",
    ),
    (
        "a summary of other features",
        lambda: summary(BinaryLinear(4, 2, rngs=nnx.Rngs(0)), (1, 5)),
        "ValueError: BinaryLinear takes (..., 4), got an input of shape (1, 5)",
    ),
    (
        "bits of a function",
        lambda: pack(len),
        "TypeError: pack takes an NNX module, got builtin_function_or_method",
    ),
    (
        "bits of parameters",
        lambda: pack(PARAMS),
        "TypeError: pack takes an NNX module, got dict",
    ),
    (
        "thresholds of a function",
        lambda: fold(len, jnp.ones((1, 4))),
        "TypeError: fold takes an NNX module, got builtin_function_or_method",
    ),
    # Records
    (
        "a configuration that is nowhere",
        lambda: read_json(Path("nowhere.json")),
        "FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.json'",
    ),
    (
        "a configuration of nothing",
        lambda: read_json(written("")),
        "JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
    ),
    (
        "a configuration of a list",
        lambda: read_json(written([])),
        "ValueError: it holds no JSON object",
    ),
    (
        "a configuration of null",
        lambda: read_json(written(None)),
        "ValueError: it holds no JSON object",
    ),
    (
        "a configuration of bytes that are no text",
        lambda: read_json(written(b"\xff\xfe{}")),
        "JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
    ),
    (
        "a configuration without a checksum",
        lambda: read_json(written({"preset": "digits-bop"})),
        "ValueError: it was changed since it was written",
    ),
    (
        "a configuration with another checksum",
        lambda: read_json(written({"preset": "digits-bop", "crc32": "00000000"})),
        "ValueError: it was changed since it was written",
    ),
    (
        "a checksum of a number",
        lambda: read_json(written({"crc32": 0})),
        "ValueError: it was changed since it was written",
    ),
    (
        "a configuration of 10⁵ lists",
        lambda: read_json(written("[" * 10**5)),
        "ValueError: it is nested too deeply",
    ),
    (
        "a record of nothing",
        lambda: read_record(written("")),
        (
            "ValueError: file.json is not the result.json of a run (JSONDecodeError('Expecting "
            "value: line 1 column 1 (char 0)'))"
        ),
    ),
    (
        "a record of another format",
        lambda: read_record(record(format=1)),
        (
            "ValueError: result.json is not the result.json of a run (ValueError('format 1, this "
            "version reads 2'))"
        ),
    ),
    (
        "a record without a format",
        lambda: read_record(record(format=None)),
        "ValueError: result.json is not the result.json of a run (KeyError('format'))",
    ),
    (
        "a record without an accuracy",
        lambda: read_record(record(result={})),
        "ValueError: result.json is not the result.json of a run (ValueError('no accuracy'))",
    ),
    (
        "a record without a result",
        lambda: read_record(record(result=None)),
        "ValueError: result.json is not the result.json of a run (KeyError('result'))",
    ),
    (
        "a result of a list of numbers",
        lambda: read_record(record(result=[1])),
        (
            "ValueError: result.json is not the result.json of a run (AttributeError(\"'int' "
            "object has no attribute 'endswith'\"))"
        ),
    ),
    (
        "a record without a configuration",
        lambda: read_record(record(config=None)),
        "ValueError: result.json is not the result.json of a run (KeyError('config'))",
    ),
    (
        "a record of an unknown data set",
        lambda: read_record(record({"data": {"type": "Mnist"}})),
        (
            "ValueError: result.json is not the result.json of a run (ValueError('Mnist is none "
            "of Digits, Cifar10, Arrays, ImageNet'))"
        ),
    ),
    (
        "a record of an unknown optimizer",
        lambda: read_record(record({"optimizer": {"type": "Adam"}})),
        (
            "ValueError: result.json is not the result.json of a run (ValueError('Adam is none of"
            " Bop, BopLayerwise, Bop2ndOrder, Cema, Bold, ProbBop, LatentAdam, LatentSGD'))"
        ),
    ),
    (
        "a record of an unknown option",
        lambda: read_record(record({"dropout": 0.5})),
        (
            "ValueError: result.json is not the result.json of a run "
            "(TypeError(\"Experiment.__init__() got an unexpected keyword argument 'dropout'\"))"
        ),
    ),
    (
        "a record of data without a type",
        lambda: read_record(record({"data": {}})),
        "ValueError: result.json is not the result.json of a run (KeyError('type'))",
    ),
    (
        "a record of data in a string",
        lambda: read_record(record({"data": "digits"})),
        (
            "ValueError: result.json is not the result.json of a run (TypeError(\"'digits' is none"
            ' of Digits, Cifar10, Arrays, ImageNet"))'
        ),
    ),
    (
        "a record of 0 epochs",
        lambda: read_record(record({"epochs": 0})),
        (
            "ValueError: result.json is not the result.json of a run (ValueError('--epochs must "
            "be at least 1, got 0'))"
        ),
    ),
    (
        "a record of epochs in a string",
        lambda: read_record(record({"epochs": "5"})),
        (
            "ValueError: result.json is not the result.json of a run (TypeError(\"'>=' not "
            "supported between instances of 'str' and 'int'\"))"
        ),
    ),
    (
        "a record of a seed of 2³²",
        lambda: read_record(record({"seed": 2**32})),
        (
            "ValueError: result.json is not the result.json of a run (ValueError('--seed must be "
            "from 0 to 2³² − 1, got 4294967296'))"
        ),
    ),
    (
        "a record of γ of 2",
        lambda: read_record(record({"optimizer": {"type": "Bop", "gamma": "2"}})),
        (
            "ValueError: result.json is not the result.json of a run (ValueError('--gamma must be"
            " in (0, 1], got 2.0'))"
        ),
    ),
    (
        "a record of a model in a list",
        lambda: read_record(record({"model": []})),
        (
            "ValueError: result.json is not the result.json of a run (TypeError('[] is none of "
            "BinaryNet, BiRealNet, BinaryAlexNet, XNORNet, QuickNet, ReActNet'))"
        ),
    ),
    (
        "a table of an empty list",
        lambda: records.read(written([])),
        "ValueError: file.json is not the result.json of a run (ValueError('an empty list'))",
    ),
    (
        "a table of numbers",
        lambda: records.read(written([1, 2])),
        (
            "ValueError: file.json is not the result.json of a run (TypeError(\"'int' object is "
            'not subscriptable"))'
        ),
    ),
    (
        "a table of an unknown preset",
        lambda: records.read(written([json.loads(record(preset="x").read_text())])),
        ("ValueError: file.json is not the result.json of a run (ValueError('unknown preset x'))"),
    ),
    (
        "a table of bytes that are no text",
        lambda: records.read(written(b"\xff\xfe")),
        (
            "ValueError: file.json is not the result.json of a run (UnicodeDecodeError('utf-8', "
            "b'\\xff\\xfe', 0, 1, 'invalid start byte'))"
        ),
    ),
    # Finished runs
    (
        "a run that is nowhere",
        lambda: load_run("nowhere"),
        (
            "ValueError: nowhere holds no finished run: config.json ([Errno 2] No such file or "
            "directory: 'nowhere/config.json')"
        ),
    ),
    (
        "a run in nobody's home",
        lambda: load_run("~nosuchuser/x"),
        "ValueError: ~nosuchuser/x: there is no such home: write the folder without ~",
    ),
    (
        "a run of a file",
        lambda: load_run(written("text")),
        (
            "ValueError: file.json holds no finished run: config.json ([Errno 20] Not a "
            "directory: 'file.json/config.json')"
        ),
    ),
    (
        "a run without images",
        lambda: load_run(run(top={"images": None})),
        (
            "ValueError: run holds no finished run: config.json (types.SimpleNamespace() argument"
            " after ** must be a mapping, not NoneType)"
        ),
    ),
    (
        "a run of images without a channel",
        lambda: load_run(run(images={"shape": [8, 8]})),
        ("ValueError: run/config.json: image_shape must be (height, width, channels), got (8, 8)"),
    ),
    (
        "a run of images of strings",
        lambda: load_run(run(images={"shape": ["8", "8", "1"]})),
        (
            "ValueError: run/config.json: image_shape must be (height, width, channels), got "
            "('8', '8', '1')"
        ),
    ),
    (
        "a run of images of 10⁶ rows",
        lambda: load_run(run(images={"shape": [10**6, 10**6, 1]})),
        ("ValueError: run/config.json: a kernel has fewer than 2³¹ weights, got (999996000004, 8)"),
    ),
    (
        "a run of no images",
        lambda: load_run(run(images={"shape": None})),
        (
            "ValueError: run holds no finished run: config.json ('NoneType' object is not "
            "subscriptable)"
        ),
    ),
    (
        "a run of 0 classes",
        lambda: load_run(run(images={"num_classes": 0})),
        (
            "ValueError: run holds no finished run: config.json (class_names must have a name for"
            " each of the 0 classes, got 10 names: add the missing ones, or leave class_names "
            "out)"
        ),
    ),
    (
        "a run of classes in a string",
        lambda: load_run(run(images={"num_classes": "10"})),
        (
            "ValueError: run holds no finished run: config.json (class_names must have a name for"
            " each of the 10 classes, got 10 names: add the missing ones, or leave class_names "
            "out)"
        ),
    ),
    (
        "a run of 10⁹ classes",
        lambda: load_run(run(images={"num_classes": 10**9})),
        (
            "ValueError: run holds no finished run: config.json (class_names must have a name for"
            " each of the 1000000000 classes, got 10 names: add the missing ones, or leave "
            "class_names out)"
        ),
    ),
    (
        "a run of other classes",
        lambda: load_run(run(images={"num_classes": 11})),
        (
            "ValueError: run holds no finished run: config.json (class_names must have a name for"
            " each of the 11 classes, got 10 names: add the missing ones, or leave class_names "
            "out)"
        ),
    ),
    (
        "a run of too few names",
        lambda: load_run(run(images={"class_names": ["0"]})),
        (
            "ValueError: run holds no finished run: config.json (class_names must have a name for"
            " each of the 10 classes, got 1 names: add the missing ones, or leave class_names "
            "out)"
        ),
    ),
    (
        "a run of names in a number",
        lambda: load_run(run(images={"class_names": 10})),
        "ValueError: run holds no finished run: config.json ('int' object is not iterable)",
    ),
    (
        "a run of the mean of a string",
        lambda: load_run(run(images={"mean": "127"})),
        (
            "ValueError: run holds no finished run: config.json (mean must be a number, or one "
            "for each of the 1 channels, got '127')"
        ),
    ),
    (
        "a run of a standard deviation of 0",
        lambda: load_run(run(images={"std": 0})),
        (
            "ValueError: run holds no finished run: config.json (std must be above 0 and finite, "
            "got 0.0)"
        ),
    ),
    (
        "a run of means of other channels",
        lambda: load_run(run(images={"mean": [1.0, 2.0]})),
        (
            "ValueError: run holds no finished run: config.json (mean must be a number, or one "
            "for each of the 1 channels, got [1.0, 2.0])"
        ),
    ),
    (
        "a run of an unknown model",
        lambda: load_run(run(model={"type": "Own"})),
        (
            "ValueError: run/config.json: Own is none of BinaryNet, BiRealNet, BinaryAlexNet, "
            "XNORNet, QuickNet, ReActNet: use load_run(folder, model=...) in Python"
        ),
    ),
    (
        "a run of a model without a type",
        lambda: load_run(run({"model": {"width": 4}})),
        "ValueError: run/config.json: 'type': use load_run(folder, model=...) in Python",
    ),
    (
        "a run of another width",
        lambda: load_run(run(model={"width": 8})),
        (
            "ValueError: run/weights.safetensors does not fit: convs/0/kernel is float32 "
            "(3, 3, 1, 4), not float32 (3, 3, 1, 8), convs/1/kernel is ...; load it into what was "
            "saved"
        ),
    ),
    (
        "a run of width 0",
        lambda: load_run(run(model={"width": 0})),
        (
            "ValueError: run/config.json: --width must be at least 1, got 0: use load_run(folder,"
            " model=...) in Python"
        ),
    ),
    (
        "a run of 10⁹ channels",
        lambda: load_run(run(model={"width": 10**9})),
        (
            "ValueError: run/config.json: a kernel has fewer than 2³¹ weights, got (3, 3, 1, "
            "1000000000)"
        ),
    ),
    (
        "a run of channels in a string",
        lambda: load_run(run(model={"width": "4"})),
        (
            "ValueError: run/config.json: '>=' not supported between instances of 'str' and "
            "'int': use load_run(folder, model=...) in Python"
        ),
    ),
    (
        "a run of an unknown option",
        lambda: load_run(run(model={"depth": 3})),
        (
            "ValueError: run/config.json: BinaryNet.__init__() got an unexpected keyword argument"
            " 'depth': use load_run(folder, model=...) in Python"
        ),
    ),
    (
        "a run of an unknown dtype",
        lambda: load_run(run({"dtype": "float31"})),
        "ValueError: run/config.json: dtype must be float32 or bfloat16, got float31",
    ),
    (
        "a run without an optimizer",
        lambda: load_run(run({"optimizer": None})),
        ("ValueError: run holds no finished run: config.json ('NoneType' object is not iterable)"),
    ),
    (
        "a run without latent weights",
        lambda: load_latent_run(run()),
        "ValueError: .../run/checkpoints has no checkpoint, which holds the latent weights",
    ),
    # Data sets
    (
        "images of floats",
        lambda: dataset(train_images=IMAGES / 255),
        (
            "ValueError: train_images must be uint8, from 0 to 255, got float64: scale the images"
            " to that range and convert them with .astype(np.uint8)"
        ),
    ),
    (
        "images without a channel axis",
        lambda: dataset(test_images=IMAGES[..., 0]),
        (
            "ValueError: test_images must have the shape (number, height, width, channels), got "
            "(16, 8, 8): reshape them; grey images have one channel, images[..., None]"
        ),
    ),
    (
        "no training images",
        lambda: dataset(train_images=IMAGES[:0], train_labels=LABELS[:0]),
        "ValueError: train_images is empty, of shape (0, 8, 8, 1): add images",
    ),
    (
        "labels of one image fewer",
        lambda: dataset(train_labels=LABELS[:-1]),
        (
            "ValueError: train_labels must have the shape (16,), a class number for each image, "
            "got (15,): add or drop labels; one-hot rows become numbers by .argmax(-1)"
        ),
    ),
    (
        "labels of floats",
        lambda: dataset(test_labels=LABELS / 2),
        (
            "ValueError: test_labels must be integers, got float64: convert them with "
            ".astype(np.int32)"
        ),
    ),
    (
        "labels of strings",
        lambda: dataset(train_labels=LABELS.astype(str)),
        (
            "ValueError: train_labels must be integers, got <U21: convert them with "
            ".astype(np.int32)"
        ),
    ),
    (
        "labels of Booleans",
        lambda: dataset(train_labels=LABELS > 1),
        (
            "ValueError: train_labels must be integers, got bool: convert them with "
            ".astype(np.int32)"
        ),
    ),
    (
        "one-hot labels",
        lambda: dataset(train_labels=np.eye(4, dtype=int)[LABELS]),
        (
            "ValueError: train_labels must have the shape (16,), a class number for each image, "
            "got (16, 4): add or drop labels; one-hot rows become numbers by .argmax(-1)"
        ),
    ),
    (
        "a negative label",
        lambda: dataset(train_labels=LABELS - 1),
        (
            "ValueError: train_labels must be from 0 to the number of classes − 1, got -1 to 2: "
            "number the classes from 0"
        ),
    ),
    (
        "a label of 2⁴⁰",
        lambda: dataset(test_labels=LABELS + 2**40),
        (
            "ValueError: test_labels must be from 0 to the number of classes − 1, got "
            "1099511627776 to 1099511627779: number the classes from 0"
        ),
    ),
    (
        "a label beyond the classes",
        lambda: dataset(num_classes=3),
        (
            "ValueError: labels must be from 0 to 2 (num_classes is 3), got 3: give the true "
            "number of classes"
        ),
    ),
    (
        "0 classes",
        lambda: dataset(num_classes=0),
        (
            "ValueError: labels must be from 0 to -1 (num_classes is 0), got 3: give the true "
            "number of classes"
        ),
    ),
    (
        "10⁹ names of classes are missing",
        lambda: dataset(class_names=("a",), num_classes=10**9),
        (
            "ValueError: class_names must have a name for each of the 1000000000 classes, got 1 "
            "names: add the missing ones, or leave class_names out"
        ),
    ),
    (
        "classes of a fraction",
        lambda: dataset(num_classes=4.5),
        "ValueError: num_classes must be an integer, got 4.5",
    ),
    (
        "classes of a string",
        lambda: dataset(num_classes="4"),
        "ValueError: num_classes must be an integer, got '4'",
    ),
    (
        "names of a string",
        lambda: dataset(class_names="abcd"),
        "ValueError: class_names must be several names, got 'abcd'",
    ),
    (
        "a mean of a string",
        lambda: dataset(mean="x"),
        "ValueError: mean must be a number, or one for each of the 1 channels, got 'x'",
    ),
    (
        "a mean of NaN",
        lambda: dataset(mean=float("nan")),
        "ValueError: mean must be finite, got nan",
    ),
    (
        "a standard deviation of 0 of the images",
        lambda: dataset(std=0),
        "ValueError: std must be above 0 and finite, got 0.0",
    ),
    (
        "means of other channels",
        lambda: dataset(mean=(1, 2)),
        "ValueError: mean must be a number, or one for each of the 1 channels, got (1, 2)",
    ),
    (
        "images of strings",
        lambda: dataset(train_images=IMAGES.astype(str)),
        (
            "ValueError: train_images must be uint8, from 0 to 255, got <U3: scale the images to "
            "that range and convert them with .astype(np.uint8)"
        ),
    ),
    (
        "images of a list",
        lambda: dataset(train_images=[[1], [2, 3]]),
        (
            "ValueError: setting an array element with a sequence. The requested array has an "
            "inhomogeneous shape after 1 dimensions. The detected shape was (2,) + inhomogeneous "
            "part."
        ),
    ),
    (
        "no images",
        lambda: dataset(train_images=None),
        (
            "ValueError: train_images must be uint8, from 0 to 255, got object: scale the images "
            "to that range and convert them with .astype(np.uint8)"
        ),
    ),
    (
        "an unknown split",
        lambda: dataset(evaluated_on="training"),
        'ValueError: evaluated_on must be "test" or "validation", got \'training\'',
    ),
    (
        "0 images held out",
        lambda: dataset().hold_out(0),
        "ValueError: --held-out must be from 1 to 15, fewer than the training images, got 0",
    ),
    (
        "all images held out",
        lambda: dataset().hold_out(16),
        "ValueError: --held-out must be from 1 to 15, fewer than the training images, got 16",
    ),
    (
        "images held out of a fraction",
        lambda: dataset().hold_out(2.5),
        "ValueError: --held-out must be from 1 to 15, fewer than the training images, got 2.5",
    ),
    (
        "images held out of a string",
        lambda: dataset().hold_out("2"),
        "ValueError: --held-out must be from 1 to 15, fewer than the training images, got '2'",
    ),
    (
        "a batch of 0 images of a data set",
        lambda: dataset().batches(0, device_mesh()),
        "ValueError: --batch-size must be at least 1, got 0",
    ),
    (
        "a batch larger than the data",
        lambda: dataset().batches(10**12, device_mesh()),
        "ValueError: --batch-size must be at most the 16 training images, got 1000000000000",
    ),
    (
        "a batch that 8 devices cannot share",
        lambda: dataset().batches(12, device_mesh()),
        "ValueError: --batch-size must be a multiple of the 8 devices, got 12",
    ),
    (
        "a batch of a fraction",
        lambda: dataset().batches(8.5, device_mesh()),
        "ValueError: --batch-size must be an integer, got 8.5",
    ),
    (
        "an archive without labels",
        lambda: archive(train_labels=None),
        (
            "ValueError: data.npz is not a data set ('train_labels is not a file in the "
            "archive'): write it with np.savez..."
        ),
    ),
    (
        "an archive of objects",
        lambda: archive(train_images=np.array([{}, []], object)),
        (
            "ValueError: data.npz is not a data set (Object arrays cannot be loaded when "
            "allow_pickle=False): write it with np.savez..."
        ),
    ),
    (
        "an archive of floats",
        lambda: archive(train_images=IMAGES / 255.0),
        (
            "ValueError: data.npz is not a data set (train_images must be uint8, from 0 to 255, "
            "got float64: scale the images to that range and convert them with "
            ".astype(np.uint8)): write it with np.savez..."
        ),
    ),
    (
        "an archive of names of numbers",
        lambda: archive(class_names=np.array([[1, 2], [3, 4]])),
        (
            "ValueError: data.npz is not a data set (class_names must have one dimension, got 2):"
            " write it with np.savez..."
        ),
    ),
    (
        "an archive of too few names",
        lambda: archive(class_names=np.array(["a"])),
        (
            "ValueError: data.npz is not a data set (class_names must have a name for each of the"
            " 4 classes, got 1 names: add the missing ones, or leave class_names out): write it "
            "with np.savez..."
        ),
    ),
    (
        "an archive of text",
        lambda: load_npz(written("text", "data.npz")),
        (
            "ValueError: data.npz is not a data set (File is not a zip file): write it with "
            "np.savez..."
        ),
    ),
    (
        "an archive that is one array",
        lambda: load_npz(Path(np.save("a.npy", IMAGES) or "a.npy")),
        ("ValueError: a.npy is not a data set (File is not a zip file): write it with np.savez..."),
    ),
    (
        "an archive that is a folder",
        lambda: load_npz(Path()),
        (
            "ValueError: . is not a data set ([Errno 21] Is a directory: '.'): write it with "
            "np.savez..."
        ),
    ),
    (
        "a pad of the whole image",
        lambda: augmented(8),
        "ValueError: --pad must be less than the 8×8 pixels of an image, got 8",
    ),
    (
        "a pad of 10⁹ pixels",
        lambda: augmented(10**9),
        "ValueError: --pad must be less than the 8×8 pixels of an image, got 1000000000",
    ),
    (
        "a negative pad of images",
        lambda: augmented(-1),
        "ValueError: --pad must be at least 0, got -1",
    ),
    # Prepared data sets
    (
        "a data set that is nowhere",
        lambda: tfds.find("cifar10", Path("nowhere")),
        (
            "FileNotFoundError: cifar10 is not prepared in nowhere: no "
            "cifar10/VERSION/dataset_info.json there...."
        ),
    ),
    (
        "a description of nothing",
        lambda: prepared(info=""),
        (
            "FileNotFoundError: cifar10/3.0.2/dataset_info.json is damaged (Expecting value: line"
            " 1 column 1 (char 0))...."
        ),
    ),
    (
        "a description of a list",
        lambda: prepared(info=[]),
        (
            "FileNotFoundError: cifar10/3.0.2/dataset_info.json is damaged (list indices must be "
            "integers or slices, not str)...."
        ),
    ),
    (
        "a description without splits",
        lambda: prepared(info={"splits": None}),
        (
            "FileNotFoundError: cifar10/3.0.2/dataset_info.json is damaged ('NoneType' object is "
            "not iterable)...."
        ),
    ),
    (
        "a description of another data set",
        lambda: prepared(info={"name": "mnist"}),
        (
            "FileNotFoundError: cifar10/3.0.2/dataset_info.json is damaged (it names other files:"
            " mnist, {DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y})...."
        ),
    ),
    (
        "a description of a number of splits",
        lambda: prepared(info={"splits": 2}),
        (
            "FileNotFoundError: cifar10/3.0.2/dataset_info.json is damaged ('int' object is not "
            "iterable)...."
        ),
    ),
    (
        "a description of lengths of words",
        lambda: prepared(splits(["many"])),
        (
            "FileNotFoundError: cifar10/3.0.2/dataset_info.json is damaged (invalid literal for "
            "int() with base 10: 'many')...."
        ),
    ),
    (
        "a description of a negative length",
        lambda: prepared(splits(["-1"])),
        (
            "FileNotFoundError: cifar10/3.0.2/dataset_info.json is damaged (a shard has fewer "
            "than no records)...."
        ),
    ),
    (
        "a description of 10⁵ shards",
        lambda: prepared(splits(["1"] * 10**5)),
        (
            "FileNotFoundError: cifar10/3.0.2 is only half prepared: "
            "cifar10-test.array_record-00000-of-00000, "
            "cifar10-train.array_record-00000-of-100000, "
            "cifar10-train.array_record-00001-of-100000 and 99998 more missing...."
        ),
    ),
    (
        "a description of other files",
        lambda: prepared(splits(["1"], filepathTemplate="../../{SPLIT}")),
        (
            "FileNotFoundError: cifar10/3.0.2/dataset_info.json is damaged (it names other files:"
            " cifar10, ../../{SPLIT})...."
        ),
    ),
    (
        "a description of TFRecords",
        lambda: prepared(info={"fileFormat": "tfrecord"}),
        (
            "FileNotFoundError: cifar10/3.0.2 holds tfrecord files, which do not read without "
            "TensorFlow...."
        ),
    ),
    (
        "a description of an unknown format",
        lambda: prepared(info={"fileFormat": 3}),
        (
            "FileNotFoundError: cifar10/3.0.2 holds 3 files, which do not read without "
            "TensorFlow...."
        ),
    ),
    (
        "a description without a test split",
        lambda: prepared(splits(["1"])),
        (
            "FileNotFoundError: cifar10/3.0.2 is only half prepared: "
            "cifar10-test.array_record-00000-of-00000 missing...."
        ),
    ),
    (
        "features of nothing",
        lambda: prepared(features=""),
        (
            "FileNotFoundError: cifar10/3.0.2 is damaged (features.json: Expecting value: line 1 "
            "column 1 (char 0)): delete it...."
        ),
    ),
    (
        "features of a foreign class",
        lambda: prepared(features={"pythonClassName": "os.system"}),
        (
            "FileNotFoundError: cifar10/3.0.2 is damaged (features.json: it names os.system): "
            "delete it...."
        ),
    ),
    (
        "features of a foreign class inside",
        lambda: prepared(features={"a": [{"type": "subprocess.Popen"}]}),
        (
            "FileNotFoundError: cifar10/3.0.2 is damaged (features.json: it names "
            "subprocess.Popen): delete it...."
        ),
    ),
    (
        "features of a class in a list",
        lambda: prepared(features={"pythonClassName": ["os.system"]}),
        (
            "FileNotFoundError: cifar10/3.0.2 is damaged (features.json: it names ['os.system']):"
            " delete it...."
        ),
    ),
    (
        "features of 10⁵ lists",
        lambda: prepared(features="[" * 10**5),
        (
            "FileNotFoundError: cifar10/3.0.2 is damaged (features.json: maximum recursion depth "
            "exceeded while decoding a JSON array from a unicode string): delete it...."
        ),
    ),
]


@rows(TABLE)
def test_a_wrong_file(call, message, in_a_folder):
    refuse(call, message)


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
