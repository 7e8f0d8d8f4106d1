"""Where the arrays of a run with lanes live: slices of the server's, lanes of the workers'."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dcasgd_jax.sim import leaves
from dcasgd_jax.sim import program as programs
from dcasgd_jax.typing import PyTree

Server = Literal["sharded", "replicated"]


class Layout(NamedTuple):
    """Who keeps what on a mesh; equal layouts share one compilation."""

    mesh: Mesh
    axis: str  # of the mesh, along which lanes and slices lie
    lanes_per_device: int
    server: Server

    @property
    def num_devices(self) -> int:
        """Devices along the axis."""
        return self.mesh.shape[self.axis]

    @property
    def num_lanes(self) -> int:
        """Gradients computed at once."""
        return self.num_devices * self.lanes_per_device

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def lanes(self) -> NamedSharding:
        """For leaves `[num_lanes, ...]`: every device has its lanes, whole."""
        return NamedSharding(self.mesh, PartitionSpec(self.axis))

    @property
    def lanes_of_waves(self) -> NamedSharding:
        """For leaves `[num_waves, num_lanes, ...]`."""
        return NamedSharding(self.mesh, PartitionSpec(None, self.axis))

    def slice_of(self, leaf: Any, leading: int = 0) -> NamedSharding:
        """A slice per device along the largest axis that the number of devices divides.

        Leaves keep their shapes, because transformations look at them: one without such an axis is
        replicated. The first `leading` axes (slots, workers, lanes) are never cut.
        """
        shape = leaf.shape
        divisible = [
            k for k in range(leading, len(shape)) if shape[k] and shape[k] % self.num_devices == 0
        ]
        if self.server == "replicated" or not divisible or leaves.is_key(leaf):
            return self.replicated
        cut = max(divisible, key=lambda k: shape[k])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * cut, self.axis))

    def slices(self, tree: PyTree, leading: int = 0) -> PyTree:
        """`slice_of` every leaf."""
        return jax.tree.map(lambda leaf: self.slice_of(leaf, leading), tree)

    def of_state(self, program: programs.Program, state: programs.SimState) -> PyTree:
        """Shardings of the server's state, a tree like `state`."""
        shapes = {leaf.shape for leaf in jax.tree.leaves(state.params)}

        def like_params(leaf):
            # What mirrors the params is cut as they are, alone or one per worker, slot or age.
            for leading in (0, 1):
                if leaf.shape[leading:] in shapes and leaf.ndim >= leading:
                    return self.slice_of(leaf, leading)
            return self.replicated

        return state._replace(
            event=self.replicated,  # type: ignore[arg-type]
            params=self.slices(state.params),
            opt_state=jax.tree.map(like_params, state.opt_state),
            snapshots=self.slices(state.snapshots, leading=1),
            push_state=jax.tree.map(like_params, state.push_state),
            gradient_sum=self.slices(state.gradient_sum),
            model_state=self.slices(
                state.model_state, leading=int(program.model_state == "per_worker")
            ),
            pushed=None if state.pushed is None else self.replicated,  # type: ignore[arg-type]
            worker_state=self.slices(state.worker_state, leading=1),
            last_kept=self.slices(state.last_kept, leading=1),
        )


def resolve_mesh(mesh: Any, axis: str | None) -> tuple[Mesh, str]:
    """The mesh with automatic axes, and the axis that was meant."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, such as jax.make_mesh's, got {mesh!r}.")
    names = mesh.axis_names
    if axis is None and len(names) != 1:
        raise ValueError(
            f"The mesh has the axes {list(names)}: say which one the lanes lie along with axis=."
        )
    chosen: str = names[0] if axis is None else axis
    if chosen not in names:
        raise ValueError(f"The mesh has no axis {chosen!r}; its axes are {list(names)}.")
    # With explicit axes every operation of a loss would need its sharding spelled out.
    return Mesh(mesh.devices, names, axis_types=(AxisType.Auto,) * len(names)), chosen


def constrain(tree: PyTree, shardings: PyTree) -> PyTree:
    """Tells the compiler where every leaf lives; one sharding may stand for all leaves."""
    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, shardings), tree)
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Moves every leaf to where it lives; one sharding may stand for all leaves.

    With several processes every one must have the same values.
    """
    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: _place(leaf, shardings), tree)
    return jax.tree.map(_place, tree, shardings)


def to_default_device(tree: PyTree) -> PyTree:
    """Ordinary arrays again, whole and bound to no device; the same in every process."""
    return jax.tree.map(_to_default_device, tree)


def to_host(leaf: Any) -> tuple[np.ndarray, Any]:
    """A NumPy array, and the implementation of the random keys that it holds, if it does."""
    if leaves.is_key(leaf):
        return np.asarray(jax.random.key_data(leaf)), jax.random.key_impl(leaf)
    return np.asarray(leaf), None


def _place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    is_global = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if is_global:
        return jax.device_put(leaf, sharding)
    # On the CPU the way through NumPy copies as little, and compiles nothing.
    if sharding.is_fully_addressable and jax.default_backend() != "cpu":
        return jax.device_put(leaf, sharding)
    values, keys = to_host(leaf)
    placed = jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
    return placed if keys is None else jax.random.wrap_key_data(placed, impl=keys)


def _to_default_device(leaf: jax.Array) -> jax.Array:
    if not leaf.is_fully_addressable:
        everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())  # type: ignore[attr-defined]
        leaf = jax.device_put(leaf, everywhere)
    values, keys = to_host(leaf)
    local = jnp.asarray(values)
    return local if keys is None else jax.random.wrap_key_data(local, impl=keys)
