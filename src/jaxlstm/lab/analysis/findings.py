"""From what the units of a network did over a text to findings with numbers.

    columns of the text [N, K]  x  units [N, U]  ->  findings

Everything is chosen on the first half of the text and judged on the second, by

    D = 2 AUC - 1        of a column that holds or does not (Somers' D)
    D = ρ                of an amount (Spearman's rank correlation)

between -1 and 1, which takes no notice of the scale of a unit. Three things are asked
of D in the second half: that it is large; that it stays large when from every value the
mean over all places with the same symbol is taken, so that the unit says more than
which symbol is being read; and that no unit comes near it when the text is shifted
against the units, which is what chance and slow drift can do, nor any of a network
that was never trained, which remembers the last few symbols too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.analysis.features import Feature, symbol_name

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

ENOUGH = 0.7  # of D: an AUC of 0.85
BEYOND = 0.5  # of D beyond the symbol being read: an AUC of 0.75
EPISODES = 8  # a column begins to hold so often in each half
SHORTEST = 3.0  # symbols that an episode lasts on average
SHIFTS = 32  # of the text against the units
MARGIN = 0.15  # by which a score must be beyond what chance reached in them
PLAIN = 0.05  # of D, by which what is plain may be weaker and still be preferred
SAME = 0.75  # the correlation above which two columns say the same
MOST = 8  # findings
SWITCHED = 2  # symbols for each gate
GAP = 0.75  # between a gate on a symbol and elsewhere
USUAL = 0.75  # of all places, at which a unit moves less than where its column turns


class Unit(NamedTuple):
    """Which unit: of which recurrent layer, both from 0."""

    layer: int
    unit: int


class Finding(NamedTuple):
    """What one unit does, and how sure that is.

    kind       "state" of what a unit holds, "gate" of a gate that a symbol switches
    place      which unit
    feature    the column it goes with
    score      D on the second half, below 0 where the unit is low; of a gate by how
               much more it is open, or shut, there than elsewhere
    memory     D on the second half beyond what the symbol being read tells
    chance     the largest score that any unit reaches with the text shifted, or any
               of an untrained network with the text as it is
    holds      whether it is reported
    sentence   all of it in words
    facts      further numbers that the sentence has
    """

    kind: str
    place: Unit
    feature: Feature
    score: float
    memory: float
    chance: float
    holds: bool
    sentence: str = ""
    facts: Mapping[str, float] = {}


class Search(NamedTuple):
    """The findings that hold, and what was tried for them.

    findings     best first
    columns      so many columns of the text occurred often enough
    units        so many units
    candidates   so many were chosen on the first half to be judged on the second
    nearest      of those that did not hold the best, to be named where none does
    """

    findings: list[Finding]
    columns: int
    units: int
    candidates: int
    nearest: Finding | None


class Half(NamedTuple):
    """What is looked at of one half: D's ingredients.

    weights   `[n, K]`, so that `weights.T @ ranks` is D
    ranks     `[n, U]`, centred
    rest      `[n, U]`, the ranks beyond the symbol being read
    """

    weights: Floats
    ranks: Floats
    rest: Floats

    def scores(self) -> tuple[Floats, Floats]:
        """D `[K, U]`, of the units and beyond the symbol."""
        return self.weights.T @ self.ranks, self.weights.T @ self.rest

    def chance(self) -> Floats:
        """For each column the largest D of any unit over several shifts, `[K]`."""
        shifted = _shifted(self.ranks)
        return np.max([abs(self.weights.T @ ranks).max(1) for ranks in shifted], 0)

    def best(self) -> Floats:
        """For each column the largest D, also beyond the symbol, of any unit, `[K]`."""
        scores, memory = self.scores()
        agree = np.where(scores * memory > 0, np.minimum(abs(scores), abs(memory)), 0.0)
        return agree.max(1, initial=0.0)


def search(
    features: Sequence[Feature],
    states: Floats,
    symbols: NDArray[np.integer],
    units: Sequence[Unit],
    untrained: Floats,
) -> Search:
    """What units hold, told by the columns that they go with.

    Arguments:
        features: columns of `[N]`.
        states: `[N, U]`, what each unit holds after each symbol: c, or h.
        symbols: `[N]`, which symbol is read.
        units: U names.
        untrained: `[N, U']`, as states, of a network like it that learnt nothing.

    >>> rng = np.random.default_rng(0)
    >>> inside = np.repeat(rng.random(400) < 0.5, 5)
    >>> states = np.stack([rng.normal(size=2000), inside + rng.normal(size=2000)], 1)
    >>> columns = [Feature("inside parentheses", inside)]
    >>> units = [Unit(0, 0), Unit(0, 1)]
    >>> found = search(columns, states, np.zeros(2000, int), units, states[:, :1])
    >>> [(f.place.unit, f.holds) for f in found.findings], found.columns, found.units
    ([], 1, 2)
    """
    middle = len(states) // 2
    parts = slice(None, middle), slice(middle, None)
    kept = [f for f in features if all(_occurs(f.values[part]) for part in parts)]
    nothing = Search([], len(kept), len(units), 0, None)
    if not kept or not len(units) or middle < 2:
        return nothing
    first, second = (_half(kept, states, symbols, part) for part in parts)
    chance = np.maximum(
        second.chance(), _half(kept, untrained, symbols, parts[1]).best()
    )
    candidates = _judged(kept, units, *_chosen(first), second, chance, states[middle:])
    held = _different([c for c in candidates if c.holds])
    failed = [c for c in candidates if not c.holds]
    nearest = max(failed, key=lambda c: min(abs(c.score), abs(c.memory)), default=None)
    return nothing._replace(findings=held, candidates=len(candidates), nearest=nearest)


def _chosen(first: Half) -> tuple[NDArray[np.integer], Floats]:
    """For each column the unit that goes with it best, and its signed D."""
    scores, memory = first.scores()
    agree = np.where(scores * memory > 0, np.minimum(abs(scores), abs(memory)), 0.0)
    unit = agree.argmax(1)
    rows = np.arange(len(unit))
    return unit, agree[rows, unit] * np.sign(scores[rows, unit])


def _judged(
    features: Sequence[Feature],
    units: Sequence[Unit],
    chosen: NDArray[np.integer],
    strength: Floats,
    second: Half,
    chance: Floats,
    states: Floats,
) -> list[Finding]:
    """Every column's unit on the second half, the strongest of the first half first."""
    scores, memory = second.scores()
    preferred = abs(strength) + [PLAIN * feature.plain for feature in features]
    found = []
    for at in np.argsort(-preferred, kind="stable"):
        unit, sign = chosen[at], np.sign(strength[at])
        score, beyond = float(scores[at, unit]), float(memory[at, unit])
        holds = (
            sign * score >= ENOUGH
            and sign * beyond >= BEYOND
            and min(abs(score), abs(beyond)) >= chance[at] + MARGIN
            and _moves(features[at], states[:, unit])
        )
        found.append(
            Finding(
                "state",
                units[int(unit)],
                features[int(at)],
                score,
                beyond,
                float(chance[at]),
                bool(holds),
            )
        )
    return found


