"""Generated text follows the process that was trained, documents included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlstm as jl
from jaxlstm.lab import BadInput, LabError, serving
from jaxlstm.lab.config import loading as configs
from jaxlstm.lab.data import vocabulary as vocabularies
from jaxlstm.lab.data.streams import validation_windows
from jaxlstm.lab.runs.trained import Trained
from jaxlstm.lab.tasks import language_modelling as task
from jaxlstm.lab.tasks.language_modelling import generation, pictures

NAMES = "annbo"
LETTERS = vocabularies.characters(NAMES)  # a b n o: 2 3 4 5


def model(data, vocabulary, **sample):
    """Return an untrained model with large weights, which remembers and is certain."""
    config = configs.load(
        {
            "data": data,
            "model": {"embedding_size": 6, "hidden_size": 12},
            "sample": {"prompt": "", **sample},
        }
    )
    layer = task.TASK.model(config, vocabulary)
    params, _ = layer.init(jax.random.key(1))
    params = jax.tree.map(lambda leaf: 3 * leaf, params)
    return Trained("run", config, task.TASK, vocabulary, layer, params, 0, {})


def of_ids(**data):
    section = {"source": "tokens", "path": "ids.bin", "vocabulary_size": 9, **data}
    return model(section, vocabularies.opaque(9))


def of_text(separator=None):
    section = {"source": "text", "path": "names.txt", "document_separator": separator}
    return model(section, LETTERS)


def next_log_p(trained, prompt):
    """Return log p of each id after a prompt of ids, by the score of each."""
    return np.array([trained.score(f"{prompt} {id}")[-1] for id in range(9)])


def log_softmax(logits):
    shifted = np.asarray(logits, np.float64)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_a_document_token_in_the_prompt_begins_anew_as_in_training():
    prompt = "0 3 3 3 3 3 3 3 3 0"
    documents, endless = of_ids(document_token=0), of_ids()
    _, logits = documents.model.apply(documents.params, jnp.array([0]))
    expected = log_softmax(logits[0])
    np.testing.assert_allclose(next_log_p(documents, prompt), expected, atol=1e-5)
    _, logits = endless.model.apply(endless.params, jnp.array([0, *[3] * 8, 0]))
    expected = log_softmax(logits[-1])
    np.testing.assert_allclose(next_log_p(endless, prompt), expected, atol=1e-5)
    assert abs(next_log_p(documents, prompt) - expected).max() > 0.5


def test_drawn_document_tokens_begin_anew():
    """Every token of a greedy sample is the most likely one after its document."""
    trained = of_ids(document_token=2)
    text = trained.sample("2 1", length=20, temperature=0, documents=0)
    tokens = [2, 1, *map(int, text.split())]
    assert tokens.count(2) == 11
    for at in range(2, len(tokens)):
        begin = max(n for n in range(at) if tokens[n] == 2)
        document = jnp.array(tokens[begin:at], jnp.int32)
        _, logits = trained.model.apply(trained.params, document)
        assert tokens[at] == int(logits[-1].argmax())
    assert of_ids().sample("2 1", length=20, temperature=0) != text


def test_scores_are_the_losses_of_evaluation():
    trained = of_ids(document_token=0)
    tokens = np.random.default_rng(0).integers(0, 9, 200)
    (window,) = validation_windows(tokens, streams=1, window=199, document_token=0)
    losses, _ = task.TASK.loss(trained.model, trained.params, None, window)
    scores = trained.score(" ".join(map(str, tokens)))
    np.testing.assert_allclose(scores, -losses.values[:, 0], atol=2e-5)


def test_the_frequencies_of_samples_are_the_probabilities_of_scores():
    """500 samples of one token; each frequency within 4 standard deviations."""
    trained = of_ids(document_token=0)
    drawn = [
        trained.sample("0 3", length=1, temperature=1, documents=0, seed=seed)
        for seed in range(500)
    ]
    p = np.exp(next_log_p(trained, "0 3"))
    shares = np.array([drawn.count(f" {id}") for id in range(9)]) / 500
    assert shares.sum() == pytest.approx(1)
    assert (abs(shares - p) <= 4 * np.sqrt(p * (1 - p) / 500)).all()


def test_a_sample_ends_at_the_end_of_a_document_or_shows_it():
    trained = of_text("\n")
    endless = trained.sample("an", length=80, seed=3, documents=0)
    names = endless.split("\n")
    assert len(names) > 3
    for count in 1, 2, 3:
        found = trained.sample("an", length=80, seed=3, documents=count)
        assert found == "\n".join(names[:count])
    assert trained.sample("an", length=80, seed=3) == names[0]
    assert len(endless) == 80
    # Shorter samples are beginnings of longer ones.
    assert trained.sample("an", length=11, seed=3, documents=0) == endless[:11]


def test_text_without_documents_has_no_document_tokens():
    trained = of_text()
    assert len(trained.sample("an", length=300)) == 300
    assert set(trained.sample("an", length=300)) <= set(NAMES)
    assert len(trained.score("anno")) == 3


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [1]),
        ("an", [1, 2, 4]),
        ("an\nb", [1, 2, 4, 1, 3]),
        ("an\r\nb", [1, 2, 4, 1, 3]),
        ("\n\nan\n\n", [1, 2, 4, 1]),
        ("ax", [1, 2, 0]),
    ],
)
def test_prompts_are_read_as_files_are(prompt, expected):
    config = of_text("\n").config
    sample = config.sample.model_copy(update={"prompt": prompt})
    assert generation.prompt(sample, config.data, LETTERS).tolist() == expected


def test_windows_line_ends_in_a_separator():
    config = of_text("\r\n--\r\n").config
    sample = config.sample.model_copy(update={"prompt": "an\n--\nb"})
    found = generation.prompt(sample, config.data, LETTERS)
    assert found.tolist() == [1, 2, 4, 1, 3]


def test_ids_are_separated_from_the_prompt():
    trained = of_ids()
    text = trained.sample("7 4", length=3, seed=2)
    whole = [int(id) for id in ("7 4" + text).split()]
    assert whole[:2] == [7, 4]
    assert len(whole) == 5
    assert trained.sample("7 4 ", length=3, seed=2) == text.strip()
    begun = of_ids(document_token=0)
    assert begun.sample("", length=2, documents=0)[0] != " "
    assert begun.sample("7", length=0) == ""


def test_the_sample_of_a_report_has_separated_ids(monkeypatch):
    trained = of_ids()
    sample = trained.config.sample.model_copy(update={"prompt": "7 4", "length": 3})
    config = trained.config.model_copy(update={"sample": sample})
    shown = Trained(
        "run", config, task.TASK, trained.spec, trained.model, trained.params, 0, {}
    )
    monkeypatch.setattr(task.LanguageModelling, "artifacts", lambda *_: [])
    (artifact,) = task.TASK.conclude(shown, None)
    assert artifact.text.split()[:2] == ["7", "4"]
    assert len(artifact.text.split()) == 5


def test_pictures_reset_where_documents_begin():
    trained = of_text("\n")
    tokens = jnp.array([1, 2, 4, 4, 1, 3, 5])
    trace = pictures.first_layer(
        trained.config.model, trained.params, tokens, document_token=1
    )
    alone = pictures.first_layer(
        trained.config.model, trained.params, tokens[4:], document_token=1
    )
    np.testing.assert_allclose(trace.state.c[4:], alone.state.c, atol=1e-6)


def test_one_program_for_all_lengths_and_options():
    trained = of_text("\n")
    trained.sample("an", length=3)
    before = serving.read._cache_size(), generation.write._cache_size()
    for length, prompt in (1, "a"), (300, "an" * 60), (20, "bo\nan"):
        trained.sample(prompt, length=length, temperature=0)
        trained.sample(prompt, length=length, temperature=0.3, top_k=2, seed=9)
        trained.sample(prompt, length=length, top_p=0.5, documents=0)
        trained.score(prompt + "n")
    assert before == (serving.read._cache_size(), generation.write._cache_size())


def test_restrictions_keep_the_most_likely_tokens():
    """By hand: p = .5, .3, .15, .05; the nucleus of .6 has two tokens."""
    logits = jnp.log(jnp.array([0.15, 0.5, 0.05, 0.3]))
    for top_k, top_p, kept in [
        (generation.ALL, np.inf, {0, 1, 2, 3}),
        (2, np.inf, {1, 3}),
        (generation.ALL, 0.6, {1, 3}),
        (generation.ALL, 0.81, {0, 1, 3}),
        (1, 0.99, {1}),
        (3, 0.4, {1}),
    ]:
        found = generation.most_likely(logits, jnp.int32(top_k), jnp.float32(top_p))
        assert set(np.flatnonzero(np.isfinite(found)).tolist()) == kept


def test_rows_have_options_of_their_own():
    keys = jax.random.split(jax.random.key(0), 3)
    logits = jnp.log(jnp.array([[0.1, 0.6, 0.3]] * 3))
    one = generation.Draw.of(1.0, None, None)
    settings = generation.Draw(
        np.array([0.0, 1.0, 5.0], np.float32), np.array([3, 1, 3]), np.array([2.0] * 3)
    )
    drawn = generation.draw(keys, logits, settings)
    assert drawn[:2].tolist() == [1, 1]
    expected = generation.draw(keys[2:], logits[2:] / 5, one)
    assert int(drawn[2]) == int(expected[0])


@pytest.mark.thorough
def test_learned_initial_states_begin_documents():
    trained = of_text("\n")
    section = trained.config.model.model_copy(update={"learned_initial_state": True})
    config = trained.config.model_copy(update={"model": section})
    layer = task.TASK.model(config, LETTERS)
    params, _ = layer.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + 0.5, params)
    learned = Trained("run", config, task.TASK, LETTERS, layer, params, 0, {})
    _, logits = layer.apply(params, jnp.array([1, 2]))
    expected = log_softmax(logits)[[0, 1], [2, 4]]
    np.testing.assert_allclose(learned.score("an"), expected, atol=1e-5)
    np.testing.assert_allclose(learned.score("bo\nan")[-2:], expected, atol=1e-5)


def test_logits_that_are_not_finite_are_an_error():
    trained = of_text("\n")
    params = trained.params
    params["unembed"] = params["unembed"]._replace(b=params["unembed"].b + jnp.nan)
    with pytest.raises(LabError, match="not finite"):
        trained.sample("an", length=5)


@pytest.mark.parametrize("seed", [-1, 1.5, "1", 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(BadInput, match=r"seed: got .*, expected an integer 0 to"):
        of_text().sample("an", seed=seed)


def test_a_reset_layer_pickles_and_equals():
    layer = jl.serial(jl.embed(9, 4), jl.recurrent(jl.lstm(), 5))
    assert task.documents(layer, 3) == task.documents(layer, 3)
    assert task.documents(layer, None) is layer
