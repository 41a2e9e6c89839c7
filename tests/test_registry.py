"""Properties of every cell under every wrapper with every sequence option.

A combination is compiled once, as the Hessian-vector product of a weighted sum of all
results. Its data are four members of an ensemble: inputs, the same inputs moved a
little up and down one direction, and other inputs. The sequence and the single step
whose bits are compared are compiled with all optimisations, as for users. Everything
else runs operation by operation, without compilation.

`pytest -m registry` tests all combinations, `-m thorough` those of noise, and the
default run a part of them.
"""

import functools
import gc
import hashlib
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import family_oracle as oracle
import fast_compilation
import jaxlstm as jl
from cases import assert_same, finite, same_bits
from oracle import Which
from registry import (
    BATCH,
    CELLS,
    FEATURES,
    HIDDEN,
    OPTIONS,
    PAIRS,
    REFUSED,
    TIME,
    WRAPPERS,
    CellRow,
    Data,
    Inputs,
    Option,
    WrapperRow,
    active_steps,
    draw,
    like,
    question,
    tapped,
    which,
)

OPTIMISED = True  # bits are compared: compile as users do

STEP = 1e-6
ONE, UP, DOWN, OTHER = range(4)
EXECUTABLES = {}


# --- programs -------------------------------------------------------------------------


def run(cell: jl.Cell, inputs: Inputs, steps, **options):
    """Return the last state, and a trace of every state and gate."""
    return jl.unroll(cell, *inputs, **steps, emit=jl.emit.trace, **options)


def executable(lowered):
    """Compile, unless the same program was compiled: some wrappers change nothing."""
    text = hashlib.sha256(lowered.as_text().encode()).digest()
    key = text, lowered.in_tree, lowered.out_tree
    if key not in EXECUTABLES:
        EXECUTABLES[key] = lowered.compile()
    return EXECUTABLES[key]


class Programs:
    """Compiled programs of a cell under a wrapper, and the number of traces."""

    def __init__(self, row: CellRow, wrapper: WrapperRow):
        self.row, self.wrapper = row, wrapper
        self.traces = Counter()
        self.forward = jax.jit(self._forward, static_argnums=(0, 1))
        self.compiled = {}
        self.derivatives = jax.jit(
            self._derivatives,
            static_argnums=(0, 1),
            compiler_options=fast_compilation.unoptimised(),
        )

    def cell(self) -> jl.Cell:
        """Return a new wrapped cell."""
        return self.wrapper.wrap(self.row.make(), self.row)

    def model(self) -> oracle.Model:
        return self.wrapper.model(self.row.model, self.row)

    def whole(self, cell, reverse: bool, inputs: Inputs, steps):
        """Return the program of users, compiled once per direction and length."""
        kind = reverse, len(inputs.xs)
        if kind not in self.compiled:
            lowered = self.forward.lower(cell, reverse, inputs, steps)
            self.compiled[kind] = executable(lowered)
        return self.compiled[kind](inputs, steps)

    def _forward(self, cell, reverse, inputs, steps):
        return run(cell, inputs, steps, reverse=reverse, engine="scan")

    def _derivatives(self, cell, option, inputs, steps, keys, cotangents, tangents):
        """Return for each member: (answer, gradients), and the derivatives of both."""
        self.traces["derivatives", option.name] += 1

        def value(inputs, steps, key):
            answer = run(cell, inputs, steps, key=key, **arguments(option))
            products = jax.tree.map(lambda a, b: jnp.sum(a * b), answer, cotangents)
            return sum(jax.tree.leaves(products)), answer

        def one(inputs, steps, key):
            def gradient(inputs):
                by_inputs = jax.value_and_grad(value, has_aux=True)
                (total, answer), gradients = by_inputs(inputs, steps, key)
                return (total, gradients), answer

            (_, gradients), derivatives, answer = jax.jvp(
                gradient, (inputs,), (tangents,), has_aux=True
            )
            return answer, gradients, *derivatives

        return jax.vmap(one)(inputs, steps, keys)


def arguments(option: Option) -> dict:
    return {
        "reverse": option.reverse,
        "checkpoint_every": option.checkpoint_every,
        "engine": option.engine,
    }


# --- one combination ------------------------------------------------------------------


