"""Workers that take many steps: a literal loop, every engine, every fault, every wrong form."""

import calls
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from jax.sharding import AxisType

import dcasgd_jax as dc
from dcasgd_jax import sim
from sim import local_loop as loop

STEPS = (3, 1, 2, 3)
MOST = max(STEPS)
FAULTS = [sim.DuplicatedPush(1, 3), sim.LostPush(2, 2), sim.Crash(3, 4.2), sim.Restart(3, 7.0)]
CASES = {
    "sgd": loop.Rules((MOST,) * 4),
    "momentum": loop.Rules((MOST,) * 4, momentum=0.9, rate=0.1),
    "reset": loop.Rules((MOST,) * 4, momentum=0.9, rate=0.1, keeps_velocity=False),
    "uneven": loop.Rules(STEPS, momentum=0.9, rate=0.1),
    "mean gradient": loop.Rules(STEPS, push="mean_gradient"),
    "merge at once": loop.Rules((MOST,) * 4, keep=0.5),
    "merge later": loop.Rules((MOST,) * 4, momentum=0.9, rate=0.1, merge_after=2, keep=0.25),
    "late pull": loop.Rules((MOST,) * 4, merge_after=1),
}
TRAVEL = dict(
    upload=sim.ConstantTime(0.2), download=sim.ConstantTime(0.1),
    protocol=sim.Asynchronous(overlap=True, pull_after=0.3),
)  # fmt: skip
EAGER = {
    "eager": loop.Rules((MOST,) * 4, eager=0.7),
    "eager with momentum": loop.Rules(STEPS, momentum=0.9, rate=0.1, eager=0.5),
    "eager, and merges": loop.Rules((MOST,) * 4, eager=0.7, merge_after=1, keep=0.25),
    "eager mean gradient": loop.Rules((MOST,) * 4, eager=0.1, push="mean_gradient"),
}


def schedule_of(**options):
    return sim.make_schedule(sim.GammaTime(shape=4), 4, 24, seed=3, **options)


def batches_for(schedule, dtype=np.float64, steps=MOST):
    flat = problems.softmax_batches(len(schedule) * steps, dtype)
    return jax.tree.map(lambda leaf: leaf.reshape(len(schedule), steps, *leaf.shape[1:]), flat)


def worker_of(rules, **options):
    return sim.LocalSteps(
        optax.sgd(rules.rate, momentum=rules.momentum or None),
        rules.steps if len(set(rules.steps)) > 1 else rules.steps[0],
        inner_state="per_worker" if rules.keeps_velocity else "reset",
        push=rules.push,
        merge_after=rules.merge_after,
        keep=rules.keep,
        eager=rules.eager,
        **options,
    )


def run(schedule, worker, tx=None, dtype=np.float64, **options):
    return calls.simulate(
        options.pop("loss_fn", problems.softmax_loss),
        problems.softmax_params(dtype),
        optax.sgd(0.7) if tx is None else tx,
        schedule,
        options.pop("batches", None) or batches_for(schedule, dtype),
        worker=worker,
        **options,
    )


def literal(schedule, rules, **options):
    params = jax.tree.map(np.asarray, problems.softmax_params(np.float64))
    return loop.train(schedule, params, batches_for(schedule), rules, 0.7, **options)


@pytest.mark.parametrize("name", CASES)
def test_a_literal_loop_finds_the_same(name, x64):
    schedule = schedule_of(faults=FAULTS)
    assert schedule.repeats.any()
    assert not schedule.applied.all()
    result = run(schedule, worker_of(CASES[name]))
    params, losses = literal(schedule, CASES[name])
    chex.assert_trees_all_close(result.params, params, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.losses, losses, rtol=0, atol=1e-12)


