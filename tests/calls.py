"""The simulator's functions, for tests that vary one part at a time: all parts as one flat list."""

from dcasgd_jax import sim

OF_PROBLEM = ("model_state", "eval_fn", "model_state_policy")
OF_SERVER = ("per_push", "send", "opt_state")
OF_RECORDING = {"metrics": "metrics", "trace_every": "every", "eval_versions": "eval_versions"} | {
    "logger": "logger",
    "log_every": "log_every",
}


def parts(loss_fn, params, tx, options):
    """The problem and the server of these, and the other options."""
    options = dict(options)
    take = lambda names: {name: options.pop(name) for name in names if name in options}
    problem = sim.Problem(loss_fn, params, **take(OF_PROBLEM))
    of_server = take(OF_SERVER)
    recording = {OF_RECORDING[name]: value for name, value in take(OF_RECORDING).items()}
    if recording:
        options["recording"] = sim.Recording(**recording)
    return problem, sim.Server(tx, **of_server) if of_server else tx, options


def _flat(function):
    """A function of a problem and a server, called with the parts of both."""

    def call(loss_fn, params, tx, *arguments, **options):
        problem, server, options = parts(loss_fn, params, tx, options)
        return function(problem, server, *arguments, **options)

    return call


simulate = _flat(sim.simulate)
sweep = _flat(sim.sweep)
svrg = _flat(sim.svrg)
simulate_shared_memory = _flat(sim.simulate_shared_memory)


def train(loss_fn, params, tx, batches_fn, **options):
    from dcasgd_jax.runtime import ray

    problem, server, options = parts(loss_fn, params, tx, options)
    return ray.train(problem, server, batches_fn, **options)


def replay(run, loss_fn, params, tx, batches_fn, **options):
    from dcasgd_jax.runtime import ray

    problem, server, options = parts(loss_fn, params, tx, options)
    return ray.replay(run, problem, server, batches_fn, **options)
