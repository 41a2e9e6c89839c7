"""jaxlstm: the default, each engine by name, and variants of its use."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlstm as jl
from benchmarks.cases import C_RATE, H_RATE, Case, Inputs, Kind, Weights
from benchmarks.peers import MODES, MODES_IN_TURN, jitted
from benchmarks.peers.base import Contender, Prepared, Program

CELLS: dict[Kind, Callable[[], jl.Cell]] = {
    "lstm": jl.lstm,
    "gru": jl.gru,
    "layer_norm": jl.layer_norm_lstm,
    "zoneout": lambda: jl.zoneout(jl.lstm(), h_rate=H_RATE, c_rate=C_RATE),
}


def model(
    case: Case, inputs: Inputs, engine: str | None, checkpoint_every: Any = None
) -> jitted.Model:
    """Return the model: `unroll` for one layer, `stack` for more; time first.

    Several members are mapped by `vmap` over parameters and inputs.
    """
    cell, sizes = CELLS[case.cell](), (case.units,) * case.layers
    stack = jl.stack(cell, sizes, bidirectional=case.bidirectional, engine=engine)
    single = case.layers == 1 and not case.bidirectional

    def apply(params: Any, xs: jax.Array, *extra: jax.Array) -> jax.Array:
        lengths = extra[0] if case.ragged else None
        key = extra[-1] if case.cell == "zoneout" else None
        if not single:
            return stack.apply(params, xs, lengths=lengths, key=key)[1]
        return jl.unroll(
            cell,
            params,
            xs,
            lengths=lengths,
            key=key,
            engine=engine,
            checkpoint_every=checkpoint_every,
        )[1]

    params = [
        [load(case, direction) for direction in directions]
        for directions in inputs.layers
    ]
    both = [
        jl.Pair(*directions) if directions[1:] else directions[0]
        for directions in params
    ]
    extra = () if inputs.lengths is None else (jnp.asarray(inputs.lengths),)
    if case.cell == "zoneout":
        extra = (jax.random.key(0),)
    xs, d_hs = jnp.asarray(inputs.xs), jnp.asarray(inputs.d_hs)
    if case.members > 1:
        apply = jax.vmap(apply)
    return jitted.Model(apply, both[0] if single else tuple(both), xs, d_hs, extra)


def load(case: Case, weights: Weights) -> Any:
    """Return the weights as parameters of the case's cell."""
    params = CELLS[case.cell]().init(
        jax.random.key(0), weights.w_x.shape[-3], case.units
    )
    return params._replace(**{k: jnp.asarray(v) for k, v in weights._asdict().items()})


def _stream(case: Case, inputs: Inputs) -> Prepared:
    """Return the program of one step of `jl.stream` on NumPy arrays."""
    params, x = load(case, inputs.layers[0][0]), np.asarray(inputs.xs[0])

    def compiled() -> Program:
        step, state = jl.stream(CELLS[case.cell](), params, x)
        step(state, x)  # the first call compiles

        def run() -> Any:
            nonlocal state
            state, h = step(state, x)
            return h

        return Program(run)

    return Prepared(compiled)


def with_engine(name: str, engine: str | None) -> Contender:
    """Return the contender `jl.unroll(..., engine=engine)`, for sequences only."""
    reason = f"a single step has no engine; {name!r} is measured for sequences only"
    return Contender(
        name,
        "jaxlstm",
        lambda case: reason if engine and "step" in case.measures else None,
        lambda case, inputs: jitted.forward(model(case, inputs, engine)),
        lambda case, inputs: jitted.training(model(case, inputs, engine)),
        _stream,
    )


# -- checkpoints in time ------------------------------------------------------


def _supports_checkpoints(case: Case) -> str | None:
    if case.group not in ("growth", "long"):
        return 'checkpoint_every="sqrt" is measured in the groups growth and long'
    return None


SQRT = Contender(
    "jaxlstm sqrt",
    "jaxlstm",
    _supports_checkpoints,
    lambda case, inputs: jitted.forward(model(case, inputs, None, "sqrt")),
    lambda case, inputs: jitted.training(model(case, inputs, None, "sqrt")),
)

# -- traces of every gate -------------------------------------------------


def _supports_traces(case: Case) -> str | None:
    if not case.plain or "step" in case.measures:
        return "traces are measured for the forward pass of one plain layer"
    return None


def _traced(engine: str | None, case: Case, inputs: Inputs) -> Prepared:
    def apply(params: Any, xs: jax.Array) -> jl.Trace:
        cell = CELLS[case.cell]()
        return jl.unroll(cell, params, xs, engine=engine, emit=jl.emit.trace)[1]

    return jitted.forward(model(case, inputs, engine)._replace(apply=apply))


