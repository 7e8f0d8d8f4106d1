"""Strict JSON, written whole or not at all."""

import datetime
import json
import math
import os
import pathlib
import platform
import re
import tempfile
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from dcasgd_jax import files
from dcasgd_jax.commands import errors

PACKAGES = ("dcasgd-jax", "jax", "jaxlib", "numpy", "optax", "scikit-learn", "matplotlib", "rich")

_NUMBERS_ON_LINES = re.compile(r"\[\n\s*((?:(?:-?\d[-+.\deE]*|null),?\s*)+?)\s*\]")


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes `content`; numbers that are not finite, which JSON does not have, become null."""
    text = json.dumps(finite_or_none(content), indent=1, allow_nan=False, ensure_ascii=False)
    # One line per list of numbers, not one per number.
    text = _NUMBERS_ON_LINES.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
    with files.replacing(path) as stream:
        stream.write(f"{text}\n".encode())


def read_json(path: str | os.PathLike) -> Any:
    """What `write_json` wrote."""
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def prepare_folder(out: pathlib.Path, *names: str) -> None:
    """Makes the folder of the option `--out`, and proves that files `names` can be written there.

    Raises:
      UsageError: If they cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise errors.UsageError(
            f"--out {out}: cannot write there ({error.strerror}); choose another folder"
        ) from None
    for name in names:
        if (out / name).is_dir():
            raise errors.UsageError(f"--out {out}: {name} in it is a folder; choose another folder")


def finite_or_none(content: Any) -> Any:
    """The same content with None for every number that is not finite."""
    if isinstance(content, dict):
        return {key: finite_or_none(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite_or_none(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def header(program: str, command: Sequence[str], settings: dict[str, Any]) -> dict[str, Any]:
    """How the results of a call begin."""
    return {
        "program": program,
        "command": list(command),
        "date": now(),
        "versions": versions(),
        "settings": settings,
    }


def now() -> str:
    """Date and time, as everywhere."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def today() -> str:
    """The date, as everywhere."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def versions() -> dict[str, str]:
    """Versions of everything that the numbers may depend on, and the device."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    found |= {name: metadata.version(name) for name in PACKAGES}
    return found | {"device": str(jax.devices()[0].device_kind)}
