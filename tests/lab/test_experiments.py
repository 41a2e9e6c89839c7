"""Whole runs: what they leave, and that nothing can tell a killed one from another."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ruamel.yaml import YAML

import jaxlstm as jl
from jaxlstm.lab import api as experiments
from jaxlstm.lab import checkpoints, runs
from jaxlstm.lab import config as configs
from jaxlstm.lab._util.errors import BadInput, Diverged, Interrupted, LabError
from jaxlstm.lab.reports import report as reports


def train(book: Path, run: Path, **training):
    sink = tiny.Silence()
    trained = jl.lab.train(tiny.config(book, **training), run=run, sink=sink)
    return trained, sink


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A text and a finished run on it."""
    place = tmp_path_factory.mktemp("library")
    (place / "book.txt").write_text(tiny.text())
    trained, sink = train(place / "book.txt", place / "whole")
    return place, trained, sink


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """The library's run has them; drawing them again for every run takes its time."""
    monkeypatch.setattr(reports, "write_plots", lambda run, reading=None: [])


def arrays(run: Path) -> dict[str, bytes]:
    """Every file of the newest checkpoint but the manifest, and the log of metrics."""
    newest = max((run / "checkpoints").glob("[0-9]*"))
    files = [path for path in (newest / "arrays").rglob("*") if path.is_file()]
    found = {str(path.relative_to(newest)): path.read_bytes() for path in files}
    return found | {"metrics.jsonl": (run / "metrics.jsonl").read_bytes()}


def test_a_run_leaves_all_that_was_promised(library):
    place, trained, sink = library
    run = place / "whole"
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml", "overrides.txt", "env.json", "log.txt", "metrics.jsonl",
        "checkpoints", "weights.safetensors", "plots", "report.md",
    }  # fmt: skip
    assert {path.name for path in (run / "plots").iterdir()} == {
        "loss.png", "training_health.png", "forget_gate.png", "unit.png",
        "timescales.png",
    }  # fmt: skip
    assert checkpoints.steps(run / "checkpoints") == [20, 30, 40]
    assert (run / "checkpoints" / "best").resolve().name == f"{trained.step:06d}"
    assert configs.load(run / "config.yaml") == trained.config
    assert runs.finished(runs.open(run)) == 40
    assert any("compiled in" in message for message in sink.messages)
    assert any("the " in message for message in sink.messages)


