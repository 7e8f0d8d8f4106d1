"""An exact simulator of asynchronous training: the schedule on the host, the work compiled."""

from dcasgd_jax.schedules.faults import Crash as Crash
from dcasgd_jax.schedules.faults import DuplicatedPush as DuplicatedPush
from dcasgd_jax.schedules.faults import LateJoin as LateJoin
from dcasgd_jax.schedules.faults import LostPush as LostPush
from dcasgd_jax.schedules.faults import NaNGradient as NaNGradient
from dcasgd_jax.schedules.faults import Restart as Restart
from dcasgd_jax.schedules.faults import SlowDown as SlowDown
from dcasgd_jax.schedules.laws import ConstantTime as ConstantTime
from dcasgd_jax.schedules.laws import ExponentialTime as ExponentialTime
from dcasgd_jax.schedules.laws import GammaTime as GammaTime
from dcasgd_jax.schedules.laws import LognormalTime as LognormalTime
from dcasgd_jax.schedules.laws import MarkovTime as MarkovTime
from dcasgd_jax.schedules.laws import ParetoTime as ParetoTime
from dcasgd_jax.schedules.laws import RoundRobin as RoundRobin
from dcasgd_jax.schedules.making import make_schedule as make_schedule
from dcasgd_jax.schedules.protocols import Asynchronous as Asynchronous
from dcasgd_jax.schedules.protocols import Buffered as Buffered
from dcasgd_jax.schedules.protocols import DropStale as DropStale
from dcasgd_jax.schedules.protocols import Protocol as Protocol
from dcasgd_jax.schedules.protocols import Sequential as Sequential
from dcasgd_jax.schedules.recorded import RecordedTime as RecordedTime
from dcasgd_jax.schedules.sampling import ShardedEpochs as ShardedEpochs
from dcasgd_jax.schedules.schedule import Schedule as Schedule
from dcasgd_jax.schedules.servers import ProtocolServer as ProtocolServer
from dcasgd_jax.schedules.waiting import StaleSynchronous as StaleSynchronous
from dcasgd_jax.schedules.waiting import Synchronous as Synchronous
from dcasgd_jax.sim.batches import Indexed as Indexed
from dcasgd_jax.sim.checkpoints.checkpoint import Checkpoint as Checkpoint
from dcasgd_jax.sim.engines import HostEngine as HostEngine
from dcasgd_jax.sim.engines import ScanEngine as ScanEngine
from dcasgd_jax.sim.lanes.engine import LanesEngine as LanesEngine
from dcasgd_jax.sim.program import SimState as SimState
from dcasgd_jax.sim.results import Evaluations as Evaluations
from dcasgd_jax.sim.results import NonFinite as NonFinite
from dcasgd_jax.sim.results import SimResult as SimResult
from dcasgd_jax.sim.results import Trace as Trace
from dcasgd_jax.sim.shared_memory.adversary import guard_epochs as guard_epochs
from dcasgd_jax.sim.shared_memory.adversary import held_back_schedule as held_back_schedule
from dcasgd_jax.sim.shared_memory.generation import random_memory_trace as random_memory_trace
from dcasgd_jax.sim.shared_memory.operations import MemoryTrace as MemoryTrace
from dcasgd_jax.sim.shared_memory.reads import ReadVersions as ReadVersions
from dcasgd_jax.sim.shared_memory.simulate import SharedMemoryResult as SharedMemoryResult
from dcasgd_jax.sim.shared_memory.simulate import (
    simulate_shared_memory as simulate_shared_memory,
)
from dcasgd_jax.sim.simulate import simulate as simulate
from dcasgd_jax.sim.sweeps.members import PerMember as PerMember
from dcasgd_jax.sim.sweeps.members import grid as grid
from dcasgd_jax.sim.sweeps.results import SweepResult as SweepResult
from dcasgd_jax.sim.sweeps.sweep import sweep as sweep
from dcasgd_jax.sim.variance_reduction.svrg import SvrgResult as SvrgResult
from dcasgd_jax.sim.variance_reduction.svrg import svrg as svrg
