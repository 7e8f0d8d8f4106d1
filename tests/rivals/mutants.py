"""The published servers in NumPy, each with its known misreadings as options.

Without an option they are the references of tests/data; `dcasgd_jax.rivals` equals those.
"""

import numpy as np
import oracle

from rivals import servers

THETA0 = servers.theta(servers.PROBLEM.params)
ORDER = oracle.cases("rivals")["delayed_nesterov_N4"]["order"]


def gradient(theta, event):
    return servers.theta(servers.PROBLEM.grad(oracle.unflatten(theta), event))


def play(rule, order, grad_fn=gradient):
    """Parameters before and after every event of `rule(theta, g, staleness) -> theta`."""
    trace, held, read = [THETA0], dict.fromkeys(order, THETA0), dict.fromkeys(order, 0)
    for event, worker in enumerate(order):
        g = grad_fn(held[worker], event)
        trace.append(rule(trace[-1], g, event - read[worker]))
        held[worker], read[worker] = trace[-1], event + 1
    return np.array(trace)


def wu(alpha=None, window=0, fill=True):
    """Step sizes γ. Misreadings: a window longer or shorter by one; room for itself forgotten."""
    gamma = []

    def rule(theta, g, tau):
        k = len(gamma)
        room = 1 - sum(gamma[max(k - tau - window, 0) :])
        if alpha is not None:
            gamma.append(alpha * max(room, 0))
        else:
            share = 1 / (tau + 1 if fill else max(tau, 1))
            gamma.append(share if share <= room + 1e-12 else 0.0)
        return theta - gamma[-1] * g

    return play(rule, ORDER)


def spikes(form="sum", a_power=3, spike=True, mu=0.9, lr=0.05, delay=3):
    """Spike compensation. Misreadings: an averaging velocity, a full velocity, no spike."""
    velocity = np.zeros(15)

    def rule(theta, g, tau):
        nonlocal velocity
        velocity = mu * velocity + (g if form == "sum" else (1 - mu) * g)
        b = (1 - mu**delay) / (1 - mu) if spike else 0.0
        return theta - lr * (mu**a_power * velocity + b * g)

    return play(rule, [event % 4 for event in range(24)])


def local_steps(theta, event, sign=1):
    end = theta
    for step in range(2):
        end = end - 0.3 * gradient(end, 2 * event + step)
    return sign * (theta - end)


def delayed_nesterov(N=4, divide=True, every=False, keep=False, old=False, sign=1):
    """Delayed Nesterov. Misreadings: one for each option, all of them in use somewhere."""
    m, total, pushes = np.zeros(15), np.zeros(15), 0

    def rule(theta, g, tau):
        nonlocal m, total, pushes
        pushes += 1
        total = total + g
        step = g / N if divide else g
        if pushes % N == 0:
            before = m
            m = 0.9 * m + total / N
            step = step + 0.9 * (before if old else m)
            total = total if keep else 0 * total
        elif every:
            step = step + 0.9 * m
        return theta - 0.4 * step

    return play(rule, ORDER, lambda theta, event: local_steps(theta, event, sign))


def ordered(late_counts=True, glide=True, per_gradient=False, closed_form=True):
    """OrMo on the fixed gradients of the file: (w, u)."""
    case = oracle.cases("rivals")["ormo_fixed_gradients"]
    G, beta, lr, K = np.array(case["G"]), case["beta"], case["lr"], case["K"]
    K = 1 if per_gradient else K
    w, u, bucket = np.zeros(3), np.zeros(3), 0
    for number in case["arrivals"]:
        while number // K > bucket:
            w = w - beta * u if glide else w
            u, bucket = beta * u, bucket + 1
        b = bucket - number // K if late_counts else 0
        u = u + beta**b * lr * G[number]
        w = w - lr * ((1 - beta ** (b + 1)) / (1 - beta) if closed_form else 1.0) * G[number]
    return np.array([w, u])


def dc_ssgd(against="start", mean=False, order=(0, 1, 2, 3), lam=2.0):
    """DC-SSGD. Misreadings: against the previous step, a mean instead of a sum, another order."""
    theta = THETA0
    trace = [theta]
    for first in range(0, 24, 4):
        now = before = theta
        for j in order:
            g = gradient(theta, first + j)
            since = theta if against == "start" else before
            before, step = now, 0.5 * (g + lam * g * g * (now - since))
            now = now - (step / 4 if mean else step)
        theta = now
        trace.append(theta)
    return np.array(trace)


def fedbuff(K=3, divide=True, count="updates", normalise=False, exponent=0.5):
    """FedBuff. Misreadings: a sum, staleness in pushes, weights normalised to one."""
    trace, held = [THETA0], dict.fromkeys(ORDER, THETA0)
    read, version, total, weights = dict.fromkeys(ORDER, 0), 0, np.zeros(15), 0.0
    theta = THETA0
    for event, worker in enumerate(ORDER):
        now = version if count == "updates" else event
        s = (1.0 + now - read[worker]) ** -exponent
        total, weights = total + s * local_steps(held[worker], event), weights + s
        if (event + 1) % K == 0:
            theta = theta - total / (weights if normalise else K if divide else 1)
            total, weights, version = np.zeros(15), 0.0, version + 1
        held[worker], read[worker] = theta, version if count == "updates" else event + 1
        trace.append(theta)
    return np.array(trace)
