"""One owner of the stale point: every form of a compensation under every protocol and fault.

The reference is an explicit chain, which uses nothing but what the server offers; that it is right
is for test_pushes, against a literal loop.
"""

import functools

import calls
import compensations
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType
from schedules import test_faults, test_protocols

import dcasgd_jax as dc
from dcasgd_jax import rivals, sim

LR, MOMENTUM, LAMBDA0 = 0.3, 0.5, 4.0
NUM_WORKERS = 4

PROTOCOLS = {
    "asynchronous": sim.Asynchronous(),
    "overlap": sim.Asynchronous(overlap=True),
    "dropping": sim.DropStale(2),
    "stale-synchronous": sim.StaleSynchronous(1),
    "synchronous": sim.Synchronous(),
    "backup workers": sim.Synchronous(backup_workers=1),
    "buffered": sim.Buffered(3),
}
FAULTS = {
    "none": [],
    "crash": [sim.Crash(1, 2.0)],
    "restart": [sim.Crash(1, 1.0), sim.Restart(1, 2.5)],
    "late": [sim.LateJoin(3, 1.5)],
    "duplicated": [sim.DuplicatedPush(2, 1), sim.DuplicatedPush(0, 0)],
    "lost": [sim.LostPush(0, 1), sim.LostPush(2, 0)],
    "slow": [sim.SlowDown(0, 1.0, 3.0, 4.0)],
    "nan": [sim.NaNGradient(1, 2)],
}


def chain(*first):
    return optax.chain(*first, optax.sgd(LR, momentum=MOMENTUM))


@functools.cache  # the same objects again, so that programs are compiled once
def forms(num_workers):
    """Every way to say the same optimizer; the first one is the reference."""
    compensate = functools.partial(compensations.explicit, LAMBDA0, ms_decay=0.9)
    adaptive = dc.curvatures.adaptive(0.9)
    return {
        "explicit": chain(compensate()),
        "remember_pulls": dc.remember_pulls(chain(compensate()), num_workers),
        "remember_pulls inside": chain(dc.remember_pulls(compensate(), num_workers)),
        "assume_delay": dc.assume_delay(chain(compensate()), 2),
        "dcasgd": dc.dcasgd(
            LR, num_workers, lambda0=LAMBDA0, curvature=adaptive, momentum=MOMENTUM
        ),
    }


@functools.cache
def per_push_forms(num_workers):
    compensate = functools.partial(compensations.explicit, LAMBDA0, ms_decay=0.9)
    return {
        "explicit": compensate(),
        "remember_pulls": dc.remember_pulls(compensate(), num_workers),
        "assume_delay": dc.assume_delay(compensate(), 2),
    }


@functools.cache
def momentum():
    return optax.sgd(LR, momentum=MOMENTUM)


def mesh():
    devices = jax.devices()[:2]
    return jax.make_mesh((2,), ("workers",), axis_types=(AxisType.Auto,), devices=devices)


# Short chunks: one shape for all schedules, so one program for many.
ENGINES = {
    "scan": sim.ScanEngine(chunk_size=1),
    "host": sim.HostEngine(),
    "lanes": sim.LanesEngine(mesh(), "sharded", 2, chunk_size=2),
}


HOST = {"engine": ENGINES["host"]}


@functools.cache
def schedule_of(protocol, fault):
    upload = {"upload": sim.ExponentialTime(0.7)} if protocol == "overlap" else {}
    return sim.make_schedule(
        sim.ExponentialTime(), NUM_WORKERS, 14, seed=3,
        protocol=PROTOCOLS[protocol], faults=FAULTS[fault], **upload,
    )  # fmt: skip


def loss_fn(w, slopes):
    """One leaf, so that the many programs compile fast."""
    return jnp.sum(slopes * w * w) / 2 + jnp.sum(jnp.sin(w))


def start(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=4))


def batches(schedule):
    return np.random.default_rng(1).uniform(0.5, 2.0, size=(len(schedule), 4))


def train(schedule, tx, engine, **options):
    return calls.simulate(
        loss_fn, start(), tx, schedule, batches(schedule), engine=engine, **options
    ).params


