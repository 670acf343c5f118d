"""Runs of a transform on given gradients, as the tests of the transforms need them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

rng = np.random.default_rng(0)
WEIGHTS = rng.choice(np.array([-1, 1], np.float32), 400)
# The mean of each gradient drifts through zero, so that weights are pushed over and back.
DRIFT = np.sin(2 * np.pi * (np.arange(200)[:, None] / 100 + rng.random(400)))
GRADS = (DRIFT + rng.normal(size=(200, 400))).astype(np.float32)
# Fractions of powers of two: exact however a compiler computes them.
DECAY = optax.linear_schedule(0.5, 0.0625, 32)


def step(optimizer, w, state, g):
    updates, state = optimizer.update(g, state, w)
    return optax.apply_updates(w, updates), state


@partial(jax.jit, static_argnums=0)
def run(optimizer, w, grads):
    """The weights after each step and the last state, in one scan, compiled once an optimizer."""

    def body(carry, g):
        carry = step(optimizer, *carry, g)
        return carry, carry[0]

    w = jax.tree.map(jnp.asarray, w)
    (_, state), weights = jax.lax.scan(body, (w, optimizer.init(w)), grads)
    return weights, state


def run_stepwise(optimizer, w, grads, wrap=lambda f: f):
    """The weights after each step and the last state; `wrap` transforms the step."""
    w, f = jax.tree.map(jnp.asarray, w), wrap(partial(step, optimizer))
    state, history = optimizer.init(w), []
    for g in grads:
        w, state = f(w, state, jax.tree.map(jnp.asarray, g))
        history.append(jax.tree.map(np.asarray, w))
    return jax.tree.map(lambda *steps: np.stack(steps), *history), state


def values(hyperparameter, steps):
    """A hyperparameter at each step, in float32."""
    if callable(hyperparameter):
        return np.float32([hyperparameter(jnp.int32(t)) for t in range(steps)])
    return np.full(steps, hyperparameter, np.float32)


def flip_count(w, history):
    return np.sum(np.diff(np.concatenate([w[None], history]), axis=0) != 0)
