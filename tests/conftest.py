"""8 virtual devices, strict rank promotion; float64 only inside the `x64` fixture."""

import contextlib
import ctypes
import gc
import getpass
import importlib.metadata
import os
import pathlib
import resource
import tempfile

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

# Compiling is most of what the tests do, and like this it takes less. Another jaxlib may not know
# these flags, with which a process ends. Where XLA_FLAGS is set, be it to nothing, that is kept.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FAST = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
    os.environ.setdefault("XLA_FLAGS", FAST)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Programs that a test compiled before are read from a file, also by the processes that tests start:
# compiling is most of what the tests do. One that was written in part is compiled again.
PROGRAMS = pathlib.Path(tempfile.gettempdir()) / f"dcasgd-jax-tests-{getpass.getuser()}"
KEPT_PROGRAMS = {
    "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS)),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in KEPT_PROGRAMS.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)

# In several processes a file stays whole, so that what its tests share is made once; those that
# start Ray, which only one may at a time, do not wait for each other; and the longest come first.
WITH_RAY = ("runtime/test_ray", "commands/train/test_train", "[07_ray]", "[notebooks/ray]", "[ray]")
LONG = (*WITH_RAY, "test_notebooks", "reproduce/", "test_house", "test_killed", "test_checkpoint")
ALONE = ("test_notebooks", "test_benchmarks_run")


def pytest_collection_modifyitems(items):
    place = lambda item: next((i for i, n in enumerate(LONG) if n in item.nodeid), len(LONG))
    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") != "load":
        return None  # somebody wants something else
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            is_one = lambda names: any(name in nodeid for name in names)
            if is_one(WITH_RAY):
                return "with Ray"
            return nodeid if is_one(ALONE) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return ByFile(config, log)


MAPS, MEMORY = pathlib.Path("/proc/self/maps"), pathlib.Path("/proc/self/statm")
MANY_MAPS = 30_000  # Linux allows a process 65,530
MUCH_MEMORY = 3 << 29  # bytes: the next test may need some hundred million more


def forget_programs():
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc would keep most of what was freed
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(autouse=True)
def little_memory():
    """Forgets compiled programs before they use up the memory; the files above have them still."""
    yield
    if not MEMORY.exists():
        return
    if int(MEMORY.read_text().split()[1]) * resource.getpagesize() > MUCH_MEMORY:
        forget_programs()


@pytest.fixture(scope="module", autouse=True)
def few_maps():
    """Likewise before they use up the memory maps, which crashes XLA; to count them is slow."""
    yield
    if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MANY_MAPS:
        forget_programs()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def compiled_afresh():
    """No program is read from a file: for tests that look at one, of which a file keeps less."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
