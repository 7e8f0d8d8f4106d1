"""Statistics, sentences, tables, tuning and JSON, from made-up numbers."""

import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from dcasgd_jax.commands import (
    defaults,
    errors,
    figures,
    methods,
    records,
    report,
    settings,
    statistics,
    study,
    terminal,
    tuning,
    tuning_report,
)
from dcasgd_jax.plots import axes


def made_up_run(method="asgd", seed=0, loss=0.1, error=0.03, **changes):
    compensates = "dcasgd" in method
    diverged = not loss < 2.3
    return {
        "run": {
            "method": method, "learning_rate": 0.5, "lambda0": 2.0 if compensates else None,
            "seed": seed,
        },
        "initial_loss": 2.3,
        "train_loss": None if diverged else loss,
        "test_error": None if diverged else error,
        "highest_loss": 2.4,
        "train_loss_nudged": None if diverged else 1.01 * loss,
        "server_updates": 100,
        "simulated_seconds": 12.5,
        "mean_staleness": 3.0,
        "staleness_counts": [1, 2, 3, 94],
        "max_compensation_ratio": 0.5 + seed if compensates else None,
        "median_compensation_ratio": 0.1 if compensates else None,
        "curve_pushes": [0, 50, 100],
        "curve_seconds": [0.0, 6.0, 12.5],
        "curve_train_loss": [2.3, 1.0, None if math.isnan(loss) else loss],
        **changes,
    }  # fmt: skip


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
    cells = report.cells(summary)
    assert "0.2000±0.1000" in cells
    assert cells[-1] == "2/5"


def test_all_diverged_and_a_single_survivor():
    gone, one = report.summarise(
        several("asgd", [math.nan, 9.0]) + several("dcasgd-c", [0.25, math.nan])
    )
    assert gone.train_loss is None
    assert report.cells(gone)[3:5] == ["diverged", "-"]
    assert one.train_loss == statistics.Statistic(0.25, None, 0.25, 0.25)
    assert report.cells(one)[3] == "0.2500"


def test_tiny_losses_are_not_shown_as_zero():
    (summary,) = report.summarise(several("asgd", [1e-5, 2e-5]))
    assert report.cells(summary)[3] == "1.5e-05±7.1e-06"


def test_the_widest_table_fits():
    statistic = statistics.Statistic(2.1234, 1.0, 1.0, 3.0)
    errors = statistics.Statistic(74.28, 11.46, 50.0, 90.0)
    summary = report.Summary(
        "dcasgd-capped", 0.07071, 128.0, 10, 9, statistic, errors, 9.99, 0.999, 25209.1, 15.99, 1.0
    )
    text = printed(report.make_table(Console(file=io.StringIO()), [summary]))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    for cell in report.cells(summary):
        assert cell in text


