"""The server without a network: every protocol, every fault, against the simulator."""

import functools

import chex
import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import own_protocols
import problems
import pytest

import dcasgd_jax as dc
from dcasgd_jax import rivals, sim
from dcasgd_jax.runtime import bookkeeping, identity, messages, saving
from dcasgd_jax.runtime.messages import Outcome
from dcasgd_jax.runtime.refusals import MOST_REFUSALS, NOTED_REFUSALS
from runtime import clients
from runtime.clients import NUM_WORKERS, PROTOCOLS, Clients

each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
also_of_a_user = pytest.mark.parametrize("protocol", [*PROTOCOLS, *clients.OF_A_USER], ids=repr)


def same(one, other, rtol=1e-6, atol=1e-6):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def backups_of(run):
    found = [run.server.model.state.opt_state, run.server.model.state.push_state]
    is_state = lambda node: isinstance(node, dc.RememberPullsState)
    states = [node for node in jax.tree.leaves(found, is_leaf=is_state) if is_state(node)]
    return states[0].backups


@also_of_a_user
@pytest.mark.parametrize("seed", [0, 1])
def test_the_simulator_repeats_a_run(protocol, seed):
    run = Clients(**clients.options_for(protocol)).run(seed)
    assert run.server.done
    result = run.replay()
    recorded = run.recorded()
    assert recorded.schedule.num_updates == run.settings.num_updates
    same(result.params, run.server.model.state.params)
    same(result.losses, recorded.loss)
    if isinstance(protocol, sim.Asynchronous):
        assert recorded.schedule.staleness.max() > 1
    if protocol in (sim.DropStale(2), sim.Synchronous(backup_workers=1)):
        assert run.server.counts.dropped == np.sum(~run.server.history.arrays()["applied"]) > 0


@pytest.mark.parametrize("protocol", PROTOCOLS[:4], ids=repr)
def test_compensation_matters_in_these_runs(protocol):
    run = Clients(**clients.options_for(protocol)).run()
    plain = Clients(clients.backed_up(lambda0=0.0), protocol=protocol).run()
    if protocol != sim.StaleSynchronous(0):
        assert run.recorded().schedule.staleness.max() > 0
    difference = np.abs(
        run.server.model.state.params["w"] - plain.server.model.state.params["w"]
    ).max()
    assert difference > 1e-3


