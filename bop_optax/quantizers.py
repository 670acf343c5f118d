"""Quantizers: few values in the forward pass, a pseudo-gradient in the backward pass.

The gradient of a sign is 0 almost everywhere. Training a Binarized Neural Network replaces it by a
pseudo-gradient, in the backward pass only (section 2, equation 3 of arXiv:1906.02107). The
quantizers are Larq's, with the same defaults and values. Set an argument with `functools.partial`:
`partial(ste_sign, clip=1.25)`. Every sign is +1 at 0 and −0, and −1 for NaN.

Three attributes of a quantizer describe its outputs. A quantizer of your own may have them, too:

- `precision`, the number of bits, as in Larq;
- `is_sign`, True if the outputs are −1 and +1: layers may then multiply bits;
- `is_scaled_sign`, True if the outputs are −α and +α with one α for each entry of the last axis:
  kernels of such values are saved and multiplied as bits, too.
"""

from functools import partial
from numbers import Integral, Real
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from bop_optax._scale import is_signed


def is_sign(quantizer: Any) -> bool:
    """Tells whether a quantizer returns −1 or +1 alone: True if its attribute `is_sign` is True.

    Args:
        quantizer: a function, a `functools.partial` of one, or None.

    Example:
        >>> is_sign(ste_sign), is_sign(partial(ste_sign, clip=2.0)), is_sign(ste_heaviside)
        (True, True, False)
    """
    return getattr(function_of(quantizer), "is_sign", False) is True


def is_scaled_sign(quantizer: Any) -> bool:
    """Tells whether a quantizer returns ±α, with one α for each entry of the last axis.

    Args:
        quantizer: a function, a `functools.partial` of one, or None.

    Example:
        >>> is_scaled_sign(magnitude_aware_sign), is_scaled_sign(ste_sign), is_scaled_sign(ste_tern)
        (True, True, False)
    """
    return is_sign(quantizer) or getattr(function_of(quantizer), "is_scaled_sign", False) is True


def precision(quantizer: Any) -> int | None:
    """Returns the number of bits of a quantizer's outputs.

    Args:
        quantizer: a function, a `functools.partial` of one, or None.

    Returns:
        The argument `bits` of the partial, else the attribute `precision`, else None.

    Example:
        >>> precision(ste_sign), precision(partial(dorefa, bits=4)), precision(None)
        (1, 4, None)
    """
    bits = None
    while isinstance(quantizer, partial):
        bits = quantizer.keywords.get("bits") if bits is None else bits
        quantizer = quantizer.func
    return getattr(quantizer, "precision", None) if bits is None else bits


def function_of(quantizer: Any) -> Any:
    """Returns the function of a `functools.partial`, also of a nested one; anything else as it is.

    Args:
        quantizer: a function, a `functools.partial` of one, or None.

    Example:
        >>> function_of(partial(ste_sign, clip=2.0)) is ste_sign
        True
    """
    while isinstance(quantizer, partial):
        quantizer = quantizer.func
    return quantizer


def binarize(x: ArrayLike) -> jax.Array:
    """Rounds each number to −1 or +1, without a gradient: +1 if x ≥ 0 (−0 too), else −1 (NaN too).

    Args:
        x: array of any shape and any signed dtype.

    Returns:
        An array of ±1 with the shape and dtype of `x`.

    Raises:
        TypeError: for a dtype without −1: bool, unsigned, complex.

    Example:
        >>> binarize(jnp.array([-0.3, 0.0, 2.0]))
        Array([-1.,  1.,  1.], dtype=float32)
    """
    x = _signed(x)
    return jnp.where(x >= 0, jnp.ones_like(x), -jnp.ones_like(x))


def _signed(x: ArrayLike) -> jax.Array:
    """An array; TypeError for a dtype without −1."""
    x = jnp.asarray(x)
    if not is_signed(x.dtype):
        raise TypeError(f"a sign needs a signed dtype, got {x.dtype}: cast to float32 before")
    return x


def _real(x: ArrayLike) -> jax.Array:
    """An array; TypeError for a dtype of no real numbers."""
    x = jnp.asarray(x)
    if not any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError(f"a quantizer takes real numbers, got {x.dtype}: cast to float32 before")
    return x


def _check_positive(**values: Any) -> None:
    """Raises an error for numbers that are not above 0; None and arrays pass."""
    for name, value in values.items():
        is_real = isinstance(value, Real) and not isinstance(value, bool)
        if is_real and not float(value) > 0:
            raise ValueError(f"{name} must be above 0, got {name}={value!r}")
        if not is_real and value is not None and not hasattr(value, "dtype"):
            raise TypeError(f"{name} must be a number, got {name}={value!r}")


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
    _check_positive(clip=clip)
    return binarize(x)


@ste_sign.defjvp
def _(clip, primals, tangents):
    (x,), (dx,) = primals, tangents
    return ste_sign(x, clip), _clipped(x, dx, clip)