def test_a_narrow_terminal_cuts_no_number():
    console = Console(file=io.StringIO(), width=40)
    (summary,) = report.summarise(several("dcasgd-capped", [0.1, 0.2]))
    terminal.print_table(console, "title", report.make_table(console, [summary]))
    text = console.file.getvalue()
    assert console.width == 40
    for cell in report.cells(summary):
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
    assert sentences[:3] == [
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
    all_runs[0]["curve_train_loss"] = [2.3, None, None if math.isnan(finals[0]) else finals[0]]
    figures.save_comparison(tmp_path / "picture.png", all_runs, "title")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_method_without_curves_is_named(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        figures, "save", lambda path, picture: titles.append(picture.get_suptitle())
    )
    alone = several("svrg", [0.1])
    for run in alone:
        run["curve_pushes"] = None
    figures.save_comparison(tmp_path / "picture.png", several("asgd", [0.2]) + alone, "title")
    figures.save_comparison(tmp_path / "picture.png", several("asgd", [0.2]), "title")
    assert titles == ["title\nno curve was recorded of svrg", "title"]


def test_every_method_has_a_colour_of_its_own():
    assert set(axes.COLOURS) == set(methods.METHODS)
    assert len(set(axes.COLOURS.values())) == len(methods.METHODS)


def test_findings_say_what_rose_and_what_repeats():
    runs = several("asgd", [0.1, 0.2]) + several("dcasgd-a", [0.3, 0.4])
    runs[0]["highest_loss"] = 6.9
    runs[2]["train_loss_nudged"] = 0.33
    runs += several("dcasgd-c", [0.5]) + several("ssgd", [math.nan])
    runs[4]["train_loss_nudged"] = None  # it diverged after the nudge
    summaries = report.summarise(runs)
    assert [s.repeats for s in summaries] == [True, False, False, None]
    about = report.findings(summaries)[-4:]
    assert (
        about[0] == "The loss rose above 1.5 times the initial one on the way: asgd (to 3 times)."
    )
    assert about[1].startswith("Repeat on other machines within some 5 %")
    assert about[1].endswith(": asgd.")
    assert about[2].endswith("changes some by more than 5 %): dcasgd-a.")
    assert about[3].endswith("decides whether a run diverges: dcasgd-c.")
    assert report.cells(summaries[1])[6] == "10"
    assert report.cells(summaries[2])[6] == "div."


def test_what_was_not_measured_is_not_made_up():
    """Beside others, a method with a loop of its own has no nudged run, no clock, no curve."""
    alone = several("svrg", [0.1, 0.2])
    for run in alone:
        for name in ("train_loss_nudged", "simulated_seconds", "mean_staleness"):
            del run[name]
    _, svrg = report.summarise(several("asgd", [0.1, 0.2]) + alone)
    assert svrg.change_by_one_ulp is None
    assert svrg.repeats is None
    assert svrg.simulated_seconds is None
    assert svrg.mean_staleness is None
    assert report.cells(svrg)[6:8] == ["-", "-"]
    assert not any("svrg" in sentence for sentence in report.findings([svrg])[2:])


def tried(losses, rates=(0.1, 0.2, 0.4), lambda0s=(None,)):
    """What tuning tried, and its configurations; losses [rates, lambda0s, seeds]."""
    pairs = [methods.Hyperparameters(rate, number) for rate in rates for number in lambda0s]
    flat = np.asarray(losses, float).reshape(len(pairs), -1)
    rows = [
        {**numbers._asdict(), "seed": seed, "loss": loss}
        for numbers, of_seeds in zip(pairs, flat, strict=True)
        for seed, loss in enumerate(of_seeds)
    ]
    return pd.DataFrame(rows), pairs


def test_tuning_prefers_a_combination_without_a_lost_seed():
    found = tried([[[0.5, 0.5, 0.5]], [[0.3, 0.4, 0.3]], [[0.1, math.nan, 0.1]]])
    chosen = tuning.choose(*found)
    assert chosen == methods.Hyperparameters(0.2, None)
    assert tuning.warnings(*found, chosen) == []
    line = {"tried": found[0].to_dict("list"), "chosen": chosen._asdict()}
    text = printed(tuning_report.make_table(line))
    assert "[0.3333]" in text
    assert "1 lost" in text


def test_tuning_is_honest_about_edges_and_divergence_everywhere():
    edge = tried([[[0.5] * 3], [[0.3] * 3], [[0.1] * 3]])
    assert (
        "learning rate 0.4 is the largest of its grid"
        in tuning.warnings(*edge, tuning.choose(*edge))[0]
    )
    everywhere = tried([[[math.nan] * 3], [[0.3, 0.4, math.nan]], [[0.1, math.nan, 0.2]]])
    assert tuning.choose(*everywhere).learning_rate == 0.4
    assert (
        "was lost on some tuning seed"
        in tuning.warnings(*everywhere, tuning.choose(*everywhere))[0]
    )
    assert tuning.choose(*tried([[[math.nan] * 3]] * 3)).learning_rate == 0.1


def test_a_choice_stands_for_the_same_combinations_in_any_order():
    rows = [{"rate": r, "lambda0": x, "seed": 0} for r, x in ((0.1, 1.0), (0.2, 4.0))]
    before = {"rate": [0.2, 0.1], "lambda0": [4.0, 1.0], "seed": [0, 0]}
    tuning.check_alike("asgd was tuned", before, rows)
    for changed, words in (
        ({"rate": [0.2, 0.4]}, "asgd was tuned over rate 0.2, 0.4, not 0.1, 0.2: choose another"),
        ({"seed": [1, 1]}, "over seed 1, not 0:"),
        ({"lambda0": [1.0, 4.0]}, "over rate 0.2, 0.1, not 0.1, 0.2 together with others:"),
    ):
        with pytest.raises(errors.UsageError, match=words):
            tuning.check_alike("asgd was tuned", before | changed, rows)
    del before["lambda0"]
    with pytest.raises(errors.UsageError, match=r"over lambda0 None, not 1\.0, 4\.0:"):
        tuning.check_alike("asgd was tuned", before, rows)


def test_ranges_of_the_rate_have_no_gap():
    rates = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    losses = np.array([4.0, 1.5, 1.0, 1.9, np.nan, 1.0])[:, None, None]
    found, _ = tried(losses, rates)
    chosen = methods.Hyperparameters(3.0)
    assert tuning.rate_ranges(found, chosen) == {"stable": [1.0, 4.0], "within_twice": [2.0, 4.0]}
    lost, _ = tried(np.full((6, 1, 1), np.nan), rates)
    assert tuning.rate_ranges(lost, chosen) == {"stable": None, "within_twice": None}


@pytest.mark.parametrize("model", ["mlp", "softmax"])
@pytest.mark.parametrize("name", methods.METHODS)
def test_defaults_follow_from_what_was_tried(model, name):
    record = defaults.tuning_records()[model]
    assert record["setting"] == settings.Setting(model=model).describe()
    assert record["seeds"] == list(study.TUNING_SEEDS)
    method = record["methods"][name]
    found = pd.DataFrame(method["tried"])
    pairs = found[["learning_rate", "lambda0"]].drop_duplicates()
    configurations = [
        methods.Hyperparameters(rate, None if np.isnan(number) else number)
        for rate, number in pairs.astype(float).itertuples(index=False)
    ]
    assert len(found) == len(configurations) * len(study.TUNING_SEEDS)
    chosen = defaults.default_hyperparameters(model, name)
    assert chosen == tuning.choose(found, configurations)
    assert method["warnings"] == []
    # Nobody need wonder about the first rise of a curve: the chosen ones have none.
    of_chosen = found[found["learning_rate"] == chosen.learning_rate]
    if chosen.lambda0 is not None:
        of_chosen = of_chosen[of_chosen["lambda0"] == chosen.lambda0]
    assert (of_chosen["highest_loss"] <= 1.5 * of_chosen["initial_loss"]).all()


def test_a_method_joins_the_record_with_its_own_date():
    record = {"date": "a", "versions": {}, "setting": {"workers": 8}, "methods": {"sgd": {"x": 1}}}
    later = {**record, "date": "b", "methods": {"rotated": {"x": 2}}}
    joined = defaults.joined(record, later)
    assert joined["date"] == "a"
    assert joined["methods"] == {"sgd": {"x": 1}, "rotated": {"date": "b", "x": 2}}
    with pytest.raises(ValueError, match="sgd is in the record already"):
        defaults.joined(record, record)
    with pytest.raises(ValueError, match=r"setting was .*8.* and is .*4.* now"):
        defaults.joined(record, {**later, "setting": {"workers": 4}})


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


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(capsys, monkeypatch):
    with terminal.progress_bar(10) as progress:
        progress.of("sgd")(10)
        progress.say("sgd: 5 runs, 3 s")
    assert capsys.readouterr() == ("", "sgd: 5 runs, 3 s\n")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with terminal.progress_bar(10) as progress:
        progress.of("sgd, seed 0")(10)
        progress.say("this would break the bar")
    out, err = capsys.readouterr()
    assert out == ""
    assert "sgd, seed 0" in err
    assert "100%" in err
    assert "break" not in err


def test_an_ascii_terminal_gets_ascii():
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=100)
    (summary,) = report.summarise(several("asgd", [0.1, 0.2]))
    console.print(report.make_table(console, [summary]))
    console.file.flush()
    assert b"0.1500+-0.0707" in console.file.buffer.getvalue()
