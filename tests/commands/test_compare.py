"""Whole comparisons, tiny ones, through the command line."""

import dataclasses
import importlib.metadata
import re
import statistics

import numpy as np
import pandas as pd
import pytest

from dcasgd_jax import sim
from dcasgd_jax.commands import catalogue, digits_study, methods, runs, settings, tuning

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
    assert sorted(path.name for path in folder.iterdir()) == [
        *("compare.json", "compare.png", "results.jsonl", "settings.json")
    ]
    picture = (folder / "compare.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 30_000


def test_json_holds_settings_versions_and_every_run(whole):
    _folder, _, content = whole
    expected = {
        "model": "softmax",
        "workers": 4,
        "law": "gamma",
        "law_params": {"shape": 100.0, "mean": 1.0},
        "updates": 64,
        "batch_size": 4,
        "momentum": None,
        "methods": ALL,
        "seeds": [0, 1],
    }
    assert expected.items() <= content["settings"].items()
    for name in ("jax", "jaxlib", "numpy", "optax", "scikit-learn", "dcasgd-jax"):
        assert content["versions"][name] == importlib.metadata.version(name)
    assert [(run["method"], run["seed"]) for run in content["runs"]] == [
        (method, seed) for method in ALL for seed in (0, 1)
    ]
    there = catalogue.methods_for(4, 64, None)
    for method, numbers in content["settings"]["hyperparameters"].items():
        assert numbers["learning_rate"] == 0.2
        assert numbers["lambda0"] == (4 if there[method].compensates else None)
    for run in content["runs"]:
        assert run["curve_pushes"][0] == 0
        assert run["curve_pushes"][-1] == sum(run["staleness_counts"]) == 64
        assert run["curve_train_loss"][0] == run["initial_loss"]
        assert run["curve_train_loss"][-1] == pytest.approx(run["train_loss"], rel=1e-5)
        assert run["curve_seconds"][-1] == run["simulated_seconds"]
        assert run["server_updates"] == (16 if run["method"] == "ssgd" else 64)


@pytest.mark.parametrize("method", ALL)
def test_table_and_summary_are_the_statistics_of_the_runs(whole, method):
    _, result, content = whole
    losses = [run["train_loss"] for run in cli.runs_of(content, method)]
    errors = [100 * run["test_error"] for run in cli.runs_of(content, method)]
    (row,) = (line for line in result.out.splitlines() if line.startswith(f"{method} "))
    (summary,) = (s for s in content["summary"] if s["method"] == method)
    cells = re.findall(r"([\d.]+)±([\d.]+)", row)
    for values, field, (mean, std), places in (
        (losses, "train_loss", cells[0], 4),
        (errors, "test_error_percent", cells[1], 2 if statistics.mean(errors) < 10 else 1),
    ):
        assert mean == f"{statistics.mean(values):.{places}f}"
        assert std == f"{statistics.stdev(values):.{places}f}"
        np.testing.assert_allclose(summary[field]["mean"], statistics.mean(values), rtol=1e-12)
        np.testing.assert_allclose(summary[field]["std"], statistics.stdev(values), rtol=1e-9)
        assert (summary[field]["min"], summary[field]["max"]) == (min(values), max(values))


def test_output_fits_80_columns_and_says_where_the_numbers_are(whole):
    folder, result, _ = whole
    *lines, last = result.out.splitlines()
    assert max(len(line) for line in lines if str(folder) not in line) <= 80
    assert "…" not in result.out
    assert result.err.count("\n") == len(ALL)  # not a terminal: a line for each method
    assert last.startswith(f"Saved {folder / 'compare.json'} and compare.png")


def test_what_a_seed_decides_is_the_same_for_every_method(whole):
    *_, content = whole
    for seed in (0, 1):
        of_seed = [run for run in content["runs"] if run["seed"] == seed]
        assert len({run["initial_loss"] for run in of_seed}) == 1
        raced = [run for run in of_seed if run["method"] in ASYNCHRONOUS]
        for field in ("curve_seconds", "staleness_counts"):
            assert all(run[field] == raced[0][field] for run in raced)
    first, second = cli.runs_of(content, "asgd")
    assert first["curve_seconds"] != second["curve_seconds"]
    assert first["initial_loss"] != second["initial_loss"]


def test_asynchronous_methods_share_one_schedule_object():
    workload = runs.make_workload(settings.Setting(num_workers=4, num_pushes=64), seed=3)
    shared = {id(workload.schedule(methods.METHODS[name].protocol)) for name in ASYNCHRONOUS}
    assert len(shared) == 1
    law = sim.GammaTime()
    expected = sim.make_schedule(law, 4, 64, seed=3)
    schedule = workload.schedule(sim.Asynchronous())
    np.testing.assert_array_equal(schedule.worker, expected.worker)
    np.testing.assert_array_equal(schedule.time, expected.time)


def test_staleness_and_compensation_are_reported_where_they_exist(whole):
    *_, content = whole
    for run in content["runs"]:
        assert (run["mean_staleness"] == 0) == (run["method"] in ("sgd", "ssgd"))
        compensates = run["method"] not in ("sgd", "ssgd", "asgd")
        assert (run["max_compensation_ratio"] is not None) == compensates
        if compensates:
            assert run["max_compensation_ratio"] > run["median_compensation_ratio"] > 0
    seconds = {run["method"]: run["simulated_seconds"] for run in content["runs"]}
    assert seconds["asgd"] < seconds["ssgd"] < seconds["sgd"]


def test_compensation_changes_the_run_and_the_cap_changes_it_again(whole):
    *_, content = whole
    finals = [cli.runs_of(content, name)[0]["train_loss"] for name in ASYNCHRONOUS]
    assert len(set(finals)) == len(finals)


def test_lambda0_zero_is_asgd_to_the_bit(tmp_path):
    _, content = cli.compare(
        tmp_path, "--methods", *ASYNCHRONOUS, "--learning-rate", "0.2", "--lambda0", "0"
    )
    curves = [[run["curve_train_loss"] for run in cli.runs_of(content, m)] for m in ASYNCHRONOUS]
    assert all(curve == curves[0] for curve in curves)


def test_what_is_there_is_not_run_again_and_would_be_the_same(whole):
    folder, _, content = whole
    _, again = cli.compare(folder, *FIXED)
    assert without_dates(again) == without_dates(content)
    assert len(list(folder.iterdir())) == 4
    (folder / "results.jsonl").unlink()
    _, anew = cli.compare(folder, *FIXED)
    assert without_dates(anew) == without_dates(content)


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
        assert before["train_loss"] != after["train_loss"]
    assert "tuned for other values" not in result.out


def test_defaults_for_another_setting_come_with_a_note(tmp_path):
    result, content = cli.compare(tmp_path, "--methods", "asgd")
    assert "tuned for other values of workers, updates, batch_size; --tune chooses" in flat(
        result.out
    )
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
    assert [run["train_loss"] for run in cli.runs_of(content, "asgd")] == [None, None]
    assert cli.runs_of(content, "asgd")[0]["train_loss"] is None
    summary = {s["method"]: s for s in content["summary"]}
    assert summary["asgd"]["train_loss"] is None
    assert summary["asgd"]["num_diverged"] == 2
    (row,) = (line for line in result.out.splitlines() if line.startswith("asgd "))
    assert row.endswith(" 2/2")
    assert "±" not in row
    assert "asgd: 2 of 2 runs diverged" in flat(result.out)
    assert (tmp_path / "compare.png").stat().st_size > 10_000


def test_a_finite_loss_above_the_initial_one_is_diverged(tmp_path):
    _, content = cli.compare(tmp_path, "--methods", "asgd", "--learning-rate", "1e6")
    for run in content["runs"]:
        assert run["curve_train_loss"][-1] > run["initial_loss"]
        assert run["train_loss"] is None
    assert content["findings"][0] == "asgd: 2 of 2 runs diverged."
    assert content["findings"][1].startswith("The loss rose above 1.5 times the initial one")


def test_a_nudge_of_one_ulp_tells_which_numbers_repeat(whole):
    *_, _result, content = whole
    for run in content["runs"]:
        assert run["train_loss_nudged"] == pytest.approx(run["train_loss"], rel=0.5)
        assert run["train_loss_nudged"] != run["train_loss"] or "sgd" in run["method"]
    assert any(sentence.startswith("Repeat on other") for sentence in content["findings"])


def test_methods_without_defaults_are_tuned_and_momentum_is_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "NUM_CONFIGURATIONS", 3)
    few = ("--methods", "asgd", "dana-slim", "svrg")
    refused = cli.call("compare", *cli.TINY, *few[:-1], "--out", tmp_path / "out")
    assert refused.code == 2
    assert "--methods dana-slim: only with --momentum" in refused.err
    result, content = cli.compare(tmp_path, *few[:-1], "--momentum", "0.5", "--updates", "160")
    assert "2 methods to tune first, 18 runs." in result.out
    assert content["settings"]["momentum"] == 0.5
    assert set(content["tuning"]["methods"]) == {"asgd", "dana-slim"}
    assert [run["method"] for run in content["runs"]] == ["asgd"] * 2 + ["dana-slim"] * 2


