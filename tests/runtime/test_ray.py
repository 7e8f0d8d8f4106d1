"""Real runs on a local Ray of two nodes: recorded, replayed, and with every fault injected."""

import dataclasses
import functools
import json
import os
import signal
import threading
import time

import calls
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

pytest.importorskip("ray")
import ray as ray_itself

import dcasgd_jax as dc
from dcasgd_jax import sim
from dcasgd_jax.runtime import messages, ray
from dcasgd_jax.runtime.messages import Outcome
from dcasgd_jax.runtime.ray import cluster, server_process, session
from runtime import clients

SPREAD = {"scheduling_strategy": "SPREAD"}


def batches_fn(worker, number):
    return clients.batches_fn(worker, number)


def once(path):
    """Whether nobody has been here before."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def train(
    address, *, batches=batches_fn, num_workers=2, num_updates=40, learning_rate=0.3, **options
):
    """A run, and what the simulator makes of its record."""
    params = problems.softmax_params()
    tx = dc.dcasgd(learning_rate, num_workers=num_workers, momentum=0.5)
    run = calls.train(
        problems.softmax_loss,
        params,
        tx,
        batches,
        num_workers=num_workers,
        num_updates=num_updates,
        address=address,
        worker_options=SPREAD,
        **options,
    )
    assert run.schedule.num_updates == num_updates
    return run, lambda **told: calls.replay(
        run, problems.softmax_loss, params, tx, batches_fn, **told
    )


def same(one, other, rtol=1e-6, atol=1e-6):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


class Heard:
    def __init__(self):
        self.lines = []

    def log(self, step, values):
        self.lines.append((step, dict(values)))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def where(path, worker, number):
    """Batches whose workers note on which node and in how many threads they run."""
    node = ray_itself.get_runtime_context().get_node_id()
    (path / f"{worker}").write_text(
        f"{node} {os.environ.get('OMP_NUM_THREADS')} {jax.default_backend()}"
    )
    return batches_fn(worker, number)


def three_batches(worker, number):
    batches = [clients.batches_fn(worker, 3 * number + step) for step in range(3)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def test_workers_that_take_local_steps_are_replayed(two_nodes):
    problem = sim.Problem(problems.softmax_loss, problems.softmax_params())
    outer = optax.sgd(0.7, momentum=0.5)
    worker = sim.LocalSteps(optax.sgd(0.1, momentum=0.9), (3, 2), transform=optax.trace(0.3))
    run = ray.train(
        problem, outer, three_batches, num_workers=2, num_updates=30, worker=worker,
        address=two_nodes, worker_options=SPREAD,
    )  # fmt: skip
    again = ray.replay(run, problem, outer, three_batches, worker=worker)
    same(again.params, run.result.params)
    same(again.losses, run.result.losses)
    np.testing.assert_array_equal(again.trace.samples, run.result.trace.samples)
    interrupted = run._replace(counts=dataclasses.replace(run.counts, worker_restarts=1))
    with pytest.raises(ValueError, match=r"keep something from push to push, and it was interrup"):
        ray.replay(interrupted, problem, outer, three_batches, worker=worker)
    reset = sim.LocalSteps(optax.sgd(0.1), 3, inner_state="reset")
    assert len(ray.replay(interrupted, problem, outer, three_batches, worker=reset).losses) == 30
    rounded = run._replace(wire_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"rounded to bfloat16.*local steps from there"):
        ray.replay(rounded, problem, outer, three_batches, worker=reset)
    with pytest.raises(ValueError, match=r"without a leading axis of 3 steps"):
        ray.train(
            problem, outer, batches_fn, num_workers=2, num_updates=30, worker=worker,
            address=two_nodes,
        )  # fmt: skip


def wait_for(path, seconds=300.0):
    """Until somebody has been there: a machine under load makes a test slow, never false."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not happen in {seconds} s"
        time.sleep(0.01)


