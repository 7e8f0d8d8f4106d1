"""What the pictures of single runs show: lines, bars, labels, and what they refuse to draw."""

from typing import Any, NamedTuple

import calls
import compensations
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import pytest
from matplotlib import colors, pyplot

from dcasgd_jax import plots, sim
from dcasgd_jax.plots import axes, curves


@pytest.fixture(autouse=True)
def no_window_and_no_trace_of_it():
    """Draws every picture of the test once, and looks whether the settings are as before."""
    pyplot.close("all")
    pyplot.switch_backend("Agg")
    before = dict(mpl.rcParams)
    yield
    for number in pyplot.get_fignums():
        pyplot.figure(number).canvas.draw()  # any warning is an error
    pyplot.close("all")
    assert dict(mpl.rcParams) == before


class Trace(NamedTuple):
    version: np.ndarray
    samples: np.ndarray
    time: np.ndarray
    loss: np.ndarray
    compensation_ratio: np.ndarray | None = None
    cosine: np.ndarray | None = None


class Result(NamedTuple):
    trace: Trace


def result_of(loss, **columns) -> Any:
    event = np.arange(len(loss))
    loss = np.asarray(loss, np.float32)
    return Result(Trace(event, 32 * (event + 1), 0.5 * event + 0.25, loss, **columns))


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize(
    ("against", "position", "label"),
    [
        ("updates", [0, 1, 2, 3], "server updates"),
        ("samples", [32, 64, 96, 128], "examples seen by all workers"),
        ("seconds", [0.25, 0.75, 1.25, 1.75], "simulated seconds"),
    ],
)
def test_loss_of_one_run(against, position, label):
    ax = plots.plot_loss(result_of([4, 2, 1, 0.5]), against)
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), position)
    np.testing.assert_array_equal(line.get_ydata(), [4, 2, 1, 0.5])
    assert (ax.get_xlabel(), ax.get_ylabel()) == (label, "training loss")
    assert ax.get_yscale() == "log"
    assert ax.get_legend() is None


def test_smoothed_points_are_means_of_loss_and_position():
    ax = plots.plot_loss(result_of([4, 2, 1, 3, 8]), "samples", smooth=2)
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), [48, 112, 160])
    np.testing.assert_array_equal(line.get_ydata(), [3, 2, 8])
    (line,) = plots.plot_loss(result_of(np.ones(1000))).lines
    assert len(line.get_xdata()) == curves.NUM_POINTS
    with pytest.raises(ValueError, match=r"smooth must be >= 1, got 0"):
        plots.plot_loss(result_of([1, 2]), smooth=0)


def test_named_runs_have_a_legend_and_colours_of_their_own():
    names = ["mine", "dcasgd-a", *(f"run {k}" for k in range(20))]
    ax = plots.plot_loss({name: result_of([2, 1]) for name in names})
    assert texts(ax.get_legend()) == names
    styles = {(line.get_color(), line.get_linestyle()) for line in ax.lines}
    assert len(styles) == len(names)
    assert ax.lines[1].get_color() == axes.COLOURS["dcasgd-a"]


@pytest.mark.parametrize("tail", [[np.nan] * 3, [1e9, np.inf, np.nan], [1e9, 1e12, 1e15]])
def test_a_run_that_diverges_ends_in_a_cross(tail):
    ax = plots.plot_loss({"good": result_of([2, 1, 0.5]), "bad": result_of([2, 3, *tail])})
    assert texts(ax.get_legend()) == ["good", "bad (diverged)"]
    good, bad = ax.lines
    assert (good.get_marker(), bad.get_marker()) == ("None", "x")
    seen = [2, 3] if np.isnan(tail[0]) else [2, 3, 0.8 * 60]  # 30 times the start is the edge
    np.testing.assert_allclose(bad.get_ydata(), seen)
    assert bad.get_markevery() == [-1]
    low, high = ax.get_ylim()
    assert 0.1 < low < 0.5
    assert max(seen) < high <= 60


def test_a_run_that_comes_back_is_drawn_to_its_end():
    ax = plots.plot_loss({"run": result_of([2, 1e9, np.nan, 1])})
    assert texts(ax.get_legend()) == ["run"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, 48, np.nan, 1])


def test_a_run_without_any_finite_loss_is_only_named():
    ax = plots.plot_loss({"bad": result_of([np.nan, np.inf]), "good": result_of([2, 1])})
    assert texts(ax.get_legend()) == ["bad (diverged)", "good"]
    assert len(ax.lines[0].get_xdata()) == 0