class SetClock:
    """Shows what it was set to."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


def at_set_times(**settings):
    run = Clients(**settings)
    clock = run.server._clock = SetClock()
    run.server.start_clock()
    for worker in run.server.workers:
        worker.pulled_time = 0.0
    return run, clock


def test_an_update_is_made_when_the_grace_is_over_and_not_before():
    protocol = sim.Quorum(3, grace=2.0)
    run, clock = at_set_times(**clients.options_for(protocol))
    assert run.wake() is None
    clock.seconds = 1.0
    assert run.push(0) is None
    assert run.wake() == 2.0
    clock.seconds = 2.5
    assert run.push(1) is None
    assert run.wake() == 0.5
    assert run.server.version == 0
    clock.seconds = 3.5
    assert run.wake() is None
    assert run.server.version == 1
    assert run.replies[0].version == run.replies[1].version == 1
    clock.seconds = 4.0
    assert run.push(2) is None  # read version 0, and counts for the next update
    schedule = run.recorded().schedule
    assert schedule.update_time.tolist() == [3.5, 3.5, 4.0]
    assert schedule.version.tolist() == [0, 0, 1]


def test_an_update_that_is_complete_in_time_is_followed_by_no_alarm():
    run, clock = at_set_times(**clients.options_for(sim.Quorum(2, grace=2.0)))
    run.push(0)
    run.push(1)
    assert run.server.version == 1
    clock.seconds = 2.5
    run.wake()
    assert run.server.version == 1
    run.push(0)
    assert run.wake() == 2.0


def test_workers_pull_together_after_a_grace():
    run, clock = at_set_times(protocol=sim.Grace(2.0))
    run.push(2)
    clock.seconds = 1.0
    run.push(0)
    assert run.server.version == 2
    assert set(run.replies) == {1}
    clock.seconds = 2.0
    run.wake()
    assert run.replies[0].version == run.replies[2].version == 2


def test_nothing_is_woken_after_the_end():
    run, clock = at_set_times(num_updates=1, **clients.options_for(sim.Quorum(2, grace=2.0)))
    run.push(0)
    run.server.stop()
    clock.seconds = 9.0
    run.wake()
    assert run.server.version == 0


@also_of_a_user
def test_a_worker_that_comes_back_pulls_afresh(protocol):
    run = Clients(**clients.options_for(protocol)).run(until=10)
    lost = run.gradient(1) if 1 in run.replies else None
    run.join(1)
    assert run.server.counts.worker_restarts == 1
    if 1 in run.replies:
        reply = run.replies[1]
        assert reply.version == run.server.version
        same(run.layout.from_wire(run.layout.unpack(reply.payload)), run.server.model.state.params)
        if run.server.model.state.push_state or protocol not in (sim.Synchronous(), PROTOCOLS[5]):
            same(jax.tree.map(lambda b: b[1], backups_of(run)), run.server.model.state.params)
    read = lost and messages.unpack_push(lost[0]).read_version
    if lost and 1 in run.replies and run.replies[1].version != read:
        # What the dead process had under way no longer fits its backup.
        assert run.push(1, lost) in (Outcome.UNKNOWN_VERSION, None)
    run.run(seed=3)
    same(run.replay().params, run.server.model.state.params)


@also_of_a_user
def test_the_others_go_on_without_a_worker_that_is_gone(protocol):
    run = Clients(**clients.options_for(protocol)).run(until=7)
    run.server.leave(2)
    run.collect()
    run.replies.pop(2, None)
    run.run(seed=5)
    recorded = run.recorded()
    assert not np.any(recorded.schedule.worker[-10:] == 2)
    assert run.server.incidents.since(0)[-1].kind == "worker lost for good"
    same(run.replay().params, run.server.model.state.params)


def test_a_barrier_does_not_wait_for_the_dead():
    run = Clients(protocol=sim.Synchronous(), num_updates=3)
    assert run.push(0) is None
    assert run.push(1) is None
    assert run.server.version == 0
    run.server.leave(2)
    run.collect()
    assert run.server.version == 1
    assert run.replies[0].version == run.replies[1].version == 1
    run.replies.pop(2)
    run.run()
    same(run.replay().params, run.server.model.state.params)


def test_a_barrier_completed_by_a_death_right_after_a_refused_push():
    run = Clients(protocol=sim.Synchronous(), num_updates=4)
    run.push(0), run.push(1)
    run.push(2, nan_from(run, 2))
    run.server.leave(2)
    run.collect()
    run.replies.pop(2)
    run.run()
    schedule = run.recorded().schedule  # in which an update follows a push that is used
    assert schedule.version.tolist()[:4] == [0, 0, 1, 1]
    same(run.replay().params, run.server.model.state.params)


def test_slow_starters_are_waited_for_by_barriers():
    run = Clients(protocol=sim.Synchronous(), num_updates=2)
    run.server = run.new_server()
    run.replies.clear()
    run.join(0)
    assert run.push(0) is None
    assert run.server.version == 0


def test_a_push_that_comes_twice_is_applied_once():
    run = Clients().run(until=10)
    message = run.gradient(1)
    assert run.push(1, message) == Outcome.APPLIED
    held, after = run.replies[1], jax.tree.map(np.array, run.server.model.state)
    assert run.push(1, message) == Outcome.DUPLICATE
    assert run.replies[1].payload is None
    assert run.server.counts.duplicates == 1
    same(run.server.model.state, after, rtol=0, atol=0)
    # Not even what the worker has pulled has changed: the gradient that it computes is welcome.
    run.replies[1] = held
    assert run.push(1) == Outcome.APPLIED
    run.run(seed=2)
    schedule = run.recorded().schedule
    assert schedule.batch[11] == 10
    assert not schedule.applied[11]
    assert schedule.num_updates == run.settings.num_updates
    same(run.replay().params, run.server.model.state.params)


def test_an_old_push_that_comes_again_is_ignored():
    run = Clients()
    message = run.gradient(1)
    run.run(until=20)
    before = len(run.server.history)
    assert run.push(1, message) == Outcome.DUPLICATE
    assert run.server.version == 20
    assert len(run.server.history) == before


@each_protocol
def test_a_push_that_is_not_finite_is_refused(protocol):
    run = Clients(**clients.options_for(protocol)).run(until=6)
    worker = min(run.replies)
    header, payload, _ = run.gradient(worker)
    push = messages.unpack_push(header)._replace(finite=False)
    before = jax.tree.map(
        np.array, (run.server.model.state.params, run.server.model.state.gradient_sum)
    )
    outcome = run.push(worker, (messages.pack_push(push), payload))
    # With a bound of 0 it must even wait for the others now: its gradient has been spent.
    assert outcome in (Outcome.NON_FINITE, None)
    assert run.server.counts.non_finite == 1
    same(
        (run.server.model.state.params, run.server.model.state.gradient_sum), before, rtol=0, atol=0
    )
    run.run(seed=4)
    assert run.recorded().schedule.corrupt.sum() == 1
    same(run.replay().params, run.server.model.state.params)


@pytest.mark.parametrize(
    ("gradient", "wire_dtype", "finite"),
    [
        ([0.0, 1.0, -2.5], None, True),
        ([3e38, 3e38, 3e38], None, True),  # their sum is infinite
        *[([1.0, value, 1.0], None, False) for value in (np.nan, np.inf, -np.inf)],
        ([1.0, np.inf, -np.inf], "bfloat16", False),
        ([1.0, 3.4e38, 1.0], "bfloat16", False),  # bfloat16 ends below that
    ],
)
def test_a_worker_says_whether_all_that_it_sends_is_finite(gradient, wire_dtype, finite):
    run = Clients(
        optax.sgd(0.0), params={"w": np.zeros(3, np.float32), "b": np.ones(2, np.float32)},
        loss_fn=lambda params, batch: params["w"] @ jnp.asarray(gradient) + params["b"].sum(),
        wire_dtype=wire_dtype,
    )  # fmt: skip
    assert messages.unpack_push(run.gradient(0)[0]).finite == finite
    assert run.push(0) == (Outcome.APPLIED if finite else Outcome.NON_FINITE)


def restored(run, saved):
    """What a new process makes of a checkpoint."""
    fresh = run.new_server()
    identity.check(saved.facts["run"], run.identity, "here")
    saving.restore(fresh, saved)
    return fresh


@also_of_a_user
def test_a_server_that_comes_back_refuses_what_it_does_not_know(protocol):
    run = Clients(**clients.options_for(protocol)).run(until=12)
    while not run.server.between_updates:
        run.push(min(run.replies))
    saved = run.saved()
    pulled = {m: reply.version for m, reply in run.replies.items()}
    version = run.server.version
    run.run(seed=8, until=version + 8)
    computing = {m: run.gradient(m) for m in run.replies}
    waiting = {m: message for m, message in run.sent.items() if m not in computing}
    run.server = restored(run, saved)
    assert run.server.version == version
    assert run.server.counts.server_restarts == 1
    for worker, message in computing.items():
        read = messages.unpack_push(message[0]).read_version
        before = jax.tree.map(np.array, run.server.model.state.params)
        count = run.server.counts.unknown_version
        run.push(worker, message)
        if read > version or pulled.get(worker) != read:
            assert run.server.counts.unknown_version == count + 1
            same(run.server.model.state.params, before, rtol=0, atol=0)
    for worker, message in waiting.items():  # whose call broke off, and who call again
        if run.push(worker, message) == Outcome.DUPLICATE:
            run.join(worker)
    run.run(seed=9)
    same(run.replay().params, run.server.model.state.params)


def test_a_version_of_a_former_life_is_unknown_even_if_its_number_is_back():
    run = Clients(num_updates=60).run(until=10)
    saved = run.saved()
    run.run(seed=1, until=14)
    old = run.replies[0]
    while old.version == 10 or run.server.version < 20:
        run.push(0)
        old = run.replies[0]
    run.server = restored(run, saved)
    for worker in range(NUM_WORKERS):
        run.join(worker)
    # Worker 1 makes versions of the same numbers, and worker 0 pulls the one that it once had.
    while run.server.version < old.version:
        run.push(1)
    run.join(0)
    assert run.replies[0].version == old.version
    before = jax.tree.map(np.array, run.server.model.state.params)
    assert run.push(0, run.gradient(0, old)) == Outcome.UNKNOWN_VERSION
    same(run.server.model.state.params, before, rtol=0, atol=0)
    assert run.replies[0].next_number == saved.arrays["worker next_number"][0]


def test_a_version_that_both_lives_know_is_used():
    run = Clients().run(until=10)
    saved = run.saved()
    worker = max(run.replies, key=lambda m: run.replies[m].version)
    message = run.gradient(worker)
    run.server = restored(run, saved)
    assert run.push(worker, message) == Outcome.APPLIED
    run.run(seed=6)
    same(run.replay().params, run.server.model.state.params)


def test_counts_and_times_survive():
    run = Clients().run(until=10)
    run.push(0, nan_from(run, 0))
    saved = run.saved()
    fresh = restored(run, saved)
    assert fresh.counts.non_finite == 1
    assert fresh.seconds >= saved.facts["seconds"]
    same(saving.pack(fresh, {}).arrays, saved.arrays, rtol=0, atol=0)


def test_half_an_update_is_not_saved():
    run = Clients(protocol=sim.Synchronous())
    run.push(0)
    with pytest.raises(ValueError, match="between two updates"):
        run.saved()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(protocol=sim.DropStale(3)), r"protocol was Asynchronous.* and is DropStale"),
        (dict(tx=clients.backed_up(ms_decay=None)), "opt_state"),
        (dict(params={"w": np.zeros((6, 3), np.float32), "b": np.zeros(4, np.float32)}),
         "parameters on the wire"),
        (dict(wire_dtype="bfloat16"), "parameters on the wire"),
        (dict(metrics=("cosine",)), "metrics"),
    ],
)  # fmt: skip
def test_another_runs_checkpoint_is_refused(other, message):
    saved = Clients().run(until=3).saved()
    there = Clients(**other)
    present = identity.of_server(there.whole, there.settings, there.layout)
    with pytest.raises(ValueError, match=f"(?s)/a holds a checkpoint of another run: .*{message}"):
        identity.check(saved.facts["run"], present, "/a")


@functools.cache
def forms():
    """The same optimizer, said in three ways; the first one knows of no backups."""
    compensate = compensations.explicit(4.0, ms_decay=0.9)
    explicit = optax.chain(compensate, optax.sgd(0.3, momentum=0.5))
    adaptive = dc.curvatures.adaptive(0.9)
    return {
        "explicit": explicit,
        "remember_pulls": dc.remember_pulls(explicit, NUM_WORKERS),
        "dcasgd": dc.dcasgd(0.3, NUM_WORKERS, lambda0=4.0, curvature=adaptive, momentum=0.5),
        # A guess of its own, which the server's memory around it overrules.
        "assume_delay": dc.assume_delay(explicit, 2),
    }


@pytest.mark.parametrize("form", ["explicit", "remember_pulls", "dcasgd", "assume_delay"])
@pytest.mark.parametrize(
    "protocol",
    [p for p in clients.PROTOCOLS if not isinstance(p, sim.Buffered | sim.Quorum)],
    ids=repr,
)
def test_every_form_is_the_explicit_chain_in_the_simulator(protocol, form, x64):
    """Also with a worker that comes back in between, and pulls without having pushed."""
    params = problems.softmax_params(np.float64)
    run = Clients(tx=forms()[form], params=params, protocol=protocol, num_updates=24)
    run.run(until=10)
    run.join(1)
    run.run(seed=1)
    run.settings = run.settings._replace(tx=forms()["explicit"])
    chex.assert_trees_all_close(
        run.replay().params, run.server.model.state.params, rtol=1e-12, atol=1e-12
    )


def test_a_push_that_is_thrown_away_inside_still_is_a_pull(x64):
    """`remember_pulls` within something that skips pushes does not see them; the server does."""
    compensate = compensations.explicit(4.0, ms_decay=0.9)
    dropping = lambda inner: rivals.drop_stale(inner, 3)
    explicit = dropping(optax.chain(compensate, optax.sgd(0.3)))
    inside = dropping(dc.remember_pulls(optax.chain(compensate, optax.sgd(0.3)), NUM_WORKERS))
    params = problems.softmax_params(np.float64)
    run = Clients(tx=inside, params=params, num_updates=24).run()
    run.settings = run.settings._replace(tx=explicit)
    assert (run.recorded().schedule.staleness >= 3).any()  # some are thrown away
    chex.assert_trees_all_close(
        run.replay().params, run.server.model.state.params, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("form", ["explicit", "remember_pulls"])
def test_each_push_of_a_buffer_is_compensated_at_its_own_stale_point(form, x64):
    compensate = compensations.explicit(4.0, ms_decay=0.9)
    per_push = {
        "explicit": compensate,
        "remember_pulls": dc.remember_pulls(compensate, NUM_WORKERS),
    }
    run = Clients(
        tx=clients.plain(), per_push=per_push[form], params=problems.softmax_params(np.float64),
        protocol=sim.Buffered(2), num_updates=16,
    )  # fmt: skip
    run.run()
    run.settings = run.settings._replace(per_push=compensate)
    chex.assert_trees_all_close(
        run.replay().params, run.server.model.state.params, rtol=1e-12, atol=1e-12
    )


def test_foreign_workers_are_refused():
    run = Clients()
    other = {"w": np.zeros((6, 4), np.float32), "b": np.zeros(3, np.float32)}
    foreign = Clients(params=other)
    with pytest.raises(ValueError, match=r"Worker 1 .*\['w'\] has shape \(6, 4\)"):
        run.server.join(1, foreign.layout.describe())
    header, payload, _ = run.gradient(1)
    push = messages.unpack_push(header)
    with pytest.raises(ValueError, match="Worker 1 has another model"):
        run.server.push(messages.pack_push(push._replace(layout=5)), payload)
    with pytest.raises(ValueError, match=r"\(136,\) bytes was expected, but .* \(132,\)"):
        run.server.push(header, [payload[0][:-4]])
    with pytest.raises(ValueError, match="no worker 7: this run has 3"):
        run.server.push(messages.pack_push(push._replace(worker=7)), payload)
    with pytest.raises(ValueError, match="no message"):
        run.server.push(b"hello", payload)
    assert run.server.version == 0
    assert run.push(1) == Outcome.APPLIED


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(tx=dc.dcasgd(0.1, 2)), ValueError, "made for num_workers=2, but there are 3"),
        (dict(tx=dc.dcasgd(0.1, 4)), ValueError, "made for num_workers=4, but there are 3"),
        (dict(tx=optax.chain(optax.sgd(0.1), dc.compensate_delay())),
         ValueError, "stands behind the learning rate"),
        (dict(protocol=sim.Buffered(2)), ValueError, "per_push="),
        (dict(protocol=sim.Asynchronous(overlap=True)), ValueError, "cannot be run on a live"),
        (dict(protocol=sim.Sequential()), ValueError, "cannot be run on a live server"),
        (dict(protocol=sim.Synchronous(1, cancel=True)), ValueError, "cannot be run on a live"),
        (dict(protocol=sim.Grace(1, foresight=True)), ValueError, "cannot be run on a live server"),
        (dict(protocol=sim.Quorum(4)), ValueError, "Quorum.num_pushes is 4, but there are 3 work"),
        (dict(protocol=sim.Synchronous(3)), ValueError, "less than the number of workers, 3"),
        (dict(protocol=own_protocols.Quorum(4)), ValueError, "4 workers make a quorum, but ther"),
        (dict(protocol=own_protocols.Quorum(2)), ValueError, "different versions.* per_push="),
        (dict(tx=dc.dcasgd(0.1, NUM_WORKERS, curvature=dc.curvatures.fisher())),
         ValueError, "they are on the worker"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_at_once(settings, error, message):
    with pytest.raises(error, match=message):
        Clients(**settings)


def test_a_server_must_say_that_it_averages():
    run = Clients(clients.plain(), protocol=own_protocols.Silent())
    with pytest.raises(
        ValueError, match="SilentServer takes 2 pushes for one update, but its push"
    ):
        run.push(0)


def test_whoever_comes_after_the_end_is_told():
    run = Clients(num_updates=5).run()
    params = jax.tree.map(np.array, run.server.model.state.params)
    for worker in range(NUM_WORKERS):
        assert run.replies[worker].outcome == Outcome.DONE
    run.server.push(*run.gradient(0))
    assert run.server.outbox[0].outcome == Outcome.DONE
    run.server.join(1, run.layout.describe())
    assert run.server.outbox[1].outcome == Outcome.DONE
    assert run.server.version == 5
    same(run.server.model.state.params, params, rtol=0, atol=0)


@pytest.mark.parametrize("protocol", [sim.Synchronous(), sim.StaleSynchronous(0)], ids=repr)
def test_nobody_is_left_waiting_at_the_end(protocol):
    run = Clients(protocol=protocol, num_updates=7).run()
    assert set(run.replies) == set(range(NUM_WORKERS))


def test_metrics_are_the_simulators():
    names = ("compensation_ratio", "cosine", "below_eps")
    run = Clients(metrics=names).run()
    result = run.replay(metrics=names)
    columns = run.server.history.arrays()
    assert columns["compensation_ratio"].max() > 0.01
    for name in names:
        np.testing.assert_allclose(columns[name], getattr(result.trace, name), rtol=1e-4)


def test_bfloat16_on_the_wire_and_float32_on_the_server():
    run = Clients(wire_dtype="bfloat16").run()
    assert run.server.model.state.params["w"].dtype == np.float32
    exact = Clients().run()
    assert (
        np.abs(run.server.model.state.params["w"] - exact.server.model.state.params["w"]).max()
        > 1e-5
    )
    # A gradient at the edge between two bfloat16 numbers may be rounded the other way.
    same(run.replay().params, run.server.model.state.params, rtol=0.01, atol=1e-3)


def test_the_params_that_were_given_are_not_touched():
    params = problems.softmax_params()
    before = jax.tree.map(np.array, params)
    Clients(params=params).run()
    same(params, before, rtol=0, atol=0)


def test_what_was_sent_does_not_change_any_more():
    run = Clients()
    (sent,) = run.replies[2].payload
    before = sent.copy()
    run.push(0), run.push(1), run.push(0)
    np.testing.assert_array_equal(sent, before)


def test_large_params_are_sent_as_a_copy():
    run = Clients(optax.sgd(0.1), params={"w": np.ones((200, 200), np.float32)})
    sent = run.layout.unpack(run.replies[0].payload)[0]
    assert not np.shares_memory(sent, np.asarray(run.server.model.state.params["w"]))


def test_two_shards_may_show_a_mixture_of_versions():
    """What a sharded server costs: worker 2 reads one leaf after and one before a push."""
    params = problems.softmax_params()
    both = [Clients(optax.sgd(0.3), params={name: params[name]}).server for name in ("w", "b")]
    whole = Clients(optax.sgd(0.3), params=params)
    arrays = {m: whole.layout.unpack(whole.gradient(m)[1]) for m in (0, 1)}
    parts = {m: (w, b) for m, (b, w) in arrays.items()}
    for shard, order in enumerate([(0, 1), (1, 0)]):
        for m in order[:1]:
            _push_raw(both[shard], m, parts[m][shard])
    read = {"w": both[0].model.state.params["w"], "b": both[1].model.state.params["b"]}
    assert both[0].version == both[1].version == 1
    for order in [(0,), (1,), ()]:
        reference = Clients(optax.sgd(0.3), params=params)
        for m in order:
            reference.push(m)
        differences = [
            np.abs(reference.server.model.state.params[name] - read[name]).max() > 0
            for name in read
        ]
        assert any(differences), f"this was a version: after the pushes {order}"
    # In the end both have both pushes: nothing is lost or applied twice, only the order differs.
    _push_raw(both[0], 1, parts[1][0])
    _push_raw(both[1], 0, parts[0][1])
    reference = Clients(optax.sgd(0.3), params=params)
    message = reference.gradient(1)
    reference.push(0), reference.push(1, message)
    end = {"w": both[0].model.state.params["w"], "b": both[1].model.state.params["b"]}
    same(end, reference.server.model.state.params)


def _push_raw(part, worker, numbers):
    part.join(worker, part.layout.describe()) if not part.workers[worker].joined else None
    known = part.workers[worker]
    push = messages.Push(worker, part.layout.digest(), part.life, known.pulled_version,
                         known.next_number, 0.0, True)  # fmt: skip
    part.push(messages.pack_push(push), part.layout.pack([numbers]))


def pushes_of(run, worker, life, version):
    """A gradient taken at a version of a life, as its worker would send it now."""
    header, payload, _ = run.gradient(worker)
    push = messages.unpack_push(header)._replace(life=life, read_version=version)
    return messages.pack_push(push), payload


@pytest.mark.parametrize(
    ("life", "version", "outcome"),
    [
        (1, 3, Outcome.APPLIED),
        (1, 4, Outcome.APPLIED),  # the version at which it was cut belongs to both
        (1, 5, Outcome.UNKNOWN_VERSION),  # rolled back, though life 2 has a version 5
        (1, 6, Outcome.UNKNOWN_VERSION),
        (2, 3, Outcome.UNKNOWN_VERSION),  # before its time
        (2, 4, Outcome.APPLIED),
        (2, 5, Outcome.APPLIED),
        (2, 6, Outcome.APPLIED),
        (2, 7, Outcome.UNKNOWN_VERSION),
        (3, 5, Outcome.UNKNOWN_VERSION),
        (3, 6, Outcome.APPLIED),
        (0, 4, Outcome.UNKNOWN_VERSION),  # of a server that never was
    ],
)
def test_versions_of_former_lives(life, version, outcome):
    run = Clients(optax.sgd(0.3)).run(until=4)
    names = [0, run.server.life]
    at_four = run.saved()
    run.run(until=10)
    run.server = restored(run, at_four)
    names.append(run.server.life)
    while run.server.version < 6:
        run.join(0)
        run.push(0)
    at_six = run.saved()
    run.push(0)
    run.server = restored(run, at_six)
    names.append(run.server.life)
    run.join(1)
    # What the worker's record says decides as before; here it always fits.
    run.server.workers[1].pulled_version = version
    assert run.push(1, pushes_of(run, 1, names[life], version)) == outcome
    assert run.server.counts.unknown_version == (outcome == Outcome.UNKNOWN_VERSION)


def test_another_version_than_the_worker_has_pulled_is_unknown_in_every_life():
    run = Clients(optax.sgd(0.3)).run(until=4)
    life, saved = run.server.life, run.saved()
    run.server = restored(run, saved)
    pulled = run.server.workers[1].pulled_version
    message = pushes_of(run, 1, life, pulled - 1)
    assert run.push(1, message) == Outcome.UNKNOWN_VERSION


def nan_from(run, worker):
    """A gradient of this worker that says that it is not finite."""
    header, payload, _ = run.gradient(worker)
    return messages.pack_push(messages.unpack_push(header)._replace(finite=False)), payload


def test_a_run_whose_params_overflow_ends_as_in_the_simulator():
    rate = lambda count: jnp.where(count < 5, 0.3, jnp.inf)
    run = Clients(optax.sgd(rate), num_updates=100)
    for k in range(100):
        if run.server.done:
            break
        run.push(k % NUM_WORKERS)
    # Version 6 is the first that is lost; two workers had pulled before, and then one pulls it.
    assert run.server.version == 8
    given_up = run.server.given_up
    assert not given_up.params_finite
    assert run.server.counts.non_finite == 1
    assert run.server.version == given_up.version
    assert (given_up.worker, given_up.number) == (2, 2)
    columns = run.server.history.arrays()
    assert given_up.event == len(run.server.history) - 1
    assert columns["worker"][given_up.event] == given_up.worker
    assert columns["number"][given_up.event] == given_up.number
    assert [reply.outcome for reply in run.replies.values()] == [Outcome.DONE] * NUM_WORKERS
    result = run.replay()
    assert not np.isfinite(result.params["w"]).all()
    assert result.non_finite[:2] == (given_up.event, given_up.worker)
    assert f"version {run.server.version}: the params are not finite" in str(given_up)
    assert f"event {given_up.event}, gradient {given_up.number} of worker" in str(given_up)


@each_protocol
def test_a_worker_that_only_sends_nan_ends_the_run(protocol):
    tx = clients.options_for(protocol) | {"num_updates": 10**6, "protocol": protocol}
    run, rng = Clients(**tx), np.random.default_rng(0)
    run.run(until=2)
    for _ in range(100 * MOST_REFUSALS):
        if run.server.done:
            break
        worker = int(rng.choice(sorted(run.replies)))
        run.push(worker, nan_from(run, worker) if worker == 1 else None)
    given_up = run.server.given_up
    assert given_up.params_finite
    assert given_up.worker == 1
    assert run.server.counts.non_finite == MOST_REFUSALS
    columns = run.server.history.arrays()
    refused = np.flatnonzero(columns["corrupt"])
    # The first of the row and the one that ended it are kept, the others between are counted.
    assert len(refused) == NOTED_REFUSALS + 1
    assert given_up.event == refused[0]
    assert given_up.number == columns["number"][refused[0]]
    assert columns["number"][refused[-1]] == given_up.number + MOST_REFUSALS - 1
    assert f"worker 1 pushed {MOST_REFUSALS} gradients in a row" in str(given_up)
    assert run.server.incidents.since(0)[-1].kind == "run given up"
    same(run.replay().params, run.server.model.state.params)
    assert set(run.replies) == set(range(NUM_WORKERS))  # nobody is left waiting
    for reply in run.replies.values():
        assert reply.outcome == Outcome.DONE


def test_a_finite_push_begins_a_new_row_of_refusals():
    run = Clients(optax.sgd(0.1), num_updates=10**6)
    for _ in range(3):
        for _ in range(MOST_REFUSALS - 1):
            assert run.push(1, nan_from(run, 1)) == Outcome.NON_FINITE
        assert run.push(1) == Outcome.APPLIED
    assert run.server.given_up is None
    assert run.server.counts.non_finite == 3 * (MOST_REFUSALS - 1)
    assert len(run.server.history) == 3 * (NOTED_REFUSALS + 1)
    same(run.replay().params, run.server.model.state.params)


def test_memory_for_incidents_is_bounded():
    incidents = bookkeeping.Incidents()
    for number in range(5000):
        incidents.add(bookkeeping.Incident(float(number), "kind", 0, 0))
    assert incidents.total == 5000
    assert [i.time for i in incidents.since(4998)] == [4998.0, 4999.0]
    assert len(incidents.since(0)) == 1000
    assert incidents.since(5000) == incidents.since(6000) == []


def other_loss(params, batch):
    return 2.0 * problems.softmax_loss(params, batch)


def moved(params):
    return {**params, "b": params["b"] + np.float32(1e-3)}


def in_state(learning_rate):
    """An optimizer whose hyperparameter is a number in its state, not in its code."""
    return optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate)


OTHER_RUNS = {
    "learning rate": (lambda: optax.sgd(0.3), dict(tx=optax.sgd(0.31)), "tx is another"),
    "momentum": (lambda: optax.sgd(0.3, 0.5), dict(tx=optax.sgd(0.3, 0.6)), "tx is another"),
    "in the state": (lambda: in_state(0.3), dict(tx=in_state(0.4)), "tx is another"),
    "lambda0": (lambda: clients.backed_up(lambda0=1.0), dict(tx=clients.backed_up(lambda0=1.5)),
                "tx is another"),
    "max_pull": (lambda: clients.backed_up(max_pull=0.5), dict(tx=clients.backed_up(max_pull=0.6)),
                 "tx is another"),
    "array in tx": (lambda: optax.sgd(lambda n: jnp.array([0.3, 0.2])[n % 2]),
                    dict(tx=optax.sgd(lambda n: jnp.array([0.3, 0.1])[n % 2])), "tx is another"),
    "loss": (lambda: optax.sgd(0.3), dict(loss_fn=other_loss), "loss_fn is another"),
    "initial params": (lambda: optax.sgd(0.3), dict(params=moved(problems.softmax_params())),
                       "initial params are other"),
}  # fmt: skip


@pytest.mark.parametrize(("tx", "other", "words"), OTHER_RUNS.values(), ids=OTHER_RUNS)
def test_a_checkpoint_knows_what_its_run_computes(tx, other, words):
    saved = Clients(tx()).identity
    identity.check(saved, Clients(tx(), num_updates=90).identity, "/a")  # made anew, and longer
    with pytest.raises(ValueError, match=f"^/a holds a checkpoint of another run: {words}"):
        identity.check(saved, Clients(**{"tx": tx(), **other}).identity, "/a")


def test_a_checkpoint_knows_what_is_done_with_a_push_before_the_mean():
    options = dict(tx=clients.plain(), protocol=sim.Buffered(2))
    per_push = lambda lambda0: compensations.per_worker(lambda0, NUM_WORKERS)
    saved = Clients(**options, per_push=per_push(2.0)).identity
    identity.check(saved, Clients(**options, per_push=per_push(2.0)).identity, "/a")
    with pytest.raises(ValueError, match="another run: per_push is another one now"):
        identity.check(saved, Clients(**options, per_push=per_push(1.0)).identity, "/a")


def test_another_release_of_jax_may_go_on_with_what_cannot_be_compared():
    saved = Clients(optax.sgd(0.3)).identity
    elsewhere = {**saved, "environment": ["0.0.1", "0.0.1", "tpu"]}
    identity.check(elsewhere, Clients(optax.sgd(0.31)).identity, "/a")
    with pytest.raises(ValueError, match="num_workers was 3 and is 4 now"):
        identity.check(elsewhere, {**saved, "num_workers": 4}, "/a")


def test_a_run_is_not_taken_back():
    saved = Clients().run(until=10).saved()
    with pytest.raises(ValueError, match="at version 10 already, past num_updates=9"):
        restored(Clients(num_updates=9), saved)
