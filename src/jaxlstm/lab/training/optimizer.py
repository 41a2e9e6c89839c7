"""The optimizer of a config, built from Optax.

    - clip_by_global_norm: {max_norm: 1.0}
    - adamw: {learning_rate: {linear_schedule: {init_value: 1.0, ...}}}
    =>  optax.chain(
            optax.clip_by_global_norm(max_norm=1.0),
            optax.adamw(learning_rate=optax.linear_schedule(init_value=1.0, ...)))

One entry is one call, by Optax's own names. What may be called is what
`optax_names` lists; nothing else is looked up by name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlstm.lab._util.wording import dotted, shown
from jaxlstm.lab.config.messages import ConfigError
from jaxlstm.lab.config.optimizer import KeyPath, check, is_call

Chain = Sequence[Mapping[str, Any]]


def build(chain: Chain) -> optax.GradientTransformation:
    """The chain of transformations, each tried once on the shapes of a small matrix.

    Arguments:
        chain: `config.optimizer`, or a list of the same form.

    Errors: `ConfigError` with a line for every entry that Optax would not take, or
    that needs more at each update than gradients and parameters.

    >>> build([{"sgd": {"learning_rate": 0.5}}]).init({}) is not None
    True
    """
    _check(chain)
    links, problems = [], []
    for i, link in enumerate(chain):
        try:
            made = _at_ease(_called(link, (i,)))
            _rehearse(made, (i, *link))
            links.append(made)
        except _RefusedError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    return optax.chain(*links)


def learning_rate(chain: Chain) -> Callable[[int], float] | None:
    """The learning rate at a step, to be shown; None for a chain that names none.

    The last `learning_rate` of the chain counts, or the `step_size_fn` of
    `scale_by_schedule`.

    >>> rate = learning_rate([{"sgd": {"learning_rate": 0.5}}])
    >>> rate(10)
    0.5
    """
    _check(chain)
    found = [rate for i, link in enumerate(chain) for rate in _rates(link, (i,))]
    if not found:
        return None
    path, rate = found[-1]
    value = _valued(rate, path)
    schedule = value if callable(value) else optax.constant_schedule(value)

    def rate(step: int) -> float:
        with _promotion():
            return float(jnp.asarray(schedule(step)))

    return rate


@contextmanager
def _promotion() -> Iterator[None]:
    """Optax mixes integer step counts with floats, and [1] with [2, 2]; here it may."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _at_ease(made: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same, and also where JAX has been told to promote nothing."""

    def init(params: Any) -> Any:
        with _promotion():
            return made.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with _promotion():
            return made.update(updates, state, params)

    return optax.GradientTransformation(init, update)


class _RefusedError(ValueError):
    """Optax does not take these arguments."""


def _check(chain: Chain) -> None:
    problems = check(chain)
    if problems:
        lines = [f"{dotted(('optimizer', *path))}: {text}" for path, text in problems]
        raise ConfigError(lines)


def _called(call: Mapping[str, Any], path: KeyPath) -> Any:
    """`{name: {arguments}}`, called."""
    [(name, arguments)] = call.items()
    path = (*path, name)
    given = {key: _valued(v, (*path, key)) for key, v in (arguments or {}).items()}
    factory = getattr(optax, name, None) or getattr(optax.schedules, name)
    return _asked(lambda: factory(**given), path)


def _valued(value: Any, path: KeyPath) -> Any:
    """An argument's value, with the calls in it made."""
    if isinstance(value, list | tuple):
        return [_valued(item, (*path, i)) for i, item in enumerate(value)]
    if is_call(value):
        return _called(value, path)
    return value


def _rehearse(made: Any, path: KeyPath) -> None:
    """One update in the abstract: shapes only, nothing computed."""
    matrix = {"w": jax.ShapeDtypeStruct((2, 2), jnp.float32)}

    def update(params: Any) -> Any:
        return made.update(params, made.init(params), params)

    _asked(
        lambda: jax.eval_shape(update, matrix),
        path,
        "no update can be made from gradients and parameters alone",
    )


def _asked(
    question: Callable[[], Any], path: KeyPath, verdict: str = "optax refuses this"
) -> Any:
    """The answer; whatever Optax raises instead becomes a sentence."""
    try:
        return question()
    except _RefusedError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = dotted(("optimizer", *path))
        raise _RefusedError(f"{where}: {verdict}: {shown(first)}") from error


def _rates(call: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    [(name, arguments)] = call.items()
    for key, value in (arguments or {}).items():
        at = (*path, name, key)
        if key in ("learning_rate", "step_size_fn"):
            yield at, value
        elif is_call(value):
            yield from _rates(value, at)
