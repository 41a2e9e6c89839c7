"""Tests of whole runs: their files, and that interruptions do not change them."""

import json
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from helpers import as_earlier_version, newest_step, results, wait_until
from ruamel.yaml import YAML

import jaxlstm as jl
from jaxlstm.lab import api as experiments
from jaxlstm.lab import checkpoints, runs
from jaxlstm.lab import config as configs
from jaxlstm.lab._util.errors import BadInput, Diverged, Interrupted, LabError
from jaxlstm.lab.reports import report as reports


def train(book: Path, run: Path, **training):
    sink = tiny.RecordingSink()
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
    """Draw no plots, which take time; the run of `library` already has them."""
    monkeypatch.setattr(reports, "write_plots", lambda *args, **options: [])


def test_a_run_directory_has_all_its_files(library):
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
    for pace in (r for r in sink.records if r["split"] == "train"):
        seconds = pace["milliseconds_per_step"] / 1e3
        assert pace["tokens_per_second"] == pytest.approx(4 * 16 / seconds)


def test_metrics_contain_bits_per_character(library):
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


def test_evaluate_returns_the_best_validation_loss(library):
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


def test_invalid_arguments_of_sample_are_refused(library):
    _, trained, _ = library
    with pytest.raises(BadInput, match=r"sample.prompt: got an empty prompt"):
        trained.sample("")
    with pytest.raises(BadInput, match="temperature"):
        trained.sample("the ", temperature=-1)


def test_the_same_config_gives_the_same_bytes(library, tmp_path, monkeypatch):
    place, _, _ = library
    monkeypatch.chdir(tmp_path)
    train(place / "book.txt", tmp_path / "again")
    assert results(tmp_path / "again") == results(place / "whole")


@pytest.mark.thorough
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path):
    interruptions = [(signal.SIGKILL, 0.3), (signal.SIGINT, 0.1)]
    check_interruptions_change_no_byte(tmp_path, 1500, interruptions)


@pytest.mark.slow
def test_twenty_interruptions_at_random_times_change_no_byte(tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    kinds = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
    interruptions = [(rng.choice(kinds), rng.random()) for _ in range(20)]
    check_interruptions_change_no_byte(tmp_path, 40_000, interruptions)


def check_interruptions_change_no_byte(
    place: Path, steps: int, interruptions: list
) -> None:
    """Send each signal this many seconds after the next new checkpoint."""
    book, path = place / "book.txt", place / "tiny.yaml"
    interrupted = place / "interrupted"
    book.write_text(tiny.text())
    config = tiny.config(book, steps=steps, validate_every=200, checkpoint_every=50)
    with path.open("w") as file:
        YAML(typ="safe").dump(config, file)
    whole = tiny.jaxlstm("train", path, "--run", place / "whole")
    command = ("train", path, "--run", interrupted, "--resume", "auto")
    for sent, seconds in interruptions:
        before = newest_step(interrupted)
        process = tiny.jaxlstm(*command)
        wait_until(lambda before=before: newest_step(interrupted) > before, process)
        time.sleep(seconds)
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
        assert process.returncode == (-9 if sent == signal.SIGKILL else 130), out + err
        if sent != signal.SIGKILL:
            assert "continue with: jaxlstm resume" in err
    _, err = tiny.jaxlstm(*command).communicate(timeout=600)
    assert "Traceback" not in err
    assert not whole.communicate(timeout=600)[1]
    assert results(interrupted) == results(place / "whole")
    sink = tiny.RecordingSink()
    jl.lab.train(path, run=interrupted, resume="auto", sink=sink)
    assert "is finished" in sink.messages[0]


@pytest.mark.thorough
@pytest.mark.parametrize("verb", ["train", "resume"])
def test_of_two_processes_on_one_directory_one_works(verb, tmp_path):
    book, path, run = tmp_path / "book.txt", tmp_path / "tiny.yaml", tmp_path / "run"
    book.write_text(tiny.text())
    path.write_text(json.dumps(tiny.config(book, steps=2000)))
    words = ["train", path, "--run", run]
    if verb == "resume":
        tiny.jaxlstm(*words, "training.steps=5").communicate(timeout=600)
        words = ["resume", run, "training.steps=2000"]
    processes = [tiny.jaxlstm(*words) for _ in range(2)]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) in ([0, 1], [0, 2])
    refusal = errors[1 - codes.index(0)]
    assert re.search(r"is writing to this run; wait|the directory of a run", refusal)
    assert "Traceback" not in refusal
    assert newest_step(run) == 2000


