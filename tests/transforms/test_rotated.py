"""Curvatures that know directions: reference runs, mutants, identities, and what is refused."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

import dcasgd_jax as dc
from transforms import rotated_oracle

CASES = oracle.cases("rotated")
VISIBLE = 1e-2  # of outputs of order 10

rotated, rows = dc.curvatures.rotated, dc.curvatures.rows
BOTH = {"rotated": rotated(16, every=2), "both sides": rotated(16, sides="both"), "rows": rows(16)}
each = pytest.mark.parametrize("curvature", BOTH.values(), ids=BOTH)


def compensate(settings, **changes):
    """`compensate_delay` of the settings of a case."""
    settings = {"lam": 1.0, "decay": 0.95, "every": 20, "max_pull": 1.0, **settings, **changes}
    curvature = rotated(
        settings["batch"], decay=settings["decay"], every=settings["every"],
        sides="input" if settings.get("side") == "left" else "both",
    )  # fmt: skip
    return dc.compensate_delay(
        settings["lam"], curvature=curvature,
        max_pull=settings["max_pull"], learning_rate=settings["eta"],
    )  # fmt: skip


def run(tx, steps, view=lambda leaf: leaf, dtype=None):
    """What each push of a case becomes."""
    arrays = lambda name: [view(jnp.asarray(step[name], dtype)) for step in steps]
    update, outputs = jax.jit(tx.update), []
    pushes = list(zip(*map(arrays, ("grad", "param", "stale")), strict=True))
    state = tx.init(pushes[0][1])
    for grad, param, stale in pushes:
        out, state = update(grad, state, param, stale_params=stale)
        outputs.append(out)
    return np.asarray(jnp.stack(outputs)), state


def expected(name):
    return np.asarray([step["out"] for step in CASES[name]["steps"]])


@pytest.mark.parametrize("name", CASES)
def test_reference_runs(name, x64):
    outputs, state = run(compensate(CASES[name]["settings"]), CASES[name]["steps"])
    np.testing.assert_allclose(outputs, expected(name), rtol=0, atol=1e-10)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.curvature.mean_square)} == {
        jnp.dtype(jnp.float64)
    }


@pytest.mark.parametrize("name", CASES)
def test_reference_runs_in_float32(name):
    outputs, _ = run(compensate(CASES[name]["settings"]), CASES[name]["steps"])
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected(name), rtol=1e-4, atol=1e-3)


def test_the_curvatures_of_the_reference_runs(x64):
    """What `diagonal` says of λ0 B S, which rules for λ0 read."""
    for case in CASES.values():
        settings = case["settings"]
        sides = "input" if settings.get("side") == "left" else "both"
        made = rotated(
            settings["batch"], decay=settings.get("decay", 0.95),
            every=settings.get("every", 20), sides=sides,
        )  # fmt: skip
        update, state = jax.jit(made.update), made.init(jnp.zeros(case["shape"]))
        for step in case["steps"]:
            grad = jnp.asarray(step["grad"])
            estimate, state = update(state, grad)
            diagonal = made.diagonal(estimate, grad, settings.get("lam", 1.0))
            assert diagonal.shape == grad.shape
            capped = jnp.minimum(diagonal, settings.get("max_pull", 1.0) / settings["eta"])
            np.testing.assert_allclose(
                np.sort(capped.ravel()), step["q_sorted"], rtol=1e-10, atol=1e-12
            )


def of_oracle(name, oracle_class):
    case = CASES[name]
    server = oracle_class(case["shape"], **case["settings"])
    arrays = lambda step: [np.asarray(step[part]) for part in ("grad", "param", "stale")]
    return np.stack([server.push(*arrays(step))[0] for step in case["steps"]])


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_is_the_reference(name):
    found = of_oracle(name, rotated_oracle.Rotated)
    np.testing.assert_allclose(found, expected(name), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mutant", rotated_oracle.MUTANTS)
def test_each_mutant_is_seen(mutant):
    wrong = rotated_oracle.MUTANTS[mutant]
    off = {name: np.abs(of_oracle(name, wrong) - expected(name)).max() for name in CASES}
    of_vectors = off.pop("vector_lam_03")
    assert min(off.values()) > VISIBLE, off
    needs_basis = ("refreshed", "other side", "turned", "outside")
    if not any(word in mutant for word in needs_basis):
        assert of_vectors > VISIBLE


@pytest.mark.parametrize("name", CASES)
def test_every_push_can_have_its_own_basis(name, x64):
    outputs, _ = run(compensate(CASES[name]["settings"], every=1), CASES[name]["steps"])
    found = of_oracle(name, rotated_oracle.RefreshedAtEveryPush)
    np.testing.assert_allclose(outputs, found, rtol=0, atol=1e-10)


def test_kernels_are_matrices_of_all_inputs(x64):
    name = "left_side_half_pull"
    case, whole = CASES[name], expected(name)
    kernel = lambda leaf: leaf.reshape(1, 2, 1, 4)
    outputs, state = run(compensate(case["settings"]), case["steps"], kernel)
    np.testing.assert_allclose(outputs.reshape(whole.shape), whole, rtol=0, atol=1e-10)
    assert state.curvature.input_basis.shape == (1, 2, 2)


def test_long_sides_of_prime_length_are_not_rotated(x64):
    case = CASES["both_sides_some_capped"]
    settings, rng = case["settings"], np.random.default_rng(0)
    pushes = [{name: rng.normal(size=(5, 3)) for name in ("grad", "param", "stale")}] * 4
    make = lambda **options: dc.compensate_delay(
        curvature=rotated(16, every=2, **options), max_pull=1.0, learning_rate=settings["eta"]
    )
    input_only = make(sides="input", max_side=3)
    outputs, state = run(input_only, pushes)
    assert state.curvature.input_basis.shape == (1, 1, 1)
    as_vector, _ = run(make(), pushes, jnp.ravel)
    np.testing.assert_allclose(outputs.reshape(4, -1), as_vector, rtol=1e-12)
    one_side, state = run(make(sides="both", max_side=3), pushes)
    assert state.curvature.output_basis.shape == (1, 3, 3)
    turned, _ = run(make(), pushes, jnp.transpose)
    np.testing.assert_allclose(one_side, turned.transpose(0, 2, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sides", ["input", "both"])
def test_blocks_of_a_long_side_are_leaves_of_their_own(sides, x64):
    """With both sides the columns' moments are of the whole leaf: one block of one is compared."""
    rng, columns = np.random.default_rng(0), 3 if sides == "input" else 1
    pushes = [{name: rng.normal(size=(6, columns)) for name in ("grad", "param", "stale")}] * 6
    make = lambda max_side: dc.compensate_delay(
        curvature=rotated(16, every=2, sides=sides, max_side=max_side),
        max_pull=1.0,
        learning_rate=0.5,
    )
    whole, state = run(make(4), pushes)
    assert state.curvature.input_basis.shape == (2, 3, 3)
    for half in (slice(0, 3), slice(3, 6)):
        alone, _ = run(make(3), pushes, lambda leaf, half=half: leaf[half])
        np.testing.assert_allclose(whole[:, half], alone, rtol=0, atol=1e-10)
    unlike, _ = run(make(6), pushes)
    assert np.abs(unlike - whole).max() > VISIBLE


