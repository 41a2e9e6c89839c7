"""Tests that classify, tag and ctc read no padding, train, and report what is so."""

import itertools
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jaxlstm as jl
from jaxlstm.lab import config, tasks
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.analysis import inspection
from jaxlstm.lab.tasks.classification import convolution, data, results
from jaxlstm.lab.training import evaluation

PICTURES = True  # those of the task are drawn in full

CLASSES = ["low", "high", "rare"]


def write(path, kind="sequence", counts=(24, 24, 2), seed=0):
    """Write sequences whose level tells the class, of 1 to 9 steps."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), counts)
    lengths = draw.integers(1, 10, len(labels))
    lengths[:2] = 1, 9
    values = draw.normal(size=(lengths.sum(), 2)) + np.repeat(labels, lengths)[:, None]
    arrays = {"values": values, "offsets": np.concatenate([[0], np.cumsum(lengths)])}
    if kind == "step":
        labels = draw.integers(-1, 3, lengths.sum())
    if kind == "transcript":
        sizes = np.maximum(lengths // 3, 1)
        labels = np.arange(sizes.sum()) % 3  # neighbours differ
        arrays["label_offsets"] = np.concatenate([[0], np.cumsum(sizes)])
    np.savez(path, labels=labels, classes=CLASSES, columns=["a", "b"], **arrays)
    return str(path)


KINDS = {"classify": "sequence", "tag": "step", "ctc": "transcript"}


def tiny_config(folder, task="classify", *, model=None, **training):
    return {
        "task": task,
        "name": "tiny",
        "data": {"path": write(folder / f"{task}.npz", KINDS[task])},
        "model": {"hidden_size": 3} | (model or {}),
        "training": {
            "steps": 12,
            "batch_size": 4,
            "steps_per_dispatch": 3,
            "log_every": 3,
            "validate_every": 6,
            "checkpoint_every": 3,
            "validation_batch_size": 5,
            **training,
        },
    }


def built(given):
    """Return task, dataset, model and parameters of a config."""
    loaded = config.load(given)
    task = tasks.get(loaded.task)
    dataset = task.data(loaded)
    model = task.model(loaded, dataset.spec)
    params, _ = model.init(jax.random.key(0))
    return task, dataset, model, params


# -- padding ------------------------------------------------------------------

MODELS = [
    ("classify", {"bidirectional": True}),
    ("classify", {"pooling": "mean", "convolution": {"arrangement": "parallel"}}),
    ("tag", {"crf": True}),
]
MORE = [
    ("classify", {}),
    ("classify", {"pooling": "max"}),
    ("classify", {"pooling": "attention", "bidirectional": True}),
    ("classify", {"convolution": {"channels": [4, 3], "kernels": [2, 3], "stride": 2}}),
    ("tag", {"convolution": {"channels": [4], "kernels": [4]}}),
    ("ctc", {}),
]


@pytest.mark.parametrize(
    ("name", "model"),
    [*MODELS, *(pytest.param(*each, marks=pytest.mark.thorough) for each in MORE)],
    ids=str,
)
def test_padding_changes_no_loss_and_no_gradient(tmp_path, name, model):
    task, dataset, model, params = built(tiny_config(tmp_path, name, model=model))
    # Different weights for different steps; at first, those of attention are equal.
    draw = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * draw.normal(size=leaf.shape).astype(np.float32),
        params,
    )
    rows = np.argsort(np.diff(dataset.train.offsets), kind="stable")[:6]
    longest = int(np.diff(dataset.train.offsets)[rows].max())

    @jax.jit
    def means(params, batch):
        def mean(params):
            losses, _ = task.loss(model, params, (), batch)
            return losses.mean(), losses

        return jax.value_and_grad(mean, has_aux=True)(params)

    short = data.padded(dataset.train, dataset.spec, rows, length=longest)
    long = data.padded(dataset.train, dataset.spec, rows, length=longest + 5, size=8)
    padded = np.arange(longest + 5)[:, None] >= long.lengths
    long.xs[padded] = np.nan
    (loss, losses), gradient = means(params, short)
    (same, others), same_gradient = means(params, long)
    assert np.isfinite(loss)
    assert float(loss) > 0
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    np.testing.assert_allclose(others.values[:6], losses.values, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        same_gradient,
        gradient,
    )
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-3


def test_two_members_under_vmap_are_two_runs(tmp_path):
    task, dataset, model, _ = built(tiny_config(tmp_path))
    params = [model.init(jax.random.key(seed))[0] for seed in (0, 1)]
    batches = dataset.batches(0, 2)

    def loss(params, batch):
        return task.loss(model, params, (), batch)[0].mean()

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    found = jax.jit(jax.vmap(jax.value_and_grad(loss)))(stacked, batches)
    for member in (0, 1):
        batch = jax.tree.map(lambda leaf, k=member: leaf[k], batches)
        alone = jax.jit(jax.value_and_grad(loss))(params[member], batch)
        jax.tree.map(
            lambda a, b, k=member: np.testing.assert_allclose(a[k], b, atol=1e-6),
            found,
            alone,
        )


# -- losses by hand -----------------------------------------------------------


def with_logits(task, logits, batch, spec=None):
    """Return the losses of a model that gives these logits."""
    fixed = jl.Layer(None, lambda *_, **__: (batch.lengths, jnp.asarray(logits)))
    return task.loss(fixed, {}, (), batch)[0]


def test_cross_entropy_with_class_weights_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    batch = data.Batch(
        np.zeros((1, 2, 1), np.float32),
        np.array([1, 1]),
        np.array([0, 1]),
        np.array([2.0, 0.5], np.float32),
        np.array([True, True]),
    )
    losses = with_logits(tasks.get("classify"), logits, batch)
    expected = [2 * -np.log(0.5), 0.5 * -np.log(0.1)]
    np.testing.assert_allclose(losses.values, expected, rtol=1e-6)
    np.testing.assert_allclose(losses.mean(), np.mean(expected), rtol=1e-6)
    assert losses.extra["accuracy"].tolist() == [1.0, 0.0]


def test_a_tagger_averages_over_labelled_steps():
    probabilities = np.array([[[0.5, 0.5], [0.9, 0.1]], [[0.2, 0.8], [0.3, 0.7]]])
    batch = data.Batch(
        np.zeros((2, 2, 1), np.float32),
        np.array([2, 1]),
        np.array([[0, 1], [0, -1]]),
        np.ones(2, np.float32),
        np.array([True, True]),
    )
    logits = np.log(probabilities).astype(np.float32)
    losses = with_logits(tasks.get("tag"), logits, batch)
    steps = -np.log([0.5, 0.8, 0.9])
    np.testing.assert_allclose(losses.mean(), steps.mean(), rtol=1e-6)
    assert losses.weights.tolist() == [2.0, 1.0]
    total = losses.sums()
    assert float(total.extra["accuracy"] / total.weight) == pytest.approx(1.0)


def test_class_weights_by_hand(tmp_path):
    _, dataset, _, _ = built(tiny_config(tmp_path, class_weights="balanced"))
    counts = np.bincount(dataset.train.labels, minlength=3)
    np.testing.assert_allclose(
        dataset.class_weights, counts.sum() / (3 * counts), rtol=1e-6
    )
    # The mean weight of the training sequences is 1.
    assert dataset.class_weights[dataset.train.labels].mean() == pytest.approx(1.0)
    given = tiny_config(tmp_path, class_weights={"rare": 5})
    _, dataset, _, _ = built(given)
    assert dataset.class_weights.tolist() == [1.0, 1.0, 5.0]
    batch = dataset.batch(0)
    assert (batch.weights == np.where(batch.labels == 2, 5.0, 1.0)).all()
    with pytest.raises(BadInput, match=r'got the class "rar", .*did you mean "rare"'):
        built(tiny_config(tmp_path, class_weights={"rar": 5}))


# -- the split ----------------------------------------------------------------


def test_each_class_is_split_by_the_same_fraction(tmp_path):
    given = tiny_config(tmp_path)
    given["data"]["path"] = write(tmp_path / "many.npz", counts=(50, 20, 10))
    _, dataset, _, _ = built(given)
    parts = dataset.train, dataset.validation, dataset.test
    assert [np.bincount(part.labels).tolist() for part in parts] == [
        [32, 13, 6],
        [8, 3, 2],
        [10, 4, 2],
    ]
    assert Counter(itertools.chain(*(part.ids for part in parts))) == Counter(
        str(k + 1) for k in range(80)
    )


def test_a_rare_class_stays_in_training_and_is_named(tmp_path):
    _, dataset, _, _ = built(tiny_config(tmp_path))
    assert 2 in dataset.train.labels
    facts = data.facts(dataset)
    assert "no sequence of" in facts["notes"]
    assert "rare" in facts["notes"]


def test_the_split_and_the_shapes_do_not_depend_on_the_seed(tmp_path):
    given = tiny_config(tmp_path, buckets=2)
    one, other = (built({**given, "seed": seed})[1] for seed in (0, 1))
    assert one.train.ids == other.train.ids
    assert one.test.ids == other.test.ids
    for step in range(12):
        a, b = one.batch(step), other.batch(step)
        assert a.xs.shape == b.xs.shape
    assert any((one.batch(k).xs != other.batch(k).xs).any() for k in range(12))


def test_values_are_scaled_by_the_training_part(tmp_path):
    _, dataset, _, _ = built(tiny_config(tmp_path))
    np.testing.assert_allclose(dataset.train.values.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(dataset.train.values.std(0), 1, rtol=1e-5)
    with np.load(tmp_path / "classify.npz") as file:
        k = int(dataset.test.ids[0]) - 1
        first, last = file["offsets"][k : k + 2]
        raw = file["values"][first:last]
    spec = dataset.spec
    expected = (raw - np.array(spec.mean)) / np.array(spec.scale)
    np.testing.assert_allclose(
        dataset.test.values[: dataset.test.offsets[1]], expected, rtol=1e-4, atol=1e-5
    )
    task = tasks.get("classify")
    assert task.spec_from_json(task.spec_to_json(spec)) == spec


def test_validation_has_each_sequence_once_and_exact_means(tmp_path):
    task, dataset, model, params = built(tiny_config(tmp_path))
    batches = list(dataset.eval_batches())
    assert sum(int(batch.valid.sum()) for batch in batches) == len(
        dataset.validation.ids
    )
    assert len({batch.xs.shape for batch in batches}) <= 4
    means = evaluation.evaluate(task, model, params, batches)
    longest = int(np.diff(dataset.validation.offsets).max())
    rows = np.arange(len(dataset.validation.ids))
    whole = data.padded(dataset.validation, dataset.spec, rows, length=longest)
    losses, _ = task.loss(model, params, (), whole)
    np.testing.assert_allclose(means["loss"], losses.values.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        means["accuracy"], losses.extra["accuracy"].mean(), rtol=1e-6
    )


# -- results ------------------------------------------------------------------


def test_the_table_and_the_confusion_matrix_are_counts():
    draw = np.random.default_rng(0)
    expected, found = draw.integers(0, 2, 60), draw.integers(0, 3, 60)
    text = results.class_table(expected, found, CLASSES, "sequences")
    right = int((expected == found).sum())
    recalls = [(found[expected == k] == k).mean() for k in range(2)]
    f1 = []
    for k in range(3):
        hits = ((expected == k) & (found == k)).sum()
        f1.append(2 * hits / max(1, (expected == k).sum() + (found == k).sum()))
    lines = text.splitlines()
    assert lines[0].split()[1] == f"{right / 60:.4f}"
    assert f"{right} of 60 sequences" in lines[0]
    assert lines[1].split()[-1] == f"{np.mean(recalls):.4f}"
    assert lines[2].split()[-1] == f"{np.mean(f1):.4f}"
    assert lines[-1] == "No sequences here: rare."
    picture = results.confusion(expected, found, CLASSES, "test")
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (expected, found), 1)
    drawn = {}
    picture.draw(_Axes(drawn))
    assert drawn["matrix"].tolist() == counts.tolist()


class _Axes:
    """Axes for a plot function that is replaced."""

    def __init__(self, drawn):
        self.drawn = drawn


@pytest.fixture(autouse=True)
def recorded_matrix(monkeypatch):
    """Record the matrix that is drawn into `_Axes`; draw into others."""
    from jaxlstm import plots

    draw = plots.confusion_matrix

    def record(matrix, labels, *, ax):
        if isinstance(ax, _Axes):
            ax.drawn["matrix"] = matrix
            return ax
        return draw(matrix, labels, ax=ax)

    monkeypatch.setattr(plots, "confusion_matrix", record)


# -- whole runs ---------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "classify",
        *(pytest.param(k, marks=pytest.mark.thorough) for k in ("tag", "ctc")),
    ],
)
def test_a_run_writes_results_and_predicts(tmp_path, name):
    given = tiny_config(tmp_path, name, buckets=2)
    trained = jl.lab.train(given, run=tmp_path / "run", sink=tiny.RecordingSink())
    report = (tmp_path / "run" / "report.md").read_text()
    assert "## Results of the test part" in report
    assert (tmp_path / "run" / "plots" / "confusion.png").exists() == (name != "ctc")
    if name == "classify":
        page = inspection.inspect(tmp_path / "run").page
        assert "Half of the answers are decided after" in page.read_text()
        assert (page.parent / "decision.png").exists()
    else:
        with pytest.raises(BadInput, match="does not describe its units"):
            inspection.inspect(tmp_path / "run")
    dataset = trained.dataset()
    table = trained.task.predict(trained, None)
    steps = np.diff(dataset.test.offsets)
    if name == "ctc":
        assert list(table) == ["id", "symbols"]
        assert table["id"] == list(dataset.test.ids)
        return
    chances = np.stack([table[f"p({label})"] for label in CLASSES], 1)
    np.testing.assert_allclose(chances.sum(1), 1.0, atol=1e-5)
    assert len(chances) == (len(steps) if name == "classify" else steps.sum())
    assert list(table["label"]) == [CLASSES[k] for k in chances.argmax(1)]
    new = trained.task.predict(trained, tmp_path / f"{name}.npz")
    both = dict(zip(new["id"], new["p(low)"], strict=True))
    if name == "classify":
        for k, chance in zip(table["id"], table["p(low)"], strict=True):
            assert both[k] == pytest.approx(chance, abs=1e-5)


def test_new_sequences_need_no_labels(tmp_path):
    """The predictions are those of the same sequences with labels."""
    draw = np.random.default_rng(0)
    rows = [
        (f"s{k}", t, *draw.normal(size=2).round(3), "ab"[k % 2])
        for k in range(30)
        for t in range(draw.integers(1, 5))
    ]
    for name, columns in (("old", 5), ("new", 4)):
        header = ["sequence_id", "step", "x", "y", "label"][:columns]
        lines = [header, *(row[:columns] for row in rows)]
        text = "\n".join(",".join(map(str, line)) for line in lines)
        (tmp_path / f"{name}.csv").write_text(text + "\n")
    given = {"task": "classify", "data": {"path": str(tmp_path / "old.csv")}}
    task, dataset, model, params = built(given)
    trained = SimpleNamespace(
        config=config.load(given),
        spec=dataset.spec,
        model=model,
        params=params,
        dataset=lambda: dataset,
    )
    old, new = (task.predict(trained, tmp_path / f"{k}.csv") for k in ("old", "new"))
    assert old["id"] == new["id"]
    assert len(new["id"]) == 30
    np.testing.assert_array_equal(old["p(a)"], new["p(a)"])


def test_one_class_is_an_error(tmp_path):
    given = tiny_config(tmp_path)
    given["data"]["path"] = write(tmp_path / "one.npz", counts=(20, 0, 0))
    with np.load(given["data"]["path"]) as file:
        arrays = dict(file) | {"classes": ["low"]}
    np.savez(given["data"]["path"], **arrays)
    with pytest.raises(
        BadInput, match='got the class "low" alone, expected at least 2'
    ):
        built(given)


class _Killed(BaseException):
    """Raised in place of a signal that ends the process."""


@pytest.mark.thorough
def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    given = tiny_config(tmp_path, buckets=2, model={"output_dropout": 0.3})
    whole = jl.lab.train(given, run=tmp_path / "whole", sink=tiny.RecordingSink())

    class Sink(tiny.RecordingSink):
        def log(self, record):
            super().log(record)
            if record["step"] == 9:
                raise _Killed

    with pytest.raises(_Killed):
        jl.lab.train(given, run=tmp_path / "killed", sink=Sink())
    again = jl.lab.resume(tmp_path / "killed", sink=tiny.RecordingSink())
    assert again.step == whole.step
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    assert again.metrics() == whole.metrics()


def test_a_sequence_that_is_too_short_for_its_symbols_is_named(tmp_path):
    path = tmp_path / "short.npz"
    np.savez(
        path,
        values=np.ones((10, 1)),
        offsets=[0, 2, 4, 6, 8, 10],
        labels=[0, 1, 1, 1, 0, 0, 1, 0],
        label_offsets=[0, 2, 4, 5, 6, 8],
    )
    given = tiny_config(tmp_path, "ctc") | {"data": {"path": str(path)}}
    with pytest.raises(BadInput, match=r'sequence "2": got 2 symbols for 2 .* least 3'):
        built(given)


@pytest.mark.parametrize("name", ["classify", "ctc", "tag"])
def test_the_starter_config_has_the_defaults(tmp_path, name):
    path = tmp_path / "a.yaml"
    path.write_text(jl.lab.starter(name))
    assert config.load(path, overrides=[f"name={name}"]) == config.load({"task": name})


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (4, 1), (3, 2), (5, 3)])
def test_layers_over_time_convolve(size, stride):
    params = convolution.init(jax.random.key(0), 2, [3], [size])
    xs = jax.random.normal(jax.random.key(1), (7, 2, 2))
    found, lengths = convolution.apply(params, xs, jnp.array([7, 5]), stride=stride)
    ys = jax.lax.conv_general_dilated(
        xs.at[5:, 1].set(0.0),
        params[0].w,
        (stride,),
        [((size - 1) // 2, size // 2)],
        dimension_numbers=("WNC", "WIO", "WNC"),
    )
    expected = jnp.maximum(jax.nn.standardize(ys, axis=-1, epsilon=1e-5), 0.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert lengths.tolist() == [-(-7 // stride), -(-5 // stride)]
