"""Tests of loading, validating and writing configs, and of the error messages."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import Field
from ruamel.yaml import YAML

from jaxlstm.cells.base import ACTIVATIONS
from jaxlstm.lab import config
from jaxlstm.lab.config import (
    Config,
    ConfigError,
    cells,
    loading,
    optax_names,
    schema,
)
from jaxlstm.lab.config.sections import FilePath, Section, with_absolute_paths
from jaxlstm.lab.config.yaml_source import LARGEST_FILE, Node

ROOT = Path(__file__).parents[2]
TEMPLATE = Path(config.__file__).parent / "templates" / "language_modelling.yaml"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Change to an empty directory, so that messages contain short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(source: Any, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        config.load(source, overrides=overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert all(line.isprintable() for line in caught.value.problems)
    return caught.value.problems


def problems_of(text: str) -> tuple[str, ...]:
    Path("a.yaml").write_text(text, encoding="utf-8")
    return problems("a.yaml")


# -- valid configs ------------------------------------------------------------


def test_default_is_the_quickstart():
    assert config.load() == Config() == config.load({}) == config.load(Config())
    assert config.load().name == "quickstart"


def test_default_optimizer_is_valid():
    assert config.load({"optimizer": list(Config().optimizer)}) == Config()


def test_name_defaults_to_the_file_name(here):
    Path("my run (2).yaml").write_text("seed: 1")
    assert config.load("my run (2).yaml").name == "my-run-2-"
    Path("b.yaml").write_text("name: c")
    assert config.load(Path("b.yaml")).name == "c"


def test_scientific_and_hexadecimal_numbers():
    given = ["training.steps=1e3", "optimizer.1.adamw.learning_rate=1e-3", "seed=0x10"]
    read = config.load(overrides=given)
    assert (read.training.steps, read.seed) == (1000, 16)
    assert read.optimizer[1]["adamw"]["learning_rate"] == 0.001


def test_override_with_special_characters_is_text():
    for text in ("if x: ", "# note", "a=b", "*x", "yes", "C:\\x", "[", " "):
        quoted = json.dumps(text) if text == "[" else text
        assert config.load(overrides=["sample.prompt=" + quoted]).sample.prompt == text


def test_overrides_of_nested_keys():
    read = config.load(
        {"training": {"early_stopping": None}},
        overrides=[
            "training.early_stopping.patience=3",
            "optimizer.1.adamw.learning_rate.warmup_cosine_decay_schedule.peak_value=1",
            "optimizer.0={clip: {max_delta: 2}}",
            "data.unit=byte",
            "model.checkpoint_every=sqrt",
            "model.checkpoint_every=null",
            "model.cell.forget_bias=2",
        ],
    )
    assert read.training.early_stopping == schema.EarlyStopping(patience=3)
    schedule = read.optimizer[1]["adamw"]["learning_rate"]
    assert schedule["warmup_cosine_decay_schedule"]["peak_value"] == 1
    assert read.optimizer[0] == {"clip": {"max_delta": 2}}
    assert read.data == schema.PythonData(unit="byte")
    assert read.model.checkpoint_every is None


def test_extends_merges_sections_and_replaces_lists_and_other_kinds(here):
    Path("sub").mkdir()
    Path("sub/base.yaml").write_text(
        "name: base\nseed: 3\nmodel: {layers: 2, hidden_size: 8}\n"
        "data: {source: text, path: x.txt, encoding: latin-1}\n"
    )
    Path("sub/child.yaml").write_text(
        "extends: base.yaml\nmodel: {layers: 3}\noptimizer: [sgd: {learning_rate: 1}]\n"
        "data: {source: python}\n"
    )
    read = config.load("sub/child.yaml", overrides=["model.hidden_size=9"])
    assert (read.name, read.seed) == ("child", 3)
    assert (read.model.layers, read.model.hidden_size) == (3, 9)
    assert read.data == schema.PythonData()
    assert read.optimizer == ({"sgd": {"learning_rate": 1}},)


def test_path_objects_become_text_unchanged():
    read = config.load({"data": {"source": "text", "path": Path("a/../b.txt")}})
    assert read.data == schema.TextData(path="a/../b.txt")


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_older_versions_are_migrated(here, monkeypatch):
    def rename(node: Node) -> Node:
        value = dict(node.value)
        value["seed"] = value.pop("random_seed")
        return Node(value, node.place)

    monkeypatch.setitem(loading.MIGRATIONS, 0, rename)
    Path("old.yaml").write_text("config_version: 0\nrandom_seed: 5\n")
    assert config.load("old.yaml").seed == 5
    Path("old.yaml").write_text("config_version: 0\nrandom_seed: -5\n")
    assert problems("old.yaml") == ("old.yaml:2: seed: got -5, expected at least 0",)


@pytest.mark.parametrize("rest", ["training: {steps: 7}\n", "seed: 1\n"])
def test_version_1_has_one_shard(here, rest):
    Path("old.yaml").write_text("config_version: 1\n" + rest)
    assert config.load("old.yaml").training.shards == 1
    Path("new.yaml").write_text(rest)
    assert config.load("new.yaml").training.shards == "auto"
    Path("child.yaml").write_text("extends: old.yaml\nseed: 2\n")
    assert config.load("child.yaml").training.shards == 1


# -- errors -------------------------------------------------------------------

MISTAKES = (Path(__file__).parent / "config_mistakes.txt").read_text().split("\n\n")


@pytest.mark.parametrize("mistake", MISTAKES[1:])
def test_message_of_an_invalid_file(here, mistake):
    text, _, answer = mistake.rpartition("\n-> ")
    assert problems_of(text) == (answer.strip(),)


def test_invisible_characters_are_reported(here):
    assert problems_of("model:\n\tlayers: 1") == (
        "a.yaml:2: got a tab, expected spaces as indentation",
    )
    assert problems_of("seed: \0") == (
        "a.yaml:1: invalid YAML: got the character U+0000, expected printable text; "
        "remove it",
    )


def test_all_errors_are_reported_at_once(here):
    wrong = ["seed: -1", "model: {layers: 0, hiden_size: 1}", "optimizer:", "- adm:"]
    found = problems_of("\n".join([*wrong, "- sgd: {a: 1}", "seed: 3"]))
    assert [line.split(": ")[0] for line in found] == [
        "a.yaml:6",
        "a.yaml:1",
        "a.yaml:2",
        "a.yaml:2",
        "a.yaml:4",
        "a.yaml:5",
    ]


def test_unreadable_files(here):
    Path("configs").mkdir()
    Path("no files").mkdir()
    Path("configs/quickstart.yaml").write_text("seed: 1")
    Path("empty.yaml").write_text("# only a comment\n")
    Path("latin.yaml").write_bytes("name: é".encode("latin-1"))
    Path("big.yaml").write_text("#" * LARGEST_FILE)
    meant = 'did you mean "configs/quickstart.yaml"?'
    said = {
        "quikstart.yaml": f"file not found; {meant}",
        "quickstart": f"file not found; {meant}",
        "no/a.yaml": "file not found; there is no directory no",
        "configs": f"got a directory, expected a YAML file; {meant}",
        "no files": "got a directory, expected a YAML file",
        "latin.yaml": "got the byte 0xe9 at position 6, expected UTF-8; save the file "
        "as UTF-8",
        "big.yaml": "got 256 kB or more, expected less than 256 kB",
        "empty.yaml": "got a file without keys, expected sections such as model: and "
        "training:, or {} for all defaults",
        "x" * 300: "File name too long",
    }
    for name, sentence in said.items():
        assert problems(name) == (f"{name}: {sentence}",)
    assert problems("a\0b") == ("a\\x00b: embedded null byte",)
    assert problems("new\nline.yaml")[0].startswith("new\\nline.yaml: file not found")


def test_errors_in_an_extended_file_name_that_file(here):
    Path("base.yaml").write_text("seed: 1\nmodel: {layers: 0}\n")
    Path("a.yaml").write_text("extends: base.yaml\nseed: -1\n")
    assert problems("a.yaml") == (
        "a.yaml:2: seed: got -1, expected at least 0",
        "base.yaml:2: model.layers: got 0, expected at least 1",
    )
    Path("a.yaml").write_text("seed: 1\nextends: bas.yaml\n")
    [line] = problems("a.yaml")
    assert line.startswith("a.yaml:2: extends: bas.yaml: file not found; did you mean")
    Path("a.yaml").write_text("extends: [base.yaml]\n")
    assert (
        "got a list of 1 entry, expected the path of a YAML file"
        in problems("a.yaml")[0]
    )
    Path("base.yaml").write_text("extends: a.yaml\n")
    Path("a.yaml").write_text("extends: base.yaml\n")
    assert problems("a.yaml")[0].startswith("base.yaml:1: extends: a.yaml already")
    Path("a.yaml").write_text("extends: a.yaml\n")
    assert "only one level is supported" in problems("a.yaml")[0]


OVERRIDES = {
    "model.hiden_size=256": 'unknown key; did you mean "hidden_size"?',
    "hiden_size=256": 'unknown key; did you mean "model.hidden_size"?',
    "modle.hidden_size=256": 'modle: unknown key; did you mean "model"?',
    "model.hidden_size=abc": 'got "abc", expected a whole number',
    "model.hidden_size=": "got null, expected a whole number",
    "model.hidden_size": "got no value, expected key=value, such as "
    "model.hidden_size=256",
    "=3": "got no key, expected key=value, such as model.hidden_size=256",
    "optimizer.1.adamw.b3=1": "unknown argument; expected ",
    "optimizer.7.adamw.b1=1": 'optimizer: got "7", expected an index of the list, 0',
    "optimizer.adamw.b1=1": "optimizer is a list; write optimizer.1.adamw",
    "model.layers.x=1": "model.layers: got a mapping of 1 entry, expected a whole ",
    "sample.prompt=[a": "value:1: invalid YAML: ",
    "optimizer=[]": "got an empty list, expected at least one transformation",
}


@pytest.mark.parametrize("text", OVERRIDES)
def test_message_of_an_invalid_override(text):
    [line] = problems(None, text)
    assert line.startswith(f'override "{text}": {OVERRIDES[text]}')


@pytest.mark.parametrize("reverse", [False, True])
def test_an_override_of_the_kind_of_data_drops_the_keys_of_the_other_kind(reverse):
    given = {"task": "forecast", "data": {"source": "generated", "series": 5}}
    overrides = ["data.source=files", "data.path=sales.csv"]
    data = config.load(given, overrides=overrides[:: -1 if reverse else 1]).data
    assert (data.source, data.path) == ("files", "sales.csv")
    same = config.load(given, overrides=["data.source=generated"]).data
    assert same.series == 5
    with pytest.raises(ConfigError, match=r"it belongs to .*; write data.source=files"):
        config.load(given, overrides=["data.path=sales.csv"])


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("steps=10", "training.steps"),
        ("learning-rate=0.1", "learning_rate"),
        ("model.hidden-size=8", "hidden_size"),
    ],
)
def test_overrides_that_people_try_are_answered_by_the_key(override, meant):
    with pytest.raises(ConfigError, match=f'unknown key; did you mean "{meant}"'):
        config.load(overrides=[override])


def test_override_below_a_scalar_is_refused(here):
    Path("a.yaml").write_text("seed: 1")
    [line] = problems("a.yaml", "seed.x=1")
    assert line == (
        'override "seed.x=1": seed: got 1, expected a mapping with the key "x"'
    )
    line, empty = problems({"optimizer": []}, "optimizer.0.sgd=1")
    assert empty == (
        "optimizer: got an empty list, expected at least one transformation"
    )
    assert line == (
        'override "optimizer.0.sgd=1": optimizer: got the index "0", expected none, as '
        "the list is empty; write optimizer=[...]"
    )


@pytest.mark.parametrize("source", [3, [], b"a.yaml", object()])
def test_sources_of_other_types_are_refused(source):
    assert problems(source)[0].endswith(", expected a path, a mapping or a Config")


@pytest.mark.parametrize(
    "depth",
    [
        20,
        300,
        pytest.param(600, marks=pytest.mark.combinations),
        pytest.param(3000, marks=pytest.mark.combinations),
    ],
)
@pytest.mark.parametrize("key", ["seed", "optimizer"])
def test_deep_nesting_is_refused(here, key, depth):
    """From 600 levels on, by Python's limit of recursion."""
    assert problems_of(f"{key}: " + "[" * depth + "]" * depth)
    assert problems_of(f"{key}: " + "{sgd: " * depth + "}" * depth)
    assert problems(None, f"{key}.0=" + "[" * depth + "]" * depth)


