"""A hyperparameter over a run: its spelling, and its values against Optax."""

import math

import jax
import numpy as np
import optax
import pytest

from training.config import Schedule


@pytest.mark.parametrize(
    ("text", "schedule", "canonical"),
    [
        ("1e-3", Schedule(1e-3), "0.001"),
        ("0", Schedule(0.0), "0.0"),
        ("inf", Schedule(math.inf), "inf"),
        ("-1e-8", Schedule(-1e-8), "-1e-08"),
        ("1e-3:0", Schedule(1e-3, end=0.0), "0.001:0.0"),
        ("1E-7:1e-2", Schedule(1e-7, end=1e-2), "1e-07:0.01"),
        ("1e-4*0.1/100", Schedule(1e-4, factor=0.1, every=100), "0.0001*0.1/100"),
        (".5*1/1", Schedule(0.5, factor=1.0, every=1), "0.5*1.0/1"),
    ],
)
def test_spellings(text, schedule, canonical):
    assert Schedule.parse(text) == schedule
    assert str(schedule) == canonical
    assert Schedule.parse(canonical) == schedule


@pytest.mark.parametrize(
    "text", ["", "fast", "1e-3:", ":1", "1:2:3", "1*0.1", "1*0.1/0.5", "1*2/x", "1:0*0.1/3", "1 2"]
)
def test_other_texts(text):
    with pytest.raises(ValueError, match="is none of VALUE, VALUE:END and VALUE"):
        Schedule.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0.1}, "a staircase needs the epochs between its stairs"),
        ({"factor": 0.1, "every": 2, "end": 0.0}, "a staircase or linear, not both"),
        ({"factor": 2.0, "every": 2}, r"the factor of a staircase must be in \(0, 1\]"),
        ({"factor": 0.0, "every": 2}, r"the factor of a staircase must be in \(0, 1\]"),
        ({"factor": math.nan, "every": 2}, r"the factor of a staircase must be in \(0, 1\]"),
        ({"factor": 0.1, "every": 0}, "a stair must be at least 1 epoch long"),
    ],
)
def test_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(1e-3, **options)


@pytest.mark.parametrize("initial", [None, 0.25])
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(0.5, end=0.125), lambda x: optax.linear_schedule(x, 0.125, 40)),
        (
            Schedule(0.5, factor=0.5, every=1),
            lambda x: optax.exponential_decay(x, 10, 0.5, staircase=True),
        ),
    ],
    ids=["linear", "staircase"],
)
def test_values_are_those_of_optax(schedule, expected, initial):
    """Four epochs of ten steps; a given first value replaces the schedule's own."""
    ours, theirs = schedule.over(4, 10, initial), expected(initial or 0.5)
    for step in (0, 1, 9, 10, 19, 20, 39, 40, 99):
        np.testing.assert_array_equal(ours(step), theirs(step))


def test_a_constant_is_a_number():
    assert Schedule(0.5).over(4, 10) == 0.5
    assert Schedule(0.5).over(4, 10, 0.25) == 0.25


@pytest.mark.parametrize("schedule", [Schedule(1.0, end=0.0), Schedule(1.0, factor=0.5, every=1)])
def test_the_first_value_can_be_traced(schedule):
    at = jax.vmap(lambda initial: schedule.over(4, 10, initial)(15))
    whole = at(np.array([1.0, 2.0], np.float32))
    np.testing.assert_allclose(whole, [schedule.over(4, 10, x)(15) for x in (1.0, 2.0)])


def test_more_steps_than_optax_can_count():
    schedule = Schedule(1.0, end=0.0).over(10**6, 10**6)
    assert 0.99 < float(schedule(10**6)) <= 1
