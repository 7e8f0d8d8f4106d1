"""sim.svrg: the reference runs, a NumPy server with the usual mistakes, and bad input."""

import functools

import calls
import compensations
import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import oracle
import pytest

import dcasgd_jax as dc
from dcasgd_jax import sim
from dcasgd_jax.sim.variance_reduction.full_gradient import full_gradient

# Both sides are float64 and 36 events long, |theta| < 3: rounding gives 1e-15 per event.
ATOL = 1e-10
CASES = oracle.cases("async_svrg")
PROBLEM = oracle.Problem()
EXAMPLES = (PROBLEM.X, PROBLEM.y)
ROWS = PROBLEM.batch_rows[np.arange(36) % 6]
# In the order of the leaves: W has elements 0 to 11 of theta, b those from 12 on.
ELEMENTS = {"W": np.arange(12).reshape(4, 3), "b": np.arange(12, 15)}
# The same objects again, so that tests share compiled programs.
sgd, compensate = functools.cache(optax.sgd), functools.cache(compensations.explicit)
assert_close = functools.partial(np.testing.assert_allclose, rtol=0, atol=ATOL)


def round_robin(num_workers=4, num_events=12):
    return sim.make_schedule(sim.RoundRobin(), num_workers, num_events, seed=0)


def up_to_two_versions_old(num_events=12):
    t, j = np.arange(num_events)[:, None], np.arange(15)
    return sim.ReadVersions(np.maximum(t - j % 3, 0))


def params_and_full_loss(params):
    # Copies: JAX remembers the arrays that a program has as constants, and with which precision.
    return params, loops.softmax_loss(params, (jnp.asarray(PROBLEM.X.copy()), PROBLEM.y.copy()))


def run(schedules, lambda0=None, *, loss_fn=loops.softmax_loss, rows=ROWS, **options):
    per_push = None if lambda0 is None else compensate(lambda0)
    options = {"eval_fn": params_and_full_loss, "per_push": per_push, **options}
    return calls.svrg(
        loss_fn, PROBLEM.params, sgd(0.5), schedules, sim.Indexed(EXAMPLES, rows), **options
    )


def theta_trace(result):
    params, _ = result.evaluations
    return np.concatenate([params["W"].reshape(-1, 12), params["b"]], axis=1)


def numpy_svrg(schedules, *, lr=0.5, lambda0=0.0, mistake=None):
    """Event by event, from the rule; mistakes are those that people make."""
    theta = numpy_theta(PROBLEM.params)
    everything, trace, event = np.arange(24), [], 0
    history = [theta]  # of all epochs, for those who let gradients cross
    for schedule in schedules:
        anchor, versions = theta, [theta]
        mu = numpy_gradient(trace[-2] if mistake == "stale mu" and trace else anchor, everything)
        for k in range(len(schedule)):
            read = versions[schedule.read_version[k]]
            if mistake == "gradients cross the epoch":
                read = history[max(event - 3, 0)]
            other = ROWS[(event + 1) % 36] if mistake == "other batch" else ROWS[event]
            g = numpy_gradient(read, ROWS[event])
            if mistake == "compensates v":
                g = g - numpy_gradient(anchor, other) + mu
                v = g + lambda0 * g * g * (theta - read)
            else:
                g = g + lambda0 * g * g * (theta - read)
                v = g - numpy_gradient(anchor, other) + mu
            theta = theta - lr * v * schedule.applied[k]
            if schedule.applied[k]:
                versions.append(theta)
            history.append(theta)
            trace.append(theta)
            event += 1
    return np.array(trace)


def numpy_theta(params):
    return np.concatenate([np.ravel(params["W"]), np.ravel(params["b"])])


def numpy_gradient(theta, rows):
    problem = oracle.Problem()
    problem.batch_rows = [rows]
    return numpy_theta(problem.grad(oracle.unflatten(theta), 0))


@pytest.mark.parametrize(
    ("case", "reads", "options"),
    [
        ("sequential", round_robin(1), {}),
        ("rr4_consistent", round_robin(), {}),
        ("rr4_dc_lam2", round_robin(), {"lambda0": 2.0}),
        (
            "inconsistent_read_(j%3)_versions_old",
            up_to_two_versions_old(),
            {"blocks": ELEMENTS},
        ),
    ],
)
def test_reference_runs(x64, case, reads, options):
    expected = CASES[case]
    result = run([reads] * 3, **options)
    assert_close(theta_trace(result), expected["theta_trace"][1:])
    assert_close(result.evaluations[1], expected["loss_full"][1:])
    assert_close(result.direction_norms, expected["v_norm"])
    assert_close(result.anchor_losses, expected["loss_full"][:-1:12])
    assert result.epoch.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert_close(numpy_theta(result.params), expected["theta_trace"][-1])


