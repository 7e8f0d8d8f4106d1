"""The study of every method and `compare --methods all`: end to end, resumed, refused."""

import json
import math

import jax
import numpy as np
import pytest

from dcasgd_jax.commands import catalogue, command_line, tuning
from dcasgd_jax.commands.catalogue import cells, report
from dcasgd_jax.commands.catalogue.entry import Entry

from . import programs

every_method = programs.load("every_method")

FEW = ("--methods", "asgd", "svrg", "staleness-lr")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(catalogue, "NUM_CONFIGURATIONS", 3)
    monkeypatch.setattr(cells, "TUNING_SEEDS", (100,))


def run(out, *options):
    command = ["--models", "softmax", "--laws", "gamma", "--updates", "160"]
    return every_method.main([*command, "--out", str(out), *options])


def read(out):
    return json.loads((out / "every-method.json").read_text())


def test_end_to_end_goes_on_where_it_stopped(tmp_path, capsys):
    cell = ("--workers", "4", "--momenta", "0", "--seeds", "2")
    assert run(tmp_path, *cell, "--methods", "asgd", "svrg") == 0
    assert "2 methods in 1 cells to run." in capsys.readouterr().out
    first = read(tmp_path)
    assert run(tmp_path, *cell, *FEW) == 0
    assert "1 methods in 1 cells to run." in capsys.readouterr().out
    second = read(tmp_path)
    assert [row["name"] for row in second["cells"][0]["rows"]] == ["asgd", "svrg", "staleness-lr"]
    assert second["cells"][0]["rows"][:2] == first["cells"][0]["rows"]
    assert [line["name"] for line in second["summary"]] == ["asgd", "svrg", "staleness-lr"]
    assert len(second["cells"][0]["rows"][0]["train_loss"]) == 2
    assert (tmp_path / "every-method.png").read_bytes().startswith(b"\x89PNG")
    assert run(tmp_path, *cell, *FEW) == 0
    assert "to run" not in capsys.readouterr().out
    assert read(tmp_path)["cells"] == second["cells"]


def test_an_interrupted_cell_keeps_its_methods(tmp_path, monkeypatch, capsys):
    cell = ("--workers", "4", "--momenta", "0", "--seeds", "1", "--methods", "asgd", "svrg")
    run_method = cells.run

    def interrupted(cell, entry, *rest):
        if entry.name == "svrg":
            raise KeyboardInterrupt
        return run_method(cell, entry, *rest)

    monkeypatch.setattr(cells, "run", interrupted)
    assert run(tmp_path, *cell) == 130
    assert not (tmp_path / "every-method.json").exists()
    monkeypatch.setattr(cells, "run", run_method)
    capsys.readouterr()
    assert run(tmp_path, *cell) == 0
    assert "1 methods in 1 cells to run." in capsys.readouterr().out


def test_cells_with_and_without_momentum(tmp_path, capsys, monkeypatch):
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(True))
    options = ("--workers", "2", "--momenta", "0", "0.5", "--seeds", "1")
    assert run(tmp_path, *options, "--methods", "asgd", "dana-slim") == 0
    # Programs that no other cell can use are dropped: a thousand of them crash the process.
    assert len(cleared) == 1
    without, with_it = read(tmp_path)["cells"]
    assert [row["name"] for row in without["rows"]] == ["asgd"]
    assert [row["name"] for row in with_it["rows"]] == ["asgd", "dana-slim"]
    assert with_it["setting"]["momentum"] == 0.5
    printed = capsys.readouterr().out
    assert "softmax on digits, without momentum" in printed
    assert "softmax on digits, momentum 0.5" in printed


def test_cells_that_no_chosen_method_is_for_are_left_out(tmp_path, capsys):
    options = ("--workers", "2", "--seeds", "1", "--methods", "dana-slim")
    assert run(tmp_path / "none", *options, "--momenta", "0") == 2
    assert "none of these is for these cells" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert run(tmp_path / "one", *options, "--momenta", "0", "0.5") == 0
    assert [cell["setting"]["momentum"] for cell in read(tmp_path / "one")["cells"]] == [0.5]