def dies_once(path, at, others_wait_at, worker, number):
    """Worker 1 is killed at a gradient; the others do not end the run before it is back."""
    if (worker, number) == (1, at) and once(path / "killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if (worker, number) == (1, at + 1):
        (path / "back").touch(exist_ok=True)
    if worker != 1 and number >= others_wait_at:
        wait_for(path / "back")
    return batches_fn(worker, number)


def running_mean_loss(params, model_state, batch):
    images, labels = batch
    new = {"mean": 0.8 * model_state["mean"] + 0.2 * images.mean(axis=0)}
    return problems.softmax_loss(params, (images - model_state["mean"][None], labels)), new


@pytest.mark.parametrize("policy", ["per_worker", "server"])
def test_a_model_state_outlives_its_worker_and_is_replayed(two_nodes, tmp_path, policy):
    problem = sim.Problem(
        running_mean_loss, problems.softmax_params(), {"mean": np.full(6, 3.0, np.float32)},
        model_state_policy=policy,
    )  # fmt: skip
    batches = functools.partial(dies_once, tmp_path, 6, 9)
    tx = dc.dcasgd(0.3, num_workers=3, momentum=0.5)
    run = ray.train(
        problem, tx, batches, num_workers=3, num_updates=40, num_shards=2,
        protocol=sim.Synchronous(), address=two_nodes, worker_options=SPREAD,
    )  # fmt: skip
    assert run.counts.worker_restarts == 2  # once at each server
    again = ray.replay(run, problem, tx, batches)
    same(again.params, run.result.params, rtol=1e-5, atol=1e-5)
    same(again.model_state, run.result.model_state, rtol=1e-5, atol=1e-5)
    same(again.state.model_state, run.result.state[0].model_state, rtol=1e-5, atol=1e-5)
    refused = run._replace(counts=dataclasses.replace(run.counts, non_finite=1))
    if policy == "per_worker":
        with pytest.raises(ValueError, match="1 pushes of this run were refused as not finite, an"):
            ray.replay(refused, problem, tx, batches)
    else:
        same(ray.replay(refused, problem, tx, batches).params, again.params)
    returns_one = problem._replace(loss_fn=lambda params, state, batch: jnp.zeros(()))
    with pytest.raises(ValueError, match=r"loss_fn must return \(loss, model_state\)"):
        ray.train(returns_one, tx, batches, num_workers=3, num_updates=9, address=two_nodes)


def test_a_run_on_two_nodes_is_recorded_and_replayed(two_nodes, tmp_path):
    statuses, seconds, logger = [], 0.03, Heard()
    run, replay = train(
        two_nodes,
        batches=functools.partial(where, tmp_path),
        num_workers=4,
        num_updates=80,
        delays=sim.ConstantTime(seconds),
        log=tmp_path / "log.jsonl",
        progress=statuses.append,
        metrics=["compensation_ratio"],
        logger=logger,
        log_every=20,
    )
    again = replay()
    same(again.params, run.result.params)
    same(again.losses, run.result.losses)
    assert run.schedule.staleness.max() >= 1
    assert set(run.schedule.worker) == {0, 1, 2, 3}
    assert np.all(run.schedule.time - run.schedule.read_time >= seconds)
    assert run.result.trace.compensation_ratio.max() > 0
    assert run.result.trace.samples[-1] == 80 * 8
    assert run.result.non_finite is None
    # Both nodes had workers, each with one thread on the CPU.
    places = [(tmp_path / f"{worker}").read_text().split() for worker in range(4)]
    assert len({node for node, *_ in places}) == 2
    assert {(threads, platform) for _, threads, platform in places} == {("1", "cpu")}
    last = statuses[-1]
    assert (last.version, last.num_updates, last.num_pushes) == (80, 80, 80)
    assert last.max_staleness == run.schedule.staleness.max()
    assert last.mean_staleness == pytest.approx(run.schedule.staleness.mean())
    assert last.loss == pytest.approx(np.mean(run.result.losses[-50:]))
    assert last.updates_per_second > 0
    logged = lines(tmp_path / "log.jsonl")
    assert [line["event"] for line in (logged[0], logged[-1])] == ["start", "end"]
    pushes = [line for line in logged if line["event"] == "push"]
    assert [push["index"] for push in pushes] == list(range(80))
    assert [push["worker"] for push in pushes] == run.schedule.worker.tolist()
    # The simulator tells the same of the same race.
    simulated = Heard()
    replay(metrics=["compensation_ratio"], logger=simulated, log_every=20)
    assert [step for step, _ in logger.lines] == [step for step, _ in simulated.lines]
    for (_, live), (_, again) in zip(logger.lines, simulated.lines, strict=True):
        assert live == pytest.approx(again, rel=1e-5)


def kills_itself_and_sends_nan(path, worker, number):
    images, labels = dies_once(path, 4, 20, worker, number)
    return (images * np.nan if (worker, number) == (2, 3) else images), labels


def test_a_worker_killed_in_the_middle_of_a_gradient_and_a_nan(two_nodes, tmp_path):
    run, _ = train(
        two_nodes,
        batches=functools.partial(kills_itself_and_sends_nan, tmp_path),
        num_workers=4,
        num_updates=90,
        delays=sim.ConstantTime(0.1),
        log=tmp_path / "log.jsonl",
    )
    assert (tmp_path / "killed").exists()
    assert run.counts.worker_restarts == 1
    assert run.counts.non_finite == 1
    refused = np.flatnonzero(run.schedule.corrupt)
    assert run.schedule.worker[refused].tolist() == [2]
    assert not run.schedule.applied[refused].any()
    # The gradient under way was lost, its batch was taken again at a later version, and the others
    # went on meanwhile.
    mine = np.flatnonzero(run.schedule.worker == 1)
    assert run.number[mine].tolist() == list(range(len(mine)))
    lost = mine[4]
    assert run.schedule.read_version[lost] > run.schedule.version[mine[3]] + 1
    assert lost - mine[3] > 4
    again = calls.replay(
        run,
        problems.softmax_loss,
        problems.softmax_params(),
        dc.dcasgd(0.3, num_workers=4, momentum=0.5),
        functools.partial(kills_itself_and_sends_nan, tmp_path),
    )
    same(again.params, run.result.params)
    same(again.losses, run.result.losses)
    assert run.result.non_finite.worker == 2
    kinds = [line["kind"] for line in lines(tmp_path / "log.jsonl") if line["event"] == "incident"]
    assert sorted(kinds) == ["push that is not finite refused", "worker joined again"]


def test_a_killed_server_goes_on_from_its_checkpoint(two_nodes, tmp_path, monkeypatch):
    sessions, killed = [], []
    start = session.start
    monkeypatch.setattr(session, "start", lambda *a: sessions.append(start(*a)) or sessions[-1])

    def kill(status):
        if status.version >= 25 and not killed:
            server = sessions[0].servers[0]
            pid = ray_itself.get(server.__ray_call__.remote(lambda self: os.getpid()))
            os.kill(pid, signal.SIGKILL)
            killed.append(status.version)

    checkpoint = sim.Checkpoint(tmp_path / "checkpoints", every=10)
    run, replay = train(
        two_nodes,
        num_workers=3,
        num_updates=60,
        delays=sim.ConstantTime(0.05),
        checkpoint=checkpoint,
        progress=kill,
        log=tmp_path / "log.jsonl",
    )
    assert killed
    assert run.counts.server_restarts == 1
    back = next(
        line["version"]
        for line in lines(tmp_path / "log.jsonl")
        if line.get("kind") == "server went on from a checkpoint"
    )
    assert killed[0] - 10 - 10 <= back <= killed[0] + 10
    # A gradient taken at a version after the checkpoint was refused, never applied. Four pushes of
    # three workers: one of them had read a version after the checkpoint, whatever answer was lost.
    assert run.counts.unknown_version >= (killed[0] - back > 3)
    assert back % 10 == 0
    same(replay().params, run.result.params)
    # The same call with more updates goes on where this one ended.
    more, replay_more = train(two_nodes, num_workers=3, num_updates=70, checkpoint=checkpoint)
    for name in ("worker", "read_version", "time"):
        before, now = (getattr(r.schedule, name) for r in (run, more))
        np.testing.assert_array_equal(now[: len(before)], before)
    same(replay_more().params, more.result.params)
    with pytest.raises(ValueError, match="checkpoint of another run: num_workers was 3"):
        train(two_nodes, num_workers=1, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="checkpoint of another run: tx is another one now"):
        train(two_nodes, num_workers=3, learning_rate=0.31, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="at version 70 already, past num_updates=60"):
        train(two_nodes, num_workers=3, num_updates=60, checkpoint=checkpoint)


def test_two_shards_behind_a_barrier_are_one_model(two_nodes):
    run, replay = train(
        two_nodes, num_workers=2, num_shards=2, protocol=sim.Synchronous(), num_updates=20
    )
    assert run.reads_are_consistent
    assert len(run.shards) == 2
    # Within one barrier the shards may hear the workers in another order; the mean is the same.
    same(replay().params, run.result.params, rtol=1e-5, atol=1e-5)


def test_two_shards_without_a_barrier_say_that_they_cannot_be_replayed(two_nodes):
    run, replay = train(
        two_nodes, num_workers=4, num_shards=2, num_updates=60, wire_dtype="bfloat16"
    )
    assert [shard.schedule.num_updates for shard in run.shards] == [60, 60]
    assert run.result.losses[-10:].mean() < run.result.losses[:10].mean()
    if run.reads_are_consistent:
        same(replay().params, run.result.params, rtol=0.01, atol=0.01)
    else:
        with pytest.raises(ValueError, match="mixtures of versions"):
            replay()


def dies_every_time(worker, number):
    if worker == 1 and number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return batches_fn(worker, number)


def fails(worker, number):
    if number == 3:
        raise LookupError(f"no batch {number} for worker {worker}")
    return batches_fn(worker, number)


def test_workers_that_are_lost_for_good(two_nodes, tmp_path):
    run, replay = train(
        two_nodes, batches=dies_every_time, max_restarts=0, log=tmp_path / "log.jsonl"
    )
    assert np.sum(run.schedule.worker == 1) <= 3
    same(replay().params, run.result.params)
    assert [line for line in lines(tmp_path / "log.jsonl") if line["event"] == "worker lost"]


def test_what_goes_wrong_in_a_worker_is_raised_here(two_nodes):
    with pytest.raises(LookupError, match="no batch 3 for worker 0"):
        train(two_nodes, batches=fails, num_workers=1)


def test_a_cluster_that_is_too_small_is_named(two_nodes):
    with pytest.raises(ValueError, match=r"needs 14 CPUs, .* but the Ray cluster has 12"):
        train(two_nodes, num_workers=13)


@pytest.fixture
def server_actor(two_nodes):
    """A server process alone, which this process is a worker of."""
    run = clients.Clients()
    with cluster.connected(two_nodes, 1):
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), run.whole)
        options = cluster.server_options({"max_concurrency": 4})
        actor = ray_itself.remote(server_process.Server).options(**options)
        actor = actor.remote(shapes, run.settings, None, None)
        ray_itself.get(actor.begin.remote(jax.tree.map(np.asarray, run.whole)))
        yield run, lambda method, *a: ray_itself.get(getattr(actor, method).remote(*a))
        ray_itself.kill(actor)


