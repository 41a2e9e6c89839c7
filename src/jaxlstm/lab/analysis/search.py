"""Search for units whose state follows a feature of the text.

    features [N, K]  x  states [N, U]  ->  findings

A feature and a unit are compared by

    D = 2 AUC - 1        for boolean features (Somers' D)
    D = ρ                for amounts (Spearman's rank correlation)

between -1 and 1, which does not depend on the scale of the unit. For each feature, the
unit with the largest D on the first half of the text is tested on the second half:

- D is large;
- D is large without the current symbol's effect, that is, after subtracting from every
  value the mean over all positions with the same symbol;
- no unit comes close when the text is shifted against the units, and no unit of an
  untrained network does.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.analysis.features import Feature

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

MIN_SCORE = 0.7  # D, which is an AUC of 0.85
MIN_MEMORY = 0.5  # D without the current symbol's effect, an AUC of 0.75
MARGIN = 0.15  # between a score and the best score by chance
SHIFTS = 32  # of the text against the units
EPISODES = 20  # times that a feature begins to hold, or a symbol occurs, in each half
SHORTEST = 3.0  # mean length of an episode in symbols
PLAIN = 0.05  # bonus in D for plain features
SAME = 0.75  # correlation above which two features are one finding
MOST = 8  # findings
MOST_SWITCHES = 2  # symbols per gate
GAP = 0.75  # between the means of a gate on a symbol and elsewhere
USUAL = 0.75  # quantile of a unit's changes that it must exceed at the edges

SWITCHES = {  # the verb for a gate, and the sign of its difference on the symbol
    "i": ("opens its input gate", 1),
    "f": ("closes its forget gate", -1),
    "o": ("opens its output gate", 1),
    "z": ("closes its update gate", -1),
    "r": ("closes its reset gate", -1),
}


class Unit(NamedTuple):
    """A unit of a recurrent layer; both count from 0."""

    layer: int
    unit: int


class Finding(NamedTuple):
    """A unit that follows a feature, or a gate that a symbol switches.

    Attributes:
        unit: Which unit.
        feature: The feature.
        score: D on the second half, negative if the unit is low; for a gate the
            difference of its means on the symbol and elsewhere.
        chance: The largest score of any unit with the text shifted, or of any unit of
            the untrained network.
        memory: D without the current symbol's effect; None for a gate.
        sentence: The finding in sentences that follow the unit's name.
        facts: More numbers, which the sentence contains.
    """

    unit: Unit
    feature: Feature
    score: float
    chance: float
    memory: float | None = None
    sentence: str = ""
    facts: Mapping[str, float] = {}


class Search(NamedTuple):
    """The result of a search.

    Attributes:
        findings: Best first.
        features: The number of features that occur often enough.
        units: The number of units.
        nearest: The best pair that failed a test; None if nothing was tested.
    """

    findings: list[Finding]
    features: int
    units: int
    nearest: Finding | None


def search(
    features: Sequence[Feature],
    layers: Sequence[Floats],
    symbols: NDArray[np.integer],
    untrained: Sequence[Floats],
) -> Search:
    """Find units whose state follows a feature.

    Args:
        features: Features of `[N]`.
        layers: `[N, H]` for each layer, c or h of each unit after each symbol.
        symbols: `[N]`, the symbol at each position.
        untrained: As `layers`, of an untrained network.
    """
    states, others = np.concatenate(layers, axis=1), np.concatenate(untrained, axis=1)
    units = [
        Unit(number, unit)
        for number, layer in enumerate(layers)
        for unit in range(layer.shape[1])
    ]
    middle = len(states) // 2
    first, second = slice(None, middle), slice(middle, None)
    features = [f for f in features if _occurs(f, first) and _occurs(f, second)]
    result = Search([], len(features), len(units), None)
    if not features or not units or middle < 2:
        return result

    strength = _weaker(*_scores(features, states, symbols, first)[2:])
    best = abs(strength).argmax(1)
    strength = strength[np.arange(len(best)), best]

    weights, ranked, scores, memory = _scores(features, states, symbols, second)
    beside = _weaker(*_scores(features, others, symbols, second)[2:])
    by_shift = [abs(weights.T @ moved).max(1) for moved in _shifted(ranked)]
    chance = np.maximum(np.max(by_shift, 0), abs(beside).max(1, initial=0.0))

    nearest, most = None, -1.0
    preferred = abs(strength) + [PLAIN * feature.plain for feature in features]
    for k in np.argsort(-preferred, kind="stable").tolist():
        unit, sign = int(best[k]), np.sign(strength[k])
        score, rest = float(scores[k, unit]), float(memory[k, unit])
        finding = Finding(units[unit], features[k], score, float(chance[k]), rest)
        if (
            sign * score >= MIN_SCORE
            and sign * rest >= MIN_MEMORY
            and min(abs(score), abs(rest)) >= chance[k] + MARGIN
            and _moves_at_edges(features[k], states[second, unit])
        ):
            known = any(_same(finding, other) for other in result.findings)
            if not known and len(result.findings) < MOST:
                result.findings.append(finding)
        elif min(abs(score), abs(rest)) > most:
            nearest, most = finding, min(abs(score), abs(rest))
    return result._replace(nearest=nearest)


def gate_switches(
    features: Sequence[Feature],
    layers: Sequence[Mapping[str, Floats]],
    untrained: Sequence[Mapping[str, Floats]],
) -> list[Finding]:
    """Find gates that are open, or closed, on one symbol and not elsewhere.

    As in `search`, a unit is chosen on the first half and tested on the second. There
    the difference of the means must be `GAP`, and larger by `MARGIN` than that of any
    unit with the text shifted and of any unit of an untrained network.

    Args:
        features: Features of single symbols, `[N]`.
        layers: For each layer its gates `[N, H]` by letter.
        untrained: As `layers`, of an untrained network.

    Returns:
        The `MOST_SWITCHES` symbols with the largest difference for each gate.

    Example:
        >>> at = np.random.default_rng(0).random(400) < 0.2
        >>> gate = np.where(at, 0.9, 0.1)[:, None]
        >>> features, none = [Feature("on `(`", at)], {"i": 0 * gate}
        >>> gate_switches(features, [{"i": gate}], [none])[0].sentence
        'opens its input gate on `(` (0.90; 0.10 elsewhere)'
    """
    findings = []
    for number, (gates, others) in enumerate(zip(layers, untrained, strict=True)):
        for letter, gate in gates.items():
            if letter not in SWITCHES:
                continue
            tested = (
                _test_switch(number, letter, feature, gate, others[letter])
                for feature in features
            )
            found = sorted(filter(None, tested), key=lambda pair: -pair[0])
            findings += [finding for _, finding in found[:MOST_SWITCHES]]
    return findings


def _occurs(feature: Feature, half: slice) -> bool:
    """Return whether a flag holds, or an amount falls, often enough."""
    values = feature.values[half]
    if not feature.is_flag:
        return int((np.diff(np.asarray(values, float)) < 0).sum()) >= EPISODES
    begins = int((values[1:] > values[:-1]).sum())
    total = int(values.sum())
    return begins >= EPISODES and SHORTEST * begins <= total <= 0.95 * len(values)


def _scores(
    features: Sequence[Feature],
    states: Floats,
    symbols: NDArray[np.integer],
    half: slice,
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return weights `[n, K]` and ranks `[n, U]`, whose product is D, and D `[K, U]`:

    of the units, and of the units without the current symbol's effect.
    """
    weights = np.stack([score_weights(f.values[half]) for f in features], 1)
    ranked = ranks(states[half])
    rest = ranks(without_symbol(states[half], symbols[half]))
    return weights, ranked, weights.T @ ranked, weights.T @ rest


