"""A picture: stale gradients in a steep and a flat direction that are no axes; a program."""

import argparse
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dcasgd_jax as dc
from dcasgd_jax import extras, sim
from dcasgd_jax.commands import command_line, figures, records
from dcasgd_jax.plots import axes

NUM_WORKERS, NUM_PUSHES, BATCH_SIZE, RATE = 16, 480, 16, 0.5
CURVATURES = np.array([1.0, 0.02])  # steep and flat
TURN = np.array([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2)  # rows: the two directions
START = np.array([[4.0], [0.0]])  # as far in the one as in the other
METHODS = {
    "no compensation": optax.sgd(RATE),
    "adaptive(), capped": optax.chain(
        dc.compensate_delay(4.0, max_pull=1.0, learning_rate=RATE), optax.sgd(RATE)
    ),
    "rotated(), capped": optax.chain(
        dc.compensate_delay(
            1.0, curvature=dc.curvatures.rotated(), max_pull=1.0, learning_rate=RATE
        ),
        optax.sgd(RATE),
    ),
}


def loss_fn(weights: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Least squares, whose Hessian is the covariance of the inputs."""
    inputs, noise = batch
    return 0.5 * jnp.mean(((inputs @ weights)[:, 0] - noise) ** 2)


def distances(tx: optax.GradientTransformation, num_workers: int) -> np.ndarray:
    """|w| in the two directions after each push, [pushes + 1, 2]; the optimum is 0."""
    generator = np.random.default_rng(0)
    along = generator.normal(size=(NUM_PUSHES, BATCH_SIZE, 2)) * np.sqrt(CURVATURES)
    batches = (
        (along @ TURN).astype(np.float32),
        generator.normal(size=along.shape[:2]).astype(np.float32),
    )
    if num_workers > 1:
        law = sim.GammaTime()
        schedule = sim.make_schedule(law, num_workers, num_updates=NUM_PUSHES, seed=0)
    else:
        schedule = sim.Schedule.from_staleness(np.zeros(NUM_PUSHES, int))
    problem = sim.Problem(loss_fn, jnp.asarray(START, jnp.float32), eval_fn=lambda w: w[:, 0])
    recording = sim.Recording(eval_versions=range(1, NUM_PUSHES + 1))
    result = sim.simulate(problem, tx, schedule, batches, recording=recording)
    assert result.evaluations is not None
    path = np.concatenate([START.T, np.asarray(result.evaluations.values)])
    return np.abs(path @ TURN.T)


def draw(path: pathlib.Path) -> None:
    """Saves the picture: a panel for each direction."""
    from matplotlib import figure

    picture = figure.Figure(figsize=(8.0, 3.0), dpi=130, layout="constrained")
    panels = picture.subplots(1, 2, sharey=True)
    runs = {
        "one worker, nothing is stale": distances(METHODS["no compensation"], 1),
        **{f"{NUM_WORKERS} workers: {n}": distances(tx, NUM_WORKERS) for n, tx in METHODS.items()},
    }
    colours = ("#000000", "#D55E00", "#0072B2", "#009E73")
    for ax, column, title in zip(
        panels, (0, 1), ("steep direction", "flat direction"), strict=True
    ):
        for colour, (name, found) in zip(colours, runs.items(), strict=True):
            ax.plot(found[:, column], color=colour, linewidth=1.3, label=name)
        ax.set_yscale("log")
        ax.set_ylim(3e-3, 3e2)
        ax.set_title(title, fontsize=10)
        axes.finish(ax, "pushes", "" if column else "distance to the optimum")
    handles, labels = panels[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figures.save(path, picture)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the option of this program."""
    parser.description = "Draws what stale gradients do in a steep and in a flat direction."
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("two_directions.png"),
        help="the picture; default %(default)s",
    )


def run(arguments: argparse.Namespace, command: Sequence[str]) -> None:
    """Trains, and saves the picture.

    Raises:
      UsageError: If it cannot be saved, or a package is missing; before any training.
    """
    del command
    extras.require_packages("matplotlib")
    records.prepare_folder(arguments.out.parent, arguments.out.name)
    draw(arguments.out)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns the exit code."""
    return command_line.run_program("two_directions.py", add_options, run, argv)


if __name__ == "__main__":
    command_line.leave(main())
