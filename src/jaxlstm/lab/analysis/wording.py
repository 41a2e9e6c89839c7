"""Findings and statistics as sentences."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.analysis.facts import STRETCH, LayerFacts, reach
from jaxlstm.lab.analysis.features import symbol_name
from jaxlstm.lab.analysis.search import Finding

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

GATES = {"i": "input", "f": "forget", "o": "output", "r": "reset", "z": "update"}


# -- a unit ------------------------------------------------------------------


def with_sentence(
    finding: Finding, unit: Mapping[str, Floats], symbols: Sequence[str]
) -> Finding:
    """Return a finding of `search` with its sentence and the numbers in it.

    Args:
        finding: The finding.
        unit: `[N]` each: c or h of the unit, and its gates by letter.
        symbols: The N symbols of the text.
    """
    state, phrase = "c" if "c" in unit else "h", finding.feature.phrase
    if not finding.feature.is_flag:
        verb = "rises" if finding.score > 0 else "falls"
        sentence = (
            f"follows {phrase}: {state} {verb} with it (rank correlation "
            f"{finding.score:.2f}; {abs(finding.memory or 0):.2f} without the current "
            f"symbol's effect; chance {finding.chance:.2f})."
        )
        return finding._replace(sentence=sentence)
    at = np.asarray(finding.feature.values, bool)
    inside, outside = float(unit[state][at].mean()), float(unit[state][~at].mean())
    level, times = (
        "high" if finding.score > 0 else "low",
        int((at[1:] & ~at[:-1]).sum()),
    )
    gates, facts = _gates(at, unit, symbols, state)
    sentence = (
        f"is {level} {phrase}: {state} is {inside:.2f} there and {outside:.2f} "
        f"elsewhere.{gates} {state} separates inside from outside in "
        f"{_auc(finding.score)} of pairs ({_auc(finding.memory or 0)} without the "
        f"current symbol's effect; chance {_auc(finding.chance)}). This occurs {times} "
        "times."
    )
    facts = {"inside": inside, "outside": outside, "occurs": times} | facts
    return finding._replace(sentence=sentence, facts=facts)


def _auc(score: float) -> str:
    """Format |D| as the area under the curve.

    Example:
        >>> _auc(-0.9), _auc(0.999)
        ('95 %', 'over 99 %')
    """
    percent = 50 * (1 + abs(score))
    return "over 99 %" if percent > 99 else f"{percent:.0f} %"


def _gates(
    at: Flags, unit: Mapping[str, Floats], symbols: Sequence[str], state: str
) -> tuple[str, dict[str, float]]:
    """Describe the gates where a feature begins, holds and ends; return the numbers."""
    before, after = at[:-1], at[1:]
    begins, ends = (np.append(False, e) for e in (after & ~before, before & ~after))
    facts, words = {}, []
    if "i" in unit:
        facts["input_begin"] = here = float(unit["i"][begins].mean())
        facts["input_elsewhere"] = elsewhere = float(unit["i"][~begins].mean())
        if here - elsewhere >= 0.2:
            words.append(
                f"opens its input gate {_opened(begins, symbols, unit['i'])} "
                f"({here:.2f}; {elsewhere:.2f} elsewhere)"
            )
    for letter in {"f", "z"} & set(unit):
        facts["kept_inside"] = kept = float(unit[letter][at & ~begins].mean())
        facts["kept_end"] = end = float(unit[letter][ends].mean())
        facts["kept_outside"] = outside = float(unit[letter][~at].mean())
        drops = kept - end >= 0.1
        if kept >= 0.7 and (kept > outside or drops):
            symbol = _usual(ends, symbols)
            until = "this ends" if symbol is None else symbol_name(symbol)
            words.append(
                f"keeps {state} ({letter} = {kept:.2f}; {outside:.2f} elsewhere)"
                + (f" until {until} ({end:.2f})" if drops else "")
            )
    return (f" It {' and '.join(words)}." if words else ""), facts


def _opened(begins: Flags, symbols: Sequence[str], gate: Floats) -> str:
    """Name the symbol on which a gate opens where a feature begins.

    "any" if most occurrences of the symbol are elsewhere, and open the gate as well.
    """
    symbol = _usual(begins, symbols)
    if symbol is None:
        return "where this begins"
    others = np.array([one == symbol for one in symbols]) & ~begins
    name = symbol_name(symbol)
    if others.sum() > begins.sum() and gate[others].mean() > gate[begins].mean() - 0.2:
        return f"on any {name.removeprefix('a ')}"
    return f"on {name}"


def _usual(events: Flags, symbols: Sequence[str]) -> str | None:
    """Return the symbol at 80 % or more of the events, or None."""
    counts = Counter(symbols[at] for at in np.flatnonzero(events).tolist())
    symbol, number = counts.most_common(1)[0]
    return symbol if number >= 0.8 * events.sum() else None


# -- a layer -----------------------------------------------------------------


def describe_layer(number: int, facts: LayerFacts) -> list[str]:
    """Return the statistics of a layer as sentences."""
    closed, opened = facts.saturation or ({}, {})
    sentences = [
        f"{_percent(opened[letter])} of the {GATES[letter]} gates in layer {number} "
        f"are saturated open (above 0.9) and {_percent(closed[letter])} closed (below "
        "0.1)."
        for letter in GATES
        if letter in opened
    ]
    if facts.timescales is not None:
        taus = facts.timescales
        longest = ", ".join(
            f"unit {unit} ({_steps(float(taus[unit]))})"
            for unit in np.argsort(-taus)[:3].tolist()
        )
        sentences.append(
            f"The median time constant is {_steps(float(np.median(taus)))}; the "
            f"longest are {longest}."
        )
    pairs = [f"{one} and {other}" for one, other in facts.duplicates]
    sentences.append(f"Dead units: {_some(facts.dead)}; duplicates: {_some(pairs)}.")
    return [*sentences, _gradients(facts)]


def _percent(shares: Floats) -> str:
    return f"{100 * float(np.mean(shares)):.0f} %"


def _steps(tau: float) -> str:
    if tau > STRETCH:
        return f"more than {STRETCH:,} steps"
    return f"{tau:.1f} steps" if tau < 10 else f"{tau:.0f} steps"


def _some(names: Sequence[object]) -> str:
    if not names:
        return "none"
    more = ", ..." if len(names) > 5 else ""
    return f"{len(names)} ({', '.join(map(str, names[:5]))}{more})"


def _gradients(facts: LayerFacts) -> str:
    if facts.reach < 0 or facts.span < 0:
        return "All gradients are 0."
    back, later = (
        f"{n} or more" if n >= facts.steps - 1 else f"{n}"
        for n in (facts.reach, facts.span)
    )
    rows = [reach(row[None]) for row in facts.flow]
    spread = f" ({min(rows)} to {max(rows)} in {len(rows)} passages)"
    return (
        f"Gradients reach {back} steps back{spread if min(rows) < max(rows) else ''}, "
        f"and an input changes the output up to {later} steps later."
    )
