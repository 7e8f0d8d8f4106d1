"""The reference runs of tests/data/staleness_lr.json and rivals.json, event by event, float64."""

import calls
import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import oracle
import pytest

from dcasgd_jax import rivals, sim
from rivals import servers

# Both sides are float64 and at most 27 events long, |theta| < 10: rounding gives 1e-15 per event.
ATOL = 1e-10

STALENESS = oracle.cases("staleness_lr")
RIVALS = oracle.cases("rivals")
ORDER = STALENESS["inverse_lr_over_1_plus_tau"]["order"]
ROUND_ROBIN = [event % 4 for event in range(24)]


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ATOL)


def assert_run(trace, case):
    """The parameters where the file has them, at every event or in the end, and all losses."""
    if "theta_trace" in case:
        assert_close(oracle.flatten(trace), case["theta_trace"])
    else:
        assert_close(servers.theta(trace[-1]), case["theta_final"])
        assert_close(servers.full_losses(trace), case["loss_full"])


RULES = {
    "zhang2016_lr_over_max(tau,1)": rivals.inverse_staleness,
    "inverse_lr_over_1_plus_tau": rivals.inverse_one_plus_staleness,
    "delay_adaptive_lr*min(1,M/tau)": rivals.delay_adaptive(4),
}


@pytest.mark.parametrize("name", RULES)
def test_scale_by_staleness(name, x64):
    case = STALENESS[name]
    tx = optax.chain(optax.sgd(0.5), rivals.scale_by_staleness(RULES[name]))
    trace, _ = servers.run(tx, ORDER, servers.staleness)
    assert_run(trace, case)
    factors = [RULES[name](jnp.int32(tau)) for tau in case["staleness"]]
    assert_close(0.5 * np.array(factors), case["lr_used"])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("other", RULES)
def test_one_rule_is_not_another(name, other, x64):
    tx = optax.chain(optax.sgd(0.5), rivals.scale_by_staleness(RULES[other]))
    trace, _ = servers.run(tx, ORDER, servers.staleness)
    distance = np.abs(oracle.flatten(trace) - STALENESS[name]["theta_trace"]).max()
    assert (distance < ATOL) if name == other else (distance > 1e-2)


WU = {"wu_adaptive1_gamma'=1_alpha=0.9": 0.9, "wu_adaptive2_gamma'=1": None}


@pytest.mark.parametrize("max_delay", [7, 30])
@pytest.mark.parametrize("name", WU)
def test_adaptive_step_sizes(name, max_delay, x64):
    case = STALENESS[name]
    tx = rivals.adaptive_step_sizes(1.0, max_delay, alpha=WU[name])
    trace, states = servers.run(tx, ORDER, servers.staleness)
    assert_run(trace, case)
    gamma = np.array([state.step_size for state in states])
    assert_close(gamma, case["lr_used"])
    for k, tau in enumerate(case["staleness"]):  # the principle holds wherever a step is made
        assert gamma[k] == 0 or gamma[k - tau : k + 1].sum() <= 1 + ATOL
    assert (gamma == 0).sum() >= 10


def test_wu_adaptive_forgets_what_is_older_than_max_delay(x64):
    """A gradient beyond it is dropped; all others are as before."""
    case = STALENESS["wu_adaptive2_gamma'=1"]
    tx = rivals.adaptive_step_sizes(1.0, max_delay=3, alpha=None)
    _, states = servers.run(tx, ORDER, servers.staleness)
    late = np.array(case["staleness"]) > 3
    gamma = np.array([state.step_size for state in states])
    assert (gamma[late] == 0).all()
    assert_close(gamma, case["lr_used"])  # in this run those had no room anyway


def test_ringmaster_with_every_arrival_counted(x64):
    case = STALENESS["ringmaster_R=4_drop_if_tau>=R"]
    tx = rivals.drop_stale(optax.sgd(0.5), bound=4)
    trace, states = servers.run(tx, ORDER, servers.staleness)
    assert_run(trace, case)
    np.testing.assert_array_equal([bool(s.applied) for s in states], np.array(case["lr_used"]) > 0)


