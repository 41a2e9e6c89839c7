"""Tests of cells and their wrappers in config files."""

import inspect
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from helpers import results

import jaxlstm as jl
from cases import finite, same_bits
from jaxlstm.cells.wrappers import Learned
from jaxlstm.lab import checkpoints, tasks, training_run
from jaxlstm.lab import config as configs
from jaxlstm.lab._util.errors import Interrupted, LabError
from jaxlstm.lab.config import Config, cells, schema
from jaxlstm.lab.data import Batch
from jaxlstm.lab.tasks import language_modelling as task
from jaxlstm.lab.training import optimizer as optimizers
from jaxlstm.lab.training.state import initial_state, train_step

TASK = tasks.get("language_modelling")

SECTIONS = get_args(get_args(cells.Cell)[0])
NAMES = [section.model_fields["name"].default for section in SECTIONS]
NOISE = {
    "recurrent_dropout": 0.2,
    "variational_dropout_x": 0.2,
    "variational_dropout_h": 0.2,
    "weight_drop": 0.3,
    "zoneout_h": 0.1,
    "zoneout_c": 0.1,
}
UNSUPPORTED = {
    "gru": {"cell_clip", "zoneout_c"},
    "simple_rnn": {"cell_clip", "zoneout_c", "recurrent_dropout"},
}


def section(name: str) -> dict[str, Any]:
    return {"name": name} | ({"projection_size": 4} if "proj" in name else {})


def with_all_wrappers(name: str) -> dict[str, Any]:
    """Return a model section with this cell and every wrapper that it supports."""
    wrappers = NOISE | {"cell_clip": 2.0, "learned_initial_state": True}
    kept = {k: v for k, v in wrappers.items() if k not in UNSUPPORTED.get(name, ())}
    return {"cell": section(name), "embedding_size": 4, "hidden_size": 5, **kept}


def model_of(model: dict[str, Any]):
    return configs.load({"model": model}).model


def batch(rows: int = 2) -> Batch:
    tokens = np.random.default_rng(0).integers(0, 7, (2, 6, rows), np.int32)
    return Batch(*tokens, np.eye(6, rows, dtype=bool))


def loss(model, state) -> jax.Array:
    return TASK.loss(model, state.params, state.carry, batch())[0].mean()


def test_the_default_is_the_plain_lstm():
    """Without wrappers it is the same object, so that nothing is compiled again."""
    assert task.cell(Config().model) is jl.lstm()


def test_every_cell_for_tokens_has_a_section():
    factories = {
        name for name in dir(jl) if name.endswith(("lstm", "rnn")) or name == "gru"
    }
    assert set(NAMES) == factories - {"conv_lstm"}  # tokens have no space


@pytest.mark.parametrize("section_", SECTIONS, ids=NAMES)
def test_a_section_has_the_options_of_its_factory(section_):
    """Names and defaults are equal, so that a missing option means the same in both."""
    fields = dict(section_.model_fields)
    name = fields.pop("name").default
    options = inspect.signature(getattr(jl, name)).parameters
    assert fields.keys() == options.keys()
    for key, field in fields.items():
        if not field.is_required():
            assert field.default == options[key].default
    assert isinstance(task.cell(model_of({"cell": section(name)})), jl.Cell)


def test_the_order_of_the_wrappers():
    got = task.cell(model_of(with_all_wrappers("lstm")))
    expected = jl.clip_cell(jl.lstm(), 2.0)
    expected = jl.recurrent_dropout(expected, 0.2)
    expected = jl.variational_dropout(expected, x_rate=0.2, h_rate=0.2)
    expected = jl.weight_drop(expected, 0.3)
    expected = jl.zoneout(expected, h_rate=0.1, c_rate=0.1)
    assert got is jl.learned_initial_state(expected)