def test_losses_of_the_epochs_of_algorithms_md(x64):
    result = run([round_robin()] * 3)
    losses = [*result.anchor_losses, result.evaluations[1][-1]]
    assert_close(losses, [1.1076954813720543, 0.26211014921938447, 0.20452843901167675,
                          0.17309894761164493])  # fmt: skip


def test_the_first_event_of_an_epoch_is_a_full_gradient_step(x64):
    result = run([round_robin()] * 3)
    before = [PROBLEM.params, *map(oracle.unflatten, theta_trace(result)[[11, 23]])]
    for anchor, after in zip(before, theta_trace(result)[[0, 12, 24]], strict=True):
        theta = numpy_theta(anchor)
        assert_close(after, theta - 0.5 * numpy_gradient(theta, np.arange(24)), atol=1e-14)


@pytest.mark.parametrize("lambda0", [0.0, 2.0])
@pytest.mark.parametrize(
    "protocol", [sim.Asynchronous(), sim.DropStale(3)], ids=["asynchronous", "drops"]
)
def test_random_schedules_and_dropped_pushes(x64, lambda0, protocol):
    schedules = [
        sim.make_schedule(sim.ExponentialTime(), 4, 8, seed=epoch, protocol=protocol)
        for epoch in range(3)
    ]
    result = run(schedules, lambda0)
    assert (protocol == sim.Asynchronous()) == all(s.applied.all() for s in schedules)
    expected = numpy_svrg(schedules, lambda0=lambda0)
    assert_close(theta_trace(result), expected)


@pytest.mark.parametrize(
    "mistake", ["other batch", "stale mu", "gradients cross the epoch", "compensates v"]
)
def test_the_usual_mistakes_are_seen(mistake):
    schedules = [round_robin()] * 3
    reference = np.array(CASES["rr4_dc_lam2"]["theta_trace"][1:])
    assert_close(numpy_svrg(schedules, lambda0=2.0), reference)
    wrong = numpy_svrg(schedules, lambda0=2.0, mistake=mistake)
    assert np.abs(wrong - reference).max() > 1e-2


def test_where_the_compensation_stands_matters(x64):
    """In `tx` it sees v, as its docstring says: another algorithm."""
    schedules = [round_robin()] * 3
    inside = calls.svrg(
        loops.softmax_loss,
        PROBLEM.params,
        optax.chain(compensations.explicit(2.0), optax.sgd(0.5)),
        schedules,
        sim.Indexed(EXAMPLES, ROWS),
    )
    expected = numpy_svrg(schedules, lambda0=2.0, mistake="compensates v")[-1]
    assert_close(numpy_theta(inside.params), expected)


def quadratic_loss(w, x):
    return jnp.mean(jnp.square(w[None] - x) * jnp.asarray([0.5, 2.0])[None])


def test_the_exact_curvature_undoes_staleness_on_a_quadratic(x64):
    rng = np.random.default_rng(0)
    batches = sim.Indexed(rng.normal(size=(20, 2)), rng.integers(0, 20, size=(30, 4)))
    train = functools.partial(
        calls.svrg, quadratic_loss, np.array([3.0, -2.0]), optax.sgd(0.1), batches=batches
    )
    exact = dc.compensate_delay(1.0, curvature=dc.curvatures.hessian())
    stale = [sim.make_schedule(sim.ExponentialTime(), 4, 10, seed=e) for e in range(3)]
    fresh = train(schedules=[round_robin(1, 10)] * 3).params
    assert_close(train(schedules=stale, per_push=exact).params, fresh)
    assert np.abs(train(schedules=stale).params - fresh).max() > 1e-3


def test_the_noise_of_the_batches_goes_away():
    schedules = [round_robin(4, 40)] * 6
    rows = np.random.default_rng(0).integers(0, 24, size=(240, 2))
    decayed = lambda params, batch: (
        loops.softmax_loss(params, batch) + 0.05 * optax.tree.norm(params, squared=True)
    )
    result = run(schedules, rows=rows, loss_fn=decayed, eval_fn=None)
    ends = result.direction_norms[[0, -1]]
    assert ends[1] < 0.02 * ends[0]


@pytest.mark.parametrize("batch_size", [1, 7, 12, 24])
def test_full_gradient_in_pieces(x64, batch_size):
    loss, grads = full_gradient(loops.softmax_loss, PROBLEM.params, EXAMPLES, batch_size)
    whole = jax.value_and_grad(loops.softmax_loss)(PROBLEM.params, EXAMPLES)
    assert_close(loss, whole[0], atol=1e-14)
    assert_close(numpy_theta(grads), numpy_theta(whole[1]), atol=1e-14)


def test_full_batch_size_changes_nothing(x64):
    schedules = [round_robin()] * 2
    losses = [run(schedules, full_batch_size=n).losses for n in (None, 5, 1000)]
    assert_close(losses[1], losses[0])
    assert_close(losses[2], losses[0])