def test_invalid_mappings_are_refused(here):
    assert problems({"model": {"hiden_size": 1}}) == (
        'model.hiden_size: unknown key; did you mean "hidden_size"?',
    )
    for value in (object(), {"a": object()}, b"", 1j):
        [line] = problems(
            {"optimizer": [{"sgd": {"learning_rate": 1, "momentum": value}}]}
        )
        assert line.startswith("optimizer[0].sgd.momentum: got a ")
    for number in (10**60, 10**400, 10**5000, -(10**400)):
        sgd = [{"sgd": {"learning_rate": number}}]
        given = {"seed": number, "model": {"dropout": number}, "optimizer": sgd}
        assert len(problems(given)) == (3 if abs(number) > 10**60 else 2)
    scales = {"init_value": 1, "boundaries_and_scales": {1.5: 1}}
    sgd = [{"sgd": {"learning_rate": {"piecewise_constant_schedule": scales}}}]
    assert (
        "got the key 1.5, expected a whole number or text"
        in problems({"optimizer": sgd})[0]
    )
    endless: dict[str, Any] = {}
    endless["model"] = endless
    assert problems(endless) == ("the config is nested too deeply",)
    assert problems({1: 2})[0].startswith("[1]: unknown key")
    with pytest.raises(ConfigError, match="expected a list such as"):
        config.load(overrides="seed=1")