def test_a_damaged_checkpoint_is_skipped_and_written_again(library, tmp_path):
    place, _, _ = library
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run, symlinks=True)
    (run / "state.json").unlink()
    damaged = run / "checkpoints/000040/arrays.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    sink = tiny.RecordingSink()
    jl.lab.resume(run, sink=sink)
    assert any("damaged" in message for message in sink.messages)
    assert results(run) == results(place / "whole")


def test_a_run_is_extended_by_resuming_it_with_more_steps(library, tmp_path):
    place, _, _ = library
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run, symlinks=True)
    trained = jl.lab.resume(
        run, overrides=["training.steps=60"], sink=tiny.RecordingSink()
    )
    assert trained.metrics()[-1]["step"] == 60
    train(place / "book.txt", tmp_path / "longer", steps=60)
    assert results(run) == results(tmp_path / "longer")
    assert (run / "overrides.txt").read_text() == "training.steps=60\n"


def test_a_run_of_config_version_1_resumes_in_one_shard(library, tmp_path):
    place, _, _ = library
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run, symlinks=True)
    as_earlier_version(run)
    text = (run / "config.yaml").read_text().replace("  shards: 1\n", "")
    old = text.replace("config_version: 2", "config_version: 1")
    (run / "config.yaml").write_text(old)
    trained = jl.lab.resume(
        run, overrides=["training.steps=45"], sink=tiny.RecordingSink()
    )
    assert trained.config.training.shards == 1
    assert (run / "config.yaml").read_text() == (
        (place / "whole/config.yaml").read_text().replace("steps: 40\n", "steps: 45\n")
    )


MAY_CHANGE = (
    "device, optimizer, training (except its batch_size, "
    "gradient_accumulation_steps, shards, window, "
    "validation_streams and validation_tokens), sample and data.path"
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
def test_options_of_data_and_model_cannot_change_within_a_run(library, override):
    place, _, _ = library
    key = override.split("=")[0]
    with pytest.raises(BadInput) as caught:
        jl.lab.resume(place / "whole", overrides=[override])
    assert str(caught.value) == (
        f"resume: got a change of {key}, expected only changes of {MAY_CHANGE}; start "
        "a new run for others"
    )


@pytest.mark.parametrize(
    "override", ["device=gpu", "optimizer=[{sgd: {learning_rate: 1}}]"]
)
def test_a_refused_override_leaves_the_run_unchanged(library, override):
    place, _, _ = library
    run = place / "whole"
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(LabError):
        jl.lab.resume(run, overrides=["training.steps=60", override])
    assert (run / "config.yaml").read_bytes() == before
    assert runs.finished(runs.open(run)) == 40


def test_fewer_steps_than_already_trained_are_refused(library):
    place, _, _ = library
    with pytest.raises(BadInput, match="got 20, expected at least 40"):
        jl.lab.resume(place / "whole", overrides=["training.steps=20"])


def test_a_damaged_best_checkpoint_falls_back_to_the_newest_intact_one(
    library, tmp_path
):
    place, _, _ = library
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run, symlinks=True)
    best = checkpoints.best(run / "checkpoints")
    others = [step for step in checkpoints.steps(run / "checkpoints") if step != best]
    damaged = run / f"checkpoints/{best:06d}/arrays.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    messages = []
    assert jl.lab.load(run, report=messages.append).step == max(others)
    assert "damaged" in messages[0]


def test_a_copy_without_links_keeps_its_best_and_can_be_resumed(library, tmp_path):
    """The best is a fact of the checkpoints; `copytree` replaces links by copies."""
    place, _, _ = library
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run)
    jl.lab.load(run, report=pytest.fail)
    best = jl.lab.load(place / "whole").step
    assert jl.lab.load(run).step == best
    (run / "state.json").unlink()
    jl.lab.resume(run, sink=tiny.RecordingSink())
    assert checkpoints.linked_best(run / "checkpoints") == f"{best:06d}"