def test_metrics_hold_what_the_field_quotes(library):
    place, trained, _ = library
    lines = (place / "whole/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records == trained.metrics()
    assert [(r["step"], r["split"]) for r in records if r["split"] != "train"] == [
        (20, "validation"), (40, "validation"),
    ]  # fmt: skip
    for record in records:
        assert record["bits_per_character"] == pytest.approx(record["loss"] / np.log(2))
    assert records[-1]["loss"] < records[0]["loss"]


def test_evaluate_gives_the_best_validation_again(library):
    _, trained, _ = library
    best = min(r["loss"] for r in trained.metrics() if r["split"] == "validation")
    assert trained.evaluate()["loss"] == best


def test_the_exported_weights_are_the_best_checkpoint(library):
    place, trained, _ = library
    weights = runs.load_weights(place / "whole/weights.safetensors", trained.params)
    for a, b in zip(
        jax.tree.leaves(weights), jax.tree.leaves(trained.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_samples_follow_the_prompt_the_seed_and_the_temperature(library):
    _, trained, _ = library
    assert trained.sample("the ", length=30, seed=1) == trained.sample(
        "the ", length=30, seed=1
    )
    assert trained.sample("the ", length=30, seed=1) != trained.sample(
        "the ", length=30, seed=2
    )
    greedy = {trained.sample("the ", length=30, temperature=0, seed=s) for s in (1, 2)}
    one = {trained.sample("the ", length=30, top_k=1, seed=s) for s in (1, 2)}
    narrow = {trained.sample("the ", length=30, top_p=1e-6, seed=s) for s in (1, 2)}
    assert greedy == one == narrow
    assert len(trained.sample("the ", length=30)) == 30


def test_a_sample_needs_a_beginning(library):
    _, trained, _ = library
    with pytest.raises(BadInput, match=r"sample.prompt: got an empty prompt"):
        trained.sample("")
    with pytest.raises(BadInput, match="temperature"):
        trained.sample("the ", temperature=-1)


def test_the_same_config_gives_the_same_bytes(library, tmp_path, monkeypatch):
    place, _, _ = library
    monkeypatch.chdir(tmp_path)
    train(place / "book.txt", tmp_path / "again")
    assert arrays(tmp_path / "again") == arrays(place / "whole")


@pytest.mark.thorough
def test_killed_interrupted_and_resumed_is_the_run_that_was_not(tmp_path):
    blows = [(signal.SIGKILL, 0.3), (signal.SIGINT, 0.1)]
    beaten_and_whole_are_equal(tmp_path, 1500, blows)


@pytest.mark.slow
def test_killed_at_twenty_random_instants(tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    drawn = random.Random(seed)
    kinds = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
    blows = [(drawn.choice(kinds), drawn.random()) for _ in range(20)]
    beaten_and_whole_are_equal(tmp_path, 40_000, blows)


def beaten_and_whole_are_equal(place: Path, steps: int, blows: list) -> None:
    """Each blow falls so many seconds after the next new checkpoint."""
    book, path, victim = place / "book.txt", place / "tiny.yaml", place / "victim"
    book.write_text(tiny.text())
    config = tiny.config(book, steps=steps, validate_every=200, checkpoint_every=50)
    with path.open("w") as file:
        YAML(typ="safe").dump(config, file)
    whole = tiny.jaxlstm("train", path, "--run", place / "whole")
    command = ("train", path, "--run", victim, "--resume", "auto")
    for blow, seconds in blows:
        before = newest(victim)
        process = tiny.jaxlstm(*command)
        until(lambda before=before: newest(victim) > before, process)
        time.sleep(seconds)
        process.send_signal(blow)
        out, err = process.communicate(timeout=60)
        assert process.returncode == (-9 if blow == signal.SIGKILL else 130), out + err
        if blow != signal.SIGKILL:
            assert "continue with: jaxlstm resume" in err
    _, err = tiny.jaxlstm(*command).communicate(timeout=600)
    assert "Traceback" not in err
    assert not whole.communicate(timeout=600)[1]
    assert arrays(victim) == arrays(place / "whole")
    sink = tiny.Silence()
    jl.lab.train(path, run=victim, resume="auto", sink=sink)
    assert "is finished" in sink.messages[0]


def newest(run: Path) -> int:
    return max(checkpoints.steps(run / "checkpoints"), default=-1)


def until(test, process, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_damaged_checkpoint_is_passed_over_and_made_again(library, tmp_path):
    place, _, _ = library
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run, symlinks=True)
    (run / "state.json").unlink()
    victim = next((run / "checkpoints/000040/arrays").rglob("0"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    sink = tiny.Silence()
    jl.lab.resume(run, sink=sink)
    assert any("damaged" in message for message in sink.messages)
    assert arrays(run) == arrays(place / "whole")


def test_a_run_is_extended_by_resuming_it_with_more_steps(library, tmp_path):
    place, _, _ = library
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run, symlinks=True)
    trained = jl.lab.resume(run, overrides=["training.steps=60"], sink=tiny.Silence())
    assert trained.metrics()[-1]["step"] == 60
    train(place / "book.txt", tmp_path / "longer", steps=60)
    assert arrays(run) == arrays(tmp_path / "longer")
    assert (run / "overrides.txt").read_text() == "training.steps=60\n"


def test_a_run_of_the_first_version_goes_on_in_one_shard(library, tmp_path):
    place, _, _ = library
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run, symlinks=True)
    text = (run / "config.yaml").read_text().replace("  shards: 1\n", "")
    old = text.replace("config_version: 2", "config_version: 1")
    (run / "config.yaml").write_text(old)
    trained = jl.lab.resume(run, overrides=["training.steps=45"], sink=tiny.Silence())
    assert trained.config.training.shards == 1
    assert (run / "config.yaml").read_text() == (
        (place / "whole/config.yaml").read_text().replace("steps: 40\n", "steps: 45\n")
    )


@pytest.mark.parametrize(
    "override",
    [
        "training.window=8",
        "training.shards=2",
        "seed=3",
        "model.hidden_size=16",
        "data.unit=byte",
    ],
)
def test_what_decides_the_data_or_the_model_stays(library, override):
    place, _, _ = library
    key = override.split("=")[0]
    with pytest.raises(BadInput, match=f"got a change of {key}, expected"):
        jl.lab.resume(place / "whole", overrides=[override])


@pytest.mark.parametrize(
    "override", ["device=gpu", "optimizer=[{sgd: {learning_rate: 1}}]"]
)
def test_a_refused_change_leaves_the_run_as_it_was(library, override):
    place, _, _ = library
    run = place / "whole"
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(LabError):
        jl.lab.resume(run, overrides=["training.steps=60", override])
    assert (run / "config.yaml").read_bytes() == before
    assert runs.finished(runs.open(run)) == 40


def test_a_run_is_not_made_shorter_than_it_is(library):
    place, _, _ = library
    with pytest.raises(BadInput, match="got 20, expected at least 40"):
        jl.lab.resume(place / "whole", overrides=["training.steps=20"])


def test_a_damaged_best_is_replaced_by_the_newest_sound(library, tmp_path):
    place, _, _ = library
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run, symlinks=True)
    checkpoints.mark_best(run / "checkpoints", 20)
    victim = next((run / "checkpoints/000020/arrays").rglob("0"))
    victim.write_bytes(victim.read_bytes()[:-1])
    said = []
    assert jl.lab.load(run, report=said.append).step == 40
    assert "damaged" in said[0]


def test_best_follows_the_ledger_of_the_checkpoint_gone_on_from(library, tmp_path):
    """The newest is best and damaged: the best before it is best again."""
    place, _, _ = library
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run, symlinks=True)
    (run / "checkpoints/best").unlink()
    (run / "state.json").unlink()
    jl.lab.resume(run, sink=tiny.Silence())
    assert checkpoints.best(run / "checkpoints") == jl.lab.load(place / "whole").step


def test_what_is_judged_is_the_text_that_was_learnt(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text(tiny.text())
    trained, _ = train(book, tmp_path / "run", steps=10)
    book.write_text(tiny.text(seed=1))
    with pytest.raises(BadInput, match=r"got sha256 \w+, expected \w+ as in"):
        trained.evaluate()


def test_no_steps_is_a_run_that_can_be_loaded(book, tmp_path):
    trained, _ = train(book, tmp_path / "run", steps=0)
    assert trained.step == 0
    assert len(trained.sample("the ", length=5)) == 5


def test_an_engine_nobody_knows_is_found_before_a_directory_is_made(book, tmp_path):
    config = tiny.config(book)
    config["model"]["engine"] = "scann"
    with pytest.raises(BadInput, match=r'model\.engine: got "scann"'):
        jl.lab.train(config, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_prompt_that_cannot_be_is_found_before_training(book, tmp_path):
    config = tiny.config(book) | {"sample": {"prompt": "", "length": 9}}
    with pytest.raises(BadInput, match=r"sample\.prompt"):
        jl.lab.train(config, run=tmp_path / "run")
    config["data"]["document_separator"] = "gates"
    trained = jl.lab.train(config, run=tmp_path / "run", sink=tiny.Silence())
    assert len(trained.sample("")) == 9


def test_another_config_does_not_continue_a_run(library):
    place, _, _ = library
    other = tiny.config(place / "book.txt") | {"seed": 5}
    with pytest.raises(BadInput, match=r"another config \(seed differ\), expected"):
        jl.lab.train(other, run=place / "whole", resume="auto")


def test_another_text_does_not_continue_a_run(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text(tiny.text())
    train(book, tmp_path / "run")
    book.write_text(tiny.text(seed=1))
    with pytest.raises(BadInput, match=r"got sha256 \w+, expected \w+ as in"):
        jl.lab.resume(tmp_path / "run", overrides=["training.steps=60"])


def test_divergence_names_the_step_and_keeps_the_last_good_state(book, tmp_path):
    config = tiny.config(book) | {"optimizer": [{"sgd": {"learning_rate": 1e38}}]}
    with pytest.raises(Diverged, match=r"step \d+: the .* is not finite.*checkpoint"):
        jl.lab.train(config, run=tmp_path / "run", sink=tiny.Silence())
    trained = jl.lab.load(tmp_path / "run")
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.params))


def test_no_directory_is_made_for_a_config_that_cannot_run(tmp_path):
    with pytest.raises(BadInput):
        jl.lab.train(tiny.config(tmp_path / "missing.txt"), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_larger_than_the_machine_is_refused_with_its_size(book, tmp_path):
    config = tiny.config(book)
    config["model"] |= {"hidden_size": 65_536, "layers": 8}
    with pytest.raises(BadInput, match=r"parameters need [\d,]+ GB"):
        jl.lab.train(config, run=tmp_path / "run")


def test_the_second_signal_exits_the_process(monkeypatch):
    left = []
    monkeypatch.setattr("os._exit", left.append)
    from jaxlstm.lab._util import interrupts

    with interrupts.stop_on_signal() as stop_requested:
        assert not stop_requested()
        signal.raise_signal(signal.SIGINT)
        assert stop_requested()
        assert left == []
        signal.raise_signal(signal.SIGINT)
        assert left == [130]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupted_says_how_to_go_on(book, tmp_path, monkeypatch):
    from contextlib import contextmanager

    @contextmanager
    def stopped():
        yield lambda: True

    monkeypatch.setattr(experiments.interrupts, "stop_on_signal", stopped)
    with pytest.raises(Interrupted, match=r"step 5 of 40.*jaxlstm resume"):
        jl.lab.train(tiny.config(book), run=tmp_path / "run", sink=tiny.Silence())


def test_tokens_are_judged_by_perplexity(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "ids.bin").write_bytes(rng.integers(0, 9, 6000).astype("<u2").tobytes())
    config = tiny.config(tmp_path / "x") | {
        "data": {
            "source": "tokens",
            "path": str(tmp_path / "ids.bin"),
            "vocabulary_size": 9,
        },
        "sample": {"prompt": "1 2 3", "length": 5},
    }
    trained = jl.lab.train(config, run=tmp_path / "run", sink=tiny.Silence())
    assert len(trained.sample().split()) == 5
    last = trained.metrics()[-1]
    assert last["perplexity"] == pytest.approx(np.exp(last["loss"]))
    assert last["perplexity"] == pytest.approx(9, rel=0.3)
