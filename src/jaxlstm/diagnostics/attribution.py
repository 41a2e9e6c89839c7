"""What each input, at each step, contributed to an output."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxlstm import masking
from jaxlstm.cells.base import check_size
from jaxlstm.typing import Features, show
from jaxlstm.validation import check_function


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
        function: `xs -> number`, or `xs -> [*b]` where no row sees another; an array
            of floating point numbers, as `jax.numpy` makes it of xs.
        xs: `[T, *b, D]`, or `[T, *b, *space, D]`.
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
    with masking.error_prefix("integrated_gradients"):
        check_size("nodes", nodes)
        example = "lambda xs: jl.unroll(cell, params, xs)[0].h[..., 0]"
        check_function("function", function, "xs", such_as=example)
        end = masking.features("xs", xs)
        steps = masking.steps_of("xs", end, lengths, mask, None)
        end, start = masking.zero_inactive((end, _like(end, baseline)), steps)
        output = functools.partial(_output, function)
        given = jax.eval_shape(output, end).ndim
        slope = jax.grad(lambda xs: output(xs).sum())
        way = end - start

        def node(total: Features, at: tuple[Array, Array]) -> tuple[Features, None]:
            place, weight = at
            return total + weight * slope(start + place * way), None

        places, weights = np.polynomial.legendre.leggauss(nodes)
        quadrature = jnp.asarray([(places + 1) / 2, weights / 2], end.dtype)
        total, _ = lax.scan(node, jnp.zeros_like(end), tuple(quadrature))
        values = masking.mask_outputs(way * total, steps)
        axes = (0, *range(1 + given, end.ndim))
        return Attribution(values, output(end) - output(start) - values.sum(axes))


def _output(function: Callable[[Features], Array], xs: Features) -> Array:
    """Errors: `ValueError` for what is neither one number nor one for each row."""
    given = function(xs)
    if not isinstance(given, Array) or not jnp.issubdtype(given.dtype, jnp.floating):
        kind = given.dtype if isinstance(given, Array) else type(given).__name__
        raise ValueError(
            f"function gives {kind}; one array of floating point numbers, made of xs, "
            "is needed, such as state.h[..., 0]."
        )
    rows = xs.shape[1:-1]
    if given.shape != rows[: given.ndim]:
        raise ValueError(
            f"function gives {show(given.shape)}; one number, or one for each of the "
            f"rows {show(rows)}, is needed."
        )
    return given


def _like(xs: Features, baseline: ArrayLike) -> Features:
    baseline = masking.as_array("baseline", baseline)
    if jnp.issubdtype(baseline.dtype, jnp.complexfloating):
        raise ValueError(f"baseline is {baseline.dtype}; real numbers are needed.")
    baseline = baseline.astype(xs.dtype)
    if baseline.shape not in ((), xs.shape):
        raise ValueError(
            f"baseline has shape {show(baseline.shape)}; a number or an array "
            f"{show(xs.shape)}, as xs is, is needed."
        )
    return jnp.broadcast_to(baseline, xs.shape)