def test_blocks_of_the_output_side_are_those_of_the_transpose(x64):
    rng = np.random.default_rng(1)
    pushes = [{name: rng.normal(size=(5, 6)) for name in ("grad", "param", "stale")}] * 4
    make = lambda sides: dc.compensate_delay(
        curvature=rotated(16, every=2, sides=sides, max_side=3), max_pull=1.0, learning_rate=0.5
    )
    outputs, state = run(make("both"), pushes)  # the input side has a prime length
    assert state.curvature.output_basis.shape == (2, 3, 3)
    turned, _ = run(make("input"), pushes, jnp.transpose)
    np.testing.assert_allclose(outputs, turned.transpose(0, 2, 1), rtol=0, atol=1e-10)


def primitives(jaxpr):
    """Names of all operations, those of the branches of conditions apart."""
    outside, inside = set(), set()
    for equation in jaxpr.eqns:
        inner = [p for p in jax.tree.leaves(list(equation.params.values())) if hasattr(p, "eqns")]
        inner += [p.jaxpr for p in jax.tree.leaves(list(equation.params.values()))
                  if hasattr(p, "jaxpr") and not hasattr(p, "eqns")]  # fmt: skip
        into = inside if equation.primitive.name == "cond" else outside
        outside.add(equation.primitive.name)
        for each_jaxpr in inner:
            deeper, branches = primitives(each_jaxpr)
            into |= deeper
            inside |= branches
    return outside, inside


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_basis_is_computed_where_it_is_due_also_of_many_members(depth):
    """Under `vmap` a condition of each member would compute all of them at every push."""
    tx = dc.compensate_delay(curvature=rotated(16), max_pull=1.0, learning_rate=0.5)
    init, update = tx.init, lambda g, s, p: tx.update(g, s, p, stale_params=0 * p)
    leaf = jnp.ones((2,) * depth + (4, 3))
    for _ in range(depth):
        init, update = jax.vmap(init), jax.vmap(update)
    outside, inside = primitives(jax.make_jaxpr(update)(leaf, init(leaf), leaf).jaxpr)
    assert "eigh" in inside
    assert "eigh" not in outside


