"""What tuning has found: tables, and the record that the defaults are read from."""

from typing import TYPE_CHECKING, Any

from dcasgd_jax.commands import ledger, methods, records, report, settings, study, terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_all(
    console: "Console", of_job: study.Study, results: study.Results
) -> dict[str, ledger.Line]:
    """A table for each method that was tuned here; returns the lines by method."""
    found = {}
    for task in of_job.tasks:
        line = results.tuning_of(task)
        if line is None or len(task.tried) == 1:
            continue
        found[task.place["method"]] = line
        if len(of_job.tasks) <= len(methods.METHODS):
            title = f"{task.name}: mean final train loss over {len(of_job.tuning_seeds)} seeds"
            terminal.print_table(console, title, make_table(line))
        for warning in line["warnings"]:
            terminal.print_text(console, f"Note: {task.name}: {warning}")
    return found


def make_table(line: ledger.Line) -> "Table":
    """Mean final train loss of every configuration tried for a method, the choice in brackets."""
    import pandas as pd

    tried: Any = pd.DataFrame(line["tried"])
    lambda0s = list(dict.fromkeys(tried["lambda0"]))
    heading = lambda value: "train loss" if pd.isna(value) else f"lambda0 {value:g}"
    table = terminal.new_table("learning rate", *map(heading, lambda0s))
    for rate, of_rate in tried.groupby("learning_rate", sort=False):
        cells = []
        for lambda0 in lambda0s:
            same = of_rate["lambda0"].isna() if pd.isna(lambda0) else of_rate["lambda0"] == lambda0
            losses = of_rate[same]["loss"].astype(float)
            lost = losses.isna().sum()
            text = f"{lost} lost" if lost else f"{losses.mean():.4f}"
            best = line["chosen"]["learning_rate"] == rate and (
                pd.isna(lambda0) or line["chosen"]["lambda0"] == lambda0
            )
            # Escaped: rich reads square brackets as markup.
            cells.append(f"\\[{text}]" if best else text)
        table.add_row(f"{rate:.4g}", *cells)
    return table


def record(setting: settings.Setting, tunings: dict[str, ledger.Line]) -> dict[str, Any]:
    """Everything about a tuning run, in JSON's types; the defaults are read from such a record."""
    short = lambda column: [
        float(f"{x:.5g}") if isinstance(x, float) else x for x in column
    ]  # fmt: skip
    return {
        "date": records.today(),
        "setting": setting.describe(),
        "seeds": list(study.TUNING_SEEDS),
        "versions": records.versions(),
        **report.fixed_numbers(),
        "methods": {
            name: {
                "chosen": line["chosen"],
                "warnings": line["warnings"],
                "tried": {key: short(column) for key, column in line["tried"].items()},
            }
            for name, line in tunings.items()
        },
    }
