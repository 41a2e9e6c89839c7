"""Settings of every test: eight CPU devices, no silent promotion, a compile cache."""

import gc
import itertools
import shutil
import tempfile

import jax
import pytest
from hypothesis import settings
from jax._src import compiler
from jax._src.interpreters import mlir

settings.register_profile("jaxlstm", deadline=None, max_examples=40)
settings.load_profile("jaxlstm")

# Tracing allocates many small objects that die young. With Python's default of one
# collection per 700 to 2,000 allocations, collecting takes several percent of a run.
gc.set_threshold(20_000, 20, 20)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # see `compiled`


def pytest_addoption(parser):
    """Add `--optimised`: no module is compiled in haste."""
    parser.addoption(
        "--optimised",
        action="store_true",
        help="compile the programs of every test as users do",
    )


def pytest_configure(config):
    """Keep compiled programs on disk until the end of the run, one folder per worker.

    Tests jit the same program again and again (a new closure, a cleared cache). JAX
    writes cache entries in place, so workers and subprocesses do not share a folder: a
    reader could find half an entry. `JAX_COMPILATION_CACHE_DIR` takes precedence.
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
    """Compile a module's programs in haste, unless it says `OPTIMISED = True`.

    Most tests ask what a program means, and compiling is most of their time. What is
    held to an oracle, to a contract or to peers runs as users run it, and so does
    everything with `--optimised`.
    """
    module = getattr(request.node, "obj", None)
    optimised = request.config.getoption("--optimised")
    _compile_in_haste(not optimised and not getattr(module, "OPTIMISED", False))


@pytest.fixture
def optimised():
    """Compile as users do for the length of one test."""
    haste = jax.config.values["jax_disable_most_optimizations"]
    _compile_in_haste(False)
    yield
    _compile_in_haste(haste)


def _compile_in_haste(haste):
    if jax.config.values["jax_disable_most_optimizations"] != haste:
        jax.config.update("jax_disable_most_optimizations", haste)
        jax.clear_caches()


_compile_options = compiler.get_compile_options


def _options_of_tests(*args, env_options_overrides=None, **kwargs):
    """Add what JAX has no setting for.

    Dividing a small program into modules that are compiled in parallel costs more than
    it saves; it changes no instruction. In haste, half the compile time is XLA's fusion
    emitters. `XLA_FLAGS` would hold for the whole process, modules with `OPTIMISED`
    included.
    """
    options: dict[str, int | bool] = {"xla_cpu_parallel_codegen_split_count": 1}
    if jax.config.values["jax_disable_most_optimizations"]:
        options["xla_cpu_use_fusion_emitters"] = False
    options |= env_options_overrides or {}
    return _compile_options(*args, env_options_overrides=options, **kwargs)


compiler.get_compile_options = _options_of_tests


_make_ir_context = mlir.make_ir_context
_contexts = itertools.count()
_current_context = None


def _shared_ir_context():
    """Share one MLIR context between 100 programs.

    A new context loads every dialect, which takes as long as lowering a small program.
    A context keeps all its types and locations, so it does not live for the whole run.
    """
    global _current_context
    if next(_contexts) % 100 == 0:
        _current_context = _make_ir_context()
    return _current_context


mlir.make_ir_context = _shared_ir_context


@pytest.fixture
def x64():
    """Float64 for the length of one test."""
    with jax.enable_x64(True):
        yield


def pytest_terminal_summary(terminalreporter):
    """How many laws of the registry were held, counted over all workers."""
    count = dict.fromkeys(("registry_laws", "registry_combinations"), 0)
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name in count:
                count[name] += value
    if laws := count["registry_laws"]:
        terminalreporter.write_line(
            f"registry: {laws:,} laws held, in {count['registry_combinations']:,} "
            "combinations of a cell, a wrapper and an option"
        )