def test_ringmaster_with_applied_updates_counted(x64):
    case = STALENESS["ringmaster_R=2"]
    told = []

    def spy(updates, state, params=None, *, staleness, **extra_args):
        jax.debug.callback(lambda value: told.append(int(value)), staleness)
        return updates, state

    spying = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), spy)
    inner = optax.chain(spying, optax.sgd(0.5))
    tx = rivals.drop_stale(inner, case["R"], num_workers=4)
    trace, states = servers.run(tx, case["order"], servers.worker)
    jax.effects_barrier()
    assert_run(trace, case)
    assert [bool(state.applied) for state in states] == case["accepted"]
    assert int(states[-1].versions.version) == case["applied"]
    delay = np.array(case["delay"])
    assert told == delay[delay < 2].tolist()  # what the inner optimizer is told


@pytest.mark.parametrize(
    ("name", "bound", "told"),
    [
        ("ringmaster_R=4_drop_if_tau>=R", 5, servers.staleness),  # > instead of >=
        ("ringmaster_R=4_drop_if_tau>=R", 4, servers.worker),  # the other way of counting
        ("ringmaster_R=2", 3, servers.worker),
        ("ringmaster_R=2", 2, servers.staleness),
    ],
)
def test_ringmaster_is_not_another(name, bound, told, x64):
    num_workers = 4 if told is servers.worker else None
    tx = rivals.drop_stale(optax.sgd(0.5), bound, num_workers=num_workers)
    trace, _ = servers.run(tx, ORDER, told)
    case = STALENESS[name]
    expected = case.get("theta_final") or case["theta_trace"][-1]
    assert np.abs(servers.theta(trace[-1]) - expected).max() > 1e-2


def batches(num_events):
    problem = servers.PROBLEM
    rows = problem.batch_rows[np.arange(num_events) % len(problem.batch_rows)]
    return problem.X[rows], problem.y[rows]


