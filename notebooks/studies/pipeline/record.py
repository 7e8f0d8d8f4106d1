"""`shakespeare.json`: every finished run, rewritten whole after each few of them."""

import pathlib
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from dcasgd_jax.commands import kept, records
from pipeline import methods, optimizers, settings, training

RESULTS = "shakespeare.json"

Line = dict[str, Any]

_FIELDS: dict[str, kept.Kinds] = {
    "runs": list, "data": dict, "settings": dict,
    "seconds": kept.NUMBER, "cpu_seconds": kept.NUMBER,
}  # fmt: skip


class Record:
    """The runs in a folder.

    Args:
      out: The folder.
      setting: Model and budget of all of them.
      text: Where their text comes from, as `Text.describe` says it.

    Raises:
      UsageError: If the folder holds something else, or runs of another setting or text.
    """

    def __init__(self, out: pathlib.Path, setting: settings.Setting, text: dict[str, Any]):
        self.path = out / RESULTS
        self._fixed = {"data": text, "settings": setting.describe()}
        self._clocks = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
        self._starts = {name: clock() for name, clock in self._clocks.items()}
        self._before = dict.fromkeys(self._clocks, 0.0)
        self.lines: dict[settings.Run, Line] = {}
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            content = kept.read(self.path, "shakespeare.py", _FIELDS)
            self.lines = {_run_of(line): line for line in content["runs"]}
        except (ValueError, TypeError) as error:
            raise kept.refusal(self.path, "shakespeare.py", f"in its runs: {error}") from None
        self._before = {name: float(content[name]) for name in self._clocks}
        for group, values in self._fixed.items():
            kept.check_same(f"the runs in {self.path} have {group}", content[group], values)

    @property
    def seconds(self) -> dict[str, float]:
        """On the wall and of the processors, of all calls that worked on this folder."""
        return {
            name: round(self._before[name] + clock() - self._starts[name], 1)
            for name, clock in self._clocks.items()
        }

    def add(self, runs: Sequence[settings.Run], curves: Sequence[training.Curves]) -> None:
        """Keeps finished runs, on the disk when this returns."""
        for run, curve in zip(runs, curves, strict=True):
            numbers = {name: _rounded(values) for name, values in curve._asdict().items()}
            # As JSON gives them back, so that a resumed call chooses as an uninterrupted one.
            self.lines[run] = records.finite_or_none(run._asdict() | numbers)
        self.save()

    def save(self, **more: Any) -> None:
        """Writes everything, and `more`."""
        found = records.versions() | {"flax": metadata.version("flax")}
        content = {
            "date": records.today(),
            **self.seconds,
            "versions": found,
            **self._fixed,
            "tuning": {
                "seeds": list(settings.TUNING_SEEDS),
                "chosen_on": "fewest diverged runs, then the mean last validation loss",
                "configurations": {
                    name: {
                        "learning_rates": {
                            optimizer: methods.rates_of(optimizer, name)
                            for optimizer in optimizers.OPTIMIZERS
                        },
                        "lambda0_max_pull": method.strengths,
                    }
                    for name, method in methods.METHODS.items()
                },
            },
            **more,
            "runs": list(self.lines.values()),
        }
        records.write_json(self.path, content)


def diverged(line: Line) -> bool:
    """Whether the last validation loss is not finite, or not below the first."""
    first, last = line["validation_loss"][0], line["validation_loss"][-1]
    return last is None or last >= first


def _run_of(line: Line) -> settings.Run:
    """Raises ValueError or TypeError for a line that is none of ours."""
    kept.check_fields(line, dict.fromkeys(settings.Run._fields, object))
    kept.check_fields(line, dict.fromkeys(training.Curves._fields, list))
    if not line["train_loss"] or len(line["validation_loss"]) != len(line["train_loss"]) + 1:
        raise ValueError("the curves of a run are not of one length")
    return settings.Run(**{name: line[name] for name in settings.Run._fields})


def _rounded(losses: Any) -> list[float]:
    return [float(f"{loss:.5g}") for loss in losses]
