"""`dcasgd-jax compare`: methods on the same schedules, a table, a JSON and a picture."""

import argparse
import dataclasses
import itertools
import pathlib
import textwrap
import time
from collections.abc import Sequence
from typing import Any

from dcasgd_jax import extras
from dcasgd_jax.commands import (
    catalogue,
    defaults,
    digits_study,
    errors,
    figures,
    ledger,
    methods,
    options,
    records,
    report,
    settings,
    study,
    terminal,
    tuning,
    tuning_report,
    values,
)

RESULTS, PICTURE = "compare.json", "compare.png"
ALL = "all"

DESCRIPTION = """\
Trains on scikit-learn's digits (1797 real images, no download) with several methods on the same
initial parameters, batches and worker compute times, and compares them. The learning rate grows
linearly in the first tenth of the updates, and falls to a tenth after one half and after three
quarters of them, for every method alike. Interrupted, the command keeps what is finished."""

EXAMPLES = """
examples:
  dcasgd-jax compare
  dcasgd-jax compare --law exponential --methods asgd dcasgd-a --learning-rate 0.4
  dcasgd-jax compare --methods all --model softmax --law exponential
  dcasgd-jax compare --law-param mean=1,1,1,2 --workers 4 --tune --out slow-worker"""


@dataclasses.dataclass(frozen=True)
class Job:
    """A comparison that can be run."""

    setting: settings.Setting
    tried: digits_study.Tried
    num_seeds: int
    out: pathlib.Path
    notes: tuple[str, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this subcommand."""
    parser.description = DESCRIPTION
    listed = [f"  {name:<15}{method.title}" for name, method in methods.METHODS.items()]
    others = [name for name in catalogue.names() if name not in methods.METHODS]
    more = textwrap.wrap(f"and {', '.join(others)}", 78, break_on_hyphens=False)
    lines = ["methods:", *listed, *(f"  {line}" for line in more)]
    parser.epilog = "\n".join([*lines, "", options.laws_text(), EXAMPLES])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_methods(
        parser,
        [*catalogue.names(), ALL],
        tuple(methods.METHODS),
        help="which methods; default: the seven listed below; `all`: every method of the package. "
        "Those without default values are tuned, each with the same effort",
    )
    for name in ("--momentum", "--model", "--workers", "--law", "--law-param", "--updates"):
        options.add(parser, name)
    for name in ("--batch-size", "--seeds", "--learning-rate", "--lambda0"):
        options.add(parser, name)
    parser.add_argument(
        "--tune",
        action="store_true",
        help=f"first choose learning rate and lambda0 among {tuning.NUM_CONFIGURATIONS} "
        "configurations, or among VALUE,VALUE...: by final train loss on seeds "
        f"{study.TUNING_SEEDS[0]}-{study.TUNING_SEEDS[-1]}, of those whose loss never rises above "
        f"{tuning.HIGHEST_LOSS:g} times the initial one (minutes)",
    )
    options.add(parser, "--out", default=pathlib.Path("compare-results"))


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs the comparison, prints the table and saves everything in the folder `--out`.

    Raises:
      UsageError: If the options are wrong, a package is missing or nothing can be saved; before
        any training.
    """
    started = time.perf_counter()
    job = make_job(arguments)
    extras.require_packages("sklearn", "matplotlib", "rich", "pandas")
    records.prepare_folder(job.out, RESULTS, PICTURE)
    console = terminal.make_console()
    for note in job.notes:
        terminal.print_text(console, note)
    of_job = digits_study.make(
        "dcasgd-jax compare", [(job.setting, job.tried)], job.num_seeds, curves=True
    )
    results = study.run(of_job, job.out, console)
    tunings = tuning_report.print_all(console, of_job, results)
    lines = results.runs()
    summaries = report.summarise(lines)
    terminal.print_table(console, _title(job), report.make_table(console, summaries))
    terminal.print_text(console, report.EXPLANATION)
    for sentence in report.findings(summaries):
        terminal.print_text(console, sentence)
    content = _content(job, lines, summaries, tunings, command)
    content["wall_seconds"] = time.perf_counter() - started
    records.write_json(job.out / RESULTS, content)
    figures.save_comparison(job.out / PICTURE, lines, _title(job))
    seconds = time.perf_counter() - started
    saved = f"Saved {job.out / RESULTS} and {PICTURE} beside it ({seconds:.1f} s in all)."
    terminal.print_text(console, saved, wrap=False)


def make_job(arguments: argparse.Namespace) -> Job:
    """Checks the options together.

    Raises:
      UsageError: If they do not make a comparison.
    """
    values.check_batch(arguments.batch_size)
    values.check_seeds(arguments.seeds)
    pushes = values.budget(arguments.updates, arguments.workers)
    setting = options.make_setting(arguments, pushes, arguments.momentum)
    chosen = _chosen_methods(arguments.methods, setting)
    given = {
        option: values.of_methods(option, texts, chosen, several=arguments.tune)
        for option, texts in (
            ("--learning-rate", arguments.learning_rate), ("--lambda0", arguments.lambda0),
        )
    }  # fmt: skip
    tried, by_default = {}, []
    for method in chosen:
        rates, lambda0s = (of_option.get(method.name) for of_option in given.values())
        base = _base(setting, method, arguments.tune)
        complete = rates and (lambda0s or not method.compensates)
        if not arguments.tune and len(base) == 1 and not complete:
            by_default.append(method.name)
        rates = rates or tuple(dict.fromkeys(numbers.learning_rate for numbers in base))
        lambda0s = lambda0s or tuple(dict.fromkeys(numbers.lambda0 for numbers in base))
        pairs = itertools.product(rates, lambda0s)
        tried[method] = [methods.Hyperparameters(*pair) for pair in pairs]
    notes = []
    if pushes != arguments.updates:
        notes.append(
            f"Note: --updates {arguments.updates} rounded down to {pushes}, a multiple of "
            f"{setting.num_workers} workers."
        )
    if by_default and (differs := defaults.untuned_parts(setting)):
        notes.append(
            "Note: the default learning rates and lambda0 were tuned for other values of "
            f"{', '.join(differs)}; --tune chooses them for this setting."
        )
    return Job(setting, tried, arguments.seeds, arguments.out, tuple(notes))


def _base(
    setting: settings.Setting, method: methods.Method, tune: bool
) -> Sequence[methods.Hyperparameters]:
    """The default values of a method, or those to tune over if it has none."""
    known = None
    if not tune and setting.momentum is None:
        known = defaults.default_hyperparameters(setting.model, method.name)
    if known is not None:
        return [known]
    return tuning.configurations(method, setting.model, setting.momentum)


def _chosen_methods(names: Sequence[str], setting: settings.Setting) -> list[methods.Method]:
    there = digits_study.methods_for(setting)
    if ALL in names:
        if len(names) > 1:
            raise errors.UsageError(f"--methods {ALL} has every method in it: name no other")
        names = list(there)
    for name in names:
        if name not in there:
            needed = "--workers 2 or more" if setting.num_workers == 1 else "--momentum"
            raise errors.UsageError(f"--methods {name}: only with {needed}")
    return [method for name, method in there.items() if name in names]


def _title(job: Job) -> str:
    setting = job.setting
    return (
        f"{setting.title}, {setting.num_pushes} pushes of {setting.batch_size}, {job.num_seeds} "
        f"seed{'s' * (job.num_seeds > 1)}"
    )


def _content(
    job: Job,
    lines: Sequence[ledger.Line],
    summaries: Sequence[report.Summary],
    tunings: dict[str, ledger.Line],
    command: Sequence[str],
) -> dict[str, Any]:
    """Everything, in JSON's types."""
    record = defaults.tuning_records()[job.setting.model]
    numbers = lambda summary: {
        "learning_rate": summary.learning_rate, "lambda0": summary.lambda0,
    }  # fmt: skip
    of_all = {
        **job.setting.describe(),
        "methods": [method.name for method in job.tried],
        "seeds": list(range(job.num_seeds)),
        "hyperparameters": {summary.method: numbers(summary) for summary in summaries},
        **report.fixed_numbers(),
    }
    return {
        **records.header("dcasgd-jax compare", command, of_all),
        "defaults_tuned_for": {key: record[key] for key in ("date", "setting", "seeds")},
        "notes": list(job.notes),
        "findings": report.findings(summaries),
        "tuning": tunings and tuning_report.record(job.setting, tunings),
        "summary": [summary.describe() for summary in summaries],
        "runs": [study.flat(line) for line in lines],
    }