def member_of_a_sweep(schedule, tx, **options):
    """The second of two members, that differ in their initial params."""
    members = sim.PerMember([start(5), start()])
    swept = calls.sweep(loss_fn, members, tx, schedule, batches(schedule), chunk_size=1, **options)
    return swept.member(1).params


def runs(schedule, tx, **options):
    for name, engine in ENGINES.items():
        yield name, train(schedule, tx, engine, **options)
    yield "sweep", member_of_a_sweep(schedule, tx, **options)


ON_ALL_ENGINES = ("explicit", "remember_pulls", "dcasgd")


def assert_close(params, expected, what):
    """NaN where the reference is: a run with a NaN push is lost, for all alike."""
    np.testing.assert_allclose(params, expected, rtol=1e-12, atol=1e-12, err_msg=str(what))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_form_is_the_explicit_chain(protocol, fault, x64):
    schedule = schedule_of(protocol, fault)
    if protocol == "buffered":
        made, options = per_push_forms(NUM_WORKERS), {"tx": momentum()}
        for name, tx in forms(NUM_WORKERS).items():
            with pytest.raises(ValueError, match=r"pass it as per_push="):
                train(schedule, tx, sim.HostEngine())
            assert name
    else:
        made, options = forms(NUM_WORKERS), {}
    expected = None
    for form, tx in made.items():
        told = {"tx": tx} if not options else {**options, "per_push": tx}
        on_all = form in ON_ALL_ENGINES
        results = runs(schedule, **told) if on_all else [("host", train(schedule, **told, **HOST))]
        for engine, params in results:
            expected = params if expected is None else expected
            assert_close(params, expected, (form, engine))
    if fault == "none" and protocol not in ("synchronous", "backup workers"):
        plain = train(schedule, momentum(), sim.HostEngine())
        assert np.abs(plain - expected).max() > 1e-4  # there is something to compensate


@settings(max_examples=40, deadline=None, derandomize=True)
@given(test_faults.faulty_runs())
def test_every_form_on_random_schedules(run):
    protocol, num_workers, num_updates, tables, faults = run
    try:
        schedule = test_protocols.make(protocol, num_workers, num_updates, tables, faults)
    except ValueError:  # nobody can finish it, for which test_faults is
        return
    with jax.enable_x64(True):
        made, options = forms(num_workers), {}
        if isinstance(protocol, sim.Buffered):
            made, options = per_push_forms(num_workers), {"tx": momentum()}
        expected = None
        for form, tx in made.items():
            told = {"tx": tx} if not options else {**options, "per_push": tx}
            params = train(schedule, engine=sim.HostEngine(), **told)
            expected = params if expected is None else expected
            assert_close(params, expected, form)


def test_with_something_else_sent_the_stale_point_is_what_was_sent(x64):
    schedule = schedule_of("asynchronous", "none")
    send = rivals.sends.velocity_prediction(2, LR)
    results = {
        name: train(schedule, tx, sim.HostEngine(), send=send)
        for name, tx in forms(NUM_WORKERS).items()
    }
    expected = results.pop("explicit")
    for name, params in results.items():
        assert_close(params, expected, name)
    unsent = train(schedule, forms(NUM_WORKERS)["dcasgd"], sim.HostEngine())
    assert np.abs(unsent - expected).max() > 1e-3


def test_a_guess_would_have_shown(x64):
    """The mutant of the first edition: it hides the offer from what remembers pulls."""

    def deaf(tx):
        def update(updates, state, params=None, *, stale_params, staleness, **told):
            return tx.update(updates, state, params, **told)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    off = {}
    for protocol, fault in [("stale-synchronous", "none"), ("dropping", "crash"),
                            ("asynchronous", "restart"), ("asynchronous", "late"),
                            ("asynchronous", "duplicated"), ("asynchronous", "lost"),
                            ("asynchronous", "none")]:  # fmt: skip
        schedule = schedule_of(protocol, fault)
        remembering = forms(NUM_WORKERS)["remember_pulls"]
        guess = train(schedule, deaf(remembering), sim.HostEngine())
        right = train(schedule, remembering, sim.HostEngine())
        off[protocol, fault] = float(np.abs(guess - right).max())
    assert off.pop(("asynchronous", "none")) < 1e-12  # where the guess is right
    assert min(off.values()) > 1e-6, off


