"""What trains an experiment's parameters: Bop or a variant, or the baseline; Adam beside them."""

from typing import Any

import jax
import optax

from bop_optax import bop, bop_2nd_order, bop_layerwise, cema
from bop_optax.latent import clip_latent, scale_by_glorot
from experiments import Experiment


def make_optimizer(
    config: Experiment, labels: Any, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """Adam for the real parameters; for the kernels Bop or a variant, or the latent weights of
    Algorithm 1."""

    def linear(value: float, end: float | None) -> float | optax.Schedule:
        steps = min(config.epochs * steps_per_epoch, 2**31 - 1)  # counted in int32
        return value if end is None else optax.linear_schedule(value, end, steps)

    def decayed(value: float, end: float | None) -> float | optax.Schedule:
        if end is not None:
            return linear(value, end)
        steps = min(config.decay_epochs * steps_per_epoch, 2**31 - 1)
        return optax.exponential_decay(value, steps, config.decay, staircase=True)

    threshold = linear(config.threshold, config.threshold_end)
    gamma = decayed(config.gamma, config.gamma_end)
    rate = decayed(config.latent_learning_rate, config.latent_learning_rate_end)
    match config.optimizer:
        case "bop":
            binary = bop(gamma, threshold)
        case "bop_layerwise":
            binary = bop_layerwise(gamma, threshold)
        case "bop_2nd_order":
            sigma = linear(config.sigma, config.sigma_end)
            binary = bop_2nd_order(gamma, threshold, sigma, unbiased=config.unbiased)
        case "cema":
            binary = cema(gamma, linear(config.alpha, 0.0))
        case "adam":
            binary = latent(optax.adam(rate, config.b1), config)
        case "sgd":
            binary = latent(optax.sgd(rate, config.momentum), config)
    real = optax.adam(linear(config.learning_rate, config.learning_rate_end))
    if config.l2:
        # The penalty's gradient joins the loss's, as where the loss itself has the penalty.
        penalty = optax.add_decayed_weights(2 * config.l2, mask=are_kernels)
        real = optax.chain(penalty, real)
    return optax.partition({"binary": binary, "real": real}, labels)


def latent(
    optimizer: optax.GradientTransformation, config: Experiment
) -> optax.GradientTransformation:
    """An optimizer of latent weights, with what the practice puts behind it."""
    scaling = scale_by_glorot() if config.glorot_scaling else optax.identity()
    return optax.chain(optimizer, scaling, clip_latent(config.latent_limit))


def are_kernels(params: Any) -> Any:
    """Not BatchNorm's scales and biases."""
    return jax.tree.map(lambda w: w.ndim > 1, params)