class Trial:
    """A cell under a wrapper with an option: random data and their results."""

    def __init__(self, programs: Programs, option: Option, *, noise: bool = False):
        names = programs.row.name, programs.wrapper.name, option.name
        self.rng = rng = np.random.default_rng(list("/".join(names).encode()))
        self.programs, self.option = programs, option
        self.cell, self.model = programs.cell(), programs.model()
        self.one, other = (draw(rng, programs.row, self.cell, option) for _ in "12")
        self.cotangents = like(rng, lambda: self.eager(self.one))
        self.tangents = like(rng, lambda: self.one.inputs)
        self.members = [self.one, self.moved(STEP), self.moved(-STEP), other]
        self.keys = jax.random.split(jax.random.key(1997), 2)[np.array([0, 0, 0, 1])]
        self.keys = self.keys if noise else None

    def moved(self, size: float) -> Data:
        inputs = jax.tree.map(lambda a, v: a + size * v, self.one.inputs, self.tangents)
        return self.one._replace(inputs=inputs)

    def arguments(self, members: list[Data]):
        """Run `Programs.derivatives` with a new cell."""
        inputs, steps = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
        dynamic = inputs, steps, self.keys, self.cotangents, self.tangents
        return (self.programs.cell(), self.option), dynamic

    @functools.cached_property
    def program(self):
        static, dynamic = self.arguments(self.members)
        gc.freeze()  # the leak check collects garbage: restrict it to new objects
        with jax.checking_leaks():
            traced = self.programs.derivatives.trace(*static, *dynamic)
        return executable(traced.lower())

    def derived(self, members: list[Data]):
        """Return answers, gradients, value derivatives, Hessian-vector products."""
        return jax.device_get(self.program(*self.arguments(members)[1]))

    @functools.cached_property
    def derivatives(self):
        return self.derived(self.members)

    def member(self, number: int):
        """Return answer, gradients, derivative of the value, Hessian-vector product."""
        return picked(self.derivatives, number)

    def compiled(self, inputs: Inputs, mask, resets):
        """Run the same program for all options of one direction."""
        state = inputs.state
        if state is None:
            state = self.cell.initial_state(inputs.params, inputs.xs.shape[1:-1])
        inputs, steps = inputs._replace(state=state), {"mask": mask, "resets": resets}
        reverse = self.option.reverse and len(inputs.xs) > 1
        return self.programs.whole(self.cell, reverse, inputs, steps)

    def whole(self, data: Data):
        no_resets = np.zeros((TIME, *BATCH), bool)
        resets = data.steps.get("resets", no_resets)
        return self.compiled(data.inputs, active_steps(data.steps), resets)

    def eager(self, data: Data, **options):
        """Return the reference: a Python loop without compilation."""
        options = arguments(self.option) | {"engine": "scan"} | options
        with jax.disable_jit():
            return run(self.cell, *data, **options)

    @functools.cached_property
    def unjitted(self):
        return self.eager(self.one, engine=self.option.engine)

    def oracle(self, number: int):
        """Return the answer, and the derivative of the value along the tangents."""
        (params, xs, state), steps = self.members[number]
        last, trace = oracle.plain(self.cotangents[0]), self.cotangents[1]
        return oracle.along(
            self.model,
            question(Inputs(params, xs, state)),
            question(self.tangents),
            (last, oracle.plain(trace)),
            which(self.option, steps),
            len(self.programs.row.space),
        )


def during(data: Data, at) -> Data:
    """Return some of the steps, or of the steps of one row."""
    params, xs, state = data.inputs
    params = tapped(params, lambda taps: picked(taps, at))
    return Data(Inputs(params, xs[at], state), picked(data.steps, at))


def masked(data: Data) -> Data:
    """Return the same steps with a mask in place of lengths."""
    steps = {k: v for k, v in data.steps.items() if k != "lengths"}
    return data._replace(steps=steps | {"mask": active_steps(data.steps)})


def beginning(data: Data, state) -> Data:
    return data._replace(inputs=data.inputs._replace(state=state))


def rows(tree, row: int, axis: int = 0):
    """Return one row of every leaf."""
    return jax.tree.map(lambda leaf: leaf[(slice(None),) * axis + (row,)], tree)


def picked(tree, at):
    """Return some of the steps of every leaf."""
    return jax.tree.map(lambda leaf: leaf[at], tree)


def close(one, other, of, tolerance: float) -> None:
    """Assert that sums of many terms are equal within the rounding of the terms."""
    assert abs(one - other) <= tolerance * (1.0 + abs(of)), (one, other)


# --- the properties -------------------------------------------------------------------


def no_leaked_tracers(trial: Trial) -> None:
    assert trial.program  # traced here, where leaks are checked for


