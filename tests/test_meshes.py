"""`unroll` over many devices: `shard_map`, automatic and explicit meshes.

On eight virtual CPU devices, with the batch split over "rows" and hidden units over
"units", results equal those of one device. Collectives are counted in the compiled
programs.
"""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlstm as jl
from cases import Kind, Shape, assert_same, draw_which

pytestmark = pytest.mark.thorough

T, B, D, H = 5, 8, 3, 8
LSTM = jl.lstm()

# Cells, and the collectives of a step if the devices share its units: gathers of h and,
# in some cells, of one more value; sums for statistics.
CELLS = {
    "lstm": (LSTM, 1, 0),
    "classic": (jl.classic_lstm(), 1, 0),
    "peephole": (jl.peephole_lstm(), 1, 0),
    "coupled": (jl.coupled_lstm(peepholes=True), 1, 0),
    "projected": (jl.projected_lstm(8), 2, 0),
    "layer_norm": (jl.layer_norm_lstm(), 1, 5),
    "conv": (jl.conv_lstm(3), 1, 0),
    "simple_rnn": (jl.simple_rnn(), 1, 0),
    "gru": (jl.gru(), 1, 0),
    "gru_1.0": (jl.gru(reset_after=False), 2, 0),
    "learned": (jl.learned_initial_state(LSTM), 1, 0),
}
MESHES = {"rows": (8, 1), "units": (1, 8), "both": (4, 2)}
KINDS = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}
ROWS = P(None, "rows")

every_cell = pytest.mark.parametrize("name", CELLS)
every_kind = pytest.mark.parametrize("kind", KINDS)


class Problem(NamedTuple):
    """Arguments of `unroll`, or their partition specs."""

    params: Any
    xs: Any
    state: Any
    steps: dict[str, Any]


def problem(cell: jl.Cell, option: str = "lengths", given_state: bool = True):
    """Draw parameters, rows with padding, resets and a non-zero state."""
    rng = np.random.default_rng(17)

    def noise(leaf):
        return leaf + jnp.asarray(rng.normal(size=leaf.shape) / 2)

    space = (2,) * cell.spatial_axes
    params = cell.init(jax.random.key(0), D, H, dtype=jnp.float64)
    params = jax.tree.map(noise, params)
    xs = noise(jnp.zeros((T, B, *space, D)))
    state = jax.tree.map(noise, cell.initial_state(params, (B, *space), dtype=xs.dtype))
    which = draw_which(rng, Shape(T, (B,), D, H), Kind(option, True))._asdict()
    steps = {name: which[name] for name in {option, "resets"} - {"none"}}
    return Problem(params, xs, state if given_state else None, steps)


def placed(values: Problem, *, units: bool) -> Problem:
    """Return a partition spec for each argument."""

    def last(leaf):
        return P(*(None,) * (leaf.ndim - 1), "units" if units else None)

    return Problem(
        jax.tree.map(last, values.params),
        ROWS,
        jax.tree.map(lambda leaf: P("rows"), values.state),
        {name: P("rows") if name == "lengths" else ROWS for name in values.steps},
    )


def make_mesh(shape: str, kind: AxisType):
    return jax.make_mesh(MESHES[shape], ("rows", "units"), axis_types=(kind, kind))


def put(mesh, values, specs):
    def one(spec, value):
        return jax.device_put(value, NamedSharding(mesh, spec))

    return jax.tree.map(one, specs, values)


@functools.cache
def runner(cell: jl.Cell, every: int | None = None):
    def run(params, xs, state, steps):
        return jl.unroll(cell, params, xs, state, **steps, checkpoint_every=every)

    return run


def answer(run, values: Problem):
    """Return state and outputs, and the gradients of a scalar of both."""

    def loss(params, xs, state, steps):
        last, hs = run(params, xs, state, steps)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves((last, hs))), (last, hs)

    graded = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    (_, out), gradients = jax.jit(graded)(*values)
    return jax.device_get((out, gradients))


