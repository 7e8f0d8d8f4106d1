"""Studies on the digits: methods in one setting or in many, as tasks of the engine."""

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dcasgd_jax import extras
from dcasgd_jax.commands import (
    catalogue,
    kept,
    ledger,
    methods,
    report,
    runs,
    settings,
    study,
    terminal,
    values,
)

if TYPE_CHECKING:
    from rich.console import Console

Tried = Mapping[methods.Method, Sequence[methods.Hyperparameters]]
"""Method -> what is tried for it; a single configuration is taken as it is."""

VARIED = ("model", "workers", "law", "momentum")
"""In what the settings of a study may differ."""

_RUN: dict[str, kept.Kinds] = {
    "method": str, "seed": int, "learning_rate": kept.NUMBER, "lambda0": kept.NUMBER_OR_NONE,
}  # fmt: skip
_ENDED: dict[str, kept.Kinds] = dict.fromkeys(("train_loss", "test_error"), kept.NUMBER_OR_NONE)


def make(
    program: str,
    places: Sequence[tuple[settings.Setting, Tried]],
    num_seeds: int,
    *,
    curves: bool = False,
) -> study.Study:
    """Methods on the digits.

    Args:
      program: For messages.
      places: Settings that differ in what `VARIED` lists only, and what is tried in each.
      num_seeds: Fresh seeds.
      curves: For one setting: whether the runs keep their curves, and are repeated with nudged
        weights.
    """
    first, _ = places[0]
    shared = {name: v for name, v in first.describe().items() if curves or name not in VARIED}
    if not curves:  # they go with what is varied
        shared = {name: v for name, v in shared.items() if name not in ("updates", "law_params")}
        shared["updates"] = max(setting.num_pushes for setting, _ in places)
    tasks = [
        study.Task(
            place={**({} if curves else place_of(setting)), "method": method.name},
            tried=tried,
            train=functools.partial(
                runs.train_with_curves if curves else runs.train, setting, method
            ),
            tune=functools.partial(runs.train, setting, method),
            pushes=setting.num_pushes,
            programs=setting.name,
        )
        for setting, of_setting in places
        for method, tried in of_setting.items()
    ]
    return study.Study(
        program=program,
        settings=shared | report.fixed_numbers(),
        tasks=tasks,
        seeds=range(num_seeds),
        loss_of=runs.loss_of,
        check=check,
    )


def collect(
    program: str,
    arguments: argparse.Namespace,
    places: Callable[[argparse.Namespace], Sequence[tuple[settings.Setting, Tried]]],
) -> tuple["Console", list[ledger.Line], list[ledger.Line]]:
    """Runs what is missing, unless only a report is wanted.

    Args:
      program: For messages.
      arguments: Has `seeds`, `out` and `report_only`, and what `places` reads.
      places: Makes what `make` is given.

    Returns:
      Where to print, all runs, and all tunings.

    Raises:
      UsageError: If the options are wrong, a package is missing, `--out` cannot be written or
        holds results of other settings; before any training.
    """
    extras.require_packages("sklearn", "matplotlib", "rich", "pandas")
    console = terminal.make_console()
    values.check_seeds(arguments.seeds)
    if arguments.report_only:
        return console, *study.read_all(arguments.out, program, check)
    results = study.run(make(program, places(arguments), arguments.seeds), arguments.out, console)
    return console, results.runs(), results.tunings()


def place_of(setting: settings.Setting) -> dict[str, Any]:
    """What tells a setting from the others of a study."""
    described = setting.describe()
    return {name: described[name] for name in VARIED}


def methods_for(setting: settings.Setting) -> dict[str, methods.Method]:
    """All methods that there are for a setting, by name."""
    return catalogue.methods_for(setting.num_workers, setting.num_pushes, setting.momentum)


def check(line: ledger.Line) -> None:
    """Raises ValueError, in words, if a line is no run on the digits."""
    kept.check_fields(line["run"], _RUN)
    kept.check_fields(line, _ENDED)
