"""The optimizer of a config, built from Optax.

    - clip_by_global_norm: {max_norm: 1.0}
    - adamw: {learning_rate: {linear_schedule: {init_value: 1.0, ...}}}
    =>  optax.chain(
            optax.clip_by_global_norm(max_norm=1.0),
            optax.adamw(learning_rate=optax.linear_schedule(init_value=1.0, ...)))

Each entry is one call of an Optax function. Only the functions that `optax_names` lists
can be called.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlstm.lab._util.wording import dotted, shown
from jaxlstm.lab.config.messages import ConfigError
from jaxlstm.lab.config.optax_names import factory
from jaxlstm.lab.config.optimizer import KeyPath, check, is_call

Chain = Sequence[Mapping[str, Any]]


class Varied(NamedTuple):
    """A number of the optimizer that differs between the members of a population.

    Attributes:
        value: that of a member, a traced scalar.
        choices: those of all members.
    """

    value: Any
    choices: tuple[float, ...]


def build(
    chain: Chain,
    *,
    accumulate: int = 1,
    varied: Mapping[KeyPath, Varied] | None = None,
) -> optax.GradientTransformation:
    """Return the chain of transformations.

    Each is checked with the shapes of a small matrix before it is used.

    Args:
        chain: `config.optimizer`, or a list of the same form.
        accumulate: number of gradients whose mean makes one update, by
            `optax.MultiSteps`. An entry `apply_if_finite` of the chain is then applied
            to each gradient, before it is accumulated.
        varied: numbers that differ between members, by their paths, such as
            `{(0, "sgd", "learning_rate"): Varied(rate, (0.1, 0.01))}`.
            `optax.inject_hyperparams` is not used, because it does not reach into
            schedules and changes the structure of the state, so that a member's
            checkpoint would not be one of the same run alone.

    Raises:
        ConfigError: an entry has arguments that Optax rejects, or its update needs more
            than gradients and parameters. The message has a line for each such entry.

    Example:
        >>> build([{"sgd": {"learning_rate": 0.5}}]).init({}) is not None
        True
    """
    _check_names(chain)
    transformations, problems, limits = [], [], []
    for i, entry in enumerate(chain):
        path: KeyPath = (i,)
        arguments = entry.get("apply_if_finite")
        if accumulate > 1 and arguments is not None:
            limits.append(arguments["max_consecutive_errors"])
            entry, path = arguments["inner"], (i, "apply_if_finite", "inner")
        try:
            with _standard_promotion():
                called = _call(entry, path, varied or {})
            transformation = _with_standard_promotion(called)
            _check_by_eval_shape(transformation, (*path, *entry))
            transformations.append(transformation)
        except _OptaxError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    found = optax.chain(*transformations)
    if accumulate > 1:
        multi = optax.MultiSteps(found, accumulate).gradient_transformation()
        found = _with_standard_promotion(multi)
    for limit in limits:
        found = optax.apply_if_finite(found, limit)
    return found


def learning_rate(
    chain: Chain, *, accumulate: int = 1
) -> Callable[[int], float] | None:
    """Return the learning rate as a function of the step, for display.

    With accumulation, `accumulate` steps make one update and have one rate. It is the
    last `learning_rate` of the chain, or the `step_size_fn` of
    `scale_by_schedule`. A chain without either returns None.

    Example:
        >>> rate = learning_rate([{"sgd": {"learning_rate": 0.5}}])
        >>> rate(10)
        0.5
    """
    _check_names(chain)
    rates = [rate for i, entry in enumerate(chain) for rate in _rates(entry, (i,))]
    if not rates:
        return None
    path, rate = rates[-1]
    value = _evaluate(rate, path)
    schedule = value if callable(value) else optax.constant_schedule(value)

    def rate_at(step: int) -> float:
        with _standard_promotion():
            return float(jnp.asarray(schedule(step // accumulate)))

    return rate_at


@contextmanager
def _standard_promotion() -> Iterator[None]:
    """Allow Optax to mix integer step counts with floats, and shapes [1] and [2, 2]."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _with_standard_promotion(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Make a transformation work under strict dtype and rank promotion."""

    def init(params: Any) -> Any:
        with _standard_promotion():
            return transformation.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with _standard_promotion():
            return transformation.update(updates, state, params)

    return optax.GradientTransformation(init, update)


