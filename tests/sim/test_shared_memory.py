"""Shared memory: the reference runs, NumPy threads with the usual mistakes, adversaries."""

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

from dcasgd_jax import sim
from dcasgd_jax.sim.shared_memory import replay

# Both sides are float64 and at most 24 updates long, |theta| < 4: rounding gives 1e-15 per update.
ATOL = 1e-10
CASES = oracle.cases("hogwild")
PROBLEM = oracle.Problem()
BLOCKS = {"W": np.arange(4)[:, None], "b": 4}  # the rows of W, and b
BLOCK_OF_ELEMENT = np.array([0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3)
OPERATIONS = {name: sim.MemoryTrace.from_text(CASES[name]["ops"]) for name in CASES
              if name.startswith("ops")}  # fmt: skip
assert_close = functools.partial(np.testing.assert_allclose, rtol=0, atol=ATOL)


def batches(num_events):
    rows = PROBLEM.batch_rows[np.arange(num_events) % 6]
    return PROBLEM.X[rows], PROBLEM.y[rows]


def params_and_full_loss(params):
    # Copies: JAX remembers the arrays that a program has as constants, and with which precision.
    return params, loops.softmax_loss(params, (jnp.asarray(PROBLEM.X.copy()), PROBLEM.y.copy()))


def count_batches(reads):
    return (
        int(reads.jobs.batch.max(initial=-1)) + 1
        if isinstance(reads, sim.MemoryTrace)
        else len(reads)
    )


def run(reads, tx=None, *, num_batches=None, **options):
    num_batches = count_batches(reads) if num_batches is None else num_batches
    options = {"eval_fn": params_and_full_loss, "blocks": BLOCKS, **options}
    tx = compensated(0.0) if tx is None else tx
    return calls.simulate_shared_memory(
        loops.softmax_loss, PROBLEM.params, tx, reads, batches(num_batches), **options
    )


def theta(params):
    return np.concatenate([np.ravel(params["W"]), np.ravel(params["b"])])


def theta_trace(result):
    params, _ = result.evaluations
    return np.concatenate([params["W"].reshape(-1, 12), params["b"]], axis=1)


def gradient(at, event):
    return theta(PROBLEM.grad(oracle.unflatten(at), event))


@functools.cache
def compensated(lambda0):
    return optax.chain(compensations.explicit(lambda0), optax.sgd(0.5))


def numpy_table(read_version, lambda0=0.0, mistake=None):
    """The view model, update by update."""
    versions = [theta(PROBLEM.params)]
    for t, read in enumerate(read_version):
        view = np.array([versions[read[j]][i] for i, j in enumerate(BLOCK_OF_ELEMENT)])
        g = gradient(view, t)
        stale = versions[min(read)] if mistake == "oldest block for all" else view
        versions.append(versions[-1] - 0.5 * (g + lambda0 * g * g * (versions[-1] - stale)))
    return np.array(versions)


def numpy_threads(trace, lambda0=0.0, mistake=None):
    """Threads on one array, operation by operation; the memory in the end."""
    memory = theta(PROBLEM.params)
    views = [np.zeros(15) for _ in range(trace.num_workers)]
    batch, dealt, by_first_write = list(range(trace.num_workers)), trace.num_workers, 0
    update, left = [None] * trace.num_workers, [trace.num_blocks] * trace.num_workers
    for m, block, write in zip(trace.worker, trace.block, trace.write, strict=True):
        mine = block == BLOCK_OF_ELEMENT
        if not write:
            views[m][mine] = memory[mine]
            continue
        view = memory if mistake == "view is the memory itself" else views[m]
        if left[m] == trace.num_blocks:
            b = by_first_write if mistake == "batches by first write" else batch[m]
            by_first_write += 1
            g = gradient(view, b)
            update[m] = -0.5 * (g + lambda0 * g * g * (memory - view))
        old = views[m] if mistake == "read-modify-write" else memory
        memory[mine] = old[mine] + update[m][mine]
        left[m] -= 1
        if not left[m]:
            left[m], batch[m] = trace.num_blocks, dealt
            dealt += 1
    return memory


def test_reference_table_of_inconsistent_reads(x64):
    case = CASES["table_lam0"]
    result = run(sim.ReadVersions(case["read_version"]))
    assert_close(theta_trace(result), case["theta_trace"][1:])
    assert_close(result.losses, case["loss_worker"])
    assert_close(result.evaluations[1], case["loss_full"][1:])
    assert_close(theta(result.params), case["theta_final"])


@pytest.mark.parametrize("name", OPERATIONS)
def test_reference_traces_of_operations(x64, name):
    case, trace = CASES[name], OPERATIONS[name]
    dealt = np.argsort(trace.jobs.batch)  # the file has them in this order
    assert trace.jobs.read_version[dealt].tolist() == case["block_versions_read_by_job"]
    result = run(trace)
    assert_close(theta(result.params), case["theta_final"])
    assert_close(result.losses[dealt], case["loss_worker"])
    assert_close(result.evaluations[1], case["loss_full"][1:])
    inconsistent = (np.ptp(trace.jobs.read_version, axis=1) > 0).sum()
    assert inconsistent == {"ops_3workers": 10, "ops_1worker": 0}[name]


@pytest.mark.parametrize("lambda0", [0.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_compensation_is_block_by_block(x64, lambda0, seed):
    rng = np.random.default_rng(seed)
    read = np.arange(24)[:, None] - rng.integers(0, 1 + np.minimum(np.arange(24), 5)[:, None],
                                                 size=(24, 5))  # fmt: skip
    expected = numpy_table(read, lambda0)
    result = run(sim.ReadVersions(read), compensated(lambda0))
    assert_close(theta_trace(result), expected[1:])
    trace = sim.random_memory_trace(3, 5, 18, seed=seed, speeds=[1, 2, 0.5])
    assert_close(theta(run(trace, compensated(lambda0)).params), numpy_threads(trace, lambda0))


def test_the_usual_mistakes_are_seen():
    table, case = CASES["table_lam0"], CASES["ops_3workers"]
    trace = OPERATIONS["ops_3workers"]
    assert_close(numpy_table(table["read_version"]), table["theta_trace"])
    assert_close(numpy_threads(trace), case["theta_final"])
    for mistake in ("read-modify-write", "view is the memory itself", "batches by first write"):
        wrong = numpy_threads(trace, mistake=mistake)
        assert np.abs(wrong - case["theta_final"]).max() > 1e-3, mistake
    right, wrong = (
        numpy_table(table["read_version"], 2.0, mistake)[-1]
        for mistake in (None, "oldest block for all")
    )
    assert np.abs(right - wrong).max() > 1e-3


def test_lost_updates_are_read_modify_write(x64, monkeypatch):
    """The compiled replay, with its addition turned into a write of what was read, plus."""
    monkeypatch.setattr(
        replay, "fetch_add", lambda params, view, update: optax.apply_updates(view, update)
    )
    trace = OPERATIONS["ops_3workers"]
    lost = theta(run(trace, optax.sgd(0.5)).params)  # another tx: a program of its own
    assert_close(lost, numpy_threads(trace, mistake="read-modify-write"))
    assert np.abs(lost - CASES["ops_3workers"]["theta_final"]).max() > 1e-3


def test_one_worker_is_sequential_sgd_exactly(x64):
    schedule = sim.make_schedule(sim.ConstantTime(), 1, 18, seed=0)
    tx = compensated(2.0)
    plain = calls.simulate(loops.softmax_loss, PROBLEM.params, tx, schedule, batches(18))
    fresh = sim.ReadVersions(np.repeat(np.arange(18)[:, None], 5, axis=1))
    for reads in (fresh, OPERATIONS["ops_1worker"], sim.random_memory_trace(1, 5, 18, seed=3)):
        result = run(reads, tx)
        np.testing.assert_array_equal(theta(result.params), theta(plain.params))
        np.testing.assert_array_equal(result.losses, plain.losses)


def test_consistent_reads_are_the_simulator(x64):
    schedule = sim.make_schedule(sim.ExponentialTime(), 4, 24, seed=0)
    tx = optax.chain(compensations.explicit(2.0, ms_decay=0.9), optax.sgd(0.3, momentum=0.5))
    plain = calls.simulate(loops.softmax_loss, PROBLEM.params, tx, schedule, batches(24))
    reads = sim.ReadVersions(np.repeat(schedule.read_version[:, None], 2, axis=1), schedule.worker)
    result = run(reads, tx, blocks=None)
    assert_close(theta(result.params), theta(plain.params), atol=1e-13)
    assert_close(result.losses, plain.losses, atol=1e-13)


def test_indexed_batches_and_evaluations_now_and_then(x64):
    trace = OPERATIONS["ops_3workers"]
    whole = run(trace)
    indexed = calls.simulate_shared_memory(
        loops.softmax_loss, PROBLEM.params, optax.sgd(0.5), trace,
        sim.Indexed((PROBLEM.X, PROBLEM.y), PROBLEM.batch_rows[np.arange(18) % 6]),
        blocks=BLOCKS, eval_fn=params_and_full_loss, eval_every=4,
    )  # fmt: skip
    assert_close(theta(indexed.params), theta(whole.params))
    assert_close(indexed.evaluations[1], whole.evaluations[1][3::4])
    assert run(trace, eval_fn=None).evaluations is None


@pytest.mark.parametrize("kind", ["table", "operations"])
def test_half_precision_stays(kind):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), PROBLEM.params)
    table = sim.ReadVersions(CASES["table_lam0"]["read_version"])
    reads = table if kind == "table" else OPERATIONS["ops_3workers"]
    tx = optax.chain(compensations.explicit(2.0), optax.sgd(lambda count: jnp.float32(0.5)))
    result = calls.simulate_shared_memory(
        loops.softmax_loss, params, tx, reads,
        jax.tree.map(jnp.asarray, batches(count_batches(reads))), blocks=BLOCKS,
    )  # fmt: skip
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params)} == {jnp.dtype(jnp.bfloat16)}


