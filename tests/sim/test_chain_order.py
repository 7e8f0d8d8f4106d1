"""Where a compensation stands in a chain, and which learning rate its cap was told."""

import calls
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import dcasgd_jax as dc
from dcasgd_jax import rivals, sim
from dcasgd_jax.sim import chain_order

SCHEDULE = sim.make_schedule(sim.ExponentialTime(), 4, 6, seed=0)
PARAMS = {"w": jnp.zeros((6, 3)), "b": jnp.zeros(3), "s": jnp.zeros(())}

GOOD = {
    "bare": lambda c: optax.chain(c, optax.sgd(0.1)),
    "clipped": lambda c: optax.chain(optax.clip_by_global_norm(1.0), c, optax.sgd(0.1)),
    "clipped elementwise": lambda c: optax.chain(optax.clip(0.5), c, optax.adam(0.1)),
    "clipped by block": lambda c: optax.chain(optax.clip_by_block_rms(1.0), c, optax.sgd(0.1)),
    "clipped adaptively": lambda c: optax.chain(optax.adaptive_grad_clip(0.1), c, optax.sgd(0.1)),
    "scaled": lambda c: optax.chain(optax.scale(128.0), c, optax.sgd(0.1)),
    "masked": lambda c: optax.chain(
        optax.masked(c, {"w": True, "b": False, "s": True}, mask_compatible_extra_args=True),
        optax.sgd(0.1),
    ),
    "frozen": lambda c: optax.chain(
        optax.masked(optax.set_to_zero(), {"w": False, "b": True, "s": False}), c, optax.sgd(0.1)
    ),
    "parted": lambda c: optax.partition(
        {"one": optax.chain(c, optax.sgd(0.1)), "other": optax.chain(c, optax.adam(0.1))},
        {"w": "one", "b": "other", "s": "other"},
        mask_compatible_extra_args=True,
    ),
    "remembered": lambda c: dc.remember_pulls(optax.chain(c, optax.sgd(0.1, momentum=0.9)), 4),
    "dropping": lambda c: rivals.drop_stale(optax.chain(c, optax.sgd(0.1)), 100),
    "injected": lambda c: optax.inject_hyperparams(
        lambda rate: optax.chain(c, optax.scale_by_learning_rate(rate))
    )(rate=0.1),
    "checked": lambda c: optax.apply_if_finite(optax.chain(c, optax.sgd(0.1)), 3),
}
AGAINST = {
    "sgd": lambda c: optax.chain(optax.sgd(0.1), c),
    "adam": lambda c: optax.chain(optax.adam(0.1), c),
    "momentum": lambda c: optax.chain(optax.sgd(0.1, momentum=0.9), c),
    "warm-up from 0": lambda c: optax.chain(optax.sgd(optax.linear_schedule(0.0, 1.0, 9)), c),
    "decay, then rate": lambda c: optax.chain(
        optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(0.1), c
    ),
    "inside remember_pulls": lambda c: dc.remember_pulls(optax.chain(optax.sgd(0.1), c), 4),
}
CHANGED = {
    "momentum": lambda c: optax.chain(optax.trace(0.9), c, optax.scale_by_learning_rate(0.1)),
    "average": lambda c: optax.chain(optax.ema(0.9), c, optax.scale_by_learning_rate(0.1)),
    "adam": lambda c: optax.chain(optax.scale_by_adam(), c, optax.scale_by_learning_rate(0.1)),
    "rms": lambda c: optax.chain(optax.scale_by_rms(), c, optax.scale_by_learning_rate(0.1)),
    "weight decay": lambda c: optax.chain(optax.add_decayed_weights(0.5), c, optax.sgd(0.1)),
    "sign": lambda c: optax.chain(optax.scale_by_sign(), c, optax.sgd(0.1)),
}


def try_out(tx, params=PARAMS, opt_state=None):
    """Every warning is an error in this test suite."""
    chain_order.check(tx, params, opt_state)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", GOOD)
