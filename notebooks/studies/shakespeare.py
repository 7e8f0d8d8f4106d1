"""A transformer in an asynchronous pipeline; a program that needs the extra `reproduce`."""

import argparse
import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
from pipeline import delays, methods, options, pictures, settings, summary, tables, training

from dcasgd_jax import extras
from dcasgd_jax.commands import command_line, kept, ledger, records, study, terminal

PROGRAM = "shakespeare.py"
PICTURE = "shakespeare.png"

add_options = options.add_options

_RUN: dict[str, kept.Kinds] = {
    "optimizer": str, "delay": str, "method": str, "learning_rate": kept.NUMBER, "seed": int,
    "lambda0": kept.NUMBER_OR_NONE, "max_pull": kept.NUMBER_OR_NONE,
}  # fmt: skip


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs what is missing, prints the tables and saves them with a picture.

    Raises:
      UsageError: If the options or the text are wrong, a package is missing, or `--out` cannot be
        written or holds runs of other settings; before any training.
    """
    del command  # names the user's folders; every option that matters is in the settings
    extras.require_packages("sklearn", "matplotlib", "rich", "pandas", extra="reproduce")
    console, out = terminal.make_console(), arguments.out
    if arguments.report_only:
        lines, _ = study.read_all(out, PROGRAM, check)
        lines = [line for line in lines if line["run"]["seed"] not in study.TUNING_SEEDS]
    else:
        job = options.make_job(arguments)
        extras.require_packages("flax", extra="reproduce")
        lines = study.run(make_study(job), out, console).runs()
    saved = kept.read(out / ledger.SETTINGS, PROGRAM, {"width": int, "vocabulary": int})
    fields = [field.name for field in dataclasses.fields(settings.Setting)]
    setting = settings.Setting(**{name: saved[name] for name in fields})
    found = summary.summarise(lines, setting.tokens)
    tables.print_all(console, found)
    pictures.save(out / PICTURE, lines, found, setting, 1.1 * math.log(saved["vocabulary"]))
    terminal.print_text(console, f"Saved {out / PICTURE}.", wrap=False)


def make_study(job: options.Job) -> study.Study:
    """Every method is tuned for every delay; the reference of an optimizer comes before them."""
    workload = training.Workload(job.setting, job.data)
    cells = [
        (optimizer, *pair)
        for optimizer in job.optimizers
        for pair in [
            (delays.REFERENCE, methods.REFERENCE),
            *itertools.product(job.delays, job.methods),
        ]
    ]
    return study.Study(
        program=PROGRAM,
        settings=job.setting.describe() | job.data.describe(),
        tasks=[
            study.Task(
                place=dict(zip(("optimizer", "delay", "method"), cell, strict=True)),
                tried=methods.configurations(cell[0], cell[2]),
                train=functools.partial(training.train, workload, *cell),
                pushes=1,
            )
            for cell in cells
        ],
        seeds=range(job.num_seeds),
        loss_of=loss_of,
        check=check,
        tuning_seeds=study.TUNING_SEEDS[:2],
    )


def loss_of(outcome: study.Outcome) -> float:
    """The last validation loss; nan if the run diverged."""
    outcome = records.finite_or_none(outcome)
    return math.nan if summary.diverged(outcome) else outcome["validation_loss"][-1]


def check(line: Any) -> None:
    """Raises ValueError, in words, if a line is no run of this program."""
    kept.check_fields(line["run"], _RUN)
    kept.check_fields(line, dict.fromkeys(training.Curves._fields, list))
    if not line["train_loss"] or len(line["validation_loss"]) != len(line["train_loss"]) + 1:
        raise ValueError("its curves are not of one length")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    # Else an interrupt finds the device at work, and the interpreter ends in a crash.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return command_line.run_program(PROGRAM, add_options, run, argv)


if __name__ == "__main__":
    command_line.leave(main())