@functools.cache
def judged(name: str, option: str = "lengths", given_state: bool = True):
    """Return the result on one device."""
    cell = CELLS[name][0]
    return answer(runner(cell), problem(cell, option, given_state))


def over(mesh, run, values: Problem, *, units: bool):
    """Return the result on a mesh."""
    with jax.set_mesh(mesh):
        return answer(run, put(mesh, values, placed(values, units=units)))


def mapped(mesh, run, values: Problem, check_vma: bool = True):
    """Return the result in `shard_map` over the rows."""
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=tuple(placed(values, units=False)),
        out_specs=(P("rows"), ROWS),
        check_vma=check_vma,
    )


def test_there_are_eight_devices():
    assert len(jax.devices()) == 8


# -- an explicit mesh without a context -----------------------------------------


@pytest.fixture
def rows_mesh():
    return jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Explicit,))


def close(got, expected, tolerance=1e-12):
    def compare(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)

    jax.tree.map(compare, got, expected)


@every_cell
def test_an_explicit_mesh_needs_no_context(name, rows_mesh, x64):
    """The mesh is in the types of the rows; parameters may be on it or on none."""
    values = problem(CELLS[name][0])
    specs = placed(values, units=False)
    for on_mesh in False, True:
        given = put(rows_mesh, values, specs)
        if not on_mesh:
            given = given._replace(params=values.params)
        close(answer(runner(CELLS[name][0]), given), judged(name))


@pytest.mark.parametrize(
    "layer",
    [
        jl.stack(LSTM, (8, 8), dropout=0.1),
        jl.stack(LSTM, (8,), bidirectional=True),
        jl.serial(rnn=jl.recurrent(LSTM, 8), drop=jl.dropout(0.1), head=jl.linear(3)),
        jl.residual(jl.recurrent(jl.zoneout(LSTM, h_rate=0.1), D)),
        jl.serial(embed=jl.embed(9, 4), rnn=jl.recurrent(jl.weight_drop(LSTM, 0.1), 8)),
    ],
    ids=["stack", "bidirectional", "serial", "residual", "embed"],
)
def test_layers_on_an_explicit_mesh_need_no_context(layer, rows_mesh):
    rng = np.random.default_rng(0)
    try:
        params, _ = layer.init(jax.random.key(0))
        xs = rng.integers(0, 9, (T, B))
    except ValueError:
        params, _ = layer.init(jax.random.key(0), D)
        xs = rng.normal(size=(T, B, D)).astype(np.float32)

    def loss(params, xs):
        return jnp.sum(layer.apply(params, xs, key=jax.random.key(1))[1] ** 2)

    run = jax.jit(jax.value_and_grad(loss))
    sharded = jax.device_put(xs, NamedSharding(rows_mesh, ROWS))
    close(jax.device_get(run(params, sharded)), jax.device_get(run(params, xs)), 2e-5)
    _, ys = layer.apply(params, sharded)  # outside of `jit`, parameters on one device
    assert jax.typeof(ys).sharding.spec[1] == "rows"


# -- rows of a batch ----------------------------------------------------------


@every_kind
@pytest.mark.parametrize("name", ["lstm", "conv"])
def test_rows_over_a_mesh(name, kind, x64):
    """The other cells are tested below, with their units on a mesh as well."""
    cell = CELLS[name][0]
    mesh = make_mesh("rows", KINDS[kind])
    assert_same(over(mesh, runner(cell), problem(cell), units=False), judged(name))


@every_cell
def test_rows_in_shard_map(name, x64):
    cell = CELLS[name][0]
    values = problem(cell)
    run = mapped(make_mesh("rows", AxisType.Auto), runner(cell), values)
    assert_same(answer(run, values), judged(name))


COMBINATIONS = pytest.mark.parametrize(
    ("option", "every", "given_state"),
    [
        ("none", None, False),
        ("lengths", 2, False),
        ("mask", None, False),
        ("mask", 2, True),
    ],
)