def _clipped(x: jax.Array, dx: jax.Array, clip: float | None) -> jax.Array:
    """The straight-through estimator: the tangent if |x| ≤ clip, else 0."""
    passes = jnp.abs(x) <= (jnp.inf if clip is None else clip)
    return jnp.where(passes, dx, jnp.zeros_like(dx))


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
    passes = jnp.abs(x) <= 1
    slope = jnp.where(passes, 2 * (1 - jnp.abs(x)), jnp.zeros_like(x))  # not NaN, if x is
    return approx_sign(x), jnp.where(passes, slope * dx, jnp.zeros_like(dx))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def swish_sign(x: ArrayLike, beta: float = 5.0) -> jax.Array:
    r"""Sign with the derivative of SignSwish, a smooth approximation of the sign.

    .. math::
        q(x) = \begin{cases} -1 & x < 0 \\ 1 & x \geq 0 \end{cases}
        \qquad
        \frac{\partial q}{\partial x} := \frac{\beta \, (2 - \beta x \tanh(\beta x / 2))}
        {1 + \cosh(\beta x)}

    Args:
        x: array of any shape, any floating dtype.
        beta: :math:`\beta > 0`. Higher: the derivative is closer to that of the sign, higher at 0
            and narrower. The derivative is negative where :math:`|\beta x| > 2.4`.

    Returns:
        An array of ±1 with the shape and dtype of `x`.

    Example:
        >>> jax.grad(swish_sign)(0.0), jax.grad(partial(swish_sign, beta=2.0))(0.0)
        (Array(5., dtype=float32, weak_type=True), Array(2., dtype=float32, weak_type=True))

    References:
        Darabi, Belbahri, Courbariaux, Nia. BNN+: Improved Binary Network Training. 2018,
        arXiv:1812.11800, section 3.
    """
    _check_positive(beta=beta)
    return binarize(x)


@swish_sign.defjvp
def _(beta, primals, tangents):
    (x,), (dx,) = primals, tangents
    y, z = swish_sign(x, beta), beta * x
    slope = beta * (2 - z * jnp.tanh(z / 2)) / (1 + jnp.cosh(z))
    return y, jnp.where(jnp.isinf(z), 0, slope) * dx


def magnitude_aware_sign(x: ArrayLike, clip: float | None = 1.0) -> jax.Array:
    r"""Sign of latent weights, times the mean magnitude of each output's weights.

    .. math::
        q(w) = \operatorname{mean}(|w|) \, \operatorname{sign}(w)

    The mean is over all axes but the last. It has no gradient; the sign has that of `ste_sign`.

    Args:
        x: a kernel in the layout of Flax, (*window*, in, out), any floating dtype.
        clip: as in `ste_sign`.

    Returns:
        An array of ±α with the shape and dtype of `x`, one α for each output.

    Example:
        >>> magnitude_aware_sign(jnp.array([[0.5, -3.0], [-1.5, 1.0]]))
        Array([[ 1., -2.],
               [-1.,  2.]], dtype=float32)

    References:
        Liu, Wu, Luo, Yang, Liu, Cheng. Bi-Real Net: Enhancing the Performance of 1-bit CNNs. ECCV
        2018, arXiv:1808.00278, section 3.3.
    """
    x = jnp.asarray(x)
    scale = jnp.mean(jnp.abs(x), axis=tuple(range(x.ndim - 1)))
    return lax.stop_gradient(scale) * ste_sign(x, clip)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def ste_tern(x: ArrayLike, threshold: float | None = 0.05, clip: float | None = 1.0) -> jax.Array:
    r"""Rounds to −1, 0 or +1, with the straight-through estimator (STE), clipped.

    .. math::
        q(x) = \begin{cases} 1 & x \geq \Delta \\ 0 & |x| < \Delta \\ -1 & x \leq -\Delta
        \end{cases}

    Bop does not train ternary kernels: a weight of 0 has no sign to flip.

    Args:
        x: array of any shape, any floating dtype.
        threshold: :math:`\Delta \geq 0`. Higher: more zeros. None: that of Ternary Weight Networks,
            :math:`0.7 \operatorname{mean}(|x|)` over the whole array.
        clip: as in `ste_sign`.

    Returns:
        An array of −1, 0 and +1 with the shape and dtype of `x`.

    Example:
        >>> ste_tern(jnp.array([-0.3, 0.01, 0.3]))
        Array([-1.,  0.,  1.], dtype=float32)

    References:
        Li, Zhang, Liu. Ternary Weight Networks. 2016, arXiv:1605.04711.
    """
    is_zero = isinstance(threshold, Real) and threshold == 0
    if isinstance(threshold, Real) and not float(threshold) >= 0:
        raise ValueError(f"threshold must be ≥ 0, got {threshold=}")
    _check_positive(clip=clip, threshold=None if is_zero else threshold)
    x = _signed(x)
    delta = 0.7 * jnp.mean(jnp.abs(x)) if threshold is None else threshold
    return (x >= delta).astype(x.dtype) - (x <= -delta).astype(x.dtype)