def test_losses_that_are_not_positive_have_a_linear_axis():
    ax = plots.plot_loss(result_of([1, 0.5, -100, -200]))
    assert ax.get_yscale() == "linear"
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, 0.5, -100, -200])


def test_loss_refuses():
    with pytest.raises(ValueError, match=r"updates, samples, seconds, got 'epochs'"):
        plots.plot_loss(result_of([1]), "epochs")
    with pytest.raises(ValueError, match="results is empty"):
        plots.plot_loss({})
    assert not pyplot.get_fignums()  # nothing begun


HAND_MADE = sim.Schedule(
    worker=[0, 1, 0, 1, 0, 1],
    read_version=[0, 0, 1, 1, 2, 2],
    version=[0, 1, 1, 2, 3, 4],
    time=[1, 2.5, 3, 4, 5, 7],
    applied=[True, False, True, True, True, True],
    num_workers=3,
)


def test_staleness_bars_are_shares_of_pushes_and_workers_are_marked():
    ax = plots.plot_staleness(HAND_MADE)
    applied, dropped = ax.containers
    np.testing.assert_array_equal(HAND_MADE.staleness, [0, 1, 0, 1, 1, 2])
    assert [bar.get_x() + bar.get_width() / 2 for bar in applied] == pytest.approx([0, 1, 2])
    assert [bar.get_height() for bar in applied] == pytest.approx([2 / 6, 2 / 6, 1 / 6])
    assert [bar.get_height() for bar in dropped] == pytest.approx([0, 1 / 6, 0])
    assert dropped[1].get_y() == pytest.approx(2 / 6)
    assert dropped[1].get_hatch()
    assert not applied[1].get_hatch()
    triangles, mean = ax.lines
    np.testing.assert_allclose(triangles.get_xdata(), [1 / 3, 4 / 3])  # worker 2 pushed nothing
    np.testing.assert_allclose(mean.get_xdata(), 5 / 6)
    assert set(texts(ax.get_legend())) == {
        *("applied", "dropped", "mean of each worker", "mean of all: 0.833")
    }
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("staleness (versions)", "share of pushes")


def test_staleness_without_drops_says_nothing_of_them():
    ax = plots.plot_staleness(sim.make_schedule(sim.RoundRobin(), 4, 40, seed=0))
    (bars,) = ax.containers
    assert [bar.get_height() for bar in bars] == pytest.approx([1 / 40, 1 / 40, 1 / 40, 37 / 40])
    assert "dropped" not in texts(ax.get_legend())


def test_a_long_tail_of_staleness_is_gathered_in_the_last_bar():
    schedule = sim.make_schedule(sim.ParetoTime(1.2, 1.0), 32, 20_000, seed=0)
    ax = plots.plot_staleness(schedule)
    (bars,) = ax.containers
    assert len(bars) <= 60
    heights = [bar.get_height() for bar in bars]
    assert sum(heights) == pytest.approx(1)
    first_of_last = int(ax.get_xlabel().split("last bar: ")[1].split()[0])
    assert heights[-1] == pytest.approx(np.mean(schedule.staleness >= first_of_last))
    assert 0 < heights[-1] < 0.02
    low, high = ax.get_xlim()
    assert all(low < mean < high for mean in ax.lines[0].get_xdata())