@COMBINATIONS
def test_shard_map(option, every, given_state, x64):
    """With `check_vma=False`."""
    values = problem(LSTM, option, given_state)
    mesh = make_mesh("both", AxisType.Auto)
    run = mapped(mesh, runner(LSTM, every), values, check_vma=False)
    assert_same(answer(run, values), judged("lstm", option, given_state))


@COMBINATIONS
def test_explicit_mesh(option, every, given_state, x64):
    """`jax.make_mesh`'s default axes: the sharding is part of the type."""
    values = problem(LSTM, option, given_state)
    mesh = make_mesh("both", AxisType.Explicit)
    got = over(mesh, runner(LSTM, every), values, units=False)
    assert_same(got, judged("lstm", option, given_state))


def test_explicit_mesh_without_jit(x64):
    values = problem(LSTM)
    mesh = make_mesh("both", AxisType.Explicit)
    with jax.set_mesh(mesh):
        arguments = put(mesh, values, placed(values, units=True))
        last, hs = runner(LSTM)(*arguments)
        assert hs.sharding.spec == P(None, "rows", "units")
        assert last.h.sharding.spec == last.c.sharding.spec == P("rows", "units")
    assert_same((last, hs), judged("lstm")[0])


def test_gradient_inside_shard_map(x64):
    """`grad` of the sum over the devices, within the mapped function."""
    values = problem(LSTM, "none", False)

    def loss(params, xs):
        return jnp.sum(jl.unroll(LSTM, params, xs)[1] ** 2)

    def total(params, xs):
        return jax.lax.psum(loss(params, xs), "rows")

    mapped = jax.shard_map(
        jax.grad(total),
        mesh=make_mesh("both", AxisType.Auto),
        in_specs=(P(), ROWS),
        out_specs=P(),
    )
    expected = jax.grad(loss)(*values[:2])
    assert_same(jax.jit(mapped)(*values[:2]), expected)


# -- hidden units -------------------------------------------------------------


SHARED = [("lstm", "units"), *((name, "both") for name in CELLS)]
COUNTED = [  # on an automatic mesh a convolution takes one view of its kernel
    (*case, kind)
    for case in SHARED
    for kind in KINDS
    if (case[0], kind) != ("conv", "automatic")
]


@every_kind
@pytest.mark.parametrize(("name", "shape"), SHARED)
def test_units_over_a_mesh(name, shape, kind, x64):
    """The gates of a unit stay on the device of its h and c."""
    cell = CELLS[name][0]
    mesh = make_mesh(shape, KINDS[kind])
    assert_same(over(mesh, runner(cell), problem(cell), units=True), judged(name))


COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\("
)
CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")


def travels(program: str) -> tuple[list[str], list[str]]:
    """Return the collectives within the loops of a compiled program, and all others."""
    computations: dict[str, str] = {}
    for text in re.split(r"\n(?=\S)", program):
        if found := re.match(r"(?:ENTRY )?%?([\w.-]+) \(", text):
            computations[found[1]] = text

    def within(name: str) -> list[str]:
        text = computations[name]
        called = (one for name in CALLED.findall(text) for one in within(name))
        return [*COLLECTIVE.findall(text), *called]

    loops = re.findall(r"body=%?([\w.-]+)", program)
    return [one for name in loops for one in within(name)], COLLECTIVE.findall(program)


def compiled(run, mesh, values: Problem) -> str:
    with jax.set_mesh(mesh):
        arguments = put(mesh, values, placed(values, units=True))
        return jax.jit(run).lower(*arguments).compile().as_text()