def test_a_trace_by_hand():
    """f = x·x/2 with batch as its slope: every number can be followed with a pencil."""
    trace = sim.MemoryTrace.from_text("r0.1 r1.0 r1.1 w1.0 r0.0 w1.1 w0.1 w0.0 r1.1")
    assert trace.jobs.worker.tolist() == [1, 0]
    assert trace.jobs.batch.tolist() == [1, 0]
    assert trace.jobs.read_version.tolist() == [[0, 0], [1, 0]]
    assert trace.jobs.staleness.tolist() == [0, 1]
    assert (trace.jobs.first_write.tolist(), trace.jobs.last_write.tolist()) == ([3, 6], [5, 7])
    result = calls.simulate_shared_memory(
        lambda x, slope: slope * jnp.sum(x * x) / 2, jnp.array([1.0, 2.0]), optax.sgd(0.5),
        trace, jnp.array([1.0, 0.5]), blocks=jnp.arange(2),
    )  # fmt: skip
    # Worker 1 adds -(0.25, 0.5); worker 0 has read (0.75, 2.0) and adds -(0.375, 1.0).
    np.testing.assert_allclose(result.params, [0.375, 0.5])
    np.testing.assert_allclose(result.losses, [0.5 * 5 / 2, (0.5625 + 4) / 2])


