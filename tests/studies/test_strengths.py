"""The study of strengths: one tiny study end to end, its report, and what is refused."""

import dataclasses
import json
import math
import shutil

import pytest

from dcasgd_jax.commands import ledger, methods, runs, settings, study, tuning

from . import programs
from .conftest import STUDIES

strengths = programs.load("strengths")
candidates, report = strengths.candidates, strengths.report


def lines_of(workers, seeds=1, **relative):
    """Runs in one cell, losses as multiples of those of the tuned strength; None: diverged."""
    return [
        {
            "run": {"model": "mlp", "workers": workers, "method": name, "seed": seed},
            "train_loss": value and value * 0.1,
        }
        for name, value in {"tuned": 1.0, **relative}.items()
        for seed in range(seeds)
    ]


def verdict(*cells):
    return report.verdict(report.relative([line for cell in cells for line in cell]))


def test_verdict_is_about_the_worst_cell():
    found = verdict(lines_of(4, paper=0.9, lambda4=1.2), lines_of(8, paper=1.04, lambda4=0.5))
    assert found.startswith("λ0 = 2, uncapped: the paper's meets the goal of 1.05")
    found = verdict(lines_of(4, paper=0.9, lambda4=1.2), lines_of(8, paper=1.3, lambda4=0.5))
    assert found.startswith("No setting meets")
    assert found.endswith("λ0 = 4, is at 1.20 in its worst cell.")


def test_a_setting_that_diverged_anywhere_is_not_recommended():
    cells = lines_of(4, 2, paper=0.1, lambda4=1.2), lines_of(8, 2, paper=0.1, lambda4=1.2)
    cells[1][-4 + 1]["train_loss"] = None  # one of two seeds of `paper`
    assert "λ0 = 4, is at 1.20" in verdict(*cells)
    assert math.isnan(report.relative([*cells[0], *cells[1]]).loc["paper", ("mlp", 8)])
    assert verdict(lines_of(4, paper=None)) == "Every setting diverged in some cell."


def test_a_control_is_never_recommended():
    assert {"asgd", "uniform25", "uniform50"} == candidates.CONTROLS
    sentence = verdict(
        lines_of(4, asgd=1.02, ratio1=1.04, uniform50=0.9),
        lines_of(8, ratio1=1.0, uniform50=0.8, asgd=1.0),
    )
    assert sentence.startswith("ratio(1) meets the goal of 1.05 times")
    assert sentence.endswith(
        "at worst 1.04. The control uniform pull of 0.5 does no worse, 0.90: there is no proof "
        "that the curvature helps."
    )
    assert verdict(lines_of(4, asgd=2.0, ratio1=1.2)).endswith("is at 1.20 in its worst cell.")
    assert verdict(lines_of(4, asgd=1.0, uniform25=1.0)) == "Only controls were tried."


def test_only_rows_of_all_cells_are_compared():
    table = report.relative(lines_of(4, paper=1.0, lambda4=1.0) + lines_of(8, lambda4=1.0))
    assert list(table.index) == ["tuned", "lambda4"]


@pytest.mark.parametrize("method", candidates.CANDIDATES, ids=lambda method: method.name)
def test_every_candidate_trains(method):
    setting = settings.Setting(model="softmax", num_workers=4, num_pushes=160)
    member = study.Member(methods.Hyperparameters(0.4, method.numbers[0]), 0)
    pushes = []
    (found,) = runs.train(setting, method, [member], pushes.append)
    assert sum(pushes) == 160
    assert 0 < found["train_loss"] < 2.3


def run(out, *options):
    command = ["--model", "softmax", "--methods", "ratio1", "lambda4"]
    return strengths.main([*command, "--updates", "160", "--out", str(out), *options])


def read(out):
    return [json.loads(line) for line in (out / ledger.RESULTS).read_text().splitlines()]


def test_end_to_end_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "NUM_CONFIGURATIONS", 2)
    fewer = dataclasses.replace(candidates.TUNED, numbers=(4.0,))
    monkeypatch.setattr(candidates, "TUNED", fewer)
    assert run(tmp_path, "--workers", "4", "--seeds", "2") == 0
    first = read(tmp_path)
    assert run(tmp_path, "--workers", "4", "8", "--seeds", "2") == 0
    lines = read(tmp_path)
    assert lines[: len(first)] == first
    assert [line["run"]["workers"] for line in lines if "run" in line] == [4] * 8 + [8] * 8
    assert (tmp_path / "strengths.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "ratio(1)" in printed
    assert "M=8" in printed
    assert run(tmp_path, "--workers", "4", "--seeds", "2", "--updates", "240") == 2
    assert "have updates 160, not 240: choose another --out" in capsys.readouterr().err
    assert read(tmp_path) == lines
    assert strengths.main(["--report-only", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.partition("softmax:")[2] in printed


def test_the_committed_results_are_reported(tmp_path, capsys):
    kept = STUDIES / "results" / "strengths"
    for name in (ledger.RESULTS, ledger.SETTINGS):
        shutil.copy(kept / name, tmp_path)
    assert strengths.main(["--report-only", "--out", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "|g|, capped_share(0.02), is at 1.15 in its worst cell" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", "64"), "--updates 160: use at least 256 with 64 workers"),
        (("--workers", "0"), "is not an integer >= 1"),
        (("--methods", "magic"), "invalid choice: 'magic'"),
    ],
)
def test_bad_options(tmp_path, capsys, options, message):
    assert run(tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
