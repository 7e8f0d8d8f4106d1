"""What one card does in ten minutes, a table and JSON: `python tests/benchmarks/accelerator.py`.

Copies and matrix products first, as the yardstick; then server steps as shares of the copy
bandwidth, and gradients per second of sequential SGD, of the scan engine, and of waves whose
members share the card. Parts that the time does not suffice for are listed as not run.
"""

import argparse
import datetime
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import optax
from flax import nnx

import dcasgd_jax as dc
from dcasgd_jax import sim
from dcasgd_jax.commands import records
from dcasgd_jax.integrations import nnx as dc_nnx
from dcasgd_jax.integrations import resnet, transformer


class Size(NamedTuple):
    """How much is measured."""

    copied: int  # numbers
    matrix: int  # side
    steps: dict[str, tuple[int, int, int]]  # name -> leaves of a shape
    blocks: int  # of a stage of the residual network; 3 is ResNet-20
    widths: tuple[int, ...]
    batch: int
    tokens: tuple[int, int, int]  # sequences of a batch, their length, width of the transformer
    workers: tuple[int, ...]
    members: tuple[int, ...]
    events: int
    large: tuple[int, ...] | None  # ImageNet: workers, batch, pixels
    repeats: int


FULL = Size(
    copied=1 << 28, matrix=8192,
    steps={"25.6M": (25, 1000, 1024), "500M": (8, 61036, 1024)},
    blocks=3, widths=(16, 32, 64), batch=128, tokens=(32, 128, 256),
    workers=(1, 8, 32, 4, 16), members=(8, 64, 1, 16, 32, 4, 2), events=64,
    large=(16, 32, 224), repeats=3,
)  # fmt: skip
SMALL = Size(
    copied=1 << 10, matrix=16, steps={"toy": (2, 6, 4)}, blocks=1, widths=(2, 4), batch=2,
    tokens=(2, 4, 8), workers=(1, 2), members=(1, 2), events=4, large=None, repeats=1,
)  # fmt: skip

ROTATED_UP_TO = 10**8  # numbers; beyond, its matrices take longer to compile than a call may


class Row(NamedTuple):
    """One number."""

    part: str
    what: str
    value: float
    unit: str
    compile_seconds: float | None = None


def measure(size: Size, minutes: float) -> Iterator[Row]:
    """All rows; what would begin after `minutes` is left out, and a row says so."""
    end = time.monotonic() + 60 * minutes
    bandwidth = None
    for part, run in _parts(size):
        if time.monotonic() > end:
            yield Row(part, "not run: no time left", float("nan"), "")
            continue
        try:
            for row in run(bandwidth):
                bandwidth = row.value if row.what == "copy" else bandwidth
                yield row
        except jax.errors.JaxRuntimeError as error:  # what does not fit is a result as well
            yield Row(part, str(error).splitlines()[0][:200], float("nan"), "failed")


def _parts(size: Size) -> Iterator[tuple[str, Callable[[float | None], Iterator[Row]]]]:
    yield "card", lambda _: _card(size)
    for name, shape in size.steps.items():
        yield f"step {name}", lambda copy, n=name, s=shape: _steps(size, n, s, copy)
    for workers in size.workers:
        for make in (residual, words):
            part = f"{make.__name__} M={workers}"
            yield part, lambda _, p=part, m=make, w=workers: _engines(size, p, m, w)
    for members in size.members:
        for make in (residual, words):
            part = f"{make.__name__}, sweep of {members}"
            yield part, lambda _, p=part, m=make, n=members: _sweep(size, p, m, n)
    if size.large is not None:
        yield "ImageNet", lambda _: _imagenet(*size.large)


def _card(size: Size) -> Iterator[Row]:
    """Copies and matrix products."""
    plus_one = jax.jit(lambda x: x + 1, donate_argnums=0)
    carry = [jnp.zeros(size.copied)]

    def copy():
        carry[:] = [jax.block_until_ready(plus_one(carry[0]))]

    first, seconds = timed(copy, size.repeats)
    yield Row("card", "copy", 8 * size.copied / seconds / 1e9, "GB/s", first)
    for dtype in ("float32", "bfloat16"):
        x = jnp.ones((size.matrix, size.matrix), dtype)
        product = jax.jit(lambda x: x @ x)
        first, seconds = timed(lambda: jax.block_until_ready(product(x)), size.repeats)  # noqa: B023
        yield Row("card", f"matmul {dtype}", 2e-12 * size.matrix**3 / seconds, "TFLOP/s", first)