def test_random_traces():
    trace = sim.random_memory_trace(4, 3, 50, seed=0)
    assert trace.to_text() == sim.random_memory_trace(4, 3, 50, seed=0).to_text()
    assert trace.to_text() != sim.random_memory_trace(4, 3, 50, seed=1).to_text()
    assert sim.MemoryTrace.from_text(trace.to_text()).jobs.batch.tolist() == list(trace.jobs.batch)
    assert sorted(trace.jobs.batch) == list(range(50))
    assert (trace.jobs.last_write > 0).all()
    slow = sim.random_memory_trace(4, 3, 200, seed=0, speeds=[0.1, 1, 1, 1])
    assert (slow.jobs.worker == 0).sum() < 20
    stale = slow.jobs.staleness
    assert stale[slow.jobs.worker == 0].mean() > 3 * stale[slow.jobs.worker != 0].mean()
    few = sim.random_memory_trace(5, 2, 3, seed=0)  # more workers than jobs
    assert sorted(few.jobs.batch) == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r0.0 w0.0 w0.1", r"operation 1 worker 0 writes block 0, but has yet to read blocks \[1"),
        ("r0.0 r0.0 w0.1", "operation 1 worker 0 reads block 0 a second time in one job"),
        ("r0.0 r0.1 w0.1 w0.1", "operation 3 worker 0 writes block 1 a second time in one job"),
        ("r0.0 r0.1 w0.1 r0.1", r"operation 3 worker 0 reads block 1, but has yet to write .*\[0"),
        ("r0.0 x0.1", "'x0.1' is no operation"),
        ("", "one length >= 1"),
    ],
)
def test_impossible_operations(text, message):
    with pytest.raises(ValueError, match=message):
        sim.MemoryTrace.from_text(text)


