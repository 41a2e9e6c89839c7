"""What each input, at each step, contributed to an output."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxlstm import sequences
from jaxlstm.cells.base import check_size
from jaxlstm.shapes import Features, show


class Attribution(NamedTuple):
    """An output, taken apart.

    values   `[T, *b, D]`: what each input contributed
    gap      what the output changed by and the values do not add up to, shaped as the
             output; the error of the quadrature
    """

    values: Features
    gap: Array


def integrated_gradients(
    function: Callable[[Features], Array],
    xs: ArrayLike,
    *,
    baseline: ArrayLike = 0.0,
    nodes: int = 32,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Attribution:
    """What each input contributed to an output, compared with a baseline:

        a = (x - x') ⊙ ∫ ∇F(x' + α (x - x')) dα  over 0..1        x' the baseline

    by Gauss-Legendre quadrature. The attributions sum to F(x) - F(x'), but for `gap`:
    take more nodes where it is not small. 0 at a step that does not happen.

    Arguments:
        function: `xs -> number`, or `xs -> [*b]` where no row sees another.
        xs: `[T, *b, D]`.
        baseline: a number, or an array like xs: inputs that say nothing.
        nodes: how many gradients are taken, one after the other.
        lengths, mask: those that the function gives to `unroll`.

    Errors: `ValueError` for an output or a baseline of another shape, and for a number
    of nodes below 1.

    Reference: Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks",
    2017, https://arxiv.org/abs/1703.01365

    >>> import jax, jax.numpy as jnp, jaxlstm as jl
    >>> cell = jl.lstm()
    >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
    >>> def output(xs):
    ...     state, hs = jl.unroll(cell, params, xs)
    ...     return state.h[..., 0]
    >>> found = integrated_gradients(output, jnp.ones((7, 2, 3)))
    >>> found.values.shape, bool((abs(found.gap) < 1e-5).all())
    ((7, 2, 3), True)
    """
    with sequences.speaking("integrated_gradients"):
        check_size("nodes", nodes)
        end = sequences.features("xs", xs)
        steps = sequences.steps(end.shape[:-1], lengths=lengths, mask=mask)
        end, start = sequences.silence((end, _like(end, baseline)), steps)
        shape = jax.eval_shape(function, end).shape
        if shape not in ((), end.shape[1:-1]):
            raise ValueError(
                f"function gives {show(shape)}; one number, or one for each of the "
                f"rows {show(end.shape[1:-1])}, is needed."
            )
        slope = jax.grad(lambda xs: function(xs).sum())
        way = end - start

        def node(total: Features, at: tuple[Array, Array]) -> tuple[Features, None]:
            place, weight = at
            return total + weight * slope(start + place * way), None

        places, weights = np.polynomial.legendre.leggauss(nodes)
        quadrature = jnp.asarray([(places + 1) / 2, weights / 2], end.dtype)
        total, _ = lax.scan(node, jnp.zeros_like(end), tuple(quadrature))
        values = sequences.settle(way * total, steps)
        axes = None if shape == () else (0, end.ndim - 1)
        return Attribution(values, function(end) - function(start) - values.sum(axes))


def _like(xs: Features, baseline: ArrayLike) -> Features:
    baseline = sequences.as_array("baseline", baseline).astype(xs.dtype)
    if baseline.shape not in ((), xs.shape):
        raise ValueError(
            f"baseline has shape {show(baseline.shape)}; a number or an array "
            f"{show(xs.shape)}, as xs is, is needed."
        )
    return jnp.broadcast_to(baseline, xs.shape)
