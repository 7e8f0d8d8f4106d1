"""`dcasgd-jax diagnose`: the advice on hand-made numbers, the stops, and one tiny diagnosis."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dcasgd_jax as dc
from dcasgd_jax import diagnostics, digits, sim
from dcasgd_jax.commands import diagnose, methods, settings
from dcasgd_jax.commands.diagnose import advice, events, fisher, summary

from . import cli

TINY = [
    "--model",
    "softmax",
    "--workers",
    "3",
    "--updates",
    "40",
    "--batch-size",
    "4",
    "--seeds",
    "2",
]
TINY += ["--events", "2", "--learning-rate", "0.2"]


def row(
    moment="early",
    curvature="squared_gradient",
    lambda0=2.0,
    share=0.4,
    cosine=0.8,
    after=0.9,
    below=0.1,
):
    """A row whose pushes have |t| = 1 together, and the λ0 and share that are asked for."""
    adaptive = curvature == "adaptive"
    return summary.Row(
        moment=moment,
        curvature=curvature,
        num_events=4,
        mean_staleness=3.0,
        r_squared=share,
        r_squared_quartiles=(share, share),
        lambda0=lambda0,
        lambda0_quartiles=(lambda0, lambda0),
        cosine_stale=cosine,
        cosine_compensated=after,
        ratio=0.25,
        below_eps=below if adaptive else math.nan,
        shared_lambda0=lambda0,
        shared_r_squared=share,
        sums=summary.Sums(lambda0, 1.0, lambda0**2 / share),
    )


def rows(moments=("early",), **changed):
    """One row for each curvature and moment; `changed` maps curvatures to what is different."""
    return [
        row(moment, name, **({"share": 0.01} if name == "uniform" else {}) | changed.get(name, {}))
        for moment, name in itertools.product(moments, events.NAMES)
    ]


def all_rows(moments=("early",), **everywhere):
    return rows(moments, **dict.fromkeys(events.NAMES, everywhere))


def advised(found):
    return "\n".join(advice.advise(found))


def test_no_stale_push():
    assert advice.advise([]) == ["No push was stale: there is nothing to compensate."]


def test_too_small_to_matter_everywhere():
    text = advised(all_rows(("early", "late"), cosine=0.9951, after=0.999))
    assert "too small to matter early (cosine 0.9951) and late (cosine 0.9951)" in text
    assert "Do not bother" in text
    assert "lambda0" not in text


def test_the_threshold_of_the_cosine_is_the_one_that_is_printed():
    assert "too small" not in advised(all_rows(cosine=0.99, after=1.0))
    assert "too small" in advised(all_rows(cosine=0.9901, after=1.0))
    assert "at most 0.99" in advice.rules_in_words()


def test_a_moment_that_does_not_matter_has_no_vote():
    found = all_rows(("early", "middle")) + all_rows(("late",), lambda0=500.0, cosine=1.0)
    text = advised(found)
    assert "too small to matter late (cosine 1.0000)" in text
    assert "dc.compensate_delay(2, " in text
    assert "500" not in text


CAP = ", max_pull=1, learning_rate=LR"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("squared_gradient", f", curvature=dc.curvatures.squared_gradient(){CAP}"),
        ("adaptive", CAP),
        ("absolute", f", curvature=dc.curvatures.absolute(){CAP}"),
        ("fisher", f", curvature=dc.curvatures.fisher(){CAP}"),
        ("rows", f", curvature=dc.curvatures.rows(B){CAP}"),
        ("rotated", f", curvature=dc.curvatures.rotated(B){CAP}"),
        ("hessian", ", curvature=dc.curvatures.hessian()"),
    ],
)
def test_lambda0_is_a_call_that_works(name, options):
    call = f"dc.compensate_delay(2{options})"
    assert f"{name}: explains 40 % with lambda0 = 2: {call}" in advice.advise(rows())
    assert eval(call, {"dc": dc, "LR": 0.1, "B": 16}).update


def test_the_best_comes_first_and_the_futile_are_named():
    found = advice.advise(
        rows(absolute={"share": 0.6}, squared_gradient={"share": 0.04}, fisher={"share": 0.049})
    )
    assert found[0].startswith("absolute: explains 60 %")
    assert "squared_gradient and fisher: under 5 % explained, do not bother." in found


def test_nothing_is_worth_it():
    assert advice.advise(all_rows(share=0.049)) == [
        "Every curvature explains under 5 % of the change of the gradient: do not bother to "
        "compensate."
    ]


@pytest.mark.parametrize(("late", "fits"), [(6.0, True), (6.1, False), (0.6, False), (-2.0, False)])
def test_one_lambda0_must_fit_the_moments_within_a_factor_of_3(late, fits):
    found = all_rows() + all_rows(("late",), lambda0=late)
    text = advised(found)
    assert ("with lambda0 =" in text) == fits
    if not fits and late > 0:
        assert f"no one lambda0 fits (2 early and {late:g} late)" in text
        call = "dc.compensate_delay(dc.strengths.ratio(0.25), max_pull=1, learning_rate=LR)"
        assert f"{call} adapts" in text
        assert eval(call, {"dc": dc, "LR": optax.constant_schedule(0.1)}).update


def test_what_would_have_to_be_taken_away_is_not_advised():
    """A rule such as `ratio` gives no negative lambda0: it would do harm."""
    moments = ("early", "middle", "late")
    found = advised(rows(moments, squared_gradient={"lambda0": -2.0}))
    assert "squared_gradient: would have to be taken away instead of added" in found
    assert "(the best lambda0 is -2): do not compensate with it." in found
    assert "squared_gradient: explains" not in found
    some = rows(("early", "late"), squared_gradient={"lambda0": 6.0})
    some[0] = dataclasses.replace(some[0], shared_lambda0=-1.0, ratio=9.0)
    assert "dc.strengths.ratio(0.25)" in advised(some)


def test_the_control_is_as_good():
    text = advised(rows(uniform={"share": 0.5}, absolute={"share": 0.6}))
    assert (
        "squared_gradient, adaptive, fisher, rows and rotated: no better than the same curvature"
        in text
    )
    assert "explains 50 %" in text
    assert "no better" not in advised(rows())


def test_a_worse_direction_is_said():
    text = advised(
        rows(squared_gradient={"after": 0.79}, fisher={"after": 0.7}, uniform={"after": 0.1})
    )
    assert (
        "squared_gradient and fisher, early: nearer to the true gradient, but of a worse direction"
        in text
    )
    assert "worse direction" not in advised(rows())


@pytest.mark.parametrize(("below", "said"), [(0.5, False), (0.51, True)])
def test_most_below_eps(below, said):
    text = advised(rows(adaptive={"below": below}))
    assert ("mean square lies below eps (early 51 %)" in text) == said


def test_sums_are_one_fit_for_all_pushes():
    rng = np.random.default_rng(0)
    changes, terms = rng.normal(size=(2, 5, 7))
    terms += 0.5 * changes
    found = []
    for change, term in zip(changes, terms, strict=True):
        numbers = dict.fromkeys(diagnostics.Explanation._fields, 0.0) | {
            "lambda0": change @ term / (term @ term),
            "change_norm": np.linalg.norm(change),
            "term_norm": np.linalg.norm(term),
        }
        each = dict.fromkeys(events.NAMES, numbers)
        found.append({"moment": "middle", "staleness": 1, "explained": each})
    unmoved = dict.fromkeys(events.NAMES, numbers | {"change_norm": 0.0})
    lost = dict.fromkeys(events.NAMES, numbers | {"lambda0": None})
    found += [found[0] | {"staleness": 0, "explained": each} for each in (unmoved, lost)]
    summed = summary.summarise([{"events": found}])
    (lambda0,), left, *_ = np.linalg.lstsq(terms.reshape(-1, 1), changes.ravel(), rcond=None)
    assert [r.curvature for r in summed] == list(events.NAMES)
    for r in summed:
        assert (r.moment, r.num_events, r.mean_staleness) == ("middle", 5, 1)
        assert r.shared_lambda0 == pytest.approx(lambda0)
        assert r.shared_r_squared == pytest.approx(1 - left[0] / np.sum(changes**2))
    assert np.isnan(summary.Sums(0.0, 0.0, 1.0).shared_lambda0())
    assert summary.Sums(0.0, 0.0, 1.0).shared_r_squared() == 0
    assert np.isnan(summary.Sums(0.0, 0.0, 0.0).shared_r_squared())


def test_chosen_events_are_distinct_ordered_and_inside():
    for pushes, workers, count in ((2520, 8, 8), (30, 6, 8), (15, 3, 4), (40, 10, 1)):
        chosen = events.chosen_events(pushes, workers, count)
        assert list(chosen) == ["early", "middle", "late"]
        together = [event for of_moment in chosen.values() for event in of_moment]
        assert together == sorted(set(together))  # no push is of two moments
        assert workers <= together[0] <= together[-1] < pushes
        assert all(len(of_moment) == count for of_moment in chosen.values())
    assert events.chosen_events(2520, 8, 2)["early"] == [252, 315]


@pytest.fixture(scope="module")
def stops():
    setting = settings.Setting("softmax", 4, sim.ExponentialTime(), 60, 4)
    schedule = sim.make_schedule(setting.law, 4, 60, seed=3)
    wanted = [1, 2, 17, 18, 40, 59]
    return setting, schedule, list(events.stops(setting, schedule, 0.5, 3, wanted))


def plain_run(setting, schedule):
    """Params of every version and the states before every event, by a loop in Python."""
    task = digits.problem(setting.model)
    rows = events.digits.batch_rows(1347, setting.batch_size, len(schedule), seed=3)
    gradient, decay = jax.jit(jax.grad(task.loss_fn)), methods.rate_factor(len(schedule))
    start = digits.problem(setting.model, 3).params
    versions, squares = [start], [jax.tree.map(jnp.zeros_like, start)]
    curvature = dc.curvatures.rotated(setting.batch_size)
    rotated, advance = [curvature.init(start)], jax.jit(curvature.update)
    for event in range(len(schedule)):
        grads = gradient(versions[schedule.read_version[event]], rows[event])
        rate = 0.5 * float(decay(event))
        versions.append(jax.tree.map(lambda w, g, r=rate: w - r * g, versions[-1], grads))
        squares.append(jax.tree.map(lambda m, g: 0.95 * m + (1 - 0.95) * g * g, squares[-1], grads))
        rotated.append(advance(rotated[-1], grads)[1])
    return rows, versions, squares, rotated


def test_stops_are_the_run(stops):
    setting, schedule, found = stops
    rows, versions, squares, rotated = plain_run(setting, schedule)
    assert [stop.event for stop in found] == [1, 2, 17, 18, 40, 59]
    close = lambda one, other: jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other
    )
    for stop in found:
        close(stop.params, versions[stop.event])
        close(stop.stale_params, versions[schedule.read_version[stop.event]])
        close(stop.mean_square, squares[stop.event])
        # Not its bases: the sign of an eigenvector is arbitrary.
        close(stop.rotated.input_moment, rotated[stop.event].input_moment)
        close(stop.rotated.num_updates, rotated[stop.event].num_updates)
        np.testing.assert_array_equal(stop.rows, rows[stop.event])
    assert {schedule.staleness[stop.event] > 0 for stop in found} == {True, False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnose")
    result = cli.call("diagnose", *TINY, "--out", folder)
    assert result.code == 0, result.err
    return folder, result, cli.strict_json(folder / "diagnose.json")


def test_whole_diagnosis(whole):
    folder, _, content = whole
    assert sorted(path.name for path in folder.iterdir()) == [
        *("diagnose.json", "diagnose.png", "results.jsonl", "settings.json")
    ]
    assert (folder / "diagnose.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    expected = {"model": "softmax", "workers": 3, "updates": 40, "batch_size": 4, "seeds": [0, 1]}
    expected |= {"learning_rate": 0.2, "events_per_moment": 2}
    assert expected.items() <= content["settings"].items()
    assert content["versions"]["jax"] == jax.__version__
    assert content["rules"] == {**advice.rules(), "hardly_learnt": 0.5}
    assert content["command"][0] == "diagnose"
    assert content["fisher_experiment"] is None
    assert [run["seed"] for run in content["runs"]] == [0, 1]
    for run in content["runs"]:
        assert [event["moment"] for event in run["events"]] == [
            moment for moment in events.MOMENTS for _ in range(2)
        ]
        assert not run["diverged"]
    assert [(row["moment"], row["curvature"]) for row in content["summary"]] == list(
        itertools.product(events.MOMENTS, events.NAMES)
    )


def test_output_is_the_summary_and_fits_80_columns(whole):
    folder, result, content = whole
    lines = result.out.splitlines()
    assert result.err.count("\n") == 1  # not a terminal: a line for what is done
    assert max(len(line) for line in lines if str(folder) not in line) <= 80
    assert "…" not in result.out
    assert lines[-1].startswith(f"Saved {folder / 'diagnose.json'} and diagnose.png beside it")
    table = [line.split() for line in lines if "uniform " in line and "%" not in line]
    for cells, of in zip(
        table, [row for row in content["summary"] if row["curvature"] == "uniform"], strict=False
    ):
        place = cells.index("uniform")
        assert cells[place + 1] == f"{100 * of['r_squared']:.0f}"
        assert cells[place + 2] == advice.rounded(of["lambda0"])
    flat = " ".join(result.out.split())
    for sentence in (*content["advice"], advice.rules_in_words(), advice.CAVEAT):
        assert sentence in flat


def test_numbers_are_explains(whole):
    _, _, content = whole
    event = content["runs"][1]["events"][0]
    schedule = sim.make_schedule(sim.GammaTime(), 3, 40, seed=1)
    setting = settings.Setting("softmax", 3, sim.GammaTime(), 40, 4)
    (stop,) = events.stops(setting, schedule, 0.2, 1, [event["event"]])
    explained = diagnostics.explain(
        digits.problem("softmax").loss_fn,
        stop.params,
        stop.stale_params,
        jnp.asarray(stop.rows),
        names=["absolute", "rotated"],
        batch_size=4,
        rotated_state=stop.rotated,
    )
    assert event["staleness"] == schedule.staleness[event["event"]]
    fields = ("r_squared", "lambda0", "cosine_stale", "cosine_compensated", "ratio")
    for name, field in itertools.product(explained, fields):
        found = event["explained"][name][field]
        assert found == pytest.approx(float(getattr(explained[name], field)), rel=1e-2)
    # This model is linear in its parameters.
    assert event["explained"]["frozen_jacobian"]["r_squared"] == pytest.approx(1, abs=1e-4)


def test_one_worker_has_nothing_to_compensate(tmp_path):
    result = cli.call(*("diagnose", *TINY, "--workers", "1", "--seeds", "1", "--out", tmp_path))
    assert result.code == 0, result.err
    assert "No push was stale: there is nothing to compensate." in result.out
    assert cli.strict_json(tmp_path / "diagnose.json")["summary"] == []


def test_divergence_is_said(tmp_path):
    result = cli.call(*("diagnose", *TINY, "--learning-rate", "1e6", "--out", tmp_path))
    assert result.code == 0, result.err
    assert "Note: 2 of 2 runs diverge or hardly learn" in result.out
    assert all(run["diverged"] for run in cli.strict_json(tmp_path / "diagnose.json")["runs"])


def test_learning_next_to_nothing_is_said():
    half = 0.5 * math.log(10)
    runs = [{"diverged": False, "last_train_loss": loss} for loss in (0.1, half, 2.2)]
    assert not diagnose._notes(runs[:1])
    (note,) = diagnose._notes(runs)
    assert note.startswith("Note: 2 of 3 runs diverge or hardly learn")


def test_fisher_experiment_is_said_and_saved(tmp_path, monkeypatch):
    curves = [
        fisher.Curve(params, labels, "full", [0.0, 1.0], [1.0, 2.0], [1.0, 0.5], [0.0, 1.5], *rest)
        for (params, labels), rest in zip(
            itertools.product(fisher.PARAMS, fisher.LABELS), [(0.25, 0.9, 2.0)] * 4, strict=True
        )
    ]
    monkeypatch.setattr(fisher, "run", lambda: curves)
    result = cli.call("diagnose", *TINY, "--fisher-experiment", "--out", tmp_path)
    assert result.code == 0, result.err
    assert "trained, the labels of the data, full: best lambda 0.25 with error 0.9" in result.out
    content = json.loads((tmp_path / "diagnose.json").read_text())
    assert content["fisher_experiment"] == [dataclasses.asdict(curve) for curve in curves]


def test_fisher_experiment_finds_a_best_lambda_below_1():
    for curve in fisher.run():
        assert 0 < curve.best_strength < 1
        assert curve.least_mse < 1 < curve.mse_at_one
        total = np.add(curve.bias_square, curve.variance)
        np.testing.assert_allclose(curve.mse, total, rtol=1e-5)
        if curve.labels == "model":  # the Fisher identity, but for the draw of the labels
            assert curve.bias_square[fisher.STRENGTHS.index(1.0)] < 0.1


BAD = {
    "model": (["--model", "resnet"], ["--model", "resnet", "mlp"]),
    "law": (["--law", "weibull"], ["--law", "weibull", "gamma"]),
    "law parameter": (["--law-param", "scale=2"], ["--law-param scale=2", "shape and mean"]),
    "workers": (["--workers", "0"], ["--workers", "integer >= 1"]),
    "updates": (["--updates", "31"], ["--updates 31", "at least 32", "8 workers"]),
    "events": (["--updates", "40", "--events", "14"], ["--updates 40", "at least 50", "--events"]),
    "no event": (["--events", "0"], ["--events", "integer >= 1"]),
    "seeds": (["--seeds", "none"], ["--seeds", "'none'"]),
    "batch": (["--batch-size", "1348"], ["--batch-size 1348", "1347"]),
    "rate": (["--learning-rate", "0"], ["--learning-rate", "finite number > 0"]),
    "infinite rate": (["--learning-rate", "inf"], ["--learning-rate", "'inf'"]),
    "no rate": (["--learning-rate", "high"], ["--learning-rate", "'high'"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_one_line_and_exit_2(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(events, "diagnose_run", lambda *args: pytest.fail("work began"))
    arguments, parts = BAD[case]
    result = cli.call("diagnose", *arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("dcasgd-jax")
    assert result.err.count("\n") == 1
    for part in parts:
        assert part in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["diagnose.json", "diagnose.png", "."])
def test_out_that_cannot_be_written_is_found_before_the_run(name, tmp_path, monkeypatch):
    monkeypatch.setattr(events, "diagnose_run", lambda *args: pytest.fail("work began"))
    out = tmp_path / "out"
    if name == ".":
        out.write_text("mine")
    else:
        (out / name).mkdir(parents=True)
    result = cli.call("diagnose", "--out", out)
    assert result.code == 2
    assert f"--out {out}" in result.err
    assert "choose another folder" in result.err
    assert result.err.count("\n") == 1
