"""Pulls in the metric of Muon's steps: Muon itself, a literal loop, mutants, bad input."""

import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import oracle
import pytest
from cases import assert_same
from optax import contrib

import dcasgd_jax as dc
from transforms import rotated_oracle

PROBLEM = oracle.Problem()
ORDER = oracle.cases("dc_asgd_c")["irr4_lam0"]["order"]
RATE, BETA, B2, EPS = 0.05, 0.8, 0.99, 1e-6
LONGEST = 3.4445**5
TALL, WIDE = (5, 3), (2, 4)


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def whole(divisor):
    vectors, values = np.asarray(divisor.vectors), np.asarray(divisor.values)
    return (vectors * values) @ vectors.T


# Coefficients with which Newton's and Schulz's steps converge, where Muon's own go to about 1.
EXACT = {"ns_coeffs": (1.875, -1.25, 0.375), "ns_steps": 60}


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.5, "nesterov": False},
        {"consistent_rms": 0.2},
        {"muon_weight_dimension_numbers": contrib.MuonDimensionNumbers(1, 0)},
        {"muon_weight_dimension_numbers": lambda params: contrib.MuonDimensionNumbers(-1, -2)},
    ],
)
def test_it_is_what_muon_divides_by(x64, shape, settings):
    """D times a step of Muon is the mean of gradients, which a run without any division takes."""
    plain = contrib.muon(1.0, **EXACT, **settings)
    of_muon = dc.preconditioners.muon(every=1, **settings)
    beta, nesterov = settings.get("beta", 0.95), settings.get("nesterov", True)
    params, mean = jnp.zeros(shape), 0.0
    state, divided = plain.init(params), of_muon.init(params)
    for step in range(1, 6):
        grad = draw(shape, step)
        updates, state = plain.update(grad, state, params)
        divisor, divided = of_muon.update(divided, grad)
        mean = beta * mean + (1 - beta) * grad
        of_step = mean / (1 - beta**step)
        if nesterov:
            of_step = beta * mean / (1 - beta ** (step + 1))
            of_step += (1 - beta) * grad / (1 - beta**step)
        multiplied = whole(divisor) @ updates if shape[0] <= shape[1] else updates @ whole(divisor)
        np.testing.assert_allclose(-multiplied, of_step, rtol=1e-8, atol=1e-10)


def test_the_other_leaves_are_divided_as_adam_says(x64):
    params = {"w": jnp.zeros((3, 4)), "head": jnp.zeros((4, 2)), "b": jnp.zeros(4)}
    grads = jax.tree.map(lambda leaf: draw(leaf.shape, leaf.size), params)
    numbers = {"w": contrib.MuonDimensionNumbers(), "head": None, "b": None}
    of_muon = dc.preconditioners.muon(
        eps=EPS, adam_b2=B2, muon_weight_dimension_numbers=lambda params: numbers
    )
    divisors, state = of_muon.update(of_muon.init(params), grads)
    others = {name: grads[name] for name in ("head", "b")}
    of_adam = dc.preconditioners.adam(B2, EPS)
    expected, _ = of_adam.update(of_adam.init(others), others)
    assert_same({name: divisors[name] for name in others}, expected)
    assert isinstance(divisors["w"], dc.preconditioners.MatrixDivisor)
    assert jax.tree.structure(state) == jax.tree.structure(of_muon.init(params))


def test_what_muon_cannot_make_longer_is_no_shorter(x64):
    """Muon's own steps bring a singular value of 1e-9 no nearer to 1 than by a factor of 485."""
    grad = jnp.diag(jnp.asarray([1.0, 1e-9]))
    of_muon, muon = dc.preconditioners.muon(), contrib.scale_by_muon(eps=0.0)
    divisor, _ = of_muon.update(of_muon.init(grad), grad)
    np.testing.assert_allclose(divisor.values.max() / divisor.values.min(), LONGEST)
    steps, _ = muon.update(grad, muon.init(grad))
    np.testing.assert_allclose(steps[1, 1], LONGEST * 1e-9, rtol=1e-6)