def test_a_push_delivered_twice_and_foreign_workers(server_actor):
    run, call = server_actor
    description = run.layout.describe()
    reply = messages.unpack_reply(call("join", 0, description))
    assert reply.outcome == Outcome.JOINED
    message = run.gradient(0, reply)
    first = messages.unpack_reply(call("push", message))
    second = messages.unpack_reply(call("push", message))
    assert (first.outcome, second.outcome) == (Outcome.APPLIED, Outcome.DUPLICATE)
    news = call("news", 0, 0, 0)
    assert news["version"] == 1
    assert news["counts"].duplicates == 1
    other = {"w": np.zeros((6, 4), np.float32), "b": np.zeros(3, np.float32)}
    foreign = clients.Clients(params=other).layout.describe()
    with pytest.raises(ValueError, match=r"Worker 1 .*\['w'\] has shape \(6, 4\).* \(6, 3\)"):
        call("join", 1, foreign)
    with pytest.raises(ValueError, match=r"\(136,\) bytes was expected"):
        call("push", (message[0], [message[1][0][:-4]]))
    assert call("news", 0, 0, 0)["version"] == 1


def overflows(count):
    """A learning rate that makes the params infinite at the sixth update."""
    return jnp.where(count < 5, 0.3, jnp.inf)


def test_a_run_whose_params_overflow_is_given_up(two_nodes, tmp_path):
    params, tx, statuses = problems.softmax_params(), optax.sgd(overflows), []
    with pytest.warns(RuntimeWarning, match="the params are not finite any more"):
        run = calls.train(
            problems.softmax_loss, params, tx, batches_fn, num_workers=2, num_updates=10**6,
            address=two_nodes, worker_options=SPREAD, log=tmp_path / "log.jsonl",
            progress=statuses.append,
        )  # fmt: skip
    given_up = run.given_up
    assert 6 <= run.schedule.num_updates == given_up.version <= 7
    assert run.counts.non_finite == 1
    assert run.result.non_finite[:2] == (given_up.event, given_up.worker)
    assert given_up.event == len(run.schedule) - 1
    assert statuses[-1].given_up == given_up
    assert lines(tmp_path / "log.jsonl")[-1]["given_up"] == str(given_up)
    again = calls.replay(run, problems.softmax_loss, params, tx, batches_fn)
    assert again.non_finite == run.result.non_finite


