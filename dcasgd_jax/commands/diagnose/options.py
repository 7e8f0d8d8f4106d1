"""The options of `dcasgd-jax diagnose`, and what they mean together."""

import argparse
import dataclasses
import math
import pathlib

from dcasgd_jax import digits
from dcasgd_jax.commands import defaults, errors, methods, settings
from dcasgd_jax.commands import options as common
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
    _add_setting(parser)
    parser.add_argument(
        "--learning-rate",
        type=_positive_number,
        metavar="LR",
        help="of the run, before it falls to a tenth after one half and after three quarters of "
        "the pushes; default: what compare uses for asgd",
    )
    parser.add_argument(
        "--events",
        type=common.integer_from(1),
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
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("diagnose-results"),
        metavar="DIR",
        help="folder for diagnose.json and diagnose.png, each replaced if it is there; default "
        "%(default)s",
    )


def _add_setting(parser: argparse.ArgumentParser) -> None:
    default = settings.Setting()
    parser.add_argument(
        "--model",
        "--task",
        choices=list(digits.MODELS),
        default=default.model,
        help="softmax regression, or an MLP with one hidden layer of 64; default %(default)s",
    )
    parser.add_argument(
        "--law",
        choices=list(settings.LAWS),
        default=default.law_name,
        metavar="LAW",
        help=f"how long a gradient takes a worker: {', '.join(settings.LAWS)}; default %(default)s",
    )
    common.add_law_param(parser)
    for names, value, text in (
        (["--workers"], default.num_workers, "M"),
        (["--updates"], default.num_pushes, "pushed gradients of one run"),
        (["--batch", "--batch-size"], default.batch_size, "images per gradient"),
        (["--seeds"], 3, "run seeds 0 to N-1"),
    ):
        parser.add_argument(
            *names,
            type=common.integer_from(1),
            default=value,
            metavar="N",
            help=f"{text}, default %(default)s",
        )


def make_job(arguments: argparse.Namespace) -> Job:
    """Checks the options together.

    Raises:
      UsageError: If they do not make a diagnosis.
    """
    workers, pushes = arguments.workers, arguments.updates
    common.check_batch(arguments.batch)
    least = max(settings.MIN_ROUNDS * workers, len(events.MOMENTS) * arguments.events)
    if pushes < least:
        raise errors.UsageError(
            f"--updates {pushes}: use at least {least} with {workers} workers and --events "
            f"{arguments.events}"
        )
    setting = common.make_setting(arguments, pushes)
    rate = arguments.learning_rate
    if rate is None:
        plain = methods.METHODS["asgd"]
        rate = defaults.default_hyperparameters(setting.model, plain).learning_rate
    return Job(
        setting=setting,
        learning_rate=rate,
        num_seeds=arguments.seeds,
        events_per_moment=arguments.events,
        fisher_experiment=arguments.fisher_experiment,
        out=arguments.out,
    )


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number > 0")
    return value
