"""eval_fn inside the run, the trace's metrics, and traces that are thinned."""

import calls
import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from problems import run, schedule_for

from dcasgd_jax import sim

ENGINES = [sim.ScanEngine(), sim.ScanEngine(chunk_size=7), sim.HostEngine(chunk_size=9)]


def square_norm(params):
    return {"norm": sum(jnp.sum(p**2) for p in jax.tree.leaves(params)), "b": params["b"]}


def params_at(schedule, version, tx):
    """Params at a version, by stopping there."""
    stop = int(np.flatnonzero(schedule.version == version - 1)[-1]) + 1
    return run(schedule, tx, stop=stop).params


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("protocol", [sim.Asynchronous(), sim.Synchronous(), sim.DropStale(2)])
def test_the_chosen_versions_are_evaluated(engine, protocol):
    schedule = schedule_for(protocol, num_updates=14)
    tx = problems.adaptive()
    result = run(
        schedule, tx, engine=engine, eval_fn=square_norm, eval_versions=[1, 6, 14]
    ).evaluations
    assert result.version.tolist() == [1, 6, 14]
    for i, version in enumerate(result.version):
        expected = square_norm(params_at(schedule, version, tx))
        found = jax.tree.map(lambda leaf: leaf[i], result.values)  # noqa: B023
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
        event = int(np.flatnonzero(schedule.version == version - 1)[-1])
        while not schedule.applied[event]:
            event -= 1
        assert result.time[i] == schedule.time[event]
        assert result.samples[i] == 8 * (event + 1)


def test_a_version_is_there_when_its_update_is_made_and_not_at_the_last_push():
    schedule = schedule_for(sim.Quorum(3, grace=0.7), num_updates=14)
    result = run(schedule, optax.sgd(0.1), eval_fn=square_norm, eval_versions=1).evaluations
    made = schedule.update_time[schedule.updates]
    assert (made > schedule.time[schedule.updates]).any()
    np.testing.assert_array_equal(result.time, made)


@pytest.mark.parametrize(
    ("asked", "versions"),
    [(5, [5, 10, 14]), (7, [7, 14]), (None, [14]), (100, [14]), (1, list(range(1, 15)))],
)
def test_which_versions(asked, versions):
    result = run(schedule_for(num_updates=14), eval_fn=square_norm, eval_versions=asked)
    assert result.evaluations.version.tolist() == versions


def test_evaluations_survive_stopping_and_going_on():
    schedule, tx = schedule_for(num_updates=20), problems.adaptive()
    options = dict(eval_fn=square_norm, eval_versions=4)
    first = run(schedule, tx, **options, stop=9)
    second = run(schedule, tx, **options, state=first.state)
    assert first.evaluations.version.tolist() == [4, 8]
    assert second.evaluations.version.tolist() == [12, 16, 20]
    assert run(schedule, tx, **options, stop=3).evaluations is None


def test_with_model_state_the_mean_over_workers_is_evaluated():
    def loss_fn(params, count, batch):
        return problems.softmax_loss(params, batch), count + 1

    schedule = schedule_for(num_updates=20)
    result = run(
        schedule,
        loss_fn=loss_fn,
        model_state=jnp.float32(0),
        eval_fn=lambda params, count: count,
        eval_versions=5,
    )
    of_workers = [len(set(schedule.worker[:version].tolist())) for version in (5, 10, 15, 20)]
    assert of_workers == [3, 4, 4, 4]  # those who have pushed
    np.testing.assert_allclose(
        result.evaluations.values, [5 / 3, 10 / 4, 15 / 4, 20 / 4], rtol=1e-6
    )


