"""The options of `dcasgd-jax compare`, and what they mean together."""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

from dcasgd_jax import digits
from dcasgd_jax.commands import defaults, errors, methods, option_values, settings, tuning

DESCRIPTION = """\
Trains on scikit-learn's digits (1797 real images, no download) with several methods on the same
initial parameters, batches and worker compute times, and compares them."""

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Job:
    """A comparison that can be run."""

    setting: settings.Setting
    methods: tuple[methods.Method, ...]
    num_seeds: int
    grids: dict[str, tuning.Grid]  # method -> values to try, or the one value of each to use
    tune: bool
    out: pathlib.Path
    notes: tuple[str, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds every option of the subcommand."""
    parser.description = DESCRIPTION
    parser.epilog = _epilog()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[*methods.METHODS, ALL],
        default=list(methods.METHODS),
        metavar="METHOD",
        help="which methods; default: the six listed below; `all`: every method of the package, "
        "each tuned with the same effort",
    )
    parser.add_argument(
        "--momentum",
        type=option_values.momentum,
        metavar="MU",
        help="heavy ball in every method, with --methods all; default 0",
    )
    _add_setting(parser)
    _add_hyperparameters(parser)
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("compare-results"),
        metavar="DIR",
        help="folder for compare.json, compare.png and, with --tune, tuned.json, each replaced "
        "if it is there; default %(default)s",
    )


def _add_setting(parser: argparse.ArgumentParser) -> None:
    default = settings.Setting()
    number = functools.partial(parser.add_argument, type=integer_from(1), metavar="N")
    parser.add_argument(
        "--model",
        choices=list(digits.MODELS),
        default=default.model,
        help="softmax regression, or an MLP with one hidden layer of 64; default %(default)s",
    )
    number("--workers", default=default.num_workers, help="M, default %(default)s")
    parser.add_argument(
        "--law",
        choices=list(settings.LAWS),
        default=default.law_name,
        metavar="LAW",
        help="how long a gradient takes a worker, listed below; default %(default)s",
    )
    add_law_param(parser)
    number(
        "--updates",
        default=default.num_pushes,
        help="pushed gradients, the same budget for every method (ssgd averages M of them per "
        "server update), a multiple of M or rounded down to one; default %(default)s: 30 epochs "
        "at batch 16",
    )
    number("--batch", default=default.batch_size, help="images per gradient, default %(default)s")
    number("--seeds", default=5, help="run seeds 0 to N-1, default %(default)s")


def add_law_param(parser: argparse.ArgumentParser) -> None:
    """Adds `--law-param`."""
    parser.add_argument(
        "--law-param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the law, repeatable; VALUE may be one number per worker, separated "
        "by commas",
    )


def _add_hyperparameters(parser: argparse.ArgumentParser) -> None:
    for option, name in (("--learning-rate", "learning rate"), ("--lambda0", "lambda0")):
        parser.add_argument(
            option,
            action="append",
            default=[],
            metavar="[METHOD=]VALUE",
            help=f"{name} of one method or of all that have one, repeatable; with --tune, "
            "VALUE[,VALUE...] to try; default: tuned values",
        )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="first choose learning rate and lambda0 from a grid, on seeds "
        f"{tuning.TUNING_SEEDS[0]}-{tuning.TUNING_SEEDS[-1]} and by train loss, and print the "
        "grid (minutes)",
    )


def add_runs(parser: argparse.ArgumentParser, out: pathlib.Path) -> None:
    """Adds `--updates`, `--seeds` and `--out` of a study of many settings."""
    count = functools.partial(parser.add_argument, type=integer_from(1), metavar="N")
    count(
        "--updates",
        default=settings.Setting.num_pushes,
        help="pushed gradients of one run, default %(default)s",
    )
    count("--seeds", default=5, help="default %(default)s")
    parser.add_argument("--out", type=pathlib.Path, default=out, metavar="DIR")


def make_job(arguments: argparse.Namespace) -> Job:
    """Checks the options together.

    Raises:
      UsageError: If they do not make a comparison.
    """
    if arguments.momentum is not None:
        raise errors.UsageError(f"--momentum {arguments.momentum:g}: use it with --methods {ALL}")
    workers = arguments.workers
    pushes = budget(arguments.updates, workers)
    _check_limits(arguments)
    setting = make_setting(arguments, pushes)
    chosen = tuple(m for m in methods.METHODS.values() if m.name in arguments.methods)
    rates = option_values.given_values(
        "--learning-rate", arguments.learning_rate, chosen, arguments.tune
    )
    compensating = tuple(method for method in chosen if method.compensates)
    lambda0s = option_values.given_values(
        "--lambda0", arguments.lambda0, compensating, arguments.tune
    )
    grids = {m.name: _grid(setting.model, m, rates, lambda0s, arguments.tune) for m in chosen}
    notes = []
    if pushes != arguments.updates:
        notes.append(
            f"Note: --updates {arguments.updates} rounded down to {pushes}, a multiple of "
            f"{workers} workers."
        )
    if not arguments.tune:
        notes += _untuned_note(setting, chosen, rates, lambda0s)
    return Job(setting, chosen, arguments.seeds, grids, arguments.tune, arguments.out, tuple(notes))


def _check_limits(arguments: argparse.Namespace) -> None:
    check_batch(arguments.batch)
    check_seeds(arguments.seeds)


def check_seeds(count: int) -> None:
    """Raises UsageError if there are more seeds than before those of tuning."""
    if count > tuning.TUNING_SEEDS[0]:
        raise errors.UsageError(
            f"--seeds {count}: seeds from {tuning.TUNING_SEEDS[0]} on are for tuning, use at most "
            f"{tuning.TUNING_SEEDS[0]}"
        )


def check_batch(size: int) -> None:
    """Raises UsageError if there are fewer training images than a batch takes."""
    if size > digits.NUM_TRAIN:
        raise errors.UsageError(
            f"--batch {size}: there are only {digits.NUM_TRAIN} training images, use fewer"
        )


def make_setting(arguments: argparse.Namespace, num_pushes: int) -> settings.Setting:
    """The setting that `--model`, `--workers`, `--law`, `--law-param` and `--batch` make."""
    return settings.Setting(
        model=arguments.model,
        num_workers=arguments.workers,
        law_name=arguments.law,
        law=option_values.make_law(arguments.law, arguments.law_param, arguments.workers),
        num_pushes=num_pushes,
        batch_size=arguments.batch,
    )


def budget(updates: int, workers: int) -> int:
    """Pushes in all: whole rounds of all workers, enough for every step of the decay.

    Raises:
      UsageError: If there are too few `updates`.
    """
    least = settings.MIN_ROUNDS * workers
    if updates < least:
        raise errors.UsageError(
            f"--updates {updates}: use at least {least} with {workers} workers, "
            f"{settings.MIN_ROUNDS} pushes each"
        )
    return updates - updates % workers


def _grid(
    model: str,
    method: methods.Method,
    rates: option_values.Values,
    lambda0s: option_values.Values,
    tune: bool,
) -> tuning.Grid:
    """The given values of a method, completed by the default grid or the default values."""
    if tune:
        base = tuning.default_grid(model, method)
    else:
        best = defaults.default_hyperparameters(model, method)
        base = tuning.Grid((best.learning_rate,), (best.lambda0,))
    return tuning.Grid(
        rates.get(method.name, base.learning_rates), lambda0s.get(method.name, base.lambda0s)
    )


def _untuned_note(
    setting: settings.Setting,
    chosen: Sequence[methods.Method],
    rates: option_values.Values,
    lambda0s: option_values.Values,
) -> list[str]:
    """A warning if some default value was tuned for another setting."""
    by_default = any(
        m.name not in rates or (m.compensates and m.name not in lambda0s) for m in chosen
    )
    differs = defaults.untuned_parts(setting) if by_default else []
    if not differs:
        return []
    return [
        "Note: the default learning rates and lambda0 were tuned for other values of "
        f"{', '.join(differs)}; --tune chooses them for this setting."
    ]


def integer_from(least: int) -> Callable[[str], int]:
    """A type of an option."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= {least}")
        return value

    return parse


def _epilog() -> str:
    lines = ["methods:"]
    lines += [f"  {method.name:<15}{method.title}" for method in methods.METHODS.values()]
    lines += ["", "laws and their parameters:"]
    for name, law in settings.LAWS.items():
        parameters = ", ".join(f"{f.name}={f.default:g}" for f in dataclasses.fields(law))
        lines.append(f"  {name:<15}{parameters}")
    lines += [
        "",
        "examples:",
        "  dcasgd-jax compare",
        "  dcasgd-jax compare --law exponential --methods asgd dcasgd-a --learning-rate 0.4",
        "  dcasgd-jax compare --methods all --model softmax --law exponential",
        "  dcasgd-jax compare --law-param mean=1,1,1,2 --workers 4 --tune --out slow-worker",
    ]
    return "\n".join(lines)
