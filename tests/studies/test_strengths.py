"""The study of strengths: one tiny study end to end, its report, and what is refused."""

import json
import math
import os

import pytest

from dcasgd_jax.commands import kept, settings, tuning

from . import programs

strengths = programs.load("strengths")
candidates, report, study = strengths.candidates, strengths.report, strengths.study


def cell(workers, **relative):
    rows = [
        {"name": name, "title": f"the {name}", "relative": value}
        for name, value in {"tuned": 1.0, **relative}.items()
    ]
    return {"setting": {"model": "mlp", "workers": workers}, "rows": rows}


def test_verdict_is_about_the_worst_cell():
    cells = [cell(4, a=0.9, b=1.2), cell(8, a=1.04, b=0.5)]
    assert report.verdict(cells).startswith("the a meets the goal of 1.05")
    cells = [cell(4, a=0.9, b=1.2), cell(8, a=1.3, b=0.5)]
    sentence = report.verdict(cells)
    assert sentence.startswith("No setting meets")
    assert sentence.endswith("the b, is at 1.20 in its worst cell.")


def test_a_setting_that_diverged_anywhere_is_not_recommended():
    cells = [cell(4, a=0.1, b=1.2), cell(8, a=None, b=1.2)]
    assert "the b, is at 1.20" in report.verdict(cells)
    assert math.isnan(report.relative(cells, "a")[1])
    assert report.verdict([cell(4, a=None)]) == "Every setting diverged in some cell."


def test_a_control_is_never_recommended():
    assert {"asgd", "uniform25", "uniform50"} == candidates.CONTROLS
    cells = [cell(4, asgd=1.02, ratio1=1.04, uniform50=0.9), cell(8, ratio1=1.0, uniform50=0.8)]
    cells[1]["rows"].append({"name": "asgd", "title": "the asgd", "relative": 1.0})
    sentence = report.verdict(cells)
    assert sentence.startswith("the ratio1 meets the goal of 1.05 times")
    assert sentence.endswith(
        "at worst 1.04. The control the uniform50 does no worse, 0.90: there is no proof that the "
        "curvature helps."
    )
    assert report.verdict([cell(4, asgd=2.0, ratio1=1.2)]).endswith("is at 1.20 in its worst cell.")
    assert report.verdict([cell(4, asgd=1.0, uniform25=1.0)]) == "Only controls were tried."


def test_only_rows_of_all_cells_are_compared():
    assert report.names([cell(4, a=1.0, b=1.0), cell(8, b=1.0)]) == {
        "tuned": "the tuned",
        "b": "the b",
    }


def test_every_candidate_trains(monkeypatch):
    """One short run each, by the sweep that the study uses."""
    monkeypatch.setitem(tuning.LEARNING_RATES, "softmax", (0.4,))
    monkeypatch.setitem(tuning.LAMBDA0S, "dcasgd-capped", (1.0,))
    monkeypatch.setattr(tuning, "TUNING_SEEDS", (100,))
    setting = settings.Setting(model="softmax", num_workers=4, num_pushes=160)
    pushes = 0

    def count(text, done):
        nonlocal pushes
        assert text.startswith("softmax M=4 ")
        pushes += done

    found = study.run_cell(setting, candidates.CANDIDATES, 1, count)
    assert pushes == study.num_pushes(setting, candidates.CANDIDATES, 1)
    names = [row["name"] for row in found["rows"]]
    assert names == ["tuned", "asgd", *(c.name for c in candidates.CANDIDATES)]
    for row in found["rows"]:
        assert 0 < row["train_loss"][0] < 2.3, row["name"]
    assert found["rows"][0]["relative"] == 1.0


def run(out, *options):
    command = ["--models", "softmax", "--candidates", "ratio1", "lambda4"]
    return strengths.main([*command, "--updates", "160", "--out", str(out), *options])


def test_end_to_end_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(tuning.LEARNING_RATES, "softmax", (0.4, 0.8))
    monkeypatch.setitem(tuning.LAMBDA0S, "dcasgd-capped", (1.0, 4.0))
    monkeypatch.setattr(tuning, "TUNING_SEEDS", (100,))
    assert run(tmp_path, "--workers", "4", "--seeds", "2") == 0
    first = json.loads((tmp_path / "strengths.json").read_text())
    assert run(tmp_path, "--workers", "4", "8", "--seeds", "2") == 0
    content = json.loads((tmp_path / "strengths.json").read_text())
    assert content["cells"][0] == first["cells"][0]
    assert [cell["setting"]["workers"] for cell in content["cells"]] == [4, 8]
    assert (tmp_path / "strengths.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["strengths.json", "strengths.png"]
    printed = capsys.readouterr().out
    assert "ratio(1)" in printed
    assert "M=8" in printed
    before = (tmp_path / "strengths.json").read_text()
    for options, message in (
        (("--seeds", "3"), "have seeds [0, 1], not [0, 1, 2]: choose another --out, or the same"),
        (("--seeds", "2", "--updates", "240"), "have updates 160, not 240: choose another --out"),
        (
            ("--seeds", "2", "--candidates", "ratio1"),
            'have candidates ["lambda4", "ratio1"], not ["ratio1"]: choose another --out',
        ),
    ):
        assert run(tmp_path, "--workers", "4", *options) == 2
        assert message in capsys.readouterr().err
        assert (tmp_path / "strengths.json").read_text() == before
    with kept.held(tmp_path):
        assert run(tmp_path, "--workers", "4", "--seeds", "2") == 2
    assert f"process {os.getpid()} on" in capsys.readouterr().err


DAMAGE = {
    "{": "(line 1: Expecting property name",
    "[]": "([] is no JSON object)",
    "{}": "(there is no cells)",
    '{"cells": [3]}': "(in its cell 1 3 is no JSON object)",
    '{"cells": [{"setting": {}, "seeds": [0]}]}': "(in its cell 1 there is no rows)",
    '{"cells": [{"setting": {}, "seeds": [0], "rows": [{}]}]}': "(in its cell 1: row 1 there is no",
    '{"cells": [{"setting": {"model": "mlp"}, "seeds": [0], "rows": []}]}': "there is no workers)",
}


@pytest.mark.parametrize("content", DAMAGE)
def test_a_damaged_file_is_named_in_one_line(tmp_path, capsys, content):
    (tmp_path / "strengths.json").write_text(content)
    assert run(tmp_path, "--workers", "4", "--seeds", "2") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "strengths.json is no result of strengths.py, or damaged" in error
    assert DAMAGE[content] in error
    assert (tmp_path / "strengths.json").read_text() == content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", "64"), "--updates 160: use at least 256 with 64 workers"),
        (("--workers", "0"), "is not an integer >= 1"),
        (("--candidates", "magic"), "invalid choice: 'magic'"),
    ],
)
def test_bad_options(tmp_path, capsys, options, message):
    assert run(tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