def _steps(size: Size, name: str, shape, bandwidth: float | None) -> Iterator[Row]:
    """Updates, donated, against the bytes that they cannot do without."""
    leaves, *matrix = shape
    count = leaves * matrix[0] * matrix[1]
    tree = lambda value: {str(i): jnp.full(matrix, value, jnp.float32) for i in range(leaves)}
    # How often each number is read or written: params, gradient, stale params, moments.
    floors = {
        "DC-ASGD-c": (optax.chain(dc.compensate_delay(0.1, curvature=_squared()), _sgd()), 4),
        "DC-ASGD-a": (optax.chain(dc.compensate_delay(2.0), _sgd()), 6),
        "Adam": (optax.adam(0.1), 7),
        "rotated": (optax.chain(_rotated(), _sgd()), 6),
    }
    for method, (tx, passes) in floors.items():
        if method == "rotated" and count > ROTATED_UP_TO:
            continue
        tx = optax.with_extra_args_support(tx)

        def step(params, state, grads, stale, tx=tx):
            updates, state = tx.update(grads, state, params, stale_params=stale, batch_size=128)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(step, donate_argnums=(0, 1))
        params, grads, stale = tree(0.1), tree(0.01), tree(0.09)
        carry = [params, jax.jit(tx.init)(params)]

        def run(carry=carry, compiled=compiled, grads=grads, stale=stale):
            carry[:] = jax.block_until_ready(compiled(*carry, grads, stale))

        first, seconds = timed(run, size.repeats)
        yield Row(f"step {name}", method, 1e3 * seconds, "ms", first)
        share = 4 * passes * count / seconds / 1e9 / (bandwidth or float("nan"))
        yield Row(f"step {name}", f"{method}, {passes} passes", share, "of copy bandwidth")


def residual(size: Size) -> tuple[sim.Problem, Callable]:
    """A residual network for images of 32 x 32 pixels, and random batches made on the card."""
    model = resnet.CifarResNet(size.blocks, widths=size.widths, rngs=nnx.Rngs(0))
    return _of_images(model, size.batch, pixels=32, classes=10)


def _of_images(model: Any, batch: int, pixels: int, classes: int) -> tuple[sim.Problem, Callable]:
    """A network of images as a problem, and random batches."""

    def loss(model, batch, key):
        del key
        return _cross_entropy(model(batch["images"]), batch["labels"])

    def batch_fn(event, worker):
        key = jax.random.fold_in(jax.random.key(worker), event)
        return {
            "images": jax.random.normal(key, (batch, pixels, pixels, 3)),
            "labels": jax.random.randint(key, (batch,), 0, classes),
        }

    return dc_nnx.split_model(model, loss), batch_fn


def words(size: Size) -> tuple[sim.Problem, Callable]:
    """A transformer of four blocks on random tokens."""
    sequences, length, width = size.tokens
    model = transformer.Transformer(
        vocabulary=256, context=length, width=width, num_blocks=4, num_heads=2, rngs=nnx.Rngs(0)
    )

    def loss(model, tokens, key):
        del key
        return _cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])

    def batch_fn(event, worker):
        key = jax.random.fold_in(jax.random.key(worker), event)
        return jax.random.randint(key, (sequences, length + 1), 0, 256)

    return dc_nnx.split_model(model, loss), batch_fn


def _engines(size: Size, part: str, make: Callable, workers: int) -> Iterator[Row]:
    """Gradients per second of sequential SGD, and of DC-ASGD-a one by one and in waves."""
    problem, batch_fn = make(size)
    tx = optax.chain(dc.compensate_delay(2.0), _sgd())
    mesh = jax.make_mesh(
        (1,), ("workers",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1]
    )
    schedule = sim.make_schedule(sim.RoundRobin(), workers, size.events, seed=0)
    cases = {"DC-ASGD-a, scan": (tx, sim.ScanEngine())}
    if workers == 1:
        cases = {"sequential SGD, scan": (_sgd(), sim.ScanEngine())}
    else:
        cases["DC-ASGD-a, waves"] = tx, sim.LanesEngine(mesh)
    for what, (tx, engine) in cases.items():
        kept: list[Any] = []

        def run(tx=tx, engine=engine, kept=kept):
            result = sim.simulate(
                problem, tx, schedule, batch_fn, key=jax.random.key(0), engine=engine
            )
            kept[:] = [jax.block_until_ready(result.state.snapshots)]

        first, seconds = timed(run, size.repeats)
        yield Row(part, what, size.events / seconds, "gradients/s", first)
        copies = _size(kept) / _size(problem.params)
        yield Row(part, f"{what}: copies of the params, of {schedule.num_slots} slots",
                  copies / schedule.num_slots, "of slots")  # fmt: skip
    yield from _peak(part)