def test_a_link_best_that_points_elsewhere_is_named_and_ignored(library, tmp_path):
    place, _, _ = library
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run, symlinks=True)
    best = checkpoints.best(run / "checkpoints")
    other = min(set(checkpoints.steps(run / "checkpoints")) - {best})
    checkpoints.link_best(run / "checkpoints", other)
    messages = []
    assert jl.lab.load(run, report=messages.append).step == best
    assert f"best: points to {other:06d}, but the checkpoints record" in messages[0]


def test_resuming_restores_a_missing_link_to_the_best(library, tmp_path):
    """Its step is stored in the loop state of the checkpoint."""
    place, _, _ = library
    run = tmp_path / "run"
    shutil.copytree(place / "whole", run, symlinks=True)
    (run / "checkpoints/best").unlink()
    (run / "state.json").unlink()
    jl.lab.resume(run, sink=tiny.RecordingSink())
    best = jl.lab.load(place / "whole").step
    assert checkpoints.linked_best(run / "checkpoints") == f"{best:06d}"


def test_evaluate_refuses_a_text_that_has_changed(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text(tiny.text())
    trained, _ = train(book, tmp_path / "run", steps=10)
    book.write_text(tiny.text(seed=1))
    message = r'data: ".*/book\.txt": got sha256 \w{12}, expected \w{12} as in'
    with pytest.raises(BadInput, match=message):
        trained.evaluate()


def test_changed_data_is_named_by_path():
    text = {"source": "text", "path": "/a.txt", "validation_path": "/b.txt"}
    config = configs.load({"data": text})
    before = {"sha256": ["1" * 64, "2" * 64]}
    for paths in ({"paths": ["/a.txt", "/b.txt"]}, {}):
        now = {"sha256": ["1" * 64, "3" * 64]} | paths
        runs.trained.require_same_data(config, before, before | paths)
        with pytest.raises(BadInput) as caught:
            runs.trained.require_same_data(config, before, now)
        assert str(caught.value).startswith(
            'data: "/b.txt": got sha256 333333333333, expected 222222222222 as in'
        )
    with pytest.raises(BadInput, match=r'^data: "/a.txt", "/b.txt": got sha256 new'):
        runs.trained.require_same_data(config, before, {"sha256": ["new"]})
    with pytest.raises(BadInput, match=r"^data: got sha256 new, expected 1{12}, 2{12}"):
        runs.trained.require_same_data(configs.load(), before, {"sha256": ["new"]})


def test_lost_and_new_files_are_named():
    config = configs.load()
    both = {"sha256": ["1" * 64, "2" * 64], "paths": ["/a.txt", "/b.txt"]}
    one = {"sha256": ["1" * 64], "paths": ["/moved/a.txt"]}
    lost = "number of files: got 1, expected 2 .*: no file with the contents of "
    with pytest.raises(BadInput, match=f'^data: {lost}"/b.txt"; restore'):
        runs.trained.require_same_data(config, both, one)
    new = 'number of files: got 2, expected 1 .*: "/b.txt", which is not in the'
    with pytest.raises(BadInput, match=f"^data: {new} checkpoint; restore"):
        runs.trained.require_same_data(config, one, both)


def test_a_run_of_zero_steps_can_be_loaded(book, tmp_path):
    trained, _ = train(book, tmp_path / "run", steps=0)
    assert trained.step == 0
    assert len(trained.sample("the ", length=5)) == 5


def test_an_unknown_engine_is_refused_before_a_directory_is_created(book, tmp_path):
    config = tiny.config(book)
    config["model"]["engine"] = "scann"
    with pytest.raises(BadInput, match=r'model\.engine: got "scann"'):
        jl.lab.train(config, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_invalid_prompt_is_refused_before_training(book, tmp_path):
    config = tiny.config(book) | {"sample": {"prompt": "", "length": 9}}
    with pytest.raises(BadInput, match=r"sample\.prompt"):
        jl.lab.train(config, run=tmp_path / "run")


@pytest.mark.combinations
def test_text_with_documents_needs_no_prompt(book, tmp_path):
    config = tiny.config(book) | {"sample": {"prompt": "", "length": 9}}
    config["data"]["document_separator"] = "gates"
    trained = jl.lab.train(config, run=tmp_path / "run", sink=tiny.RecordingSink())
    assert len(trained.sample("")) == 9


def test_resuming_with_another_config_is_refused(library):
    place, _, _ = library
    other = tiny.config(place / "book.txt", steps=50)
    run = place / "whole"
    with pytest.raises(BadInput) as caught:
        jl.lab.train(other, run=run, resume="auto")
    assert str(caught.value) == (
        f"{run}: got a run of another config (training.steps differ), expected one of "
        "the given config; choose another --run, or change that run: "
        f"jaxlstm resume {run} KEY=VALUE"
    )
    with pytest.raises(BadInput) as caught:
        jl.lab.train(other | {"seed": 5}, run=run, resume="auto")
    assert str(caught.value) == (
        f"{run}: got a run of another config (seed, training.steps differ), expected "
        f"one of the given config; choose another --run, as only {MAY_CHANGE} may "
        "change"
    )


def files(run: Path) -> dict[str, bytes]:
    """Return the content of every file of a run."""
    paths = [path for path in run.rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("cause", ["data", "metrics"])
def test_a_refused_resume_changes_no_file(library, tmp_path, cause):
    place, _, _ = library
    run, book = tmp_path / "run", tmp_path / "book.txt"
    shutil.copytree(place / "whole", run, symlinks=True)
    book.write_text(tiny.text(seed=1 if cause == "data" else 0))
    if cause == "metrics":
        metrics = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text("no record\n" + metrics)
    expected = {
        "data": r"got sha256 \w+, expected \w+ as",
        "metrics": r"metrics.jsonl: was edited: it differs from the log of checkpoint "
        "000040 after step 0",
    }
    (run / "env.json").write_text("{}")
    before, sink = files(run), tiny.RecordingSink()
    moved = ["training.steps=60", f"data.path={book}"]
    with pytest.raises(BadInput, match=expected[cause]):
        jl.lab.resume(run, overrides=moved, sink=sink, tensorboard=True)
    assert files(run) == before
    (run / "state.json").unlink()
    del before["state.json"]
    with pytest.raises(BadInput, match=expected[cause]):
        jl.lab.resume(run, overrides=moved, sink=sink)
    assert files(run) == before


def test_a_missing_sink_is_refused_before_a_directory_is_created(
    book, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(LabError, match="needs tensorboardX"):
        jl.lab.train(tiny.config(book), run=tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_divergence_names_the_step_and_keeps_the_last_good_state(book, tmp_path):
    config = tiny.config(book) | {"optimizer": [{"sgd": {"learning_rate": 1e38}}]}
    with pytest.raises(Diverged, match=r"step \d+: the .* is not finite.*checkpoint"):
        jl.lab.train(config, run=tmp_path / "run", sink=tiny.RecordingSink())
    trained = jl.lab.load(tmp_path / "run")
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.params))


def test_no_directory_is_created_if_the_text_is_missing(tmp_path):
    with pytest.raises(BadInput):
        jl.lab.train(tiny.config(tmp_path / "missing.txt"), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_larger_than_the_machine_is_refused_with_its_size(book, tmp_path):
    config = tiny.config(book)
    config["model"] |= {"hidden_size": 65_536, "layers": 8}
    with pytest.raises(BadInput, match=r"parameters, which need [\d,]+ GB"):
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


def test_an_interruption_names_the_command_that_resumes(book, tmp_path, monkeypatch):
    from contextlib import contextmanager

    @contextmanager
    def stopped(again):
        assert again.startswith("jaxlstm resume")
        yield lambda: True

    monkeypatch.setattr(experiments.interrupts, "stop_on_signal", stopped)
    with pytest.raises(Interrupted, match=r"step 5 of 40.*jaxlstm resume"):
        jl.lab.train(tiny.config(book), run=tmp_path / "run", sink=tiny.RecordingSink())


def test_perplexity_is_reported_for_tokens(tmp_path):
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
    trained = jl.lab.train(config, run=tmp_path / "run", sink=tiny.RecordingSink())
    assert len(trained.sample().split()) == 5
    last = trained.metrics()[-1]
    assert last["perplexity"] == pytest.approx(np.exp(last["loss"]))
    assert last["perplexity"] == pytest.approx(9, rel=0.3)