def oracle_values(trial: Trial) -> None:
    for number in (ONE, OTHER):
        answer = tuple(map(oracle.plain, trial.member(number)[0]))
        assert_plain(answer, trial.oracle(number)[0])


def oracle_derivatives(trial: Trial) -> None:
    for number in (ONE, OTHER):
        _, gradients, _, _ = trial.member(number)
        terms = jax.tree.map(np.multiply, gradients, trial.tangents)
        total = sum(leaf.sum() for leaf in jax.tree.leaves(terms))
        size = sum(abs(leaf).sum() for leaf in jax.tree.leaves(terms))
        close(total, trial.oracle(number)[1], size, 1e-12)


def ragged_is_truncated(trial: Trial) -> None:
    """A row equals the row alone, without its inactive steps."""
    last, trace = trial.member(ONE)[0]
    for row in range(*BATCH):
        active = active_steps(trial.one.steps)[:, row]
        own = rows(trace, row, axis=1)
        silent, loud = picked(own, ~active), picked(own, active)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(silent))
        data = during(masked(trial.one), (active, row))
        data = beginning(data, rows(data.inputs.state, row))
        data.steps.pop("mask")
        if not active.any():
            state = trial.cell.initial_state(
                data.inputs.params, trial.programs.row.space
            )
            expected = state if data.inputs.state is None else data.inputs.state
            assert_same(rows(last, row), expected)
            continue
        alone = trial.eager(data, checkpoint_every=None)
        assert_same((rows(last, row), loud), alone)


def split_is_whole(trial: Trial) -> None:
    """A sequence split anywhere equals the whole."""
    data, cut = masked(trial.one), int(trial.rng.integers(1, TIME))
    parts = [slice(None, cut), slice(cut, None)]
    state, traces = data.inputs.state, {}
    for part in reversed(parts) if trial.option.reverse else parts:
        piece = beginning(during(data, part), state)
        state, traces[part.start] = trial.eager(piece, checkpoint_every=None)
    joined = jax.tree.map(
        lambda a, b: np.concatenate([a, b]), traces[None], traces[cut]
    )
    assert_same((state, joined), trial.member(ONE)[0])


def streaming_is_whole(trial: Trial) -> None:
    """Single steps have the bits of the sequence, on the reference engine."""
    data = masked(trial.one)
    state, traces = data.inputs.state, [None] * TIME
    for t in range(TIME)[::-1] if trial.option.reverse else range(TIME):
        inputs, steps = beginning(during(data, slice(t, t + 1)), state)
        resets = steps.get("resets", np.zeros((1, *BATCH), bool))
        state, traces[t] = trial.compiled(inputs, steps["mask"], resets)
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *traces)
    expected = jax.device_get(trial.whole(trial.one))
    assert same_bits((jax.device_get(state), joined), expected)


def reversed_twice_is_once(trial: Trial) -> None:
    turned = during(masked(trial.one), slice(None, None, -1))
    last, trace = trial.eager(turned, reverse=not trial.option.reverse)
    trace = picked(trace, slice(None, None, -1))
    assert_same((last, trace), trial.member(ONE)[0])


def rows_are_independent(trial: Trial) -> None:
    """Other rows, NaN included, change no bit of this one."""
    row = int(trial.rng.integers(*BATCH))
    others = np.arange(*BATCH) != row
    changed = [with_nan(member, others) for member in trial.members]
    answers, gradients, _, products = trial.derived(changed)
    before = of_row(row, *trial.derivatives[:2], trial.derivatives[3])
    assert same_bits(of_row(row, answers, gradients, products), before)


def with_nan(data: Data, others: np.ndarray) -> Data:
    """Return data with NaN in all other rows, whose steps are all active."""

    def spoil(leaf, axis: int):
        leaf = np.array(leaf)
        value = leaf.dtype.type(True) if leaf.dtype == bool else np.nan
        leaf[(slice(None),) * axis + (others,)] = value
        return leaf

    params, xs, state = data.inputs
    params = tapped(
        params, lambda taps: jax.tree.map(lambda leaf: spoil(leaf, 1), taps)
    )
    steps = {name: spoil(leaf, 1) for name, leaf in data.steps.items() if leaf.ndim > 1}
    if "lengths" in data.steps:
        steps["lengths"] = np.where(others, np.int32(TIME), data.steps["lengths"])
    state = jax.tree.map(lambda leaf: spoil(leaf, 0), state)
    return Data(Inputs(params, spoil(xs, 1), state), steps)


