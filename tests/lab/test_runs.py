"""A run directory has one writer, and its metrics have neither a gap nor a repeat."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxlstm.lab import checkpoints, runs
from jaxlstm.lab._util.errors import BadInput, LabError

CONFIG = "name: quickstart\nseed: 0\n"


def create(path: Path | None, **changes) -> runs.Run:
    options = {"name": "quickstart", "config": CONFIG, "total_steps": 900}
    return runs.create(path, **(options | changes))


def python(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Make a directory read-only, also when the tests run as root."""
    for folder in (*directory.parents[:3], directory):
        folder.chmod(0o755)
    directory.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        directory.chmod(0o755)


# Creating and opening


def test_the_runs_package_does_not_import_jax():
    code = "import sys, jaxlstm.lab.runs; print('jax' in sys.modules)"
    assert python(code).communicate()[0] == "False\n"


def test_two_new_runs_have_different_names(tmp_path):
    first, second = (create(None, parent=tmp_path / "runs") for _ in range(2))
    assert first.path != second.path
    assert first.path.parent == tmp_path / "runs"
    assert first.path.name.startswith("quickstart-20")


def test_a_run_records_its_config_overrides_and_environment(tmp_path):
    environment = runs.describe_environment(["cpu:0"])
    run = create(tmp_path / "x", overrides=["a.b=1", "c=ü"], environment=environment)
    assert runs.open(tmp_path / "x") == run
    assert runs.read_config(run) == CONFIG
    assert runs.read_overrides(run) == ["a.b=1", "c=ü"]
    assert json.loads(run.environment.read_text()) == environment
    assert environment["versions"]["jax"] == jax.__version__
    assert runs.progress(run) == "step 0 of 900"
    runs.write_config(run, "seed: 1\n", overrides=["seed=1"], total_steps=2000)
    assert runs.read_config(run) == "seed: 1\n"
    assert runs.progress(run) == "step 0 of 2000"


def test_a_directory_that_holds_a_run_is_refused(tmp_path):
    run = create(tmp_path / "my run")
    checkpoints.save(run.checkpoints, 500, {"w": np.ones(1)}, {})
    with pytest.raises(BadInput) as caught:
        create(tmp_path / "my run", config="other: 1\n")
    assert str(caught.value) == (
        f"{run.path}: got the directory of a run (step 500 of 900), expected an empty "
        f"one; resume the run with \"jaxlstm resume '{run.path}'\" or choose another "
        "--run"
    )
    assert runs.read_config(run) == CONFIG


def test_a_directory_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        BadInput, match=r": got a directory with thesis\.tex, expected an"
    ):
        create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    checkpoints.save(tmp_path / "b/checkpoints", 1, {"w": np.ones(1)}, {})
    with pytest.raises(
        BadInput, match="got a directory with checkpoints, expected an empty"
    ):
        create(tmp_path / "b")


def test_a_directory_of_an_interrupted_create_is_accepted(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.yaml.123.tmp").touch()
    assert create(tmp_path) == runs.open(tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_a_run_name_must_be_valid_as_a_directory_name(tmp_path, name):
    with pytest.raises(BadInput, match="expected the start of the name of a directory"):
        create(None, name=name, parent=tmp_path)


@pytest.mark.parametrize("name", ["with space", "line\nbreak", "ünïcödé", "'\"$(x)"])
def test_unusual_path_names_work(tmp_path, name):
    run = create(tmp_path / name)
    runs.append(run, {"step": 1})
    assert runs.read_metrics(runs.open(tmp_path / name)) == [{"step": 1}]


def test_a_read_only_directory_is_refused_by_create(tmp_path):
    for path, parent in [
        (tmp_path / "x", "."),
        (tmp_path, "."),
        (None, tmp_path / "r"),
    ]:
        with (
            read_only(tmp_path),
            pytest.raises(
                BadInput, match=r"\(Permission denied\); choose another directory"
            ),
        ):
            create(path, parent=Path(parent))


def test_an_impossible_path_is_refused_with_the_reason(tmp_path):
    for path, why in [
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("/dev/null/x"), "Not a directory"),
        (Path("/dev/null"), "File exists"),
    ]:
        with pytest.raises(BadInput, match=rf"cannot be written \({why}\); choose"):
            create(path)
    with pytest.raises(BadInput, match=r"got 'a\\x00b', expected a path without null"):
        create(Path("a\0b"))


def test_opening_a_missing_run_suggests_similar_names(tmp_path):
    create(tmp_path / "quickstart-1")
    with pytest.raises(
        BadInput, match=r"does not exist; did you mean .*quickstart-1\?"
    ):
        runs.open(tmp_path / "quikstart-1")
    (tmp_path / "my.yaml").touch()
    with pytest.raises(BadInput) as caught:
        runs.open(tmp_path / "my.yaml")
    assert str(caught.value) == (
        f"{tmp_path}/my.yaml: got a config file, expected a run directory; train it "
        f"with: jaxlstm train {tmp_path}/my.yaml"
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        BadInput, match=r"got a directory without config\.yaml, expected a run"
    ):
        runs.open(tmp_path / "empty")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BadInput, match="got a file, expected a run directory"):
        runs.open(tmp_path / "notes.txt")
    for path in (tmp_path / "a" / "b", Path("x" * 300), Path("a\0b")):
        with pytest.raises(BadInput):
            runs.open(path)
        assert not runs.is_run(path)


