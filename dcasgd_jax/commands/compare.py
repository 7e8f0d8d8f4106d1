"""`dcasgd-jax compare`: all methods on the same schedules, a table, a JSON and a picture."""

import argparse
import dataclasses
import datetime
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dcasgd_jax import extras
from dcasgd_jax.commands import (
    catalogue,
    defaults,
    errors,
    figures,
    methods,
    options,
    records,
    report,
    runs,
    terminal,
    tuning,
)
from dcasgd_jax.commands.catalogue import single, study

if TYPE_CHECKING:
    from rich.console import Console

HELP = "compare sgd, ssgd, asgd and dcasgd on scikit-learn's digits"
RESULTS, PICTURE, TUNED = "compare.json", "compare.png", "tuned.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this subcommand."""
    options.add_options(parser)


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Runs the comparison, prints the table and saves everything in the folder `--out`.

    Raises:
      UsageError: If the options are wrong, a package is missing or nothing can be saved; before
        any training.
    """
    if options.ALL in arguments.methods:
        cell = single.make_cell(arguments)
        study.run(
            [cell], catalogue.names(), arguments.seeds, arguments.out, ["dcasgd-jax", *command]
        )
        return
    started = time.perf_counter()
    job = options.make_job(arguments)
    extras.require_packages("sklearn", "matplotlib", "rich")
    old_tuned = _prepare_folder(job)
    console = terminal.make_console()
    for note in job.notes:
        terminal.print_text(console, note)
    tuned = _tune(job, console) if job.tune else []
    if tuned:
        new = {job.setting.model: tuning.record(job.setting, tuned)}
        records.write_json(job.out / TUNED, old_tuned | new)
        terminal.print_text(console, f"Saved the grid: {job.out / TUNED}", wrap=False)
    chosen = {result.method: result.chosen for result in tuned} or {
        name: methods.Hyperparameters(grid.learning_rates[0], grid.lambda0s[0])
        for name, grid in job.grids.items()
    }
    all_runs = _train_all(job, chosen, console)
    summaries = report.summarise(all_runs)
    _print_report(job, summaries, console)
    content = _results(job, all_runs, summaries, tuned, command)
    content["wall_seconds"] = time.perf_counter() - started
    records.write_json(job.out / RESULTS, content)
    figures.save_comparison(job.out / PICTURE, all_runs, _title(job))
    seconds = time.perf_counter() - started
    saved = f"Saved {job.out / RESULTS} and {PICTURE} beside it ({seconds:.1f} s in all)."
    terminal.print_text(console, saved, wrap=False)


def _prepare_folder(job: options.Job) -> dict[str, Any]:
    """Makes `--out` and proves that it can be written; returns the tuning records in it."""
    records.prepare_folder(job.out, RESULTS, PICTURE, TUNED)
    return _read_tuned(job.out / TUNED) if job.tune and (job.out / TUNED).exists() else {}


def _read_tuned(path: pathlib.Path) -> dict[str, Any]:
    """Records of other models, which a new record must not wipe out."""
    try:
        content = records.read_json(path)
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise errors.UsageError(f"{path} is no record of --tune; move it away")
    return content


def _tune(job: options.Job, console: "Console") -> list[tuning.Tuned]:
    num_seeds = len(tuning.TUNING_SEEDS)
    num_runs = num_seeds * sum(len(grid) for grid in job.grids.values())
    terminal.print_text(
        console, f"Tuning {job.setting.model}: {num_runs} runs of {job.setting.num_pushes} pushes."
    )
    workloads = [runs.make_workload(job.setting, seed) for seed in tuning.TUNING_SEEDS]
    tuned = []
    with terminal.progress_bar(num_runs * job.setting.num_pushes) as advance:
        for method in job.methods:
            progress = _progress(advance, f"tune {method.name}")
            result = tuning.tune(job.setting, method, job.grids[method.name], workloads, progress)
            tuned.append(result)
    for result in tuned:
        title = f"{result.method}: mean final train loss over {num_seeds} seeds"
        terminal.print_table(console, title, terminal.grid_table(result))
    for warning in (text for result in tuned for text in result.warnings()):
        terminal.print_text(console, f"Note: {warning}")
    return tuned


def _train_all(
    job: options.Job, chosen: dict[str, methods.Hyperparameters], console: "Console"
) -> list[runs.Run]:
    num_runs = len(job.methods) * job.num_seeds
    terminal.print_text(
        console,
        f"Training {job.setting.model}: {len(job.methods)} methods, {job.num_seeds} seeds, "
        f"{job.setting.num_pushes} pushes each.",
    )
    workloads = [runs.make_workload(job.setting, seed) for seed in range(job.num_seeds)]
    with terminal.progress_bar(num_runs * job.setting.num_pushes) as advance:
        return [
            runs.train(
                job.setting,
                method,
                chosen[method.name],
                workload,
                _progress(advance, f"{method.name}, seed {workload.seed}"),
            )
            for method in job.methods
            for workload in workloads
        ]


def _progress(advance: terminal.Advance, text: str) -> runs.Progress:
    advance(text, 0)
    return lambda num_pushes: advance(text, num_pushes)


def _print_report(
    job: options.Job, summaries: Sequence[report.Summary], console: "Console"
) -> None:
    terminal.print_table(console, _title(job), terminal.summary_table(console, summaries))
    terminal.print_text(
        console,
        "mean and sample std over seeds; loss over all training images; ratio: largest "
        "|compensation|/|gradient|; diverged: final train loss not finite, or not below both the "
        "initial one and chance (ln 10); left out of loss, error and ratio.",
    )
    for sentence in report.findings(summaries):
        terminal.print_text(console, sentence)


def _title(job: options.Job) -> str:
    setting = job.setting
    return (
        f"{setting.model} on digits, {setting.num_workers} worker"
        f"{'s' * (setting.num_workers > 1)}, {setting.law_name} times, "
        f"{setting.num_pushes} pushes of {setting.batch_size} images, {job.num_seeds} "
        f"seed{'s' * (job.num_seeds > 1)}"
    )


def _results(
    job: options.Job,
    all_runs: Sequence[runs.Run],
    summaries: Sequence[report.Summary],
    tuned: Sequence[tuning.Tuned],
    command: Sequence[str],
) -> dict[str, Any]:
    """Everything, in JSON's types."""
    default_record = None if tuned else defaults.tuning_records()[job.setting.model]
    return {
        "program": "dcasgd-jax compare",
        "command": list(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": records.versions(),
        "settings": {
            **job.setting.describe(),
            "methods": [method.name for method in job.methods],
            "seeds": list(range(job.num_seeds)),
            "hyperparameters": {
                summary.method: {
                    "learning_rate": summary.learning_rate,
                    "lambda0": summary.lambda0,
                }
                for summary in summaries
            },
            "tune": job.tune,
            "out": str(job.out),
            **report.fixed_numbers(),
        },
        "defaults_tuned_for": default_record
        and {key: default_record[key] for key in ("date", "setting", "seeds")},
        "notes": list(job.notes),
        "findings": report.findings(summaries),
        "tuning": tuning.record(job.setting, tuned) if tuned else None,
        "summary": [dataclasses.asdict(summary) for summary in summaries],
        "runs": [dataclasses.asdict(run) for run in all_runs],
    }
