"""Local steps by a literal loop in float64 NumPy: softmax regression, SGD with momentum inside."""

from typing import NamedTuple

import numpy as np


class Rules(NamedTuple):
    """What the workers do; the last three are what a wrong loop would do."""

    steps: tuple  # of each worker
    rate: float = 0.2
    momentum: float = 0.0
    keeps_velocity: bool = True
    push: str = "params"
    merge_after: int = 0
    keep: float = 0.0
    eager: float = 0.0
    sign: float = 1.0
    one_velocity_for_all: bool = False
    all_steps_on_first_batch: bool = False
    averages_steps: bool = False
    always_goes_ahead: bool = False
    pushes_from_the_pull: bool = False


def gradient(params, images, labels):
    """Of the mean cross-entropy, and the loss."""
    logits = images @ params["w"] + params["b"]
    logits = logits - logits.max(axis=1, keepdims=True)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    picked = chances[np.arange(len(labels)), labels]
    error = (chances - np.eye(chances.shape[1])[labels]) / len(labels)
    return {"w": images.T @ error, "b": error.sum(axis=0)}, -np.log(picked).mean()


def train(schedule, params, batches, rules, outer_rate=1.0, strength=0.0):
    """The server's params after all events, and the mean loss of each push.

    Args:
      schedule: Whose updates take one push each; dropped ones change nothing.
      params: {"w", "b"}, float64.
      batches: Images [num_events, steps, n, 6] and labels.
      rules: What the workers do.
      outer_rate: Of the server's SGD.
      strength: lambda of a compensation with the squared push.
    """
    zeros = {name: np.zeros_like(leaf) for name, leaf in params.items()}
    copies = lambda tree: [dict(tree) for _ in range(schedule.num_workers)]
    velocity, local, last = copies(zeros), copies(params), {}
    own = [(-1, zeros)] * schedule.num_workers  # the version that a push met, and the push
    versions, losses = [params], []
    for k in range(len(schedule)):
        m = int(schedule.worker[k])
        pulled = versions[schedule.read_version[k]]
        batch = int(schedule.batch[k])
        if batch == k:  # else the same push once more
            met, mine = own[m]
            not_in_it = schedule.read_version[k] <= met or (rules.always_goes_ahead and met >= 0)
            ahead = rules.eager * not_in_it
            begins = {n: w - ahead * mine[n] for n, w in pulled.items()}
            push, loss = _push(rules, m, begins, velocity, local, [b[k] for b in batches])
            if rules.pushes_from_the_pull:
                push = {n: push[n] + pulled[n] - begins[n] for n in push}
            last[batch] = push, loss, begins
            own[m] = int(schedule.version[k]), push
        push, loss, pulled = last[batch]
        losses.append(loss)
        if schedule.applied[k]:
            now = versions[-1]
            versions.append(
                {
                    n: w - outer_rate * (push[n] + strength * push[n] ** 2 * (w - pulled[n]))
                    for n, w in now.items()
                }
            )
    return versions[-1], np.array(losses)


def _push(rules, m, pulled, velocities, locals_, batch):
    own = 0 if rules.one_velocity_for_all else m
    velocity = velocities[own]
    if not rules.keeps_velocity:
        velocity = {name: np.zeros_like(leaf) for name, leaf in pulled.items()}
    merges = bool(rules.merge_after or rules.keep)
    here = dict(locals_[m]) if merges else dict(pulled)
    total, losses = dict.fromkeys(pulled, 0.0), []
    for i in range(rules.steps[m]):
        if i == rules.merge_after and merges:
            here = {n: rules.keep * here[n] + (1 - rules.keep) * pulled[n] for n in here}
        row = 0 if rules.all_steps_on_first_batch else i
        grads, loss = gradient(here, batch[0][row], batch[1][row])
        velocity = {n: rules.momentum * velocity[n] + grads[n] for n in grads}
        here = {n: here[n] - rules.rate * velocity[n] for n in here}
        total = {n: total[n] + grads[n] for n in grads}
        losses.append(loss)
    velocities[own], locals_[m] = velocity, here
    way = {n: rules.sign * (pulled[n] - here[n]) for n in here}
    if rules.push == "mean_gradient":
        way = {n: total[n] / rules.steps[m] for n in total}
    if rules.averages_steps:
        way = {n: way[n] / rules.steps[m] for n in way}
    return way, np.mean(losses)
