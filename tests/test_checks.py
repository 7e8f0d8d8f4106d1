"""The ground floor: counts, and values of the right kind."""

import numpy as np
import pytest

from dcasgd_jax import checks


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3)])
def test_counts_become_integers_of_python(value):
    assert type(checks.check_count("n", value, least=3)) is int
    assert checks.check_count("n", value) == 3


@pytest.mark.parametrize("value", [2.0, "2", True, np.bool_(True), None, np.float32(2), [2]])
def test_what_is_no_integer_is_a_type_error(value):
    with pytest.raises(TypeError, match=r"^n must be an integer >= 0, got "):
        checks.check_count("n", value, least=0)


def test_an_integer_that_is_too_small_is_a_value_error():
    with pytest.raises(ValueError, match=r"^n must be an integer >= 1, got 0\.$"):
        checks.check_count("n", 0)


class Runner:
    def run(self):
        """Does nothing."""


def some_function():
    """Does nothing."""


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (Runner, r"the class Runner itself: call it, Runner\(\.\.\.\)"),
        (some_function, r"the function some_function itself: call it, some_function\(\.\.\.\)"),
        ("text", "'text'"),
        (list(range(100)), "an object of type list"),
    ],
)
def test_what_was_given_is_said_in_words(value, given):
    with pytest.raises(TypeError, match=f"^r must be a runner, got {given}. Do that."):
        checks.check_kind("r", value, checks.has_methods("run"), "a runner", "Do that.")
    checks.check_kind("r", Runner(), checks.has_methods("run"), "a runner")
