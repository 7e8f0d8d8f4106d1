"""Whole comparisons, tiny ones, through the command line."""

import importlib.metadata
import math
import re
import statistics

import numpy as np
import pytest

from dcasgd_jax import digits, sim
from dcasgd_jax.commands import methods, runs, settings

from . import cli

ALL = list(methods.METHODS)
ASYNCHRONOUS = ["asgd", "dcasgd-c", "dcasgd-a", "dcasgd-capped"]
# λ0 so large that even a tiny run feels it.
FIXED = ["--learning-rate", "0.2", "--lambda0", "4"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *cli.compare(folder, *FIXED)


def without_dates(content):
    return {key: value for key, value in content.items() if key not in ("date", "wall_seconds")}


def flat(text):
    """Without the line breaks that a width of 100 columns makes."""
    return " ".join(text.split())


def test_all_files_are_there_and_nothing_else(whole):
    folder, *_ = whole
    assert sorted(path.name for path in folder.iterdir()) == ["compare.json", "compare.png"]
    picture = (folder / "compare.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 30_000


def test_json_holds_settings_versions_and_every_run(whole):
    folder, _, content = whole
    expected = {
        "model": "softmax",
        "workers": 4,
        "law": "gamma",
        "law_params": {"shape": 100.0, "mean": 1.0},
        "updates": 64,
        "batch": 4,
        "methods": ALL,
        "seeds": [0, 1],
        "tune": False,
        "out": str(folder),
    }
    assert expected.items() <= content["settings"].items()
    for name in ("jax", "jaxlib", "numpy", "optax", "scikit-learn", "dcasgd-jax"):
        assert content["versions"][name] == importlib.metadata.version(name)
    assert [(run["method"], run["seed"]) for run in content["runs"]] == [
        (method, seed) for method in ALL for seed in (0, 1)
    ]
    for method, numbers in content["settings"]["hyperparameters"].items():
        assert numbers["learning_rate"] == 0.2
        assert numbers["lambda0"] == (4 if methods.METHODS[method].compensates else None)
    for run in content["runs"]:
        assert run["curve_pushes"][0] == 0
        assert run["curve_pushes"][-1] == sum(run["staleness_counts"]) == 64
        assert run["curve_train_loss"][0] == run["initial_train_loss"]
        assert run["curve_train_loss"][-1] == run["final_train_loss"]
        assert run["curve_seconds"][-1] == run["simulated_seconds"]
        assert run["server_updates"] == (16 if run["method"] == "ssgd" else 64)


@pytest.mark.parametrize("method", ALL)
def test_table_and_summary_are_the_statistics_of_the_runs(whole, method):
    _, result, content = whole
    losses = [run["final_train_loss"] for run in cli.runs_of(content, method)]
    errors = [100 * run["final_test_error"] for run in cli.runs_of(content, method)]
    (row,) = (line for line in result.out.splitlines() if line.startswith(f"{method} "))
    (summary,) = (s for s in content["summary"] if s["method"] == method)
    cells = re.findall(r"([\d.]+) ± ([\d.]+)", row)
    for values, field, (mean, std), places in (
        (losses, "train_loss", cells[0], 4),
        (errors, "test_error_percent", cells[1], 2 if statistics.mean(errors) < 10 else 1),
    ):
        assert mean == f"{statistics.mean(values):.{places}f}"
        assert std == f"{statistics.stdev(values):.{places}f}"
        np.testing.assert_allclose(summary[field]["mean"], statistics.mean(values), rtol=1e-12)
        np.testing.assert_allclose(summary[field]["std"], statistics.stdev(values), rtol=1e-9)
        assert (summary[field]["min"], summary[field]["max"]) == (min(values), max(values))


def test_output_fits_100_columns_and_says_where_the_numbers_are(whole):
    folder, result, _ = whole
    *lines, last = result.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in result.out
    assert not result.err
    assert last.startswith(f"Saved {folder / 'compare.json'} and compare.png")


def test_what_a_seed_decides_is_the_same_for_every_method(whole):
    *_, content = whole
    for seed in (0, 1):
        of_seed = [run for run in content["runs"] if run["seed"] == seed]
        assert len({run["initial_train_loss"] for run in of_seed}) == 1
        raced = [run for run in of_seed if run["method"] in ASYNCHRONOUS]
        for field in ("curve_seconds", "staleness_counts"):
            assert all(run[field] == raced[0][field] for run in raced)
    first, second = cli.runs_of(content, "asgd")
    assert first["curve_seconds"] != second["curve_seconds"]
    assert first["initial_train_loss"] != second["initial_train_loss"]


def test_asynchronous_methods_share_one_schedule_object():
    workload = runs.make_workload(settings.Setting(num_workers=4, num_pushes=64), seed=3)
    shared = {id(workload.schedules[methods.METHODS[name].protocol]) for name in ASYNCHRONOUS}
    assert len(shared) == 1
    law = sim.GammaTime()
    expected = sim.make_schedule(law, 4, 64, seed=3)
    schedule = workload.schedules[sim.Asynchronous()]
    np.testing.assert_array_equal(schedule.worker, expected.worker)
    np.testing.assert_array_equal(schedule.time, expected.time)


def test_staleness_and_compensation_are_reported_where_they_exist(whole):
    *_, content = whole
    for run in content["runs"]:
        assert (run["mean_staleness"] == 0) == (run["method"] in ("sgd", "ssgd"))
        assert (run["max_compensation_ratio"] is None) == ("dcasgd" not in run["method"])
        if "dcasgd" in run["method"]:
            assert run["max_compensation_ratio"] > run["median_compensation_ratio"] > 0
    seconds = {run["method"]: run["simulated_seconds"] for run in content["runs"]}
    assert seconds["asgd"] < seconds["ssgd"] < seconds["sgd"]


def test_compensation_changes_the_run_and_the_cap_changes_it_again(whole):
    *_, content = whole
    finals = [cli.runs_of(content, name)[0]["final_train_loss"] for name in ASYNCHRONOUS]
    assert len(set(finals)) == len(finals)


def test_lambda0_zero_is_asgd_to_the_bit(tmp_path):
    _, content = cli.compare(
        tmp_path, "--methods", *ASYNCHRONOUS, "--learning-rate", "0.2", "--lambda0", "0"
    )
    curves = [[run["curve_train_loss"] for run in cli.runs_of(content, m)] for m in ASYNCHRONOUS]
    assert all(curve == curves[0] for curve in curves)


def test_same_seeds_give_identical_numbers_and_replace_the_files(whole):
    folder, _, content = whole
    _, again = cli.compare(folder, *FIXED)
    assert without_dates(again) == without_dates(content)
    assert len(list(folder.iterdir())) == 2


def test_given_values_reach_the_runs(whole, tmp_path):
    *_, content = whole
    arguments = ["--learning-rate", "0.2", "--learning-rate", "sgd=0.1", "--lambda0", "dcasgd-c=1"]
    result, changed = cli.compare(tmp_path, "--methods", "dcasgd-c", "sgd", "ssgd", *arguments)
    assert changed["settings"]["methods"] == ["sgd", "ssgd", "dcasgd-c"]
    assert changed["settings"]["hyperparameters"] == {
        "sgd": {"learning_rate": 0.1, "lambda0": None},
        "ssgd": {"learning_rate": 0.2, "lambda0": None},
        "dcasgd-c": {"learning_rate": 0.2, "lambda0": 1},
    }
    assert cli.runs_of(changed, "ssgd") == cli.runs_of(content, "ssgd")
    for name in ("sgd", "dcasgd-c"):
        before, after = cli.runs_of(content, name)[0], cli.runs_of(changed, name)[0]
        assert before["final_train_loss"] != after["final_train_loss"]
    assert "tuned for other values" not in result.out


def test_defaults_for_another_setting_come_with_a_note(tmp_path):
    result, content = cli.compare(tmp_path, "--methods", "asgd")
    assert "tuned for other values of workers, updates, batch; --tune chooses" in flat(result.out)
    assert content["notes"][0].startswith("Note: the default learning rates")
    assert content["defaults_tuned_for"]["setting"]["workers"] == 8


def test_updates_are_rounded_down_to_whole_rounds_with_a_note(tmp_path):
    result, content = cli.compare(tmp_path, "--methods", "ssgd", "--updates", "67")
    assert "--updates 67 rounded down to 64, a multiple of 4 workers" in flat(result.out)
    assert content["settings"]["updates"] == 64
    assert content["runs"][0]["server_updates"] == 16


def test_diverged_runs_are_reported_and_not_averaged(tmp_path):
    rates = ["--learning-rate", "asgd=1e38", "--learning-rate", "sgd=0.5"]
    result, content = cli.compare(tmp_path, "--methods", "asgd", "sgd", *rates)
    assert [run["diverged"] for run in cli.runs_of(content, "asgd")] == [True, True]
    assert cli.runs_of(content, "asgd")[0]["final_train_loss"] is None
    summary = {s["method"]: s for s in content["summary"]}
    assert summary["asgd"]["train_loss"] is None
    assert summary["asgd"]["num_diverged"] == 2
    (row,) = (line for line in result.out.splitlines() if line.startswith("asgd "))
    assert "2/2 diverged" in row
    assert "±" not in row
    assert "asgd: 2 of 2 runs diverged" in flat(result.out)
    assert (tmp_path / "compare.png").stat().st_size > 10_000


def test_a_finite_loss_above_the_initial_one_is_diverged(tmp_path):
    _, content = cli.compare(tmp_path, "--methods", "asgd", "--learning-rate", "1e6")
    for run in content["runs"]:
        assert run["final_train_loss"] > run["initial_train_loss"]
        assert run["diverged"]
    assert content["findings"] == ["asgd: 2 of 2 runs diverged."]


def test_a_run_that_learnt_nothing_is_diverged(monkeypatch):
    """Finite and below the initial loss, but no better than a uniform guess."""
    setting = settings.Setting(num_workers=2, num_pushes=8, batch_size=4)
    workload = runs.make_workload(setting, seed=0)
    losses = iter([2.9, math.log(10)])
    task = digits.problem(setting.model)
    evaluate = lambda params: digits.Evaluation(next(losses), 0.9)
    monkeypatch.setattr(digits, "task", lambda model: task._replace(evaluate=evaluate))
    numbers = methods.Hyperparameters(0.1)
    run = runs.train(setting, methods.METHODS["asgd"], numbers, workload, curve=False)
    assert (run.initial_train_loss, run.diverged) == (2.9, True)


def test_a_law_with_one_value_per_worker(tmp_path):
    _, content = cli.compare(
        tmp_path,
        *("--methods", "sgd", "ssgd", "--law", "constant", "--law-param", "seconds=2,1,1,5"),
        *("--learning-rate", "0.5", "--seeds", "1"),
    )
    assert content["settings"]["law_params"] == {"seconds": [2, 1, 1, 5]}
    seconds = {run["method"]: run["simulated_seconds"] for run in content["runs"]}
    assert seconds == {"sgd": 2 * 64, "ssgd": 5 * 16}
    assert content["summary"][0]["train_loss"]["std"] is None
    assert "one seed shows no spread" not in content["findings"][0]  # nothing to compare with


def test_tuning_chooses_the_lowest_mean_loss_and_uses_it(tmp_path):
    (tmp_path / "tuned.json").write_text('{"mlp": {"kept": true}}')
    result, content = cli.compare(
        tmp_path,
        *("--methods", "asgd", "dcasgd-a", "--tune", "--learning-rate", "0.1,0.2,0.4"),
        *("--learning-rate", "asgd=0.2", "--lambda0", "1,1e30"),
    )
    records = cli.strict_json(tmp_path / "tuned.json")
    assert records["mlp"] == {"kept": True}
    record = records["softmax"]
    assert content["tuning"] == record
    assert record["seeds"] == [100, 101, 102]
    assert record["setting"]["workers"] == 4
    tuned = record["methods"]["dcasgd-a"]
    losses = np.asarray(tuned["final_train_loss"], float)
    assert losses.shape == (3, 2, 3)
    assert np.isnan(losses[:, 1]).any()
    mean = np.where(np.isnan(losses).any(axis=2), np.inf, losses.mean(axis=2))
    row, column = np.unravel_index(np.argmin(mean), mean.shape)
    chosen = {"learning_rate": [0.1, 0.2, 0.4][row], "lambda0": [1, 1e30][column]}
    assert tuned["chosen"] == chosen == content["settings"]["hyperparameters"]["dcasgd-a"]
    assert record["methods"]["asgd"]["chosen"]["learning_rate"] == 0.2
    assert record["methods"]["asgd"]["warnings"] == []  # a given value is no edge of a grid
    assert f"[{mean[row, column]:.4f}]" in result.out
    assert "dcasgd-a: the chosen lambda0 1 is the smallest of its grid" in flat(result.out)