def _moves(feature: Feature, state: Floats) -> bool:
    """Whether a unit moves where a column begins and where it ends, more than it does
    at most other places; only asked of those that name both.
    """
    if not feature.edged:
        return True
    values = feature.values[-len(state) :].astype(int)
    moves, change = abs(np.diff(state)), np.diff(values)
    usual = np.quantile(moves[change == 0], USUAL)
    return all(np.median(moves[change == edge]) > usual for edge in (1, -1))


def _different(findings: list[Finding]) -> list[Finding]:
    """At most one finding for each unit, and for columns that say the same."""
    taken: list[Finding] = []
    for finding in findings:
        again = any(
            finding.place == other.place or _agree(finding.feature, other.feature)
            for other in taken
        )
        if not again and len(taken) < MOST:
            taken.append(finding)
    return taken


def _agree(one: Feature, other: Feature) -> bool:
    a, b = (np.asarray(f.values, float) for f in (one, other))
    return bool(abs(np.corrcoef(a, b)[0, 1]) > SAME)


# -- gates that a symbol switches --------------------------------------------

# What a gate does when it lets something happen: the word, and the direction.
SWITCHES = {
    "i": ("opens its input gate", 1),
    "f": ("shuts its forget gate", -1),
    "o": ("opens its output gate", 1),
    "z": ("shuts its update gate", -1),
    "r": ("shuts its reset gate", -1),
}


def switched(
    features: Sequence[Feature],
    gates: Mapping[str, Floats],
    units: Sequence[Unit],
    untrained: Mapping[str, Floats],
) -> list[Finding]:
    """Gates that stand open, or shut, on one symbol and not elsewhere.

    Chosen on the first half and judged on the second, as what units hold is: there the
    gap must be `GAP`, and wider than that of any unit when the text is shifted, and of
    any of an untrained network. Of each gate come the `SWITCHED` with the widest gap.

    Arguments:
        features: the columns of single symbols, `[N]`.
        gates: `[N, U]` each, by letter.
        units: U names.
        untrained: as gates, of a network like it that learnt nothing.

    >>> at = np.random.default_rng(0).random(100) < 0.2
    >>> gate = np.where(at, 0.9, 0.1)[:, None]
    >>> columns, none = [Feature("", at, "(")], {"i": 0 * gate}
    >>> found = switched(columns, {"i": gate}, [Unit(0, 3)], none)
    >>> found[0].sentence
    'opens its input gate on `(` (0.90; 0.10 elsewhere)'
    """
    found = []
    for letter, gate in gates.items():
        if letter in SWITCHES:
            every = _switched(features, letter, gate, units, untrained[letter])
            found += every[:SWITCHED]
    return found