def test_timeline_bars_reach_from_pull_to_push():
    ax = plots.plot_timeline(HAND_MADE, num_events=5)
    applied, dropped, again = ax.containers
    span = lambda bar: (round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_width())
    assert [span(bar) for bar in applied] == [(0, 0, 1), (0, 1, 2), (1, 2.5, 1.5), (0, 3, 2)]
    assert [span(bar) for bar in dropped] == [(1, 0, 2.5)]
    assert len(again) == 0
    assert dropped[0].get_hatch()
    assert not applied[0].get_hatch()
    shade = [colors.to_hex(bar.get_facecolor()) for bar in applied]
    assert shade[0] == shade[1] != shade[2] == shade[3]  # staleness 0, 0, 1, 1
    assert colors.to_hex(dropped[0].get_facecolor()) == shade[2]
    assert texts(ax.get_legend()) == ["applied", "dropped"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("simulated seconds", "worker")
    assert ax.get_ylim() == (2.5, -0.5)  # worker 0 at the top, and one that never pushed
    (bar,) = (other for other in ax.figure.axes if other is not ax)
    assert bar.get_ylabel() == "staleness (versions)"


def test_timeline_shows_a_second_delivery_as_a_thin_bar_over_the_first():
    schedule = sim.Schedule(
        worker=[0, 1, 0], read_version=[0, 0, 0], batch=[0, 1, 0], read_time=[0, 0, 0]
    )
    ax = plots.plot_timeline(schedule)
    applied, _, again = ax.containers
    assert (len(applied), len(again)) == (2, 1)
    assert (again[0].get_x(), again[0].get_width()) == (0, 3)
    assert again[0].get_height() < applied[0].get_height()
    assert texts(ax.get_legend()) == ["applied", "delivered again"]


def test_timeline_of_how_many_events():
    schedule = sim.make_schedule(sim.ExponentialTime(), 3, 100, seed=0)
    bars = lambda **options: sum(map(len, plots.plot_timeline(schedule, **options).containers))
    assert (bars(), bars(num_events=7), bars(num_events=1000)) == (24, 7, 100)
    assert plots.plot_timeline(schedule).get_legend() is None
    with pytest.raises(ValueError, match=r"num_events must be >= 1, got 0"):
        plots.plot_timeline(schedule, num_events=0)


def test_compensation_over_versions_leaves_out_what_was_not_measured():
    ratio = np.asarray([0.0, np.nan, 0.25, 0.75, 0.5], np.float32)
    cosine = np.asarray([1.0, np.nan, 0.75, -0.25, 0.5], np.float32)
    result = result_of(np.ones(5), compensation_ratio=ratio, cosine=cosine)
    ax = plots.plot_compensation(result, smooth=2)
    (right,) = (other for other in ax.figure.axes if other is not ax)
    for line in (*ax.lines, *right.lines):
        np.testing.assert_array_equal(line.get_xdata(), [1, 3.5])  # versions (0, 2) and (3, 4)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.125, 0.625])
    np.testing.assert_array_equal(right.lines[0].get_ydata(), [0.875, 0.125])
    assert ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("server updates", "|compensation| / |gradient|")
    assert right.get_ylabel() == "cosine (gradient, compensated gradient)"
    assert ax.lines[0].get_color() == ax.yaxis.label.get_color() == axes.BLUE
    assert right.lines[0].get_color() == right.yaxis.label.get_color() == axes.ORANGE


def test_compensation_of_fresh_gradients_has_a_linear_axis():
    result = result_of(np.ones(3), compensation_ratio=np.zeros(3), cosine=np.ones(3))
    ax = plots.plot_compensation(result)
    assert ax.get_yscale() == "linear"
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0, 0, 0])


@pytest.mark.parametrize("missing", ["compensation_ratio", "cosine"])
def test_compensation_refuses_what_was_not_measured(missing):
    columns = {"compensation_ratio": np.ones(2), "cosine": np.ones(2), missing: None}
    with pytest.raises(ValueError, match=rf"did not measure {missing}: .*metrics="):
        plots.plot_compensation(result_of([1, 1], **columns))
    never = np.full(2, np.nan)
    with pytest.raises(ValueError, match="none to draw"):
        plots.plot_compensation(result_of([1, 1], compensation_ratio=never, cosine=never))
    assert not pyplot.get_fignums()


def test_everything_draws_into_the_axes_it_is_given():
    schedule = sim.make_schedule(sim.ExponentialTime(), 4, 40, seed=0)
    result = calls.simulate(
        lambda w, target: jnp.sum((w - target) ** 2),
        jnp.zeros(2),
        optax.chain(compensations.explicit(0.1, ms_decay=0.9), optax.sgd(0.1)),
        schedule,
        jnp.ones((40, 2)),
        metrics=("compensation_ratio", "cosine"),
    )
    figure, given = pyplot.subplots(2, 2, layout="constrained")
    drawn = [
        plots.plot_loss({"run": result}, "samples", ax=given[0, 0]),
        plots.plot_staleness(schedule, ax=given[0, 1]),
        plots.plot_timeline(schedule, ax=given[1, 0]),
        plots.plot_compensation(result, ax=given[1, 1]),
    ]
    assert all(one is other for one, other in zip(drawn, given.ravel(), strict=True))
    assert pyplot.get_fignums() == [figure.number]
    assert all(ax.has_data() for ax in drawn)
    np.testing.assert_allclose(drawn[0].lines[0].get_ydata(), result.trace.loss, rtol=1e-6)
    ratio = drawn[3].lines[0].get_ydata()
    np.testing.assert_allclose(ratio, result.trace.compensation_ratio, rtol=1e-6)
    assert ratio.max() > 0
