"""The options of `dcasgd-jax diagnose`, and what they mean together."""

import argparse
import dataclasses
import pathlib

from dcasgd_jax.commands import defaults, errors, options, settings, values
from dcasgd_jax.commands.diagnose import events

DESCRIPTION = """\
Runs asynchronous SGD without compensation on scikit-learn's digits, stops it before some pushes
early, in the middle and late, and measures how much of the error of the stale gradient each
curvature of dc.compensate_delay would take away: with which lambda0, and whether it is worth it."""

EPILOG = """\
examples:
  dcasgd-jax diagnose
  dcasgd-jax diagnose --model softmax --workers 16 --law exponential
  dcasgd-jax diagnose --learning-rate 0.05 --fisher-experiment --out small-rate"""


@dataclasses.dataclass(frozen=True)
class Job:
    """A diagnosis that can be made."""

    setting: settings.Setting
    learning_rate: float
    num_seeds: int
    events_per_moment: int
    fisher_experiment: bool
    out: pathlib.Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds every option of the subcommand."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for name in ("--model", "--workers", "--law", "--law-param", "--updates", "--batch-size"):
        options.add(parser, name)
    options.add(parser, "--seeds", default=3)
    parser.add_argument(
        "--learning-rate",
        type=values.positive,
        metavar="LR",
        help="of the run, before it is warmed up and falls as in compare; default: what compare "
        "uses for asgd",
    )
    parser.add_argument(
        "--events",
        type=values.integer_from(1),
        default=8,
        metavar="N",
        help="pushes looked at per moment and seed, default %(default)s",
    )
    parser.add_argument(
        "--fisher-experiment",
        action="store_true",
        help="also compare outer products of gradients with the Hessian of softmax regression, "
        "as the paper's supplement does",
    )
    options.add(parser, "--out", default=pathlib.Path("diagnose-results"))


def make_job(arguments: argparse.Namespace) -> Job:
    """Checks the options together.

    Raises:
      UsageError: If they do not make a diagnosis.
    """
    workers, pushes = arguments.workers, arguments.updates
    values.check_batch(arguments.batch_size)
    least = max(settings.MIN_ROUNDS * workers, workers + len(events.MOMENTS) * arguments.events)
    if pushes < least:
        raise errors.UsageError(
            f"--updates {pushes}: use at least {least} with {workers} workers and --events "
            f"{arguments.events}"
        )
    setting = options.make_setting(arguments, pushes)
    rate = arguments.learning_rate
    if rate is None:
        known = defaults.default_hyperparameters(setting.model, "asgd")
        assert known is not None
        rate = known.learning_rate
    return Job(
        setting=setting,
        learning_rate=rate,
        num_seeds=arguments.seeds,
        events_per_moment=arguments.events,
        fisher_experiment=arguments.fisher_experiment,
        out=arguments.out,
    )
