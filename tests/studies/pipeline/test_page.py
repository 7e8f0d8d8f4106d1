"""The published page says what the published runs say."""

import dataclasses
import json
import pathlib
import re

import pytest

pytest.importorskip("flax")

import shakespeare
from pipeline import methods, settings, summary

from dcasgd_jax.commands import ledger, study

NOTEBOOKS = pathlib.Path(__file__).parents[3] / "notebooks"
RESULTS = NOTEBOOKS / "studies/results/shakespeare"
COLUMNS = ("2", "4", "8", "2bw", "stages")  # delays, in the order of the page's table
TITLES = {
    "uncorrected": "uncorrected",
    "dcasgd-a": "DC-ASGD-a",
    "capped": "DC-ASGD-a, capped",
    "prediction": "weight prediction",
    "pull": "pull",
}


def summaries():
    saved = json.loads((RESULTS / ledger.SETTINGS).read_text())
    names = [field.name for field in dataclasses.fields(settings.Setting)]
    lines, _ = study.read_all(RESULTS, shakespeare.PROGRAM, shakespeare.check)
    fresh = [line for line in lines if line["run"]["seed"] not in study.TUNING_SEEDS]
    setting = settings.Setting(**{name: saved[name] for name in names})
    return summary.summarise(fresh, setting.tokens)


def cell(found):
    overhead = "none"
    if found.overhead is not None:
        overhead = f"{found.overhead.mean:.0%}".replace("%", " %")
        if found.num_not_reached:
            overhead += f", of {found.num_runs - found.num_not_reached} seeds"
    return f"{found.gap.mean:.3f} ± {found.gap.std:.3f} ({overhead})"


def test_the_page_has_the_numbers_of_the_runs():
    found = summaries()
    page = (NOTEBOOKS / "results/shakespeare.md").read_text().replace("\xa0", " ")
    rows = re.findall(r"^\| (?:(Adam|Muon), )?(\w[^|]+) \| (-?0\..+) \|$", page, re.MULTILINE)
    assert len(rows) == 2 * len(methods.METHODS)
    optimizer = None
    for first, title, cells in rows:
        optimizer = first.lower() or optimizer
        (method,) = (name for name in TITLES if TITLES[name] == title)
        expected = [
            next(cell(s) for s in found if s[:3] == (optimizer, delay, method)) for delay in COLUMNS
        ]
        assert cells.split(" | ") == expected, (optimizer, title)
    for one in found:
        if one.delay == "0":
            loss = f"{one.optimizer.title()} {one.validation_loss.mean:.3f}"
            assert f"{loss} ± {one.validation_loss.std:.3f}" in page
    assert not any(one.num_diverged for one in found)
