"""What the texts of options mean: types, laws, and values for all methods or for one."""

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from dcasgd_jax import digits
from dcasgd_jax.commands import errors, methods, settings, study

Values = dict[str, tuple[float, ...]]  # method -> values given on the command line


def integer_from(least: int) -> Callable[[str], int]:
    """A type of an option."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= {least}")
        return value

    return parse


def number_from(least: float, *, below: float = math.inf) -> Callable[[str], float]:
    """A type of an option: in [least, below)."""

    def parse(text: str) -> float:
        value = _number(text)
        if not least <= value < below:
            range_text = f">= {least:g}" if below == math.inf else f"in [{least:g}, {below:g})"
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number {range_text}")
        return value

    return parse


def positive(text: str) -> float:
    """A type of an option."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number > 0")
    return value


def momentum(text: str) -> float | None:
    """A type of an option: μ in [0, 1), `None` for 0."""
    return number_from(0, below=1)(text) or None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def check_seeds(count: int) -> None:
    """Raises UsageError if there are more seeds than before those of tuning."""
    most = study.TUNING_SEEDS[0]
    if count > most:
        raise errors.UsageError(
            f"--seeds {count}: seeds from {most} on are for tuning, use at most {most}"
        )


def check_batch(size: int) -> None:
    """Raises UsageError if there are fewer training images than a batch takes."""
    if size > digits.NUM_TRAIN:
        raise errors.UsageError(
            f"--batch-size {size}: there are only {digits.NUM_TRAIN} training images, use fewer"
        )


def budget(updates: int, workers: int) -> int:
    """Pushes in all: whole rounds of all workers, enough for every step of the learning rate.

    Raises:
      UsageError: If there are too few `updates`.
    """
    least = settings.MIN_ROUNDS * workers
    if updates < least:
        raise errors.UsageError(
            f"--updates {updates}: use at least {least} with {workers} workers, "
            f"{settings.MIN_ROUNDS} pushes each"
        )
    return updates - updates % workers


def make_law(name: str, assignments: Sequence[str], num_workers: int) -> Any:
    """The law `name` with parameters from texts `NAME=VALUE[,VALUE...]`.

    Raises:
      UsageError: If a text is no such thing, or the law refuses its value.
    """
    law = settings.LAWS[name]
    valid = [field.name for field in dataclasses.fields(law)]
    parameters = {}
    for text in assignments:
        key, equals, given = text.partition("=")
        if not equals or key not in valid:
            raise errors.UsageError(
                f"--law-param {text}: write NAME=VALUE; {name} has {' and '.join(valid)}"
            )
        numbers = _numbers("--law-param", text, given)
        parameters[key] = numbers[0] if len(numbers) == 1 else numbers
    try:
        made = law(**parameters)
        made.check(num_workers)
    except ValueError as error:
        raise errors.UsageError(f"--law-param: {error}") from None
    return made


def of_methods(
    option: str, texts: Sequence[str], chosen: Sequence[methods.Method], *, several: bool
) -> Values:
    """Method -> values; a value for one method goes before one for all, a later before an earlier.

    Args:
      option: `--learning-rate`, or `--lambda0`, which only methods that compensate take.
      texts: `[METHOD=]VALUE[,VALUE...]`.
      chosen: The methods.
      several: Whether a method may be given several values.

    Raises:
      UsageError: If a text is no such thing, or its method takes no such value.
    """
    takes = lambda method: option != "--lambda0" or method.compensates
    names = [method.name for method in chosen if takes(method)]
    for_all, for_one = {}, {}
    for text in texts:
        name, equals, given = text.rpartition("=")
        if not names:
            raise errors.UsageError(
                f"{option} {text}: none of --methods has a lambda0, leave it out"
            )
        if equals and name not in names:
            why = f"{name} is not among --methods"
            if name in [method.name for method in chosen]:
                why = f"{name} has no lambda0"
            raise errors.UsageError(f"{option} {text}: {why}; use {', '.join(names)}")
        numbers = _numbers(option, text, given)
        if len(numbers) > 1 and not several:
            raise errors.UsageError(f"{option} {text}: give one value, or several with --tune")
        for number in numbers:
            if not math.isfinite(number) or number < 0 or (option != "--lambda0" and not number):
                least = ">= 0" if option == "--lambda0" else "> 0"
                raise errors.UsageError(f"{option} {text}: must be finite and {least}")
        (for_one if equals else for_all).update(
            dict.fromkeys([name] if equals else names, tuple(sorted(set(numbers))))
        )
    return for_all | for_one


def _numbers(option: str, text: str, given: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in given.split(","))
    except ValueError:
        raise errors.UsageError(
            f"{option} {text}: {given!r} is not a number or numbers separated by commas"
        ) from None