def test_epochs_and_calls_share_one_compiled_program():
    schedules = [sim.make_schedule(sim.ExponentialTime(), 4, 12, seed=e) for e in range(3)]
    assert len({schedule.num_slots for schedule in schedules}) == 1

    def count_traces(num_epochs, calls=1):
        traces = []

        def loss_fn(params, batch):
            traces.append(None)
            return loops.softmax_loss(params, batch)

        for _ in range(calls):
            run(schedules[:num_epochs], loss_fn=loss_fn)
        return len(traces)

    assert count_traces(1) == count_traces(3) == count_traces(3, calls=2)


def test_params_and_the_optimizer_state_are_kept():
    params = jax.tree.map(jnp.asarray, PROBLEM.params)
    tx = optax.sgd(0.1, momentum=0.9)
    batches = sim.Indexed(EXAMPLES, ROWS)
    both = calls.svrg(loops.softmax_loss, params, tx, [round_robin()] * 2, batches)
    one = calls.svrg(loops.softmax_loss, params, tx, [round_robin()], batches)
    two = calls.svrg(
        loops.softmax_loss, one.params, tx, [round_robin()], sim.Indexed(EXAMPLES, ROWS[12:]),
        opt_state=one.opt_state,
    )  # fmt: skip
    np.testing.assert_array_equal(both.params["W"], two.params["W"])
    assert both.evaluations is None
    np.testing.assert_array_equal(params["W"], np.float32(PROBLEM.params["W"]))  # not donated


def test_half_precision_stays_and_its_sums_are_wide():
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), PROBLEM.params)
    examples = (jnp.asarray(PROBLEM.X, jnp.bfloat16), jnp.asarray(PROBLEM.y, jnp.int32))
    result = calls.svrg(
        loops.softmax_loss, params, optax.sgd(lambda count: jnp.float32(0.5)), [round_robin()] * 2,
        sim.Indexed(examples, ROWS), per_push=compensate(2.0),
    )  # fmt: skip
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {jnp.dtype(jnp.bfloat16)}
    many = jnp.full(4096, 1.0, jnp.bfloat16)  # 1/4096 each: sums in bfloat16 would stop early
    loss, grads = full_gradient(lambda w, x: jnp.mean(w * x), many[0], many, batch_size=1)
    assert (float(loss), float(grads), grads.dtype) == (1.0, 1.0, jnp.bfloat16)


@pytest.mark.parametrize(
    ("schedules", "rows", "message"),
    [
        ([], ROWS, "one for each epoch, at least one"),
        (round_robin(), ROWS, "a sequence of schedules"),
        ([round_robin()] * 4, ROWS, "batches has 36 rows, but the run has 48 events"),
        ([round_robin()], ROWS + 2, r"Indexed.rows\[5, 2\] is 24, but there are 24 examples"),
        ([round_robin()], ROWS - 1, r"Indexed.rows\[0, 0\] is -1, but there are 24 examples"),
        ([round_robin()], ROWS * 1.0, "rows must be integers"),
        ([round_robin()], ROWS[0], r"needs rows \[num_events, batch_size\]"),
        ([round_robin()], ROWS[:, :0], r"needs rows \[num_events, batch_size\]"),
        ([up_to_two_versions_old()], ROWS, "15 blocks, but params have 2 leaves"),
    ],
)
def test_bad_epochs_and_rows(schedules, rows, message):
    with pytest.raises(ValueError, match=message):
        run(schedules, rows=rows)


def test_bad_schedules_and_batches():
    synchronous = sim.Schedule.from_delays([[0] * 4] * 3)
    with pytest.raises(ValueError, match=r"schedules\[1\] averages several pushes"):
        run([round_robin(), synchronous])
    broken = sim.make_schedule(
        sim.ExponentialTime(), 2, 12, seed=0, faults=[sim.NaNGradient(worker=0, push=1)]
    )
    with pytest.raises(ValueError, match=r"schedules\[0\] has corrupt pushes"):
        run([broken])
    with pytest.raises(TypeError, match=r"schedules\[0\] must be a sim.Schedule"):
        run([3])
    with pytest.raises(TypeError, match="the full gradient is over all examples; got tuple"):
        calls.svrg(loops.softmax_loss, PROBLEM.params, optax.sgd(0.5), [round_robin()], EXAMPLES)
    uneven = sim.Indexed((PROBLEM.X, PROBLEM.y[:20]), ROWS)
    with pytest.raises(ValueError, match="one common leading axis"):
        calls.svrg(loops.softmax_loss, PROBLEM.params, optax.sgd(0.5), [round_robin()], uneven)
    for option in ("eval_every", "full_batch_size"):
        with pytest.raises(ValueError, match=f"{option} must be an integer >= 1"):
            run([round_robin()], **{option: 0})
