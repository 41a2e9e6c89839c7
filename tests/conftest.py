"""The strict world of the tests: eight CPU devices, no silent promotion."""

import jax
import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None, max_examples=40)
settings.load_profile("house")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def compiled(request):
    """Compile in haste, unless a module says `OPTIMISED = True`.

    Most tests ask what a program means, and compiling is most of their time. What is
    held to an oracle, to a contract or to peers runs as users run it.
    """
    haste = not getattr(getattr(request.node, "obj", None), "OPTIMISED", False)
    if jax.config.values["jax_disable_most_optimizations"] != haste:
        jax.config.update("jax_disable_most_optimizations", haste)
        jax.clear_caches()


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