@pytest.mark.parametrize("blocks", [1, 2])
def test_on_the_cpu_eigenvectors_are_computed_one_matrix_at_a_time(blocks):
    """Two programs at once, as in a sweep, would wait for ever for each other's threads."""
    tx = dc.compensate_delay(curvature=rotated(16, max_side=4), max_pull=1.0, learning_rate=0.5)
    leaf = jnp.ones((2, 4 * blocks, 3))
    update = jax.vmap(lambda g, s, p: tx.update(g, s, p, stale_params=0 * p))
    text = jax.jit(update).lower(leaf, jax.vmap(tx.init)(leaf), leaf).as_text()
    calls = [line for line in text.splitlines() if "syevd" in line]
    assert calls
    for call in calls:
        shapes = re.findall(r"tensor<((?:\d+x)+)4x4xf32>", call.partition(" : ")[2])
        assert {math.prod(map(int, shape.split("x")[:-1])) for shape in shapes} <= {1}, call


def test_members_may_be_due_at_different_pushes(x64):
    """One has begun a push later: it keeps its old basis where the other gets a new one."""
    tx = dc.compensate_delay(curvature=rotated(16, every=4), max_pull=1.0, learning_rate=0.5)
    update = jax.jit(lambda g, s: tx.update(g, s, jnp.ones((4, 3)), stale_params=jnp.zeros((4, 3))))
    update_both = jax.jit(jax.vmap(update))
    grads = jax.random.normal(jax.random.key(0), (8, 2, 4, 3))
    late = jax.tree.map(jnp.copy, tx.init(grads[0, 0]))
    _, early = update(grads[0, 0], late)
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), early, late)
    for grad in grads:
        out_early, early = update(grad[0], early)
        out_late, late = update(grad[1], late)
        out, together = update_both(grad, together)
        np.testing.assert_allclose(out, jnp.stack([out_early, out_late]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [rotated, rows])
def test_the_batch_size_may_come_with_each_push(make, x64):
    """And vary: it is the size of the push that counts, not one that was before."""
    sizes, grads, stale = (16, 3, 7), draw(0, jnp.float64), draw(1, jnp.float64)
    params = jax.tree.map(jnp.zeros_like, grads)
    settings = {"max_pull": 1.0, "learning_rate": 0.1}
    varying = dc.compensate_delay(curvature=make(), **settings)
    update, state = jax.jit(varying.update), varying.init(params)
    for push, size in enumerate(sizes):
        constant = dc.compensate_delay(curvature=make(size), **settings)
        before = state
        found, state = update(grads, before, params, stale_params=stale, batch_size=size)
        wanted, _ = constant.update(grads, before, params, stale_params=stale)
        chex.assert_trees_all_close(found, wanted, rtol=1e-12)
        if push:
            other, _ = varying.update(grads, before, params, stale_params=stale, batch_size=99)
            with pytest.raises(AssertionError):
                chex.assert_trees_all_close(other, found, atol=1e-3)


def test_a_written_batch_size_is_used_whatever_the_server_says():
    grads = {"w": jnp.ones((2, 2))}
    tx = dc.compensate_delay(curvature=rotated(4))
    update = lambda **told: tx.update(
        grads, tx.init(grads), grads, stale_params={"w": jnp.zeros((2, 2))}, **told
    )[0]
    chex.assert_trees_all_equal(update(), update(batch_size=9))


@pytest.mark.parametrize(
    ("batch_size", "error", "message"),
    [
        (None, TypeError, "rotated.* needs update.*batch_size=.*images, or tokens"),
        (0, ValueError, "batch_size must be >= 1, got 0"),
        (-3, ValueError, "batch_size must be >= 1, got -3"),
        (np.int32(0), ValueError, "batch_size must be >= 1, got 0"),
        (2.5, TypeError, "batch_size must be one integer, got 2.5"),
        (np.ones(2, int), TypeError, "batch_size must be one integer, got"),
    ],
)
def test_bad_batch_sizes_of_a_push(batch_size, error, message):
    tx, leaf = dc.compensate_delay(curvature=rotated()), jnp.ones((2, 2))
    update = lambda size: tx.update(
        leaf, tx.init(leaf), leaf, stale_params=0 * leaf, batch_size=size
    )
    with pytest.raises(error, match=message):
        update(batch_size)


def test_a_traced_batch_size_of_another_shape_is_refused():
    tx, leaf = dc.compensate_delay(curvature=rows()), jnp.ones((2, 2))
    update = jax.jit(
        lambda size: tx.update(leaf, tx.init(leaf), leaf, stale_params=0 * leaf, batch_size=size)
    )
    with pytest.raises(TypeError, match="batch_size must be one integer"):
        update(jnp.ones(3, jnp.int32))


def test_the_cap_follows_the_rate(x64):
    case = CASES["both_sides_some_capped"]
    rate = lambda count: 0.05 / (1 + count)
    tx = compensate(case["settings"], eta=rate)
    outputs, _ = run(tx, case["steps"])
    for k in (1, 8):
        fixed, _ = run(compensate(case["settings"], eta=0.05 / (1 + k)), case["steps"])
        np.testing.assert_allclose(outputs[k], fixed[k], rtol=1e-12)


def literal_rows(grad, moved, scale, cap):
    """The rule of `rows`, output by output."""
    term = np.zeros_like(moved)
    for j in range(grad.shape[1]):
        g, square = grad[:, j], grad[:, j] @ grad[:, j]
        term[:, j] = min(scale * square, cap) * g * (g @ moved[:, j]) / square
    return term


@pytest.mark.parametrize("shape", [(4, 3), (2, 2, 1, 3), (5,), ()])
@pytest.mark.parametrize("cap", [np.inf, 30.0])
def test_rows(shape, cap, x64):
    rng = np.random.default_rng(1)
    grad, param, stale = (rng.normal(size=shape) for _ in range(3))
    tx = dc.compensate_delay(0.5, curvature=rows(16), max_pull=cap / 10, learning_rate=0.1)
    out, _ = tx.update(*map(jnp.asarray, (grad,)), tx.init(param), param, stale_params=stale)
    matrix = lambda leaf: np.reshape(leaf, (-1, shape[-1]) if len(shape) > 1 else (1, -1))
    term = literal_rows(matrix(grad), matrix(param - stale), 8.0, cap)
    np.testing.assert_allclose(out, grad + term.reshape(shape), rtol=1e-12)
    diagonal = tx_diagonal(rows(16), jnp.asarray(grad))
    by_output = np.square(matrix(grad)).sum(axis=0)
    np.testing.assert_allclose(matrix(diagonal).sum(axis=0), 16 * by_output, rtol=1e-12)


def tx_diagonal(curvature, grad):
    estimate, _ = curvature.update(curvature.init(grad), grad)
    return curvature.diagonal(estimate, grad, 1.0)


def draw(seed, dtype=jnp.float32):
    """A matrix, a kernel, a vector, a scalar, an empty leaf, one side of 1, and nothing."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (4, 3), "k": (2, 2, 2, 3), "b": (3,), "s": (), "e": (0, 3), "c": (4, 1)}
    leaves = {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
    return {**leaves, "none": None}


def inner():
    return optax.sgd(0.1, momentum=0.9)


@each
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("nothing", ["lambda0", "max_pull", "staleness"])
def test_nothing_to_compensate_is_the_inner_optimizer_bit_for_bit(curvature, dtype, nothing):
    lambda0, max_pull = float(nothing != "lambda0"), float(nothing != "max_pull")
    tx = optax.chain(
        dc.compensate_delay(lambda0, curvature=curvature, max_pull=max_pull, learning_rate=0.1),
        inner(),
    )
    params = draw(0, dtype)
    state, plain_state = tx.init(params), inner().init(params)
    for step in range(1, 4):
        grads = {**draw(step, dtype), "b": -jnp.zeros(3, dtype)}
        stale = params if nothing == "staleness" else draw(-step % 97, dtype)
        updates, state = tx.update(grads, state, params, stale_params=stale)
        plain, plain_state = inner().update(grads, plain_state, params)
        chex.assert_trees_all_equal(updates, plain)
        chex.assert_trees_all_equal_dtypes(updates, grads)
        jax.tree.map(lambda u, p: np.testing.assert_array_equal(np.signbit(u), np.signbit(p)),
                     updates, plain)  # fmt: skip


@each
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bits_are_computed_in_float32(curvature, dtype):
    tx = dc.compensate_delay(0.1, curvature=curvature, max_pull=1.0, learning_rate=0.1)
    narrow, wide = draw(0, dtype), jax.tree.map(lambda p: p.astype(jnp.float32), draw(0, dtype))
    state, wide_state = tx.init(narrow), tx.init(wide)
    for step in (1, 2):
        grads, stale = draw(step, dtype), draw(step + 10, dtype)
        widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (grads, stale))
        out, state = tx.update(grads, state, narrow, stale_params=stale)
        exact, wide_state = tx.update(widened[0], wide_state, wide, stale_params=widened[1])
        chex.assert_trees_all_equal(out, jax.tree.map(lambda e: e.astype(dtype), exact))
    chex.assert_trees_all_equal(state, wide_state)
    assert jnp.dtype(dtype) not in {leaf.dtype for leaf in jax.tree.leaves(state.curvature)}


@each
def test_missing_gradients_leave_their_state(curvature):
    tx = dc.compensate_delay(curvature=curvature, max_pull=1.0, learning_rate=0.1)
    params, stale = draw(0), draw(9)
    _, state = tx.update(draw(1), tx.init(params), params, stale_params=stale)
    some = {**draw(2), "w": None, "b": None}
    updates, after = tx.update(some, state, params, stale_params=stale)
    assert updates["w"] is updates["b"] is None
    whole, _ = tx.update(draw(2), state, params, stale_params=stale)
    chex.assert_trees_all_equal(updates["k"], whole["k"])
    if after.curvature is not None:
        of = lambda state, name: [tree[name] for tree in state.curvature if tree is not None]
        chex.assert_trees_all_equal(of(after, "w"), of(state, "w"))
        assert int(after.curvature.num_updates["k"]) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("first", [True, False])
def test_a_gradient_that_is_not_finite_never_enters(bad, first):
    """Nor one whose square is not."""
    tx = dc.compensate_delay(curvature=BOTH["both sides"], max_pull=1.0, learning_rate=0.1)
    params, stale = draw(0), draw(9)
    state = tx.init(params)
    if not first:
        _, state = tx.update(draw(1), state, params, stale_params=stale)
    grads = draw(2)
    grads["w"] = grads["w"].at[1, 1].set(bad)
    grads["b"] = grads["b"].at[0].set(bad)
    _, after = tx.update(grads, state, params, stale_params=stale)
    for name in ("w", "b"):
        kept = [[tree[name] for tree in s.curvature] for s in (state, after)]
        chex.assert_trees_all_equal(*kept)
    assert int(after.curvature.num_updates["k"]) == 1 + (not first)
    updates, _ = tx.update(draw(3), after, params, stale_params=stale)
    chex.assert_tree_all_finite(updates)


@each
def test_lambda0_may_differ_by_leaf_and_by_update(curvature):
    params, stale, grads = ({k: draw(s)[k] for k in ("w", "b")} for s in (0, 9, 1))
    per_leaf = dc.strengths.StrengthRule(
        lambda params: None, lambda state, situation: ({"w": 2.0, "b": 0.5}, None)
    )
    out = lambda lambda0: one_update(lambda0, curvature, grads, params, stale)
    found = out(per_leaf)
    chex.assert_trees_all_close(found["w"], out(2.0)["w"], rtol=1e-6)
    chex.assert_trees_all_close(found["b"], out(0.5)["b"], rtol=1e-6)
    chex.assert_trees_all_close(out(lambda count: 2.0 + count), out(2.0), rtol=1e-6)


def one_update(lambda0, curvature, grads, params, stale, **settings):
    tx = dc.compensate_delay(lambda0, curvature=curvature, **settings)
    return tx.update(grads, tx.init(params), params, stale_params=stale)[0]


@each
def test_rules_for_lambda0(curvature, x64):
    """They read the basis in which the curvature acts."""
    params, stale, grads = (draw(seed, jnp.float64) for seed in (0, 9, 1))
    out = one_update(dc.strengths.ratio(0.5, decay=0.0), curvature, grads, params, stale)
    added = jax.tree.map(jnp.subtract, out, grads)
    np.testing.assert_allclose(
        optax.tree.norm(added), 0.5 * optax.tree.norm(grads), rtol=1e-6
    )  # sums are float32
    # Of a loss whose Hessian is the identity: least squares along the term.
    at_one = jax.tree.map(jnp.subtract, one_update(1.0, curvature, grads, params, stale), grads)
    moved = jax.tree.map(jnp.subtract, params, stale)
    wanted = optax.tree.vdot(moved, at_one) / optax.tree.vdot(at_one, at_one)
    rule = dc.strengths.least_squares(decay=0.0)
    tx = dc.compensate_delay(rule, curvature=curvature)
    out, _ = tx.update(
        grads, tx.init(params), params, stale_params=stale, hessian_vector_product=lambda t: t
    )
    added = jax.tree.map(jnp.subtract, out, grads)
    chex.assert_trees_all_close(added, jax.tree.map(lambda t: wanted * t, at_one), rtol=1e-5)
    # Half of the directions, of `rows` at most one in each column.
    rule, share = dc.strengths.capped_share(0.1, gain=2.0), []
    tx = dc.compensate_delay(rule, curvature=curvature, max_pull=1.0, learning_rate=0.1)

    @jax.jit
    def update(grads, state):
        _, state = tx.update(grads, state, params, stale_params=stale)
        estimate, _ = curvature.update(state.curvature, grads)
        return state, curvature.diagonal(estimate, grads, jnp.exp(state.strength.log_lambda0))

    state = tx.init(params)
    for step in range(40):
        state, diagonal = update(draw(step + 1, jnp.float64), state)
        leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(diagonal)]
        share.append(np.mean(np.concatenate(leaves) >= 10.0))
    np.testing.assert_allclose(np.mean(share[10:]), 0.1, atol=0.04)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rotated(0), ValueError, "batch_size must be an integer >= 1, got 0"),
        (lambda: rotated(-4), ValueError, "batch_size must be an integer >= 1, got -4"),
        (lambda: rotated(16.5), TypeError, "batch_size must be an integer >= 1, got 16.5"),
        (lambda: rotated(jnp.ones(2, int)), TypeError, "batch_size must be an integer >= 1"),
        (lambda: rows(0), ValueError, "batch_size must be an integer >= 1, got 0"),
        (lambda: rotated(16, decay=1.0), ValueError, r"decay must lie in \[0, 1\), got 1.0"),
        (lambda: rotated(16, every=0), ValueError, "every must be an integer >= 1, got 0"),
        (lambda: rotated(16, max_side=0), ValueError, "max_side must be an integer >= 1"),
        (lambda: rotated(16, sides="left"), ValueError, '"input" or "both", got \'left\''),
        (lambda: rotated(16, sides=["both"]), ValueError, '"input" or "both", got'),
        (lambda: dc.compensate_delay(curvature=rotated), TypeError, "itself: call it"),
    ],
)
def test_bad_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_leaf_whose_bases_no_memory_holds_is_named():
    shapes = {"small": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
    shapes["embedding"] = jax.ShapeDtypeStruct((1 << 20, 64), jnp.float32)
    tx = dc.compensate_delay(curvature=rotated(16, max_side=1 << 20))
    with pytest.raises(ValueError, match=r"8.19e\+03 GiB.*embedding.*1048576, 64.*max_side"):
        jax.eval_shape(tx.init, shapes)
    small = dc.compensate_delay(curvature=rotated(16, max_side=64))
    state = jax.eval_shape(small.init, shapes)
    assert state.curvature.input_basis["embedding"].shape == (1 << 14, 64, 64)


def test_they_are_written_as_they_were_made():
    assert repr(rows(8)) == "rows(8)"
    assert repr(rotated(8, sides="both")) == (
        "rotated(8, decay=0.95, every=50, sides='both', max_side=1024)"
    )
