"""Findings on traces made by hand, whose answer is known."""

import numpy as np
import pytest

from jaxlstm.lab.analysis import features, findings, sentences
from jaxlstm.lab.analysis.features import Feature
from jaxlstm.lab.analysis.findings import Unit

SIZE = 6000


def program(seed: int = 0) -> list[str]:
    """Lines such as `ab = f(c, de) + g`, of random words."""
    rng = np.random.default_rng(seed)
    text = ""

    def word() -> str:
        return "".join(rng.choice(list("abcdefgh"), rng.integers(1, 7)))

    while len(text) < SIZE:
        call = f"{word()}({word()}, {word()})" if rng.random() < 0.6 else word()
        text += f"{'    ' * rng.integers(0, 3)}{word()} = {call} + {word()}\n"
    return list(text[:SIZE])


def noise(units: int, *, keep: float = 0.0, seed: int = 0) -> np.ndarray:
    """Units that know nothing of a text: white, or with a memory, `[N, U]`."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(SIZE, units))
    for step in range(1, SIZE):
        drawn[step] += keep * drawn[step - 1]
    return drawn


def between(symbols: list[str], one: str, other: str) -> np.ndarray:
    """True after the one symbol and before the other."""
    inside, flags = False, []
    for symbol in symbols:
        inside = symbol == one or (inside and symbol != other)
        flags.append(inside)
    return np.array(flags)


def ids(symbols: list[str]) -> np.ndarray:
    return np.array([ord(symbol) for symbol in symbols])


def look(symbols: list[str], states: np.ndarray) -> findings.Search:
    columns = features.of_text(symbols, np.arange(SIZE))
    units = [Unit(0, unit) for unit in range(states.shape[1])]
    states = states.astype(np.float32)
    held = [column for column in columns if column.symbol is None]
    untrained = noise(5, keep=0.5, seed=99).astype(np.float32)
    return findings.search(held, states, ids(symbols), units, untrained)


@pytest.mark.parametrize(("sign", "level"), [(1, "high"), (-1, "low")])
def test_a_planted_unit_is_found_and_no_other(sign, level):
    symbols = program()
    states = noise(20)
    states[:, 7] = 0.3 * states[:, 7] + sign * between(symbols, "(", ")")
    found = look(symbols, states)
    assert [finding.place for finding in found.findings] == [Unit(0, 7)]
    (one,) = found.findings
    assert one.feature.phrase in ("inside parentheses", "after `(` and before `)`")
    assert sign * one.score > 0.9
    assert sign * one.memory > 0.8
    said = sentences.told(one, {"c": states[:, 7]}, symbols).sentence
    assert said.startswith(f"is {level} {one.feature.phrase}: c is ")
    assert "times in 100" in said


@pytest.mark.parametrize("keep", [0.0, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_noise_yields_no_finding(keep, seed):
    found = look(program(seed), noise(40, keep=keep, seed=seed))
    assert found.findings == []
    assert found.columns > 20
    assert found.nearest is not None
    assert not found.nearest.holds


def test_a_unit_that_only_shows_the_symbol_is_no_finding():
    symbols = program()
    states = noise(5)
    states[:, 2] = np.isin(symbols, list("(,)")) + 0.01 * states[:, 2]
    assert look(symbols, states).findings == []


def test_what_holds_on_one_half_only_is_not_reported():
    symbols = program()
    states = noise(5)
    states[: SIZE // 2, 3] += 9 * between(symbols, "(", ")")[: SIZE // 2]
    found = look(symbols, states)
    assert found.findings == []
    assert found.candidates == found.columns


def test_a_counter_follows_an_amount():
    symbols = program()
    states = noise(5)
    line = np.array(symbols) == "\n"
    at = np.arange(SIZE)
    states[:, 1] = np.maximum.accumulate(np.where(line, at, 0)) - at
    (one,) = look(symbols, states).findings
    assert one.place == Unit(0, 1)
    assert one.feature.phrase == "the position in the line"
    assert one.score < -0.99
    said = sentences.told(one, {"h": states[:, 1]}, symbols).sentence
    assert said.startswith("follows the position in the line: h falls with it")


def test_copies_are_said_once():
    symbols = program()
    states = noise(5)
    states[:, 1] = 0.2 * states[:, 1] + between(symbols, "(", ")")
    states[:, 3] = 1 - 2 * states[:, 1]
    assert [f.place.unit for f in look(symbols, states).findings] in ([1], [3])


def test_a_text_in_which_nothing_happens():
    found = look(["a"] * SIZE, noise(3))
    assert found == findings.Search([], 0, 3, 0, None)


def test_the_sentence_says_what_the_gates_do():
    symbols = program()
    inside = between(symbols, "(", ")")
    here = np.array(symbols)
    unit = {
        "c": np.where(inside, 1.5, -0.25),
        "i": np.where(here == "(", 0.9, 0.1),
        "f": np.where(here == ")", 0.05, 0.95),
    }
    finding = findings.Finding(
        "state", Unit(0, 0), Feature("inside", inside), 0.9, 0.8, 0.1, True
    )
    told = sentences.told(finding, unit, symbols)
    assert told.sentence == (
        "is high inside: c is 1.50 there and -0.25 elsewhere. It opens its input gate "
        "on `(` (0.90; 0.10 elsewhere) and keeps what it holds (f = 0.95; 0.92 "
        "elsewhere) until `)` (0.05). Given one place inside and one outside, its c "
        "tells which is which 95 times in 100 (90 beyond the symbol being read; by "
        f"chance 55). The text has that {told.facts['occurs']:.0f} times."
    )
    begins = [one == "(" for one in symbols]
    assert told.facts["occurs"] == sum(begins)
    assert told.facts["kept_end"] == pytest.approx(0.05)


def test_a_gate_that_opens_on_every_such_symbol_is_said_to():
    """The first `b` of each stretch opens it, and all that follow do as well."""
    symbols = list("b" * 4 + "aa") * 20
    at = np.arange(120) % 6 < 2
    opened = {"c": at * 1.0, "i": np.where(np.array(symbols) == "b", 0.9, 0.1)}
    only = opened | {"i": np.where(np.arange(120) % 6 == 0, 0.9, 0.1)}
    finding = findings.Finding(
        "state", Unit(0, 0), Feature("early", at), 0.9, 0.8, 0.1, True
    )
    for unit, words in (opened, "on any `b` (0.90; "), (only, "on `b` (0.90; "):
        said = sentences.told(finding, unit, symbols).sentence
        assert f"opens its input gate {words}" in said


def test_what_a_network_knows_before_training_is_not_reported():
    symbols = program()
    inside = between(symbols, "(", ")")
    states = noise(4).astype(np.float32)
    states[:, 2] += 5 * inside
    columns = [Feature("inside parentheses", inside)]
    units = [Unit(0, unit) for unit in range(4)]
    for untrained, number in (noise(6, seed=5), 1), (states[:, ::-1], 0):
        found = findings.search(columns, states, ids(symbols), units, untrained)
        assert len(found.findings) == number


@pytest.mark.parametrize(("after", "number"), [(0, 1), (6, 0)])
def test_who_names_an_end_has_to_see_it(after, number):
    """A unit that goes on for some symbols after the end does not stand for it."""
    symbols = program()
    inside = between(symbols, "(", ")")
    held = inside.copy()
    for step in range(1, after + 1):
        held[step:] |= inside[:-step]
    states = noise(3).astype(np.float32) / 20
    states[:, 1] += held
    units = [Unit(0, unit) for unit in range(3)]
    edged = Feature("after `(` and before `)`", inside, edged=True)
    found = findings.search([edged], states, ids(symbols), units, noise(2))
    assert len(found.findings) == number
    plain = edged._replace(edged=False)
    found = findings.search([plain], states, ids(symbols), units, noise(2))
    assert len(found.findings) == 1


def test_what_is_hardly_more_than_chance_is_not_reported(monkeypatch):
    """A rare column beside many slow units: one fits well, and so do shifted ones."""
    rng = np.random.default_rng(3)
    rare = np.zeros(SIZE, bool)
    for begin in rng.choice(SIZE - 40, 24, replace=False):
        rare[begin : begin + 12] = True
    states = noise(60, keep=0.98, seed=3).astype(np.float32)
    states[:, 7] += 14 * rare
    columns = [Feature("rare", rare)]
    units = [Unit(0, unit) for unit in range(60)]
    symbols = rng.integers(0, 5, SIZE)
    monkeypatch.setattr(findings, "MARGIN", 0.0)
    (bare,) = findings.search(columns, states, symbols, units, noise(3)).findings
    assert bare.place.unit == 7
    over = min(abs(bare.score), abs(bare.memory)) - bare.chance
    for margin, number in (0.9 * over, 1), (1.1 * over, 0):
        monkeypatch.setattr(findings, "MARGIN", margin)
        found = findings.search(columns, states, symbols, units, noise(3))
        assert len(found.findings) == number


def test_gates_that_a_symbol_switches():
    symbols = program()
    here = np.array(symbols)
    rng = np.random.default_rng(0)
    gates = {name: rng.uniform(0.3, 0.7, (SIZE, 4)) for name in "ifz"}
    gates["i"][:, 1] = np.where(here == "(", 0.9, 0.1)
    gates["f"][:, 2] = np.where(here == "\n", 0.1, 0.9)
    gates["z"][: SIZE // 2, 3] = np.where(here == "=", 0.0, 1.0)[: SIZE // 2]
    found = findings.switched(
        features.of_symbols(symbols, np.arange(SIZE)),
        gates,
        [Unit(1, unit) for unit in range(4)],
        {name: np.full((SIZE, 2), 0.5) for name in "ifz"},
    )
    assert [(f.place.unit, f.sentence) for f in found] == [
        (1, "opens its input gate on `(` (0.90; 0.10 elsewhere)"),
        (2, "shuts its forget gate on a line end (0.10; 0.90 elsewhere)"),
    ]
    assert found[0].score == pytest.approx(0.8)


def test_a_gate_that_drifts_is_not_switched_by_a_symbol_of_one_place():
    """Long open, long shut; the symbol occurs only where it happens to be open."""
    symbols = np.full(SIZE, "a")
    for half in 0, SIZE // 2:
        symbols[half + 100 : half + 110] = "?"
    drifting = np.tile(np.repeat([1.0, 0.0, 0.0], 500), SIZE // 1500)[:, None]
    rng = np.random.default_rng(0)
    random = np.where(symbols == "?", 1.0, rng.random(SIZE) < 0.1)[:, None]
    columns = features.of_symbols(symbols.tolist(), np.arange(SIZE))
    (mark,) = (column for column in columns if column.symbol == "?")
    gate, real = drifting.astype(np.float32), random.astype(np.float32)
    flat = {"i": 0 * gate}
    assert findings.switched([mark], {"i": gate}, [Unit(0, 0)], flat) == []
    (found,) = findings.switched([mark], {"i": real}, [Unit(0, 0)], flat)
    assert found.score == pytest.approx(0.9, abs=0.05)
    assert 0 < found.chance < 0.6
    untrained = {"i": np.roll(real, 1, 1)}  # as good before training
    assert findings.switched([mark], {"i": real}, [Unit(0, 0)], untrained) == []


def test_a_bracket_in_a_caption_does_not_end_it():
    picture = sentences.Picture("finding-1.png", "Unit 4; grey: after ] and before *")
    said = picture.markdown()
    assert said.startswith("![Unit 4; grey: after \\] and before \\*](finding-1.png)")


def test_scores_are_auc_and_rank_correlation():
    rng = np.random.default_rng(0)
    unit = rng.integers(0, 5, (60, 1)).astype(float)  # with ties
    holds = rng.random(60) < 0.4
    ranked = findings.ranks(unit)
    pairs = np.sign(unit[holds] - unit[~holds].T)  # each inside with each outside
    assert findings._weights(holds) @ ranked == pytest.approx(pairs.mean(), abs=1e-5)
    amount = rng.normal(size=60)
    whole = findings.ranks(rng.normal(size=(60, 1)))
    own = findings.ranks(amount[:, None])[:, 0]
    wanted = np.corrcoef(own, whole[:, 0])[0, 1]
    assert findings._weights(amount) @ whole == pytest.approx(wanted, abs=1e-5)


# -- what can be said of a text ------------------------------------------------

TEXT = """\
def f(a, b):  # isn't (this)
    s = 'it\\'s (' + "b # c"
    return DON_T[a]

\"\"\"Two
lines (\"\"\"
x = {1}
"""


def where(phrase: str, text: str = TEXT) -> str:
    """The symbols of a text where something holds of it."""
    columns = features.of_text(list(text), np.arange(len(text)))
    (column,) = [column for column in columns if column.phrase == phrase]
    return "".join(s for s, holds in zip(text, column.values, strict=True) if holds)


@pytest.mark.parametrize(
    ("phrase", "wanted"),
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
def test_what_holds_where(phrase, wanted):
    assert where(phrase) == wanted


def test_an_apostrophe_opens_no_string():
    assert where("inside a quoted string", "don't 'say' it's\n'a\n") == "'say"


def test_an_open_bracket_ends_with_its_paragraph():
    assert where("inside parentheses", "(a\n\nb)c") == "(a"


def test_tokens_have_no_letters():
    symbols = ["#1", "#22", "#1", "#3"]
    found = features.of_text(symbols, np.arange(4))
    phrases = {column.phrase for column in found}
    assert "on token #22" in phrases
    assert not any("inside" in phrase for phrase in phrases)


def test_columns_are_of_the_places_that_are_asked_for():
    symbols, places = program(), np.array([5, 100, 4000])
    some = features.of_text(symbols, places)
    whole = features.of_text(symbols, np.arange(SIZE))
    there = {column.phrase: column.values for column in whole}
    alike = [column for column in some if column.phrase in there]
    assert len(alike) > 30
    for column in alike:
        np.testing.assert_array_equal(column.values, there[column.phrase][places])
