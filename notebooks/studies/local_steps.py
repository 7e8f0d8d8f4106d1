"""Local steps across two regions: which outer optimizer, and does a compensation help it?"""

import argparse
import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import characters
import jax
import local_steps_methods as methods
import local_steps_report as report
import numpy as np
import optax
from pipeline import text

from dcasgd_jax import extras, sim
from dcasgd_jax.commands import command_line, errors, kept, options, study, terminal, values

PROGRAM = "local_steps.py"
PICTURE = "local-steps.png"
WORKERS = 8
EVALUATIONS = 16
INNER_RATE = 0.003  # of Adam, on every worker
STEP_SECONDS = (1.0, 1.0, 1.2, 1.5) * 2  # on average, of each worker
FAR = {"latency": 0.3, "bandwidth": 20_000.0}  # seconds, bytes per second
NEAR = {"latency": 0.01, "bandwidth": 1_000_000.0}

_RUN: dict[str, kept.Kinds] = {
    "steps": int, "method": str, "seed": int,
    "learning_rate": kept.NUMBER, "lambda0": kept.NUMBER_OR_NONE,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting(characters.Setting):
    """What all runs of a folder share."""

    gradients: int = 4096

    def describe(self) -> dict[str, Any]:
        """In JSON's types, with everything that no option changes."""
        return {
            **dataclasses.asdict(self),
            "workers": WORKERS,
            "inner": f"adam({INNER_RATE:g}), its state per worker",
            "step_seconds": list(STEP_SECONDS),
            "links": {"near": NEAR, "far": FAR, "far_workers": WORKERS // 2},
            "evaluations": EVALUATIONS,
            "validation_windows": characters.VALIDATION_WINDOWS,
        }


class Outcome(NamedTuple):
    """Of a run, at each evaluation."""

    seconds: list[float]
    megabytes: list[float]  # sent by all workers and the server
    validation_loss: list[float]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this program."""
    parser.description = (
        "Eight workers in two regions train a small transformer on the characters of a text. Each "
        "takes steps of Adam, then pushes the way that it went; half of the pushes and pulls go "
        "over a slow link, which they share. Synchronous DiLoCo, asynchronous outer optimizers and "
        "compensated ones are tuned with equal effort on seeds of their own. What is finished is "
        "kept in --out: call it again to go on."
    )
    characters.add_options(parser, Setting)
    several = {"nargs": "+", "type": values.integer_from(1), "default": [1, 8, 32]}
    parser.add_argument(
        "--steps", metavar="N", help="between two pushes; default: 1 8 32", **several
    )
    names = tuple(methods.METHODS)
    options.add_methods(parser, names, names)
    options.add(parser, "--seeds", default=3)
    options.add(parser, "--out", default=pathlib.Path("local-steps-results"))
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
    if arguments.report_only:
        lines, _ = study.read_all(out, PROGRAM, check)
        lines = [line for line in lines if line["run"]["seed"] not in study.TUNING_SEEDS]
    else:
        lines = study.run(make_study(arguments), out, console).runs()
    report.print_tables(console, lines)
    report.save_picture(out / PICTURE, lines)
    terminal.print_text(console, f"Saved {out / PICTURE}.", wrap=False)


def make_study(arguments: argparse.Namespace) -> study.Study:
    """Every method with every number of steps; one number of gradients for all."""
    setting = Setting.of(arguments)
    values.check_seeds(arguments.seeds)
    for steps in arguments.steps:
        if setting.gradients % (steps * WORKERS * EVALUATIONS):
            raise errors.UsageError(
                f"--gradients {setting.gradients}: with --steps {steps} it must be a multiple of "
                f"{steps * WORKERS * EVALUATIONS}"
            )
    data = characters.read_text(arguments)
    workload = Workload(setting, data)
    chosen = [methods.METHODS[name] for name in dict.fromkeys(arguments.methods)]
    return study.Study(
        program=PROGRAM,
        settings=setting.describe() | data.describe(),
        tasks=[
            study.Task(
                place={"steps": steps, "method": method.name},
                tried=method.tried,
                train=functools.partial(train, workload, steps, method),
                pushes=setting.gradients,
                programs=(steps, method.name),
            )
            for steps in dict.fromkeys(arguments.steps)
            for method in chosen
        ],
        seeds=range(arguments.seeds),
        loss_of=lambda outcome: outcome["validation_loss"][-1],
        check=check,
        tuning_seeds=study.TUNING_SEEDS[:2],
    )


def check(line: Any) -> None:
    """Raises ValueError, in words, if a line is no run of this program."""
    kept.check_fields(line["run"], _RUN)
    kept.check_fields(line, dict.fromkeys(Outcome._fields, list))


class Workload:
    """A text and a transformer; the same weights and batches for every run of a seed."""

    def __init__(self, setting: Setting, data: text.Text):
        self.setting = setting
        self.task = characters.Task(data, setting)
        self.params = self.task.params
        self.problem = sim.Problem(
            self.task.loss_fn, self.params(0), eval_fn=self.task.validation_loss
        )
        self.size = 4 * sum(leaf.size for leaf in jax.tree.leaves(self.problem.params))

    def schedule(self, steps: int, method: methods.Method, seed: int) -> sim.Schedule:
        """Who pushes when: four workers beside the server, four far away."""
        near, far = NEAR, FAR
        table = lambda name: [[near[name], far[name]], [far[name], near[name]]]
        half = WORKERS // 2
        links = sim.Links(
            [0] * half + [1] * half, table("latency"), table("bandwidth"),
            push_bytes=self.size, pull_bytes=self.size,
        )  # fmt: skip
        law = sim.StepsTime(sim.GammaTime(50.0, STEP_SECONDS), steps)
        num_updates = self.setting.gradients // steps // method.pushes_per_update(WORKERS)
        return sim.make_schedule(
            law, WORKERS, num_updates, seed=seed, protocol=method.protocol, links=links
        )

    def starts(self, steps: int, seed: int) -> np.ndarray:
        """Where the windows of each batch begin; int32 [pushes, steps, batch]."""
        shape = self.setting.gradients // steps, steps, self.setting.batch_size
        return self.task.starts(seed, shape)


def train(
    workload: Workload,
    steps: int,
    method: methods.Method,
    members: Sequence[study.Member],
    progress: study.Progress,
) -> Iterator[study.Outcome]:
    """All runs of a method at once."""
    of_seed = {m.seed: workload.schedule(steps, method, m.seed) for m in members}
    batches = {seed: workload.starts(steps, seed) for seed in of_seed}
    numbers = [member.numbers for member in members]
    hyperparams = {"learning_rate": [n.learning_rate for n in numbers]}
    if numbers[0].lambda0 is not None:
        hyperparams["lambda0"] = [n.lambda0 for n in numbers]
    first = of_seed[members[0].seed]
    swept = sim.sweep(
        workload.problem._replace(
            params=sim.PerMember([workload.params(member.seed) for member in members])
        ),
        method.server,
        sim.PerMember([of_seed[member.seed] for member in members]),
        sim.PerMember([batches[member.seed] for member in members]),
        worker=sim.LocalSteps(inner_optimizer(), steps),
        hyperparams=hyperparams,
        recording=sim.Recording(eval_versions=first.num_updates // EVALUATIONS),
        progress=study.of_events(progress, steps),
    )
    for index, member in enumerate(members):
        yield _outcome(swept.member(index), of_seed[member.seed], workload.size)


@functools.cache
def inner_optimizer() -> optax.GradientTransformation:
    """One object, so that runs share compiled programs."""
    return optax.adam(INNER_RATE)


def _outcome(result: sim.SimResult, schedule: sim.Schedule, size: int) -> study.Outcome:
    evaluations = result.evaluations
    assert evaluations is not None
    seconds, losses = evaluations.time, np.asarray(evaluations.values, float)
    if result.non_finite is not None:
        losses = np.append(losses, math.nan)
        seconds = np.append(seconds, schedule.time[result.non_finite.event])
    # Every push that has arrived was pulled for, and is answered.
    sent = 2 * size * np.searchsorted(schedule.time, seconds, "right") / 1e6
    return Outcome(seconds.tolist(), sent.tolist(), losses.tolist())._asdict()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return command_line.run_program(PROGRAM, add_options, run, argv)


if __name__ == "__main__":
    command_line.leave(main())
