"""An exact simulator of asynchronous training: the schedule on the host, the work compiled."""

from dcasgd_jax.sim.engines import HostEngine as HostEngine
from dcasgd_jax.sim.engines import ScanEngine as ScanEngine
from dcasgd_jax.sim.laws import ConstantTime as ConstantTime
from dcasgd_jax.sim.laws import ExponentialTime as ExponentialTime
from dcasgd_jax.sim.laws import GammaTime as GammaTime
from dcasgd_jax.sim.laws import LognormalTime as LognormalTime
from dcasgd_jax.sim.laws import ParetoTime as ParetoTime
from dcasgd_jax.sim.laws import RecordedTime as RecordedTime
from dcasgd_jax.sim.laws import RoundRobin as RoundRobin
from dcasgd_jax.sim.protocols import Asynchronous as Asynchronous
from dcasgd_jax.sim.protocols import Sequential as Sequential
from dcasgd_jax.sim.protocols import Synchronous as Synchronous
from dcasgd_jax.sim.schedule import Schedule as Schedule
from dcasgd_jax.sim.schedule import make_schedule as make_schedule
from dcasgd_jax.sim.simulate import SimResult as SimResult
from dcasgd_jax.sim.simulate import Trace as Trace
from dcasgd_jax.sim.simulate import simulate as simulate
from dcasgd_jax.sim.step import SimState as SimState