class _OptaxError(ValueError):
    """An exception of Optax, with the path of the entry that caused it."""


def _check_names(chain: Chain) -> None:
    """Raise `ConfigError` for unknown functions and unknown or missing arguments."""
    problems = check(chain)
    if problems:
        lines = [f"{dotted(('optimizer', *path))}: {text}" for path, text in problems]
        raise ConfigError(lines)


def _call(
    call: Mapping[str, Any], path: KeyPath, varied: Mapping[KeyPath, Varied]
) -> Any:
    """Return the result of the call `{name: {arguments}}`."""
    [(name, arguments)] = call.items()
    path = (*path, name)
    values = {
        key: _evaluate(value, (*path, key), varied)
        for key, value in (arguments or {}).items()
    }
    function = getattr(optax, name, None) or getattr(optax.schedules, name)
    with _located_errors(path, "got arguments that Optax rejects, expected valid ones"):
        return function(**values)


def _evaluate(
    value: Any, path: KeyPath, varied: Mapping[KeyPath, Varied] | None = None
) -> Any:
    """Return the value of an argument, with its nested calls replaced by results."""
    varied = varied or {}
    if path in varied:
        return varied[path].value
    if isinstance(value, list | tuple):
        return [_evaluate(item, (*path, i), varied) for i, item in enumerate(value)]
    if not is_call(value):
        return value
    [name] = value
    known = factory(name)
    inside = {at: each for at, each in varied.items() if at[: len(path)] == path}
    if inside and known is not None and known.kind == "schedule":
        return _schedule_of_members(value, path, inside)
    return _call(value, path, varied)


def _schedule_of_members(
    call: Mapping[str, Any], path: KeyPath, varied: Mapping[KeyPath, Varied]
) -> optax.Schedule:
    """Return the schedule of a member: one of those of all members.

    Schedules of Optax test their arguments in Python, so these cannot be traced.
    """
    points = list(itertools.product(*(each.choices for each in varied.values())))
    given = (dict(zip(varied, point, strict=True)) for point in points)
    schedules = [_call(_replaced(call, path, numbers), path, {}) for numbers in given]

    def schedule(count: Any) -> Any:
        own = jnp.stack([jnp.asarray(each.value) for each in varied.values()])
        is_own = (jnp.asarray(points, own.dtype) == own).all(1)
        rates = jnp.stack([jnp.asarray(each(count)) for each in schedules])
        return rates[jnp.argmax(is_own)]

    return schedule


def _replaced(value: Any, path: KeyPath, numbers: Mapping[KeyPath, float]) -> Any:
    """Return a value with the numbers at these paths below its own path."""
    if path in numbers:
        return numbers[path]
    if isinstance(value, Mapping):
        return {k: _replaced(v, (*path, k), numbers) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(v, (*path, k), numbers) for k, v in enumerate(value)]
    return value


def _check_by_eval_shape(
    transformation: optax.GradientTransformation, path: KeyPath
) -> None:
    """Check one update with `jax.eval_shape`, which computes nothing."""
    matrix = {"w": jax.ShapeDtypeStruct((2, 2), jnp.float32)}

    def update(params: Any) -> Any:
        state = transformation.init(params)
        return transformation.update(params, state, params)

    problem = (
        "got an update that fails, expected one that needs only gradients and "
        "parameters; choose another transformation or correct its arguments"
    )
    with _located_errors(path, problem):
        jax.eval_shape(update, matrix)


@contextmanager
def _located_errors(path: KeyPath, problem: str) -> Iterator[None]:
    """Raise every exception as an `_OptaxError` that names the entry at `path`."""
    try:
        yield
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = dotted(("optimizer", *path))
        message = f"{where}: {problem}; Optax reports: {shown(first_line)}"
        raise _OptaxError(message) from error


def _rates(call: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """Yield path and value of each learning rate, also those in nested calls."""
    [(name, arguments)] = call.items()
    for key, value in (arguments or {}).items():
        at = (*path, name, key)
        if key in ("learning_rate", "step_size_fn"):
            yield at, value
        elif is_call(value):
            yield from _rates(value, at)
