"""Statistics, sentences, tables, tuning and JSON, from made-up numbers."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from dcasgd_jax.commands import (
    defaults,
    figures,
    methods,
    records,
    report,
    runs,
    settings,
    terminal,
    tuning,
)
from dcasgd_jax.plots import axes


def made_up_run(method="asgd", seed=0, loss=0.1, error=0.03, **changes):
    diverged = not loss < 2.3
    run = runs.Run(
        method=method,
        seed=seed,
        learning_rate=0.5,
        lambda0=2.0 if "dcasgd" in method else None,
        initial_train_loss=2.3,
        final_train_loss=loss,
        final_test_error=error,
        diverged=diverged,
        server_updates=100,
        simulated_seconds=12.5,
        mean_staleness=3.0,
        staleness_counts=[1, 2, 3, 94],
        max_compensation_ratio=0.5 + seed if "dcasgd" in method else None,
        median_compensation_ratio=0.1 if "dcasgd" in method else None,
        curve_pushes=[0, 50, 100],
        curve_seconds=[0.0, 6.0, 12.5],
        curve_train_loss=[2.3, 1.0, loss],
    )
    return dataclasses.replace(run, **changes)


def several(method, losses, errors=None):
    errors = errors or [0.03] * len(losses)
    pairs = zip(losses, errors, strict=True)
    return [made_up_run(method, seed, loss, error) for seed, (loss, error) in enumerate(pairs)]


def printed(table):
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()


def test_diverged_runs_are_counted_and_left_out():
    all_runs = several("dcasgd-a", [0.1, math.nan, 0.2, math.inf, 0.3])
    (summary,) = report.summarise(all_runs)
    assert (summary.num_runs, summary.num_diverged) == (5, 2)
    assert summary.train_loss.mean == pytest.approx(0.2)
    assert summary.train_loss.std == pytest.approx(0.1)
    assert summary.max_compensation_ratio == 4.5
    cells = terminal.summary_cells(summary)
    assert "0.2000 ± 0.1000" in cells
    assert "2/5 diverged" in cells


def test_all_diverged_and_a_single_survivor():
    gone, one = report.summarise(
        several("asgd", [math.nan, 9.0]) + several("dcasgd-c", [0.25, math.nan])
    )
    assert gone.train_loss is None
    assert terminal.summary_cells(gone)[3:5] == ["diverged", "-"]
    assert one.train_loss == report.Statistic(0.25, None, 0.25, 0.25)
    assert terminal.summary_cells(one)[3] == "0.2500"


def test_tiny_losses_are_not_shown_as_zero():
    (summary,) = report.summarise(several("asgd", [1e-5, 2e-5]))
    assert terminal.summary_cells(summary)[3] == "1.5e-05 ± 7.1e-06"


def test_the_widest_table_fits():
    statistic = report.Statistic(2.1234, 1.0, 1.0, 3.0)
    errors = report.Statistic(74.28, 11.46, 50.0, 90.0)
    summary = report.Summary(
        "dcasgd-capped", 0.07071, 128.0, 100, 99, statistic, errors, 25209.1, 15.99, 1.23e30
    )
    text = printed(terminal.summary_table(Console(file=io.StringIO()), [summary]))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    assert "…" not in text
    for cell in terminal.summary_cells(summary):
        assert cell in text


def test_a_narrow_terminal_cuts_no_number():
    console = Console(file=io.StringIO(), width=40)
    (summary,) = report.summarise(several("dcasgd-capped", [0.1, 0.2]))
    terminal.print_table(console, "title", terminal.summary_table(console, [summary]))
    text = console.file.getvalue()
    assert console.width == 40
    for cell in terminal.summary_cells(summary):
        assert cell in text


def test_findings_name_the_winner_and_the_overlaps():
    sentences = report.findings(
        report.summarise(
            several("sgd", [0.01, 0.02], [0.01, 0.01])
            + several("asgd", [0.5, 0.6], [0.02, 0.03])
            + several("dcasgd-c", [0.3, 0.4], [0.04, 0.05])
            + several("dcasgd-a", [0.1, 0.35], [0.05, 0.06])
            + several("dcasgd-capped", [0.001, math.nan])
        )
    )
    assert sentences == [
        "Lowest mean train loss of the parallel methods: dcasgd-a, 0.225; its range over seeds "
        "overlaps with dcasgd-c.",
        "Lowest mean test error of the parallel methods: asgd, 2.50 %; no other method's seeds "
        "come as low.",
        "dcasgd-capped: 1 of 2 runs diverged, so it is not ranked.",
    ]


def test_findings_of_one_method_or_one_seed():
    assert "no other method" in report.findings(report.summarise(several("sgd", [0.1, 0.2])))[0]
    one_seed = report.summarise(several("asgd", [0.1]) + several("dcasgd-a", [0.2]))
    assert "one seed shows no spread" in report.findings(one_seed)[0]


@pytest.mark.parametrize("finals", [[math.nan] * 2, [0.1, math.nan], [1e30, 0.2], [3.0, 2.9]])
def test_pictures_of_diverged_runs(tmp_path, finals):
    all_runs = several("dcasgd-a", finals)
    all_runs[0] = dataclasses.replace(all_runs[0], curve_train_loss=[2.3, math.nan, finals[0]])
    figures.save_comparison(tmp_path / "picture.png", all_runs, "title")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_every_method_has_a_colour_of_its_own():
    assert set(axes.COLOURS) == set(methods.METHODS)
    assert len(set(axes.COLOURS.values())) == len(methods.METHODS)


def tuned(losses, rates=(0.1, 0.2, 0.4), lambda0s=(None,)):
    return tuning.Tuned("asgd", tuning.Grid(rates, lambda0s), np.asarray(losses, float))


def test_tuning_prefers_a_combination_without_divergence():
    result = tuned([[[0.5, 0.5, 0.5]], [[0.3, 0.4, 0.3]], [[0.1, math.nan, 0.1]]])
    assert result.chosen == methods.Hyperparameters(0.2, None)
    assert result.warnings() == []
    text = printed(terminal.grid_table(result))
    assert "[0.3333]" in text
    assert "1 div." in text


def test_tuning_is_honest_about_edges_and_divergence_everywhere():
    edge = tuned([[[0.5] * 3], [[0.3] * 3], [[0.1] * 3]])
    assert "learning rate 0.4 is the largest of its grid" in edge.warnings()[0]
    everywhere = tuned([[[math.nan] * 3], [[0.3, 0.4, math.nan]], [[0.1, math.nan, 0.2]]])
    assert everywhere.chosen.learning_rate == 0.4
    assert "every combination of the grid diverged" in everywhere.warnings()[0]
    nothing = tuned([[[math.nan] * 3]] * 3)
    assert nothing.chosen.learning_rate == 0.1


@pytest.mark.parametrize("model", ["mlp", "softmax"])
@pytest.mark.parametrize("name", methods.METHODS)
def test_defaults_follow_from_the_recorded_grid(model, name):
    record = defaults.tuning_records()[model]
    assert record["setting"] == settings.Setting(model=model).describe()
    assert record["seeds"] == list(tuning.TUNING_SEEDS)
    method = record["methods"][name]
    grid = tuning.default_grid(model, methods.METHODS[name])
    assert method["learning_rates"] == list(grid.learning_rates)
    assert method["lambda0s"] == list(grid.lambda0s)
    mean = np.asarray(method["final_train_loss"], float).mean(axis=2)  # nan: diverged
    row, column = np.unravel_index(np.nanargmin(mean), mean.shape)
    expected = methods.Hyperparameters(method["learning_rates"][row], method["lambda0s"][column])
    assert defaults.default_hyperparameters(model, methods.METHODS[name]) == expected
    assert 0 < row < len(mean) - 1
    assert method["warnings"] == []


def test_json_is_strict_whole_and_compact(tmp_path):
    content = {
        "a": [1.5, math.nan, -math.inf, 1e-300, 3],
        "b": [[1, 2], [], {"c": "[1,\n 2]", "d": None}],
        "e": (True, "±", -0.0),
    }
    records.write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {
        "a": [1.5, None, None, 1e-300, 3],
        "b": [[1, 2], [], {"c": "[1,\n 2]", "d": None}],
        "e": [True, "±", -0.0],
    }
    assert "[1.5, null, null, 1e-300, 3]" in text
    assert records.read_json(tmp_path / "x.json") == json.loads(text)
    with pytest.raises(TypeError):
        records.write_json(tmp_path / "x.json", {"a": object()})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == text
    assert len(list(tmp_path.iterdir())) == 1


def test_progress_is_a_bar_on_a_terminal_and_silent_elsewhere(capsys, monkeypatch):
    with terminal.progress_bar(10) as advance:
        advance("sgd", 10)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with terminal.progress_bar(10) as advance:
        advance("sgd, seed 0", 10)
    out, err = capsys.readouterr()
    assert out == ""
    assert "sgd, seed 0" in err
    assert "100%" in err


def test_an_ascii_terminal_gets_ascii():
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=100)
    (summary,) = report.summarise(several("asgd", [0.1, 0.2]))
    console.print(terminal.summary_table(console, [summary]))
    console.file.flush()
    assert b"0.1500 +- 0.0707" in console.file.buffer.getvalue()
