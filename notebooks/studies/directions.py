"""Do curvatures that know directions close the gap to sequential SGD, at its own learning rate?"""

import argparse
import dataclasses
from collections.abc import Sequence

import directions_report as report

from dcasgd_jax import digits
from dcasgd_jax.commands import (
    catalogue,
    command_line,
    defaults,
    digits_study,
    methods,
    options,
    settings,
    terminal,
    tuning,
    values,
)

PROGRAM = "directions.py"
MOMENTUM = 0.9
AT_SEQUENTIAL_RATE = {"rotated": (1.0, 4.0), "rows": (1.0,)}  # the λ0 that are tried
TUNED = ("sgd", "asgd", "dcasgd-capped", "capped-abs", "dana-dc", "rotated")
CELLS = (("gamma", None), ("exponential", None), ("gamma", MOMENTUM))
PICTURE = "directions.png"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this program."""
    parser.description = (
        "Trains on scikit-learn's digits: sequential SGD, plain asynchronous SGD and the best "
        "diagonal curvatures, each tuned with the same effort on seeds of its own, against "
        "curvatures that know directions with the learning rate of sequential SGD as it is, and "
        "also tuned. Without momentum, also with exponential times, and with momentum. What is "
        "finished is kept in --out: call it again to go on."
    )
    options.add(parser, "--model", nargs="+", default=list(digits.MODELS))
    several = {"nargs": "+", "type": values.integer_from(2)}
    options.add(parser, "--workers", **several, default=[4, 8, 16, 32], help="numbers of workers")
    options.add_study(parser, "directions-results")


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs what is missing, prints the tables and saves a picture.

    Raises:
      UsageError: If the options are wrong, a package is missing, `--out` cannot be written or
        holds results of other settings; before any training.
    """
    del command  # every option that matters is in the settings and the lines
    console, lines, _ = digits_study.collect(PROGRAM, arguments, _places)
    report.print_tables(console, lines)
    report.save_picture(arguments.out / PICTURE, lines)
    terminal.print_text(console, f"Saved {arguments.out / PICTURE}.", wrap=False)


def sequential_rate(model: str, momentum: float | None) -> float:
    """The rate that was tuned for sequential SGD, the same in the long run with momentum."""
    found = defaults.default_hyperparameters(model, "sgd")
    assert found is not None
    return float(f"{found.learning_rate * (1 - (momentum or 0.0)):.4g}")


def at_sequential_rate(method: methods.Method, lambda0: float) -> methods.Method:
    """A method with one setting, under a name of its own."""
    return dataclasses.replace(
        method,
        name=f"{method.name}-{lambda0:g}",
        title=f"{method.title}, λ0 = {lambda0:g}, sequential SGD's rate",
        numbers=(lambda0,),
    )


def _places(arguments: argparse.Namespace) -> list[tuple[settings.Setting, digits_study.Tried]]:
    """All tasks in all clusters, and what is tried in each."""
    return [
        (setting, _tried(setting))
        for model in arguments.model
        for law, momentum in CELLS
        for m in arguments.workers
        for setting in [
            settings.Setting(
                model=model,
                num_workers=m,
                law=settings.LAWS[law](),
                num_pushes=values.budget(arguments.updates, m),
                momentum=momentum,
            )
        ]
    ]


def _tried(setting: settings.Setting) -> digits_study.Tried:
    there = catalogue.methods_for(setting.num_workers, setting.num_pushes, setting.momentum)
    rate = sequential_rate(setting.model, setting.momentum)
    tuned = [there[name] for name in TUNED if name in there]
    return {
        **{m: tuning.configurations(m, setting.model, setting.momentum) for m in tuned},
        **{
            at_sequential_rate(there[name], lambda0): [methods.Hyperparameters(rate, lambda0)]
            for name, lambda0s in AT_SEQUENTIAL_RATE.items()
            for lambda0 in lambda0s
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return command_line.run_program(PROGRAM, add_options, run, argv)


if __name__ == "__main__":
    command_line.leave(main())
