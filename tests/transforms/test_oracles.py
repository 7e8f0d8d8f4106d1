"""The independent reference runs of tests/data, by the NumPy oracle and by every transformation."""

import compensations
import jax.numpy as jnp
import loops
import numpy as np
import optax
import oracle
import pytest

import dcasgd_jax as dc

# Both sides are float64 and 24 events long, |theta| < 10: rounding gives 1e-15 per event, which
# even the strongest uncapped compensation amplifies by less than 1e4.
ATOL = 1e-10

PROBLEM = oracle.Problem()
IRREGULAR = oracle.cases("dc_asgd_c")["irr4_lam0"]["order"]
ROUND_ROBIN = [event % 4 for event in range(24)]


def _collect():
    """Reference runs that are plain DC-ASGD: name -> (order, hyperparameters, trace)."""
    found = {}

    def add(file, name, case, **settings):
        order = case.get("order", ROUND_ROBIN)
        found[f"{file}:{name}"] = (order, {"lr": case["lr"], **settings}, case["theta_trace"])

    for name, case in oracle.cases("dc_asgd_c").items():
        if not name.startswith("WRONG"):
            add("dc_asgd_c", name, case, lambda0=case["lam"])
    for name, case in oracle.cases("dc_asgd_a").items():
        if not name.startswith("WRONG"):
            adaptive = {"lambda0": case["lam0"], "ms_decay": case["decay"], "eps": case["eps"]}
            adaptive["per_worker_mean_square"] = "per_worker" in name
            add("dc_asgd_a", name, case, **adaptive)
    for name, case in oracle.cases("dc_curvatures").items():
        if name in ("g2_lam64", "adaptive_lam8"):  # diverge, on purpose
            continue
        settings = {"lambda0": case["lam"], "max_pull": case["cap"]}
        if case["kind"] == "adaptive":
            settings["ms_decay"] = 0.95
        if case["kind"] == "abs":  # lambda0 |g|: the adaptive rule without memory and floor
            settings.update(ms_decay=0.0, eps=0.0)
        add("dc_curvatures", name, case, **settings)
    for name, case in oracle.cases("dc_momentum").items():
        if name.startswith(("heavy_ball", "nesterov")):
            settings = {key: case[key] for key in ("momentum", "weight_decay", "clip")}
            settings["nesterov"] = name.startswith("nesterov")
            add("dc_momentum", name, case, lambda0=case["lam"], **settings)
    for name, case in oracle.cases("constant_delay").items():
        if name.startswith("clamp"):
            add("constant_delay", name, case, lambda0=case["lam"], momentum=case["momentum"])
    return found


CASES = _collect()


def test_collected_every_reference_run():
    assert len(CASES) == 23


def chain(compensate, *, lr, momentum=0.0, nesterov=False, weight_decay=0.0, clip=None, **_):
    """The documented order, only of stages that do something."""
    stages = [compensate]
    if clip is not None:
        stages.insert(0, optax.clip_by_global_norm(clip))
    if weight_decay:
        stages.append(optax.add_decayed_weights(weight_decay))
    if momentum:
        stages.append(optax.trace(momentum, nesterov))
    return optax.chain(*stages, optax.scale_by_learning_rate(lr))


def _compensation(settings):
    names = ("lambda0", "ms_decay", "eps", "max_pull")
    rule = {name: settings[name] for name in names if name in settings}
    if settings.get("max_pull") is not None:
        rule["learning_rate"] = settings["lr"]
    return rule