def test_compare_with_all_methods_is_one_cell(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(catalogue, "names", lambda: ("asgd", "fedbuff"))
    command = ["compare", "--methods", "all", "--model", "softmax", "--workers", "4"]
    command += ["--law", "exponential", "--law-param", "mean=1,1,1,3", "--momentum", "0.5"]
    command += ["--updates", "160", "--seeds", "1", "--out", str(tmp_path)]
    assert command_line.main(command) == 0
    (cell,) = read(tmp_path)["cells"]
    assert cell["setting"]["law_params"] == {"mean": [1.0, 1.0, 1.0, 3.0]}
    assert cell["setting"]["momentum"] == 0.5
    assert [row["name"] for row in cell["rows"]] == ["asgd", "fedbuff"]
    assert "loss within twice" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "all", "--tune"), "--tune: --methods all tunes every method"),
        (("--methods", "all", "--lambda0", "2"), "--lambda0: --methods all tunes every method"),
        (("--methods", "all", "asgd"), "has every method in it"),
        (("--methods", "all", "--workers", "1"), "needs 2 or more"),
        (("--methods", "all", "--batch", "9999"), "only 1347 training images"),
        (("--methods", "all", "--seeds", "101"), "are for tuning"),
        (("--momentum", "0.9"), "use it with --methods all"),
        (("--methods", "all", "--momentum", "1"), "'1' is not a number in [0, 1)"),
    ],
)
def test_bad_options_of_compare(tmp_path, capsys, options, message):
    assert command_line.main(["compare", *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", "64"), "--updates 160: use at least 256 with 64 workers"),
        (("--workers", "1"), "is not an integer >= 2"),
        (("--methods", "magic"), "invalid choice: 'magic'"),
        (("--momenta", "-1"), "is not a number in [0, 1)"),
        (("--laws", "magic"), "invalid choice: 'magic'"),
    ],
)
def test_bad_options(tmp_path, capsys, options, message):
    assert run(tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_comparison_is_refused(tmp_path, capsys):
    cell = ("--workers", "4", "--momenta", "0", "--methods", "asgd")
    assert run(tmp_path, *cell, "--seeds", "1") == 0
    assert run(tmp_path, *cell, "--seeds", "2") == 2
    assert "has seeds [0], not [0, 1]: choose another --out" in capsys.readouterr().err
    assert run(tmp_path, *cell, "--seeds", "1", "--updates", "128") == 2
    assert "has updates 160, not 128: choose another --out" in capsys.readouterr().err
    path = tmp_path / "cells" / "softmax-m4-gamma.json"
    content = json.loads(path.read_text())
    del content["rows"][0]["train_loss"]
    for text, why in (
        ('{"what": "is this"}', "there is no name"),
        ("[]", "[] is no JSON object"),
        ('{\n"name": ', "line 2: Expecting value"),
        (json.dumps(content), "in its row 1 there is no train_loss"),
    ):
        path.write_text(text)
        assert run(tmp_path, *cell, "--seeds", "1") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"or damaged ({why}" in error
        assert "gamma.json is no result of dcasgd-jax compare" in error
        assert path.read_text() == text


def row(name, *losses, **fields):
    made = {"name": name, "title": name, "train_loss": list(losses), "within_twice": [0.1, 0.3]}
    return {**made, "test_error": [0.1 * len(name)] * len(losses), **fields}


def cell(*rows):
    return {
        "setting": {"model": "mlp", "workers": 4, "law": "gamma", "momentum": None},
        "rows": rows,
    }


def test_verdicts_need_seeds_that_do_not_overlap():
    of_rows = [
        row("asgd", 1.0, 1.2),
        row("lower", 0.5, 0.9),
        row("overlapping", 0.5, 1.1),
        row("higher", 1.3, 2.0),
        row("lost", 0.1, None),
    ]
    found = [report.verdict(cell(*of_rows), r) for r in of_rows]
    assert found == ["", "better", "equal", "worse", "diverged"]


def test_summary_counts_cells():
    one = cell(row("sgd", 0.1), row("asgd", 1.0), row("a", 0.5), row("b", None))
    two = cell(row("asgd", 1.0), row("a", 2.0), row("b", 0.25))
    sgd, asgd, a, b = report.summarise([one, two])
    assert a["median_error_difference"] == pytest.approx(-30)  # a and asgd: 0.1 and 0.4
    assert asgd["median_rate_room"] == pytest.approx(3)
    assert (a["median_relative"], a["worst_relative"]) == (1.25, 2.0)
    assert (a["better"], a["equal"], a["worse"], a["first_in_cells"]) == (1, 0, 1, 1)
    assert (b["median_relative"], b["diverged_cells"], b["diverged_runs"]) == (0.25, 1, 1)
    assert (b["runs"], b["cells"], b["first_in_cells"]) == (2, 2, 1)
    assert sgd["first_in_cells"] == 0  # not parallel
    assert asgd["median_relative"] == 1.0


def test_loss_text():
    assert report.loss_text(None) == "-"
    assert report.loss_text(row("a", 0.5, None, 0.2)) == "1/3 div."
    assert report.loss_text(row("a", 0.012345)) == "12.3"
    assert report.loss_text(row("a", 0.001, 0.002)) == "1.50±0.7"
    assert report.loss_text(row("a", 2.3456)) == "2346"


def test_ranges_of_the_rate_have_no_gap():
    losses = np.array([4.0, 1.5, 1.0, 1.9, np.nan, 1.0])
    grid = tuning.Grid((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), (None,))
    found = cells.rate_ranges(tuning.Tuned("a", grid, losses[:, None, None]))
    assert found == {"stable": [1.0, 4.0], "within_twice": [2.0, 4.0]}
    diverged = tuning.Tuned("a", grid, np.full((6, 1, 1), math.nan))
    assert cells.rate_ranges(diverged) == {"stable": None, "within_twice": None}


def test_a_nan_of_the_fresh_seeds_is_written_as_none(tmp_path, monkeypatch):
    entry = Entry("asgd", "lost", lambda *_: [cells.runs.Outcome(math.nan, math.nan)] * 3)
    monkeypatch.setattr(catalogue, "entries", lambda *_: (entry,))
    options = ("--workers", "4", "--momenta", "0", "--seeds", "3", "--methods", "asgd")
    assert run(tmp_path, *options) == 0
    (found,) = read(tmp_path)["cells"][0]["rows"]
    assert found["train_loss"] == [None] * 3
    assert read(tmp_path)["summary"][0]["diverged_runs"] == 3
