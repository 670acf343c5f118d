"""A model's weights in a file: binary weights as int8."""

import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bop_optax.layers import BinaryParam
from training.records import replacing


def save_weights(model_state: nnx.State, path: Path) -> None:
    """Writes parameters and batch statistics as a NumPy archive: `"convs/0/kernel"` and so on.

    Other variables, such as the random state of `nnx.Dropout`, are left out.

    Binary weights are int8, everything else keeps its dtype.
    """
    arrays = {
        name: np.asarray(v[...], np.int8 if isinstance(v, BinaryParam) else None)
        for name, v in _variables(model_state).items()
    }
    with replacing(path, "wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def load_weights(model: nnx.Module, path: Path) -> None:
    """Puts what `save_weights` wrote into a model of the same shape.

    Raises:
        ValueError: for names or shapes that differ from the model's, and for a damaged file.
    """
    state = nnx.state(model)
    variables = _variables(state)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            weights = {name: stored[name] for name in stored.files}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    ours, theirs = ({n: a.shape for n, a in tree.items()} for tree in (variables, weights))
    if ours != theirs:
        differing = sorted(n for n, _ in ours.items() ^ theirs.items())
        raise ValueError(f"{path} does not fit the model: {', '.join(dict.fromkeys(differing))}")
    for name, variable in variables.items():
        variable.set_value(jnp.asarray(weights[name], variable.dtype))
    nnx.update(model, state)


def _variables(state: nnx.State) -> dict[str, nnx.Variable]:
    flat = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda v: isinstance(v, nnx.Variable))
    kept = [(p, v) for p, v in flat if isinstance(v, nnx.Param | nnx.BatchStat)]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): v for p, v in kept}
