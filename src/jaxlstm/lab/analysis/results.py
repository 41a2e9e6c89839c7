"""The results of an inspection as a page with pictures, and as JSON."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from jaxlstm.lab.analysis import layers, pictures, traces, wording
from jaxlstm.lab.analysis import search as limits
from jaxlstm.lab.analysis.layers import LayerFacts
from jaxlstm.lab.analysis.search import Finding, Search, Unit
from jaxlstm.lab.analysis.traces import Traces
from jaxlstm.lab.tasks.base import Picture


class Inspection(NamedTuple):
    """The result of `jl.lab.inspect`.

    Attributes:
        page: The path of `findings.md`; pictures and `findings.json` are in the same
            folder.
        search: Units that follow a feature of the text; None if the text was too short.
        switches: Gates that one symbol switches.
        layers: Statistics of each recurrent layer.
    """

    page: Path
    search: Search | None
    switches: list[Finding]
    layers: list[LayerFacts]


def blocks(
    found: Inspection, shown: Traces, features: Mapping[str, NDArray[Any]]
) -> list[str | Picture]:
    """Return the paragraphs and pictures of the page, after its introduction.

    Args:
        found: The results.
        shown: The traces of the pictures.
        features: `[N]` by phrase, of the text of the pictures.
    """
    state, letters = traces.memory(shown.layers[0]), traces.gates(shown.layers[0])
    first = glossary(state, letters, found.search is not None)
    parts: list[str | Picture] = [first]
    methods = []

    def name(unit: Unit) -> str:
        layer = f" of layer {unit.layer + 1}" if len(found.layers) > 1 else ""
        return f"**Unit {unit.unit}**{layer}"

    if (search := found.search) is not None:
        parts.append("## Units that follow the text")
        for number, finding in enumerate(search.findings, 1):
            parts.append(f"{name(finding.unit)} {finding.sentence}")
            parts.append(pictures.of_finding(number, finding, shown, features))
        if not search.findings:
            near = search.nearest
            parts.append(
                "No unit was found that follows a feature of the text. "
                + (
                    "No feature occurs often enough."
                    if near is None
                    else f"The nearest is {name(near.unit)}, with the feature "
                    f"{near.feature.phrase}: {wording.evidence(near, state)}."
                )
            )
        sizes = {"features": search.features, "units": search.units}
        methods.append(_SEARCH.format(**sizes, **vars(limits)))
    if found.switches:
        rows = [f"- {name(one.unit)} {one.sentence}." for one in found.switches]
        parts += ["## Gates that one symbol switches", "\n".join(rows)]
        methods.append(_SWITCHES.format(**vars(limits)))
    for number, facts in enumerate(found.layers):
        rows = [f"- {sentence}" for sentence in layers.sentences(number + 1, facts)]
        parts += [f"## Layer {number + 1}", "\n".join(rows)]
        parts += pictures.of_layer(number, facts, shown)
    return [*parts, DEFINITIONS, *methods, _LAYERS.format(**vars(layers))]


def glossary(state: str, letters: Collection[str], searched: bool) -> str:
    """Return the words that the results use, in the order in which they need them.

    Args:
        state: "c", or "h" for a cell without c.
        letters: The letters of the cell's gates.
        searched: Whether units were compared with features of the text.
    """
    words = [_UNIT[state]]
    if gates := " ".join(_GATES[letter] for letter in letters if letter in _GATES):
        words.append(f"**Gates** are numbers from 0 (closed) to 1 (open). {gates}")
    words += _SEARCHED if searched else ()
    words += [_TIMESCALE] if {"f", "z"} & set(letters) else []
    listed = "\n".join(f"- {word.format(state=state)}" for word in words)
    return f"## Words\n\n{listed}"


def show(block: str | Picture) -> str:
    """Return a block in Markdown: a picture with its caption."""
    if isinstance(block, str):
        return block
    caption = re.sub(r"([\\\[\]*_`<])", r"\\\1", block.caption)
    return f"![{caption}]({block.name})\n\n*{caption}*"


def to_json(found: Inspection) -> dict[str, Any]:
    """Return the findings and statistics as values that JSON can represent."""
    search = found.search
    findings = [*(search.findings if search else []), *found.switches]
    return {
        "searched": search
        and {
            "columns": search.features,
            "units": search.units,
            "candidates": search.features,
        },
        "findings": [_finding(finding) for finding in findings],
        "layers": [layers.to_json(facts) for facts in found.layers],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    is_gate = finding.memory is None
    return {
        "kind": "gate" if is_gate else "state",
        "layer": finding.unit.layer + 1,
        "unit": finding.unit.unit,
        "feature": finding.feature.phrase,
        "score": finding.score,
        **({} if is_gate else {"memory": finding.memory}),
        "chance": finding.chance,
        **finding.facts,
        "sentence": finding.sentence,
    }


_UNIT = {
    "c": (
        "A **unit** holds one number, its state c, which it carries from symbol to "
        "symbol. Its output h is computed from c and read by the rest of the model."
    ),
    "h": (
        "A **unit** holds one number, its state h, which it carries from symbol to "
        "symbol and which the rest of the model reads."
    ),
}
_GATES = {
    "i": "The input gate i sets how much of a new value is added to {state}.",
    "f": "The forget gate f sets how much of {state} is kept.",
    "o": "The output gate o sets how much of {state} is output as h.",
    "z": "The update gate z sets how much of {state} is kept.",
    "r": "The reset gate r sets how much of {state} the new value depends on.",
}
_SEARCHED = (
    "**Inside**: the positions where a feature holds. Outside: all others. Values of "
    "{state} and of the gates are medians over these positions.",
    "**Pairs**: draw one position inside and one outside at random. {state} separates "
    "95 % of pairs if it is larger inside in 95 of 100 draws (or smaller, for a unit "
    "that is lower inside). Guessing separates 50 %.",
    "**Rank correlation**: 1 if {state} always rises with an amount, -1 if it always "
    "falls, 0 if they are unrelated.",
    "**Without the current symbol's effect**: many units react to the symbol that is "
    "being read. This number counts only what a unit remembers of earlier symbols.",
    "**Chance**: with many units, one always fits a little. This is the best fit to a "
    "text that was shifted against the units, and of an untrained network.",
)
_TIMESCALE = (
    "**Timescale**: the number of steps after which 37 % (1/e) of {state} is left "
    "if nothing is written. If it is below one step, less than 37 % is left after a "
    "single step."
)

DEFINITIONS = "## Definitions"

_SEARCH = """\
**Units that follow the text**: {features} features of the text were compared with
{units} units. For each feature, the unit that follows it best on one half of the text
was tested on the other half. The scores are from the other half: of all pairs of a
position inside and one outside, the share that the unit separates; for an amount, the
rank correlation. *Without the current symbol's effect*: after subtracting the unit's
mean over all positions with the same symbol, so that only memory counts. *Chance*: the
best score of any unit with the text shifted against the units, {SHIFTS} times, or of
any unit of an untrained network. A finding has D of at least {MIN_SCORE},
{MIN_MEMORY} without the current symbol's effect, and both exceed chance by {MARGIN}; D
is the rank correlation, or 2 p - 1 for a share p of pairs. If a feature names its
first and last symbol, the unit must change at both. Each unit is listed once, and so
are features that nearly coincide; at most {MOST} findings are listed. A feature must
begin {EPISODES} times or more in each half. Levels of states and gates are medians over
the positions of both halves. Pictures show the passage of the second half where the
finding is clearest."""

_SWITCHES = """\
**Gates that one symbol switches**: for each symbol, the unit whose gate differs most
between the symbol and all others is chosen on one half of the text. On the other half,
the two means must differ by {GAP}, and by {MARGIN} more than those of any unit with the
text shifted, and of any unit of an untrained network. The symbol must occur {EPISODES}
times or more in each half. The numbers listed are medians of the other half. At most
{MOST_SWITCHES} symbols are listed for each gate."""

_LAYERS = """\
**Closed, open**: shares of all steps, as the mean over units. **Gradient**: that of the
last loss with respect to the state (c, or h without a c) after each earlier step, in up
to {ROWS} passages of {STEPS} steps. Steps are counted from the last one back to the
first that is below {SHARE:.0%} of the maximum of its passage. **An input changes the
output** k steps later: the largest k for which the derivative of h with respect to the
layer's input, along random directions, is {SHARE:.0%} or more of its maximum. **Time
constant**: -1 / mean log f. **Dead**: h changes by 0.01 or less. **Duplicates**: the
correlation of two h is above 0.99."""