# -- round trips and random input ---------------------------------------------

quiet = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
rates = st.floats(0, 0.999)
sizes = st.integers(1, 65_536)
schedules = st.one_of(
    st.floats(0, 10),
    st.builds(lambda v: {"constant_schedule": {"value": v}}, st.floats(0, 1)),
    st.builds(
        lambda d: {
            "piecewise_constant_schedule": {
                "init_value": 1.0,
                "boundaries_and_scales": d,
            }
        },
        st.dictionaries(st.integers(0, 99), st.floats(0, 1), min_size=1),
    ),
)
mappings = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"\A\w[\w.-]{0,30}\Z"),
        "seed": st.integers(0, 2**32 - 1),
        "device": st.sampled_from(["auto", "cpu", "gpu", "tpu"]),
        "data": st.fixed_dictionaries(
            {"source": st.just("text"), "path": texts.filter(bool)},
            optional={
                "document_separator": st.none() | texts.filter(bool),
                "validation_fraction": st.floats(1e-9, 0.999),
            },
        ),
        "model": st.fixed_dictionaries(
            {},
            optional={
                "hidden_size": sizes,
                "dropout": rates,
                "residual": st.booleans(),
                "checkpoint_every": st.none() | st.just("sqrt") | sizes,
            },
        ),
        "optimizer": st.lists(
            st.builds(lambda rate: {"sgd": {"learning_rate": rate}}, schedules)
            | st.just({"zero_nans": None}),
            min_size=1,
            max_size=3,
        ),
        "sample": st.fixed_dictionaries({}, optional={"prompt": texts}),
    },
)