@pytest.mark.parametrize(("name", "shape", "kind"), COUNTED)
def test_collectives_of_a_step(name, shape, kind, x64):
    """One collective gathers h, and there are none outside of the steps."""
    cell, gathered, summed = CELLS[name]
    program = compiled(runner(cell), make_mesh(shape, KINDS[kind]), problem(cell))
    inside, everywhere = travels(program)
    assert inside == everywhere
    assert sorted(inside) == ["all-gather"] * gathered + ["all-reduce"] * summed


def test_collectives_of_a_backward_step(x64):
    """On an explicit mesh h is not gathered again; its gradient is summed over the
    units. That of the parameters is summed over the rows once, after the loop.
    """
    values = problem(LSTM)

    def loss(params, xs, state, steps):
        return jnp.sum(runner(LSTM)(params, xs, state, steps)[1])

    mesh = make_mesh("both", AxisType.Explicit)
    inside, _ = travels(compiled(jax.grad(loss), mesh, values))
    assert sorted(inside) == ["all-gather", "all-reduce"]


# -- ensembles and layers -----------------------------------------------------


@pytest.mark.parametrize("other", ["rows", "units"])
@every_kind
def test_ensembles(kind, other, x64):
    """Members are split over one axis; rows or units over the other."""
    mesh = jax.make_mesh((4, 2), ("members", other), axis_types=(KINDS[kind],) * 2)
    values = problem(LSTM, "lengths", False)
    keys = jax.random.split(jax.random.key(1), 4)

    def answers(params, xs, state, steps):
        return jax.vmap(lambda one: runner(LSTM)(one, xs, state, steps))(params)

    drawn = jax.vmap(lambda key: LSTM.init(key, D, H, dtype=jnp.float64))(keys)
    specs = placed(values, units=other == "units")
    members = jax.tree.map(lambda spec: P("members", *spec), specs.params)
    if other == "units":
        specs = Problem(None, P(), None, {name: P() for name in values.steps})
    with jax.set_mesh(mesh):
        specs = specs._replace(params=members)
        arguments = put(mesh, values._replace(params=drawn), specs)
        got = answer(answers, arguments)
    assert_same(got, answer(answers, values._replace(params=drawn)))


@every_kind
def test_members_have_no_collectives_between_them(kind, x64):
    mesh = jax.make_mesh((8,), ("members",), axis_types=(KINDS[kind],))
    keys = jax.random.split(jax.random.key(1), 8)
    xs = problem(LSTM).xs

    def run(keys):
        params = jax.vmap(lambda key: LSTM.init(key, D, H, dtype=jnp.float64))(keys)
        return jax.vmap(lambda one: jl.unroll(LSTM, one, xs))(params)

    with jax.set_mesh(mesh):
        keys = put(mesh, keys, P("members"))
        program = jax.jit(run).lower(keys).compile().as_text()
    assert travels(program) == ([], [])


@pytest.mark.parametrize("units", [False, True])
@every_kind
def test_layers_over_a_mesh(kind, units, x64):
    """Embedding, both directions, learned initial states and a linear layer."""
    model = jl.serial(
        jl.embed(7, 4, dtype=jnp.float64),
        jl.stack(jl.learned_initial_state(LSTM), (H, H), bidirectional=True),
        jl.linear(4),
    )
    params, _ = model.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    tokens = jax.random.randint(jax.random.key(1), (T, B), 0, 7)
    values = problem(LSTM)._replace(params=params, xs=tokens, state=None)

    def run(params, xs, state, steps):
        return model.apply(params, xs, **steps)

    def loss(params, xs, state, steps):
        last, ys = run(params, xs, state, steps)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves((last, ys)))

    graded = jax.jit(jax.value_and_grad(loss))
    mesh = make_mesh("both", KINDS[kind])
    with jax.set_mesh(mesh):
        got = graded(*put(mesh, values, placed(values, units=units)))
    assert_same(jax.device_get(got), graded(*values))


