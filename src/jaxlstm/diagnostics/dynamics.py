"""Jacobians of the steps, their spectra, and Lyapunov exponents.

The state of a row is one vector s of all that the cell carries, S numbers: for an
LSTM, h and then c, so that S = 2 H.
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
from jaxlstm.diagnostics.gradients import check_differentiable, check_no_spatial_axes
from jaxlstm.engines.loops import (
    freeze_inactive,
    match_carry_type,
    reset_carry,
    step_struct,
)
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, Key, accumulator_dtype, as_key_or_none, is_explicit


class Spectrum(NamedTuple):
    """Singular values and eigenvalues of the Jacobian of each step.

    Attributes:
        singular_values: `[T, *b, S]`, in decreasing order: the factors by which a
            small change of the state can grow or shrink.
        eigenvalues: complex `[T, *b, S]`, in no particular order.
    """

    singular_values: Array
    eigenvalues: Array


class Trajectory(NamedTuple):
    """A trajectory to linearize along.

    Attributes:
        step: `(state, inputs) -> state`, one step from a state after its reset.
        initial: the state that a reset restores.
        state: the state before the first step.
        inputs: per step: x, the result of `prepare`, active and resets.
        steps: the mask of the executed steps.
        batch_ndim: the number of batch axes.
    """

    step: Callable[[State, Any], State]
    initial: State
    state: State
    inputs: Any
    steps: StepMask
    batch_ndim: int


def step_jacobians(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
    resets: ArrayLike | None = None,
) -> Array:
    """Compute the Jacobian of every step along the trajectory of xs:

        J_t = ∂s_t / ∂s_{t-1}        J_t[j, k] = ∂s_t[j] / ∂s_{t-1}[k]

    It is 0 at masked and padded steps. At a reset, it is the derivative with respect
    to the initial state that the step starts from.

    Args:
        cell: the cell.
        params: its parameters.
        xs: `[T, *b, D]`.
        state: the state before the first step; None for the cell's initial state.
        lengths: as in `unroll`.
        mask: as in `unroll`.
        resets: as in `unroll`.

    Returns:
        `[T, *b, S, S]`, in float32 or wider.

    Raises:
        ValueError: as in `unroll`; or the cell has spatial axes, or its state a leaf
            without a derivative.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.simple_rnn(activation="identity")
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> jacobians = step_jacobians(cell, params, jnp.ones((7, 3)))
        >>> jacobians.shape, bool(jnp.allclose(jacobians[0], params.w_h.T))
        ((7, 5, 5), True)
    """
    with masking.error_prefix("step_jacobians"):
        path = _trajectory(cell, params, xs, state, lengths, mask, resets)

        def body(state: State, inputs: Any) -> tuple[State, Array]:
            return _linearized_step(path, state, inputs, None)

        _, jacobians = lax.scan(body, path.state, path.inputs)
        return masking.mask_outputs(jacobians, path.steps)


def jacobian_spectrum(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | StepMask | None = None,
    resets: ArrayLike | None = None,
) -> Spectrum:
    """Compute the singular values and eigenvalues of the Jacobian of every step.

    Singular values near 1 are called dynamical isometry: changes of the state neither
    grow nor shrink. All values are 0 at masked and padded steps.

    Args:
        cell: the cell.
        params: its parameters.
        xs: `[T, *b, D]`.
        state: the state before the first step; None for the cell's initial state.
        lengths: as in `unroll`.
        mask: as in `unroll`.
        resets: as in `unroll`.

    Raises:
        ValueError: as in `step_jacobians`, which returns the Jacobians themselves.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.simple_rnn(activation="identity")
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> spectrum = jacobian_spectrum(cell, params, jnp.ones((7, 3)))
        >>> spectrum.eigenvalues.shape, bool(jnp.allclose(spectrum.singular_values, 1))
        ((7, 5), True)

    Reference:
        Pennington, Schoenholz and Ganguli, "Resurrecting the sigmoid in deep learning
        through dynamical isometry", 2017, https://arxiv.org/abs/1711.04735
    """
    with masking.error_prefix("jacobian_spectrum"):
        jacobians = step_jacobians(
            cell, params, xs, state, lengths=lengths, mask=mask, resets=resets
        )
        return Spectrum(
            jnp.linalg.svd(jacobians, compute_uv=False), jnp.linalg.eigvals(jacobians)
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
    mask: ArrayLike | StepMask | None = None,
    resets: ArrayLike | None = None,
) -> Array:
    """Compute the mean rates at which states near the trajectory of xs diverge:

        Q_t R_t = J_t Q_{t-1}        λ = mean log |diag R_t|        in nats per step

    A small distance grows as exp(λ_1 t): λ_1 > 0 is chaos, λ = 0 keeps information,
    and λ < 0 forgets it within -1 / λ steps.

    An exponent is -inf if a step loses its direction, that is if no more than rounding
    error is left of it, about 1e-6 in float32. A reset replaces the state and keeps
    the directions.

    Args:
        cell: the cell.
        params: its parameters.
        xs: `[T, *b, D]`.
        state: the state before the first step; None for the cell's initial state.
        count: number of exponents, the largest ones; None for all S.
        key: random key that draws the initial directions Q_0; required if count is
            below S. None takes the axes of the state. If a step loses one axis
            completely, these may miss a direction that random ones would find.
        warm_up: number of executed steps of each row that are left out of the mean;
            they only align the directions.
        lengths: as in `unroll`.
        mask: as in `unroll`.
        resets: as in `unroll`.

    Returns:
        `[*b, count]`, in decreasing order, float32 or wider; NaN for a row without
        steps in the mean.

    Raises:
        ValueError: as in `unroll`; count is outside 1..S, or below S without a key;
            warm_up is not an integer >= 0; or the cell has spatial axes.
        TypeError: key is not a random key.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.simple_rnn(activation="identity")
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=2)
        >>> decay = params._replace(w_h=jnp.diag(jnp.exp(jnp.array([-0.5, -0.1]))))
        >>> exponents = lyapunov_exponents(cell, decay, jnp.ones((20, 3)))
        >>> [round(exponent, 3) for exponent in exponents.tolist()]
        [-0.1, -0.5]

    Reference:
        Benettin et al., "Lyapunov characteristic exponents for smooth dynamical
        systems", 1980, https://doi.org/10.1007/BF02128236

        Engelken, Wolf and Abbott, "Lyapunov spectra of chaotic recurrent neural
        networks", 2023, https://arxiv.org/abs/2006.02427

        Vogt et al., "On Lyapunov exponents for RNNs", 2022,
        https://arxiv.org/abs/2006.14123
    """
    key = as_key_or_none("lyapunov_exponents", key)
    with masking.error_prefix("lyapunov_exponents"):
        path = _trajectory(cell, params, xs, state, lengths, mask, resets)
        if not isinstance(warm_up, int | np.integer) or warm_up < 0:
            raise ValueError(f"warm_up: got {warm_up!r}, expected an integer >= 0.")
        q = _directions(_as_vector(path.state, path.batch_ndim), count, key)

        def body(carry: Any, inputs: Any) -> tuple[Any, None]:
            state, q, total, seen = carry
            active = inputs[2]
            state, tangents = _linearized_step(path, state, inputs, q)
            next_q, r = _qr(tangents)
            growth = _log_growth(tangents, r)
            growth = masking.select(seen >= warm_up, growth, jnp.zeros_like(growth))
            after = next_q, total + growth, seen + 1
            return (state, *freeze_inactive(after, (q, total, seen), active)), None

        seen, total = jnp.zeros_like(q[..., 0, 0], int), jnp.zeros_like(q[..., 0, :])
        carry = (path.state, q, total, seen)
        (_, _, total, seen), _ = lax.scan(body, carry, path.inputs)
        counted = jnp.maximum(seen - warm_up, 0).astype(total.dtype)[..., None]
        exponents = -jnp.sort(-total / jnp.broadcast_to(counted, total.shape), axis=-1)
        invalid = path.steps.invalid_length
        return exponents if invalid is None else masking.nan_rows(exponents, invalid)


def _trajectory(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    state: State | None,
    lengths: ArrayLike | None,
    mask: ArrayLike | StepMask | None,
    resets: ArrayLike | None,
) -> Trajectory:
    check_no_spatial_axes(cell)
    params, inputs, state, steps = validation.arrays(
        cell, params, xs, state, lengths, mask, resets
    )
    check_differentiable(state)
    inputs, per_step = masking.zero_inactive(inputs, steps), None
    if cell.prepare is not None:
        params, per_step = cell.prepare(params, inputs)
    initial = cell.initial_state(params, inputs.shape[1:-1], dtype=inputs.dtype)

    def step(state: State, inputs: tuple[Features, Any, Any, Any]) -> State:
        x, per_step, _, _ = inputs
        after, _ = cell.step(params, state, project(cell, params, x, per_step))
        return cast_like(state, after)

    def first_step(inputs: Any) -> State:
        first = step_struct(inputs)
        after = step(reset_carry(initial, state, *first[2:]), first)
        return freeze_inactive(after, state, first[2])

    scanned = (inputs, per_step, steps.active, steps.resets)
    after = jax.eval_shape(first_step, scanned)
    initial, state = (match_carry_type(after, one) for one in (initial, state))
    return Trajectory(step, initial, state, scanned, steps, inputs.ndim - 2)


def _linearized_step(
    path: Trajectory, state: State, inputs: Any, q: Array | None
) -> tuple[State, Array]:
    """Return the state after a step, and J q, `[*b, S, k]`; J itself if q is None."""
    *_, active, resets = inputs
    before = reset_carry(path.initial, state, active, resets)
    after, jvp = jax.linearize(lambda s: path.step(s, inputs), before)
    if q is None:
        q = _directions(_as_vector(before, path.batch_ndim), None, None)

    def product(direction: Array) -> Array:
        return _as_vector(jvp(_as_state(direction, before)), path.batch_ndim)

    tangents = jax.vmap(product, in_axes=-1, out_axes=-1)(q)
    return freeze_inactive(after, state, active), tangents


def _directions(vector: Array, count: int | None, key: Key | None) -> Array:
    """Return orthonormal columns `[*b, S, count]`: random ones, or axes if no key."""
    size = vector.shape[-1]
    count = size if count is None else count
    whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
    if not whole or not 1 <= count <= size:
        raise ValueError(
            f"count: got {count!r}, expected an integer from 1 to {size}, the size of "
            "the state."
        )
    if key is None and count < size:
        raise ValueError(
            f"key: got None with count {count} of {size}, expected a key to draw the "
            "directions, such as jax.random.key(0)."
        )
    q = jnp.eye(size, dtype=vector.dtype)
    if key is not None:
        q = jax.random.orthogonal(key, size, dtype=vector.dtype)[:, :count]
    q = jnp.broadcast_to(q, (*vector.shape[:-1], size, count))
    return q + jnp.zeros_like(vector)[..., None]  # takes the sharding of the vector


def _qr(a: Array) -> tuple[Array, Array]:
    """Return Q and R of `[*b, S, k]`.

    JAX has no sharding rule for QR on an explicit mesh, so its axes are made automatic.
    """

    def qr(a: Array) -> tuple[Array, Array]:
        q, r = jnp.linalg.qr(a)
        return q, r

    sharding = jax.typeof(a).sharding
    if is_explicit(sharding):
        split: Any = jax.sharding.auto_axes(qr, out_sharding=(sharding, sharding))
        return split(a)
    return qr(a)


def _log_growth(tangents: Array, r: Array) -> Array:
    """Return log |diag R|; -inf where R is within the rounding error of its column."""
    size = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
    rounding = 4 * math.sqrt(tangents.shape[-2]) * jnp.finfo(size.dtype).eps
    lost = size <= rounding * jnp.linalg.norm(tangents, axis=-2)
    return jnp.where(lost, -jnp.inf, jnp.log(jnp.where(lost, 1.0, size)))


def _as_vector(state: State, batch_ndim: int) -> Array:
    """Return the leaves of a state as one vector `[*b, S]`, in float32 or wider."""
    leaves = [
        leaf
        if leaf.ndim == batch_ndim + 1
        else leaf.reshape(*leaf.shape[:batch_ndim], math.prod(leaf.shape[batch_ndim:]))
        for leaf in jax.tree.leaves(state)
    ]
    dtypes = [accumulator_dtype(leaf.dtype) for leaf in leaves]
    dtype = max(dtypes, key=lambda dtype: dtype.itemsize)
    return jnp.concatenate([leaf.astype(dtype) for leaf in leaves], axis=-1)


def _as_state(vector: Array, like: State) -> State:
    """Return a vector `[*b, S]` as a state with the shapes and dtypes of another."""
    leaves, tree = jax.tree.flatten(like)
    batch_ndim = vector.ndim - 1
    sizes = [math.prod(leaf.shape[batch_ndim:]) for leaf in leaves]
    parts = jnp.split(vector, np.cumsum(sizes)[:-1].tolist(), axis=-1)
    return tree.unflatten(
        [
            part.astype(leaf.dtype)
            if leaf.ndim == batch_ndim + 1
            else part.reshape(leaf.shape).astype(leaf.dtype)
            for part, leaf in zip(parts, leaves, strict=True)
        ]
    )