@quiet
@given(mappings)
def test_load_inverts_dump(tmp_path_factory, given):
    read = config.load(given)
    file = tmp_path_factory.mktemp("round") / "other.yaml"
    file.write_text(config.dump(read), encoding="utf-8")
    again = config.load(file)
    assert again == read
    assert config.dump(again) == config.dump(read)
    assert config.digest(again) == config.digest(read)
    assert config.load(read.model_dump()) == read


def load_or_none(source: Any, *overrides: str) -> Config | None:
    """Return the config, or None if loading raised errors with printable lines."""
    lines = ["none"]
    try:
        read = config.load(source, overrides=overrides)
    except ConfigError as error:
        read, lines = None, error.problems
    assert lines
    assert all(line.isprintable() for line in lines)
    return read


def load_or_refuse(file: Path, raw: bytes) -> None:
    """Check that any bytes give a Config or a ConfigError with printable lines."""
    file.write_bytes(raw)
    load_or_none(file)


@quiet
@given(st.binary(max_size=200))
@example(b"[" * 1200)
@example(b"a: &x [*x]")
@example(b"seed: " + b"9" * 5000)
@example(b"%YAML 3.0\n---\n{}")
@example(b"a: 2020-13-45")
@example(b"!!int ''")
@example(b"!!set {a}")
@example(b"--- {}\n--- {}")
def test_random_bytes_load_or_raise_config_error(tmp_path_factory, raw):
    load_or_refuse(tmp_path_factory.getbasetemp() / "garbage.yaml", raw)


@quiet
@given(st.data())
def test_edited_configs_load_or_raise_config_error(tmp_path_factory, data):
    text = config.dump(Config())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        new = data.draw(
            st.text(max_size=3) | st.sampled_from([": ", "\n", "- ", "{", "&"])
        )
        text = text[:at] + new + text[at + data.draw(st.integers(0, 4)) :]
    raw = text.encode("utf-8", "surrogatepass")
    load_or_refuse(tmp_path_factory.getbasetemp() / "damaged.yaml", raw)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
