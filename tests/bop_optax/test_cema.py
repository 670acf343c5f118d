"""CEMA: against an oracle in NumPy, and its properties."""

import numpy as np
import optax
import pytest

from bop_optax import cema
from tests.bop_optax.trajectories import GRADS, WEIGHTS, flip_count, run, run_stepwise, values


def oracle(w, grads, gamma, alpha):
    m, n, history = np.zeros_like(w), np.zeros_like(w), []
    for g, rate, second in zip(grads, values(gamma, 200), values(alpha, 200), strict=False):
        m = m + rate * (g - m)
        n = n + second * (m - n)
        w = np.where(w * n > 0, -w, w)
        history.append(w)
    return np.stack(history)


@pytest.mark.parametrize(
    ("gamma", "alpha"),
    [(0.1, 1e-2), (0.1, optax.linear_schedule(0.5, 0.0, 128))],
    ids=["constant", "to-0"],
)
def test_every_weight_of_every_step_is_the_oracles(gamma, alpha):
    expected = oracle(WEIGHTS, GRADS, gamma, alpha)
    assert flip_count(WEIGHTS, expected) > 400  # else a transform that does nothing would pass
    optimizer = cema(gamma, alpha)
    np.testing.assert_array_equal(run(optimizer, WEIGHTS, GRADS)[0], expected)
    history, _ = run_stepwise(optimizer, WEIGHTS, GRADS[:20])
    np.testing.assert_array_equal(history, expected[:20])


def test_cema_follows_the_sign_of_the_second_average():
    history, state = run(cema(0.1, 0.1), WEIGHTS, GRADS)
    np.testing.assert_array_equal(history[-1], -np.sign(state.ema_of_ema))


def test_cema_settles_as_alpha_reaches_0():
    history, _ = run(cema(0.5, optax.linear_schedule(0.5, 0.0, 100)), WEIGHTS, GRADS)
    assert flip_count(history[0], history[1:100]) > 400
    assert flip_count(history[100], history[101:]) == 0