ASKED = {
    "gradient_flow": lambda xs, **how: jl.diagnostics.gradient_flow(
        LSTM, WEIGHTS, xs, loss=lambda state, hs: (hs**2).sum(), **how
    ),
    "carousel": lambda xs, **how: jl.diagnostics.carousel(LSTM, WEIGHTS, xs, **how),
    "memory_span": lambda xs, **how: (
        jl.diagnostics.memory_span(LSTM, WEIGHTS, xs, **how).sensitivity
    ),
    "step_jacobians": lambda xs, **how: jl.diagnostics.step_jacobians(
        LSTM, WEIGHTS, xs, **how
    ),
    "lyapunov_exponents": lambda xs, **how: jl.diagnostics.lyapunov_exponents(
        LSTM, WEIGHTS, xs, **how
    )[None],
}
WEIGHTS = LSTM.init(jax.random.key(3), D, H)


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("kind", ["shard_map", "explicit"])
def test_diagnostics_of_rows_on_several_devices(name, kind):
    """Diagnostics of split rows equal those on one device."""
    xs = jax.random.normal(jax.random.key(4), (T, B, D))
    lengths = jnp.array([5, 3, 1, 5, 2, 4, 5, 1])

    def run(xs, lengths):
        return ASKED[name](xs, lengths=lengths)

    if kind == "shard_map":
        mesh = make_mesh("rows", AxisType.Auto)
        places = ROWS, P("rows")
        split = jax.shard_map(run, mesh=mesh, in_specs=places, out_specs=ROWS)
        got = jax.jit(split)(xs, lengths)
    else:
        mesh = make_mesh("rows", AxisType.Explicit)
        with jax.set_mesh(mesh):
            got = jax.jit(run)(put(mesh, xs, ROWS), put(mesh, lengths, P("rows")))
    assert_same(jax.device_get(got), run(xs, lengths), 1e-5)


# -- statistics of stacked gates -------------------------------------------


GATES = jl.Gates(*jax.random.uniform(jax.random.key(2), (4, T, B, H)))
MASK = jax.random.uniform(jax.random.key(3), (T, B)) < 0.7
STATISTICS = {
    "saturation": lambda gates, mask: jl.diagnostics.saturation(gates, mask=mask),
    "fractions": lambda gates, mask: jl.diagnostics.fractions(gates, mask=mask),
    "timescales": lambda gates, mask: jl.diagnostics.timescales(gates, mask=mask),
    "closed_intervals": lambda gates, mask: jl.diagnostics.closed_intervals(
        gates.i, threshold=0.5, mask=mask, resets=mask
    ),
    "forget_products": lambda gates, mask: jl.diagnostics.forget_products(
        gates, mask=mask, resets=mask
    ),
    "dead_units": lambda gates, mask: jl.diagnostics.dead_units(
        gates.i, band=0.9, mask=mask
    ),
    "duplicate_units": lambda gates, mask: jl.diagnostics.duplicate_units(
        gates.i, mask=mask
    ),
}


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("name", STATISTICS)
@every_kind
def test_statistics_over_a_mesh(kind, name, units):
    spec = P(None, "rows", "units") if units else ROWS
    mesh = make_mesh("both", KINDS[kind])
    with jax.set_mesh(mesh):
        gates = jax.tree.map(lambda gate: put(mesh, gate, spec), GATES)
        got = jax.jit(STATISTICS[name])(gates, put(mesh, MASK, ROWS))
    assert_same(jax.device_get(got), STATISTICS[name](GATES, MASK), 1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_closed_intervals_of_the_rows_of_each_device(masked):
    """In `shard_map`, a carry must vary over the mesh as the gates do."""

    def longest(gates, mask):
        function = STATISTICS["closed_intervals"]
        return function(gates, mask if masked else None).longest

    mapped = jax.shard_map(
        longest,
        mesh=make_mesh("rows", AxisType.Auto),
        in_specs=(ROWS, ROWS),
        out_specs=P("rows"),
    )
    assert_same(jax.jit(mapped)(GATES, MASK), longest(GATES, MASK))
