"""Settings of every test: eight CPU devices, no silent promotion, a compile cache."""

import gc
import itertools
import os
import shutil
import signal
import tempfile

import jax
import pytest
from hypothesis import settings
from jax._src import compiler
from jax._src.interpreters import mlir

import fast_compilation

EXAMPLES = int(os.environ.get("JAXLSTM_EXAMPLES", "40"))
settings.register_profile("jaxlstm", deadline=None, max_examples=EXAMPLES)
settings.load_profile("jaxlstm")

# Tracing allocates many small objects that die young. With Python's default of one
# collection per 700 to 2,000 allocations, collecting takes several percent of a run.
gc.set_threshold(20_000, 20, 20)

# A process that a script starts in the background ignores SIGINT, and so would every
# process of the tests that gets one.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # see the fixture `compiled`


def pytest_addoption(parser):
    """Add `--optimised`, which compiles every module with all optimisations."""
    parser.addoption(
        "--optimised",
        action="store_true",
        help="compile the programs of every test with all optimisations, as users do",
    )


def pytest_configure(config):
    """Keep compiled programs on disk until the end of the run, one folder per worker.

    Tests compile equal programs many times, from new closures or after clearing JAX's
    caches. JAX does not write cache entries atomically, so workers and subprocesses do
    not share a folder. `JAX_COMPILATION_CACHE_DIR` takes precedence.
    """
    if jax.config.jax_compilation_cache_dir is None:
        config.compilation_cache = tempfile.mkdtemp(prefix="jaxlstm-tests-")
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_unconfigure(config):
    """Delete this worker's compiled programs."""
    if folder := getattr(config, "compilation_cache", None):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def compiled(request):
    """Compile without most optimisations in modules without `OPTIMISED = True`.

    Compiling takes most of the time of the tests, and most results do not depend on
    optimisations. Tests that compare bits, or values with an oracle or another library,
    compile as users do, and so does every test with `--optimised`.
    """
    module = getattr(request.node, "obj", None)
    optimised = request.config.getoption("--optimised")
    _set_optimised(optimised or getattr(module, "OPTIMISED", False))


@pytest.fixture
def optimised():
    """Compile with all optimisations during one test."""
    before = _is_optimised()
    _set_optimised(True)
    yield
    _set_optimised(before)


def _is_optimised():
    return not jax.config.values["jax_disable_most_optimizations"]


def _set_optimised(optimised):
    if _is_optimised() != optimised:
        jax.config.update("jax_disable_most_optimizations", not optimised)
        jax.clear_caches()


_fast_options = fast_compilation.options()
_compile_options = compiler.get_compile_options


def _options_of_tests(*args, env_options_overrides=None, **kwargs):
    """Add XLA options for which JAX has no setting.

    Splitting a small program to compile its parts in parallel takes longer than
    compiling it whole, and the instructions are the same. Without optimisations, XLA's
    fusion emitters would take half of the compile time. `XLA_FLAGS` is not used,
    because it would also apply to modules with `OPTIMISED = True`.
    """
    options = _fast_options.copy()
    if _is_optimised():
        options.pop("xla_cpu_use_fusion_emitters", None)
    options |= env_options_overrides or {}
    return _compile_options(*args, env_options_overrides=options, **kwargs)


compiler.get_compile_options = _options_of_tests


_make_ir_context = mlir.make_ir_context
_contexts = itertools.count()
_current_context = None


def _shared_ir_context():
    """Return an MLIR context that 100 programs in a row share.

    A new context loads every dialect, which takes as long as lowering a small program.
    A context is replaced after 100 programs because it never frees types and locations.
    """
    global _current_context
    if next(_contexts) % 100 == 0:
        _current_context = _make_ir_context()
    return _current_context


mlir.make_ir_context = _shared_ir_context


@pytest.fixture
def x64():
    """Enable float64 during one test."""
    with jax.enable_x64(True):
        yield


def pytest_terminal_summary(terminalreporter):
    """Print how many properties the registry tests of all workers checked."""
    count = dict.fromkeys(("registry_properties", "registry_combinations"), 0)
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name in count:
                count[name] += value
    if checked := count["registry_properties"]:
        terminalreporter.write_line(
            f"registry: {checked:,} properties checked, in "
            f"{count['registry_combinations']:,} combinations of a cell, a wrapper and "
            "an option"
        )
