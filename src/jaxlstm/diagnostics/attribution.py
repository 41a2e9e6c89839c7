"""Attribution of an output to the inputs of each step."""

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
from jaxlstm.masking import StepMask
from jaxlstm.typing import Features, show
from jaxlstm.validation import check_function


class Attribution(NamedTuple):
    """Contributions of the inputs to an output.

    Attributes:
        values: `[T, *b, D]`, the contribution of each input.
        gap: `F(x) - F(x')` minus the sum of the values, in the shape of the output:
            the error of the quadrature.
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
    mask: ArrayLike | StepMask | None = None,
) -> Attribution:
    """Compute the contribution of each input to an output, relative to a baseline:

        a = (x - x') ⊙ ∫ ∇F(x' + α (x - x')) dα  over 0..1        x' the baseline

    The integral is a Gauss-Legendre quadrature. The contributions sum to F(x) - F(x')
    up to `gap`; use more nodes if it is not small. They are 0 at masked and padded
    steps.

    Args:
        function: `xs -> number`, or `xs -> [*b]` where rows are independent; it
            returns a floating point array.
        xs: `[T, *b, D]`, or `[T, *b, *space, D]`.
        baseline: inputs without information: a number, or an array of the shape of xs.
        nodes: number of quadrature nodes; one gradient is computed for each, one after
            the other.
        lengths: the lengths that the function passes to `unroll`.
        mask: the mask that the function passes to `unroll`.

    Raises:
        ValueError: the output or the baseline has another shape, or nodes is below 1.

    Example:
        >>> import jax, jax.numpy as jnp, jaxlstm as jl
        >>> cell = jl.lstm()
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> def output(xs):
        ...     state, hs = jl.unroll(cell, params, xs)
        ...     return state.h[..., 0]
        >>> attribution = integrated_gradients(output, jnp.ones((7, 2, 3)))
        >>> attribution.values.shape, bool((abs(attribution.gap) < 1e-5).all())
        ((7, 2, 3), True)

    Reference:
        Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", 2017,
        https://arxiv.org/abs/1703.01365
    """
    with masking.error_prefix("integrated_gradients"):
        check_size("nodes", nodes)
        example = "lambda xs: jl.unroll(cell, params, xs)[0].h[..., 0]"
        check_function("function", function, "xs", such_as=example)
        inputs = masking.features("xs", xs)
        steps = masking.steps_of("xs", inputs, lengths, mask, None)
        inputs, start = masking.zero_inactive(
            (inputs, _as_baseline(baseline, inputs)), steps
        )
        output = functools.partial(_checked_output, function)
        output_ndim = jax.eval_shape(output, inputs).ndim
        gradient = jax.grad(lambda xs: output(xs).sum())
        difference = inputs - start

        def add_node(
            total: Features, node: tuple[Array, Array]
        ) -> tuple[Features, None]:
            alpha, weight = node
            return total + weight * gradient(start + alpha * difference), None

        # Gauss-Legendre nodes on -1..1, mapped to 0..1.
        alphas, weights = np.polynomial.legendre.leggauss(nodes)
        quadrature = jnp.asarray([(alphas + 1) / 2, weights / 2], inputs.dtype)
        total, _ = lax.scan(add_node, jnp.zeros_like(inputs), tuple(quadrature))
        values = masking.mask_outputs(difference * total, steps)
        axes = (0, *range(1 + output_ndim, inputs.ndim))
        return Attribution(values, output(inputs) - output(start) - values.sum(axes))


def _checked_output(function: Callable[[Features], Array], xs: Features) -> Array:
    """Return `function(xs)`.

    Raises:
        ValueError: it is neither one floating point number nor one per row.
    """
    output = function(xs)
    if not isinstance(output, Array) or not jnp.issubdtype(output.dtype, jnp.floating):
        kind = output.dtype if isinstance(output, Array) else type(output).__name__
        raise ValueError(
            f"function: got a result {kind}, expected one floating point array that "
            "depends on xs, such as state.h[..., 0]."
        )
    rows = xs.shape[1:-1]
    if output.shape != rows[: output.ndim]:
        raise ValueError(
            f"function: got a result of shape {show(output.shape)}, expected one "
            f"number, or one for each of the rows {show(rows)}."
        )
    return output


def _as_baseline(baseline: ArrayLike, xs: Features) -> Features:
    """Return the baseline broadcast to xs, in its dtype."""
    baseline = masking.as_array("baseline", baseline)
    if jnp.issubdtype(baseline.dtype, jnp.complexfloating):
        raise ValueError(
            f"baseline: got dtype {baseline.dtype}, expected real numbers."
        )
    baseline = baseline.astype(xs.dtype)
    if baseline.shape not in ((), xs.shape):
        raise ValueError(
            f"baseline: got shape {show(baseline.shape)}, expected a number or the "
            f"shape {show(xs.shape)} of xs."
        )
    return jnp.broadcast_to(baseline, xs.shape)
