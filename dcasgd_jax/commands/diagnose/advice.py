"""What the numbers say to do, by rules that are printed with it."""

from collections.abc import Sequence

from dcasgd_jax.commands import statistics
from dcasgd_jax.commands.diagnose import events, summary

COSINE_THAT_MATTERS = 0.99  # of the stale and the true gradient: above it nothing is wrong
SHARE_THAT_MATTERS = 0.05  # explained by one lambda0 for all pushes
CONSISTENT_WITHIN = 3.0  # largest over smallest shared lambda0 of the moments that matter
MANY_BELOW_EPS = 0.5  # of the coordinates

_CAP = ", max_pull=1, learning_rate=LR"
_ARGUMENTS = {
    "squared_gradient": f", curvature=dc.curvatures.squared_gradient(){_CAP}",
    "adaptive": _CAP,
    "absolute": f", curvature=dc.curvatures.absolute(){_CAP}",
    "fisher": f", curvature=dc.curvatures.fisher(){_CAP}",
    "rows": f", curvature=dc.curvatures.rows(B){_CAP}",
    "rotated": f", curvature=dc.curvatures.rotated(B){_CAP}",
    "hessian": ", curvature=dc.curvatures.hessian()",  # it has no cap
}


def advise(rows: Sequence[summary.Row]) -> list[str]:
    """Sentences that follow from the numbers, in the order in which to read them."""
    if not rows:
        return ["No push was stale: there is nothing to compensate."]
    moments = list(dict.fromkeys(row.moment for row in rows))
    calm = [m for m in moments if _cosine(rows, m) > COSINE_THAT_MATTERS]
    found = []
    if calm:
        parts = statistics.listed(
            [f"{moment} (cosine {_cosine(rows, moment):.4f})" for moment in calm]
        )
        found.append(
            f"Staleness is too small to matter {parts}: the stale gradient has the direction of "
            "the true one."
        )
    rough = [row for row in rows if row.moment not in calm]
    if not rough:
        return [*found, "Do not bother to compensate at this learning rate and number of workers."]
    found += _about_curvatures(rough)
    found += _about_direction(rough)
    found += _about_eps(rough)
    return found


def rules() -> dict[str, float]:
    """The thresholds, for the record."""
    return {
        "cosine_that_matters": COSINE_THAT_MATTERS,
        "share_that_matters": SHARE_THAT_MATTERS,
        "consistent_within": CONSISTENT_WITHIN,
        "many_below_eps": MANY_BELOW_EPS,
    }


def rules_in_words() -> str:
    """The rules behind the advice."""
    return (
        f"Rules: staleness matters at a moment if the median cosine of the stale and the true "
        f"gradient is at most {COSINE_THAT_MATTERS:g}; only such moments count below. The lambda0 "
        "is the one that is best for all their pushes together. A curvature is worth it if it "
        f"explains at least {100 * SHARE_THAT_MATTERS:g} % with that lambda0, and one lambda0 "
        f"fits if those of the moments differ by at most a factor of {CONSISTENT_WITHIN:g}."
    )


CAVEAT = (
    "A gradient that is closer to the true one is not yet a lower loss: take lambda0 as the most "
    "to try, keep the cap (without it such a lambda0 can make training diverge; LR is the learning "
    "rate or schedule of the chain, B the number of images in a batch), and compare losses with "
    "dcasgd-jax compare, also at a larger learning rate. Training needs a full pull in a few steep "
    "directions, which is a small part of what is explained here: rotated does more than it "
    "explains."
)


def _about_curvatures(rows: Sequence[summary.Row]) -> list[str]:
    of_curvature = {name: [row for row in rows if row.curvature == name] for name in _ARGUMENTS}
    totals = {name: summary.total(of) for name, of in of_curvature.items()}
    shares = {name: total.shared_r_squared() for name, total in totals.items()}
    futile = [name for name, share in shares.items() if not share >= SHARE_THAT_MATTERS]
    if len(futile) == len(shares):
        return [
            f"Every curvature explains under {100 * SHARE_THAT_MATTERS:g} % of the change of the "
            "gradient: do not bother to compensate."
        ]
    best = {name: total.shared_lambda0() for name, total in totals.items()}
    turned = [name for name in shares if name not in futile and not best[name] > 0]
    worthy = [name for name in shares if name not in futile and name not in turned]
    worthy.sort(key=lambda name: -shares[name])
    found = [_about_one(name, shares[name], of_curvature[name]) for name in worthy]
    found += [
        f"{name}: would have to be taken away instead of added (the best lambda0 is "
        f"{rounded(best[name])}): do not compensate with it."
        for name in turned
    ]
    if futile:
        found.append(
            f"{statistics.listed(futile)}: under {100 * SHARE_THAT_MATTERS:g} % explained, do not "
            "bother."
        )
    control = summary.total(
        [row for row in rows if row.curvature == events.CONTROL]
    ).shared_r_squared()
    cheap = [name for name in worthy if name != "hessian" and shares[name] <= control]
    if cheap:
        found.append(
            f"{statistics.listed(cheap)}: no better than the same curvature in every direction, "
            f"which explains {100 * control:.0f} %; what helps is the pull towards the stale "
            "weights."
        )
    return found


def _about_one(name: str, share: float, rows: Sequence[summary.Row]) -> str:
    """The λ0 of a curvature that is worth it, or a rule in its place."""
    found = f"{name}: explains {100 * share:.0f} %"
    each = [row.shared_lambda0 for row in rows]
    if min(each) > 0 and max(each) <= CONSISTENT_WITHIN * min(each):
        lambda0 = rounded(summary.total(rows).shared_lambda0())
        return f"{found} with lambda0 = {lambda0}: dc.compensate_delay({lambda0}{_ARGUMENTS[name]})"
    parts = statistics.listed([f"{rounded(row.shared_lambda0)} {row.moment}" for row in rows])
    helped = [row.ratio for row in rows if row.shared_lambda0 > 0]  # elsewhere it would do harm
    ratio = rounded(sum(helped) / len(helped))
    return (
        f"{found}, but no one lambda0 fits ({parts}): "
        f"dc.compensate_delay(dc.strengths.ratio({ratio}){_ARGUMENTS[name]}) adapts"
    )


def _about_direction(rows: Sequence[summary.Row]) -> list[str]:
    """Compensations that come nearer to the true gradient and yet point further away from it."""
    turned = {}
    for row in rows:
        if row.curvature in _ARGUMENTS and row.cosine_compensated < row.cosine_stale:
            turned.setdefault(row.moment, []).append(row.curvature)
    return [
        f"{statistics.listed(names)}, {moment}: nearer to the true gradient, but of a worse "
        "direction (median cosine) than without compensation."
        for moment, names in turned.items()
    ]


def _about_eps(rows: Sequence[summary.Row]) -> list[str]:
    below = [r for r in rows if r.curvature == "adaptive" and r.below_eps > MANY_BELOW_EPS]
    if not below:
        return []
    parts = statistics.listed([f"{row.moment} {100 * row.below_eps:.0f} %" for row in below])
    return [
        f"Of most coordinates the mean square lies below eps ({parts}): the adaptive strength is "
        "constant there; a smaller eps would adapt it."
    ]


def _cosine(rows: Sequence[summary.Row], moment: str) -> float:
    return next(row.cosine_stale for row in rows if row.moment == moment)


def rounded(value: float) -> str:
    """Two digits that count, without an exponent up to a million."""
    return f"{float(f'{value:.2g}'):g}"
