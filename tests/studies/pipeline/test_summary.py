"""Gap and token overhead, on curves made by hand."""

import math
import types

import pytest
from pipeline import (
    delays,
    methods,
    optimizers,
    record,
    settings,
    study,
    summary,
    tables,
)

TOKENS = [0, 100, 200, 400]
REFERENCE = [4.0, 3.0, 2.5, 2.0]


@pytest.mark.parametrize(
    ("loss", "needed"),
    [
        (4.5, 0.0),
        (4.0, 0.0),
        (3.5, 50.0),
        (3.0, 100.0),
        (2.25, 300.0),
        (2.0, 400.0),
        (1.99, None),
    ],
)
def test_tokens_needed_is_linear_between_evaluations(loss, needed):
    assert summary.tokens_needed(TOKENS, REFERENCE, loss) == needed


def test_tokens_needed_is_about_the_first_time():
    assert summary.tokens_needed(TOKENS, [4.0, 2.0, 5.0, 1.0], 3.0) == 50.0
    assert summary.tokens_needed(TOKENS, [4.0, None, 3.0, 1.0], 3.0) == 200.0
    assert summary.tokens_needed(TOKENS, [4.0, None, None, None], 3.0) is None


@pytest.mark.parametrize(
    ("loss", "overhead"),
    [(2.0, 0.0), (2.25, 1 / 3), (2.5, 1.0), (3.5, 7.0), (5.0, math.inf), (1.9, None)],
)
def test_overhead_is_all_tokens_over_those_of_the_reference(loss, overhead):
    found = summary.token_overhead(TOKENS, REFERENCE, loss)
    assert found == (overhead if overhead is None else pytest.approx(overhead))


@pytest.fixture
def one_rate(monkeypatch):
    """Nothing to tune: one configuration each."""
    monkeypatch.setattr(
        methods,
        "METHODS",
        {
            "uncorrected": methods.Method("uncorrected", (0.1,)),
            "dcasgd-a": methods.Method("DC-ASGD-a", (0.1,), ((5.0, None),)),
        },
    )


def made(run, *losses):
    """A line with these losses at the start, in the middle and at the end."""
    return run._asdict() | {"train_loss": [losses[-1]], "validation_loss": list(losses)}


def a_study(curves):
    """Job and record of one seed per entry: cell -> curves of the fresh seeds."""
    tokens = types.SimpleNamespace(tokens=[0, 100, 200])
    job = types.SimpleNamespace(setting=tokens, cells=lambda: list(curves), num_seeds=2)
    lines = {}
    for cell, of_seeds in curves.items():
        for seed in settings.TUNING_SEEDS:
            (run,) = methods.configurations(*cell, seed)
            lines[run] = made(run, 4.0, 3.0, 2.0)
        for seed, losses in enumerate(of_seeds):
            (run,) = methods.configurations(*cell, seed)
            lines[run] = made(run, *losses)
    return job, types.SimpleNamespace(lines=lines)


NO_DELAY = study.Cell("adam", delays.REFERENCE, "uncorrected")


@pytest.mark.usefixtures("one_rate")
def test_gap_and_overhead_pair_the_seeds():
    late = study.Cell("adam", "4", "uncorrected")
    job, kept = a_study(
        {NO_DELAY: [(4.0, 3.0, 2.0), (4.0, 2.0, 1.0)], late: [(4.0, 3.5, 3.0), (4.0, 3.0, 1.5)]}
    )
    reference, found = summary.summarise(job, kept)
    assert reference.gap == (0.0, 0.0)
    assert reference.overhead == (0.0, 0.0)
    assert found.gap == pytest.approx((0.75, 0.5 / math.sqrt(2)))
    # Seed 0: 3.0 at 100 of 200 tokens, seed 1: 1.5 at 150 of 200.
    assert found.overhead.mean == pytest.approx((1.0 + 1 / 3) / 2)
    assert (found.num_runs, found.num_diverged, found.num_not_reached) == (2, 0, 0)
    assert tables.gap_cell(found) == "0.750 ± 0.354"
    assert tables.overhead_cell(found) == "67 ± 47"
    assert found.describe()["gap"] == {"mean": 0.75, "std": found.gap.std}


@pytest.mark.usefixtures("one_rate")
def test_diverged_runs_are_counted_and_better_ones_are_not_reached():
    late = study.Cell("adam", "4", "dcasgd-a")
    job, kept = a_study(
        {
            NO_DELAY: [(4.0, 3.0, 2.0), (4.0, 3.0, 2.0)],
            late: [(4.0, 3.0, 1.9), (4.0, 5.0, None)],
        }
    )
    found = summary.summarise(job, kept)[1]
    assert found.gap == (pytest.approx(-0.1), None)
    assert found.overhead is None
    assert (found.num_diverged, found.num_not_reached) == (1, 1)
    assert tables.gap_cell(found) == "-0.100, 1/2 diverged"
    assert tables.overhead_cell(found) == "1/2 not reached, 1/2 diverged"
    assert tables.chosen_cell(found) == "0.1, 5"


@pytest.mark.usefixtures("one_rate")
def test_a_cell_that_always_diverged():
    late = study.Cell("adam", "4", "uncorrected")
    rises, breaks = (4.0, 3.0, 4.0), (4.0, None, None)
    job, kept = a_study({NO_DELAY: [(4.0, 3.0, 2.0)] * 2, late: [rises, breaks]})
    found = summary.summarise(job, kept)[1]
    assert found.gap is None
    assert found.validation_loss is None
    assert tables.gap_cell(found) == tables.overhead_cell(found) == "2/2 diverged"


@pytest.mark.parametrize(
    ("last", "expected"), [(3.9, False), (4.0, True), (4.1, True), (None, True)]
)
def test_diverged_means_not_below_the_start(last, expected):
    assert record.diverged({"validation_loss": [4.0, 1.0, last]}) is expected


def test_every_method_has_as_many_configurations():
    for optimizer in optimizers.OPTIMIZERS:
        for name in methods.METHODS:
            runs = methods.configurations(optimizer, "4", name, 0)
            assert len(set(runs)) == 6
            scale = {"adam": 1, "muon": 2}[optimizer]
            assert max(run.learning_rate for run in runs) == scale * methods.METHODS[name].rates[-1]


@pytest.mark.parametrize(
    ("rate", "text"), [(0.0005, "0.0005*"), (0.002, "0.002"), (0.016, "0.016*")]
)
def test_a_learning_rate_at_the_edge_of_the_grid_has_a_star(rate, text):
    found = types.SimpleNamespace(
        optimizer="adam", method="uncorrected", learning_rate=rate, lambda0=None, max_pull=None
    )
    assert tables.chosen_cell(found) == text


def test_tuning_takes_the_fewest_diverged_then_the_lowest(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "uncorrected", methods.Method("uncorrected", (1, 2, 3)))
    cell = study.Cell("adam", "4", "uncorrected")
    last = {1: (2.0, 2.2), 2: (1.0, None), 3: (2.4, 1.7)}  # learning rate -> of each tuning seed
    lines = {
        run: made(run, 4.0, last[run.learning_rate][index])
        for index, seed in enumerate(settings.TUNING_SEEDS)
        for run in methods.configurations(*cell, seed)
    }
    kept = types.SimpleNamespace(lines=lines)
    assert study.chosen(cell, kept).learning_rate == 3
    assert [run.seed for run in study.fresh_runs(cell, kept, 3)] == [0, 1, 2]
    assert not {run.seed for run in study.tuning_runs(cell)} & {0, 1, 2}