def _weaker(scores: Floats, memory: Floats) -> Floats:
    """Return whichever of the two is nearer to 0, or 0 if their signs differ."""
    weaker = np.minimum(abs(scores), abs(memory))
    return np.where(scores * memory > 0, np.sign(scores) * weaker, 0.0)


def _moves_at_edges(feature: Feature, state: Floats) -> bool:
    """Return whether a unit changes most where a feature begins and ends."""
    if not feature.edged:
        return True
    edges = np.diff(feature.values[-len(state) :].astype(int))
    changes = abs(np.diff(state))
    usual = np.quantile(changes[edges == 0], USUAL)
    return all(np.median(changes[edges == edge]) > usual for edge in (1, -1))


def _same(one: Finding, other: Finding) -> bool:
    """Return whether two findings have the same unit or nearly the same feature."""
    a, b = (np.asarray(f.feature.values, float) for f in (one, other))
    return one.unit == other.unit or bool(abs(np.corrcoef(a, b)[0, 1]) > SAME)


def _shifted(values: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the rows shifted cyclically by several lags."""
    size = len(values)
    lags = np.linspace(size // 8, size - size // 8, SHIFTS).astype(int)
    return [np.roll(values, lag, 0) for lag in lags]


def ranks(values: Floats) -> Floats:
    """Return the ranks in each column, from -n/2 to n/2, ties at their mean.

    Example:
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


def score_weights(values: NDArray[Any]) -> Floats:
    """Return the weights w of a feature with `w @ ranks(unit)` = D."""
    size = len(values)
    if values.dtype == np.bool_:
        number = float(values.sum())
        return (values * (2 / (number * (size - number)))).astype(np.float32)
    own = ranks(np.asarray(values, float)[:, None])[:, 0]
    spread = np.sqrt((size**3 - size) / 12)
    return own / np.float32(np.linalg.norm(own) * spread)


def without_symbol(values: Floats, symbols: NDArray[np.integer]) -> Floats:
    """Subtract from each value the mean over all positions with the same symbol.

    Example:
        >>> values, symbols = np.array([[1.0], [3.0], [9.0]]), np.array([0, 0, 1])
        >>> without_symbol(values, symbols).ravel().tolist()
        [-1.0, 1.0, 0.0]
    """
    _, at, counts = np.unique(symbols, return_inverse=True, return_counts=True)
    order = np.argsort(at, kind="stable")
    starts = np.cumsum(counts) - counts
    means = np.add.reduceat(values[order], starts, axis=0) / counts[:, None]
    return values - means[at].astype(values.dtype)


def _test_switch(
    layer: int, letter: str, feature: Feature, gate: Floats, untrained: Floats
) -> tuple[float, Finding] | None:
    """Return the difference on the first half and the finding, or None."""
    verb, sign = SWITCHES[letter]
    middle = len(gate) // 2
    first, second, untrained = gate[:middle], gate[middle:], untrained[middle:]
    before, at = np.array_split(np.asarray(feature.values, bool), [middle])
    if not all(EPISODES <= half.sum() < len(half) for half in (before, at)):
        return None
    chosen, tested = sign * _gap(first, before), sign * _gap(second, at)
    unit = int(chosen.argmax())
    if min(chosen[unit], tested[unit]) < GAP:
        return None
    gaps = [_gap(untrained, at), *(_gap(second, moved) for moved in _shifted(at))]
    chance, score = max(float((sign * g).max()) for g in gaps), float(tested[unit])
    if score < chance + MARGIN:
        return None
    there, elsewhere = (float(np.median(second[w, unit])) for w in (at, ~at))
    sentence = f"{verb} {feature.phrase} ({there:.2f}; {elsewhere:.2f} elsewhere)"
    facts = {"there": there, "elsewhere": elsewhere}
    which = Unit(layer, unit)
    found = Finding(which, feature, score, chance, sentence=sentence, facts=facts)
    return float(chosen[unit]), found


def _gap(gate: Floats, at: Flags) -> Floats:
    """Return the mean at some positions minus the mean elsewhere, `[U]`."""
    there, number = gate[at].sum(0, dtype=float), at.sum()
    return there / number - (gate.sum(0, dtype=float) - there) / (len(at) - number)
