"""What an optimizer divides its steps by: values that go where `preconditioner` goes."""

from dcasgd_jax.preconditioners.adam import AdamDivisorState, adam
from dcasgd_jax.preconditioners.muon import MuonDivisorState, muon
from dcasgd_jax.preconditioners.preconditioner import MatrixDivisor, Preconditioner

__all__ = [
    "AdamDivisorState",
    "MatrixDivisor",
    "MuonDivisorState",
    "Preconditioner",
    "adam",
    "muon",
]
