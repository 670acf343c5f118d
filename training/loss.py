"""The loss of a run: cross-entropy with the labels, or with a teacher's probabilities."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from training.config import Experiment
from training.data.augment import scale
from training.trained import load_run


def make_losses(experiment: Experiment) -> Callable[..., jax.Array]:
    """A function (images, logits, labels) → the loss of each image.

    Without a teacher it is the cross-entropy −log softmax(logits)[label], with a teacher
    −Σ p log softmax(logits), the distributional loss of ReActNet (arXiv:2003.03488). The teacher
    computes p from the same augmented uint8 images. Its weights are constants of the compiled step.

    Raises:
        ValueError: if the teacher's folder holds no finished run; in the call, if the teacher has
            other images or classes.
    """
    if experiment.teacher is None:
        return lambda _, *rest: optax.softmax_cross_entropy_with_integer_labels(*rest)
    teacher = load_run(experiment.teacher)
    graph, weights = nnx.split(teacher.evaluated)

    def losses(images: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
        del labels
        if images.shape[1:] != teacher.image_shape:
            raise ValueError(
                f"--teacher must take images of {images.shape[1:]}, got {teacher.image_shape}"
            )
        taught = nnx.merge(graph, weights)(scale(images, teacher.mean, teacher.std))
        if taught.shape != logits.shape:
            raise ValueError(
                f"--teacher must have {logits.shape[-1]} classes, got {taught.shape[-1]}"
            )
        return optax.softmax_cross_entropy(logits, jax.nn.softmax(taught.astype(jnp.float32)))

    return losses