def _switched(
    features: Sequence[Feature],
    letter: str,
    gate: Floats,
    units: Sequence[Unit],
    untrained: Floats,
) -> list[Finding]:
    """For each symbol the unit whose gap is widest on the first half, widest first."""
    sign = SWITCHES[letter][1]
    first, second = np.array_split(gate, [len(gate) // 2])
    beside = untrained[len(first) :]
    found = []
    for feature in features:
        before, at = np.array_split(np.asarray(feature.values, bool), [len(first)])
        if not all(EPISODES <= half.sum() < len(half) for half in (before, at)):
            continue
        chosen, judged = sign * _gap(first, before), sign * _gap(second, at)
        unit = int(chosen.argmax())
        if min(chosen[unit], judged[unit]) < GAP:
            continue
        gaps = [_gap(beside, at), *(_gap(second, shifted) for shifted in _shifted(at))]
        chance = max(float((sign * gap).max()) for gap in gaps)
        if judged[unit] >= chance + MARGIN:
            finding = _gate_finding(letter, feature, second[:, unit], at, units[unit])
            finding = finding._replace(score=float(judged[unit]), chance=chance)
            found.append((chosen[unit], finding))
    return [finding for _, finding in sorted(found, key=lambda pair: -pair[0])]


def _gap(gate: Floats, at: Flags) -> Floats:
    """By how much a gate is more open there than elsewhere, `[U]`."""
    there = gate[at].sum(0, dtype=float)
    number = at.sum()
    return there / number - (gate.sum(0, dtype=float) - there) / (len(at) - number)


def _gate_finding(
    letter: str, feature: Feature, gate: Floats, at: Flags, unit: Unit
) -> Finding:
    there, elsewhere = float(gate[at].mean()), float(gate[~at].mean())
    name = symbol_name(feature.symbol or "")
    words = f"{SWITCHES[letter][0]} on {name} ({there:.2f}; {elsewhere:.2f} elsewhere)"
    facts = {"there": there, "elsewhere": elsewhere}
    return Finding("gate", unit, feature, 0.0, 0.0, 0.0, True, words, facts)


def _shifted(values: NDArray[Any]) -> list[NDArray[Any]]:
    """The rows moved along by several lags, those that leave the end to the front."""
    size = len(values)
    lags = np.linspace(size // 8, size - size // 8, SHIFTS).astype(int)
    return [np.roll(values, lag, 0) for lag in lags]


# -- ranks -------------------------------------------------------------------


def ranks(values: Floats) -> Floats:
    """Each column's ranks from -n/2 to n/2, ties at their mean; `[n, U]`.

    >>> ranks(np.array([[3.0], [1.0], [3.0]])).ravel().tolist()
    [0.5, -1.0, 0.5]
    """
    ranked = np.empty(values.shape, np.float32)
    for unit in range(values.shape[1]):
        _, at, counts = np.unique(
            values[:, unit], return_inverse=True, return_counts=True
        )
        ends = np.cumsum(counts)
        ranked[:, unit] = (ends - (counts - 1) / 2 - (len(at) + 1) / 2)[at]
    return ranked


def beyond(values: Floats, symbols: NDArray[np.integer]) -> Floats:
    """The values less their mean over all places with the same symbol.

    >>> beyond(np.array([[1.0], [3.0], [9.0]]), np.array([0, 0, 1])).ravel().tolist()
    [-1.0, 1.0, 0.0]
    """
    _, at, counts = np.unique(symbols, return_inverse=True, return_counts=True)
    order = np.argsort(at, kind="stable")
    starts = np.cumsum(counts) - counts
    means = np.add.reduceat(values[order], starts, axis=0) / counts[:, None]
    return values - means[at].astype(values.dtype)


def _half(
    features: Sequence[Feature],
    states: Floats,
    symbols: NDArray[np.integer],
    part: slice,
) -> Half:
    weights = np.stack([_weights(feature.values[part]) for feature in features], 1)
    rest = beyond(states[part], symbols[part])
    return Half(weights, ranks(states[part]), ranks(rest))


def _weights(values: NDArray[Any]) -> Floats:
    """w with `w @ ranks` the D of a column."""
    size = len(values)
    if values.dtype == np.bool_:
        number = float(values.sum())
        return (values * (2 / (number * (size - number)))).astype(np.float32)
    own = ranks(np.asarray(values, float)[:, None])[:, 0]
    spread = np.sqrt((size**3 - size) / 12)
    return own / np.float32(np.linalg.norm(own) * spread)


def _occurs(values: NDArray[Any]) -> bool:
    """Whether a column holds, or falls, often enough to be judged by."""
    if values.dtype != np.bool_:
        return int((np.diff(np.asarray(values, float)) < 0).sum()) >= EPISODES
    begins = int((values[1:] > values[:-1]).sum())
    total = int(values.sum())
    return begins >= EPISODES and SHORTEST * begins <= total <= 0.95 * len(values)
