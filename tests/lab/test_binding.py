"""Every file that determines a run is bound to it: what differs is named."""

import errno
import fcntl
import json
import os
import random
import re
import shutil
import stat
from pathlib import Path

import fault_runs
import pytest
import tiny
from helpers import as_earlier_version, change_meta, results

import jaxlstm as jl
from faults import counted, failing
from jaxlstm.lab import checkpoints, runs
from jaxlstm.lab._util.errors import BadInput, LabError
from jaxlstm.lab.reports import report as reports
from jaxlstm.lab.runs import binding
from jaxlstm.lab.runs import state as states


def train(book: Path, run: Path, **changes):
    config = tiny.config(book) | changes
    return jl.lab.train(config, run=run, sink=tiny.RecordingSink())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A text and a finished run on it."""
    place = tmp_path_factory.mktemp("finished")
    (place / "book.txt").write_text(tiny.text())
    train(place / "book.txt", place / "run")
    return place


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Draw no plots, which take time."""
    monkeypatch.setattr(reports, "write_plots", lambda *args, **options: [])


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run without links."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


@pytest.fixture
def unfinished(run):
    """A copy of the run that was killed after step 30."""
    shutil.rmtree(run / "checkpoints/000040")
    opened = runs.open(run)
    state = states.read_state(opened)
    states.write_state(opened, state._replace(finished=None))
    return run


def resume(run: Path, *overrides: str) -> list[str]:
    """Resume a run and return the messages."""
    sink = tiny.RecordingSink()
    jl.lab.resume(run, overrides=overrides, sink=sink)
    return sink.messages


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# -- config.yaml --------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\nseed: 0", "\nseed: 1", "seed: got 1, expected 0"),
        ("window: 16", "window: 8", r"training\.window: got 8, expected 16"),
        ("zoneout_c: 0.0", "zoneout_c: 0.1", r"model\.zoneout_c: got 0\.1, exp"),
        ("learning_rate: 0.02", "learning_rate: 0.03", "optimizer: got a list"),
        ("steps: 40", "steps: 41", r"training\.steps: got 41, expected 40"),
    ],
)
def test_an_edited_config_is_refused_with_the_key(unfinished, old, new, message):
    edit(unfinished / "config.yaml", old, new)
    for act in (resume, jl.lab.load):
        with pytest.raises(BadInput, match=rf"config.yaml: was edited .*\({message}"):
            act(unfinished)


def test_without_state_json_the_config_is_that_of_the_newest_checkpoint(unfinished):
    (unfinished / "state.json").unlink()
    edit(unfinished / "config.yaml", "\nseed: 0", "\nseed: 1")
    with pytest.raises(BadInput, match="differs from the newest checkpoint in seed"):
        resume(unfinished)
    edit(unfinished / "config.yaml", "\nseed: 1", "\nseed: 0")
    edit(unfinished / "config.yaml", "steps: 40", "steps: 45")
    messages = resume(unfinished)
    assert "training.steps: got 45, expected 40" in messages[0]
    assert states.read_state(runs.open(unfinished)).total_steps == 45


def test_a_kill_at_any_write_of_a_new_config_leaves_a_consistent_run(run, monkeypatch):
    """After each of the writes, the run opens with the old or the new config."""
    writes = binding.write_text, states.write_text
    opened = runs.open(run)
    text = runs.read_config(opened).replace("steps: 40", "steps: 60")
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    for allowed in range(5):
        left = [allowed]

        def limited(path, text, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            writes[0](path, text)

        for module in (binding, states):
            monkeypatch.setattr(module, "write_text", limited)
        try:
            runs.write_config(opened, text, overrides=[], total_steps=60)
        except KeyboardInterrupt:
            assert allowed < 4
        config = runs.bound_config(opened, pytest.fail)
        assert config.training.steps == (60 if allowed > 2 else 40)
        for path, content in before.items():
            path.write_bytes(content)


# -- state.json ---------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"total_steps": 40', '"total_steps": 41'),
        lambda text: text.replace('"sha256"', '"sha257"'),
        lambda text: text.replace('"finished"', '"finishes"'),
        lambda text: "",
        lambda text: "[]",
        lambda text: "[" * 10**5,
    ],
)
def test_an_edited_state_is_refused(run, change):
    path = run / "state.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(LabError, match=r"state\.json: cannot be read .*; delete it to"):
        jl.lab.load(run)
    path.unlink()
    assert jl.lab.load(run).step


