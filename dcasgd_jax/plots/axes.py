"""Axes as every picture here has them: where to draw, labels, colours."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dcasgd_jax import extras

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {  # Okabe and Ito's, which colour-blind readers can tell apart
    "sgd": "#000000",
    "ssgd": "#999999",
    "asgd": "#D55E00",
    "dcasgd-c": "#E69F00",
    "dcasgd-a": "#56B4E9",
    "dcasgd-capped": "#0072B2",
    "rotated": "#009E73",
}
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
_MORE_COLOURS = ("#CC79A7",)  # Okabe and Ito's without a method


def given_or_new(ax: Axes | None) -> Axes:
    """`ax`, or the axes of a new figure."""
    if ax is not None:
        return ax
    extras.require_packages("matplotlib")
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def finish(ax: Axes, x_label: str, y_label: str) -> None:
    """Labels, a faint grid behind what is drawn, and no frame."""
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    ax.grid(alpha=0.25, which="major")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def whole_numbers(axis) -> None:
    """No tick between two integers."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.MaxNLocator(integer=True))


def styles(names: Iterable[str]) -> dict[str, dict]:
    """A colour and a line style for each name; the methods of the experiments keep theirs."""
    names = list(names)
    taken = {COLOURS[name] for name in names if name in COLOURS}
    palette = (BLUE, ORANGE, *_MORE_COLOURS, *COLOURS.values())
    free = [colour for colour in dict.fromkeys(palette) if colour not in taken]
    others = itertools.product(("-", "--", ":", "-."), free or palette)
    found = {}
    for name in names:
        line, colour = ("-", COLOURS.get(name)) if name in COLOURS else next(others)
        found[name] = {"color": colour, "ls": line}
    return found
