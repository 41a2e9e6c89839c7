"""Tests that vocabularies encode, decode and serialize without loss."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.data import vocabulary as v

any_text = st.text(st.characters(codec=None, exclude_categories=()))
some_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(any_text, any_text)
def test_round_trip_of_characters(text, other):
    vocabulary = v.characters(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text
    shown = "".join(letter if letter in text else "\ufffd" for letter in other)
    assert vocabulary.decode(vocabulary.encode(other)) == shown


@given(any_text)
def test_character_ids_are_contiguous(text):
    vocabulary = v.characters(text)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32
    assert set(ids.tolist()) == set(range(2, vocabulary.size))
    assert np.can_cast(np.min_scalar_type(vocabulary.size - 1), vocabulary.dtype)


@given(st.text())
def test_byte_ids_are_utf8(text):
    ids = v.byte().encode(text)
    assert bytes(ids.tolist()) == text.encode()
    assert v.byte().decode([256, *ids]) == text


@given(st.lists(st.integers(0, 256)))
def test_any_byte_ids_decode_to_encodable_text(ids):
    v.byte().decode(ids).encode()


@given(any_text, st.integers(1, 2**31 - 1))
def test_round_trip_through_json(text, size):
    for vocabulary in (v.characters(text), v.byte(), v.opaque(size)):
        assert v.from_json(vocabulary.to_json()) == vocabulary


@given(st.text() | some_json.map(json.dumps))
def test_other_json_is_refused(written):
    with pytest.raises(BadInput, match="to_json"):
        v.from_json(written)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "words"},
        {"kind": "byte"},
        {"kind": []},
        {"size": 6},
        {"size": 5.0},
        {"size": True},
        {"symbols": ["b", "a", "c"]},
        {"symbols": ["a", "a", "b"]},
        {"symbols": None},
        {"symbols": [1, 2, 3]},
        {"kind": "tokens", "symbols": [], "size": 0},
        {"kind": "tokens", "symbols": [], "size": 2**31},
    ],
)
def test_inconsistent_fields_are_refused(change):
    fields = json.loads(v.characters("abc").to_json())
    v.from_json(json.dumps(fields))
    with pytest.raises(BadInput):
        v.from_json(json.dumps(fields | change))


def test_document_token_has_no_text():
    assert v.characters("ab").decode([1, 2, 1, 3]) == "ab"
    assert v.byte().decode([256, 97]) == "a"


def test_opaque_ids_have_no_text():
    vocabulary = v.opaque(50_257)
    assert vocabulary.decode(np.array([50_256, 0], np.uint16)) == "50256 0"
    with pytest.raises(BadInput, match='got "hello", expected ids below 50257'):
        vocabulary.encode("hello")


@pytest.mark.parametrize("wrong", [-1, 4, 2**40])
def test_id_out_of_range_is_refused(wrong):
    with pytest.raises(BadInput, match=f"got the id {wrong}, expected 0 to 3"):
        v.characters("ab").decode([2, wrong])


def test_empty_input():
    assert v.characters("ab").decode([]) == ""
    assert v.byte().encode("").size == 0


def test_encode_long_equals_encode(monkeypatch):
    monkeypatch.setattr(v, "_CHUNK", 7)
    text = "naïve 🙂 über\n" * 20
    for vocabulary in (v.characters(text), v.byte()):
        ids = v.encode_long(vocabulary, text)
        assert ids.dtype == vocabulary.dtype
        assert (ids == vocabulary.encode(text)).all()
    assert v.encode_long(v.byte(), "").dtype == np.uint16


@pytest.mark.parametrize(
    ("size", "dtype"), [(256, "uint8"), (257, "uint16"), (65_537, "uint32")]
)
def test_dtype_is_the_smallest(size, dtype):
    assert v.opaque(size).dtype == dtype