def test_evaluation_costs_nothing_where_it_is_not_asked_for():
    calls = []

    def eval_fn(params):
        jax.debug.callback(lambda: calls.append(1))
        return params["b"]

    run(schedule_for(), eval_fn=eval_fn, eval_versions=[3, 50], engine=sim.ScanEngine())
    jax.effects_barrier()
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(eval_versions=3), "needs an eval_fn"),
        (dict(eval_fn=square_norm, eval_versions=[0]), r"version 0, .* 1 to 60.*call eval_fn"),
        (dict(eval_fn=square_norm, eval_versions=[9, 61]), "version 61"),
        (dict(eval_fn=square_norm, eval_versions=0), "eval_versions must be an integer >= 1"),
        (dict(metrics=["gap", "speed"]), "Unknown metric 'speed'; there are"),
        (dict(metrics="gap"), "metrics must be a collection of names"),
        (dict(trace_every=0), "Recording.every must be an integer >= 1"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        run(schedule_for(), **options)


ALL_METRICS = ["gap", "compensation_ratio", "cosine", "below_eps"]


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_metrics_against_numpy(engine, x64):
    schedule = schedule_for(num_updates=25)
    lambda0, eps, lr = 2.0, 0.003, 0.3
    tx = problems.adaptive(lr, lambda0, momentum=0.0, eps=eps)
    trace = run(schedule, tx, dtype=np.float64, engine=engine, metrics=ALL_METRICS).trace
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    params = problems.softmax_params(np.float64)
    _, unflatten = jax.flatten_util.ravel_pytree(params)
    grad_fn = jax.jit(jax.grad(problems.softmax_loss))
    images, labels = problems.softmax_batches(25, np.float64)
    versions, mean_square = [flat(params)], 0.0
    for k in range(25):
        stale = versions[schedule.read_version[k]]
        g = flat(grad_fn(unflatten(jnp.asarray(stale)), (images[k], labels[k])))
        mean_square = 0.95 * mean_square + 0.05 * g * g
        moved = versions[k] - stale
        added = lambda0 / np.sqrt(mean_square + eps) * g * g * moved
        total = g + added
        # The transformation measures in float32.
        np.testing.assert_allclose(trace.gap[k], np.sqrt(np.mean(moved**2)), rtol=1e-5)
        norm = np.linalg.norm
        np.testing.assert_allclose(
            trace.compensation_ratio[k], norm(added) / norm(g), rtol=1e-4, atol=1e-7
        )
        np.testing.assert_allclose(trace.cosine[k], g @ total / norm(g) / norm(total), rtol=1e-5)
        assert trace.below_eps[k] == pytest.approx(np.mean(mean_square < eps))
        versions.append(versions[k] - lr * total)
    assert 0 < trace.below_eps.mean() < 1
    np.testing.assert_array_equal(trace.gap == 0, schedule.staleness == 0)


def test_metrics_that_were_not_asked_for_cost_no_column():
    trace = run(schedule_for(), metrics=["gap"]).trace
    assert "gap" in trace.columns()
    assert not {"cosine", "compensation_ratio", "below_eps"} & set(trace.columns())
    assert {column.shape for column in trace.columns().values()} == {(60,)}


def blow_up(params, batch):
    return jnp.sum((params - batch) ** 4)


LOST_ENGINES = [sim.ScanEngine(n) for n in (1, 3, 8, 64)] + [sim.HostEngine(chunk_size=5)]


@pytest.mark.parametrize("before", [False, True])
def test_a_lost_run_has_no_evaluations_from_its_first_bad_loss_on(before, tmp_path):
    schedule = schedule_for(num_updates=60)
    inputs = (blow_up, jnp.full(2, 3.0), optax.sgd(0.05), schedule, jnp.zeros((60, 2)))
    evaluates = dict(eval_fn=lambda w: w, eval_versions=1 if before else [59, 60])
    results = [calls.simulate(*inputs, engine=engine, **evaluates) for engine in LOST_ENGINES]
    saved = dict(checkpoint=sim.Checkpoint(tmp_path, every=4))
    results.append(calls.simulate(*inputs, **evaluates, **saved))
    results.append(calls.sweep(
        *inputs, **evaluates, key=sim.PerMember([None, None]), chunk_size=7).member(1))  # fmt: skip
    lost_at = results[0].non_finite.event
    assert 0 < lost_at < 50
    for result in results:
        assert result.non_finite.event == lost_at == result.trace.event[-1]
        if not before:
            assert result.evaluations is None
            continue
        # Event k makes version k + 1; that of the first bad loss is lost already.
        assert result.evaluations.version.tolist() == list(range(1, lost_at + 1))
        chex.assert_trees_all_close(result.evaluations.values, results[0].evaluations.values)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_a_thinned_trace_is_every_nth_event(engine):
    schedule, tx = schedule_for(), problems.adaptive()
    whole = run(schedule, tx, metrics=ALL_METRICS, engine=engine)
    thin = run(schedule, tx, metrics=ALL_METRICS, engine=engine, trace_every=8)
    assert thin.trace.event.tolist() == list(range(0, 60, 8))
    chex.assert_trees_all_equal(thin.trace, jax.tree.map(lambda column: column[::8], whole.trace))
    chex.assert_trees_all_equal(thin.params, whole.params)
    first = run(schedule, tx, engine=engine, trace_every=8, stop=20)
    second = run(schedule, tx, engine=engine, trace_every=8, state=first.state)
    events = np.concatenate([first.trace.event, second.trace.event])
    assert events.tolist() == thin.trace.event.tolist()


def test_a_trace_as_a_data_frame():
    pd = pytest.importorskip("pandas")
    result = run(schedule_for(), metrics=["gap"])
    frame = result.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == list(result.trace.columns())
    assert frame["loss"].to_numpy() == pytest.approx(result.losses)
    by_worker = frame.groupby("worker")["staleness"].mean()
    assert by_worker[0] == pytest.approx(result.trace.staleness[result.trace.worker == 0].mean())


def test_results_are_read_at_a_glance_and_as_tables():
    loss_fn = lambda w, target: jnp.sum((w - target) ** 2)
    evaluated = lambda w: {"first": w[0], "two": w[:2]}
    problem = sim.Problem(loss_fn, jnp.zeros(3), eval_fn=evaluated)
    schedule = sim.make_schedule(sim.RoundRobin(), 2, num_updates=6, seed=0)
    recording = sim.Recording(eval_versions=3)
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    result = sim.simulate(problem, tx, schedule, jnp.ones((6, 3)), recording=recording)
    assert repr(result).splitlines() == [
        "SimResult of 6 events",
        "  last push at version 5, mean staleness 0.83, 3 simulated seconds",
        "  mean loss of the first 1 event 3, of the last 0",
        "  params: 1 array, 3 numbers",
    ]
    assert repr(result.trace).startswith("Trace of 6 events\n  event, worker, version,")
    assert repr(result.evaluations) == ("Evaluations of 2 versions 3 to 6\n  first, two/0, two/1")
    assert repr(result.state) == "SimState(6 events done)"
    table = result.evaluations.to_pandas()
    assert list(table) == ["version", "samples", "time", "first", "two/0", "two/1"]
    np.testing.assert_array_equal(table["two/1"], result.evaluations.values["two"][:, 1])
    rates = sim.grid(learning_rate=[0.5, 0.25])
    swept = sim.sweep(
        problem, tx, schedule, jnp.ones((6, 3)), hyperparams=rates, recording=recording
    )
    table = swept.evaluations.to_pandas()
    assert table["member"].tolist() == [0, 0, 1, 1]
    assert table["version"].tolist() == [3, 6, 3, 6]
    np.testing.assert_array_equal(table["two/1"], swept.evaluations.values["two"][:, :, 1].ravel())
