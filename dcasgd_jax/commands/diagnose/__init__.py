"""`dcasgd-jax diagnose`: would a compensation help here, which one, and how strong?"""

import argparse
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dcasgd_jax import digits, extras
from dcasgd_jax.commands import kept, ledger, methods, records, report, study, terminal
from dcasgd_jax.commands.diagnose import (
    advice,
    events,
    fisher,
    options,
    pictures,
    summary,
    table,
)

if TYPE_CHECKING:
    from rich.console import Console

RESULTS, PICTURE = "diagnose.json", "diagnose.png"
HARDLY_LEARNT = 0.5  # of the loss of a uniform guess

add_options = options.add_options


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Makes the diagnosis, prints the table and the advice, and saves everything in `--out`.

    Raises:
      UsageError: If the options are wrong, a package is missing or nothing can be saved; before
        any training.
    """
    started = time.perf_counter()
    job = options.make_job(arguments)
    extras.require_packages("sklearn", "matplotlib", "rich", "pandas")
    records.prepare_folder(job.out, RESULTS, PICTURE)
    console = terminal.make_console()
    runs = study.run(make_study(job), job.out, console).runs()
    rows = summary.summarise(runs)
    curves = fisher.run() if job.fisher_experiment else []
    notes, advised = _notes(runs), advice.advise(rows)
    _print_report(job, rows, curves, notes, advised, console)
    of_all = {**_settings(job), "seeds": list(range(job.num_seeds))}
    content = {
        **records.header("dcasgd-jax diagnose", command, of_all),
        "rules": {**advice.rules(), "hardly_learnt": HARDLY_LEARNT},
        "notes": notes,
        "advice": advised,
        "summary": [dataclasses.asdict(row) for row in rows],
        "runs": [study.flat(run) for run in runs],
        "fisher_experiment": [dataclasses.asdict(curve) for curve in curves] or None,
        "wall_seconds": time.perf_counter() - started,
    }
    records.write_json(job.out / RESULTS, content)
    pictures.save(job.out / PICTURE, rows, curves, _title(job))
    seconds = time.perf_counter() - started
    saved = f"Saved {job.out / RESULTS} and {PICTURE} beside it ({seconds:.1f} s in all)."
    terminal.print_text(console, saved, wrap=False)


def make_study(job: options.Job) -> study.Study:
    """A run of plain asynchronous SGD for each seed."""
    numbers = methods.Hyperparameters(job.learning_rate)
    settings = _settings(job)
    del settings["learning_rate"]  # tells runs apart, so one folder may hold several

    def train(members: Sequence[study.Member], progress: study.Progress) -> Iterator[Any]:
        for member in members:
            yield events.diagnose_run(
                job.setting, job.learning_rate, member.seed, job.events_per_moment, progress
            )

    return study.Study(
        program="dcasgd-jax diagnose",
        settings=settings,
        tasks=[study.Task({"method": "asgd"}, [numbers], train, job.setting.num_pushes)],
        seeds=range(job.num_seeds),
        loss_of=lambda outcome: outcome["last_train_loss"],
        check=lambda line: kept.check_fields(line, {"events": list, "diverged": bool}),
    )


def _notes(runs: Sequence[ledger.Line]) -> list[str]:
    """A warning about runs that tell little, by the loss at the last push that was looked at."""
    learnt = [
        not run["diverged"] and run["last_train_loss"] < HARDLY_LEARNT * digits.CHANCE_LOSS
        for run in runs
    ]
    if all(learnt):
        return []
    return [
        f"Note: {len(runs) - sum(learnt)} of {len(runs)} runs diverge or hardly learn (train loss "
        f"late in the run at least {100 * HARDLY_LEARNT:g} % of that of a uniform guess), so their "
        "gradients lead nowhere: use another --learning-rate, or more --updates."
    ]


def _print_report(
    job: options.Job,
    rows: Sequence[summary.Row],
    curves: Sequence[fisher.Curve],
    notes: Sequence[str],
    advised: Sequence[str],
    console: "Console",
) -> None:
    if rows:
        terminal.print_table(console, _title(job), table.make_table(console, rows))
        terminal.print_text(console, table.EXPLANATION)
        console.print()
    for text in (*notes, *advised):
        terminal.print_text(console, text)
    console.print()
    if rows:
        terminal.print_text(console, advice.rules_in_words())
        terminal.print_text(console, advice.CAVEAT)
    if curves:
        console.print()
        terminal.print_text(
            console,
            "Outer products lambda*g*g^T of single images' gradients against the Hessian of "
            "softmax regression; error: mean |lambda*g*g^T - H|^2 / |H|^2, with lambda 0 it is 1:",
        )
        for curve in curves:
            terminal.print_text(console, f"  {fisher.sentence(curve)}")


def _title(job: options.Job) -> str:
    setting = job.setting
    return (
        f"{setting.title}, learning rate {job.learning_rate:.3g}, batch {setting.batch_size}, "
        f"{job.num_seeds} seed{'s' * (job.num_seeds > 1)}"
    )


def _settings(job: options.Job) -> dict[str, Any]:
    return {
        **job.setting.describe(),
        "learning_rate": job.learning_rate,
        **{name: v for name, v in report.fixed_numbers().items() if "learning_rate" in name},
        "events_per_moment": job.events_per_moment,
        "curvatures": list(events.NAMES),
        "moments": events.MOMENTS,
        "window": events.WINDOW,
        "ms_decay": methods.MS_DECAY,
        "eps": events.EPS,
    }
