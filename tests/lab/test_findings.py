"""The search for units and gates, on planted traces; sentences; features of texts."""

import numpy as np
import pytest

from jaxlstm.lab.analysis import features, layers, results, search, wording
from jaxlstm.lab.analysis.features import Feature
from jaxlstm.lab.analysis.search import Finding, Search, Unit
from jaxlstm.lab.tasks.base import Picture

SIZE = 6000


def program(seed: int = 0) -> list[str]:
    """Return symbols of lines such as `ab = f(c, de) + g`, with random words."""
    rng = np.random.default_rng(seed)
    text = ""

    def word() -> str:
        return "".join(rng.choice(list("abcdefgh"), rng.integers(1, 7)))

    while len(text) < SIZE:
        call = f"{word()}({word()}, {word()})" if rng.random() < 0.6 else word()
        text += f"{'    ' * rng.integers(0, 3)}{word()} = {call} + {word()}\n"
    return list(text[:SIZE])


def noise(units: int, *, keep: float = 0.0, seed: int = 0) -> np.ndarray:
    """Return units `[N, U]` of white noise, or of a process that decays by `keep`."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(SIZE, units))
    for step in range(1, SIZE):
        drawn[step] += keep * drawn[step - 1]
    return drawn


def between(symbols: list[str], one: str, other: str) -> np.ndarray:
    """Return where a position is after the one symbol and before the other."""
    inside, flags = False, []
    for symbol in symbols:
        inside = symbol == one or (inside and symbol != other)
        flags.append(inside)
    return np.array(flags)


def ids(symbols: list[str]) -> np.ndarray:
    return np.array([ord(symbol) for symbol in symbols])


def search_states(symbols: list[str], states: np.ndarray) -> Search:
    columns = features.of_text(symbols, np.arange(SIZE))
    untrained = noise(5, keep=0.5, seed=99).astype(np.float32)
    return search.search(
        columns, [states.astype(np.float32)], ids(symbols), [untrained]
    )


@pytest.mark.parametrize(("sign", "level"), [(1, "higher"), (-1, "lower")])
def test_a_planted_unit_is_found_and_no_other(sign, level):
    symbols = program()
    states = noise(20)
    states[:, 7] = 0.3 * states[:, 7] + sign * between(symbols, "(", ")")
    found = search_states(symbols, states)
    assert [finding.unit for finding in found.findings] == [Unit(0, 7)]
    (one,) = found.findings
    assert one.feature.phrase in ("inside parentheses", "after `(` and before `)`")
    assert sign * one.score > 0.9
    assert one.memory is not None
    assert sign * one.memory > 0.8
    described = wording.with_sentence(one, {"c": states[:, 7]}, symbols)
    assert described.sentence.startswith(f"is {level} {one.feature.phrase}: c is ")
    assert " % of pairs (" in described.sentence


@pytest.mark.parametrize("keep", [0.0, 0.9, 0.995, 1.0])
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.combinations) for n in (1, 2))]
)
def test_noise_gives_no_finding(keep, seed):
    found = search_states(program(seed), noise(40, keep=keep, seed=seed))
    assert found.findings == []
    assert found.features > 20
    assert found.nearest is not None


def test_a_unit_that_follows_the_current_symbol_only_is_no_finding():
    symbols = program()
    states = noise(5)
    states[:, 2] = np.isin(symbols, list("(,)")) + 0.01 * states[:, 2]
    assert search_states(symbols, states).findings == []


def test_a_unit_that_follows_in_one_half_only_is_no_finding():
    symbols = program()
    states = noise(5)
    states[: SIZE // 2, 3] += 9 * between(symbols, "(", ")")[: SIZE // 2]
    found = search_states(symbols, states)
    assert found.findings == []
    assert found.nearest is not None


def test_a_counter_follows_the_position_in_the_line():
    symbols = program()
    states = noise(5)
    line = np.array(symbols) == "\n"
    at = np.arange(SIZE)
    states[:, 1] = np.maximum.accumulate(np.where(line, at, 0)) - at
    (one,) = search_states(symbols, states).findings
    assert one.unit == Unit(0, 1)
    assert one.feature.phrase == "the position in the line"
    assert one.score < -0.99
    described = wording.with_sentence(one, {"h": states[:, 1]}, symbols)
    assert described.sentence == (
        "follows the position in the line: h falls with it (rank correlation "
        f"{one.score:.2f}; {abs(one.memory or 0):.2f} without the current symbol's "
        f"effect; chance {one.chance:.2f})."
    )


def test_units_that_follow_the_same_feature_are_one_finding():
    symbols = program()
    states = noise(5)
    states[:, 1] = 0.2 * states[:, 1] + between(symbols, "(", ")")
    states[:, 3] = 1 - 2 * states[:, 1]
    assert [f.unit.unit for f in search_states(symbols, states).findings] in ([1], [3])


def test_a_text_of_one_symbol_has_no_features():
    found = search_states(["a"] * SIZE, noise(3))
    assert found == Search([], 0, 3, None)


def test_the_sentence_describes_the_gates():
    symbols = program()
    inside = between(symbols, "(", ")")
    here = np.array(symbols)
    unit = {
        "c": np.where(inside, 1.5, -0.25),
        "i": np.where(here == "(", 0.9, 0.1),
        "f": np.where(here == ")", 0.05, 0.95),
    }
    finding = Finding(Unit(0, 0), Feature("inside", inside), 0.9, 0.1, 0.8)
    described = wording.with_sentence(finding, unit, symbols)
    assert described.sentence == (
        "is higher inside: c is 1.50 there and -0.25 elsewhere. Its input gate opens "
        "on `(`: i is 0.90 there and 0.10 elsewhere. On `)`, its forget gate falls: f "
        "is 0.05 there and 0.95 before. c separates inside from outside in 95 % of "
        "pairs (90 % without the current symbol's effect; chance 55 %). The text has "
        f"{described.facts['occurs']:.0f} such places."
    )
    begins = [one == "(" for one in symbols]
    assert described.facts["occurs"] == sum(begins)
    assert described.facts["kept_end"] == pytest.approx(0.05)


def test_the_sentence_says_any_if_every_such_symbol_opens_the_gate():
    """One gate opens on every `b`, the other on the first `b` of each group only."""
    symbols = list("b" * 4 + "a" * 6) * 20
    at = np.arange(200) % 10 < 2
    opened = {"c": at * 1.0, "i": np.where(np.array(symbols) == "b", 0.9, 0.1)}
    only = opened | {"i": np.where(np.arange(200) % 10 == 0, 0.9, 0.1)}
    finding = Finding(Unit(0, 0), Feature("early", at), 0.9, 0.1, 0.8)
    for unit, words in (opened, "on any `b`: i is 0.90"), (only, "on `b`: i is 0.90"):
        described = wording.with_sentence(finding, unit, symbols)
        assert f"Its input gate opens {words}" in described.sentence


INSIDE = np.arange(120) % 6 < 3
ENDS = np.arange(120) % 6 == 3


@pytest.mark.parametrize(
    ("inside", "end", "outside", "expected"),
    [
        (0.97, 0.96, 0.98, ""),
        (
            0.97,
            0.96,
            0.30,
            " Its forget gate keeps c: f is 0.97 inside and 0.30 outside.",
        ),
        (
            0.97,
            0.10,
            0.30,
            " Its forget gate keeps c: f is 0.97 inside and 0.30 outside. On `x`, f "
            "falls to 0.10.",
        ),
        (0.50, 0.10, 0.10, ""),
    ],
    ids=["as elsewhere", "keeps", "keeps and falls", "half open"],
)
def test_a_gate_keeps_only_if_it_is_open_more_than_elsewhere(
    inside, end, outside, expected
):
    unit = {
        "c": INSIDE * 1.0,
        "f": np.select([INSIDE, ENDS], [inside, end], outside),
    }
    symbols = np.where(ENDS, "x", "a").tolist()
    finding = Finding(Unit(0, 0), Feature("early", INSIDE), 0.9, 0.1, 0.8)
    sentence = wording.with_sentence(finding, unit, symbols).sentence
    assert sentence.startswith(
        f"is higher early: c is 1.00 there and 0.00 elsewhere.{expected} c separates"
    )


def test_one_extreme_position_does_not_change_the_levels():
    unit = {"c": np.where(np.arange(120) == 1, 1e4, 6.0 * INSIDE)}
    finding = Finding(Unit(0, 0), Feature("early", INSIDE), 0.9, 0.1, 0.8)
    described = wording.with_sentence(finding, unit, ["a"] * 120)
    assert "c is 6.00 there and 0.00 elsewhere" in described.sentence


@pytest.mark.parametrize(("places", "number"), [(24, 0), (60, 1)])
def test_a_feature_of_few_places_is_no_finding(places, number):
    at = np.zeros(SIZE, bool)
    for begin in np.linspace(0, SIZE - 20, places).astype(int):
        at[begin : begin + 10] = True
    states = noise(3)
    states[:, 1] += 20 * at
    symbols = np.random.default_rng(0).integers(0, 5, SIZE)
    columns, untrained = [Feature("rare", at)], [noise(2, seed=5)]
    found = search.search(columns, [states.astype(np.float32)], symbols, untrained)
    assert len(found.findings) == number
    assert found.features == number


def test_gradients_are_described_by_the_median_passage():
    """The rows stay above 1 % for 3, 5 and 7 of 9 steps; later rises do not count."""
    flow = np.full((3, 9), 0.001)
    for row, steps in enumerate((3, 5, 7)):
        flow[row, -steps:] = 0.02
    flow[:, -1] = 1.0
    flow[0, 2] = 0.5
    facts = layers.LayerFacts(4, None, np.array([0.5, 2.0, 0.1, 0.3]), [], [], flow,
                              layers.reach(flow), 9)  # fmt: skip
    said = " ".join(layers.sentences(1, facts))
    assert (
        "The gradient of the last loss stays above 1 % of its maximum for 5 steps back "
        "(median of 3 passages, 3 to 7)."
    ) in said
    assert (
        "the output of the layer, by 1 % of the largest change, 9 or more steps" in said
    )
    assert (
        "The median timescale is 0.40 steps: half of the units keep at most 8 % of "
        "their state from one step to the next. The longest are unit 1 (2.0 steps), "
    ) in said


@pytest.mark.parametrize(("state", "letters"), [("c", "ifo"), ("h", "rz"), ("h", "")])
def test_the_glossary_has_the_words_of_the_cell(state, letters):
    words = results.glossary(state, letters, searched=True)
    assert f"state {state}, which it carries" in words
    assert ("forget gate" in words) == ("f" in letters)
    assert ("Gates" in words) == bool(letters)
    assert "Pairs" not in results.glossary(state, letters, searched=False)


def test_what_an_untrained_network_follows_is_no_finding():
    symbols = program()
    inside = between(symbols, "(", ")")
    states = noise(4).astype(np.float32)
    states[:, 2] += 5 * inside
    columns = [Feature("inside parentheses", inside)]
    for untrained, number in (noise(6, seed=5), 1), (states[:, ::-1], 0):
        found = search.search(columns, [states], ids(symbols), [untrained])
        assert len(found.findings) == number


@pytest.mark.parametrize(("after", "number"), [(0, 1), (6, 0)])
def test_a_unit_must_change_where_the_feature_ends(after, number):
    """A unit that stays high for some symbols after the end does not follow it."""
    symbols = program()
    inside = between(symbols, "(", ")")
    held = inside.copy()
    for step in range(1, after + 1):
        held[step:] |= inside[:-step]
    states = noise(3).astype(np.float32) / 20
    states[:, 1] += held
    edged = Feature("after `(` and before `)`", inside, edged=True)
    found = search.search([edged], [states], ids(symbols), [noise(2)])
    assert len(found.findings) == number
    plain = edged._replace(edged=False)
    found = search.search([plain], [states], ids(symbols), [noise(2)])
    assert len(found.findings) == 1


def test_a_score_must_exceed_chance_by_the_margin(monkeypatch):
    """A rare feature and many slow units: several fit well with the text shifted."""
    rng = np.random.default_rng(3)
    rare = np.zeros(SIZE, bool)
    for begin in np.sort(rng.choice(SIZE - 40, 60, replace=False)):
        rare[begin : begin + 12] = True
    states = noise(60, keep=0.98, seed=3).astype(np.float32)
    states[:, 7] += 14 * rare
    columns = [Feature("rare", rare)]
    symbols = rng.integers(0, 5, SIZE)
    monkeypatch.setattr(search, "MARGIN", 0.0)
    (bare,) = search.search(columns, [states], symbols, [noise(3)]).findings
    assert bare.unit.unit == 7
    assert bare.memory is not None
    over = min(abs(bare.score), abs(bare.memory)) - bare.chance
    for margin, number in (0.9 * over, 1), (1.1 * over, 0):
        monkeypatch.setattr(search, "MARGIN", margin)
        found = search.search(columns, [states], symbols, [noise(3)])
        assert len(found.findings) == number


def test_gates_that_one_symbol_switches():
    symbols = program()
    here = np.array(symbols)
    rng = np.random.default_rng(0)
    gates = {name: rng.uniform(0.3, 0.7, (SIZE, 4)) for name in "ifz"}
    gates["i"][:, 1] = np.where(here == "(", 0.9, 0.1)
    gates["f"][:, 2] = np.where(here == "\n", 0.1, 0.9)
    gates["z"][: SIZE // 2, 3] = np.where(here == "=", 0.0, 1.0)[: SIZE // 2]
    found = search.gate_switches(
        features.of_symbols(symbols, np.arange(SIZE)),
        [{}, gates],
        [{}, {name: np.full((SIZE, 2), 0.5) for name in "ifz"}],
    )
    assert [(f.unit, f.sentence) for f in found] == [
        (Unit(1, 1), "opens its input gate on `(` (0.90; 0.10 elsewhere)"),
        (Unit(1, 2), "closes its forget gate on a line end (0.10; 0.90 elsewhere)"),
    ]
    assert found[0].score == pytest.approx(0.8)


def test_a_gate_that_drifts_is_not_switched_by_a_rare_symbol():
    """Open and closed for long; the symbol occurs only where the gate is open."""
    symbols = np.full(SIZE, "a")
    for half in 0, SIZE // 2:
        symbols[half + 100 : half + 130] = "?"
    drifting = np.tile(np.repeat([1.0, 0.0, 0.0], 500), SIZE // 1500)[:, None]
    rng = np.random.default_rng(0)
    random = np.where(symbols == "?", 1.0, rng.random(SIZE) < 0.1)[:, None]
    columns = features.of_symbols(symbols.tolist(), np.arange(SIZE))
    (mark,) = (column for column in columns if column.phrase == "on `?`")
    gate, real = drifting.astype(np.float32), random.astype(np.float32)
    flat = {"i": 0 * gate}
    assert search.gate_switches([mark], [{"i": gate}], [flat]) == []
    (found,) = search.gate_switches([mark], [{"i": real}], [flat])
    assert found.score == pytest.approx(0.9, abs=0.05)
    assert 0 < found.chance < 0.6
    untrained = {"i": np.roll(real, 1, 1)}  # the same before training
    assert search.gate_switches([mark], [{"i": real}], [untrained]) == []


def test_brackets_in_a_caption_are_escaped():
    caption = "Unit 4; grey: after ] and before *"
    picture = Picture("finding-1.png", caption, (8, 4), lambda ax: None)
    markdown = results.show(picture)
    escaped = "Unit 4; grey: after \\] and before \\*"
    assert markdown == f"![{escaped}](finding-1.png)\n\n*{escaped}*"


def test_scores_are_auc_and_rank_correlation():
    rng = np.random.default_rng(0)
    unit = rng.integers(0, 5, (60, 1)).astype(float)  # with ties
    holds = rng.random(60) < 0.4
    ranked = search.ranks(unit)
    pairs = np.sign(unit[holds] - unit[~holds].T)  # each inside with each outside
    assert search.score_weights(holds) @ ranked == pytest.approx(pairs.mean(), abs=1e-5)
    amount = rng.normal(size=60)
    whole = search.ranks(rng.normal(size=(60, 1)))
    own = search.ranks(amount[:, None])[:, 0]
    expected = np.corrcoef(own, whole[:, 0])[0, 1]
    assert search.score_weights(amount) @ whole == pytest.approx(expected, abs=1e-5)


# -- features of a text -------------------------------------------------------

TEXT = """\
def f(a, b):  # isn't (this)
    s = 'it\\'s (' + "b # c"
    return DON_T[a]

\"\"\"Two
lines (\"\"\"
x = {1}
"""


def where(phrase: str, text: str = TEXT) -> str:
    """Return the symbols of a text at which a feature holds."""
    columns = features.of_text(list(text), np.arange(len(text)))
    (column,) = [column for column in columns if column.phrase == phrase]
    return "".join(s for s, holds in zip(text, column.values, strict=True) if holds)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("inside parentheses", "(a, b"),
        ("inside square brackets", "[a"),
        ("inside curly braces", "{1"),
        ("inside a comment", "# isn't (this)"),
        ("inside a quoted string", "'it\\'s (\"b # c"),
        ("inside a string of several lines", '"""Two\nlines ('),
        ("in a word of capitals", "ON_T"),
        ("in a number", "1"),
        ("on a line that begins with `return`", " DON_T[a]"),
        ("in the indentation of a line", "\n    \n    \n\n\n\n\n"),
    ],
)
def test_a_feature_holds_where_expected(phrase, expected):
    assert where(phrase) == expected


def test_an_apostrophe_begins_no_string():
    assert where("inside a quoted string", "don't 'say' it's\n'a\n") == "'say"


def test_a_blank_line_closes_open_brackets():
    assert where("inside parentheses", "(a\n\nb)c") == "(a"


def test_tokens_have_no_features_of_letters():
    symbols = ["#1", "#22", "#1", "#3"]
    read = features.of_symbols(symbols, np.arange(4))
    assert "on token #22" in {column.phrase for column in read}
    phrases = {column.phrase for column in features.of_text(symbols, np.arange(4))}
    assert phrases
    assert not any("inside" in phrase for phrase in phrases)


def test_features_are_selected_at_the_given_positions():
    symbols, positions = program(), np.array([5, 100, 4000])
    some, whole = (
        features.of_text(symbols, at) + features.of_symbols(symbols, at)
        for at in (positions, np.arange(SIZE))
    )
    expected = {column.phrase: column.values for column in whole}
    common = [column for column in some if column.phrase in expected]
    assert len(common) > 30
    for column in common:
        values = expected[column.phrase][positions]
        np.testing.assert_array_equal(column.values, values)