def test_right_orders_pass_in_silence(name, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    try_out(GOOD[name](dc.compensate_delay(2.0)), params)


@pytest.mark.parametrize("name", AGAINST)
def test_behind_the_learning_rate_is_an_error_that_shows_the_order(name):
    tx = AGAINST[name](dc.compensate_delay())
    order = r"stands behind the learning rate.*optax\.chain\(clipping, dc\.compensate_delay"
    with pytest.raises(ValueError, match=order):
        try_out(tx)
    if name == "sgd":
        with pytest.raises(ValueError, match=order):
            problems.run(SCHEDULE, tx)
        two = sim.PerMember([problems.softmax_params(), problems.softmax_params(seed=3)])
        batches = problems.softmax_batches(len(SCHEDULE))
        with pytest.raises(ValueError, match=order):
            calls.sweep(problems.softmax_loss, two, tx, SCHEDULE, batches)
        buffered = problems.schedule_for(sim.Buffered(2))
        per_push = optax.chain(optax.scale(-1.0), dc.compensate_delay())
        with pytest.raises(ValueError, match=order):
            problems.run(buffered, optax.sgd(0.1), per_push=per_push)


@pytest.mark.parametrize("name", CHANGED)
def test_what_changes_the_gradient_is_warned_of_once(name):
    tx = CHANGED[name](dc.compensate_delay())
    with pytest.warns(UserWarning, match="something before it changes its direction") as warned:
        try_out(tx)
    assert len(warned) == 1


def test_a_swept_learning_rate_does_not_hide_the_order():
    """It is injected as 0, under which nothing has a sign."""

    @optax.inject_hyperparams
    def tx(rate):
        return optax.chain(optax.scale_by_learning_rate(rate), dc.compensate_delay())

    batches = problems.softmax_batches(len(SCHEDULE))
    made, rates = tx(rate=0.0), {"rate": [0.1, 0.2]}
    arguments = problems.softmax_loss, problems.softmax_params(), made, SCHEDULE, batches
    with pytest.raises(ValueError, match="stands behind the learning rate"):
        calls.sweep(*arguments, hyperparams=rates)


def capped(told, *rest, max_pull=1.0, **settings):
    compensate = dc.compensate_delay(8.0, max_pull=max_pull, learning_rate=told, **settings)
    return optax.chain(compensate, *rest)


@pytest.mark.parametrize(
    ("tx", "told", "applied", "back"),
    [
        (capped(0.01, optax.sgd(0.1)), 0.01, 0.1, 10),
        (capped(0.01, optax.sgd(0.1), max_pull=0.5), 0.01, 0.1, 5),
        (capped(0.1, optax.scale(2.0), optax.sgd(0.1)), 0.1, 0.2, 2),
        (capped(lambda count: 0.1 / (1 + count), optax.sgd(0.3)), 0.1, 0.3, 3),
        (dc.remember_pulls(capped(0.01, optax.sgd(0.1)), 4), 0.01, 0.1, 10),
        (capped(0.01, optax.sgd(0.1), curvature=dc.curvatures.absolute()), 0.01, 0.1, 10),
    ],
)
def test_a_cap_of_another_learning_rate_is_an_error_with_both_numbers(tx, told, applied, back):
    words = rf"told learning_rate={told:g}, but the chain applies {applied:g}: .* goes {back:g} of"
    with pytest.raises(ValueError, match=words):
        try_out(tx)


@pytest.mark.parametrize(
    "tx",
    [
        capped(0.1, optax.sgd(0.1)),
        capped(0.2, optax.sgd(0.1)),  # further away from the cap than it could be
        capped(1.0, optax.sgd(0.1, momentum=0.9)),
        capped(0.1, optax.adam(0.1)),
        capped(0.0, optax.sgd(0.1), max_pull=np.inf),
        dc.dcasgd(0.1, 4, momentum=0.9, nesterov=True, max_pull=1.0),
        rivals.dana(0.1, 0.9, 4, lambda0=2.0, max_pull=1.0).tx,
    ],
)
def test_caps_that_fit_pass(tx):
    try_out(tx)


BUFFERED = sim.make_schedule(sim.ExponentialTime(), 4, 6, seed=0, protocol=sim.Buffered(2))


def run_with_per_push(told):
    per_push = dc.compensate_delay(8.0, max_pull=1.0, learning_rate=told)
    problem = sim.Problem(lambda w, x: ((w - x) ** 2).mean(), jnp.zeros(3))
    server = sim.Server(optax.sgd(0.2), per_push=per_push)
    return sim.simulate(problem, server, BUFFERED, jnp.ones((len(BUFFERED), 3)))


def test_the_cap_of_each_push_belongs_to_the_rate_of_the_server():
    assert np.isfinite(run_with_per_push(0.2).losses).all()
    words = r"told learning_rate=0\.02, but the chain applies 0\.2: .* goes 10 of"
    with pytest.raises(ValueError, match=words):
        run_with_per_push(0.02)


def test_what_was_tried_with_a_server_is_not_tried_again(monkeypatch):
    per_push, tx = dc.compensate_delay(8.0, max_pull=1.0, learning_rate=0.2), optax.sgd(0.2)
    chain_order.check_server(PARAMS, tx, None, per_push)
    monkeypatch.setattr(chain_order, "_try_out", lambda *_: pytest.fail("again"))
    chain_order.check_server(PARAMS, tx, None, per_push)


def test_the_state_that_a_server_starts_from_is_tried_with_what_it_does_to_pushes():
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.2)
    state = tx.init(PARAMS)
    state.hyperparams["learning_rate"] = jnp.float32(2.0)
    per_push = dc.compensate_delay(8.0, max_pull=1.0, learning_rate=0.2)
    chain_order.check_server(PARAMS, tx, None, per_push)
    with pytest.raises(ValueError, match=r"told learning_rate=0\.2, but the chain applies 2:"):
        chain_order.check_server(PARAMS, tx, state, per_push)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("rate", [0.3, 0.01, 1e-4])
