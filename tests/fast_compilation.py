"""XLA options that compile a program faster, for this process and for subprocesses."""

import functools
import os

import jax
import jax.numpy as jnp


@functools.cache
def options() -> dict[str, int | bool]:
    """Return the options, without those that the installed XLA does not have."""
    wanted = {
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    return {name: value for name, value in wanted.items() if _exists(name, value)}


@functools.cache
def unoptimised() -> dict[str, int | bool]:
    """Return the options with those that turn most optimisations off."""
    return options() | {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }


@functools.cache
def environment() -> dict[str, str]:
    """Return the environment of a subprocess that compiles unoptimised."""
    flags = [f"--{name}={str(value).lower()}" for name, value in options().items()]
    return {
        **os.environ,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *flags]),
    }


def _exists(name, value):
    try:
        jax.jit(jnp.negative, compiler_options={name: value})(1.0)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True