# -- checkpoints --------------------------------------------------------------


def test_a_checkpoint_of_another_run_is_refused(unfinished):
    change_meta(unfinished, 30, run="0123456789abcdef")
    for act in (resume, jl.lab.load):
        with pytest.raises(BadInput, match="000030: got a checkpoint of another run"):
            act(unfinished)


def test_a_checkpoint_of_another_config_is_refused(unfinished):
    config = checkpoints.read_meta(unfinished / "checkpoints", 30)["config"]
    change_meta(unfinished, 30, config=config | {"seed": 7})
    for act in (resume, jl.lab.load):
        with pytest.raises(BadInput, match=r"another config .*seed: got 0, expected 7"):
            act(unfinished)


def test_deleted_checkpoints_are_not_begun_anew(unfinished):
    shutil.rmtree(unfinished / "checkpoints")
    log = (unfinished / "metrics.jsonl").read_bytes()
    with pytest.raises(BadInput, match="got metrics but no checkpoint, expected those"):
        resume(unfinished)
    assert (unfinished / "metrics.jsonl").read_bytes() == log


def test_an_old_checkpoint_that_cannot_be_deleted_is_a_warning(unfinished, monkeypatch):
    """NFS keeps a directory whose files are open elsewhere: ENOTEMPTY."""
    rmtree = shutil.rmtree

    def failing(path, **options):
        if not options:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", failing)
    messages = resume(unfinished, "training.keep_checkpoints=1")
    [warning] = [m for m in messages if "old checkpoints cannot be deleted" in m]
    assert warning.startswith("warning: ")
    assert "(Directory not empty); the run goes on" in warning
    assert runs.finished(runs.open(unfinished)) == 40


def test_a_file_system_without_links_and_syncs_of_directories_works(
    unfinished, tmp_path, monkeypatch
):
    fsync = os.fsync

    def without_directories(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    def without_links(*args, **options):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fsync", without_directories)
    monkeypatch.setattr(os, "symlink", without_links)
    shutil.rmtree(unfinished / "checkpoints/best", ignore_errors=True)
    messages = resume(unfinished)
    assert any("best: cannot be written (Operation not" in m for m in messages)
    assert not os.path.lexists(unfinished / "checkpoints/best")
    assert jl.lab.load(unfinished).step == checkpoints.best(unfinished / "checkpoints")
    text = runs.read_config(runs.open(unfinished))
    new = runs.create(tmp_path / "new", name="r", config=text, total_steps=1)
    assert runs.open(tmp_path / "new") == new


def test_a_file_system_without_locks_is_refused_before_the_first_step(
    tmp_path, monkeypatch
):
    def without_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with pytest.raises(LabError, match="does not support locks, so choose a --run on"):
        runs.create(tmp_path / "run", name="r", config="seed: 0", total_steps=1)


def test_a_reader_beside_a_run_that_prunes_reads_again(run, monkeypatch):
    """The best checkpoint is deleted after it was chosen, and before it is read."""
    best = jl.lab.load(run).step
    restore = checkpoints.store.restore

    def pruned(root, step, *args, **options):
        if step == best:
            shutil.rmtree(root / f"{step:06d}")
        return restore(root, step, *args, **options)

    monkeypatch.setattr(checkpoints.store, "restore", pruned)
    monkeypatch.setattr(checkpoints, "restore", pruned, raising=False)
    loaded = jl.lab.load(run, report=pytest.fail)
    assert loaded.step == checkpoints.best(run / "checkpoints") != best


# -- metrics.jsonl ------------------------------------------------------------


def lines_of(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines(keepends=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0].replace('"loss": ', '"loss": 1'), *lines[1:]],
        lambda lines: lines[1:],
        lambda lines: [],
        lambda lines: lines[::-1],
        lambda lines: [lines[0], *lines],
    ],
    ids=["a loss", "a line deleted", "emptied", "reordered", "duplicated"],
)
def test_an_edited_log_is_refused(run, unfinished, change):
    (unfinished / "metrics.jsonl").write_text("".join(change(lines_of(unfinished))))
    with pytest.raises(BadInput, match=r"metrics\.jsonl: was edited: it differs from"):
        resume(unfinished)
    with pytest.raises(BadInput, match=r"metrics\.jsonl: was edited: it differs from"):
        jl.lab.plot([run])


