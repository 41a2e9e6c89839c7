"""The sentences of a finding: where a unit is high, and which gates do that.

Levels of states and gates are medians, so that a few extreme positions do not decide
them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.analysis.features import symbol_name
from jaxlstm.lab.analysis.search import Finding

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

OPENS = 0.2  # more than elsewhere, for a gate that opens where a feature begins
KEEPS = 0.1  # more than elsewhere, for a gate that keeps
KEPT = 0.7  # the least forget gate that keeps
CLEARS = 0.5  # the largest forget gate that clears the state
_KEEPING = {"f": "forget", "z": "update"}


def with_sentence(
    finding: Finding, unit: Mapping[str, Floats], symbols: Sequence[str]
) -> Finding:
    """Return a finding of `search` with its sentences and the numbers in them.

    Args:
        finding: The finding.
        unit: `[N]` each: c or h of the unit, and its gates by letter.
        symbols: The N symbols of the text.
    """
    state, phrase = "c" if "c" in unit else "h", finding.feature.phrase
    if not finding.feature.is_flag:
        verb = "rises" if finding.score > 0 else "falls"
        sentence = f"follows {phrase}: {state} {verb} with it ({_evidence(finding)})."
        return finding._replace(sentence=sentence)
    at = finding.feature.values
    inside, outside = _median(unit[state][at]), _median(unit[state][~at])
    times = int((at[1:] & ~at[:-1]).sum())
    gates, facts = _gates(at, unit, symbols, state)
    sentence = (
        f"is {'higher' if finding.score > 0 else 'lower'} {phrase}: {state} is "
        f"{inside:.2f} there and {outside:.2f} elsewhere.{gates} "
        f"{evidence(finding, state)}. The text has {times:,} such places."
    )
    facts = {"inside": inside, "outside": outside, "occurs": times} | facts
    return finding._replace(sentence=sentence, facts=facts)


def evidence(finding: Finding, state: str) -> str:
    """Return how well a unit follows a feature, as a clause.

    Args:
        finding: The finding, or a pair that failed a test.
        state: "c", or "h" for a cell without c.
    """
    if not finding.feature.is_flag:
        return f"{state} follows {finding.feature.phrase} with {_evidence(finding)}"
    memory = finding.memory or 0.0
    return (
        f"{state} separates inside from outside in {_auc(finding.score)} of pairs "
        f"({_auc(memory)} without the current symbol's effect; chance "
        f"{_auc(finding.chance)})"
    )


def _evidence(finding: Finding) -> str:
    """Return the rank correlation of an amount and what it is compared with."""
    return (
        f"rank correlation {finding.score:.2f}; {abs(finding.memory or 0.0):.2f} "
        f"without the current symbol's effect; chance {finding.chance:.2f}"
    )


def _median(values: Floats) -> float:
    return float(np.median(values))


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
    facts, sentences = {}, []
    if "i" in unit:
        facts["input_begin"] = here = _median(unit["i"][begins])
        facts["input_elsewhere"] = elsewhere = _median(unit["i"][~begins])
        if here - elsewhere >= OPENS:
            where = _opened(begins, symbols, unit["i"])
            sentences.append(
                f"Its input gate opens {where}: i is {here:.2f} there and "
                f"{elsewhere:.2f} elsewhere."
            )
    for letter in _KEEPING.keys() & unit.keys():
        facts["kept_inside"] = kept = _median(unit[letter][at & ~begins])
        facts["kept_end"] = end = _median(unit[letter][ends])
        facts["kept_outside"] = outside = _median(unit[letter][~at])
        gate, usual = f"Its {_KEEPING[letter]} gate", _usual(ends, symbols)
        where = "Where this ends" if usual is None else f"On {symbol_name(usual)}"
        keeps = kept >= KEPT and kept - outside >= KEEPS
        falls = kept >= KEPT and end <= CLEARS
        if keeps:
            sentences.append(
                f"{gate} keeps {state}: {letter} is {kept:.2f} inside and "
                f"{outside:.2f} outside."
            )
        if falls and keeps:
            sentences.append(f"{where}, {letter} falls to {end:.2f}.")
        elif falls:
            sentences.append(
                f"{where}, {gate.lower()} falls: {letter} is {end:.2f} there and "
                f"{kept:.2f} before."
            )
    return "".join(f" {sentence}" for sentence in sentences), facts


def _opened(begins: Flags, symbols: Sequence[str], gate: Floats) -> str:
    """Name the symbol on which a gate opens where a feature begins.

    "any" if most occurrences of the symbol are elsewhere, and open the gate as well.
    """
    symbol = _usual(begins, symbols)
    if symbol is None:
        return "where this begins"
    others = np.array([one == symbol for one in symbols]) & ~begins
    name = symbol_name(symbol)
    opens = others.any() and _median(gate[others]) > _median(gate[begins]) - OPENS
    if opens and others.sum() > begins.sum():
        return f"on any {name.removeprefix('a ')}"
    return f"on {name}"


def _usual(events: Flags, symbols: Sequence[str]) -> str | None:
    """Return the symbol at 80 % or more of the events, or None."""
    counts = Counter(symbols[int(at)] for at in np.flatnonzero(events))
    symbol, number = counts.most_common(1)[0]
    return symbol if number >= 0.8 * events.sum() else None