keys = st.sampled_from(
    [
        *("data", "model", "cell", "name", "source", "optimizer", "training", "sgd"),
        *("learning_rate", "early_stopping", "constant_schedule", "extends", "seed"),
        *("config_version", "boundaries_and_scales", "clip", "mask", "x", 1),
    ]
)
anything = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@quiet
@given(st.dictionaries(keys, anything, max_size=5))
def test_random_mappings_load_or_raise_config_error(given):
    read = load_or_none(given)
    if read is not None:
        assert config.load(read.model_dump()) == read
        assert len(config.digest(read)) == 64


@quiet
@given(
    st.text(max_size=30), st.sampled_from(["", "model.", "optimizer.1.adamw.", "seed="])
)
def test_random_overrides_load_or_raise_config_error(text, start):
    load_or_none(None, start + text)


# -- paths


class Inner(Section):
    file: FilePath
    name: str = "plain.txt"


class Outer(Section):
    file: FilePath = "a.bin"
    other: FilePath | None = "b.bin"
    none: FilePath | None = None
    drawn: FilePath | Literal["random"] = "random"
    parts: tuple[FilePath, ...] = ("c.bin",)
    by_name: dict[str, FilePath] = Field(default={"plain": "d.bin"})
    inner: Inner | None = Inner(file="e.bin")
    whole: FilePath = "/f.bin"
    words: tuple[str, ...] = ("plain",)


