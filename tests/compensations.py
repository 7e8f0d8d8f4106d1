"""Compensations by the numbers that the oracles' cases have: λ0, and the decay of a mean square."""

import optax

import dcasgd_jax as dc


def curvature(ms_decay=None, eps=1e-7, bias_correction=False, num_workers=None):
    """DC-ASGD-c without a decay, else DC-ASGD-a."""
    if ms_decay is None:
        return dc.curvatures.squared_gradient()
    return dc.curvatures.adaptive(ms_decay, eps, bias_correction, num_workers)


def explicit(
    lambda0,
    *,
    ms_decay=None,
    eps=1e-7,
    bias_correction=False,
    num_workers=None,
    max_pull=None,
    learning_rate=None,
):
    """`compensate_delay`; with `num_workers` one mean square for each."""
    chosen = curvature(ms_decay, eps, bias_correction, num_workers)
    return dc.compensate_delay(
        lambda0, curvature=chosen, max_pull=max_pull, learning_rate=learning_rate
    )


def rotated(
    lambda0, *, batch_size, decay=0.9, every=2, sides="both", max_pull=None, learning_rate=None
):
    """`compensate_delay` in an eigenbasis."""
    chosen = dc.curvatures.rotated(batch_size, decay=decay, every=every, sides=sides)
    return dc.compensate_delay(
        lambda0, curvature=chosen, max_pull=max_pull, learning_rate=learning_rate
    )


def rows(lambda0, *, batch_size, max_pull=None, learning_rate=None):
    """`compensate_delay` with an outer product for each output."""
    chosen = dc.curvatures.rows(batch_size)
    return dc.compensate_delay(
        lambda0, curvature=chosen, max_pull=max_pull, learning_rate=learning_rate
    )


def rotated_dcasgd(learning_rate, num_workers, *, batch_size, lambda0=1.0, max_pull=None):
    """`dc.dcasgd` in an eigenbasis."""
    chosen = dc.curvatures.rotated(batch_size)
    return dc.dcasgd(
        learning_rate, num_workers, lambda0=lambda0, curvature=chosen, max_pull=max_pull
    )


def per_worker(
    lambda0,
    num_workers,
    *,
    ms_decay=None,
    eps=1e-7,
    per_worker_mean_square=False,
    max_pull=None,
    learning_rate=None,
):
    """Compensates against what each worker is remembered to have pulled."""
    compensate = explicit(
        lambda0,
        ms_decay=ms_decay,
        eps=eps,
        num_workers=num_workers if per_worker_mean_square else None,
        max_pull=max_pull,
        learning_rate=learning_rate,
    )
    return dc.remember_pulls(compensate, num_workers)


def fixed_delay(lambda0, delay, *, ms_decay=None, eps=1e-7, max_pull=None, learning_rate=None):
    """Compensates gradients that are known to be so late."""
    compensate = explicit(
        lambda0, ms_decay=ms_decay, eps=eps, max_pull=max_pull, learning_rate=learning_rate
    )
    return dc.assume_delay(compensate, delay)


def dcasgd(learning_rate, *, num_workers, ms_decay=0.95, eps=1e-7, **settings):
    """`dc.dcasgd`, adaptive unless there is no decay."""
    per_worker = num_workers if settings.pop("per_worker_mean_square", False) else None
    chosen = curvature(ms_decay, eps, num_workers=per_worker)
    return dc.dcasgd(learning_rate, num_workers, curvature=chosen, **settings)


def preconditioned(
    learning_rate, num_workers, *, batch_size, lambda0=1.0, max_pull=1.0, b2=0.999, eps=1e-8
):
    """Pulled back in Adam's metric, with every number an argument.

    Around plain SGD: Adam itself takes no gradient that is None.
    """
    chain = dc.compensate_updates(
        optax.sgd(learning_rate),
        lambda0,
        learning_rate=learning_rate,
        curvature=dc.curvatures.rotated(batch_size, every=2, sides="both"),
        max_pull=max_pull,
        preconditioner=dc.preconditioners.adam(b2, eps),
    )
    return dc.remember_pulls(chain, num_workers)