# Locking

HOLD = """
import sys, time
from pathlib import Path
from jaxlstm.lab import runs
with runs.lock(runs.open(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_has_one_writer_and_the_lock_of_a_dead_one_is_released(tmp_path):
    run = create(tmp_path / "x")
    writer = python(HOLD, run.path)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "held\n"
        with (
            pytest.raises(
                LabError, match=f"process {writer.pid} is writing to this run; wait"
            ),
            runs.lock(run),
        ):
            pass
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    with runs.lock(run):
        assert (run.path / ".lock").read_text() == f"{os.getpid()}\n"
    with runs.lock(run):
        pass


def test_a_read_only_run_can_be_read_but_not_locked(tmp_path):
    run = create(tmp_path / "x")
    runs.append(run, {"step": 1})
    checkpoints.save(run.checkpoints, 1, {"w": np.ones(1)}, {})
    (run.path / ".lock").unlink()
    with read_only(run.path):
        assert runs.read_metrics(runs.open(run.path)) == [{"step": 1}]
        assert checkpoints.latest(run.checkpoints, {"w": np.ones(1)}, pytest.fail)
        with (
            pytest.raises(LabError, match="cannot be trained further; evaluate and"),
            runs.lock(run),
        ):
            pass


# Metrics


def test_metrics_are_json_lines_with_keys_in_the_given_order(tmp_path):
    run = create(tmp_path / "x")
    runs.append(run, {"step": np.int64(1), "split": "train", "loss": jnp.float32(0.5)})
    runs.append(run, {"step": 2, "loss": float("nan"), "worst": -np.inf})
    assert run.metrics.read_text() == (
        '{"step": 1, "split": "train", "loss": 0.5}\n'
        '{"step": 2, "loss": null, "worst": null}\n'
    )


records = st.lists(
    st.fixed_dictionaries(
        {"step": st.integers(0, 20), "loss": st.floats() | st.none() | st.text()}
    ),
    max_size=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records, st.integers(0, 20), st.integers(0, 100))
def test_truncated_metrics_continue_to_the_same_bytes(tmp_path, records, step, torn):
    """Records after `step`, the last cut short at any byte, are removed completely."""
    run = runs.Run(tmp_path)
    records.sort(key=lambda record: record["step"])
    run.metrics.write_text("")
    for record in records:
        runs.append(run, record)
    whole = run.metrics.read_bytes()
    extra = b'{"step": 21, "loss": 0.1}\n{"step": 22, "text": "\xc3\xbc"}\n'
    run.metrics.write_bytes(whole + extra[: torn % (len(extra) + 1)])
    runs.truncate_metrics(run, step)
    assert all(record["step"] <= step for record in runs.read_metrics(run))
    for record in records:
        if record["step"] > step:
            runs.append(run, record)
    assert run.metrics.read_bytes() == whole


@pytest.mark.parametrize(
    "tail", [b'{"step": 3', b'{"step": 3}', b"\0" * 50, b"\0" * 50 + b"\n", b"\xff\n"]
)
def test_an_incomplete_last_line_is_dropped(tmp_path, tail):
    run = create(tmp_path / "x")
    run.metrics.write_bytes(b'{"step": 1}\n' + tail)
    assert runs.read_metrics(run) == [{"step": 1}]
    runs.truncate_metrics(run, 10)
    assert run.metrics.read_bytes() == b'{"step": 1}\n'


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"loss": 1}', "[" * 10**5])
def test_an_invalid_line_before_the_last_is_named(tmp_path, line):
    run = create(tmp_path / "x")
    run.metrics.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    for call in (runs.read_metrics, lambda run: runs.truncate_metrics(run, 1)):
        with pytest.raises(
            LabError, match=r"metrics\.jsonl:2: got a line that is not a JSON object"
        ):
            call(run)


def test_a_run_without_metrics_has_an_empty_list(tmp_path):
    run = create(tmp_path / "x")
    assert runs.read_metrics(run) == []
    runs.truncate_metrics(run, 5)
    assert runs.read_metrics(run) == []


# Finishing and logging


def test_a_finished_run_reports_its_step(tmp_path):
    run = create(tmp_path / "x")
    assert runs.finished(run) is None
    runs.finish(run, 900)
    assert runs.finished(run) == 900
    assert runs.progress(run) == "step 900 of 900"
    run.state.write_text("{")
    with pytest.raises(LabError, match=r"state\.json: cannot be read"):
        runs.finished(run)


def test_log_lines_have_a_time_and_replace_invalid_characters(tmp_path):
    run = create(tmp_path / "x")
    runs.log(run, "began")
    runs.log(run, "checkpoint 000500 \ud800")
    first, second = run.log.read_text().splitlines()
    assert first.endswith("  began")
    assert second.endswith("  checkpoint 000500 ?")


def test_a_full_disk_is_a_lab_error_with_the_reason(tmp_path):
    run = create(tmp_path / "x")
    run.metrics.unlink(missing_ok=True)
    run.metrics.symlink_to("/dev/full")
    with pytest.raises(LabError, match=r"metrics\.jsonl: cannot be written \(No space"):
        runs.append(run, {"step": 1})


def test_a_read_only_run_that_is_continued_is_an_error_with_a_remedy(tmp_path):
    run = create(tmp_path / "x")
    root = run.checkpoints
    checkpoints.save(root, 1, {"w": np.zeros(2)}, {})
    checkpoints.link_best(root, 1)
    acts = [
        lambda: checkpoints.save(root, 2, {"w": np.zeros(2)}, {}),
        lambda: checkpoints.require_room(root, {"w": np.zeros(2)}, copies=1),
        lambda: checkpoints.link_best(root, 1),
        lambda: checkpoints.link_best(root, None),
    ]
    run.metrics.touch(0o644)
    outside = [
        lambda: runs.append(run, {"step": 1}),
        lambda: runs.export_weights(run.weights, {"w": np.zeros(2)}),
    ]
    end = r"\(Permission denied\).*; make it writable, or choose another --run"
    for directory, failing in ((root, acts), (run.path, outside)):
        with read_only(directory):
            for act in failing:
                with pytest.raises(LabError, match=end):
                    act()


# Weights


def params() -> dict:
    return {
        "cell": [jnp.ones((2, 4, 3), jnp.bfloat16), np.zeros((0, 2))],
        "bias": np.asarray(3, np.float16),
    }


def test_weights_are_restored_bit_by_bit(tmp_path):
    path = tmp_path / "weights.safetensors"
    runs.export_weights(path, params())
    loaded = runs.load_weights(path, params())
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params()), strict=True):
        assert type(a) is type(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_weights_are_compatible_with_safetensors(tmp_path):
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "w.safetensors"
    runs.export_weights(path, {"layer": {"w": np.arange(3.0)}})
    np.testing.assert_array_equal(load_file(path)["layer/w"], np.arange(3.0))
    save_file({"layer/w": np.arange(4.0)}, path)
    like = {"layer": {"w": np.ones(4)}}
    np.testing.assert_array_equal(
        runs.load_weights(path, like)["layer"]["w"], np.arange(4.0)
    )


def test_every_difference_between_weights_and_model_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    runs.export_weights(path, {"a": np.ones(2), "b": np.ones(2)})
    with pytest.raises(BadInput) as caught:
        runs.load_weights(path, {"a": np.ones(3), "c": np.ones(1)})
    assert str(caught.value).splitlines() == [
        f"{path}: a: got [2], expected [3] in this model",
        f"{path}: c: got no such leaf, expected float64 [1] in this model",
        f"{path}: b: got float64 [2], expected no such leaf in this model",
    ]


def test_weights_can_be_renamed_when_they_are_loaded(tmp_path):
    path, like = tmp_path / "w.safetensors", {"embed": {"table": np.zeros(3)}}
    runs.export_weights(path, [{"table": np.arange(3.0)}])
    with pytest.raises(BadInput, match="embed/table: got no such leaf"):
        runs.load_weights(path, like)
    loaded = runs.load_weights(path, like, rename=lambda name: f"embed/{name[2:]}")
    np.testing.assert_array_equal(loaded["embed"]["table"], np.arange(3.0))
    with pytest.raises(BadInput, match="0/table: got no such leaf, expected float64"):
        runs.load_weights(
            path, [like["embed"]], rename=lambda name: f"embed/{name[2:]}"
        )
    runs.export_weights(path, [np.ones(1), np.ones(1)])
    with pytest.raises(BadInput, match="rename: got the same path 'w' for '0' and '1'"):
        runs.load_weights(path, {"w": np.ones(1)}, rename=lambda name: "w")


def test_damaged_weights_are_refused(tmp_path):
    path, like = tmp_path / "w.safetensors", {"w": np.arange(3.0)}
    runs.export_weights(path, like)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            loaded = runs.load_weights(path, like)["w"]
        except BadInput:
            continue
        assert loaded.tobytes() == like["w"].tobytes()
    for harm in (whole[:-1], b"", b"{}", b"\xff" * 100):
        path.write_bytes(harm)
        with pytest.raises(BadInput, match="cannot be read as safetensors"):
            runs.load_weights(path, like)
    with pytest.raises(BadInput, match="cannot be read as safetensors"):
        runs.load_weights(tmp_path / "nowhere", like)
    with pytest.raises(TypeError, match="w: got float"):
        runs.export_weights(path, {"w": 1.0})