def test_rounding_of_narrow_params_is_no_long_pull(rate, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    try_out(dc.dcasgd(rate, 4, max_pull=1.0), params)
    try_out(dc.dcasgd(rate, 4, max_pull=3e-4), params)
    try_out(optax.chain(optax.scale(1024.0), dc.compensate_delay(), optax.sgd(rate)), params)
    with pytest.raises(ValueError, match="the chain applies"):
        try_out(capped(rate, optax.sgd(10 * rate)), params)


def test_a_cap_is_looked_at_behind_clipping_and_where_it_does_not_bind():
    clip = optax.clip_by_global_norm(1.0)
    for first in (clip, optax.scale(1e-3)):
        tx = optax.chain(first, capped(0.01, optax.sgd(0.1)))
        with pytest.raises(ValueError, match=r"learning_rate=0\.01, but the chain applies 0\.1"):
            try_out(tx, {"w": jnp.zeros((100, 100))})


def test_every_rate_of_a_sweep_must_fit_the_cap():
    @optax.inject_hyperparams
    def tx(rate):
        return capped(0.1, optax.scale_by_learning_rate(rate))

    batches, rates = problems.softmax_batches(len(SCHEDULE)), {"rate": [0.05, 0.1, 0.5]}
    arguments = problems.softmax_loss, problems.softmax_params(), tx(rate=0.1), SCHEDULE, batches
    with pytest.raises(ValueError, match=r"told learning_rate=0\.1, but the chain applies 0\.5"):
        calls.sweep(*arguments, hyperparams=rates)


def test_a_slight_weight_decay_is_found_too():
    tx = optax.chain(optax.add_decayed_weights(1e-4), dc.compensate_delay(), optax.sgd(0.1))
    with pytest.warns(UserWarning, match="something before it changes its direction"):
        try_out(tx)


def test_the_state_that_a_run_starts_from_is_the_one_that_is_tried():
    @optax.inject_hyperparams
    def tx(told, applied):
        return capped(told, optax.scale_by_learning_rate(applied))

    made = tx(told=0.1, applied=0.1)
    state = made.init(PARAMS)
    try_out(made, opt_state=state)
    state.hyperparams["applied"] = jnp.asarray(0.5)
    with pytest.raises(ValueError, match=r"told learning_rate=0\.1, but the chain applies 0\.5"):
        try_out(made, opt_state=state)


def test_nothing_is_tried_without_a_compensation_or_a_second_time(monkeypatch):
    calls = []
    counted = optax.GradientTransformationExtraArgs(
        lambda params: calls.append("init"), lambda u, s, p=None, **kw: (u, s)
    )
    problems.run(SCHEDULE, optax.chain(counted, optax.sgd(0.1)))
    pushes = []
    monkeypatch.setattr(chain_order, "_push", lambda *args: pushes.append(args))
    try_out(optax.sgd(0.1))
    assert not pushes
    monkeypatch.undo()
    tx = GOOD["bare"](dc.compensate_delay())
    try_out(tx)
    monkeypatch.setattr(chain_order, "_push", lambda *args: pushes.append(args))
    try_out(tx)
    assert not pushes


def test_the_compiled_event_does_not_know_of_it():
    """`observe` adds no operation unless somebody observes."""
    tx, params = dc.compensate_delay(2.0), PARAMS
    update = lambda **kw: str(
        jax.make_jaxpr(lambda g, s: tx.update(g, s, params, stale_params=params, **kw))(
            params, tx.init(params)
        )
    )
    assert "callback" not in update()
    assert "callback" in update(observe=lambda arrival: jax.debug.callback(print, arrival.grads))


def test_a_loop_with_the_wrong_order_climbs():
    """A plain loop cannot know that it does; this is what the errors above are for."""
    tx = dc.remember_pulls(optax.chain(optax.sgd(0.5), dc.compensate_delay(50.0)), 2)
    params = jnp.asarray([1.0, -1.0])
    state = tx.init(params)
    for worker in (0, 1):  # gradients of |w|²/2, the second one late by a step
        updates, state = tx.update(
            jnp.asarray([1.0, -1.0]), state, params, worker=worker, measure_compensation=True
        )
        params = optax.apply_updates(params, updates)
    metrics = dc.compensation_metrics(state)
    # It is as long as the step itself and longer, and points up the hill with it.
    assert float(metrics.ratio) > 1
    np.testing.assert_array_less(np.abs([1.0, -1.0]), np.abs(params))
