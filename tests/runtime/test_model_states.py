"""A model state on the live server, under both policies, against the simulator's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

from dcasgd_jax import sim
from dcasgd_jax.runtime import identity, messages, model_states, saving
from dcasgd_jax.runtime.messages import Outcome
from runtime import clients
from runtime.clients import NUM_WORKERS, PROTOCOLS, Clients

POLICIES = ["per_worker", "server"]


def normalised_loss(params, model_state, batch):
    """The gradient depends on the state, so that a wrong one shows in the params, too."""
    images, labels = batch
    centred = images - model_state["mean"][None]
    new = {
        "mean": 0.8 * model_state["mean"] + 0.2 * images.mean(axis=0),
        "count": model_state["count"] + 1,
        "seen": jnp.ones((), jnp.bool_),
    }
    return problems.softmax_loss(params, (centred, labels)), new


def first_state():
    return {"mean": np.full(6, 5.0, np.float32), "count": np.int32(0), "seen": np.bool_(False)}


def with_state(policy, protocol=PROTOCOLS[0], **settings):
    return Clients(
        loss_fn=normalised_loss, model_state=first_state(), model_state_policy=policy,
        **clients.options_for(protocol), **settings,
    )  # fmt: skip


def check_replayed(run):
    again = run.replay()
    chex.assert_trees_all_close(again.params, run.server.model.state.params, rtol=1e-4, atol=1e-4)
    present = run.server.model.states.tree()
    chex.assert_trees_all_close(again.state.model_state, present, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_equal_dtypes(again.state.model_state, present)
    return again, present


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=repr)
def test_the_simulator_repeats_it(protocol, policy):
    run = with_state(policy, protocol).run()
    _, present = check_replayed(run)
    recorded = run.recorded()
    if policy == "per_worker":  # every push counts, used or not
        pushes = np.bincount(recorded.schedule.worker, minlength=NUM_WORKERS)
        assert present["count"].tolist() == pushes.tolist()
    if policy == "server" and protocol == sim.Synchronous():  # the last push of each update wins
        assert present["count"] == run.settings.num_updates


def test_the_state_matters_in_these_runs():
    """Not where workers pull right after they push: then what each of them finds is its own."""
    for protocol, differ in [(sim.Asynchronous(), False), (sim.Synchronous(), True)]:
        runs = [with_state(policy, protocol).run() for policy in POLICIES]
        ends = [run.server.model.state.params["w"] for run in runs]
        assert (np.abs(ends[0] - ends[1]).max() > 1e-3) == differ


@pytest.mark.parametrize("policy", POLICIES)
def test_a_worker_that_comes_back_goes_on_with_its_state(policy):
    run = with_state(policy).run(until=10)
    before = run.server.model.states.tree()
    run.gradient(1)  # and dies with it
    run.join(1)
    chex.assert_trees_all_equal(run.server.model.states.tree(), before)
    run.run(seed=1)
    check_replayed(run)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_does_not_count_leaves_the_state_as_it_is(policy):
    run = with_state(policy).run(until=10)
    before = run.server.model.states.tree()
    header, gradient, state = run.gradient(1)
    nan = [np.full_like(part, 255) for part in state]
    told = messages.unpack_push(header)._replace(finite=False)  # a worker looks at its state, too
    assert run.push(1, (messages.pack_push(told), gradient, nan)) == Outcome.NON_FINITE
    chex.assert_trees_all_equal(run.server.model.states.tree(), before)
    if policy == "server":  # a worker of the simulator keeps what it computes, refused or not
        check_replayed(run.run(seed=5, until=20))
    message = run.gradient(1)
    run.push(1, message)
    after = run.server.model.states.tree()
    assert run.push(1, message) == Outcome.DUPLICATE
    chex.assert_trees_all_equal(run.server.model.states.tree(), after)


def test_a_worker_says_that_its_state_is_not_finite():
    infinite = lambda params, model_state, batch: (
        problems.softmax_loss(params, batch), {**model_state, "mean": model_state["mean"] * jnp.inf}
    )  # fmt: skip
    run = Clients(
        optax.sgd(0.1), loss_fn=infinite, model_state=first_state(), model_state_policy="server"
    )
    assert run.push(0) == Outcome.NON_FINITE
    assert np.isfinite(run.server.model.states.tree()["mean"]).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_server_that_comes_back_has_the_state_of_its_checkpoint(policy):
    run = with_state(policy).run(until=12)
    saved = run.saved()
    before = run.server.model.states.tree()
    run.run(seed=3, until=20)
    run.server = run.new_server()
    identity.check(saved.facts["run"], run.identity, "here")
    saving.restore(run.server, saved)
    chex.assert_trees_all_equal(run.server.model.states.tree(), before)
    for worker in range(NUM_WORKERS):
        run.join(worker)
    run.run(seed=4)
    check_replayed(run)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(model_state_policy="server"), "model_state_policy was per_worker and is server now"),
        (dict(model_state={**first_state(), "mean": np.zeros(6, np.float32)}),
         "initial model state is another one now"),
        (dict(model_state={**first_state(), "count": np.float32(0)}), "model_state.*count"),
    ],
)  # fmt: skip
def test_another_runs_checkpoint_is_refused(other, message):
    saved = with_state("per_worker").run(until=3).saved()
    settings = {"model_state": first_state(), "model_state_policy": "per_worker", **other}
    there = Clients(loss_fn=normalised_loss, **settings)
    present = identity.of_server(there.whole, there.settings, there.layout)
    with pytest.raises(ValueError, match=f"/a holds a checkpoint of another run: .*{message}"):
        identity.check(saved.facts["run"], present, "/a")


def test_foreign_states_are_refused():
    run = with_state("server")
    header, gradient, state = run.gradient(1)
    with pytest.raises(ValueError, match="bytes was expected, but this one has"):
        run.server.push(header, gradient, [state[0][:-4]])
    with pytest.raises(ValueError, match="this server keeps none"):
        Clients().server.push(*Clients().gradient(1)[:2], state)
    assert run.server.version == 0
    with pytest.raises(TypeError, match=r"model_state\['key'\] is key"):
        model_states.ModelStates({"key": jax.random.key(0)}, "server", 1)
