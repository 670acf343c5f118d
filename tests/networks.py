"""Small networks as after training, and what networks contain."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def set_norms(model, seed=0):
    """Random statistics, biases and scales, of both signs, as after training."""
    rng = np.random.default_rng(seed)
    for _, norm in nnx.iter_modules(model):
        if isinstance(norm, nnx.BatchNorm):
            size = norm.num_features
            norm.mean[...] = jnp.asarray(rng.normal(0, 3, size), jnp.float32)
            norm.var[...] = jnp.asarray(rng.uniform(0.1, 30, size), jnp.float32)
            if norm.bias is not None:
                norm.bias[...] = jnp.asarray(rng.normal(0, 0.5, size), jnp.float32)
            if norm.scale is not None:
                norm.scale[...] = jnp.asarray(rng.normal(0, 1, size), jnp.float32)
    model.eval()
    return model


def shape_of(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def count(model: nnx.Module, kind: type) -> int:
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, kind)))


def modules(model: nnx.Module, *kinds: type) -> list[Any]:
    return [module for _, module in nnx.iter_modules(model) if isinstance(module, kinds)]


def output(model: nnx.Module, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    graph, state = nnx.split(model)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda state, images: nnx.merge(graph, state)(images), state, images)