def test_impossible_workers_blocks_and_arrays():
    trace = functools.partial(sim.MemoryTrace, [0, 1], [0, 1], [False, False])
    with pytest.raises(ValueError, match=r"operation 1 worker 1 is not in \[0, 1\)"):
        trace(num_workers=1)
    with pytest.raises(ValueError, match=r"operation 1 block 1 is not in \[0, 1\)"):
        trace(num_blocks=1)
    with pytest.raises(ValueError, match=r"operation 0 worker -1 is not in"):
        sim.MemoryTrace([-1], [0], [False])
    with pytest.raises(ValueError, match="block must be 32-bit integers"):
        sim.MemoryTrace([0], [0.5], [False])
    with pytest.raises(ValueError, match=r"got lengths \[2, 1, 1\]"):
        sim.MemoryTrace([0, 0], [0], [False])


@pytest.mark.parametrize(
    ("read", "message"),
    [
        ([[0], [2]], r"at event 1 block 0 is read at version 2, but must be in \[0, 1\]"),
        ([[0, -1]], "at event 0 block 1 is read at version -1"),
        ([0, 1], r"must be \[num_events, num_blocks\]"),
        ([[]], "not empty"),
        ([[0.5]], "32-bit integers"),
    ],
)
def test_impossible_reads(read, message):
    with pytest.raises(ValueError, match=message):
        sim.ReadVersions(read)


def test_bad_arguments():
    reads = sim.ReadVersions(CASES["table_lam0"]["read_version"])
    schedule = sim.make_schedule(sim.ConstantTime(), 1, 5, seed=0)
    with pytest.raises(TypeError, match=r"got Schedule; a sim\.Schedule is for sim\.simulate"):
        run(schedule, num_batches=5)
    with pytest.raises(ValueError, match="has 7 rows, but the run has 24 events"):
        run(reads, num_batches=7)
    with pytest.raises(ValueError, match="has 7 rows, but the run has 18 events"):
        run(OPERATIONS["ops_1worker"], num_batches=7)
    with pytest.raises(ValueError, match="5 blocks, but params have 2 leaves: pass blocks="):
        run(reads, blocks=None)
    for blocks, message in (
        ({"W": np.arange(4)[:, None], "b": 5}, r"blocks\['b'\] holds blocks that are not in"),
        ({"W": np.arange(4), "b": 4}, r"blocks\['W'\] is int64\[4\], but must be integers that"),
        ({"W": np.arange(3)[:, None], "b": 4}, r"broadcast to the parameter's shape \(4, 3\)"),
        ({"W": 0.0, "b": 4}, "must be integers"),
        ({"W": 0}, "blocks has no leaf"),
    ):
        with pytest.raises(ValueError, match=message):
            run(reads, blocks=blocks)
    with pytest.raises(TypeError, match=r"must be a tree of arrays \[num_batches"):
        calls.simulate_shared_memory(
            loops.softmax_loss, PROBLEM.params, optax.sgd(0.5), reads, iter([]), blocks=BLOCKS
        )
    with pytest.raises(ValueError, match="no write"):
        run(sim.MemoryTrace.from_text("r0.0"), blocks=jax.tree.map(lambda _: 0, PROBLEM.params))
    with pytest.raises(ValueError, match="worker must be one index >= 0 for each of the 1 events"):
        sim.ReadVersions([[0]], worker=[-1])
    with pytest.raises(ValueError, match="speeds must be 2 finite numbers > 0"):
        sim.random_memory_trace(2, 1, 1, seed=0, speeds=[1.0, 0.0])


# The adversary, on f(x) = x²/2.


def descend(schedule, learning_rate, start=1.0):
    """x after every push."""
    result = calls.simulate(
        lambda x, batch: x * x / 2 + 0 * batch, np.float64(start), optax.sgd(learning_rate),
        schedule, np.zeros(len(schedule)), eval_fn=lambda x: x, eval_versions=1,
    )  # fmt: skip
    return np.append(start, result.evaluations.values)


@pytest.mark.parametrize("case", CASES["adversary"], ids=lambda case: f"tau={case['tau']}")
def test_one_gradient_held_back(x64, case):
    alpha, tau = case["alpha"], case["tau"]
    after = descend(sim.held_back_schedule(tau), alpha, case["w0"])[-1]
    assert_close(after, case["w_after"], atol=1e-15)
    assert_close(after, ((1 - alpha) ** tau - alpha) * case["w0"], atol=1e-15)


def test_the_progress_of_a_round_is_bounded_once_the_stale_step_decides(x64):
    alpha = 0.1
    simulated = [-np.log(abs(descend(sim.held_back_schedule(tau), alpha)[-1])) for tau in (22, 29)]
    assert simulated == pytest.approx([6.49, 2.94], abs=0.005)  # 22: the two terms nearly cancel
    delays = np.arange(1, 500)
    progress = -np.log(np.abs((1 - alpha) ** delays - alpha))
    decides = 2 * (1 - alpha) ** delays <= alpha
    assert delays[decides][0] == 29
    assert progress[decides].max() <= np.log(2 / alpha) < progress[~decides].max()
    assert progress[-1] == pytest.approx(np.log(1 / alpha))  # what is left of it in the end