class Server(oracle.Server):
    """Steps of plain SGD, less a pull in Muon's coordinates; of W [4, 3] the columns are fewer."""

    every = 3

    def __init__(self):
        super().__init__(PROBLEM.params, 4, lr=RATE)
        self.count = 0
        self.mean = np.zeros((4, 3))
        self.mean_square = np.zeros(3)
        self.curvatures = {
            name: rotated_oracle.Rotated(leaf.shape, batch=4, eta=RATE, lam=2.0)
            for name, leaf in self.params.items()
        }

    def mean_of_step(self, grad):
        self.mean = BETA * self.mean + (1 - BETA) * grad
        ahead = BETA * self.mean / (1 - BETA ** (self.count + 1))
        return ahead + (1 - BETA) * grad / (1 - BETA**self.count)

    def lengths(self, mean):
        lengths = np.sqrt(np.sum((mean @ self.vectors) ** 2, axis=0))
        return np.maximum(lengths, np.linalg.norm(mean) / LONGEST)

    def root(self, name, grad):
        if name == "b":
            self.mean_square = B2 * self.mean_square + (1 - B2) * grad**2
            return np.diag(np.sqrt(np.sqrt(self.mean_square / (1 - B2**self.count)) + EPS))
        mean = self.mean_of_step(grad)
        if self.count <= 3 or (self.count - 1) % self.every == 0:
            self.vectors = np.linalg.eigh(mean.T @ mean)[1]
        return self.vectors @ np.diag(np.sqrt(self.lengths(mean))) @ self.vectors.T

    def direction(self, worker, name, grad):
        root = self.root(name, grad)
        seen = grad @ np.linalg.inv(root)
        at, stale = self.params[name] @ root, self.stale_params(worker)[name] @ root
        compensated, _ = self.curvatures[name].push(seen, at, stale)
        return grad + (compensated - seen) @ np.linalg.inv(root)

    def push(self, worker, grads):
        self.count += 1
        super().push(worker, grads)


class OfTheGradient(Server):
    """Divides by the size of the last gradient."""

    def mean_of_step(self, grad):
        return grad


class NoNesterov(Server):
    def mean_of_step(self, grad):
        super().mean_of_step(grad)
        return self.mean / (1 - BETA**self.count)


class NoBiasCorrection(Server):
    def mean_of_step(self, grad):
        super().mean_of_step(grad)
        return BETA * self.mean + (1 - BETA) * grad


class Squared(Server):
    """Takes M'M for its root."""

    def lengths(self, mean):
        return super().lengths(mean) ** 2


class OldLengths(Server):
    """Knows the lengths only of when the vectors were computed."""

    def lengths(self, mean):
        if self.count <= 3 or (self.count - 1) % self.every == 0:
            self.kept = super().lengths(mean)
        return self.kept


MUTANTS = (OfTheGradient, NoNesterov, NoBiasCorrection, Squared, OldLengths)


def train_oracle(server_class):
    return oracle.flatten(oracle.run(server_class(), ORDER, PROBLEM.grad))


CURVATURE = dc.curvatures.rotated(4, every=20, sides="both")


def make(
    inner=None,
    lambda0=2.0,
    every=Server.every,
    curvature=CURVATURE,
    consistent_rms=None,
    **settings,
):
    of_muon = dc.preconditioners.muon(
        BETA, EPS, adam_b2=B2, every=every, consistent_rms=consistent_rms
    )
    return dc.compensate_updates(
        inner or optax.sgd(RATE),
        lambda0,
        **{"learning_rate": RATE, **settings},
        curvature=curvature,
        preconditioner=of_muon,
    )


def train(tx, grad_fn=None, params=PROBLEM.params):
    trace, _ = loops.run_workers(
        dc.remember_pulls(tx, 4), params, ORDER, grad_fn or loops.softmax_grad_fn(), loops.by_worker
    )
    return trace


