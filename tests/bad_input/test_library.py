"""Wrong arguments of optimizers, labels, metrics and quantizers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bop_optax import (
    binary_labels,
    bold,
    bop,
    bop_2nd_order,
    bop_layerwise,
    cema,
    check_binary,
    dorefa,
    flip_ratio,
    flips,
    log_flip_ratio,
    magnitude_aware_sign,
    prob_bop,
    ste_heaviside,
    ste_sign,
    ste_tern,
    swish_sign,
)
from bop_optax.latent import clip_latent
from bop_optax.processor import traced_for
from tests.bad_input.table import refuse, rows

WEIGHTS = jnp.ones(3)
PARAMS = {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}


def update(optimizer, grads, params=WEIGHTS, state=None):
    state = optimizer.init(params) if state is None else state
    return optimizer.update(grads, state, params)


def schedule(number):
    def given(step):
        return number

    return given


def clip(updates):
    return clip_latent().update(updates, optax.EmptyState(), WEIGHTS)


def gradient(quantizer, **options):
    return jax.grad(lambda x: quantizer(x, **options).sum())(WEIGHTS)


TABLE = [
    # Hyperparameters
    (
        "γ that float32 takes for 0",
        lambda: bop(1e-50),
        (
            "ValueError: gamma must be in the range of float32, 1.2e-38 to 3.4e+38, got "
            "gamma=1e-50, which becomes 0 or infinite"
        ),
    ),
    (
        "γ that is subnormal in float32",
        lambda: bop(1e-40),
        (
            "ValueError: gamma must be in the range of float32, 1.2e-38 to 3.4e+38, got "
            "gamma=1e-40, which becomes 0 or infinite"
        ),
    ),
    (
        "γ that bfloat16 takes for 0",
        lambda: bop(1e-39, ema_dtype="bfloat16"),
        (
            "ValueError: gamma must be in the range of bfloat16, 1.2e-38 to 3.4e+38, got "
            "gamma=1e-39, which becomes 0 or infinite"
        ),
    ),
    (
        "γ that float16 takes for 0",
        lambda: bop(1e-9, ema_dtype="float16"),
        (
            "ValueError: gamma must be in the range of float16, 6e-08 to 6.6e+04, got "
            "gamma=1e-09, which becomes 0 or infinite"
        ),
    ),
    (
        "γ of NumPy that float32 takes for 0",
        lambda: bop_layerwise(np.float64(1e-50)),
        (
            "ValueError: gamma must be in the range of float32, 1.2e-38 to 3.4e+38, got "
            "gamma=np.float64(1e-50), which becomes 0 or infinite"
        ),
    ),
    (
        "γ of float64, which is float32 here",
        lambda: bop_2nd_order(1e-50, ema_dtype=float),
        (
            "ValueError: gamma must be in the range of float32, 1.2e-38 to 3.4e+38, got "
            "gamma=1e-50, which becomes 0 or infinite"
        ),
    ),
    (
        "σ that float32 takes for 0",
        lambda: bop_2nd_order(sigma=1e-45),
        (
            "ValueError: sigma must be in the range of float32, 1.2e-38 to 3.4e+38, got "
            "sigma=1e-45, which becomes 0 or infinite"
        ),
    ),
    (
        "α that float32 takes for 0",
        lambda: cema(alpha=1e-50),
        (
            "ValueError: alpha must be in the range of float32, 1.2e-38 to 3.4e+38, got "
            "alpha=1e-50, which becomes 0 or infinite"
        ),
    ),
    (
        "α of prob_bop that float32 takes for 0",
        lambda: prob_bop(alpha=1e-50),
        (
            "ValueError: alpha must be in the range of float32, 1.2e-38 to 3.4e+38, got "
            "alpha=1e-50, which becomes 0 or infinite"
        ),
    ),
    (
        "η that float32 takes for 0",
        lambda: bold(1e-50),
        (
            "ValueError: eta must be in the range of float32, 1.2e-38 to 3.4e+38, got eta=1e-50, "
            "which becomes 0 or infinite"
        ),
    ),
    (
        "η that float32 takes for infinite",
        lambda: bold(1e300),
        (
            "ValueError: eta must be in the range of float32, 1.2e-38 to 3.4e+38, got eta=1e+300,"
            " which becomes 0 or infinite"
        ),
    ),
    (
        "an epoch that float32 takes for infinite",
        lambda: prob_bop(epoch=1e39),
        (
            "ValueError: epoch must be in the range of float32, 1.2e-38 to 3.4e+38, got "
            "epoch=1e+39, which becomes 0 or infinite"
        ),
    ),
    (
        "γ that is True",
        lambda: bop(True),
        "TypeError: gamma must be a number or a schedule, got gamma=True",
    ),
    (
        "τ that is True",
        lambda: bop(threshold=True),
        "TypeError: threshold must be a number or a schedule, got threshold=True",
    ),
    (
        "η that is False",
        lambda: bold(False),
        "TypeError: eta must be a number or a schedule, got eta=False",
    ),
    (
        "γ that is bytes",
        lambda: bop(b"1e-4"),
        "TypeError: gamma must be a number or a schedule, got gamma=b'1e-4'",
    ),
    (
        "γ that is an array of a string",
        lambda: bop(np.array("1e-4")),
        ("TypeError: gamma must be a number or a schedule, got gamma=array('1e-4', dtype='<U4')"),
    ),
    (
        "γ that is an array of a complex number",
        lambda: bop(np.array(1 + 1j)),
        "TypeError: gamma must be a number or a schedule, got gamma=array(1.+1.j)",
    ),
    (
        "τ that is an array of a Boolean",
        lambda: bop(threshold=np.array(True)),
        "TypeError: threshold must be a number or a schedule, got threshold=array(True)",
    ),
    (
        "α that is an array of a string",
        lambda: cema(alpha=np.array("a")),
        "TypeError: alpha must be a number or a schedule, got alpha=array('a', dtype='<U1')",
    ),
    (
        "γ without a number",
        lambda: bop(()),
        "TypeError: gamma must be a number or a schedule, got gamma=()",
    ),
    (
        "γ of 101 %",
        lambda: bop(1.01),
        "ValueError: gamma must be in (0, 1], got gamma=1.01; for example 1e-4",
    ),
    (
        "γ that is infinite",
        lambda: bop(float("inf")),
        "ValueError: gamma must be in (0, 1], got gamma=inf; for example 1e-4",
    ),
    (
        "no dtype of the averages",
        lambda: bop(ema_dtype=None),
        "ValueError: ema_dtype must be a floating dtype, got None; use jnp.float32",
    ),
    (
        "an unknown dtype of the averages",
        lambda: bop(ema_dtype="foo"),
        "ValueError: ema_dtype must be a floating dtype, got 'foo'; use jnp.float32",
    ),
    (
        "a number as dtype of the averages",
        lambda: bop(ema_dtype=3),
        "ValueError: ema_dtype must be a floating dtype, got 3; use jnp.float32",
    ),
    (
        "an unsigned dtype of the averages",
        lambda: cema(ema_dtype="uint8"),
        "ValueError: ema_dtype must be a floating dtype, got 'uint8'; use jnp.float32",
    ),
    (
        "a string as key",
        lambda: bop(ema_dtype="bfloat16", rounding_key="seed"),
        (
            "TypeError: rounding_key must be a key, as jax.random.key(0), or an integer of 64 "
            "bits, got rounding_key='seed'"
        ),
    ),
    (
        "a float as key",
        lambda: bop(ema_dtype="bfloat16", rounding_key=1.5),
        (
            "TypeError: rounding_key must be a key, as jax.random.key(0), or an integer of 64 "
            "bits, got rounding_key=1.5"
        ),
    ),
    (
        "a seed of more than 64 bits",
        lambda: bop(ema_dtype="bfloat16", rounding_key=2**64),
        (
            "TypeError: rounding_key must be a key, as jax.random.key(0), or an integer of 64 "
            "bits, got rounding_key=18446744073709551616"
        ),
    ),
    (
        "a Boolean as key",
        lambda: prob_bop(key=True),
        (
            "TypeError: key must be a key, as jax.random.key(0), or an integer of 64 bits, got "
            "key=True"
        ),
    ),
    (
        "a list as key",
        lambda: prob_bop(key=[1]),
        (
            "TypeError: key must be a key, as jax.random.key(0), or an integer of 64 bits, got "
            "key=[1]"
        ),
    ),
    (
        "an old key of two words",
        lambda: prob_bop(key=jax.random.PRNGKey(0)),
        (
            "TypeError: key must be a key, as jax.random.key(0), or an integer of 64 bits, got "
            "key=Array(...)"
        ),
    ),
    (
        "several keys",
        lambda: prob_bop(key=jax.random.split(jax.random.key(0))),
        (
            "TypeError: key must be a key, as jax.random.key(0), or an integer of 64 bits, got "
            "key=..."
        ),
    ),
    (
        "a latent limit that is a string",
        lambda: clip_latent("1"),
        "TypeError: limit must be a number, got limit='1'; the usual limit is 1.0",
    ),
    (
        "no latent limit",
        lambda: clip_latent(None),
        "TypeError: limit must be a number, got limit=None; the usual limit is 1.0",
    ),
    (
        "a latent limit that is a list",
        lambda: clip_latent([1.0]),
        "TypeError: limit must be a number, got limit=[1.0]; the usual limit is 1.0",
    ),
    (
        "a latent limit that is complex",
        lambda: clip_latent(1j),
        "TypeError: limit must be a number, got limit=1j; the usual limit is 1.0",
    ),
    (
        "several latent limits",
        lambda: clip_latent(jnp.ones(2)),
        (
            "TypeError: limit must be a number, got limit=Array([1., 1.], dtype=float32); the "
            "usual limit is 1.0"
        ),
    ),
    (
        "a schedule as latent limit",
        lambda: clip_latent(schedule(1.0)),
        "TypeError: limit must be a number, got limit=...; the usual limit is 1.0",
    ),
    # Schedules
    (
        "a schedule that returns a string",
        lambda: update(bop(schedule("x")), WEIGHTS),
        (
            "TypeError: a schedule must return one real number, but <function schedule...> "
            "returned 'x'"
        ),
    ),
    (
        "a schedule that returns nothing",
        lambda: update(bop(schedule(None)), WEIGHTS),
        (
            "TypeError: a schedule must return one real number, but <function schedule...> "
            "returned None"
        ),
    ),
    (
        "a schedule that returns a vector",
        lambda: update(bop(schedule(jnp.ones(3))), WEIGHTS),
        (
            "TypeError: a schedule must return one real number, but <function schedule...> "
            "returned Array([1., 1., 1.], dtype=float32)"
        ),
    ),
    (
        "a schedule of τ that returns a vector",
        lambda: update(bop(threshold=schedule(jnp.zeros(3))), WEIGHTS),
        (
            "TypeError: a schedule must return one real number, but <function schedule...> "
            "returned Array([0., 0., 0.], dtype=float32)"
        ),
    ),
    (
        "a schedule that returns a complex number",
        lambda: update(bold(schedule(1j)), WEIGHTS),
        (
            "TypeError: a schedule must return one real number, but <function schedule...> "
            "returned 1j"
        ),
    ),
    # Parameters, gradients, states
    (
        "weights of a string",
        lambda: bop().init({"name": "digits"}),
        (
            "TypeError: bop flips real floating-point weights, but name is str: store ±1 as "
            "float32 or bfloat16, or give this parameter another optimizer with optax.partition"
        ),
    ),
    (
        "weights of NaN",
        lambda: bop().init(jnp.full(3, jnp.nan)),
        (
            "ValueError: the parameter has weights that are not finite; bop flips binary weights:"
            " give it those that binary_labels labels, start from bop_optax.binarize(w), or pass "
            "check_weights=False"
        ),
    ),
    (
        "weights of NaN in NumPy",
        lambda: cema().init({"kernel": np.full((2, 2), np.nan)}),
        (
            "ValueError: kernel has weights that are not finite; bop flips binary weights: give "
            "it those that binary_labels labels, start from bop_optax.binarize(w), or pass "
            "check_weights=False"
        ),
    ),
    (
        "weights of which one is NaN",
        lambda: bop().init(jnp.array([1.0, jnp.nan])),
        (
            "ValueError: the parameter has weights that are not finite; bop flips binary weights:"
            " give it those that binary_labels labels, start from bop_optax.binarize(w), or pass "
            "check_weights=False"
        ),
    ),
    (
        "weights that are infinite",
        lambda: bold().init(jnp.full(3, jnp.inf)),
        (
            "ValueError: the parameter has weights that are not finite; bop flips binary weights:"
            " give it those that binary_labels labels, start from bop_optax.binarize(w), or pass "
            "check_weights=False"
        ),
    ),
    (
        "weights of two magnitudes",
        lambda: bop_2nd_order().init(jnp.array([0.3, 0.5])),
        (
            "ValueError: the parameter is not −α or +α with one α for each output: its magnitudes"
            " are 0.3 to 0.5; bop flips binary weights: give it those that binary_labels labels, "
            "start from bop_optax.binarize(w), or pass check_weights=False"
        ),
    ),
    (
        "weights of 0",
        lambda: prob_bop().init(jnp.zeros(3)),
        (
            "ValueError: the parameter has weights of 0; bop flips binary weights: give it those "
            "that binary_labels labels, start from bop_optax.binarize(w), or pass "
            "check_weights=False"
        ),
    ),
    (
        "real weights of a module",
        lambda: bop().init(nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Param)),
        (
            "ValueError: bias is a Param of shape (2,), no binary kernel; bop flips binary "
            "weights: give it those that binary_labels labels, start from bop_optax.binarize(w), "
            "or pass check_weights=False"
        ),
    ),
    (
        "gradients of another tree",
        lambda: update(bop(), {"a": WEIGHTS}, {"b": WEIGHTS}),
        (
            "ValueError: the gradients and the parameters must be one tree, got a in the "
            "gradients alone; b in the parameters alone"
        ),
    ),
    (
        "gradients of a tree for one array",
        lambda: update(bop_layerwise(), {"a": WEIGHTS}),
        (
            "ValueError: the gradients and the parameters must be one tree, got a in the "
            "gradients alone; (an array) in the parameters alone"
        ),
    ),
    (
        "one gradient for a tree",
        lambda: update(cema(), WEIGHTS, {"a": WEIGHTS}),
        (
            "ValueError: the gradients and the parameters must be one tree, got (an array) in the"
            " gradients alone; a in the parameters alone"
        ),
    ),
    (
        "a gradient that is missing",
        lambda: update(bold(), {"a": WEIGHTS}, {"a": WEIGHTS, "b": WEIGHTS}),
        (
            "ValueError: the gradients and the parameters must be one tree, got b in the "
            "parameters alone"
        ),
    ),
    (
        "no gradients",
        lambda: update(bop(), None),
        (
            "ValueError: the gradients and the parameters must be one tree, got (an array) in the"
            " parameters alone"
        ),
    ),
    (
        "None as a gradient",
        lambda: update(prob_bop(), {"a": None}, {"a": WEIGHTS}),
        (
            "ValueError: the gradients and the parameters must be one tree, got a in the "
            "parameters alone"
        ),
    ),
    (
        "a list of gradients for a tuple",
        lambda: update(bop(), [WEIGHTS], (WEIGHTS,)),
        (
            "ValueError: the gradients and the parameters must be one tree, got PyTreeDef([*]) "
            "and PyTreeDef((*,))"
        ),
    ),
    (
        "a number as gradient",
        lambda: update(bop(), 1.0),
        "ValueError: the parameter is (3,) and its gradient ()",
    ),
    (
        "a gradient with a batch axis",
        lambda: update(bop(), jnp.ones((2, 3))),
        "ValueError: the parameter is (3,) and its gradient (2, 3)",
    ),
    (
        "no state",
        lambda: bop().update(WEIGHTS, None, WEIGHTS),
        "TypeError: state must be the BopState that init(params) returned, got a NoneType",
    ),
    (
        "a state of Adam",
        lambda: update(bop(), WEIGHTS, state=optax.adam(1e-3).init(WEIGHTS)),
        "TypeError: state must be the BopState that init(params) returned, got a tuple",
    ),
    (
        "a state of another variant",
        lambda: update(cema(), WEIGHTS, state=bop().init(WEIGHTS)),
        "TypeError: state must be the CemaState that init(params) returned, got a BopState",
    ),
    (
        "a state that has become a dictionary",
        lambda: update(bop(), WEIGHTS, state=bop().init(WEIGHTS)._asdict()),
        "TypeError: state must be the BopState that init(params) returned, got a dict",
    ),
    (
        "a state of other shapes",
        lambda: update(bop(), WEIGHTS, state=bop().init(jnp.ones(4))),
        (
            "ValueError: the parameter is (3,) and its average in the state (4,): call "
            "init(params) for these parameters"
        ),
    ),
    (
        "a state of another tree",
        lambda: update(bold(), {"a": WEIGHTS}, {"a": WEIGHTS}, state=bold().init(WEIGHTS)),
        (
            "ValueError: the averages of the state and the parameters must be one tree, got (an "
            "array) in the averages of the state alone; a in the parameters alone"
        ),
    ),
    (
        "latent updates of another shape",
        lambda: clip(jnp.ones((2, 3))),
        "ValueError: the parameter is (3,) and its gradient (2, 3)",
    ),
    (
        "latent updates of integers",
        lambda: clip(jnp.ones(3, int)),
        "TypeError: a gradient is real floating point, but that of the parameter is int32",
    ),
    (
        "latent updates of complex numbers",
        lambda: clip(jnp.ones(3, complex)),
        "TypeError: a gradient is real floating point, but that of the parameter is complex64",
    ),
    (
        "latent updates of another tree",
        lambda: clip({"a": WEIGHTS}),
        (
            "ValueError: the gradients and the parameters must be one tree, got a in the "
            "gradients alone; (an array) in the parameters alone"
        ),
    ),
    # Labels
    (
        "a rule that is a string",
        lambda: binary_labels(PARAMS, "kernel"),
        "TypeError: is_binary must be a function of (path, leaf), got 'kernel'",
    ),
    (
        "a rule that is a label",
        lambda: binary_labels(PARAMS, True),
        "TypeError: is_binary must be a function of (path, leaf), got True",
    ),
    (
        "a rule that returns labels",
        lambda: binary_labels(PARAMS, lambda path, _: "binary" if path == "kernel" else "real"),
        "TypeError: is_binary must return True or False, got 'real' for bias",
    ),
    (
        "no parameters",
        lambda: binary_labels(None),
        (
            "ValueError: no parameter is binary: (the tree is empty); use BinaryParam (Flax NNX) "
            "or with_binary (Flax Linen), or pass is_binary"
        ),
    ),
    (
        "an empty tree",
        lambda: binary_labels({}),
        (
            "ValueError: no parameter is binary: (the tree is empty); use BinaryParam (Flax NNX) "
            "or with_binary (Flax Linen), or pass is_binary"
        ),
    ),
    (
        "labels of numbers",
        lambda: check_binary(PARAMS, {"kernel": 1, "bias": 0}),
        (
            "ValueError: labels must be those of binary_labels(params), got {'bias': 0, 'kernel':"
            " 1} for bias, kernel"
        ),
    ),
    (
        "labels of None",
        lambda: check_binary(PARAMS, {"kernel": None, "bias": None}),
        "ValueError: labels must be those of binary_labels(params), got {} for bias, kernel",
    ),
    (
        "labels of Booleans",
        lambda: check_binary(PARAMS, {"kernel": True, "bias": False}),
        (
            "ValueError: labels must be those of binary_labels(params), got {'bias': False, "
            "'kernel': True} for bias, kernel"
        ),
    ),
    (
        "labels of arrays",
        lambda: check_binary(PARAMS, {"kernel": np.ones(2), "bias": np.ones(2)}),
        (
            "ValueError: labels must be those of binary_labels(params), got {'bias': array([1., "
            "1.]), 'kernel': array([1., 1.])} for bias, kernel"
        ),
    ),
    (
        "labels with a capital",
        lambda: check_binary(PARAMS, {"kernel": "Binary", "bias": "real"}),
        (
            "ValueError: labels must be those of binary_labels(params), got {'bias': 'real', "
            "'kernel': 'Binary'} for bias, kernel"
        ),
    ),
    (
        "labels in lists",
        lambda: check_binary(PARAMS, {"kernel": ["binary"], "bias": "real"}),
        (
            "ValueError: labels must be those of binary_labels(params), got {'bias': 'real', "
            "'kernel/0': 'binary'} for bias, kernel"
        ),
    ),
    (
        "labels of another tree",
        lambda: check_binary(PARAMS, {"weight": "binary", "bias": "real"}),
        (
            "ValueError: labels must be those of binary_labels(params), got {'bias': 'real', "
            "'weight': 'binary'} for bias, kernel"
        ),
    ),
    (
        "a label that is missing",
        lambda: check_binary(PARAMS, {"kernel": "binary"}),
        (
            "ValueError: labels must be those of binary_labels(params), got {'kernel': 'binary'} "
            "for bias, kernel"
        ),
    ),
    (
        "one label for all",
        lambda: check_binary(PARAMS, "binary"),
        ("ValueError: labels must be those of binary_labels(params), got binary for bias, kernel"),
    ),
    (
        "labels of nothing binary",
        lambda: check_binary(PARAMS, {"kernel": "real", "bias": "real"}),
        "ValueError: no leaf has the label binary: all of bias, kernel are real",
    ),
    (
        "binary strings",
        lambda: check_binary({"kernel": "abc"}, {"kernel": "binary"}),
        (
            "ValueError: kernel is <U3, which holds no −α and +α; give it to bop or a variant of "
            "it alone, as the last transform of a chain, without a learning rate or a weight "
            "decay"
        ),
    ),
    (
        "binary complex numbers",
        lambda: check_binary({"kernel": jnp.ones(2, complex)}, {"kernel": "binary"}),
        (
            "ValueError: kernel is complex64, which holds no −α and +α; give it to bop or a "
            "variant of it alone, as the last transform of a chain, without a learning rate or a "
            "weight decay"
        ),
    ),
    (
        "binary unsigned integers",
        lambda: check_binary({"kernel": jnp.ones(2, jnp.uint8)}, {"kernel": "binary"}),
        (
            "ValueError: kernel is uint8, which holds no −α and +α; give it to bop or a variant "
            "of it alone, as the last transform of a chain, without a learning rate or a weight "
            "decay"
        ),
    ),
    (
        "binary Booleans",
        lambda: check_binary({"kernel": np.ones(2, bool)}, {"kernel": "binary"}),
        (
            "ValueError: kernel is bool, which holds no −α and +α; give it to bop or a variant of"
            " it alone, as the last transform of a chain, without a learning rate or a weight "
            "decay"
        ),
    ),
    # Metrics
    (
        "flips of weights of two shapes",
        lambda: flips(jnp.ones(3), jnp.ones((2, 3))),
        "ValueError: the parameter has the shape (3,) before and (2, 3) after",
    ),
    (
        "flips of two trees",
        lambda: flips({"a": WEIGHTS}, {"b": WEIGHTS}),
        (
            "ValueError: weights before and weights after must be one tree, got a in weights "
            "before alone; b in weights after alone"
        ),
    ),
    (
        "a ratio of flips of two trees",
        lambda: flip_ratio([WEIGHTS], (WEIGHTS,)),
        (
            "ValueError: weights before and weights after must be one tree, got PyTreeDef([*]) "
            "and PyTreeDef((*,))"
        ),
    ),
    (
        "π of weights of two shapes",
        lambda: log_flip_ratio({"a": WEIGHTS}, {"a": jnp.ones(4)}),
        "ValueError: a has the shape (3,) before and (4,) after",
    ),
    (
        "flips of unsigned integers",
        lambda: flips(jnp.ones(3, jnp.uint8), jnp.ones(3, jnp.uint8)),
        "TypeError: a sign needs a signed dtype, got uint8: cast to float32 before",
    ),
    (
        "flips of complex numbers",
        lambda: flips(jnp.ones(3, complex), jnp.ones(3, complex)),
        "TypeError: a sign needs a signed dtype, got complex64: cast to float32 before",
    ),
    (
        "flips with a misspelt label",
        lambda: flips(PARAMS, labels={"kernel": "bin", "bias": "real"}),
        (
            "ValueError: labels must be those of binary_labels(params), got {'bias': 'real', "
            "'kernel': 'bin'} for bias, kernel"
        ),
    ),
    (
        "flips with one label for all",
        lambda: flip_ratio(PARAMS, PARAMS, labels="binary"),
        ("ValueError: labels must be those of binary_labels(params), got binary for bias, kernel"),
    ),
    # Quantizers
    (
        "a ternary number of unsigned integers",
        lambda: ste_tern(jnp.ones(3, jnp.uint8)),
        "TypeError: a sign needs a signed dtype, got uint8: cast to float32 before",
    ),
    (
        "a ternary number of complex numbers",
        lambda: ste_tern(jnp.ones(3, complex)),
        "TypeError: a sign needs a signed dtype, got complex64: cast to float32 before",
    ),
    (
        "a step of complex numbers",
        lambda: ste_heaviside(jnp.ones(3, complex)),
        "TypeError: a quantizer takes real numbers, got complex64: cast to float32 before",
    ),
    (
        "a step of Booleans",
        lambda: ste_heaviside(jnp.ones(3, bool)),
        "TypeError: a quantizer takes real numbers, got bool: cast to float32 before",
    ),
    (
        "levels of complex numbers",
        lambda: dorefa(jnp.ones(3, complex)),
        "TypeError: a quantizer takes real numbers, got complex64: cast to float32 before",
    ),
    (
        "levels of Booleans",
        lambda: dorefa(jnp.ones(3, bool), mode="weights"),
        "TypeError: a quantizer takes real numbers, got bool: cast to float32 before",
    ),
    (
        "a scaled sign of unsigned integers",
        lambda: magnitude_aware_sign(jnp.ones((3, 2), jnp.uint8)),
        "TypeError: a sign needs a signed dtype, got uint8: cast to float32 before",
    ),
    (
        "a differentiated sign of complex numbers",
        lambda: jax.jvp(ste_sign, (jnp.ones(3, complex),), (jnp.ones(3, complex),)),
        "TypeError: a sign needs a signed dtype, got complex64: cast to float32 before",
    ),
    (
        "a differentiated sign of a negative clip",
        lambda: gradient(ste_sign, clip=-1),
        "ValueError: clip must be above 0, got clip=-1",
    ),
    (
        "a differentiated sign of a clip of 0",
        lambda: gradient(ste_sign, clip=0),
        "ValueError: clip must be above 0, got clip=0",
    ),
    (
        "a differentiated sign of a clip of NaN",
        lambda: gradient(ste_sign, clip=float("nan")),
        "ValueError: clip must be above 0, got clip=nan",
    ),
    (
        "a clip that is True",
        lambda: ste_sign(WEIGHTS, True),
        "TypeError: clip must be a number, got clip=True",
    ),
    (
        "a clip that is a Boolean in a gradient",
        lambda: gradient(ste_tern, clip=True),
        "TypeError: clip must be a number, got clip=True",
    ),
    (
        "a clip that is complex",
        lambda: ste_heaviside(WEIGHTS, 1j),
        "TypeError: clip must be a number, got clip=1j",
    ),
    (
        "a clip of a scaled sign that is negative",
        lambda: magnitude_aware_sign(PARAMS["kernel"], -1.0),
        "ValueError: clip must be above 0, got clip=-1.0",
    ),
    (
        "a clip of a scaled sign that is a string",
        lambda: magnitude_aware_sign(PARAMS["kernel"], "1"),
        "TypeError: clip must be a number, got clip='1'",
    ),
    (
        "a negative clip in a partial",
        lambda: partial(ste_sign, clip=-0.5)(WEIGHTS),
        "ValueError: clip must be above 0, got clip=-0.5",
    ),
    (
        "β that is a string",
        lambda: swish_sign(WEIGHTS, "5"),
        "TypeError: beta must be a number, got beta='5'",
    ),
    (
        "β that is a string in a gradient",
        lambda: gradient(swish_sign, beta="5"),
        "TypeError: beta must be a number, got beta='5'",
    ),
    (
        "β that is a list in a gradient",
        lambda: gradient(swish_sign, beta=[5.0]),
        "TypeError: beta must be a number, got beta=[5.0]",
    ),
    (
        "β that is complex in a gradient",
        lambda: gradient(swish_sign, beta=1j),
        "TypeError: beta must be a number, got beta=1j",
    ),
    (
        "β that is negative in a gradient",
        lambda: gradient(swish_sign, beta=-5.0),
        "ValueError: beta must be above 0, got beta=-5.0",
    ),
    (
        "Δ that is a string",
        lambda: ste_tern(WEIGHTS, "0.05"),
        "TypeError: threshold must be a number, got threshold='0.05'",
    ),
    (
        "Δ that is a list",
        lambda: ste_tern(WEIGHTS, [0.05]),
        "TypeError: threshold must be a number, got threshold=[0.05]",
    ),
    (
        "Δ that is complex",
        lambda: ste_tern(WEIGHTS, 1j),
        "TypeError: threshold must be a number, got threshold=1j",
    ),
    (
        "Δ that is NaN",
        lambda: ste_tern(WEIGHTS, float("nan")),
        "ValueError: threshold must be ≥ 0, got threshold=nan",
    ),
    (
        "an absurd number of bits",
        lambda: dorefa(WEIGHTS, 10**9),
        "ValueError: bits must be an integer from 1 to 24 for float32, got bits=1000000000",
    ),
    (
        "bits that are a string",
        lambda: dorefa(WEIGHTS, "2"),
        "ValueError: bits must be an integer from 1 to 24 for float32, got bits='2'",
    ),
    (
        "no mode of DoReFa",
        lambda: dorefa(WEIGHTS, 2, None),
        'ValueError: mode must be "activations" or "weights", got mode=None',
    ),
    (
        "no platform",
        lambda: traced_for("CPU").__enter__(),
        "ValueError: platform must be one of cpu, cuda, gpu, rocm, tpu, file, got 'CPU'",
    ),
]


@rows(TABLE)
def test_a_wrong_argument(call, message):
    refuse(call, message)