@pytest.mark.parametrize("name", CASES)
def test_numpy_oracle(name):
    order, settings, expected = CASES[name]
    server = oracle.Server(PROBLEM.params, max(order) + 1, **settings)
    trace = oracle.flatten(oracle.run(server, order, PROBLEM.grad))
    np.testing.assert_allclose(trace, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", CASES)
def test_explicit_stale_params(name, x64):
    order, settings, expected = CASES[name]
    per_worker = settings.get("per_worker_mean_square", False)
    num_workers = max(order) + 1 if per_worker else None
    compensate = compensations.explicit(**_compensation(settings), num_workers=num_workers)
    told = loops.by_argument_and_worker if per_worker else loops.by_argument
    tx = chain(compensate, **settings)
    trace, _ = loops.run_workers(tx, PROBLEM.params, order, loops.softmax_grad_fn(), told)
    np.testing.assert_allclose(oracle.flatten(trace), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", CASES)
def test_per_worker(name, x64):
    order, settings, expected = CASES[name]
    compensate = compensations.per_worker(
        num_workers=max(order) + 1,
        per_worker_mean_square=settings.get("per_worker_mean_square", False),
        **_compensation(settings),
    )
    tx = chain(compensate, **settings)
    grad_fn = loops.softmax_grad_fn()
    trace, _ = loops.run_workers(tx, PROBLEM.params, order, grad_fn, loops.by_worker)
    np.testing.assert_allclose(oracle.flatten(trace), expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", CASES)
def test_dcasgd(name, x64):
    order, settings, expected = CASES[name]
    rest = {key: value for key, value in settings.items() if key not in ("lr", "clip")}
    rest["momentum"] = rest.get("momentum") or None
    tx = compensations.dcasgd(
        settings["lr"], num_workers=max(order) + 1, **{"ms_decay": None, **rest}
    )
    if settings.get("clip"):
        tx = optax.chain(optax.clip_by_global_norm(settings["clip"]), tx)
    grad_fn = loops.softmax_grad_fn()
    trace, _ = loops.run_workers(tx, PROBLEM.params, order, grad_fn, loops.by_worker)
    np.testing.assert_allclose(oracle.flatten(trace), expected, rtol=0, atol=ATOL)


CONSTANT = [
    name
    for name, (order, settings, _) in CASES.items()
    if order == [event % (max(order) + 1) for event in range(len(order))]
    and not settings.get("per_worker_mean_square")  # the age does not tell the worker
]


@pytest.mark.parametrize("name", CONSTANT)
def test_fixed_delay(name, x64):
    order, settings, expected = CASES[name]
    compensate = compensations.fixed_delay(delay=max(order), **_compensation(settings))
    tx = chain(compensate, **settings)
    grad_fn = loops.softmax_grad_fn()
    trace, _ = loops.run_workers(tx, PROBLEM.params, order, grad_fn, loops.by_age)
    np.testing.assert_allclose(oracle.flatten(trace), expected, rtol=0, atol=ATOL)


def test_fixed_delay_covers_clamped_and_sequential_runs():
    files = {name.split(":")[0] for name in CONSTANT}
    assert files == {"dc_asgd_c", "dc_asgd_a", "constant_delay"}
    assert "dc_asgd_c:sequential_M1" in CONSTANT


@pytest.mark.parametrize("name", ["fifo_lam0", "fifo_lam0_mom0.5", "fifo_lam2", "fifo_wd0.1"])
def test_delay_gradients_in_a_plain_loop(name, x64):
    case = oracle.cases("constant_delay")[name]
    settings = {key: case[key] for key in ("lr", "momentum", "weight_decay")}
    inner = chain(compensations.explicit(case["lam"]), **settings)
    tx = dc.delay_gradients(inner, delay=case["tau"])
    trace, _ = loops.run_plain(tx, PROBLEM.params, 24, loops.softmax_grad_fn())
    np.testing.assert_allclose(oracle.flatten(trace), case["theta_trace"], rtol=0, atol=ATOL)


def test_delay_gradients_is_not_a_fifo_of_zeros(x64):
    """Zero gradients during the warm-up would let the weight decay act."""
    case = oracle.cases("constant_delay")["zeros_wd0.1"]
    tx = dc.delay_gradients(chain(optax.identity(), lr=0.5, weight_decay=0.1), delay=3)
    trace, _ = loops.run_plain(tx, PROBLEM.params, 24, loops.softmax_grad_fn())
    assert np.abs(oracle.flatten(trace) - case["theta_trace"]).max() > 5e-3


def _another_order(name):
    """Chains in which only the order of the stages differs from ours."""
    compensate = compensations.per_worker(2.0, num_workers=4)
    momentum = optax.trace(0.9)
    step = optax.scale_by_learning_rate(0.2)
    return {
        "clip_after_compensation": (compensate, optax.clip_by_global_norm(0.25), momentum, step),
        "wd_inside_square": (optax.add_decayed_weights(0.01), compensate, momentum, step),
        "WRONG_compensate_after_momentum": (momentum, compensate, step),
    }[name]


@pytest.mark.parametrize(
    "name", ["clip_after_compensation", "wd_inside_square", "WRONG_compensate_after_momentum"]
)
def test_order_in_the_chain_is_semantics(name, x64):
    case = oracle.cases("dc_momentum")[name]
    tx = optax.chain(*_another_order(name))
    grad_fn = loops.softmax_grad_fn()
    trace, _ = loops.run_workers(tx, PROBLEM.params, case["order"], grad_fn, loops.by_worker)
    np.testing.assert_allclose(oracle.flatten(trace), case["theta_trace"], rtol=0, atol=ATOL)


def test_mxnet_is_a_fixed_delay_of_one(x64):
    """One previous weight, decay inside the square: a chain of ours that is not DC-ASGD."""
    case = oracle.cases("dc_momentum")["mxnet_style_wd0.01"]
    tx = optax.chain(
        optax.add_decayed_weights(0.01),
        compensations.fixed_delay(2.0, delay=1),
        optax.trace(0.9),
        optax.scale_by_learning_rate(0.2),
    )
    grad_fn = loops.softmax_grad_fn()
    trace, _ = loops.run_workers(tx, PROBLEM.params, case["order"], grad_fn, loops.by_age)
    np.testing.assert_allclose(oracle.flatten(trace), case["theta_trace"], rtol=0, atol=ATOL)


QUADRATIC = oracle.cases("quadratic_exact")


@pytest.mark.parametrize(
    ("name", "hessian", "strength", "order"),
    [
        ("quad_sequential", "H", 0.0, [0] * 24),
        ("quad_asgd_irr4", "H", 0.0, IRREGULAR),
        ("quad_diag_irr4", "H", 1.0, IRREGULAR),
        ("quad_sequential", "H", 1.0, [0] * 24),
    ],
)
def test_quadratic_with_the_diagonal_hessian_as_curvature(name, hessian, strength, order, x64):
    """q = diag(H) through a strength tree diag(H) / g²."""
    H, centres = jnp.asarray(QUADRATIC[hessian]), jnp.asarray(QUADRATIC["centres"])
    w = jnp.asarray(QUADRATIC["w0"])
    held = dict.fromkeys(order, w)
    for event, worker in enumerate(order):
        grad = H @ (held[worker] - centres[event])
        lam = strength * jnp.diag(H) / grad**2
        w = w - QUADRATIC["lr"] * dc.compensated_gradient(grad, w, held[worker], lam)
        held[worker] = w
    np.testing.assert_allclose(w, QUADRATIC["cases"][name], rtol=0, atol=ATOL)


def test_exact_curvature_makes_stale_training_sequential(x64):
    """First-order claim: on a diagonal quadratic with q = h the staleness disappears."""
    h, centres = jnp.asarray([3.0, 2.0, 1.0]), jnp.asarray(QUADRATIC["centres"])

    def train(order):
        w = jnp.asarray(QUADRATIC["w0"])
        held = dict.fromkeys(order, w)
        for event, worker in enumerate(order):
            grad = h * (held[worker] - centres[event])
            w = w - 0.2 * dc.compensated_gradient(grad, w, held[worker], h / grad**2)
            held[worker] = w
        return w

    np.testing.assert_allclose(train(IRREGULAR), train([0] * 24), rtol=0, atol=ATOL)