def test_all_methods_are_one_comparison(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "NUM_CONFIGURATIONS", 3)
    names = ("asgd", "fedbuff", "svrg", *(f"asgd-{n}" for n in range(8)))
    there = catalogue.methods_for(4, 64, None)
    chosen = {name: dataclasses.replace(there[name.partition("-")[0]], name=name) for name in names}
    monkeypatch.setattr(digits_study, "methods_for", lambda *_: chosen)
    result, content = cli.compare(tmp_path, "--methods", "all")
    assert list(dict.fromkeys(run["method"] for run in content["runs"])) == list(names)
    assert content["summary"][2]["change_by_one_ulp"] is None  # a system with a loop of its own
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    lines = [line for line in result.out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80


def test_a_folder_of_another_comparison_is_refused(whole):
    folder, *_ = whole
    before = (folder / "results.jsonl").read_bytes()
    for option, value, words in (
        ("--updates", "128", "have updates 64, not 128"),
        ("--law", "exponential", 'have law "gamma", not "exponential"'),
    ):
        refused = cli.call("compare", *cli.TINY, "--out", folder, option, value)
        assert refused.code == 2
        assert f"{words}: choose another --out" in refused.err
    assert (folder / "results.jsonl").read_bytes() == before


def test_a_choice_among_other_values_is_refused(tmp_path):
    """What the folder has chosen would be reported as the choice of this call."""
    tune = ("--methods", "asgd", "--tune", "--out", tmp_path / "out", "--learning-rate")
    assert not cli.call("compare", *cli.TINY, *tune, "0.1,0.2").code
    before = (tmp_path / "out/results.jsonl").read_bytes()
    refused = cli.call("compare", *cli.TINY, *tune, "0.4,0.8")
    assert refused.code == 2
    words = "out over learning_rate 0.1, 0.2, not 0.4, 0.8: choose another --out"
    assert words in flat(refused.err)
    assert (tmp_path / "out/results.jsonl").read_bytes() == before
    assert not cli.call("compare", *cli.TINY, *tune, "0.1,0.2").code


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
    result, content = cli.compare(
        tmp_path,
        *("--methods", "asgd", "dcasgd-a", "--tune", "--learning-rate", "0.1,0.2,0.4"),
        *("--learning-rate", "asgd=0.2", "--lambda0", "1,1e30"),
    )
    record = content["tuning"]
    assert record["seeds"] == [100, 101, 102]
    assert record["setting"]["workers"] == 4
    assert set(record["methods"]) == {"dcasgd-a"}  # one value is nothing to choose
    tuned = record["methods"]["dcasgd-a"]
    tried = pd.DataFrame(tuned["tried"])
    assert len(tried) == 3 * 2 * 3
    lost = tried["loss"].isna()
    assert (lost == (tried["lambda0"] == 1e30)).all()
    means = tried[~lost].groupby("learning_rate")["loss"].mean()
    chosen = {"learning_rate": means.idxmin(), "lambda0": 1}
    assert tuned["chosen"] == chosen == content["settings"]["hyperparameters"]["dcasgd-a"]
    assert f"[{means.min():.4f}]" in result.out
    assert "dcasgd-a: the chosen lambda0 1 is the smallest of its grid" in flat(result.out)