@ste_tern.defjvp
def _(threshold, clip, primals, tangents):
    (x,), (dx,) = primals, tangents
    return ste_tern(x, threshold, clip), _clipped(x, dx, clip)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def ste_heaviside(x: ArrayLike, clip: float | None = 1.0) -> jax.Array:
    """Rounds to 0 or 1, with the straight-through estimator (STE), clipped: 1 if x > 0, else 0.

    Its outputs are one bit, yet no signs: products with them are computed as real ones.

    Args:
        x: array of any shape, any floating dtype.
        clip: as in `ste_sign`.

    Returns:
        An array of 0 and 1 with the shape and dtype of `x`.

    Example:
        >>> ste_heaviside(jnp.array([-0.3, 0.0, 0.3]))
        Array([0., 0., 1.], dtype=float32)
    """
    _check_positive(clip=clip)
    x = _real(x)
    return (x > 0).astype(x.dtype)


@ste_heaviside.defjvp
def _(clip, primals, tangents):
    (x,), (dx,) = primals, tangents
    return ste_heaviside(x, clip), _clipped(x, dx, clip)


def dorefa(
    x: ArrayLike, bits: int = 2, mode: Literal["activations", "weights"] = "activations"
) -> jax.Array:
    r"""Rounds to :math:`2^\text{bits}` levels, as DoReFa-Net does.

    .. math::
        q(x) = \frac{1}{n} \operatorname{round}(n x), \qquad n = 2^\text{bits} - 1

    Activations are clipped to [0, 1] before. Weights are mapped to [0, 1] before and to [−1, 1]
    after, :math:`2 \, q\left(\frac{\tanh w}{2 \max |\tanh w|} + \frac{1}{2}\right) - 1`. The
    rounding has the gradient 1, the maximum has none.

    Args:
        x: array of any shape, any floating dtype.
        bits: number of bits, from 1 to the bits of the dtype's significand: 24 of float32.
        mode: "activations" or "weights".

    Returns:
        An array with the shape and dtype of `x`, in [0, 1] or, of weights, in [−1, 1].

    Raises:
        ValueError: for other `bits` and `mode`.
        TypeError: for a dtype of no real numbers: bool, complex.

    Example:
        >>> dorefa(jnp.array([-1.0, 0.3, 0.8]))
        Array([0.        , 0.33333334, 0.6666667 ], dtype=float32)

    References:
        Zhou, Wu, Ni, Zhou, Wen, Zou. DoReFa-Net: Training Low Bitwidth Convolutional Neural
        Networks with Low Bitwidth Gradients. 2016, arXiv:1606.06160, section 2.3.
    """
    x = _real(x)
    most = jnp.finfo(x.dtype).nmant + 1 if jnp.issubdtype(x.dtype, jnp.floating) else 24
    if not isinstance(bits, Integral) or not 1 <= bits <= most:
        raise ValueError(f"bits must be an integer from 1 to {most} for {x.dtype}, got {bits=}")
    if mode not in ("activations", "weights"):
        raise ValueError(f'mode must be "activations" or "weights", got {mode=}')
    levels = 2 ** int(bits) - 1
    if mode == "activations":
        return _round(_clip(x), levels)
    limited = jnp.tanh(x)
    largest = lax.stop_gradient(jnp.max(jnp.abs(limited), initial=0))
    divisor = jnp.where(largest == 0, 1, 2 * largest)
    return 2 * _round(limited / divisor + 0.5, levels) - 1


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _round(x: jax.Array, levels: int) -> jax.Array:
    """The nearest of the levels 0, 1/levels, ..., 1; the gradient is 1."""
    return jnp.round(x * levels) / levels


@_round.defjvp
def _(levels, primals, tangents):
    return _round(*primals, levels), tangents[0]


@jax.custom_jvp
def _clip(x: jax.Array) -> jax.Array:
    """Clips to [0, 1]; the gradient is 1 in it, ends included."""
    return jnp.clip(x, 0, 1)


@_clip.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _clip(x), jnp.where((x >= 0) & (x <= 1), dx, jnp.zeros_like(dx))


SIGNS: tuple[Any, ...] = (binarize, ste_sign, approx_sign, swish_sign)
for _quantizer in SIGNS:
    _quantizer.precision, _quantizer.is_sign = 1, True
magnitude_aware_sign.precision, magnitude_aware_sign.is_scaled_sign = 1, True  # pyright: ignore[reportFunctionMemberAccess]
ste_heaviside.precision, ste_tern.precision, dorefa.precision = 1, 2, 2  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
