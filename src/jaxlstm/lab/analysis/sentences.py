"""Findings in plain sentences: what a unit does, what a layer is like, and the page."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxlstm.lab.analysis.features import symbol_name
from jaxlstm.lab.analysis.findings import (
    BEYOND,
    ENOUGH,
    GAP,
    MARGIN,
    MOST,
    PLAIN,
    SHIFTS,
    SWITCHED,
    Finding,
    Search,
    Unit,
)
from jaxlstm.lab.analysis.readings import FLOW_ROWS, SHARE, STRETCH, LayerFacts

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

DEFINITIONS = "## What the words mean"
GATES = {"i": "input", "f": "forget", "o": "output", "r": "reset", "z": "update"}


# -- a unit ------------------------------------------------------------------


def told(
    finding: Finding, unit: Mapping[str, Floats], symbols: Sequence[str]
) -> Finding:
    """The finding with its sentence.

    Arguments:
        finding: of the kind "state".
        unit: what it did over the text, `[N]` each: c or h, and its gates by letter.
        symbols: the text, N symbols.
    """
    held = "c" if "c" in unit else "h"
    if not finding.feature.is_flag:
        way = "rises" if finding.score > 0 else "falls"
        words = f"follows {finding.feature.phrase}: {held} {way} with it"
        number = f"rank correlation {finding.score:.2f}"
        return finding._replace(sentence=f"{words} ({number}; {_sure(finding)}).")
    at = np.asarray(finding.feature.values, bool)
    inside, outside = float(unit[held][at].mean()), float(unit[held][~at].mean())
    level = "high" if finding.score > 0 else "low"
    gates, facts = _gates(at, unit, symbols)
    times = int((at[1:] & ~at[:-1]).sum())
    sentence = (
        f"is {level} {finding.feature.phrase}: {held} is {inside:.2f} there and "
        f"{outside:.2f} elsewhere.{gates} Given one place inside and one outside, its "
        f"{held} tells which is which {_times(finding.score)} ({_sure(finding)}). The "
        f"text has that {times} times."
    )
    facts = {"inside": inside, "outside": outside, "occurs": times} | facts
    return finding._replace(sentence=sentence, facts=facts)


def _times(score: float) -> str:
    """An AUC as a person says it.

    >>> _times(-0.9), _times(0.999)
    ('95 times in 100', 'more than 99 times in 100')
    """
    times = 50 * (1 + abs(score))
    return f"{'more than 99' if times > 99 else f'{times:.0f}'} times in 100"


def _sure(finding: Finding) -> str:
    beyond, chance = abs(finding.memory), finding.chance
    if finding.feature.is_flag:
        beyond, chance = 50 * (1 + beyond), 50 * (1 + chance)
        return f"{beyond:.0f} beyond the symbol being read; by chance {chance:.0f}"
    return f"{beyond:.2f} beyond the symbol being read; by chance {chance:.2f}"


def _gates(
    at: Flags, unit: Mapping[str, Floats], symbols: Sequence[str]
) -> tuple[str, dict[str, float]]:
    """What the gates do where it begins, lasts and ends: words and numbers."""
    before, after = at[:-1], at[1:]
    begins, ends = (np.append(False, e) for e in (after & ~before, before & ~after))
    lasts = at & ~begins
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
        facts["kept_inside"] = kept = float(unit[letter][lasts].mean())
        facts["kept_end"] = end = float(unit[letter][ends].mean())
        outside = float(unit[letter][~at].mean())
        facts["kept_outside"] = outside
        if kept >= 0.7 and (kept > outside or kept - end >= 0.1):
            until = _event(ends, symbols, " until ", " until that ends")
            until = f"{until} ({end:.2f})" if kept - end >= 0.1 else ""
            words.append(
                f"keeps what it holds ({letter} = {kept:.2f}; {outside:.2f} "
                f"elsewhere){until}"
            )
    return (f" It {' and '.join(words)}." if words else ""), facts


def _opened(begins: Flags, symbols: Sequence[str], gate: Floats) -> str:
    """On which symbol: on any such, where most of them stand elsewhere than where
    something begins, and open the gate there too.
    """
    symbol = _most(begins, symbols)
    if symbol is None:
        return "where that begins"
    others = np.array([one == symbol for one in symbols]) & ~begins
    name = symbol_name(symbol)
    most = others.sum() > begins.sum()
    if most and gate[others].mean() > gate[begins].mean() - 0.2:
        return f"on any {name.removeprefix('a ')}"
    return f"on {name}"


def _event(events: Flags, symbols: Sequence[str], before: str, otherwise: str) -> str:
    """The symbol that most of the events are on, or other words."""
    symbol = _most(events, symbols)
    return otherwise if symbol is None else before + symbol_name(symbol)


def _most(events: Flags, symbols: Sequence[str]) -> str | None:
    """The symbol that four of five events are on, or None."""
    counts = Counter(symbols[at] for at in np.flatnonzero(events).tolist())
    symbol, number = counts.most_common(1)[0]
    return symbol if number >= 0.8 * events.sum() else None


# -- a layer -----------------------------------------------------------------


def of_layer(number: int, facts: LayerFacts) -> list[str]:
    """What a layer is like, a sentence each."""
    return [
        *_saturated(number, facts),
        *_remembering(facts),
        _idle(facts),
        _reach(facts),
    ]


def _saturated(number: int, facts: LayerFacts) -> list[str]:
    low, high = facts.saturation or ({}, {})
    return [
        f"{_percent(high[letter])} of the {GATES[letter]} gates in layer "
        f"{number} are saturated open (above 0.9) and {_percent(low[letter])} shut "
        "(below 0.1)."
        for letter in GATES
        if letter in high
    ]


def _percent(shares: Floats) -> str:
    return f"{100 * float(np.mean(shares)):.0f} %"


def _remembering(facts: LayerFacts) -> list[str]:
    taus = facts.timescales
    if taus is None:
        return []
    longest = np.argsort(-taus)[:3]
    named = ", ".join(f"unit {u} ({_steps(float(taus[u]))})" for u in longest.tolist())
    return [
        f"The median unit keeps what it holds for {_steps(float(np.median(taus)))}; "
        f"the longest are {named}."
    ]


def _steps(tau: float) -> str:
    if tau > STRETCH:
        return f"longer than the {STRETCH:,} steps read in a row"
    return f"{tau:.1f} steps" if tau < 10 else f"{tau:.0f} steps"


def _idle(facts: LayerFacts) -> str:
    dead, pairs = facts.dead, facts.duplicates
    same = [f"{one} and {other}" for one, other in pairs]
    first = f"Dead: {len(dead)} of {facts.units} units ({_some(dead)})"
    second = f"pairs that are duplicates: {len(pairs)} ({_some(same)})"
    return (
        f"{first if dead else 'No unit is dead'}; "
        f"{second if pairs else 'no two are duplicates'}."
    )


def _some(names: Sequence[object]) -> str:
    shown = ", ".join(map(str, names[:5]))
    return f"{shown}, ..." if len(names) > 5 else shown


def _reach(facts: LayerFacts) -> str:
    last = facts.steps - 1
    if facts.reach < 0 or facts.span < 0:
        return "No gradient comes through."
    reach, span = (
        f"{n} or more" if n >= last else f"{n}" for n in (facts.reach, facts.span)
    )
    low, high = facts.reaches
    among = f" ({low} to {high} in {len(facts.flow)} passages)" if low < high else ""
    return (
        f"Gradients reach {reach} steps back{among}, and an input still changes the "
        f"output {span} steps later."
    )


# -- the page ----------------------------------------------------------------


class Picture(NamedTuple):
    """A picture on the page: its file, beside the page, and what it shows."""

    name: str
    caption: str

    def markdown(self) -> str:
        """The picture, and its caption below it."""
        caption = re.sub(r"([\\\[\]*_`<])", r"\\\1", self.caption)
        return f"![{caption}]({self.name})\n\n*{caption}*"


class Page(NamedTuple):
    """What the page is written from.

    title        the first line
    read         what was read, in a sentence
    search       what units stand for; None where nothing was searched for
    switched     gates that a symbol switches
    layers       what the layers are like
    of_units     for each finding its picture
    of_layers    for each layer its pictures
    """

    title: str
    read: str
    search: Search | None
    switched: Sequence[Finding]
    layers: Sequence[LayerFacts]
    of_units: Sequence[Picture]
    of_layers: Sequence[Sequence[Picture]]


def written(page: Page) -> str:
    """The page, as Markdown."""
    several = len(page.layers) > 1
    parts = [f"# {page.title}", page.read, *_units(page, several)]
    for number, facts in enumerate(page.layers, 1):
        parts.append(f"## Layer {number}")
        parts.append("\n".join(f"- {said}" for said in of_layer(number, facts)))
        parts += [picture.markdown() for picture in page.of_layers[number - 1]]
    return "\n\n".join([*parts, _method(page)]) + "\n"


def _units(page: Page, several: bool) -> list[str]:
    search = page.search
    if search is None:
        return []
    parts = ["## What single units stand for"]
    for number, finding in enumerate(search.findings):
        parts.append(f"{_who(finding.place, several)} {finding.sentence}")
        parts += [one.markdown() for one in page.of_units[number : number + 1]]
    if not search.findings:
        parts.append(_nothing(search, several))
    if page.switched:
        rows = (f"- {_who(f.place, several)} {f.sentence}." for f in page.switched)
        parts += ["## Gates that one symbol switches", "\n".join(rows)]
    return parts


def _who(place: Unit, several: bool) -> str:
    of = f" of layer {place.layer + 1}" if several else ""
    return f"**Unit {place.unit}**{of}"


def _nothing(search: Search, several: bool) -> str:
    words = "No unit was found that stands for something that can be said of the text."
    near = search.nearest
    if near is None:
        return f"{words} Nothing occurs in it often enough to be looked for."
    return (
        f"{words} {_who(near.place, several)} comes nearest, with what is "
        f"{near.feature.phrase}: D = {abs(near.score):.2f}, {abs(near.memory):.2f} "
        f"beyond the symbol being read, {near.chance:.2f} by chance."
    )


def _method(page: Page) -> str:
    parts = [DEFINITIONS]
    if page.search is not None:
        parts += [_searching(page.search), *([_SWITCHING] if page.switched else [])]
    parts.append(
        "**Gradients reach** k steps back: k is the largest number of steps for which "
        "the gradient of the last prediction's loss with respect to what the units "
        "hold k steps before the last (c, or h without a c) has a norm of "
        f"{SHARE:.0%} or more of the largest, in the median of {FLOW_ROWS} passages or "
        "fewer. **An input still changes the output** k steps later: the same share, "
        "of the derivative of h, along random directions, by the layer's input. "
        "**Keeps for** τ steps: τ = -1 / mean log f, after which 1/e is left. "
        "**Dead**: h moves by no more than 0.01. **Duplicates**: the correlation of h "
        "is above 0.99."
    )
    return "\n\n".join(parts)


_SWITCHING = (
    "**Opens or shuts a gate on** a symbol: on one half of the text the unit whose "
    "gate differs most between the symbol and all others is chosen; on the other the "
    "two means, which are told, must differ by "
    f"{GAP}, and by {MARGIN} more than those of any unit when the text is shifted, and "
    "of any unit of the same network before training. At most "
    f"{SWITCHED} are told for each gate."
)


def _searching(search: Search) -> str:
    compared = search.columns * search.units
    return (
        f"**Stands for**: {search.columns} things that can be said of each place of "
        f"the text were compared with {search.units} units, {compared:,} comparisons, "
        f"on one half of the text. The best unit for each, {search.candidates} in "
        'all, was judged on the other half; every number with "times in 100" or '
        '"correlation" is of that half. *Beyond the symbol being read*: the same with '
        "the unit's mean over all places with the same symbol taken off, so that it "
        "counts only what the unit remembers. *By chance*: the best that any unit "
        f"reaches when the text is shifted against the units, {SHIFTS} times, or any "
        "unit of the same network before training, from another seed. Reported "
        f"is what reaches {50 * (1 + ENOUGH):.0f} times in 100 (of amounts a "
        f"correlation of {ENOUGH}), {50 * (1 + BEYOND):.0f} ({BEYOND}) beyond the "
        f"symbol, and both by {50 * MARGIN:g} ({MARGIN}) more than chance; each unit, "
        "and what says the same, once. Of two things that a "
        f"unit goes with about equally well (within {50 * PLAIN:g} times in 100) the "
        "more plainly said is taken; of one that names a beginning and an end the unit "
        f"has to move at both. At most {MOST} are told. The passage in a picture is "
        "chosen where it shows best, out of the half that judged."
    )
