"""Checks of arguments that every floor shares: counts, and values of the right kind."""

from collections.abc import Callable
from typing import Any

import numpy as np


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """An integer argument, of Python's or NumPy's, as Python's.

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
    message = f"{name} must be an integer >= {least}, got {value!r}."
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(message)
    if value < least:
        raise ValueError(message)
    return int(value)


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
