"""The sentence of a finding: where a unit is high, and which gates do that."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.analysis.features import symbol_name
from jaxlstm.lab.analysis.search import Finding

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]


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
    score, memory = finding.score, finding.memory or 0.0
    if not finding.feature.is_flag:
        verb = "rises" if score > 0 else "falls"
        sentence = (
            f"follows {phrase}: {state} {verb} with it (rank correlation "
            f"{score:.2f}; {abs(memory):.2f} without the current "
            f"symbol's effect; chance {finding.chance:.2f})."
        )
        return finding._replace(sentence=sentence)
    at = finding.feature.values
    inside, outside = float(unit[state][at].mean()), float(unit[state][~at].mean())
    times = int((at[1:] & ~at[:-1]).sum())
    gates, facts = _gates(at, unit, symbols, state)
    sentence = (
        f"is {'high' if score > 0 else 'low'} {phrase}: {state} is {inside:.2f} there "
        f"and {outside:.2f} elsewhere.{gates} {state} separates inside from outside in "
        f"{_auc(score)} of pairs ({_auc(memory)} without the current symbol's effect; "
        f"chance {_auc(finding.chance)}). This occurs {times} times."
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
    counts = Counter(symbols[int(at)] for at in np.flatnonzero(events))
    symbol, number = counts.most_common(1)[0]
    return symbol if number >= 0.8 * events.sum() else None
