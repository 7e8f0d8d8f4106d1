"""A small transformer that workers train without waiting, with SGD and with Adam: what helps?"""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import characters
import jax
import numpy as np
import optax
import transformer_methods as methods
import transformer_report as report

from dcasgd_jax import extras, sim
from dcasgd_jax.commands import command_line, errors, kept, options, study, terminal, values

PROGRAM = "transformer.py"
PICTURE = "transformer.png"
EVALUATIONS = 16

_RUN: dict[str, kept.Kinds] = {
    "workers": int, "method": str, "seed": int,
    "learning_rate": kept.NUMBER, "lambda0": kept.NUMBER_OR_NONE,
}  # fmt: skip
_ENDED: dict[str, kept.Kinds] = {
    "validation_loss": list, "tempered_loss": kept.NUMBER_OR_NONE,
    "last_loss": kept.NUMBER_OR_NONE,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting(characters.Setting):
    """What all runs of a folder share."""

    updates: int = 1024

    @property
    def terms(self) -> int:
        """Of the mean that a gradient is: predicted characters."""
        return self.batch_size * self.context

    def describe(self) -> dict[str, Any]:
        """In JSON's types, with everything that no option changes."""
        return {
            **dataclasses.asdict(self),
            "heads": characters.HEADS,
            "law": "gamma",
            "warm_up": methods.WARM_UP,
            "evaluations": EVALUATIONS,
            "validation_windows": characters.VALIDATION_WINDOWS,
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this program."""
    parser.description = (
        "Trains a small transformer on the characters of a text with workers that do not wait for "
        "each other, with SGD and with Adam. Every method is tuned with equal effort on seeds of "
        "its own, but for those that take the learning rate of the sequential run as it is. What "
        "is finished is kept in --out: call it again to go on."
    )
    characters.add_options(parser, Setting)
    several = {"nargs": "+", "type": values.integer_from(2)}
    options.add(parser, "--workers", **several, default=[8, 32, 4, 16], help="numbers of workers")
    names = tuple(methods.METHODS)
    options.add_methods(parser, names, names)
    options.add(parser, "--seeds", default=5)
    options.add(parser, "--out", default=pathlib.Path("transformer-results"))
    options.add_report_only(parser)


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs what is missing, prints the tables and saves a picture.

    Raises:
      UsageError: If the options or the text are wrong, a package is missing, or `--out` cannot be
        written or holds results of other settings; before any training.
    """
    del command  # every option that matters is in the settings and the lines
    extras.require_packages("flax", "matplotlib", "rich", "pandas", extra="reproduce")
    console, out = terminal.make_console(), arguments.out
    if not arguments.report_only:
        study.run(make_study(arguments), out, console)
    # What other calls, of other workers or methods, have put there belongs to the table.
    lines, _ = study.read_all(out, PROGRAM, check)
    report.print_tables(console, lines)
    report.save_picture(out / PICTURE, lines)
    terminal.print_text(console, f"Saved {out / PICTURE}.", wrap=False)


def make_study(arguments: argparse.Namespace) -> study.Study:
    """Every method with every number of workers; the sequential ones once for all of them."""
    setting = Setting.of(arguments)
    values.check_seeds(arguments.seeds)
    if setting.updates % EVALUATIONS:
        raise errors.UsageError(f"--updates {setting.updates}: must be a multiple of {EVALUATIONS}")
    data = characters.read_text(arguments)
    workload = Workload(setting, characters.Task(data, setting))
    return study.Study(
        program=PROGRAM,
        settings=setting.describe() | data.describe(),
        tasks=[
            study.Task(
                place={"workers": workers, "method": method.name},
                tried=method.tried(),
                train=functools.partial(train, workload, workers, method),
                pushes=setting.updates,
                programs=(workers, method.name),
            )
            for workers in [1, *dict.fromkeys(arguments.workers)]
            for method in [methods.METHODS[name] for name in dict.fromkeys(arguments.methods)]
            if (workers == 1) == isinstance(method.protocol, sim.Sequential)
        ],
        seeds=range(arguments.seeds),
        loss_of=lambda outcome: _number(outcome["last_loss"]),
        check=check,
    )


def check(line: Any) -> None:
    """Raises ValueError, in words, if a line is no run of this program."""
    kept.check_fields(line["run"], _RUN)
    kept.check_fields(line, _ENDED)


class Workload:
    """The task, and the programs that runs share."""

    def __init__(self, setting: Setting, task: characters.Task):
        self.setting, self.task = setting, task
        self.problem = sim.Problem(task.loss_fn, task.params(0), eval_fn=task.validation_loss)
        self.tempered_loss = jax.jit(task.tempered_loss)
        self.server = functools.cache(self._server)

    def _server(self, workers: int, name: str) -> sim.Server:
        """One object, so that runs share compiled programs."""
        method = methods.METHODS[name]
        place = methods.Place(workers, self.setting.updates, self.setting.terms)
        make = functools.partial(method.make, place)
        tx = optax.inject_hyperparams(lambda learning_rate, lambda0: make(learning_rate, lambda0))(
            learning_rate=0.0, lambda0=0.0
        )
        return sim.Server(tx, send=None if method.send is None else method.send(place))


def train(
    workload: Workload,
    workers: int,
    method: methods.Method,
    members: Sequence[study.Member],
    progress: study.Progress,
) -> Iterator[study.Outcome]:
    """All runs of a method at once."""
    setting, task = workload.setting, workload.task
    schedules = {
        seed: sim.make_schedule(
            sim.GammaTime(), workers, setting.updates, seed=seed, protocol=method.protocol
        )
        for seed in {member.seed for member in members}
    }
    shape = setting.updates, setting.batch_size
    batches = {seed: task.starts(seed, shape) for seed in schedules}
    swept = sim.sweep(
        workload.problem._replace(params=sim.PerMember([task.params(m.seed) for m in members])),
        workload.server(workers, method.name),
        sim.PerMember([schedules[member.seed] for member in members]),
        sim.PerMember([batches[member.seed] for member in members]),
        hyperparams={
            "learning_rate": [member.numbers.learning_rate for member in members],
            "lambda0": [member.numbers.lambda0 or 0.0 for member in members],
        },
        recording=sim.Recording(eval_versions=setting.updates // EVALUATIONS),
        progress=study.of_events(progress),
    )
    for index in range(len(members)):
        result = swept.member(index)
        yield _outcome(result, workload.tempered_loss(result.params))


def _outcome(result: sim.SimResult, tempered_loss: Any) -> study.Outcome:
    """Losses on the held-out windows; None at the end of a run that diverged."""
    assert result.evaluations is not None
    losses = [float(f"{loss:.5g}") for loss in np.asarray(result.evaluations.values)]
    ended = result.non_finite is None and np.isfinite(losses[-1])
    return {
        "validation_loss": losses,
        "last_loss": losses[-1] if ended else None,
        "tempered_loss": float(f"{tempered_loss:.5g}") if ended else None,
    }


def _number(loss: float | None) -> float:
    return float("nan") if loss is None else loss


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return command_line.run_program(PROGRAM, add_options, run, argv)


if __name__ == "__main__":
    command_line.leave(main())