def test_the_slow_down_is_linear_in_the_delay(x64):
    alpha, target = 0.2, 1e-4
    needed = []
    for tau in (20, 40, 80, 160):  # from tau = 11 on, 2 (1 - alpha)^tau <= alpha
        at_rounds = np.abs(descend(sim.held_back_schedule(tau, 8), alpha))[:: tau + 1]
        needed.append((tau + 1) * np.argmax(at_rounds <= target))
    rounds = np.array(needed) / [21, 41, 81, 161]
    np.testing.assert_array_equal(rounds, rounds[0])  # as many rounds, however long they are
    fresh = descend(sim.make_schedule(sim.ConstantTime(), 1, 100, seed=0), alpha)
    assert needed[-1] > 15 * np.argmax(fresh <= target)


def test_the_epoch_guard_drops_what_crosses():
    guarded = sim.guard_epochs(sim.held_back_schedule(3, num_rounds=2), epoch_length=3)
    assert guarded.applied.tolist() == [True] * 3 + [False] + [True] * 3 + [False]
    assert guarded.version.tolist() == [0, 1, 2, 3, 3, 4, 5, 6]
    assert guarded.read_version.tolist() == [0, 1, 2, 0, 3, 4, 5, 3]
    within = sim.guard_epochs(sim.held_back_schedule(3, num_rounds=2), epoch_length=4)
    assert within.applied.all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("protocol", [sim.Asynchronous(), sim.DropStale(4)], ids=["all", "some"])
def test_no_applied_push_crosses_an_epoch(seed, protocol):
    schedule = sim.make_schedule(sim.ParetoTime(1.5), 5, 80, seed=seed, protocol=protocol)
    guarded = sim.guard_epochs(schedule, 10)
    crosses = guarded.version // 10 != guarded.read_version // 10
    np.testing.assert_array_equal(guarded.applied, schedule.applied & ~crosses)
    assert crosses.any()
    assert not (guarded.applied & ~schedule.applied).any()
    # Every worker still reads when it did: right after its own previous push.
    made = np.append(0, np.cumsum(guarded.applied))
    read_then = np.where(guarded.previous_push < 0, 0, made[guarded.previous_push + 1])
    np.testing.assert_array_equal(guarded.read_version, read_then)
    same = sim.guard_epochs(schedule, 1000)
    np.testing.assert_array_equal(same.read_version, schedule.read_version)


def test_the_guard_repairs_the_harm_of_the_adversary(x64):
    alpha, tau, rounds = 0.1, 100, 3
    schedule = sim.held_back_schedule(tau, rounds)
    harmed = descend(schedule, alpha)
    repaired = descend(sim.guard_epochs(schedule, epoch_length=50), alpha)
    assert abs(harmed[-1]) > 0.9 * alpha**rounds
    np.testing.assert_allclose(repaired[-1], (1 - alpha) ** (tau * rounds), rtol=1e-12)


def test_epochs_of_half_the_learning_rate_outrun_the_adversary(x64):
    """Within an epoch nothing is dropped, but what a stale gradient can do halves each time."""
    alpha, epoch_length = 0.5, 63
    schedule = sim.held_back_schedule(20, num_rounds=12)
    halved = lambda count: alpha * 0.5 ** (count // epoch_length)
    harmed = descend(schedule, alpha)
    repaired = descend(sim.guard_epochs(schedule, epoch_length), halved)
    assert abs(repaired[-1]) < 1e-3 * abs(harmed[-1])


def test_bad_adversaries_and_epochs():
    with pytest.raises(ValueError, match="delay must be an integer >= 1"):
        sim.held_back_schedule(0)
    with pytest.raises(ValueError, match="num_rounds must be an integer >= 1"):
        sim.held_back_schedule(1, 0)
    schedule = sim.held_back_schedule(2)
    with pytest.raises(ValueError, match="epoch_length must be an integer >= 1"):
        sim.guard_epochs(schedule, 0)
    mean = sim.make_schedule(sim.ConstantTime(), 3, 4, seed=0, protocol=sim.Synchronous())
    with pytest.raises(ValueError, match="update 0 averages several"):
        sim.guard_epochs(mean, 2)
