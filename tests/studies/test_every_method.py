"""The study of every method: end to end, resumed, refused, and what its report says."""

import json
import shutil

import jax
import pytest

from dcasgd_jax.commands import ledger, study, tuning

from . import programs
from .conftest import STUDIES

every_method = programs.load("every_method")
report = every_method.report

FEW = ("--methods", "asgd", "svrg", "staleness-lr")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(tuning, "NUM_CONFIGURATIONS", 3)


def run(out, *options):
    command = ["--model", "softmax", "--law", "gamma", "--updates", "160"]
    return every_method.main([*command, "--out", str(out), *options])


def read(out):
    return [json.loads(line) for line in (out / ledger.RESULTS).read_text().splitlines()]


def names(lines, kind):
    return list(dict.fromkeys(line[kind]["method"] for line in lines if kind in line))


def test_end_to_end_goes_on_where_it_stopped(tmp_path, capsys):
    cell = ("--workers", "4", "--momentum", "0", "--seeds", "2")
    assert run(tmp_path, *cell, "--methods", "asgd", "svrg") == 0
    said = capsys.readouterr()
    assert "4 runs, 0 of them in" in said.out
    assert "2 methods to tune first, 18 runs." in said.out
    assert "asgd: tuned, 9 runs" in said.err  # not a terminal: a line for each part
    first = read(tmp_path)
    assert run(tmp_path, *cell, *FEW) == 0
    assert "1 methods to tune first" in capsys.readouterr().out
    second = read(tmp_path)
    assert second[: len(first)] == first
    assert names(second, "run") == names(second, "tuned") == ["asgd", "svrg", "staleness-lr"]
    assert (tmp_path / "every-method.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "every-method.csv").read_text().count("\n") == 4
    assert run(tmp_path, *cell, *FEW) == 0
    assert "6 runs, 6 of them in" in capsys.readouterr().out
    assert read(tmp_path) == second


def test_cells_with_and_without_momentum(tmp_path, capsys, monkeypatch):
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(True))
    options = ("--workers", "2", "--momentum", "0", "0.5", "--seeds", "1")
    assert run(tmp_path, *options, "--methods", "asgd", "dana-slim") == 0
    # Programs that no other cell can use are dropped: a thousand of them crash the process.
    assert len(cleared) == 1
    found = {(line["run"]["momentum"], line["run"]["method"])
             for line in read(tmp_path) if "run" in line}  # fmt: skip
    assert found == {(None, "asgd"), (0.5, "asgd"), (0.5, "dana-slim")}
    printed = capsys.readouterr().out
    assert "softmax on digits, without momentum" in printed
    assert "softmax on digits, momentum 0.5" in printed


def test_cells_that_no_chosen_method_is_for_are_left_out(tmp_path, capsys):
    options = ("--workers", "2", "--seeds", "1", "--methods", "dana-slim")
    assert run(tmp_path / "none", *options, "--momentum", "0") == 2
    assert "none of these is for these cells" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", "64"), "--updates 160: use at least 256 with 64 workers"),
        (("--workers", "1"), "is not an integer >= 2"),
        (("--methods", "magic"), "invalid choice: 'magic'"),
        (("--momentum", "-1"), "is not a finite number in [0, 1)"),
        (("--law", "magic"), "invalid choice: 'magic'"),
        (("--seeds", "101"), "are for tuning"),
    ],
)
def test_bad_options(tmp_path, capsys, options, message):
    assert run(tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_committed_results_are_reported(tmp_path, capsys):
    kept = STUDIES / "results" / "every_method"
    for name in (ledger.RESULTS, ledger.SETTINGS):
        shutil.copy(kept / name, tmp_path)
    assert every_method.main(["--report-only", "--out", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    # median, worst, better, equal, worse, first, cells, diverged
    assert ["dcasgd-a", "0.72", "1.13", "14", "6", "0", "0", "24", "7/120"] in [r[:9] for r in rows]


def lines_of(workers, **methods):
    """Runs in one cell: final losses of the seeds of each method; None: diverged."""
    cell = {"model": "mlp", "workers": workers, "law": "gamma", "momentum": None}
    numbers = {"learning_rate": 0.1, "lambda0": None}
    return [
        {
            "run": {**cell, "method": name, **numbers, "seed": seed},
            "train_loss": loss,
            "test_error": 0.1 * len(name),
        }
        for name, losses in methods.items()
        for seed, loss in enumerate(losses)
    ]


def tunings_of(lines):
    cells = {tuple(line["run"].items())[:5]: line["run"] for line in lines}
    return [
        {"tuned": {k: run[k] for k in ("model", "workers", "law", "momentum", "method")},
         "within_twice": [0.1, 0.3]}
        for run in cells.values()
    ]  # fmt: skip


def rows(*cells):
    lines = [line for cell in cells for line in cell]
    return report.rows(lines, tunings_of(lines))


def test_verdicts_need_seeds_that_do_not_overlap():
    table = rows(
        lines_of(
            4, asgd=[1.0, 1.2], lower=[0.5, 0.9], overlapping=[0.5, 1.1], higher=[1.3, 2.0],
            lost=[0.1, None],
        )
    )  # fmt: skip
    assert list(table["verdict"]) == ["", "better", "equal", "worse", "diverged"]


def test_summary_counts_cells():
    table = rows(
        lines_of(4, sgd=[0.1], asgd=[1.0], a=[0.5], b=[None]),
        lines_of(8, asgd=[1.0], a=[2.0], b=[0.25]),
    )
    found = report.summarise(table)
    sgd, asgd, a, b = (found.loc[name] for name in ("sgd", "asgd", "a", "b"))
    assert a["median_error_difference"] == pytest.approx(-30)  # a and asgd: 0.1 and 0.4
    assert asgd["median_rate_room"] == pytest.approx(3)
    assert (a["median_relative"], a["worst_relative"]) == (1.25, 2.0)
    assert (a["better"], a["equal"], a["worse"], a["first_in_cells"]) == (1, 0, 1, 1)
    assert (b["median_relative"], b["diverged_cells"], b["diverged_runs"]) == (0.25, 1, 1)
    assert (b["runs"], b["cells"], b["first_in_cells"]) == (2, 2, 1)
    assert sgd["first_in_cells"] == 0  # not parallel
    assert asgd["median_relative"] == 1.0


def test_loss_text():
    nan = float("nan")
    assert report.loss_text([0.5, nan, 0.2]) == "1/3 div."
    assert report.loss_text([0.012345]) == "12.3"
    assert report.loss_text([0.001, 0.002]) == "1.50±0.7"
    assert report.loss_text([2.3456]) == "2346"


def test_the_program_has_the_engine_s_seeds():
    assert study.TUNING_SEEDS[0] == 100