# What has a row for each worker, for any number of them.
WITH_ROWS = {
    "dcasgd": lambda n: dc.dcasgd(0.1, n),
    "dcasgd rotated": lambda n: dc.dcasgd(0.1, n, curvature=dc.curvatures.rotated(4)),
    "remember_pulls": lambda n: dc.remember_pulls(optax.sgd(0.1), n),
    "adaptive": lambda n: chain(compensations.explicit(1.0, ms_decay=0.9, num_workers=n)),
    "per_worker_momentum": lambda n: optax.chain(
        rivals.per_worker_momentum(0.5, n), optax.scale_by_learning_rate(0.1)
    ),
    "ordered_momentum": lambda n: optax.chain(
        rivals.ordered_momentum(0.5, n), optax.scale_by_learning_rate(0.1)
    ),
    "drop_stale": lambda n: rivals.drop_stale(optax.sgd(0.1), 9, num_workers=n),
    "fedbuff": lambda n: rivals.fedbuff(optax.sgd(0.1), 2, num_workers=n),
}


@pytest.mark.parametrize("made_for", [3, 5])
@pytest.mark.parametrize("name", WITH_ROWS)
def test_another_number_of_workers_is_refused_by_all_who_run(name, made_for):
    """A traced index out of range would read the row of somebody else, without a word."""
    schedule, tx = schedule_of("asynchronous", "none"), WITH_ROWS[name](made_for)
    message = rf"made for num_workers={made_for}, but there are 4 workers"
    rows = problems.softmax_batches(len(schedule))
    arguments = problems.softmax_loss, problems.softmax_params(), tx, schedule, rows
    with pytest.raises(ValueError, match=message):
        calls.simulate(*arguments)
    params = sim.PerMember([problems.softmax_params(), problems.softmax_params(seed=2)])
    with pytest.raises(ValueError, match=message):
        calls.sweep(arguments[0], params, *arguments[2:])
    examples = jax.tree.map(lambda leaf: leaf[0], rows)
    rows = np.arange(len(schedule) * 4).reshape(-1, 4) % 8
    with pytest.raises(ValueError, match=message):
        calls.svrg(*arguments[:3], [schedule], sim.Indexed(examples, rows))
    calls.simulate(*arguments[:2], WITH_ROWS[name](NUM_WORKERS), *arguments[3:])


@pytest.mark.parametrize("name", WITH_ROWS)
def test_a_state_of_another_number_of_workers_is_refused(name):
    """Such as one that was restored."""
    schedule = schedule_of("asynchronous", "none")
    restored = WITH_ROWS[name](3).init(problems.softmax_params())
    with pytest.raises(ValueError, match=r"made for num_workers=3, but there are 4"):
        problems.run(schedule, WITH_ROWS[name](4), opt_state=restored)


@pytest.mark.parametrize("name", ["per_worker_momentum", "ordered_momentum", "adaptive"])
@pytest.mark.parametrize("protocol", ["synchronous", "buffered"])
def test_a_mean_is_of_no_worker_in_particular(name, protocol):
    """As worker 0's, an ordered momentum would decay once in M updates."""
    with pytest.raises(ValueError, match=r"of no worker in particular|no single stale point"):
        problems.run(schedule_of(protocol, "none"), WITH_ROWS[name](NUM_WORKERS))


def test_what_was_skipped_has_no_measurement():
    """Not that of the push before."""
    tx = rivals.drop_stale(chain(compensations.explicit(2.0)), 3)
    schedule = schedule_of("asynchronous", "slow")
    trace = problems.run(schedule, tx, metrics=["compensation_ratio"]).trace
    skipped = schedule.staleness >= 3
    assert skipped.any()
    assert not skipped.all()
    np.testing.assert_array_equal(np.isnan(trace.compensation_ratio), skipped)
