"""Short ways to write an optimizer: its learning rate, and schedules without steps.

    learning_rate=3e-4                    the rate, or the highest one of a schedule
    cosine_decay_schedule: {init_value: 3e-4}
                                          decay_steps are those of the training

Both are replaced by what they mean before a config is validated, so that the config of
a run has the values that were used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxlstm.lab._util.wording import describe
from jaxlstm.lab.config.optax_names import factory
from jaxlstm.lab.config.yaml_source import (
    KeyPath,
    Node,
    SourceError,
    plain,
    with_place,
)

_LENGTHS = {
    "cosine_decay_schedule": "decay_steps",
    "cosine_onecycle_schedule": "transition_steps",
    "linear_onecycle_schedule": "transition_steps",
    "linear_schedule": "transition_steps",
    "polynomial_schedule": "transition_steps",
    "warmup_cosine_decay_schedule": "decay_steps",
}
"""The argument of a schedule that is its number of updates."""

_BEFORE = {"decay_steps": "warmup_steps", "transition_steps": "transition_begin"}
"""Updates before those of a schedule's length begin, or that are a part of them."""

Edit = Callable[[str, dict[Any, Node], Node], dict[Any, Node]]


class Length(NamedTuple):
    """The length of a training.

    Attributes:
        steps: its steps.
        accumulate: steps that make one update.
    """

    steps: int
    accumulate: int

    def updates(self) -> int:
        """Return the number of updates, at least 1."""
        return max(1, -(-self.steps // self.accumulate))


# -- schedules ----------------------------------------------------------------


def with_lengths(chain: Node, length: Length) -> Node:
    """Fill in the number of updates of schedules that do not give it, or give null.

    A schedule inside `join_schedules` is a part of a training, and must give it.
    """

    def fill(name: str, arguments: dict[Any, Node], call: Node) -> dict[Any, Node]:
        key = _LENGTHS.get(name)
        if key is None or arguments.get(key, Node(None, "")).value is not None:
            return arguments
        before = arguments.get(_BEFORE[key], Node(0, "")).value
        before = int(before) if _is_number(before) else 0
        updates = length.updates()
        if key == "decay_steps":  # includes those of a warmup, which must be fewer
            updates = max(updates, before + 1)
        else:
            updates = max(updates - before, 1)
        return {**arguments, key: Node(updates, call.place)}

    return _edited(chain, fill)


def without_lengths(chain: Node) -> Node:
    """Remove the numbers of updates that `with_lengths` fills in."""

    def remove(name: str, arguments: dict[Any, Node], call: Node) -> dict[Any, Node]:
        return {k: v for k, v in arguments.items() if k != _LENGTHS.get(name)}

    return _edited(chain, remove)


def length_keys(chain: Any, path: str = "optimizer") -> list[str]:
    """Return the keys of the numbers of updates that `with_lengths` could fill in.

    Example:
        >>> length_keys([{"sgd": {"learning_rate": {"cosine_decay_schedule": {}}}}])
        ['optimizer.0.sgd.learning_rate.cosine_decay_schedule.decay_steps']
    """
    if isinstance(chain, Mapping):
        items = [(str(key), value) for key, value in chain.items()]
    elif isinstance(chain, list | tuple):
        items = [(str(index), value) for index, value in enumerate(chain)]
    else:
        return []
    found = []
    for key, value in items:
        if key in _LENGTHS:
            found.append(f"{path}.{key}.{_LENGTHS[key]}")
        elif key != "join_schedules":
            found += length_keys(value, f"{path}.{key}")
    return found


# -- the learning rate --------------------------------------------------------


def with_learning_rate(chain: Node, rate: Node) -> Node:
    """Set the learning rate of each transformation that has one.

    Of a schedule, the highest rate is set: its `peak_value`, `value` or `init_value`,
    or the `end_value` of one that rises. Other values stay as they are.

    Raises:
        SourceError: no transformation has a learning rate, or a schedule has none that
            is its highest, or its last rate is above the new one.
    """
    found = 0

    def change(name: str, arguments: dict[Any, Node], call: Node) -> dict[Any, Node]:
        nonlocal found
        known = factory(name)
        if known is None or "learning_rate" not in known.arguments:
            return arguments
        found += 1
        before = arguments.get("learning_rate", Node(None, ""))
        return {**arguments, "learning_rate": _with_highest(before, rate)}

    changed = _edited(chain, change)
    if not found:
        raise SourceError(
            "got an optimizer without a learning_rate, expected one such as adamw; "
            "write the key of the optimizer that sets it"
        )
    return changed


def _with_highest(before: Node, rate: Node) -> Node:
    """Return a learning rate, or a schedule, whose highest value is `rate`."""
    if not isinstance(before.value, dict) or len(before.value) != 1:
        return rate
    [(name, call)] = before.value.items()
    known = factory(str(name))
    arguments = call.value if isinstance(call.value, dict) else {}
    key = _highest(known.arguments if known else {}, arguments)
    if key is None:
        raise SourceError(
            f"got the schedule {describe(name)}, which has no single highest rate; "
            "write the keys of the schedule"
        )
    end = arguments.get("end_value", Node(None, "")).value
    is_end = key != "end_value" and _is_number(end) and _is_number(rate.value)
    if is_end and rate.value < end:
        raise SourceError(
            f"got {describe(rate.value)}, expected at least the end_value "
            f"{describe(end)} of {name}; lower that first"
        )
    return Node({name: Node({**arguments, key: rate}, call.place)}, before.place)


def _highest(known: dict[str, str], arguments: dict[Any, Node]) -> str | None:
    if "peak_value" in known:
        return "peak_value"
    first, last = (
        arguments.get(key, Node(None, "")).value for key in ("init_value", "end_value")
    )
    if "end_value" in known and _is_number(first) and _is_number(last) and last > first:
        return "end_value"
    return next((key for key in ("value", "init_value") if key in known), None)


def learning_rate_paths(chain: Sequence[Any]) -> list[KeyPath]:
    """Return where `with_learning_rate` sets the learning rate.

    Raises:
        SourceError: as for `with_learning_rate`.

    Example:
        >>> learning_rate_paths([{"adam": {"learning_rate": 0.1}}])
        [(0, 'adam', 'learning_rate')]
    """
    rate = Node(object(), "")  # not a number, so that it is compared with none
    changed = with_learning_rate(with_place(chain, ""), rate)
    return [path for path, value in _leaves(plain(changed), ()) if value is rate.value]


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, list | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, (*path, key))
    else:
        yield path, value


# -- the chain ----------------------------------------------------------------


def _edited(node: Node, edit: Edit) -> Node:
    """Apply `edit` to the arguments of each call, from the innermost."""
    if isinstance(node.value, list):
        return Node([_edited(item, edit) for item in node.value], node.place)
    if not isinstance(node.value, dict) or "join_schedules" in node.value:
        return node
    inner = {key: _edited(item, edit) for key, item in node.value.items()}
    for name, call in inner.items():
        if isinstance(name, str) and isinstance(call.value, dict | None):
            arguments = edit(name, call.value or {}, call)
            if arguments:
                inner[name] = Node(arguments, call.place)
    return Node(inner, node.place)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
