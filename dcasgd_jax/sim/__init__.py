"""An exact simulator of asynchronous training: the schedule on the host, the work compiled."""

from dcasgd_jax.schedules.faults import (
    Crash,
    DuplicatedPush,
    LateJoin,
    LostPush,
    NaNGradient,
    Restart,
    SlowDown,
)
from dcasgd_jax.schedules.laws import (
    ConstantTime,
    ExponentialTime,
    GammaTime,
    LognormalTime,
    MarkovTime,
    ParetoTime,
    RoundRobin,
)
from dcasgd_jax.schedules.links import Links
from dcasgd_jax.schedules.making import make_schedule
from dcasgd_jax.schedules.participation import Sampled, availability
from dcasgd_jax.schedules.protocols import Asynchronous, Buffered, DropStale, Protocol, Sequential
from dcasgd_jax.schedules.recorded import RecordedTime
from dcasgd_jax.schedules.sampling import ShardedEpochs
from dcasgd_jax.schedules.schedule import Schedule
from dcasgd_jax.schedules.servers import ProtocolServer
from dcasgd_jax.schedules.shards import (
    FixedShards,
    dirichlet_shards,
    label_counts,
    label_shards,
)
from dcasgd_jax.schedules.steps import StepsTime, steps_by_speed
from dcasgd_jax.schedules.waiting import Grace, Quorum, StaleSynchronous, Synchronous
from dcasgd_jax.sim.batches import Indexed
from dcasgd_jax.sim.checkpoints.checkpoint import Checkpoint
from dcasgd_jax.sim.engines import HostEngine, ScanEngine
from dcasgd_jax.sim.lanes.engine import LanesEngine
from dcasgd_jax.sim.local_steps import LocalSteps
from dcasgd_jax.sim.problem import Problem, Recording, Server
from dcasgd_jax.sim.program import SimState
from dcasgd_jax.sim.results import Evaluations, NonFinite, SimResult, Trace
from dcasgd_jax.sim.shared_memory.adversary import guard_epochs, held_back_schedule
from dcasgd_jax.sim.shared_memory.generation import random_memory_trace
from dcasgd_jax.sim.shared_memory.operations import MemoryTrace
from dcasgd_jax.sim.shared_memory.reads import ReadVersions
from dcasgd_jax.sim.shared_memory.simulate import (
    SharedMemoryResult,
    simulate_shared_memory,
)
from dcasgd_jax.sim.simulate import simulate
from dcasgd_jax.sim.sweeps.members import PerMember, grid
from dcasgd_jax.sim.sweeps.results import SweepResult
from dcasgd_jax.sim.sweeps.sweep import sweep
from dcasgd_jax.sim.variance_reduction.svrg import SvrgResult, svrg
from dcasgd_jax.sim.work import OneGradient

__all__ = [
    "Asynchronous",
    "Buffered",
    "Checkpoint",
    "ConstantTime",
    "Crash",
    "DropStale",
    "DuplicatedPush",
    "Evaluations",
    "ExponentialTime",
    "FixedShards",
    "GammaTime",
    "Grace",
    "HostEngine",
    "Indexed",
    "LanesEngine",
    "LateJoin",
    "Links",
    "LocalSteps",
    "LognormalTime",
    "LostPush",
    "MarkovTime",
    "MemoryTrace",
    "NaNGradient",
    "NonFinite",
    "OneGradient",
    "ParetoTime",
    "PerMember",
    "Problem",
    "Protocol",
    "ProtocolServer",
    "Quorum",
    "ReadVersions",
    "RecordedTime",
    "Recording",
    "Restart",
    "RoundRobin",
    "Sampled",
    "ScanEngine",
    "Schedule",
    "Sequential",
    "Server",
    "ShardedEpochs",
    "SharedMemoryResult",
    "SimResult",
    "SimState",
    "SlowDown",
    "StaleSynchronous",
    "StepsTime",
    "SvrgResult",
    "SweepResult",
    "Synchronous",
    "Trace",
    "availability",
    "dirichlet_shards",
    "grid",
    "guard_epochs",
    "held_back_schedule",
    "label_counts",
    "label_shards",
    "make_schedule",
    "random_memory_trace",
    "simulate",
    "simulate_shared_memory",
    "steps_by_speed",
    "svrg",
    "sweep",
]
