"""The network as a dynamical system: how a small change of its state grows.

The state of a row is one vector s of all that the cell carries, S numbers: for an
LSTM h and then c, so that S = 2 H.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxlstm import masking, validation
from jaxlstm.cells.base import Cell, Params, State, cast_like, project
from jaxlstm.diagnostics.gradients import check_differentiable, check_rows_apart
from jaxlstm.engines.loops import any_moment, begun, ended
from jaxlstm.engines.loops import typed_like as carried_like
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, Key, accumulator_dtype, as_key_or_none, is_explicit


class Spectrum(NamedTuple):
    """Of the Jacobian of each step.

    singular_values   `[T, *b, S]`, falling: by how much a change can grow or shrink
    eigenvalues       complex `[T, *b, S]`, in no order
    """

    singular_values: Array
    eigenvalues: Array


class Path(NamedTuple):
    """What a walk along a trajectory needs.

    push       `(state, moment) -> state`, one step from a state that has begun
    initial    the state to begin again from
    state      the state before the first step
    moments    xs, what `prepare` brought, active, resets: over time
    steps      which of them happen
    rows       the number of batch axes
    """

    push: Callable[[State, Any], State]
    initial: State
    state: State
    moments: Any
    steps: StepMask
    rows: int


def step_jacobians(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
) -> Array:
    """The Jacobian of every step along the trajectory of xs:

        J_t = ∂s_t / ∂s_{t-1}        rows what changes, columns what it is changed by

    0 at a step that does not happen. At a reset, by the state that it begins again
    from.

    Arguments:
        others: as in `unroll`.

    Returns: `[T, *b, S, S]`.

    Errors: `ValueError` as `unroll`, and for a cell with spatial axes.

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.simple_rnn(activation="identity")
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> found = step_jacobians(cell, params, jnp.ones((7, 3)))
    >>> found.shape, bool(jnp.allclose(found[0], params.w_h.T))
    ((7, 5, 5), True)
    """
    with masking.error_prefix("step_jacobians"):
        path = _path(cell, params, xs, state, lengths, mask, resets)

        def walk(state: State, moment: Any) -> tuple[State, Array]:
            return _pushed(path, state, moment, None)

        _, jacobians = lax.scan(walk, path.state, path.moments)
        return masking.mask_outputs(jacobians, path.steps)


def jacobian_spectrum(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
) -> Spectrum:
    """Singular values and eigenvalues of the Jacobian of every step.

    All near 1 is dynamical isometry: what is carried neither grows nor shrinks. 0 at a
    step that does not happen.

    Arguments:
        others: as in `step_jacobians`, which gives the Jacobians themselves.

    Reference: Pennington, Schoenholz and Ganguli, "Resurrecting the sigmoid in deep
    learning through dynamical isometry", 2017, https://arxiv.org/abs/1711.04735

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.simple_rnn(activation="identity")
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> found = jacobian_spectrum(cell, params, jnp.ones((7, 3)))
    >>> found.eigenvalues.shape, bool(jnp.allclose(found.singular_values, 1))
    ((7, 5), True)
    """
    with masking.error_prefix("jacobian_spectrum"):
        found = step_jacobians(
            cell, params, xs, state, lengths=lengths, mask=mask, resets=resets
        )
        return Spectrum(
            jnp.linalg.svd(found, compute_uv=False), jnp.linalg.eigvals(found)
        )


def lyapunov_exponents(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    count: int | None = None,
    key: Key | None = None,
    warm_up: int = 0,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
) -> Array:
    """By how much nearby states part or meet at each step, along the trajectory of xs:

        Q_t R_t = J_t Q_{t-1}        λ = mean log |diag R_t|        in nats per step

    A small distance grows as exp(λ_1 t). λ_1 > 0 is chaos, λ = 0 remembers, λ < 0
    forgets within -1 / λ steps. -inf where a direction is lost in one step: where what
    is left of it is no more than rounding leaves, some millionths in float32. At a
    reset the directions are kept and only the trajectory begins anew.

    Arguments:
        count: how many, the largest; None for all S.
        key: draws the directions to begin with, Q_0. None takes the axes of the state,
            where all exponents are wanted; of a step that loses an axis altogether it
            then may miss a direction that is kept, which drawn ones would not.
        warm_up: so many steps of each row turn the directions and do not count.
        others: as in `unroll`.

    Returns: `[*b, count]`, falling; NaN for a row in which no step counts.

    Errors: `ValueError` as `unroll`, for a count outside 1..S, for a count below S
    without a key, and for a cell with spatial axes; `TypeError` for no key.

    References: Benettin et al., "Lyapunov characteristic exponents for smooth
    dynamical systems", 1980, https://doi.org/10.1007/BF02128236; Engelken, Wolf and
    Abbott, "Lyapunov spectra of chaotic recurrent neural networks", 2023,
    https://arxiv.org/abs/2006.02427; Vogt et al., "On Lyapunov exponents for RNNs",
    2022, https://arxiv.org/abs/2006.14123

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.simple_rnn(activation="identity")
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=2)
    >>> shrinking = params._replace(w_h=jnp.diag(jnp.exp(jnp.array([-0.5, -0.1]))))
    >>> found = lyapunov_exponents(cell, shrinking, jnp.ones((20, 3)))
    >>> [round(exponent, 3) for exponent in found.tolist()]
    [-0.1, -0.5]
    """
    key = as_key_or_none("lyapunov_exponents", key)
    with masking.error_prefix("lyapunov_exponents"):
        path = _path(cell, params, xs, state, lengths, mask, resets)
        if not isinstance(warm_up, int | np.integer) or warm_up < 0:
            raise ValueError(f"warm_up is {warm_up!r}; a number of steps is needed.")
        q = _directions(_vector(path.state, path.rows), count, key)

        def walk(carry: Any, moment: Any) -> tuple[Any, None]:
            state, q, total, seen = carry
            active = moment[2]
            state, tangents = _pushed(path, state, moment, q)
            turned, r = _qr(tangents)
            growth = _log_growth(tangents, r)
            growth = masking.select(seen >= warm_up, growth, jnp.zeros_like(growth))
            after = turned, total + growth, seen + 1
            return (state, *ended(after, (q, total, seen), active)), None

        seen, total = jnp.zeros_like(q[..., 0, 0], int), jnp.zeros_like(q[..., 0, :])
        carry = (path.state, q, total, seen)
        (_, _, total, seen), _ = lax.scan(walk, carry, path.moments)
        counted = jnp.maximum(seen - warm_up, 0).astype(total.dtype)[..., None]
        exponents = -jnp.sort(-total / jnp.broadcast_to(counted, total.shape), axis=-1)
        lost = path.steps.invalid_length
        return exponents if lost is None else masking.nan_rows(exponents, lost)


# -- a walk along a trajectory -----------------------------------------------------


def _path(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None,
    lengths: ArrayLike | None,
    mask: ArrayLike | None,
    resets: ArrayLike | None,
) -> Path:
    check_rows_apart(cell)
    found = validation.arrays(cell, params, xs, state, lengths, mask, resets)
    params, inputs, state, steps = found
    check_differentiable(state)
    inputs, each = masking.zero_inactive(inputs, steps), None
    if cell.prepare is not None:
        params, each = cell.prepare(params, inputs)
    initial = cell.initial_state(params, inputs.shape[1:-1], dtype=inputs.dtype)

    def push(state: State, moment: tuple[Features, Any, Any, Any]) -> State:
        x, each, _, _ = moment
        after, _ = cell.step(params, state, project(cell, params, x, each))
        return cast_like(state, after)

    def whole(moments: Any) -> State:
        moment = any_moment(moments)
        after = push(begun(initial, state, *moment[2:]), moment)
        return ended(after, state, moment[2])

    moments = (inputs, each, steps.active, steps.resets)
    after = jax.eval_shape(whole, moments)
    initial, state = (carried_like(after, one) for one in (initial, state))
    return Path(push, initial, state, moments, steps, inputs.ndim - 2)


def _pushed(
    path: Path, state: State, moment: Any, q: Array | None
) -> tuple[State, Array]:
    """The state after a step, and J q, `[*b, S, k]`; J itself for no q."""
    *_, active, resets = moment
    before = begun(path.initial, state, active, resets)
    after, push = jax.linearize(lambda s: path.push(s, moment), before)
    if q is None:
        q = _directions(_vector(before, path.rows), None, None)

    def along(direction: Array) -> Array:
        return _vector(push(_state(direction, before)), path.rows)

    tangents = jax.vmap(along, in_axes=-1, out_axes=-1)(q)
    return ended(after, state, active), tangents


def _directions(vector: Array, count: int | None, key: Key | None) -> Array:
    """Orthonormal columns `[*b, S, count]`: drawn, or the axes without a key."""
    size = vector.shape[-1]
    count = size if count is None else count
    whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
    if not whole or not 1 <= count <= size:
        raise ValueError(
            f"count is {count!r}; the state has {size} numbers, so from 1 to {size} "
            "exponents can be asked for."
        )
    if key is None and count < size:
        raise ValueError(
            f"count is {count} of {size} and key is None; a key is needed to draw the "
            "directions, such as jax.random.key(0)."
        )
    q = jnp.eye(size, dtype=vector.dtype)
    if key is not None:
        q = jax.random.orthogonal(key, size, dtype=vector.dtype)[:, :count]
    q = jnp.broadcast_to(q, (*vector.shape[:-1], size, count))
    return q + jnp.zeros_like(vector)[..., None]  # split over devices as the vector is


def _qr(a: Array) -> tuple[Array, Array]:
    """Q and R of `[*b, S, k]`; the axes of an explicit mesh are automatic for it."""

    def pair(a: Array) -> tuple[Array, Array]:
        q, r = jnp.linalg.qr(a)
        return q, r

    kind = jax.typeof(a).sharding
    if is_explicit(kind):
        split: Any = jax.sharding.auto_axes(pair, out_sharding=(kind, kind))
        return split(a)
    return pair(a)


def _log_growth(tangents: Array, r: Array) -> Array:
    """log |diag R|, -inf where that is no more than the rounding of its column."""
    size = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
    least = 4 * math.sqrt(tangents.shape[-2]) * jnp.finfo(size.dtype).eps
    lost = size <= least * jnp.linalg.norm(tangents, axis=-2)
    return jnp.where(lost, -jnp.inf, jnp.log(jnp.where(lost, 1.0, size)))


def _vector(state: State, rows: int) -> Array:
    """All that a row carries, `[*b, S]`, in float32 or wider; `rows` axes in b."""
    leaves = [
        leaf
        if leaf.ndim == rows + 1
        else leaf.reshape(*leaf.shape[:rows], math.prod(leaf.shape[rows:]))
        for leaf in jax.tree.leaves(state)
    ]
    dtypes = [accumulator_dtype(leaf.dtype) for leaf in leaves]
    dtype = max(dtypes, key=lambda dtype: dtype.itemsize)
    return jnp.concatenate([leaf.astype(dtype) for leaf in leaves], axis=-1)


def _state(vector: Array, like: State) -> State:
    """The state that a vector `[*b, S]` stands for, in the dtypes of another."""
    leaves, tree = jax.tree.flatten(like)
    rows = vector.ndim - 1
    ends = np.cumsum([math.prod(leaf.shape[rows:]) for leaf in leaves])[:-1].tolist()
    parts = jnp.split(vector, ends, axis=-1)
    pairs = zip(parts, leaves, strict=True)
    return tree.unflatten(
        [
            (part if leaf.ndim == rows + 1 else part.reshape(leaf.shape)).astype(
                leaf.dtype
            )
            for part, leaf in pairs
        ]
    )