def test_follows_the_literal_loop(x64):
    found = oracle.flatten(train(make()))
    np.testing.assert_allclose(found, train_oracle(Server), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_known_wrong_one_would_be_noticed(mutant):
    assert np.abs(train_oracle(mutant) - train_oracle(Server)).max() > 1e-3


def test_a_matrix_and_its_transpose_are_the_same(x64):
    of_rows = loops.softmax_grad_fn()
    turn = lambda tree: {**tree, "W": tree["W"].T}
    tx = make(consistent_rms=0.5)  # else steps depend on which side is the input
    turned = train(tx, lambda params, event: turn(of_rows(turn(params), event)),
                   turn(PROBLEM.params))  # fmt: skip
    for there, here in zip(turned, train(tx), strict=True):
        assert_same(turn(there), here, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("nothing", [{"lambda0": 0.0}, {"max_pull": 0.0}])
def test_without_a_pull_it_is_muon_bit_for_bit(nothing, dtype):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PROBLEM.params)
    grad_fn = lambda params, event: jax.tree.map(lambda p: jnp.sin(p + event), params)
    muon = optax.with_extra_args_support(contrib.muon(RATE))
    found = train(make(muon, **nothing), grad_fn, params)
    assert_same(found[-1], train(muon, grad_fn, params)[-1])


def test_pulls_back_in_full_where_the_curvature_is_large(x64):
    """The weights end where the worker had them, plus Muon's step."""
    muon = contrib.muon(RATE)
    tx = make(muon, lambda0=1e12, curvature=dc.curvatures.absolute())
    params, stale = {"w": draw(TALL, 0)}, {"w": draw(TALL, 1)}
    state, plain_state = tx.init(params), muon.init(params)
    for step in range(4):
        grads = {"w": draw(TALL, 2 + step)}
        steps, plain_state = muon.update(grads, plain_state, params)
        updates, state = tx.update(grads, state, params, stale_params=stale)
        assert_same(optax.apply_updates(params, updates), optax.apply_updates(stale, steps),
                    rtol=1e-6)  # fmt: skip


def test_where_nothing_has_moved_nothing_is_added():
    tx, muon = make(contrib.muon(RATE), lambda0=1e6), contrib.muon(RATE)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PROBLEM.params)
    grads = jax.tree.map(jnp.sin, params)
    found, _ = jax.jit(tx.update)(grads, tx.init(params), params, stale_params=params)
    assert_same(found, jax.jit(muon.update)(grads, muon.init(params), params)[0])


def test_a_leaf_without_a_usable_gradient_keeps_its_state():
    of_muon = dc.preconditioners.muon()
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3)), "c": None, "d": jnp.ones(2)}
    state = of_muon.update(of_muon.init(params), jax.tree.map(lambda p: p * 0.5, params))[1]
    nan = {**params, "a": jnp.full((2, 3), jnp.inf), "b": None, "d": None}
    divisors, after = of_muon.update(state, nan)
    assert_same(after, state)
    assert divisors["b"] is None
    assert np.isfinite(whole(divisors["a"])).all()
    unseen, _ = of_muon.update(of_muon.init(params), nan)
    np.testing.assert_array_equal(whole(unseen["a"]), 0)
    assert_same(of_muon.update(of_muon.init({}), {})[1], of_muon.init({}))


def test_one_update_of_several_runs_is_that_of_each():
    tx = make(every=2)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PROBLEM.params)

    def run(seed):
        state, at = tx.init(params), params
        for step in range(5):
            grads = jax.tree.map(lambda p, s=step: jnp.sin(seed + s + 9 * p), params)
            updates, state = tx.update(grads, state, at, stale_params=params)
            at = optax.apply_updates(at, updates)
        return at

    together = jax.vmap(run)(jnp.arange(2.0))
    each = jax.tree.map(lambda *leaves: jnp.stack(leaves), run(0.0), run(1.0))
    assert_same(together, each, rtol=1e-4, atol=1e-5)


