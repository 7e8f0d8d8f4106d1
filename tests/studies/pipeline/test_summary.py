"""Gap and token overhead, on curves made by hand."""

import math
import types

import pytest
from pipeline import delays, methods, optimizers, summary, tables

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


SEEN = [0, 100, 200]


def lines_of(delay, method, *of_seeds, lambda0=None):
    """Runs with these losses at the start, in the middle and at the end, a seed each."""
    cell = {"optimizer": "adam", "delay": delay, "method": method}
    numbers = {"learning_rate": 0.1, "lambda0": lambda0, "max_pull": None}
    return [
        {
            "run": {**cell, **numbers, "seed": seed},
            "train_loss": [losses[-1]],
            "validation_loss": list(losses),
        }
        for seed, losses in enumerate(of_seeds)
    ]


def no_delay(*of_seeds):
    return lines_of(delays.REFERENCE, methods.REFERENCE, *of_seeds)


def test_gap_and_overhead_pair_the_seeds():
    lines = no_delay((4.0, 3.0, 2.0), (4.0, 2.0, 1.0))
    lines += lines_of("4", "uncorrected", (4.0, 3.5, 3.0), (4.0, 3.0, 1.5))
    reference, found = summary.summarise(lines, SEEN)
    assert reference.gap == (0.0, 0.0, 0.0, 0.0)
    assert reference.overhead == (0.0, 0.0, 0.0, 0.0)
    assert found.gap == pytest.approx((0.75, 0.5 / math.sqrt(2), 0.5, 1.0))
    # Seed 0: 3.0 at 100 of 200 tokens, seed 1: 1.5 at 150 of 200.
    assert found.overhead.mean == pytest.approx((1.0 + 1 / 3) / 2)
    assert (found.num_runs, found.num_diverged, found.num_not_reached) == (2, 0, 0)
    assert tables.cells(found)[:3] == ["0.750±0.354", "67±47", ""]


def test_diverged_runs_are_counted_and_better_ones_are_not_reached():
    lines = no_delay((4.0, 3.0, 2.0), (4.0, 3.0, 2.0))
    lines += lines_of("4", "dcasgd-a", (4.0, 3.0, 1.9), (4.0, 5.0, None), lambda0=5.0)
    found = summary.summarise(lines, SEEN)[1]
    assert (found.gap.mean, found.gap.std) == (pytest.approx(-0.1), None)
    assert found.overhead is None
    assert (found.num_diverged, found.num_not_reached) == (1, 1)
    assert tables.cells(found) == ["-0.100", "-", "1/2", "0.1", "5", "-", "1/2"]


def test_a_cell_that_always_diverged():
    rises, breaks = (4.0, 3.0, 4.0), (4.0, None, None)
    lines = no_delay(*[(4.0, 3.0, 2.0)] * 2) + lines_of("4", "uncorrected", rises, breaks)
    found = summary.summarise(lines, SEEN)[1]
    assert found.gap is None
    assert found.validation_loss is None
    assert tables.cells(found)[0] == tables.cells(found)[1] == "-"
    assert tables.cells(found)[-1] == "2/2"


def test_rows_are_delays_with_all_their_methods():
    curve = (4.0, 3.0, 2.0)
    lines = [line for m in ("prediction", "uncorrected") for d in ("2", "4")
             for line in lines_of(d, m, curve)]  # fmt: skip
    found = summary.summarise(no_delay(curve) + lines, SEEN)
    assert [(s.delay, s.method) for s in found[1:]] == [
        ("2", "uncorrected"), ("2", "prediction"), ("4", "uncorrected"), ("4", "prediction"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("last", "expected"), [(3.9, False), (4.0, True), (4.1, True), (None, True)]
)
def test_diverged_means_not_below_the_start(last, expected):
    assert summary.diverged({"validation_loss": [4.0, 1.0, last]}) is expected


def test_every_method_has_as_many_configurations():
    for optimizer in optimizers.OPTIMIZERS:
        for name in methods.METHODS:
            tried = methods.configurations(optimizer, name)
            assert len(set(tried)) == 6
            scale = {"adam": 1, "muon": 2}[optimizer]
            highest = methods.FEWER_RATES[-1] if name in methods.STRENGTHS else methods.RATES[-1]
            assert max(numbers.learning_rate for numbers in tried) == scale * highest


@pytest.mark.parametrize(
    ("rate", "text"), [(0.0005, "0.0005*"), (0.002, "0.002"), (0.016, "0.016*")]
)
def test_a_learning_rate_at_the_edge_of_the_grid_has_a_star(rate, text):
    found = types.SimpleNamespace(
        optimizer="adam", method="uncorrected", learning_rate=rate, lambda0=None, max_pull=None
    )
    assert tables.rate_cell(found) == text
