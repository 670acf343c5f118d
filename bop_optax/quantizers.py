"""Quantizers: a sign in the forward pass, a pseudo-gradient in the backward pass.

The gradient of a sign is 0 almost everywhere. Training a Binarized Neural Network replaces it by a
pseudo-gradient, in the backward pass only (section 2, equation 3 of arXiv:1906.02107). All
quantizers here return exactly ±1 in the dtype of their input: +1 at 0 and −0, and −1 for NaN.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def is_one_bit(quantizer: Any) -> bool:
    """Tells whether a quantizer returns ±1: True if its attribute `precision` is 1, as in Larq.

    Layers multiply the outputs of such quantizers as bits. A quantizer of your own needs the
    attribute to take part.

    Args:
        quantizer: a function, a `functools.partial` of one, or None.

    Example:
        >>> is_one_bit(ste_sign), is_one_bit(partial(ste_sign, clip=2.0)), is_one_bit(jnp.tanh)
        (True, True, False)
    """
    while isinstance(quantizer, partial):
        quantizer = quantizer.func
    return getattr(quantizer, "precision", None) == 1


def binarize(x: ArrayLike) -> jax.Array:
    """Rounds each number to −1 or +1, without a gradient: +1 if x ≥ 0 (−0 too), else −1 (NaN too).

    Args:
        x: array of any shape and any signed dtype.

    Returns:
        An array of ±1 with the shape and dtype of `x`.

    Example:
        >>> binarize(jnp.array([-0.3, 0.0, 2.0]))
        Array([-1.,  1.,  1.], dtype=float32)
    """
    x = jnp.asarray(x)
    return jnp.where(x >= 0, jnp.ones_like(x), -jnp.ones_like(x))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def ste_sign(x: ArrayLike, clip: float | None = 1.0) -> jax.Array:
    r"""Sign with the straight-through estimator (STE), clipped.

    The gradient passes if :math:`|x| \leq` `clip`, and is 0 otherwise.

    .. math::
        q(x) = \begin{cases} -1 & x < 0 \\ 1 & x \geq 0 \end{cases}
        \qquad
        \frac{\partial q}{\partial x} := \begin{cases} 1 & |x| \leq \text{clip} \\
        0 & \text{otherwise} \end{cases}

    Args:
        x: array of any shape, any floating dtype.
        clip: largest `|x|` that the gradient passes, > 0. None: the gradient always passes (the
            unclipped estimator). Lower: fewer units learn. Higher: the pseudo-gradient differs more
            from the sign.

    Returns:
        An array of ±1 with the shape and dtype of `x`.

    Example:
        >>> jax.grad(lambda x: ste_sign(x).sum())(jnp.array([-2.0, 0.5, 1.0]))
        Array([0., 1., 1.], dtype=float32)

    References:
        Courbariaux, Hubara, Soudry, El-Yaniv, Bengio. Binarized Neural Networks. 2016,
        arXiv:1602.02830, section 1.3.
    """
    del clip
    return binarize(x)


@ste_sign.defjvp
def _(clip, primals, tangents):
    (x,), (dx,) = primals, tangents
    passes = jnp.abs(x) <= (jnp.inf if clip is None else clip)
    return ste_sign(x, clip), jnp.where(passes, dx, jnp.zeros_like(dx))


@jax.custom_jvp
def approx_sign(x: ArrayLike) -> jax.Array:
    r"""Sign with the derivative of a piecewise quadratic, which is closer to the sign than the STE.

    .. math::
        q(x) = \begin{cases} -1 & x < 0 \\ 1 & x \geq 0 \end{cases}
        \qquad
        \frac{\partial q}{\partial x} := \begin{cases} 2 (1 - |x|) & |x| \leq 1 \\
        0 & \text{otherwise} \end{cases}

    Args:
        x: array of any shape, any floating dtype.

    Returns:
        An array of ±1 with the shape and dtype of `x`.

    Example:
        >>> jax.grad(lambda x: approx_sign(x).sum())(jnp.array([-2.0, 0.0, 0.75]))
        Array([0. , 2. , 0.5], dtype=float32)

    References:
        Liu, Wu, Luo, Yang, Liu, Cheng. Bi-Real Net: Enhancing the Performance of 1-bit CNNs. ECCV
        2018, arXiv:1808.00278, section 3.3.
    """
    return binarize(x)


@approx_sign.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    distance = jnp.abs(x)
    slope = jnp.maximum(2 * (1 - distance), 0)
    return approx_sign(x), jnp.where(distance <= 1, slope * dx, jnp.zeros_like(dx))


binarize.precision = ste_sign.precision = approx_sign.precision = 1  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