def _sweep(size: Size, part: str, make: Callable, members: int) -> Iterator[Row]:
    """Members of a sweep, eight workers each."""
    problem, batch_fn = make(size)
    schedule = sim.make_schedule(sim.GammaTime(), 8, size.events, seed=0)
    chain = lambda learning_rate: optax.chain(dc.compensate_delay(2.0), optax.sgd(learning_rate))
    tx = optax.inject_hyperparams(chain)(learning_rate=0.1)
    keys = sim.PerMember([jax.random.key(seed) for seed in range(members)])

    def run():
        result = sim.sweep(problem, tx, schedule, batch_fn, key=keys)
        jax.block_until_ready(result.params)

    first, seconds = timed(run, size.repeats)
    yield Row(part, "DC-ASGD-a", members * size.events / seconds, "gradients/s", first)
    yield from _peak(part)


def _imagenet(workers: int, batch: int, pixels: int) -> Iterator[Row]:
    """One ResNet-50 with a snapshot for each worker: whether it fits, and its speed."""
    problem, batch_fn = _of_images(resnet.resnet50(rngs=nnx.Rngs(0)), batch, pixels, classes=1000)
    tx = optax.chain(dc.compensate_delay(2.0), _sgd())
    schedule = sim.make_schedule(sim.RoundRobin(), workers, 2 * workers, seed=0)

    def run():
        result = sim.simulate(problem, tx, schedule, batch_fn, key=jax.random.key(0))
        jax.block_until_ready(result.params)

    first, seconds = timed(run, 1)
    images = len(schedule) * batch / seconds
    what = f"ResNet-50, {workers} workers, {batch} images of {pixels} pixels"
    yield Row("ImageNet", what, images, "images/s", first)
    yield from _peak("ImageNet")


def timed(run: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Seconds that the first call takes longer than the others (compiling), and their median."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    usual = statistics.median(seconds[1:])
    return max(seconds[0] - usual, 0.0), usual


def _peak(part: str) -> Iterator[Row]:
    """Of the process so far, where the device says it."""
    memory = jax.devices()[0].memory_stats()
    if memory and "peak_bytes_in_use" in memory:
        yield Row(part, "peak memory so far", memory["peak_bytes_in_use"] / 1e9, "GB")


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _sgd() -> optax.GradientTransformation:
    return optax.sgd(0.1)


def _squared() -> dc.curvatures.Curvature:
    return dc.curvatures.squared_gradient()


def _rotated() -> optax.GradientTransformation:
    return dc.compensate_delay(
        1.0, curvature=dc.curvatures.rotated(), max_pull=1.0, learning_rate=0.1
    )


def main() -> int:
    """Prints the table, and writes it as JSON if it is told where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=pathlib.Path, help="a file for the JSON, written anew after every row"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing after them")
    parser.add_argument("--small", action="store_true", help="toy sizes, to try it out")
    arguments = parser.parse_args()
    about = {
        "date": str(datetime.date.today()), "device": jax.devices()[0].device_kind,
        "python": platform.python_version(), "jax": jax.__version__,
        "jaxlib": jaxlib.__version__, "optax": optax.__version__, "small": arguments.small,
    }  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    print("\n| part | what | value | unit | compile s |\n|---|---|---|---|---|", flush=True)
    rows = []
    for row in measure(SMALL if arguments.small else FULL, arguments.minutes):
        compiling = "" if row.compile_seconds is None else f"{row.compile_seconds:.1f}"
        print(
            f"| {row.part} | {row.what} | {row.value:.4g} | {row.unit} | {compiling} |", flush=True
        )
        rows.append(row._asdict())
        if arguments.out is not None:  # whatever comes next, this is there
            records.write_json(arguments.out, {**about, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