def test_the_last_step_at_which_the_log_is_unchanged_is_named(unfinished):
    edit(unfinished / "metrics.jsonl", '{"step": 30', '{"step": 31')
    with pytest.raises(BadInput, match="of checkpoint 000030 after step 20; undo"):
        resume(unfinished)


def test_a_line_that_is_added_to_the_log_of_a_finished_run_is_refused(run):
    with (run / "metrics.jsonl").open("a") as log:
        log.write(lines_of(run)[-1])
    with pytest.raises(BadInput, match=r"metrics\.jsonl: was edited"):
        resume(run)


def test_the_deleted_log_of_a_finished_run_is_named(run):
    (run / "metrics.jsonl").unlink()
    lost = r"metrics.jsonl was deleted: the losses of this run are lost"
    assert any(re.search(lost, message) for message in resume(run))
    with pytest.warns(UserWarning, match=lost):
        assert jl.lab.load(run).metrics() == []


def test_a_deleted_log_begins_anew_with_a_message(finished, unfinished):
    (unfinished / "metrics.jsonl").unlink()
    messages = resume(unfinished)
    assert any("deleted; the log begins anew after step 30" in m for m in messages)
    whole = lines_of(finished / "run")
    assert lines_of(unfinished) == [w for w in whole if json.loads(w)["step"] > 30]
    assert runs.finished(runs.open(unfinished)) == 40
    jl.lab.load(unfinished).metrics()


# -- runs of earlier versions, moved data, early stops ------------------------


def test_a_run_of_an_earlier_version_resumes_and_is_bound_from_then_on(
    finished, unfinished
):
    as_earlier_version(unfinished)
    best = jl.lab.load(unfinished).step
    assert best in checkpoints.steps(unfinished / "checkpoints")
    messages = resume(unfinished)
    assert any("made by an earlier version, which did not rec" in m for m in messages)
    assert results(unfinished) == results(finished / "run")
    edit(unfinished / "config.yaml", "\nseed: 0", "\nseed: 1")
    with pytest.raises(BadInput, match="seed: got 1, expected 0"):
        jl.lab.load(unfinished)


def test_moved_data_is_found_by_an_override_and_compared_by_its_hash(
    finished, unfinished, tmp_path
):
    """The bytes of the new name are not UTF-8."""
    moved, other = tmp_path / os.fsdecode(b"moved\xff\xfe.txt"), tmp_path / "other.txt"
    shutil.copy(finished / "book.txt", moved)
    other.write_text(tiny.text(seed=1))
    loaded = jl.lab.load(unfinished, overrides=[f"data.path={moved}"])
    assert loaded.evaluate() == jl.lab.load(unfinished).evaluate()
    with pytest.raises(BadInput, match="got sha256"):
        jl.lab.load(unfinished, overrides=[f"data.path={other}"]).evaluate()
    with pytest.raises(BadInput, match=r"change of seed, expected only .* data\.path"):
        jl.lab.load(unfinished, overrides=["seed=1"])
    # Comments and the layout of the config may be edited.
    edit(unfinished / "config.yaml", "\nseed: 0", "  # a comment\n\nseed:   0x0")
    resume(unfinished, f"data.path={moved}")
    assert results(unfinished) == results(finished / "run")
    assert jl.lab.load(unfinished).config.data.path == str(moved)


