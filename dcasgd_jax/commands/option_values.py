"""Values of options that are more than a number: of a law, of some methods."""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from dcasgd_jax.commands import errors, methods, settings

Values = dict[str, tuple[float, ...]]  # method -> values given on the command line


def make_law(name: str, assignments: Sequence[str], num_workers: int) -> Any:
    """The law `name` with parameters from texts `NAME=VALUE[,VALUE...]`.

    Raises:
      UsageError: If a text is no such thing, or the law refuses its value.
    """
    law = settings.LAWS[name]
    valid = [field.name for field in dataclasses.fields(law)]
    parameters = {}
    for text in assignments:
        key, equals, values = text.partition("=")
        if not equals or key not in valid:
            raise errors.UsageError(
                f"--law-param {text}: write NAME=VALUE; {name} has {' and '.join(valid)}"
            )
        numbers = _numbers("--law-param", text, values)
        parameters[key] = numbers[0] if len(numbers) == 1 else numbers
    try:
        made = law(**parameters)
        made.check(num_workers)
    except ValueError as error:
        raise errors.UsageError(f"--law-param: {error}") from None
    return made


def momentum(text: str) -> float | None:
    """A type of an option: μ in [0, 1), `None` for 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in [0, 1)")
    return value or None


def given_values(
    option: str, texts: Sequence[str], takers: Sequence[methods.Method], tune: bool
) -> Values:
    """Method -> values; a value for one method goes before one for all, a later before an earlier.

    Raises:
      UsageError: If a text is no `[METHOD=]VALUE[,VALUE...]`, or its method takes no such value.
    """
    names = [method.name for method in takers]
    for_all, for_one = {}, {}
    for text in texts:
        name, equals, values = text.rpartition("=")
        if not names:
            raise errors.UsageError(
                f"{option} {text}: none of --methods has a lambda0, leave it out"
            )
        if equals and name not in names:
            why = _why_not(name, option)
            raise errors.UsageError(f"{option} {text}: {why}; use {', '.join(names)}")
        numbers = _numbers(option, text, values)
        if len(numbers) > 1 and not tune:
            raise errors.UsageError(f"{option} {text}: give one value, or several with --tune")
        for number in numbers:
            if not math.isfinite(number) or number < 0 or (option != "--lambda0" and not number):
                least = ">= 0" if option == "--lambda0" else "> 0"
                raise errors.UsageError(f"{option} {text}: must be finite and {least}")
        (for_one if equals else for_all).update(
            dict.fromkeys([name] if equals else names, tuple(sorted(set(numbers))))
        )
    return for_all | for_one


def _why_not(name: str, option: str) -> str:
    """Why `option` cannot be given for the method `name`."""
    if name not in methods.METHODS:
        return f"{name!r} is no method"
    if option == "--lambda0" and not methods.METHODS[name].compensates:
        return f"{name} has no lambda0"
    return f"{name} is not among --methods"


def _numbers(option: str, text: str, values: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values.split(","))
    except ValueError:
        raise errors.UsageError(
            f"{option} {text}: {values!r} is not a number or numbers separated by commas"
        ) from None