def test_bad_settings():
    of_muon = dc.preconditioners.muon
    for settings, message in (
        ({"beta": 1.0}, "beta must lie"),
        ({"adam_b2": -0.1}, "adam_b2 must lie"),
        ({"eps": -1.0}, "eps must be"),
        ({"consistent_rms": 0.0}, "consistent_rms must be"),
        ({"every": 0}, "every must be"),
        ({"adam_rate_ratio": 0.0}, "adam_rate_ratio must be"),
    ):
        with pytest.raises(ValueError, match=message):
            of_muon(**settings)
    numbers = contrib.MuonDimensionNumbers()
    with pytest.raises(ValueError, match=r"names a leaf of shape \[3\]"):
        of_muon(muon_weight_dimension_numbers={"b": numbers}).init({"b": jnp.ones(3)})
    with pytest.raises(TypeError, match="one of its leaves is True"):
        of_muon(muon_weight_dimension_numbers={"w": True}).init({"w": jnp.ones((2, 2))})


def test_what_is_known_of_coordinates_only_is_refused():
    tx = dc.compensate_updates(
        optax.sgd(0.1), learning_rate=0.1, curvature=dc.curvatures.fisher(),
        preconditioner=dc.preconditioners.muon(),
    )  # fmt: skip
    ones = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"coordinates of muon\(.*needs no fisher_diagonal="):
        tx.update(ones, tx.init(ones), ones, stale_params=ones, fisher_diagonal=ones)


def test_a_divisor_of_another_size_is_named():
    made = dc.preconditioners.MatrixDivisor(jnp.ones(3), jnp.eye(3))
    wrong = dc.preconditioners.Preconditioner("mine", lambda _: None, lambda s, g: (made, s))
    tx = dc.compensate_updates(optax.sgd(0.1), learning_rate=0.1, preconditioner=wrong)
    ones = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"what mine divides by has vectors of shape \(3, 3\)"):
        tx.update(ones, tx.init(ones), ones, stale_params=ones)


def test_a_rate_of_its_own_for_the_leaves_that_adam_steps():
    """The bias is pulled as by Adam alone, in its Nesterov form, that is told its own rate."""
    of_muon, of_adam = 0.02, 0.0005
    adam = dict(curvature=dc.curvatures.rotated(16), learning_rate=of_adam, max_pull=1.0)
    alone = dc.compensate_updates(
        optax.nadam(of_adam), 4.0, preconditioner=dc.preconditioners.adam(), **adam
    )
    both = dc.compensate_updates(
        contrib.muon(of_muon, adam_learning_rate=of_adam, weight_decay=0.0), 4.0,
        preconditioner=dc.preconditioners.muon(adam_rate_ratio=of_adam / of_muon),
        **adam | {"learning_rate": of_muon},
    )  # fmt: skip
    generator = np.random.default_rng(0)
    draw = lambda: {
        "w": jnp.asarray(generator.normal(size=(4, 3))),
        "b": jnp.asarray(generator.normal(size=3)),
    }
    params, stale = draw(), draw()
    state, alone_state = both.init(params), alone.init(params["b"])
    for _ in range(4):
        grads = draw()
        updates, state = both.update(grads, state, params, stale_params=stale)
        expected, alone_state = alone.update(
            grads["b"], alone_state, params["b"], stale_params=stale["b"]
        )
        np.testing.assert_allclose(updates["b"], expected, rtol=2e-5)


def test_an_empty_leaf_is_left_alone():
    tx = dc.compensate_updates(
        optax.sgd(0.1), learning_rate=0.1, preconditioner=dc.preconditioners.muon()
    )
    params = {"w": jnp.ones((2, 3)), "empty": jnp.ones((0, 3))}
    updates, _ = tx.update(params, tx.init(params), params, stale_params=params)
    np.testing.assert_allclose(updates["w"], -0.1)