def test_paths_become_absolute_by_their_type(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert with_absolute_paths(Outer()).model_dump() == Outer().model_dump() | {
        "file": str(tmp_path / "a.bin"),
        "other": str(tmp_path / "b.bin"),
        "parts": (str(tmp_path / "c.bin"),),
        "by_name": {"plain": str(tmp_path / "d.bin")},
        "inner": {"file": str(tmp_path / "e.bin"), "name": "plain.txt"},
    }
    text = {"source": "text", "path": "a.txt", "validation_path": "b.txt"}
    read = with_absolute_paths(config.load({"data": text}))
    data = config.load({"data": text}).data
    assert read.data == data.model_copy(
        update={
            "path": str(tmp_path / "a.txt"),
            "validation_path": str(tmp_path / "b.txt"),
        }
    )
    assert with_absolute_paths(Config()) == Config()


def test_text_in_place_of_a_section_is_its_tag(here):
    """In files, mappings and overrides, and the schema allows it."""
    gru = config.load({"model": {"cell": {"name": "gru", "reset_after": False}}})
    given = ["model.cell=gru", "model.cell.reset_after=false"]
    assert config.load(overrides=given) == gru
    Path("a.yaml").write_text("model: {cell: gru}\nname: quickstart")
    assert config.load("a.yaml", overrides=given[1:]) == gru
    Path("b.yaml").write_text("extends: a.yaml\nmodel: {cell: {reset_after: false}}")
    assert config.load("b.yaml").model == gru.model
    validator = jsonschema.Draft202012Validator(config.json_schema())
    assert validator.is_valid({"model": {"cell": "gru"}, "data": "python"})
    assert not validator.is_valid({"model": {"cell": "gur"}})


ADAM = {"optimizer": [{"clip": {"max_delta": 1.0}}, {"adam": {"learning_rate": 0.1}}]}


def schedule(name: str, **arguments: float) -> dict[str, Any]:
    return {"optimizer": [{"sgd": {"learning_rate": {name: arguments}}}]}


def test_learning_rate_is_set_wherever_it_is():
    assert config.load(ADAM, overrides=["learning_rate=3e-4"]).optimizer == (
        ADAM["optimizer"][0],
        {"adam": {"learning_rate": 3e-4}},
    )
    peak = "optimizer.1.adamw.learning_rate.warmup_cosine_decay_schedule.peak_value"
    assert config.load(overrides=["learning_rate=3e-4"]) == config.load(
        overrides=[f"{peak}=3e-4"]
    )
    rising = schedule(
        "linear_schedule", init_value=0.0, end_value=1.0, transition_steps=3
    )
    read = config.load(rising, overrides=["learning_rate=0.5"]).optimizer
    assert read[0]["sgd"]["learning_rate"]["linear_schedule"]["end_value"] == 0.5
    given = {"optimizer": [{"adafactor": {}}]}
    assert config.load(given, overrides=["learning_rate=1"]).optimizer == (
        {"adafactor": {"learning_rate": 1}},
    )


@pytest.mark.parametrize(
    ("source", "text", "message"),
    [
        (None, "lr=1", 'unknown key; did you mean "learning_rate"?'),
        (None, "learning_rate=1e-6", "got 1e-06, expected at least the end_value"),
        (None, "learning_rate=x", 'got "x", expected a finite number'),
        (ADAM, "learning_rate=-1", "got -1, expected 0 or more"),
        ({"optimizer": [{"clip": {"max_delta": 1}}]}, "learning_rate=1", "without a"),
    ],
)
def test_message_of_an_invalid_learning_rate(source, text, message):
    [line] = problems(source, text)
    assert line.startswith(f'override "{text}": ')
    assert message in line


def test_a_schedule_without_steps_follows_those_of_the_training():
    def steps(source: Any, *overrides: str) -> list[int]:
        [[entry]] = [
            c.values() for c in config.load(source, overrides=overrides).optimizer[-1:]
        ]
        [arguments] = entry["learning_rate"].values()
        return [v for k, v in arguments.items() if k.endswith("_steps")]

    cosine = schedule("cosine_decay_schedule", init_value=1.0)
    assert steps(cosine, "training.steps=300") == [300]
    accumulated = "training.gradient_accumulation_steps=8"
    assert steps(cosine, "training.steps=300", accumulated) == [38]
    assert steps(cosine | {"training": {"steps": 7}}) == [7]
    linear = schedule(
        "linear_schedule", init_value=1.0, end_value=0.0, transition_begin=100
    )
    assert steps(linear, "training.steps=300") == [200]
    own = schedule("cosine_decay_schedule", init_value=1.0, decay_steps=9)
    assert steps(own, "training.steps=300") == [9]
    assert steps(None) == steps(Config(), "training.steps=20") == [100, 2800]
    assert steps(None, "training.steps=500", "learning_rate=1") == [100, 500]
    assert steps(None, "training.steps=20") == [100, 101]
    trained = config.load(cosine, overrides=["training.steps=300"])
    key = "optimizer.0.sgd.learning_rate.cosine_decay_schedule.decay_steps=null"
    assert steps(trained, "training.steps=400") == [300]
    assert steps(trained, "training.steps=400", key) == [400]
    assert config.load(YAML(typ="safe").load(config.dump(trained))) == trained


# -- schema, templates and shipped configs ------------------------------------


def test_committed_schema_is_current():
    committed = json.loads((ROOT / "configs" / "schema.json").read_text("utf-8"))
    assert committed == config.json_schema()


def test_schema_agrees_with_load():
    validator = jsonschema.Draft202012Validator(config.json_schema())
    assert validator.is_valid(json.loads(Config().model_dump_json()))
    assert validator.is_valid({"extends": "a.yaml"})
    for wrong in ({"modle": {}}, {"model": {"layers": 0}}, {"optimizer": []}):
        assert not validator.is_valid(wrong)


def test_template_has_every_key_with_its_default():
    text = TEMPLATE.read_text("utf-8")
    assert config.load(TEMPLATE, overrides=["name=quickstart"]) == Config()
    given = YAML(typ="safe", pure=True).load(text)
    whole = Config().model_dump(exclude={"name"})
    assert given.keys() == whole.keys()
    for section in ("data", "model", "training", "sample"):
        assert given[section].keys() == whole[section].keys()


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_commented_sources_in_the_template_are_valid(kind):
    lines = TEMPLATE.read_text("utf-8").splitlines()
    first = lines.index(f"#   source: {kind}")
    block = ["data:"]
    for line in lines[first:]:
        if not line.startswith("#   "):
            break
        block.append(line[1:])
    given = YAML(typ="safe", pure=True).load("\n".join(block))
    read = config.load(given)
    assert given["data"].keys() == type(read.data).model_fields.keys()


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=str)
def test_shipped_configs_are_valid(file):
    assert config.load(file).name == file.stem


def test_activations_are_those_of_the_cells():
    assert set(cells.Activation.__args__) == set(ACTIVATIONS)


def test_loading_a_config_does_not_import_jax():
    code = (
        "import sys; from jaxlstm.lab import config; config.load(sys.argv[1]);"
        "print({'jax', 'jaxlib', 'numpy', 'optax', 'orbax'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(TEMPLATE)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    assert answer.stdout == "set()\n"


def test_optax_names_from_source():
    assert optax_names.factory("adamw") is not None
    assert {"adam", "sgd", "lion", "lamb", "clip"} <= set(
        optax_names.names("transformation")
    )
    assert "linear_schedule" in optax_names.names("schedule")
    for name in ("chain", "partition", "apply_updates", "_typing", "losses", "no_such"):
        assert optax_names.factory(name) is None
