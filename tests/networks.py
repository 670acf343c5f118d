"""Small networks as after training, for the tests of what is made of them."""

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
            norm.bias[...] = jnp.asarray(rng.normal(0, 0.5, size), jnp.float32)
            if norm.scale is not None:
                norm.scale[...] = jnp.asarray(rng.normal(0, 1, size), jnp.float32)
    model.eval()
    return model


def shape_of(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)