def of_row(row: int, answers, *gradients):
    """Return the results of one row of each member; members are axis 0."""
    last, trace = answers
    own = [(rows(g.xs, row, axis=2), rows(g.state, row, axis=1)) for g in gradients]
    return rows(last, row, axis=1), rows(trace, row, axis=2), own


def vmap_is_loop(trial: Trial) -> None:
    """vmap over four members equals a loop over them."""
    for number, member in enumerate(trial.members):
        assert_same(trial.member(number)[0], trial.whole(member))


def jit_is_no_jit(trial: Trial) -> None:
    assert_same(trial.whole(trial.one), trial.unjitted)


def traced_once(trial: Trial) -> None:
    """One trace serves several calls, with new cells and other data."""
    static, dynamic = trial.arguments(trial.members[::-1])
    trial.programs.derivatives.trace(*static, *dynamic)
    assert set(trial.programs.traces.values()) == {1}


def gradients_are_finite(trial: Trial) -> None:
    """Gradients are zero at inactive steps, for any values there."""
    _, gradients, _, products = trial.derivatives
    assert finite(gradients)
    assert finite(products)
    for number in (ONE, OTHER):
        skipped = ~active_steps(trial.members[number].steps)
        assert not gradients.xs[number][skipped].any()


def jvp_is_the_transpose_of_vjp(trial: Trial) -> None:
    for number in range(4):
        _, gradients, derivative, _ = trial.member(number)
        terms = jax.tree.map(np.multiply, gradients, trial.tangents)
        total = sum(leaf.sum() for leaf in jax.tree.leaves(terms))
        size = sum(abs(leaf).sum() for leaf in jax.tree.leaves(terms))
        close(total, derivative, size, 1e-12)


def hessians_are_differences(trial: Trial) -> None:
    """A Hessian-vector product equals the central difference of two gradients."""
    up, down = trial.member(UP)[1], trial.member(DOWN)[1]
    differences = jax.tree.map(lambda a, b: (a - b) / (2.0 * STEP), up, down)
    products = trial.member(ONE)[3]
    size = max(abs(leaf).max(initial=0.0) for leaf in jax.tree.leaves(products))
    pairs = zip(jax.tree.leaves(products), jax.tree.leaves(differences), strict=True)
    for product, difference in pairs:
        np.testing.assert_allclose(product, difference, rtol=0, atol=1e-6 * (1 + size))


def noise_is_of_the_key(trial: Trial) -> None:
    """The same key gives the same bits; another key, or none, another answer."""
    again = trial.derived(trial.members)
    assert same_bits(again, trial.derivatives)
    noisy = trial.member(ONE)[0][1].state.h
    other = trial.eager(trial.one, key=trial.keys[OTHER])[1].state.h
    assert not np.allclose(noisy, other)
    assert not np.allclose(noisy, trial.unjitted[1].state.h)


def keys_in_a_loop(trial: Trial) -> None:
    """Compiled vmap over keys equals an uncompiled loop over keys."""
    for number in (ONE, OTHER):
        alone = trial.eager(trial.members[number], key=trial.keys[number])
        assert_same(trial.member(number)[0], alone)


