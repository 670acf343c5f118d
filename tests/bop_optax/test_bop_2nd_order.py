"""Bop with a second moment: against an oracle in NumPy, and its properties."""

import numpy as np
import pytest

from bop_optax import bop, bop_2nd_order
from tests.bop_optax.trajectories import (
    DECAY,
    GRADS,
    WEIGHTS,
    flip_count,
    run,
    run_stepwise,
    values,
)


def oracle(w, grads, gamma, tau, sigma, unbiased=False):
    """The authors' rule, and Adam's closed form of the correction."""
    m, v, history = np.zeros_like(w), np.zeros_like(w), []
    rates = [values(x, 200) for x in (gamma, tau, sigma)]
    for t, (g, rate, limit, rate_sq) in enumerate(zip(grads, *rates, strict=False), start=1):
        m = m + rate * (g - m)
        v = v + rate_sq * (g * g - v)
        m_hat, v_hat = m, v
        if unbiased:
            m_hat = m / np.float32(-np.expm1(t * np.log1p(-np.float64(rate))))
            v_hat = v / np.float32(-np.expm1(t * np.log1p(-np.float64(rate_sq))))
        signal = w * (m_hat / (np.sqrt(v_hat) + np.float32(1e-10)))
        if unbiased:  # the share is summed up, not computed from t: no tie that could turn
            assert np.min(np.abs(signal - limit)) > 1e-6
        w = np.where(signal > limit, -w, w)
        history.append(w)
    return np.stack(history)


@pytest.mark.parametrize(
    ("gamma", "tau", "sigma", "unbiased"),
    [
        pytest.param(0.1, 0.3, 1e-2, False, id="biased"),
        pytest.param(1e-7, 1e-6, 1e-3, False, id="authors"),
        pytest.param(DECAY, DECAY, DECAY, False, id="biased-decay"),
        pytest.param(0.1, 0.3, 1e-2, True, id="unbiased"),
    ],
)
def test_every_weight_of_every_step_is_the_oracles(gamma, tau, sigma, unbiased):
    expected = oracle(WEIGHTS, GRADS, gamma, tau, sigma, unbiased)
    assert flip_count(WEIGHTS, expected) > 400  # else a transform that does nothing would pass
    optimizer = bop_2nd_order(gamma, tau, sigma, unbiased=unbiased)
    np.testing.assert_array_equal(run(optimizer, WEIGHTS, GRADS)[0], expected)
    history, _ = run_stepwise(optimizer, WEIGHTS, GRADS[:20])
    np.testing.assert_array_equal(history, expected[:20])


def test_what_keeps_the_second_moment_from_zero_stills_the_weakest():
    """Their signals are g / (g + 1e-10): 0.5 and 0.91."""
    w, grads = np.ones(2, np.float32), np.float32([[1e-10, 1e-9]])
    np.testing.assert_array_equal(run(bop_2nd_order(1.0, 0.6, 1.0), w, grads)[0][0], [1, -1])


def test_the_second_moment_frees_weak_but_consistent_weights():
    grads = np.float32([[1e-6, 1e-6 * (-1) ** t] for t in range(100)])  # consistent; noise
    w = np.ones(2, np.float32)
    history, state = run(bop_2nd_order(0.01, 0.5, 0.01), w, grads)
    np.testing.assert_array_equal(history[-1], [-1, 1])
    np.testing.assert_array_equal(run(bop(0.01, 1e-5), w, grads)[0][-1], [1, 1])
    assert state.ema_sq[0] == pytest.approx(1e-12 * (1 - 0.99**100), rel=1e-5)


def test_unbiased_averages_of_a_constant_are_the_constant():
    """From the first step on, so that a threshold just below 1 is passed at once; biased, never."""
    w, grads = np.ones(1, np.float32), np.full((1, 1), 0.25, np.float32)
    for gamma, sigma in ((1e-7, 1e-3), (1e-3, 1e-7), (1.0, 1.0)):
        history, state = run(bop_2nd_order(gamma, 0.999, sigma, unbiased=True), w, grads)
        assert history[0] == -1
        np.testing.assert_allclose(state.shares, [gamma, sigma], rtol=1e-6)
    assert run(bop_2nd_order(1e-7, 0.999, 1e-3), w, grads)[0][0] == 1
