"""What the other curvatures, rules and rivals cost, against the paper's method."""

import functools

import engines
import optax
import server_step
from timing import Row, alternate

import dcasgd_jax as dc
from dcasgd_jax import sim


def elementwise_methods(num_workers: int) -> dict[str, optax.GradientTransformationExtraArgs]:
    """Methods whose step is a few passes over the parameters."""
    make = functools.partial(dc.dcasgd, 0.1, num_workers=num_workers)
    return {
        "constant strength": make(ms_decay=None),
        "bias correction": make(bias_correction=True),
        "cap": make(max_pull=1.0),
        'curvature "abs"': make(curvature="abs", ms_decay=None),
        "ratio": make(lambda0=dc.ratio(0.5)),
        "ratio, capped": make(lambda0=dc.ratio(0.5), max_pull=1.0),
        "capped share": make(lambda0=dc.capped_share(0.1), max_pull=1.0),
        "Multi-ASGD": optax.chain(
            dc.rivals.per_worker_momentum(0.9, num_workers), optax.scale_by_learning_rate(0.1)
        ),
        "staleness-aware rate": optax.chain(
            optax.scale_by_learning_rate(0.1),
            dc.rivals.scale_by_staleness(dc.rivals.inverse_staleness),
        ),
    }


def step_rows(shapes: dict | None = None, num_workers: int = 4, repeats: int = 9) -> list[Row]:
    """Update + apply, donated, of each elementwise method against `dc.dcasgd`."""
    shapes = server_step.resnet50_shapes() if shapes is None else shapes
    rows = []
    for name, tx in elementwise_methods(num_workers).items():
        paper, _ = server_step.make_step(
            dc.dcasgd(0.1, num_workers=num_workers), shapes, num_workers
        )
        ours, _ = server_step.make_step(tx, shapes, num_workers, staleness=3)
        seconds, paper_seconds = alternate(ours, paper, repeats=repeats)
        size = server_step.num_params(shapes) / 1e6
        rows.append(
            Row(
                f"{name}: update + apply, {size:.1f}M float32, vs DC-ASGD-a",
                f"{seconds * 1e3:.1f} ms",
                f"{paper_seconds * 1e3:.1f} ms",
                seconds / paper_seconds,
                "<= 1.3",
            )
        )
    return rows


def hessian_rows(num_events: int = 4096, batch: int = 32, repeats: int = 5) -> list[Row]:
    """A whole `simulate` with an exact Hessian-vector product per event against one without."""
    params, batches = engines.mlp_problem(num_events, batch)
    schedule = sim.make_schedule(sim.GammaTime(), engines.WORKERS, num_events, seed=0)
    plain, exact = (
        optax.chain(compensate, optax.sgd(0.05))
        for compensate in (optax.identity(), dc.compensate_delay(0.5, curvature="hvp"))
    )

    def run(tx):
        return lambda: sim.simulate(engines.mlp_loss, params, tx, schedule, batches).losses.sum()

    seconds, plain_seconds = alternate(run(exact), run(plain), repeats=repeats)
    rate = lambda seconds: f"{num_events / seconds:,.0f}/s"
    return [
        Row(
            'curvature "hvp", 8 workers, 64-128-10 MLP: time of an event vs plain ASGD',
            rate(seconds),
            rate(plain_seconds),
            seconds / plain_seconds,
            "<= 2.2",
        )
    ]