def all_nan(worker, number):
    images, labels = batches_fn(worker, number)
    return images * np.nan, labels


def test_a_run_without_any_finite_gradient_says_so(two_nodes):
    with pytest.raises(
        RuntimeError, match=r"given up at version 0: worker 0 .* event 0, gradient 0"
    ):
        train(two_nodes, batches=all_nan, num_workers=1)


def test_the_other_shards_end_with_the_one_whose_params_overflow(two_nodes):
    # Each shard has one leaf, and only that of w gets the rate that overflows.
    tx = optax.chain(
        optax.sgd(overflows), optax.masked(optax.set_to_zero(), {"w": False, "b": True})
    )
    with pytest.warns(RuntimeWarning, match="the params are not finite any more"):
        run = calls.train(
            problems.softmax_loss, problems.softmax_params(), tx, batches_fn, num_workers=2,
            num_updates=10**6, num_shards=2, address=two_nodes, worker_options=SPREAD,
        )  # fmt: skip
    assert not run.given_up.params_finite
    assert np.isfinite(run.result.params["b"]).all()
    assert not np.isfinite(run.result.params["w"]).all()
    assert max(shard.schedule.num_updates for shard in run.shards) < 20


def nan_of_worker_one(worker, number):
    images, labels = batches_fn(worker, number)
    return (images * np.nan if worker == 1 and number >= 4 else images), labels