def test_pseudo_gradients_are_compensated_like_gradients(x64):
    rules, tx = CASES["momentum"], optax.chain(dc.compensate_delay(0.5), optax.sgd(0.7))
    tx = optax.chain(
        dc.compensate_delay(0.5, curvature=dc.curvatures.squared_gradient()), optax.sgd(0.7)
    )
    schedule = schedule_of()
    params, _ = literal(schedule, rules, strength=0.5)
    chex.assert_trees_all_close(
        run(schedule, worker_of(rules), tx).params, params, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", EAGER)
def test_eager_workers_find_what_a_literal_loop_finds(name, x64):
    """Its own push is in what a worker pulls, or not; also where the server compensates."""
    schedule = schedule_of(**TRAVEL)
    assert set(schedule.own_pushes_missing[8:]) == {0, 1}
    compensate = dc.compensate_delay(0.5, curvature=dc.curvatures.squared_gradient())
    for tx, strength in [(None, 0.0), (optax.chain(compensate, optax.sgd(0.7)), 0.5)]:
        result = run(schedule, worker_of(EAGER[name]), tx)
        params, losses = literal(schedule, EAGER[name], strength=strength)
        chex.assert_trees_all_close(result.params, params, rtol=0, atol=1e-12)
        np.testing.assert_allclose(result.losses, losses, rtol=0, atol=1e-12)


def test_eager_where_a_push_is_repeated_and_where_it_waits_in_a_buffer(x64):
    rules = EAGER["eager"]
    schedule = schedule_of(faults=[sim.DuplicatedPush(1, 3)], protocol=sim.Buffered(2))
    assert schedule.repeats.any()
    assert schedule.own_pushes_missing.any()
    wanted = run(schedule, worker_of(rules), engine=sim.ScanEngine(chunk_size=5))
    plain = run(schedule, worker_of(rules._replace(eager=0.0)))
    assert np.abs(wanted.params["w"] - plain.params["w"]).max() > 1e-3
    for engine in (sim.HostEngine(), lanes(1), lanes(2)):
        found = run(schedule, worker_of(rules), engine=engine)
        chex.assert_trees_all_close(found.params, wanted.params, rtol=1e-9, atol=1e-11)
    half = run(schedule, worker_of(rules), stop=11)
    rest = run(schedule, worker_of(rules), state=half.state)
    chex.assert_trees_all_equal(rest.params, wanted.params)


def test_an_eager_worker_whose_pushes_are_all_in_is_a_plain_one():
    schedule = schedule_of()
    assert not schedule.own_pushes_missing.any()
    plain, eager = (
        run(schedule, worker_of(CASES["sgd"]._replace(eager=share)), dtype=np.float32)
        for share in (0.0, 0.7)
    )
    chex.assert_trees_all_equal(eager.params, plain.params)


def test_a_nan_push_that_is_in_already_does_not_come_back():
    """What is thrown away by the server is of no more concern to its worker."""
    schedule = schedule_of(**TRAVEL)
    images, labels = batches_for(schedule, np.float32)
    of_worker = np.flatnonzero(schedule.worker == 0)
    missing = schedule.own_pushes_missing[of_worker]
    position = int(np.flatnonzero(missing[1:] == 0)[0])  # whose push is in at the next one
    images = np.array(images)
    images[of_worker[position]] = np.nan
    tx = optax.apply_if_finite(optax.sgd(0.7), 5)
    result = run(schedule, worker_of(EAGER["eager"]), tx, np.float32, batches=(images, labels))
    assert np.isfinite(result.params["w"]).all()
    bad = np.flatnonzero(~np.isfinite(result.losses))
    assert bad.tolist() == [of_worker[position]]


def test_two_own_pushes_on_their_way_are_too_many():
    travel = {**TRAVEL, "upload": sim.ConstantTime(4.0)}
    schedule = schedule_of(**travel)
    assert schedule.own_pushes_missing.max() == 2
    with pytest.raises(ValueError, match=r"Worker \d pulled version \d+ for event \d+ before two"):
        run(schedule, worker_of(EAGER["eager"]), dtype=np.float32)
    with pytest.raises(ValueError, match=r"LocalSteps.eager must be .*-0.5"):
        sim.LocalSteps(optax.sgd(0.1), 2, eager=-0.5)


MUTANTS = {
    "the sign of the push": ("sgd", dict(sign=-1.0)),
    "one velocity for all workers": ("momentum", dict(one_velocity_for_all=True)),
    "a velocity that is forgotten": ("momentum", dict(keeps_velocity=False)),
    "the first batch at every step": ("sgd", dict(all_steps_on_first_batch=True)),
    "the mean of the steps": ("sgd", dict(averages_steps=True)),
    "as many steps for all": ("uneven", dict(steps=(MOST,) * 4)),
    "a merge that is forgotten": ("merge at once", dict(keep=0.0)),
    "a merge at once": ("merge later", dict(merge_after=0)),
    "not eager": ("eager", dict(eager=0.0)),
    "eager where its push is in already": ("eager", dict(always_goes_ahead=True)),
    "its last push in the next one again": ("eager", dict(pushes_from_the_pull=True)),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_loops_are_seen(name, x64):
    case, wrong = MUTANTS[name]
    rules = {**CASES, **EAGER}[case]
    schedule = schedule_of(**TRAVEL) if rules.eager else schedule_of(faults=FAULTS)
    right = literal(schedule, rules)[0]
    mutant = literal(schedule, rules._replace(**wrong))[0]
    assert max(np.abs(right[n] - mutant[n]).max() for n in right) > 1e-3


def noisy_running_loss(params, model_state, batch, key):
    """With a model state and a random key."""
    loss = problems.noisy_loss(params, batch, key)
    return loss, {"seen": model_state["seen"] + 1, "mean": 0.5 * model_state["mean"] + loss}


def noisy(schedule, worker, engine=None, policy="per_worker", **options):
    return run(
        schedule,
        worker,
        problems.adaptive(),
        engine=engine,
        key=jax.random.key(7),
        loss_fn=noisy_running_loss,
        model_state={"seen": jnp.int32(0), "mean": jnp.zeros((), options.get("dtype", np.float64))},
        model_state_policy=policy,
        **options,
    )


def lanes(per_device):
    mesh = jax.make_mesh((2,), ("w",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    return sim.LanesEngine(mesh, lanes_per_device=per_device)


@pytest.mark.parametrize(
    ("steps", "policy", "per_device"), [(MOST, "server", 1), (STEPS, "per_worker", 2)], ids=repr
)
def test_every_engine_gives_the_same(steps, policy, per_device, x64):
    schedule = schedule_of(faults=[sim.DuplicatedPush(1, 3)])
    worker = sim.LocalSteps(optax.adam(0.05), steps, transform=optax.trace(0.5))
    wanted = noisy(schedule, worker, sim.ScanEngine(chunk_size=5), policy)
    seen = int(wanted.model_state["seen"])
    assert seen >= MOST * 2  # every step counts, not only every push
    for engine in (sim.HostEngine(), lanes(per_device)):
        found = noisy(schedule, worker, engine, policy)
        same = lambda tree: (tree.params, tree.model_state, tree.losses, tree.state.worker_state)
        chex.assert_trees_all_close(same(found), same(wanted), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("policy", ["per_worker", "server"])
def test_one_step_of_the_plain_kind_is_one_gradient(policy):
    """Bit for bit: also its random key, its model state, and what the server remembers."""
    schedule = schedule_of(faults=FAULTS)
    many = batches_for(schedule, np.float32, steps=1)
    one = jax.tree.map(lambda leaf: leaf[:, 0], many)
    plain = noisy(schedule, None, policy=policy, dtype=np.float32, batches=one)
    step = sim.LocalSteps(optax.sgd(1.0), 1)
    local = noisy(schedule, step, policy=policy, dtype=np.float32, batches=many)
    chex.assert_trees_all_equal(local.params, plain.params)
    chex.assert_trees_all_equal(local.opt_state, plain.opt_state)
    chex.assert_trees_all_equal(local.model_state, plain.model_state)
    np.testing.assert_array_equal(local.losses, plain.losses)
    np.testing.assert_array_equal(local.trace.samples, plain.trace.samples)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_params_push_what_they_went(dtype):
    """Summed in float32: steps that are lost in the rounding of the params are not in the push."""
    schedule = sim.make_schedule(sim.RoundRobin(), 2, 2, seed=0)
    batches = jnp.ones((2, 64, 2))
    problem = sim.Problem(lambda w, x: jnp.sum(w.astype(jnp.float32) * x), jnp.full(2, 256, dtype))
    worker = sim.LocalSteps(optax.sgd(1 / 64), 64)
    result = sim.simulate(problem, optax.sgd(1.0), schedule, batches, worker=worker)
    assert result.params.dtype == dtype
    np.testing.assert_array_equal(np.asarray(result.params, np.float32), 254.0)


def test_a_run_in_two_parts_is_the_run():
    schedule = schedule_of(faults=[sim.DuplicatedPush(1, 3)])
    worker = worker_of(CASES["merge later"])
    whole = run(schedule, worker, dtype=np.float32)
    first = run(schedule, worker, dtype=np.float32, stop=11)
    rest = run(schedule, worker, dtype=np.float32, state=first.state)
    chex.assert_trees_all_equal(rest.params, whole.params)
    chex.assert_trees_all_equal(rest.state.worker_state, whole.state.worker_state)


def test_a_checkpoint_has_what_the_workers_keep(tmp_path):
    schedule, worker = schedule_of(), worker_of(CASES["momentum"])
    options = dict(dtype=np.float32, checkpoint=sim.Checkpoint(tmp_path / "run", every=5))
    run(schedule, worker, stop=13, **options)
    resumed = run(schedule, worker, **options)
    chex.assert_trees_all_equal(resumed.params, run(schedule, worker, dtype=np.float32).params)
    slower = worker_of(CASES["momentum"]._replace(rate=0.05))
    with pytest.raises(ValueError, match="other code or settings: loss_fn differs"):
        run(schedule, slower, **options)
    with pytest.raises(ValueError, match="another optimizer: worker_state"):
        run(schedule, worker_of(CASES["sgd"]), **options)


@pytest.mark.parametrize("eager", [0.0, 0.3])
def test_members_of_a_sweep_differ_in_the_inner_rate(eager, x64):
    schedule = schedule_of(**(TRAVEL if eager else {}))
    inner = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0, momentum=0.9)
    given = problems.softmax_loss, problems.softmax_params(np.float64), optax.sgd(0.7)
    result = calls.sweep(
        *given,
        schedule,
        batches_for(schedule),
        worker=sim.LocalSteps(inner, STEPS, eager=eager),
        hyperparams={"learning_rate": [0.05, 0.1]},
    )
    for i, rate in enumerate((0.05, 0.1)):
        alone = run(schedule, sim.LocalSteps(optax.sgd(rate, momentum=0.9), STEPS, eager=eager))
        of_member = result.member(i)
        chex.assert_trees_all_close(of_member.params, alone.params, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(of_member.trace.samples, alone.trace.samples)
    with pytest.raises(ValueError, match=r"no hyperparameter 'learning_rate'.*inner_state=\"reset"):
        calls.sweep(
            *given,
            schedule,
            batches_for(schedule),
            worker=sim.LocalSteps(inner, STEPS, inner_state="reset"),
            hyperparams={"learning_rate": [0.05, 0.1]},
        )


def test_a_transformation_of_pushes_is_each_workers_own(x64):
    """A momentum on the workers, against a loop that keeps one for each."""
    schedule = schedule_of()
    flat = problems.softmax_batches(len(schedule), np.float64)
    worker = sim.OneGradient(transform=optax.trace(0.5))
    result = run(schedule, worker, batches=flat)
    versions = [jax.tree.map(np.asarray, problems.softmax_params(np.float64))]
    traces = [jax.tree.map(np.zeros_like, versions[0]) for _ in range(4)]
    for k, m in enumerate(schedule.worker):
        grads, _ = loop.gradient(versions[schedule.read_version[k]], flat[0][k], flat[1][k])
        traces[m] = {n: g + 0.5 * traces[m][n] for n, g in grads.items()}
        versions.append({n: w - 0.7 * traces[m][n] for n, w in versions[-1].items()})
    chex.assert_trees_all_close(result.params, versions[-1], rtol=0, atol=1e-12)


def test_the_plain_worker_says_so_or_not():
    schedule = schedule_of()
    flat = problems.softmax_batches(len(schedule), np.float32)
    silent = run(schedule, None, dtype=np.float32, batches=flat)
    said = run(schedule, sim.OneGradient(), dtype=np.float32, batches=flat)
    chex.assert_trees_all_equal(said.params, silent.params)
    assert silent.state.worker_state is None


def test_a_loss_that_is_not_finite_between_two_steps_is_named():
    schedule = schedule_of()
    images, labels = batches_for(schedule, np.float32)
    images[9, 1, 0, 0] = np.nan
    result = run(schedule, worker_of(CASES["sgd"]), dtype=np.float32, batches=(images, labels))
    assert result.non_finite.event == 9
    assert len(result.losses) == 10
    assert np.isfinite(result.losses[:9]).all()
    assert np.isnan(result.losses[9])


def test_samples_count_every_step():
    schedule = schedule_of(faults=[sim.DuplicatedPush(1, 3)])
    result = run(schedule, worker_of(CASES["uneven"]), dtype=np.float32)
    of_event = np.where(schedule.repeats, 0, 8 * np.array(STEPS)[schedule.worker])
    np.testing.assert_array_equal(result.trace.samples, np.cumsum(of_event))


def test_unrolled_steps_are_the_same():
    schedule = schedule_of()
    wanted = run(schedule, worker_of(CASES["momentum"]), dtype=np.float32)
    found = run(schedule, worker_of(CASES["momentum"], unroll=MOST), dtype=np.float32)
    chex.assert_trees_all_close(found.params, wanted.params, rtol=1e-5, atol=1e-6)


FORMS = {
    "indexed": lambda images, labels: sim.Indexed(
        (images.reshape(-1, 6), labels.ravel()),
        np.arange(labels.size, dtype=np.int32).reshape(labels.shape),
    ),
    "iterator": lambda images, labels: iter(list(zip(images, labels, strict=True))),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_every_form(form):
    schedule, worker = schedule_of(), worker_of(CASES["uneven"])
    given = batches_for(schedule, np.float32)
    wanted = run(schedule, worker, dtype=np.float32)
    found = run(schedule, worker, dtype=np.float32, batches=FORMS[form](*given))
    chex.assert_trees_all_close(found.params, wanted.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.trace.samples, wanted.trace.samples)


SGD = optax.sgd(0.1)
BAD_WORKERS = {
    "no transformation": (dict(inner_tx=0.1, num_steps=2), TypeError, r"inner_tx must be an optax"),
    "no steps": (dict(inner_tx=SGD, num_steps=0), ValueError, r"num_steps must be an integer >= 1"),
    "half a step": (dict(inner_tx=SGD, num_steps=1.5), TypeError, r"num_steps must be an integer"),
    "an empty list": (dict(inner_tx=SGD, num_steps=[]), ValueError, r"num_steps is empty"),
    "a worker without": (dict(inner_tx=SGD, num_steps=[2, 0]), ValueError, r"num_steps\[1\] must"),
    "another state": (
        dict(inner_tx=SGD, num_steps=2, inner_state="shared"),
        ValueError,
        r"inner_state must be one of \['per_worker', 'reset'\]",
    ),
    "another push": (dict(inner_tx=SGD, num_steps=2, push="sum"), ValueError, r"push must be one"),
    "keeps all": (dict(inner_tx=SGD, num_steps=2, keep=1.0), ValueError, r"keep must lie in \[0"),
    "keeps a word": (dict(inner_tx=SGD, num_steps=2, keep="no"), TypeError, r"keep must be a num"),
    "merges too late": (
        dict(inner_tx=SGD, num_steps=[4, 2], merge_after=2),
        ValueError,
        r"merge_after is 2, but a worker takes only 2 steps",
    ),
    "no transform": (dict(inner_tx=SGD, num_steps=2, transform=3), TypeError, r"transform must be"),
}


@pytest.mark.parametrize("name", BAD_WORKERS)
def test_workers_that_cannot_be(name):
    arguments, error, words = BAD_WORKERS[name]
    with pytest.raises(error, match=words):
        sim.LocalSteps(**arguments)


def test_what_does_not_fit_the_run_is_said_before_it():
    schedule = schedule_of()
    flat = problems.softmax_batches(len(schedule), np.float32)
    refuses = lambda kind, words: pytest.raises(kind, match=words)
    three = sim.LocalSteps(SGD, 3)
    with refuses(ValueError, r"batch\[0\], without a leading axis of 3 steps.*\[num_events, 3"):
        run(schedule, three, dtype=np.float32, batches=flat)
    with refuses(ValueError, r"batch\[1\] is a single number.*seems to be the examples of one"):
        run(schedule, sim.LocalSteps(SGD, 8), dtype=np.float32, batches=flat)
    with refuses(ValueError, r"LocalSteps.num_steps has 2 values, but there are 4 workers"):
        run(schedule, sim.LocalSteps(SGD, (3, 3)), dtype=np.float32)
    with refuses(TypeError, r"worker must be what a worker does, such as sim.LocalSteps"):
        run(schedule, optax.sgd(0.1), dtype=np.float32)
    with refuses(ValueError, r"hessian_vector_product, but a push of local steps is of several"):
        hessian = dc.compensate_delay(0.1, curvature=dc.curvatures.hessian())
        run(schedule, three, optax.chain(hessian, optax.sgd(0.1)), dtype=np.float32)
    with refuses(TypeError, r"batch_size"):
        rotated = dc.compensate_delay(0.1, curvature=dc.curvatures.rotated())
        run(schedule, three, optax.chain(rotated, optax.sgd(0.1)), dtype=np.float32)
    with refuses(ValueError, r"worker.transform's push"):
        halved = optax.stateless(lambda push, params: {"w": push["w"]})
        run(schedule, sim.LocalSteps(SGD, 3, transform=halved), dtype=np.float32)
    other = run(schedule, three, dtype=np.float32, stop=5)
    with refuses(ValueError, r"made with a worker's state, but this call is without it"):
        run(schedule, None, dtype=np.float32, batches=flat, state=other.state)


@pytest.mark.parametrize(
    "inner_tx",
    [
        optax.chain(dc.compensate_delay(0.1), optax.sgd(0.1)),
        dc.dcasgd(0.1, num_workers=4),
        optax.lbfgs(),
    ],
    ids=["stale params", "worker", "a function"],
)
def test_an_inner_optimizer_that_asks_for_too_much(inner_tx):
    with pytest.raises(TypeError, match=r"inner_tx asks for more than gradients, params and value"):
        run(schedule_of(), sim.LocalSteps(inner_tx, MOST), dtype=np.float32)


def test_an_inner_optimizer_may_ask_for_the_loss():
    """A rate that is halved whenever there is no progress, of which this one never sees any."""
    plateau = optax.contrib.reduce_on_plateau(patience=2, factor=0.5, atol=1e3)
    worker = sim.LocalSteps(optax.chain(optax.sgd(0.1), plateau), MOST)
    result = run(schedule_of(), worker, dtype=np.float32)
    scales = result.state.worker_state.inner[1].scale
    for scale, pushes in zip(scales, np.bincount(schedule_of().worker), strict=True):
        state = plateau.init(jnp.zeros(1))
        for _ in range(MOST * pushes):
            _, state = plateau.update(jnp.zeros(1), state, value=jnp.float32(1.0))
        assert scale == state.scale


def test_a_loss_that_changes_the_shape_of_its_model_state_is_refused():
    grows = lambda params, state, batch: (problems.softmax_loss(params, batch), jnp.zeros(2))
    with pytest.raises(ValueError, match="model state shaped as it was given"):
        run(
            schedule_of(),
            sim.LocalSteps(SGD, MOST),
            dtype=np.float32,
            loss_fn=grows,
            model_state=jnp.zeros(1),
        )


def test_a_repeated_push_needs_what_its_worker_had_kept():
    columns = dict(worker=[0, 0, 1, 0], read_version=[0, 1, 0, 0], batch=[0, 1, 2, 0])
    schedule = sim.Schedule(**columns)
    batches = batches_for(schedule, np.float32)
    with pytest.raises(ValueError, match=r"Event 3 repeats event 0, but worker 0 has pushed anoth"):
        run(schedule, worker_of(CASES["momentum"]), dtype=np.float32, batches=batches)
    # What keeps nothing can repeat any push.
    reset = worker_of(CASES["reset"])
    assert len(run(schedule, reset, dtype=np.float32, batches=batches).losses) == 4


def test_slow_workers_take_fewer_steps():
    assert sim.steps_by_speed([1.0, 2.0, 4.5, 100.0], most=32) == (32, 16, 7, 1)
    assert sim.steps_by_speed([0.1, 0.3], most=3) == (3, 1)
    for seconds in ([], [1.0, 0.0], [1.0, np.inf], [[1.0]]):
        with pytest.raises(ValueError, match="seconds must be positive numbers"):
            sim.steps_by_speed(seconds, most=4)


def test_the_time_of_a_push_is_the_sum_of_its_steps():
    law = sim.GammaTime(shape=2.0, mean=[0.5, 1.0])
    whole, steps = sim.StepsTime(law, [3, 2]), (3, 2)
    for worker in range(2):
        of_steps = law.times(worker, 7 * steps[worker], np.random.default_rng(5))
        of_pushes = whole.times(worker, 7, np.random.default_rng(5))
        np.testing.assert_allclose(of_pushes, of_steps.reshape(7, -1).sum(axis=1), rtol=1e-15)
        fewer = whole.times(worker, 3, np.random.default_rng(5))
        np.testing.assert_array_equal(fewer, of_pushes[:3])
    with pytest.raises(ValueError, match=r"StepsTime.num_steps has 2 values, but there are 3"):
        sim.make_schedule(sim.StepsTime(sim.ConstantTime(), [3, 2]), 3, 5, seed=0)
    with pytest.raises(TypeError, match=r"StepsTime.law must be a worker-time law"):
        sim.StepsTime(0.5, 3)