def assert_plain(got, expected) -> None:
    """`assert_same` for dicts with the same keys."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert_same(got, expected)


PROPERTIES = [
    no_leaked_tracers,
    oracle_values,
    oracle_derivatives,
    ragged_is_truncated,
    split_is_whole,
    streaming_is_whole,
    reversed_twice_is_once,
    rows_are_independent,
    vmap_is_loop,
    jit_is_no_jit,
    traced_once,
    gradients_are_finite,
    jvp_is_the_transpose_of_vjp,
    hessians_are_differences,
]
PROPERTIES_OF_NOISE = [
    no_leaked_tracers,
    noise_is_of_the_key,
    keys_in_a_loop,
    gradients_are_finite,
    jvp_is_the_transpose_of_vjp,
    hessians_are_differences,
    traced_once,
]


def held(trial: Trial, properties) -> int:
    """Check all properties; return their number."""
    for prop in properties:
        try:
            prop(trial)
        except Exception as error:
            error.add_note(f"{prop.__name__}, with {trial.option.name}")
            raise
    return len(properties)


def named(values) -> list[str]:
    return ["-".join(part.name.replace(" ", "_") for part in value) for value in values]


def diagonal() -> list[tuple[CellRow, WrapperRow, Option]]:
    """Return combinations with each cell, wrapper and option at least once."""
    taken = []
    for number in range(max(len(CELLS), len(WRAPPERS), len(OPTIONS))):
        row = CELLS[number % len(CELLS)]
        fit = [w for w in WRAPPERS if w.name not in row.lacks]
        wrapper = WRAPPERS[number % len(WRAPPERS)]
        wrapper = wrapper if wrapper in fit else fit[-1]
        taken.append((row, wrapper, OPTIONS[number % len(OPTIONS)]))
    return taken


SLICE = diagonal()
NOISY = [(row, wrapper) for row, wrapper in PAIRS if wrapper.noisy]
WITH_A_KEY = Option("a key", "lengths", resets=True)


def test_the_default_combinations_cover_the_registry():
    cells, wrappers, options = [
        {part.name for part in column} for column in zip(*SLICE, strict=True)
    ]
    assert cells == {row.name for row in CELLS}
    assert wrappers == {wrapper.name for wrapper in WRAPPERS}
    assert options == {option.name for option in OPTIONS}
    wrappers_of = Counter(row.name for row, _ in PAIRS)
    assert sum(count >= 6 for count in wrappers_of.values()) >= 8
    assert len(OPTIONS) >= 6


@pytest.mark.thorough
@pytest.mark.parametrize(("row", "wrapper", "option"), SLICE, ids=named(SLICE))
def test_properties_of_the_default_combinations(row, wrapper, option, x64):
    assert held(Trial(Programs(row, wrapper), option), PROPERTIES) == 14


@pytest.mark.registry
@pytest.mark.parametrize(("row", "wrapper"), PAIRS, ids=named(PAIRS))
def test_all_properties(row, wrapper, record_property, x64):
    programs = Programs(row, wrapper)
    properties = sum(held(Trial(programs, option), PROPERTIES) for option in OPTIONS)
    record_property("registry_properties", properties)
    record_property("registry_combinations", len(OPTIONS))


@pytest.mark.thorough
@pytest.mark.parametrize(("row", "wrapper"), NOISY, ids=named(NOISY))
def test_all_properties_of_noise(row, wrapper, record_property, x64):
    """Properties that hold with a key, without an oracle."""
    trial = Trial(Programs(row, wrapper), WITH_A_KEY, noise=True)
    record_property("registry_properties", held(trial, PROPERTIES_OF_NOISE))
    record_property("registry_combinations", 1)


@pytest.mark.parametrize(("row", "wrapper"), REFUSED, ids=named(REFUSED))
def test_wrappers_without_a_target_are_refused(row, wrapper):
    """The wrapper or the first step raises the error."""

    def use():
        cell = wrapper.wrap(row.make(), row)
        params = cell.init(jax.random.key(0), FEATURES, HIDDEN)
        jl.unroll(cell, params, jnp.ones((TIME, *BATCH, FEATURES)))

    message = r"^(\w+: )+got an edit of .* not have; .*\.(\n|$)"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(use)


# --- the reference --------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(("row", "wrapper", "option"), SLICE, ids=named(SLICE))
def test_the_complex_step_equals_the_central_difference(row, wrapper, option, x64):
    trial = Trial(Programs(row, wrapper), option)
    _, derivative = trial.oracle(ONE)
    asked, direction = question(trial.one.inputs), question(trial.tangents)
    cotangents = tuple(map(oracle.plain, trial.cotangents))
    ends = [
        oracle.dot(
            oracle.forward(
                trial.model,
                oracle.moved(asked, direction, size),
                which(option, trial.one.steps),
                len(row.space),
            ),
            cotangents,
        )
        for size in (STEP, -STEP)
    ]
    np.testing.assert_allclose(
        derivative, (ends[0] - ends[1]) / (2.0 * STEP), rtol=1e-6, atol=1e-6
    )


def test_two_dimensional_convolutions_equal_their_definition(x64):
    """An even kernel, and an odd one."""
    rng = np.random.default_rng(3)
    row = CellRow(
        "plane", lambda: jl.conv_lstm((2, 3)), oracle.model(oracle.conv_lstm), (3, 4)
    )
    data = draw(rng, row, row.make(), OPTIONS[0])
    got = jl.unroll(row.make(), *data.inputs, emit=jl.emit.trace)
    answer = oracle.forward(row.model, question(data.inputs), Which(), 2)
    assert_plain(tuple(map(oracle.plain, got)), answer)


def test_a_leaked_tracer_is_found():
    """The check behind `no_leaked_tracers` finds a leak."""
    kept = []

    def leaky(x):
        kept.append(x)
        return x

    with jax.checking_leaks(), pytest.raises(Exception, match="Leaked"):
        jax.jit(leaky).trace(1.0)