def with_trace(name: str, engine: str | None) -> Contender:
    """Return the contender `unroll(..., emit=jl.emit.trace)`, forward only."""
    traced = functools.partial(_traced, engine)
    return Contender(name, "jaxlstm", _supports_traces, traced, None)


# -- the members of a population one after another -----------------------------


def _supports_members(case: Case) -> str | None:
    if case.members == 1:
        return "members in turn are measured for populations"
    return None


def in_turn(name: str, engine: str | None) -> Contender:
    """Return the contender that trains the members of a population in turn."""

    def training(case: Case, inputs: Inputs) -> Prepared:
        arrays = model(case, inputs, engine)
        one = model(case._replace(members=1), inputs, engine)
        return jitted.training_in_turn(arrays._replace(apply=one.apply))

    return Contender(name, "jaxlstm", _supports_members, None, training)


# -- the batch split over host devices ----------------------------------------


def _supports_splitting(case: Case) -> str | None:
    count = len(jax.devices())
    if count == 1:
        return "the process has one host device only"
    if case.batch % count:
        return f"a batch of {case.batch} does not divide over {count} host devices"
    if not case.plain:
        return "splitting is measured for one plain layer"
    return None


def _mesh() -> jax.sharding.Mesh:
    """Return a mesh of all devices with one axis of automatic type."""
    return jax.sharding.Mesh(jax.devices(), ("rows",))


def _sharded_model(case: Case, inputs: Inputs) -> jitted.Model:
    """Return the model with rows split over the host devices and replicated params."""
    one, mesh = model(case, inputs, None), _mesh()
    rows, everywhere = (NamedSharding(mesh, spec) for spec in (P(None, "rows"), P()))
    return one._replace(
        params=jax.device_put(one.params, everywhere),
        xs=jax.device_put(one.xs, rows),
        d_hs=jax.device_put(one.d_hs, rows),
    )


def _times_devices(program: Program) -> Program:
    """Multiply the memory by the devices, because XLA reports that of one."""
    count, temp, total = len(jax.devices()), program.temp_bytes, program.total_bytes
    if temp is None or total is None:
        return program
    return program._replace(temp_bytes=count * temp, total_bytes=count * total)


def _split_forward(case: Case, inputs: Inputs) -> Prepared:
    sharded = _sharded_model(case, inputs)
    specs = {"in_specs": (P(), P(None, "rows")), "out_specs": P(None, "rows")}
    split = jax.shard_map(sharded.apply, mesh=_mesh(), **specs)
    made = jitted.forward(sharded._replace(apply=split))
    return made._replace(compile=lambda: _times_devices(made.compile()))


def _split_training(case: Case, inputs: Inputs) -> Prepared:
    """Return the gradients of each device, summed by a second program."""
    sharded = _sharded_model(case, inputs)

    def gradients(params: Any, xs: jax.Array, d_hs: jax.Array) -> Any:
        params = jax.lax.pcast(params, ("rows",), to="varying")
        _, pull = jax.vjp(sharded.apply, params, xs)
        d_params, d_xs = pull(d_hs)
        return jax.tree.map(lambda leaf: leaf[None], d_params), d_xs

    rows = P(None, "rows")
    specs = {"in_specs": (P(), rows, rows), "out_specs": (P("rows"), rows)}
    split = jax.shard_map(gradients, mesh=_mesh(), **specs)
    add = jax.jit(lambda parts: jax.tree.map(lambda leaf: leaf.sum(0), parts))

    def compiled() -> Program:
        made = _times_devices(
            jitted.program(split, sharded.params, sharded.xs, sharded.d_hs)
        )

        def run() -> Any:
            parts, d_xs = made.run()
            return jax.block_until_ready((add(parts), d_xs))

        return made._replace(run=run)

    return Prepared(compiled)


SPLIT = Contender(
    "jaxlstm split", "jaxlstm", _supports_splitting, _split_forward, _split_training
)

CONTENDERS = (
    with_engine("jaxlstm", None),
    *(with_engine(f"jaxlstm {mode}", mode) for mode in MODES),
    SPLIT,
    SQRT,
    with_trace("jaxlstm trace", None),
    with_trace("jaxlstm native trace", "native"),
    in_turn("jaxlstm in turn", None),
    *(in_turn(f"jaxlstm {mode} in turn", mode) for mode in MODES_IN_TURN),
)
