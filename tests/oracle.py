"""A parameter server of DC-ASGD in float64 NumPy: the reference that every test compares with.

Written from the update rule, event by event, without JAX. Parameters are a flat dict of arrays.
A known wrong implementation is a subclass that overrides one method.
"""

import json
import pathlib

import numpy as np

DATA = pathlib.Path(__file__).parent / "data"


class Server:
    """Applies pushes; keeps one backup per worker, written when the worker pulls."""

    def __init__(
        self, params, num_workers, *, lr, lambda0=0.0, ms_decay=None, eps=1e-7,
        per_worker_mean_square=False, max_pull=None, momentum=0.0, nesterov=False,
        weight_decay=0.0, clip=None, project=lambda leaf: leaf,
    ):  # fmt: skip
        self.params = {name: np.array(leaf, np.float64) for name, leaf in params.items()}
        self.lr, self.lambda0, self.ms_decay, self.eps = lr, lambda0, ms_decay, eps
        self.per_worker_mean_square, self.max_pull = per_worker_mean_square, max_pull
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.clip, self.project = clip, project
        zeros = {name: np.zeros_like(leaf) for name, leaf in self.params.items()}
        self.mean_squares = [dict(zeros) for _ in range(num_workers)]
        self.velocity = zeros
        self.backups = [self.params] * num_workers  # never written in place

    def stale_params(self, worker):
        return self.backups[worker]

    def strength(self, worker, name, grad):
        if self.ms_decay is None:
            return self.lambda0
        mean_square = self.mean_squares[worker if self.per_worker_mean_square else 0]
        mean_square[name] = self.ms_decay * mean_square[name] + (1 - self.ms_decay) * grad**2
        return self.lambda0 / np.sqrt(mean_square[name] + self.eps)

    def compensate(self, worker, name, grad):
        with np.errstate(divide="ignore", invalid="ignore"):  # eps = 0 and g = 0
            curvature = np.where(grad == 0, 0.0, self.strength(worker, name, grad) * grad**2)
        if self.max_pull is not None:
            # In the long run momentum repeats an impulse 1 / (1 - momentum) times.
            lr = self.lr / (1 - self.momentum)
            curvature = np.minimum(curvature, self.max_pull / lr if lr else np.inf)
        return grad + curvature * (self.params[name] - self.stale_params(worker)[name])

    def decay(self, name, grad):
        return grad + self.weight_decay * self.params[name]

    def accelerate(self, name, grad):
        self.velocity[name] = grad + self.momentum * self.velocity[name]
        return grad + self.momentum * self.velocity[name] if self.nesterov else self.velocity[name]

    def direction(self, worker, name, grad):
        compensated = self.compensate(worker, name, grad)
        if self.max_pull is None:
            return self.accelerate(name, self.decay(name, compensated))
        # What is capped pulls outside of the momentum, which sees the raw gradient.
        pull = (compensated - grad) / (1 - self.momentum)
        return self.accelerate(name, self.decay(name, grad)) + pull

    def push(self, worker, grads):
        norm = np.sqrt(sum(np.sum(grad**2) for grad in grads.values()))
        scale = 1.0 if self.clip is None else min(1.0, self.clip / norm)
        self.params = {
            name: self.project(leaf - self.lr * self.direction(worker, name, scale * grads[name]))
            for name, leaf in self.params.items()
        }

    def pull(self, worker):
        self.backups[worker] = self.params

    def offer(self, worker, params):
        """Somebody knows what the worker's next gradient is taken at."""
        self.backups[worker] = params

    def reject(self, worker):
        """A push is refused; its worker goes on from the present params."""
        self.pull(worker)


def run(server, order, grad_fn):
    """Params before and after every event; each worker pulls right after its own push."""
    trace = [server.params]
    held = dict.fromkeys(order, server.params)  # what each worker really computes at
    for event, worker in enumerate(order):
        server.push(worker, grad_fn(held[worker], event))
        server.pull(worker)
        held[worker] = server.params
        trace.append(server.params)
    return trace


class Problem:
    """The softmax regression of tests/data: 24 rows, 4 features, 3 classes, 6 batches in turn."""

    def __init__(self):
        data = json.loads((DATA / "problem.json").read_text())
        self.X, self.y = np.array(data["X"]), np.array(data["y"])
        self.batch_rows = np.array(data["batch_rows"])
        self.params = unflatten(data["theta0"])

    def batch(self, event):
        rows = self.batch_rows[event % len(self.batch_rows)]
        return self.X[rows], self.y[rows]

    def grad(self, params, event):
        X, y = self.batch(event)
        logits = X @ params["W"] + params["b"]
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        error = (probabilities - np.eye(3)[y]) / len(y)
        return {"W": X.T @ error, "b": error.sum(axis=0)}


def unflatten(theta):
    theta = np.asarray(theta)
    return {"W": theta[:12].reshape(4, 3), "b": theta[12:]}


def flatten(trace):
    """A list of params as one array [T, 15], the layout of the JSON files."""
    return np.stack([np.concatenate([np.ravel(p["W"]), np.ravel(p["b"])]) for p in trace])


def cases(name):
    return json.loads((DATA / f"{name}.json").read_text())
