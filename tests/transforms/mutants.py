"""Every wrong DC-ASGD found in public code, as a subclass of the NumPy oracle.

Who made which mistake is in the reviews of MXNet (before and after PR 5140), Multiverso, the 2018
TensorFlow variant, and a dozen re-implementations.
"""

import numpy as np
import oracle


class AliasedBackup(oracle.Server):
    """Compares the live weights with themselves: inert."""

    def stale_params(self, worker):
        return self.params


class OnePreviousWeight(oracle.Server):
    """One backup for all workers: the weights before the last server update."""

    def push(self, worker, grads):
        before = self.params
        super().push(worker, grads)
        self.backups = [before] * len(self.backups)

    def pull(self, worker):
        pass


class WrongSendersBackup(oracle.Server):
    """Compensates against what another worker pulled."""

    def stale_params(self, worker):
        return self.backups[(worker + 1) % len(self.backups)]


class ZeroStartBackup(oracle.Server):
    """Backups start as zeros, so the first push of each worker is pulled towards the origin."""

    def __init__(self, params, num_workers, **kwargs):
        super().__init__(params, num_workers, **kwargs)
        zeros = {name: np.zeros_like(leaf) for name, leaf in self.params.items()}
        self.backups = [zeros] * num_workers


class BackupBeforeOwnUpdate(oracle.Server):
    """The backup lacks the worker's own update, which the worker has pulled."""

    def push(self, worker, grads):
        before = self.params
        super().push(worker, grads)
        self.backups[worker] = before

    def pull(self, worker):
        pass


class CompoundingLambda(oracle.Server):
    """Divides λ by the root mean square in place, so that it never recovers."""

    def __init__(self, params, num_workers, **kwargs):
        super().__init__(params, num_workers, **kwargs)
        self.shrinking = dict.fromkeys(self.params, self.lambda0)

    def strength(self, worker, name, grad):
        factor = super().strength(worker, name, grad) / self.lambda0
        self.shrinking[name] = self.shrinking[name] * factor
        return self.shrinking[name]


class MissingRoot(oracle.Server):
    def strength(self, worker, name, grad):
        return super().strength(worker, name, grad) ** 2 / self.lambda0


class EpsOutsideRoot(oracle.Server):
    def strength(self, worker, name, grad):
        super().strength(worker, name, grad)
        return self.lambda0 / (np.sqrt(self.mean_squares[0][name]) + self.eps)


class MeanSquareUsedBeforeUpdate(oracle.Server):
    def strength(self, worker, name, grad):
        used = self.lambda0 / np.sqrt(self.mean_squares[0][name] + self.eps)
        super().strength(worker, name, grad)
        return used


class SquaredWeightDecay(oracle.Server):
    """Adds the decay before the gradient is squared."""

    def direction(self, worker, name, grad):
        return self.accelerate(name, self.compensate(worker, name, self.decay(name, grad)))


class DecayAtStaleWeights(oracle.Server):
    """The worker's loss contains the decay, squaring aside: it acts on what the worker holds."""

    def direction(self, worker, name, grad):
        decay = self.weight_decay * self.stale_params(worker)[name]
        return self.accelerate(name, self.compensate(worker, name, grad) + decay)


class CompensateAfterMomentum(oracle.Server):
    """Squares the momentum instead of the gradient."""

    def direction(self, worker, name, grad):
        return self.compensate(worker, name, self.accelerate(name, self.decay(name, grad)))


class ClipAfterCompensation(oracle.Server):
    def push(self, worker, grads):
        compensated = {name: self.compensate(worker, name, grad) for name, grad in grads.items()}
        super().push(worker, compensated)

    def direction(self, worker, name, grad):
        return self.accelerate(name, self.decay(name, grad))


class MXNetStyle(OnePreviousWeight, SquaredWeightDecay):
    """Decay before squaring and one previous weight, together."""


class RowsOfAnotherWorkerCount(oracle.Server):
    """Keeps one backup too few; the last worker's index is clamped to somebody else's row."""

    def stale_params(self, worker):
        return self.backups[min(worker, len(self.backups) - 2)]

    def pull(self, worker):
        self.backups[min(worker, len(self.backups) - 2)] = self.params


class IgnoredOffer(oracle.Server):
    """Was told what the gradient was taken at, and compares with what it remembers."""

    def offer(self, worker, params):
        pass


class PullSkippedWithARejectedPush(oracle.Server):
    """A worker whose push was refused is thought to hold what it held before."""

    def reject(self, worker):
        pass
