"""Streams give the numbers of whole sequences, for any chunks, slots and threads."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.interop.inputs import Inputs
from jaxlstm.lab import BadInput, LabError, serving
from jaxlstm.lab.config import loading as configs
from jaxlstm.lab.data import vocabulary as vocabularies
from jaxlstm.lab.runs.trained import Trained
from jaxlstm.lab.serving import Stream
from jaxlstm.lab.tasks import language_modelling as task
from jaxlstm.lab.tasks.language_modelling import generation

TOLERANCE = 1e-6  # of outputs near 1, in float32

MODEL = jl.serial(rnn=jl.stack(jl.lstm(), (5, 4)), head=jl.linear(2))
PARAMS, _ = MODEL.init(jax.random.key(0), 3)
RNG = np.random.default_rng(0)
XS = RNG.normal(size=(4, 150, 3)).astype(np.float32)  # of four users


@pytest.fixture(scope="module")
def wholes():
    return [np.asarray(MODEL.apply(PARAMS, xs)[1]) for xs in XS]


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_any_chunks_of_several_slots_give_the_whole(wholes):
    stream = Stream(MODEL, PARAMS, slots=4)
    places, found = [0] * 4, [[] for _ in range(4)]
    while any(place < 150 for place in places):
        sizes = RNG.choice([0, 0, 1, 2, 7, 70], 4)
        chunks = {s: XS[s, places[s] : places[s] + n] for s, n in enumerate(sizes)}
        if sizes[0] == 0:
            del chunks[0]
        for slot, ys in stream.push(chunks).items():
            assert len(ys) == len(chunks[slot])
            found[slot].append(ys)
            places[slot] += len(ys)
    for ys, whole in zip(found, wholes, strict=True):
        close(np.concatenate(ys), whole)


def test_single_steps_give_the_whole(wholes):
    stream = Stream(MODEL, PARAMS, slots=4)
    stream.push({3: XS[0, :9]})
    stream.reset(3)
    for t in range(20):
        close(stream.step(XS[:, t]), [whole[t] for whole in wholes])
    close(stream.step(XS[[2, 1], 20], slots=[2, 1]), [wholes[2][20], wholes[1][20]])
    close(stream.push({1: XS[1, 21:25]})[1], wholes[1][21:25])


def test_a_reset_slot_begins_anew_and_leaves_the_others(wholes):
    stream = Stream(MODEL, PARAMS, slots=3)
    stream.push({0: XS[0, :10], 2: XS[2, :10]})
    stream.reset(0)
    found = stream.push({0: XS[1, :30], 2: XS[2, 10:20]})
    close(found[0], wholes[1][:30])
    close(found[2], wholes[2][10:20])


@pytest.mark.thorough
def test_learned_initial_states_begin_sequences():
    model = jl.recurrent(jl.learned_initial_state(jl.gru()), 4)
    params, _ = model.init(jax.random.key(0), 3)
    params = jax.tree.map(lambda leaf: leaf + 0.3, params)
    stream = Stream(model, params, slots=2)
    stream.push({1: XS[1, :5]})
    stream.reset(1)
    close(stream.push({1: XS[0, :6]})[1], model.apply(params, XS[0, :6])[1])


def test_saved_states_go_on_in_another_stream(wholes, tmp_path):
    stream = Stream(MODEL, PARAMS, slots=2)
    assert stream.state(1) == {}
    stream.push({1: XS[0, :40]})
    np.savez(tmp_path / "session.npz", **stream.state(1))
    saved = dict(np.load(tmp_path / "session.npz"))
    assert sorted(saved) == ["output", "rnn/0/c", "rnn/0/h", "rnn/1/c", "rnn/1/h"]
    close(saved["output"], wholes[0][39])
    other = Stream(MODEL, PARAMS, slots=3)
    other.restore(2, saved)
    close(other.push({2: XS[0, 40:60]})[2], wholes[0][40:60])
    other.restore(2, {})
    close(other.push({2: XS[3, :5]})[2], wholes[3][:5])


@pytest.mark.thorough
def test_a_warm_stream_compiles_nothing(wholes):
    stream = Stream(MODEL, PARAMS, slots=3)
    stream.warm_up()
    before = serving.read._cache_size()
    for length in (1, 2, 3, 5, 16, 17, 40, 64, 65, 150):
        close(stream.push({1: XS[0, :length]})[1], wholes[0][:length])
        stream.push({0: XS[0, :length], 2: XS[2, :5]})
        stream.reset(1)
    assert serving.read._cache_size() == before


def test_threads_share_the_slots(wholes):
    stream = Stream(MODEL, PARAMS, slots=4)
    found = [[] for _ in range(4)]

    def user(slot):
        for t in range(0, 60, 3):
            found[slot].append(stream.push({slot: XS[slot, t : t + 3]})[slot])

    threads = [threading.Thread(target=user, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ys, whole in zip(found, wholes, strict=True):
        close(np.concatenate(ys), whole[:60])


def test_what_others_ask_for_runs_in_the_same_call(monkeypatch):
    """While one call runs, three threads queue; the next call serves all of them."""
    stream = Stream(MODEL, PARAMS, slots=4)
    stream.push({0: XS[0, :1]})
    calls = []

    def counted(*arguments):
        calls.append(sorted(arguments[3].tolist()))
        return read(*arguments)

    read = serving.read
    monkeypatch.setattr(serving, "read", counted)
    threads = [
        threading.Thread(target=stream.push, args=({slot: XS[slot, :1]},))
        for slot in (1, 2, 3)
    ]
    with stream._lock:
        for thread in threads:
            thread.start()
        while len(stream._queue) < 3:
            pass
    for thread in threads:
        thread.join()
    assert calls == [[1, 2, 3, 4]]  # and a row of padding


def test_a_failed_call_reaches_every_thread_that_waits(monkeypatch):
    stream = Stream(MODEL, PARAMS, slots=2)
    monkeypatch.setattr(serving, "read", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stream.push({0: XS[0, :1], 1: XS[1, :1]})


def test_models_that_cannot_stream_are_refused():
    both = jl.stack(jl.lstm(), (5,), bidirectional=True)
    params, _ = both.init(jax.random.key(0), 3)
    with pytest.raises(BadInput, match="bidirectional or reversed model, whose"):
        Stream(both, params)

    def apply(params, xs, state=None, **options):
        return state, jnp.mean(xs, 0)

    mean = jl.Layer(lambda key, size=None: ((), size), apply)
    with pytest.raises(BadInput, match=r"inputs cannot be read.*pass inputs="):
        Stream(mean, ())
    given = Inputs((3,), jnp.dtype("float32"))
    with pytest.raises(BadInput, match="expected one output for each step and row"):
        Stream(mean, (), inputs=given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.push({2: XS[0]}), "slot: got 2, expected 0 to 1"),
        (lambda s: s.push({True: XS[0]}), "slot: got True"),
        (lambda s: s.push({0: XS[0, 0]}), r"slot 0: got float32\[3\], expected \[T, 3"),
        (lambda s: s.push({0: XS[0, :, :2]}), "expected"),
        (lambda s: s.step(XS[:1, 0]), "expected one for each of 2"),
        (lambda s: s.step(XS[:2, 0], slots=[1, 1]), "for 1 different slots"),
        (lambda s: s.restore(0, {"h": [1.0]}), "another model"),
        (lambda s: Stream(MODEL, PARAMS, slots=0), "expected at least 1"),
    ],
)
def test_wrong_calls_are_named(call, message):
    with pytest.raises(BadInput, match=message):
        call(Stream(MODEL, PARAMS, slots=2))


# -- text ------------------------------------------------------------------------------

NAMES = vocabularies.characters("annbo")


def names(**model):
    """Return an untrained model of names with large weights."""
    config = configs.load(
        {
            "data": {
                "source": "text",
                "path": "names.txt",
                "document_separator": "\n",
                "unit": "byte" if model.pop("byte", False) else "character",
            },
            "model": {"embedding_size": 6, "hidden_size": 12, **model},
            "sample": {"prompt": ""},
        }
    )
    vocabulary = vocabularies.byte() if config.data.unit == "byte" else NAMES
    layer = task.TASK.model(config, vocabulary)
    params, _ = layer.init(jax.random.key(1))
    params = jax.tree.map(lambda leaf: 3 * leaf, params)
    return Trained("run", config, task.TASK, vocabulary, layer, params, 0, {})


@pytest.mark.parametrize(
    "byte", [False, pytest.param(True, marks=pytest.mark.thorough)]
)
def test_generated_pieces_are_the_sample(byte):
    trained = names(byte=byte)
    stream = trained.stream(slots=3)
    options = {"length": 30, "documents": 2, "seed": 5, "top_p": 0.9}
    expected = trained.sample("an", **options)
    assert "".join(stream.generate(1, "an", **options)) == expected
    one = stream.generate(1, "an", ahead=1, **options)
    first = next(one)
    stream.push({0: [2, 2, 2]})  # another user, in between
    assert first + "".join(one) == expected


def test_a_text_goes_on_where_it_was_left():
    trained = names()
    stream = trained.stream(slots=2)
    whole = trained.sample("anb", length=9, temperature=0, documents=0)
    stream.push({0: [1, *NAMES.encode("a")]})
    stream.push({0: NAMES.encode("nb")})
    go_on = {"length": 9, "temperature": 0, "documents": 0}
    assert "".join(stream.generate(0, **go_on)) == whole
    with pytest.raises(BadInput, match="slot 1: has read nothing, expected a prompt"):
        stream.generate(1, **go_on)


def test_pushed_document_tokens_begin_anew():
    trained = names()
    stream = trained.stream(slots=2)
    logits = stream.push({1: [1, 2, 4, 1, 3]})[1]
    _, expected = trained.model.apply(trained.params, jnp.array([1, 3]))
    np.testing.assert_allclose(logits[3:], expected, atol=1e-5)


def test_users_with_options_of_their_own_share_the_calls():
    trained = names()
    stream = trained.stream(slots=4)
    options = [
        {"temperature": 0},
        {"temperature": 1.0, "seed": 3},
        {"top_k": 2, "seed": 4},
        {"temperature": 0.5, "documents": 3},
    ]
    found = [""] * 4

    def user(slot):
        pieces = stream.generate(slot, "an"[: slot % 3], length=40, **options[slot])
        found[slot] = "".join(pieces)

    threads = [threading.Thread(target=user, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for slot, text in enumerate(found):
        prompt = "an"[: slot % 3]
        assert text == trained.sample(prompt, length=40, **options[slot])


def test_numbers_that_are_not_finite_end_the_text_of_their_slot():
    trained = names()
    stream = trained.stream(slots=2)
    stream.push({0: [1], 1: [1]})
    state = stream.state(0)
    stream.restore(0, state | {"output": state["output"] * np.nan})
    with pytest.raises(LabError, match="not finite"):
        list(stream.generate(0, length=4))
    assert len("".join(stream.generate(1, length=4, documents=0))) == 4


@pytest.mark.thorough
def test_a_warm_stream_of_text_compiles_nothing():
    stream = names().stream(slots=2)
    stream.warm_up()
    before = serving.read._cache_size(), generation.write._cache_size()
    list(stream.generate(0, "an" * 20, length=9, temperature=0, documents=0))
    list(stream.generate(1, "b", length=3, top_k=2))
    assert before == (serving.read._cache_size(), generation.write._cache_size())


@pytest.mark.parametrize("ahead", [0, generation.WRITE + 1])
def test_tokens_of_a_call_are_bounded(ahead):
    with pytest.raises(BadInput, match="ahead: got"):
        names().stream().generate(0, "an", ahead=ahead)


def test_tokens_are_checked():
    stream = names().stream()
    with pytest.raises(BadInput, match="slot 0: got the token 6, expected 0 to 5"):
        stream.push({0: [6]})
    with pytest.raises(BadInput, match=r"got float64\[1\], expected tokens \[T\]"):
        stream.push({0: [1.5]})