@pytest.mark.parametrize(
    "name",
    [
        name if name == "lstm" else pytest.param(name, marks=pytest.mark.thorough)
        for name in NAMES
    ],
)
def test_training_draws_noise_evaluation_and_sampling_do_not(name):
    """The noise of a training step depends on the seed and the step only."""
    model = task.build(model_of(with_all_wrappers(name)), 7)
    optimizer = optimizers.build([{"adam": {"learning_rate": 0.01}}])
    state = initial_state(TASK, model, optimizer, batch(), seed=0)
    assert isinstance(state.params["rnn"][0], Learned)

    step = jax.jit(lambda state: train_step(TASK, model, optimizer, state, batch()))
    (after, seen), (again, _) = step(state), step(state)
    assert bool(seen.healthy)
    assert finite(after.params)
    assert same_bits(after.params, again.params)
    other, noise = step(state._replace(step=state.step + 1))
    assert not same_bits(other.params, after.params)

    quiet = loss(model, state)
    assert float(quiet) not in (float(seen.loss), float(noise.loss))
    assert same_bits(quiet, loss(model, state))
    drawn = [
        task.generate(
            model,
            state.params,
            jnp.array([1]),
            jax.random.key(0),
            length=5,
            temperature=0,
        )
        for _ in range(2)
    ]
    assert same_bits(*drawn)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["layer_norm_lstm", "gru"])
def test_a_resumed_run_with_noise_has_the_same_bits(tmp_path, name):
    """The run is stopped at its first validation."""
    (tmp_path / "book.txt").write_text(tiny.text())
    config = tiny.config(tmp_path / "book.txt", steps=20, validate_every=10)
    config |= {
        "model": with_all_wrappers(name),
        "sample": {"prompt": "the ", "length": 5},
    }
    whole = jl.lab.train(config, run=tmp_path / "whole", sink=tiny.RecordingSink())
    assert whole.config.model.cell.name == name
    pictures = {path.stem for path in (tmp_path / "whole/plots").iterdir()}
    assert ("unit" in pictures) == (name != "gru")

    class Stop(tiny.RecordingSink):
        def log(self, record):
            super().log(record)
            if record["step"] == 10 and record["split"] == "validation":
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        jl.lab.train(config, run=tmp_path / "cut", sink=Stop())
    jl.lab.resume(tmp_path / "cut", sink=tiny.RecordingSink())
    assert last_checkpoint(tmp_path / "cut") == last_checkpoint(tmp_path / "whole")


def last_checkpoint(run) -> dict[str, bytes]:
    """Return the arrays of the last checkpoint and the metrics, by file."""
    assert max(checkpoints.steps(run / "checkpoints")) == 20
    return results(run)


def test_check_lists_the_wrappers_of_the_cell(tmp_path):
    (tmp_path / "book.txt").write_text(tiny.text())
    config = tiny.config(tmp_path / "book.txt") | {"model": with_all_wrappers("gru")}
    row = jl.lab.check(configs.load(config))["cell"]
    assert row.startswith("gru, recurrent_dropout 0.2, variational_dropout_x 0.2")
    assert row.endswith("zoneout_h 0.1, learned_initial_state True")
    fields = list(type(Config().model).model_fields)
    first = fields.index(schema.WRAPPERS[0])
    assert fields[first : first + len(schema.WRAPPERS)] == list(schema.WRAPPERS)


def test_weight_decay_applies_to_every_parameter():
    """Gains, biases and the learned initial state are included, as in Optax."""
    model = task.build(model_of(with_all_wrappers("layer_norm_lstm")), 7)
    params, _ = model.init(jax.random.key(0))
    ones = jax.tree.map(jnp.ones_like, params)
    decay = optax.add_decayed_weights(0.5)
    nothing = jax.tree.map(jnp.zeros_like, ones)
    updates, _ = decay.update(nothing, decay.init(ones), ones)
    assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(updates))
    assert "Weight decay applies to every" in jl.lab.starter("language_modelling")


@pytest.mark.parametrize("word", ["RESOURCE_EXHAUSTED: x", "INTERNAL: Out of memory 9"])
def test_an_out_of_memory_error_names_the_option_that_saves_memory(word):
    with (
        pytest.raises(LabError, match=r"model\.checkpoint_every to sqrt"),
        training_run._explained_memory(),
    ):
        raise jax.errors.JaxRuntimeError(word)
    with (
        pytest.raises(jax.errors.JaxRuntimeError),
        training_run._explained_memory(),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
