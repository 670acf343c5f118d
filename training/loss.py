"""The loss of a run: cross-entropy with the labels, or with a teacher's probabilities."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from training.config import Experiment
from training.data.augment import scale
from training.network import Network
from training.trained import load_run


def make_losses(experiment: Experiment, network: Network) -> Callable[..., jax.Array]:
    """A function (images, logits, labels) → the loss of each image.

    Without a teacher it is the cross-entropy −log softmax(logits)[label], with a teacher
    −Σ p log softmax(logits), the distributional loss of ReActNet (arXiv:2003.03488). The teacher
    computes p from the same augmented uint8 images. Its weights are constants of the compiled step.

    Raises:
        ValueError: if the teacher's folder holds no finished run, and if the teacher has other
            images or classes than the network.
    """
    if experiment.teacher is None:
        return lambda _, *rest: optax.softmax_cross_entropy_with_integer_labels(*rest)
    teacher = load_run(experiment.teacher)
    graph, weights = nnx.split(teacher.evaluated)
    if teacher.image_shape != network.image_shape:
        raise ValueError(
            f"--teacher must take images of {network.image_shape}, got {teacher.image_shape}"
        )

    def taught(images: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, weights)(scale(images, teacher.mean, teacher.std))
        return jax.nn.softmax(logits.astype(jnp.float32))

    one = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.uint8)
    _, classes = jax.eval_shape(taught, one).shape
    if classes != network.num_classes:
        raise ValueError(f"--teacher must have {network.num_classes} classes, got {classes}")

    def losses(images: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
        del labels
        return optax.softmax_cross_entropy(logits, taught(images))

    return losses