def softsync_schedule(case):
    """One arrival per second, in the order of the file."""
    arrivals = [np.flatnonzero(np.array(case["order"]) == m) + 1.0 for m in range(4)]
    seconds = np.full((24, 4), 1000.0)  # after the last one
    for m, times in enumerate(arrivals):
        seconds[: len(times), m] = np.diff(times, prepend=0.0)
    law, protocol = sim.RecordedTime(seconds), sim.Buffered(case["c"])
    schedule = sim.make_schedule(law, 4, 24 // case["c"], seed=0, protocol=protocol)
    assert schedule.worker.tolist() == case["order"]
    assert schedule.staleness.tolist() == case["staleness"]
    return schedule


def simulate_softsync(per_push):
    case = STALENESS["softsync_c2_zhang"]
    schedule = softsync_schedule(case)
    result = calls.simulate(
        loops.softmax_loss, servers.PROBLEM.params, optax.sgd(case["lr"]), schedule,
        batches(len(schedule)), per_push=per_push,
        eval_fn=lambda params: params, eval_versions=1,
    )  # fmt: skip
    return result, case


def test_softsync_is_a_buffer_with_scaled_pushes(x64):
    result, case = simulate_softsync(rivals.scale_by_staleness(rivals.inverse_staleness))
    assert_close(servers.theta(result.params), case["theta_final"])
    made = jax.device_get(result.evaluations.values)
    versions = [servers.PROBLEM.params]
    versions += [{name: leaf[v] for name, leaf in made.items()} for v in range(12)]
    after_each_push = [versions[pushes // case["c"]] for pushes in range(25)]
    assert_close(servers.full_losses(after_each_push), case["loss_full"])


def test_softsync_scales_each_push_and_not_their_mean(x64):
    result, case = simulate_softsync(None)
    assert np.abs(servers.theta(result.params) - case["theta_final"]).max() > 1e-2


def local_steps(case):
    """Pseudo-gradients: the start minus the end of a few local steps, each with its own batch."""
    gradient = loops.softmax_grad_fn()

    def pseudo_gradient(params, event):
        end = params
        for step in range(case["inner_steps"]):
            grads = gradient(end, event * case["inner_steps"] + step)
            end = jax.tree.map(lambda p, g: p - case["inner_lr"] * g, end, grads)
        return jax.tree.map(jnp.subtract, params, end)

    return pseudo_gradient


@pytest.mark.parametrize("name", ["delayed_nesterov_N4", "delayed_nesterov_N1_is_nesterov"])
def test_delayed_nesterov(name, x64):
    case = RIVALS[name]
    tx = rivals.delayed_nesterov(case["outer_lr"], case["N"], case["beta"], smoothing=case["c"])
    trace, _ = servers.run(tx, case["order"], servers.nothing, local_steps(case))
    assert_run(trace, case)


def test_delayed_nesterov_of_one_step_is_nesterov(x64):
    case = RIVALS["delayed_nesterov_N1_is_nesterov"]
    tx = optax.sgd(case["outer_lr"], momentum=case["beta"], nesterov=True)
    trace, _ = servers.run(tx, case["order"], servers.nothing, local_steps(case))
    assert_run(trace, case)


def test_spike_compensation(x64):
    case = RIVALS["tau3_sc"]
    tx = optax.chain(
        rivals.spike_compensation(case["momentum"], case["tau"]),
        optax.scale_by_learning_rate(case["lr"]),
    )
    trace, _ = servers.run(tx, ROUND_ROBIN, servers.nothing)
    assert_run(trace, case)


def test_spike_compensation_without_delay_is_the_momentum_of_the_reference_run(x64):
    case = RIVALS["tau3_none"]
    tx = optax.chain(
        rivals.spike_compensation(case["momentum"], 0), optax.scale_by_learning_rate(case["lr"])
    )
    trace, _ = servers.run(tx, ROUND_ROBIN, servers.nothing)
    assert_run(trace, case)


@pytest.mark.parametrize("delay", [2, 4])
def test_spike_compensation_with_a_horizon_off_by_one(delay, x64):
    case = RIVALS["tau3_sc"]
    tx = optax.chain(
        rivals.spike_compensation(case["momentum"], delay), optax.scale_by_learning_rate(case["lr"])
    )
    trace, _ = servers.run(tx, ROUND_ROBIN, servers.nothing)
    assert np.abs(servers.theta(trace[-1]) - case["theta_final"]).max() > 1e-2


def test_ordered_momentum(x64):
    """Fixed gradients: they are the same in whatever order the workers come."""
    case = RIVALS["ormo_fixed_gradients"]
    G = jnp.asarray(case["G"])
    direction = rivals.ordered_momentum(case["beta"], num_workers=4, bucket_size=case["K"])
    tx = optax.chain(direction, optax.scale_by_learning_rate(case["lr"]))
    w = jnp.zeros(3)
    state, numbers, handed_out = tx.init(w), [0, 1, 2, 3], 4
    for number in case["arrivals"]:
        worker = numbers.index(number)
        assert int(state[0].numbers.rows[worker]) == number
        updates, state = tx.update(G[number], state, w, worker=worker)
        w = optax.apply_updates(w, updates)
        numbers[worker], handed_out = handed_out, handed_out + 1
    assert_close(w, case["w"])
    assert_close(case["lr"] * state[0].velocity, case["u"])


def test_pipemare_rescale(x64):
    """T2 changes nothing on a model of one layer, where forward and backward read the same."""
    case = RIVALS["pipemare_T1_T2_tau3"]
    tx = optax.chain(optax.sgd(case["lr"]), rivals.pipemare_rescale(case["tau"], case["K"]))
    trace, _ = servers.run(tx, ROUND_ROBIN, servers.nothing)
    assert_run(trace, case)


def test_pipemare_rescale_gives_the_learning_rates_of_the_reference_run(x64):
    case = RIVALS["pipemare_T1_T2_tau3"]
    tx = optax.chain(
        optax.scale(case["lr"]),
        rivals.pipemare_rescale({"late": case["tau"], "fresh": 0}, case["K"]),
    )
    tree = {"late": jnp.ones(()), "fresh": jnp.ones(())}
    state, rates = tx.init(tree), []
    for _ in case["lr_used"]:
        rate, state = tx.update(tree, state, tree)
        rates.append(rate)
    assert_close([rate["late"] for rate in rates], case["lr_used"])
    assert {float(rate["fresh"]) for rate in rates} == {case["lr"]}


FLOAT32 = {
    **{
        name: (optax.chain(optax.sgd(0.5), rivals.scale_by_staleness(rule)), servers.staleness)
        for name, rule in RULES.items()
    },
    **{
        name: (rivals.adaptive_step_sizes(1.0, 7, alpha=a), servers.staleness)
        for name, a in WU.items()
    },
    "ringmaster_R=4_drop_if_tau>=R": (rivals.drop_stale(optax.sgd(0.5), 4), servers.staleness),
    "ringmaster_R=2": (rivals.drop_stale(optax.sgd(0.5), 2, num_workers=4), servers.worker),
}


@pytest.mark.parametrize("name", FLOAT32)
def test_in_float32(name):
    """In the precision that people train in; a step taken or not must not hang on rounding."""
    tx, told = FLOAT32[name]
    trace, _ = servers.run(tx, ORDER, told)
    case = STALENESS[name]
    expected = case.get("theta_final") or case["theta_trace"][-1]
    actual = servers.theta(jax.device_get(trace[-1]))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    assert trace[-1]["W"].dtype == jnp.float32


def stacked(gradient, params, events):
    grads = [gradient(params, event) for event in events]
    return jax.tree.map(lambda *leaf: jnp.stack(leaf), *grads)


@pytest.mark.parametrize("name", ["dc_ssgd_lam2", "dc_ssgd_lam0_is_sum_step"])
def test_dc_ssgd(name, x64):
    case = RIVALS[name]
    gradient, M = loops.softmax_grad_fn(), case["workers"]
    tx = rivals.dc_ssgd(case["lr_per_gradient"], case["lam"])
    params = jax.tree.map(jnp.asarray, servers.PROBLEM.params)
    state, trace = tx.init(params), [params]
    for first in range(0, 24, M):
        grads = stacked(gradient, params, range(first, first + M))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        trace.append(params)
    assert_run(trace, case)


@pytest.mark.parametrize("name", ["dcs3gd_2workers", "dcs3gd_2workers_lam0=0"])
def test_dc_s3gd(name, x64):
    """The file begins with a step of each worker by itself, which is our first update."""
    case = RIVALS[name]
    gradient, M = loops.softmax_grad_fn(), case["workers"]
    tx = rivals.dc_s3gd(optax.sgd(case["lr"]), case["lam0"])
    update = jax.jit(tx.update)
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * M), servers.PROBLEM.params)
    state, models, strengths = tx.init(params), [], []
    for step in range(case["iters"] + 1):
        of_worker = [jax.tree.map(lambda leaf, m=m: leaf[m], params) for m in range(M)]
        grads = [gradient(of_worker[m], M * step + m) for m in range(M)]
        updates, state = update(jax.tree.map(lambda *g: jnp.stack(g), *grads), state, params)
        params = optax.apply_updates(params, updates)
        models.append(jax.tree.map(lambda leaf: leaf.mean(0), params))
        strengths.append(state.strengths)
        common = jax.tree.map(jnp.subtract, params, state.last_steps)
        for leaf in jax.tree.leaves(common):  # what all workers agree on
            assert_close(leaf[0], leaf[1])
    assert_close(servers.theta(models[-1]), case["theta_final"])
    assert_close(servers.full_losses(models[1:]), case["loss_full"])
    np.testing.assert_allclose(np.array(strengths[1:]), case["lambda_trace"], rtol=1e-10, atol=0)
    assert (np.array(strengths[0]) == 0).all()  # no drift yet: 0/0