def test_a_worker_with_nothing_but_nan_ends_a_run_behind_a_barrier(two_nodes, tmp_path):
    checkpoint = sim.Checkpoint(tmp_path, every=2)
    with pytest.warns(RuntimeWarning, match="worker 1 pushed 100 gradients in a row"):
        run = calls.train(
            problems.softmax_loss, problems.softmax_params(), optax.sgd(0.3), nan_of_worker_one,
            num_workers=2, num_updates=10**6, num_shards=2, address=two_nodes,
            protocol=sim.Synchronous(), worker_options=SPREAD, checkpoint=checkpoint,
        )  # fmt: skip
    assert run.given_up.params_finite
    assert run.given_up.number == 4
    assert run.result.non_finite[:2] == (run.given_up.event, 1)
    assert run.schedule.num_updates == run.given_up.version == 4
    assert np.isfinite(run.result.params["w"]).all()


def test_what_cannot_be_sent_is_named_and_no_process_is_left(two_nodes):
    lock = threading.Lock()

    def locked(worker, number):
        with lock:
            return batches_fn(worker, number)

    with pytest.raises(TypeError, match=r"^batches_fn cannot be sent to other processes .*lock"):
        train(two_nodes, batches=locked)
    with cluster.connected(two_nodes, 1):
        deadline = time.monotonic() + 20
        while ray_itself.available_resources()["CPU"] < 12:
            assert time.monotonic() < deadline
            time.sleep(0.1)
