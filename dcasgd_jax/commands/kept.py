"""What a folder holds from calls before this one: read and compared, or refused in a line."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from dcasgd_jax.commands import errors, records

Kinds = type | tuple[type, ...]

NUMBER = (int, float)
NUMBER_OR_NONE = (int, float, type(None))

LOCK = ".lock"


def read(path: pathlib.Path, command: str, fields: Mapping[str, Kinds]) -> dict[str, Any]:
    """The JSON object that a program has written.

    Args:
      path: The file.
      command: Name of the program, with its subcommand.
      fields: What the object must have, by name.

    Raises:
      UsageError: If the file is damaged or another; names it, and the line if it is no JSON.
    """
    try:
        content = records.read_json(path)
        check_fields(content, fields)
    except (OSError, ValueError, RecursionError) as error:
        of_json = isinstance(error, json.JSONDecodeError)
        why = f"line {error.lineno}: {error.msg}" if of_json else error
        raise errors.UsageError(
            f"{path} is no result of {command}, or damaged ({why}): move it away, or choose "
            "another --out"
        ) from None
    return content


def check_fields(content: Any, fields: Mapping[str, Kinds]) -> None:
    """Raises ValueError, in words, if an object lacks a field or holds another kind of value."""
    if not isinstance(content, dict):
        raise ValueError(f"{_text(content)} is no JSON object")
    for name, kinds in fields.items():
        if name not in content:
            raise ValueError(f"there is no {name}")
        if not isinstance(content[name], kinds):
            raise ValueError(f"{name} is {_text(content[name])}")


def check_same(what: str, before: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuses to mix results of other settings with those that are kept.

    Args:
      what: Begins the message, such as "the runs in FOLDER have".
      before: The settings of those that are kept.
      present: The settings of this call.

    Raises:
      UsageError: Names the first setting that differs.
    """
    # As JSON gives them back, so that tuples and lists are one.
    before, present = (
        json.loads(json.dumps(records.finite_or_none(dict(each)))) for each in (before, present)
    )
    for name in dict.fromkeys([*present, *before]):
        if before.get(name) != present.get(name):
            raise errors.UsageError(
                f"{what} {name} {_text(before.get(name))}, not {_text(present.get(name))}: choose "
                "another --out, or the same settings"
            )


def _text(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) < 200 else f"{text[:200]}..."
