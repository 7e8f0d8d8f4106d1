"""The rotated curvature in float64 NumPy, and every wrong one, as a subclass of it."""

import numpy as np


class Rotated:
    """One leaf; written from the rule, push by push."""

    def __init__(self, shape, *, batch, eta, lam=1.0, decay=0.95, every=20, side=None,
                 max_pull=1.0):  # fmt: skip
        self.batch, self.eta, self.lam, self.max_pull = batch, eta, lam, max_pull
        self.decay, self.every = decay, every
        self.is_matrix, self.has_output = len(shape) == 2, side is None
        m, n = shape if self.is_matrix else (1, *shape)
        self.k = 0
        self.moments = {"L": np.zeros((m, m)), "R": np.zeros((n, n))}
        self.bases = {"L": np.eye(m), "R": np.eye(n)}
        self.mean_square = np.zeros((m, n))

    def average(self, old, new):
        return self.decay * old + (1 - self.decay) * new

    def turned_sides(self):
        return ("L", "R") if self.has_output else ("L",)

    def is_due(self):
        return self.k < 3 or self.k % self.every == 0

    def corrected(self):
        return self.mean_square / (1 - self.decay ** (self.k + 1))

    def curvature(self, projected):
        self.mean_square = self.average(self.mean_square, projected**2)
        return self.lam * self.batch * self.corrected()

    def push(self, grad, param, stale):
        """The compensated gradient, and the capped curvatures in order of size."""
        G, moved = (np.atleast_2d(leaf) for leaf in (grad, np.subtract(param, stale)))
        squares = {"L": G @ G.T, "R": G.T @ G}
        for side in self.turned_sides() if self.is_matrix else ():
            self.moments[side] = self.average(self.moments[side], squares[side])
            if self.is_due():
                self.bases[side] = np.linalg.eigh(self.moments[side])[1]
        U, V = self.bases["L"], self.bases["R"]
        q = np.minimum(self.curvature(U.T @ G @ V), self.max_pull / self.eta)
        self.k += 1
        out = G + U @ (q * (U.T @ moved @ V)) @ V.T
        return out.reshape(np.shape(grad)), np.sort(q.ravel())


class ReadBeforeUpdate(Rotated):
    def curvature(self, projected):
        read = self.lam * self.batch * self.corrected()
        super().curvature(projected)
        return read


class NoBiasCorrection(Rotated):
    def corrected(self):
        return self.mean_square


class RefreshedAtEveryPush(Rotated):
    def is_due(self):
        return True


class NeverRefreshedAgain(Rotated):
    def is_due(self):
        return self.k < 3


class OtherSide(Rotated):
    def turned_sides(self):
        return ("L",) if self.has_output else ("R",)


class NoBatchSize(Rotated):
    def curvature(self, projected):
        return super().curvature(projected) / self.batch


class MeanSquareTurnedWithTheBasis(Rotated):
    """Carries S into every new basis, as if it were a matrix of a quadratic form."""

    def push(self, grad, param, stale):
        before = {side: basis.copy() for side, basis in self.bases.items()}
        square, self.mean_square = self.mean_square, 0 * self.mean_square
        k, moments = self.k, dict(self.moments)
        super().push(grad, param, stale)  # for its basis
        turn = {side: (self.bases[side].T @ before[side]) ** 2 for side in before}
        self.k, self.moments = k, moments
        self.mean_square = turn["L"] @ square @ turn["R"].T
        return super().push(grad, param, stale)


class CapOutsideTheBasis(Rotated):
    """Caps each coordinate of the leaf."""

    def push(self, grad, param, stale):
        cap, self.max_pull = self.max_pull, np.inf
        out, _ = super().push(grad, param, stale)
        self.max_pull = cap
        moved = np.subtract(param, stale)
        return grad + np.minimum((out - grad) / moved, cap / self.eta) * moved, None


MUTANTS = {
    "S read before it is updated": ReadBeforeUpdate,
    "no bias correction": NoBiasCorrection,
    "refreshed at every push": RefreshedAtEveryPush,
    "never refreshed again": NeverRefreshedAgain,
    "the other side": OtherSide,
    "B missing": NoBatchSize,
    "S turned with the basis": MeanSquareTurnedWithTheBasis,
    "cap outside the basis": CapOutsideTheBasis,
}
