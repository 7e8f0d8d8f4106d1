"""Calls of the program inside the test process."""

import contextlib
import io
import json
import pathlib
from typing import NamedTuple

from dcasgd_jax.__main__ import main

TINY = [
    "--model",
    "softmax",
    "--workers",
    "4",
    "--updates",
    "64",
    "--batch-size",
    "4",
    "--seeds",
    "2",
]


class Result(NamedTuple):
    code: int
    out: str
    err: str


def call(*arguments, program=main) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program([str(argument) for argument in arguments])
    return Result(code, out.getvalue(), err.getvalue())


def compare(folder: pathlib.Path, *arguments) -> tuple[Result, dict]:
    """A tiny comparison that must succeed, and its JSON."""
    result = call("compare", *TINY, "--out", folder, *arguments)
    assert result.code == 0, result.err
    return result, strict_json(folder / "compare.json")


def strict_json(path: pathlib.Path):
    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def runs_of(content: dict, method: str) -> list[dict]:
    return [run for run in content["runs"] if run["method"] == method]
