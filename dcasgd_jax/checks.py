"""Checks of numbers, and of arguments of the right kind; without JAX.

Hyperparameters are checked only when they are plain numbers, so that `optax.inject_hyperparams`
can put traced arrays in their place.
"""

import math
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def check_non_negative(name: str, value, *, finite: bool = True) -> None:
    """Raises ValueError if the plain number `value` is negative, NaN or (if `finite`) infinite."""
    if not _is_plain(name, value):
        return
    if not float(value) >= 0 or (finite and math.isinf(value)):
        raise ValueError(f"{name} must be a {'finite ' * finite}number >= 0, got {value!r}.")


def check_fraction(name: str, value) -> None:
    """Raises ValueError if the plain number `value` lies outside [0, 1)."""
    if _is_plain(name, value) and not 0 <= float(value) < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}.")


def check_positive(name: str, value, *, most: float = math.inf) -> None:
    """Raises ValueError if the plain number `value` is not finite, not > 0 or above `most`."""
    if not _is_plain(name, value):
        return
    if not 0 < float(value) <= most or math.isinf(float(value)):
        limit = "" if most == math.inf else f" and <= {most:g}"
        raise ValueError(f"{name} must be a finite number > 0{limit}, got {value!r}.")


def _is_plain(name: str, value) -> bool:
    """Whether a number is there to be checked: None is none, and arrays may be traced.

    Raises:
      TypeError: If `value` is no number at all.
    """
    if value is None or (hasattr(value, "dtype") and not isinstance(value, numbers.Real)):
        return False
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    return True


def check_rule(rule) -> None:
    """Raises ValueError if `rule` cannot be called with a staleness."""
    if not callable(rule):
        raise ValueError(f"rule must be a function of the staleness, got {rule!r}.")


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """An integer argument, of Python, NumPy or an array of rank 0, as Python's.

    Args:
      name: What the user calls it.
      value: What was given.
      least: The smallest value allowed.

    Raises:
      TypeError: If it is no integer; a bool is none.
      ValueError: If it is too small.

    Example:
      >>> from dcasgd_jax.checks import check_count
      >>> check_count("num_workers", 4)
      4
    """
    try:
        count = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:  # also of a traced array
        count = None
    message = f"{name} must be an integer >= {least}, got {value!r}"
    if count is None:
        injected = f"; under optax.inject_hyperparams pass static_args=({name!r},)"
        raise TypeError(f"{message}{injected if hasattr(value, 'aval') else ''}.")
    if count < least:
        raise ValueError(f"{message}.")
    return count


def check_counts(name: str, value: Any) -> int | tuple[int, ...]:
    """A count ≥ 1 for all workers, or a sequence with one for each, as a tuple.

    Raises:
      TypeError: For what is neither.
      ValueError: For counts below 1, or none at all.
    """
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str):
        return check_count(name, value)
    counts = tuple(check_count(f"{name}[{m}]", count) for m, count in enumerate(value))
    if not counts:
        raise ValueError(f"{name} is empty: give one number for each worker.")
    return counts


def check_length(name: str, value: Any, num_workers: int) -> None:
    """Raises ValueError if `value` is a tuple with one entry per worker of another number."""
    if isinstance(value, tuple) and len(value) != num_workers:
        raise ValueError(f"{name} has {len(value)} values, but there are {num_workers} workers.")


def check_fields(owner: Any, **least: int) -> None:
    """`check_count` of fields of a frozen dataclass, which become integers of Python's.

    NumPy's small ones would overflow in the arithmetic to come.

    Args:
      owner: Whose fields.
      **least: The smallest value of each, by name.
    """
    for name, smallest in least.items():
        value = check_count(f"{type(owner).__name__}.{name}", getattr(owner, name), least=smallest)
        object.__setattr__(owner, name, value)


def check_kind(
    name: str, value: Any, is_one: Callable[[Any], bool], wanted: str, hint: str = ""
) -> None:
    """Raises TypeError unless `is_one(value)`.

    Args:
      name: What the user calls the argument.
      value: What was given.
      is_one: Whether a value is of the kind that is wanted.
      wanted: That kind, in words.
      hint: What to do about this value, where "pass that kind" is not all.

    Example:
      >>> from dcasgd_jax.checks import check_kind
      >>> check_kind("names", ["a"], lambda value: isinstance(value, list), "a list")
    """
    if not is_one(value):
        raise TypeError(f"{name} must be {wanted}, got {_describe(value)}.{hint and ' '}{hint}")


def is_number(value: object) -> bool:
    """Whether this is a real number of Python's or NumPy's; a bool is none."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def has_methods(*names: str) -> Callable[[Any], bool]:
    """Whether a value, which is no class, has methods of these names."""
    return lambda value: (
        not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in names)
    )


def _describe(value: Any) -> str:
    """What was given, in words, and how it would be used right where that is plain."""
    name = getattr(value, "__name__", None)
    if isinstance(value, type):
        return f"the class {name} itself: call it, {name}(...)"
    if callable(value) and name is not None:
        return f"the function {name} itself: call it, {name}(...)"
    text = repr(value)
    return text if len(text) <= 80 else f"an object of type {type(value).__name__}"
