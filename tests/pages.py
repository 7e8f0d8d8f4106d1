"""Pages of the documentation taken apart: blocks of code, what they need, what they print."""

import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted(
    path
    for path in [*(ROOT / "notebooks").rglob("*.md"), ROOT / "CONTRIBUTING.md"]
    if ".ipynb_checkpoints" not in path.parts
)
_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>needs|not run): (?P<packages>[\w, .-]+) -->\n\n?)?"
    r"^```(?P<language>python|bash)\n(?P<code>.*?)^```$"
    r"(?:\n\n```text\n(?P<output>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A fenced block."""

    language: str
    code: str
    packages: tuple[str, ...]  # that must be installed for it
    is_run: bool
    output: str | None  # what the page says it prints
    line: int


def blocks(path: pathlib.Path, language: str = "python") -> Iterator[Block]:
    """The blocks of a page in one language, from top to bottom."""
    text = path.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        packages = re.split(r",\s*", found["packages"]) if found["packages"] else []
        line = text.count("\n", 0, found.start("code")) + 1
        is_run = found["mark"] != "not run"
        block = Block(
            found["language"], found["code"], tuple(packages), is_run, found["output"], line
        )
        if block.language == language:
            yield block


def prints_the_same(one: str, other: str) -> bool:
    """The same words, and numbers that differ by no more than 2 % or a unit of the last digit."""
    number = re.compile(r"(-?\d+\.?\d*(?:e-?\d+)?)")
    first, second = (number.split(" ".join(text.split())) for text in (one, other))
    if first[::2] != second[::2]:
        return False
    return all(_close(*pair) for pair in zip(first[1::2], second[1::2], strict=True))


def _close(one: str, other: str) -> bool:
    decimals = min(len(text.partition(".")[2]) for text in (one, other))
    slack = max(0.02 * abs(float(other)), 1.01 * 10.0**-decimals if decimals else 0.0)
    return abs(float(one) - float(other)) <= slack
