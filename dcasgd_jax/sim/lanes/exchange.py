"""What devices send each other, read off the text of a compiled program."""

import math
import re
from typing import NamedTuple

_COLLECTIVES = (
    "all-to-all",
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?[)}\]]) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+)(\d+)?\w*\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Exchange(NamedTuple):
    """Bytes that the devices receive in a mean wave, summed over the devices."""

    all_to_all: float
    all_gather: float
    all_reduce: float
    reduce_scatter: float
    collective_permute: float
    wave_size: float  # events in a mean wave

    @property
    def total(self) -> float:
        """Bytes per wave in all."""
        return sum(self[: len(_COLLECTIVES)])


def measure(text: str, num_devices: int, wave_size: float) -> Exchange:
    """The exchange of a compiled program that loops over waves, and in each over its events.

    Args:
      text: HLO of the compiled program, as one of `num_devices` devices runs it.
      num_devices: Devices that run it.
      wave_size: Events in a mean wave.

    Returns:
      What the outputs of all collectives in the loops add up to.

    Example:
      >>> from dcasgd_jax.sim.lanes.exchange import measure
      >>> text = '''
      ... ENTRY %main (p: f32[2,4]) -> f32[2,4] {
      ...   ROOT %w = f32[2,4]{1,0} while(%p), condition=%c, body=%wave
      ... }
      ...
      ... %wave (q: f32[2,4]) -> f32[2,4] {
      ...   ROOT %a = f32[2,4]{1,0} all-to-all(%q), dimensions={0}
      ... }
      ... '''
      >>> measure(text, num_devices=2, wave_size=2.0).total
      64.0
    """
    received: dict[str, float] = dict.fromkeys(_COLLECTIVES, 0.0)
    for name, depth in loop_depths(text):
        if depth == 0:
            continue  # once per chunk of many waves
        for line in computations(text)[name]:
            kind, size = _received(line)
            if kind is not None:
                received[kind] += size * num_devices * (1 if depth == 1 else wave_size)
    return Exchange(*received.values(), wave_size=wave_size)


def computations(text: str) -> dict[str, list[str]]:
    """The lines of every computation of an HLO text, by its name; the entry is "ENTRY"."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = found.setdefault("ENTRY" if line.startswith("ENTRY") else header[1], [])
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return found


def loop_depths(text: str) -> list[tuple[str, int]]:
    """Every call of a computation, as its name and the number of loops around it."""
    found = computations(text)
    visited = []
    waiting = [("ENTRY", 0)]
    while waiting:
        name, depth = waiting.pop()
        visited.append((name, depth))
        for line in found[name]:
            operation = _OPERATION.match(line)
            if operation is None or operation[2] in ("async-update", "async-done"):
                continue
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            inner = depth + (operation[2] == "while")
            waiting += [(each, inner) for each in called if each in found]
    return visited


def _received(line: str) -> tuple[str | None, int]:
    """The collective on a line and the bytes of its output."""
    operation = _OPERATION.match(line)
    if operation is None:
        return None, 0
    # Of an asynchronous pair only the end has nothing but the output as its type.
    kind = operation[2].removesuffix("-done")
    if kind not in _COLLECTIVES:
        return None, 0
    return kind, sum(_bytes(*array) for array in _ARRAY.findall(operation[1]))


def _bytes(kind: str, bits: str, shape: str) -> int:
    elements = math.prod(int(size) for size in shape.split(",") if size)
    return elements * (1 if kind == "pred" else math.ceil(int(bits or 8) / 8))
