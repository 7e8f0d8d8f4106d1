"""8 virtual devices, strict rank promotion; float64 only inside the `x64` fixture."""

import pathlib

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")


MAPS = pathlib.Path("/proc/self/maps")
MANY_MAPS = 30_000  # Linux allows a process 65,530


@pytest.fixture(scope="module", autouse=True)
def few_compiled_programs():
    """Forgets compiled programs before they use up the process's memory maps, which crashes XLA."""
    yield
    if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MANY_MAPS:
        jax.clear_caches()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