def test_more_steps_after_an_early_stop_train_on(finished, tmp_path):
    stopping = {"patience": 1, "min_delta": 100.0}
    training = {"steps": 30, "validate_every": 5, "early_stopping": stopping}
    config = tiny.config(finished / "book.txt", **training)
    schedule = {"cosine_decay_schedule": {"init_value": 0.02}}
    config["optimizer"] = [{"adamw": {"learning_rate": schedule}}]
    run = tmp_path / "run"
    train(finished / "book.txt", run, **config)
    assert runs.finished(runs.open(run)) == 10
    assert any("step 10 of 30, stopped early" in message for message in resume(run))
    messages = resume(run, "sample.length=3")
    assert any("early at step 10, after 1 validations without" in m for m in messages)
    assert runs.finished(runs.open(run)) == 10
    messages = resume(run, "training.steps=40")
    assert any("early at step 10; it trains on to step 40" in m for m in messages)
    unchanged = "schedule of the learning rate is unchanged, 0 at the last step."
    key = "optimizer.0.adamw.learning_rate.cosine_decay_schedule.decay_steps=null"
    assert any(unchanged in m and m.endswith(key) for m in messages)
    assert runs.finished(runs.open(run)) == 15


def test_a_refused_change_leaves_config_and_state_byte_for_byte(unfinished, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(tiny.text(seed=1))
    files = [unfinished / name for name in ("config.yaml", "state.json")]
    before = [path.read_bytes() for path in files]
    with pytest.raises(BadInput, match="got sha256"):
        resume(unfinished, "training.steps=48", f"data.path={other}")
    assert [path.read_bytes() for path in files] == before


def test_a_disk_that_cannot_be_read_is_a_sentence(run):
    with counted(run) as operations:
        jl.lab.load(run)
    for at in range(0, operations.count, 10):
        with (
            failing(run, at, errno.EIO, once=False),
            pytest.raises(LabError, match=r"Input/output error|is damaged"),
        ):
            jl.lab.load(run, report=lambda text: None)


def test_a_finished_run_is_cleaned_of_the_files_of_a_killed_change(run):
    (run / ".state.json.1.tmp").write_text("{")
    resume(run)
    assert not list(run.glob(".*.tmp"))


# -- special files ------------------------------------------------------------


NAMES = ["state.json", "metrics.jsonl", "log.txt", "weights.safetensors", "report.md"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_or_a_directory_in_the_place_of_a_file_is_named(run, name):
    path = run / name
    path.unlink()
    for make, kind in ((os.mkfifo, "a pipe or a device"), (os.mkdir, "a directory")):
        make(path)
        with pytest.raises(BadInput, match=f"{name}: got {kind}, expected a file"):
            jl.lab.load(run)
        path.unlink() if kind != "a directory" else path.rmdir()


def test_a_pipe_as_config_does_not_hang(run, tmp_path):
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")
    with pytest.raises(BadInput, match=r"got a directory without config\.yaml"):
        jl.lab.load(run)
    with pytest.raises(BadInput, match="got a file without keys"):
        jl.lab.config.load(run / "config.yaml")


# -- random faults, also for a person to start; see fault_runs ----------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "count"),
    [
        (fault_runs.flips, 30),
        (fault_runs.kills, 8),
        (fault_runs.operations, 20),
    ],
)
def test_random_faults_break_no_promise(tmp_path, act, count):
    act(tmp_path, count, random.randrange(10**6))
