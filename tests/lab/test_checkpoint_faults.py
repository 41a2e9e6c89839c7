"""No disk fault, flipped bit or killed process costs an earlier checkpoint.

After any fault at any time, every visible checkpoint is complete, the newest is
restored bit by bit, and the next writer removes unfinished files.
"""

import errno
import os
import random
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from faults import ForkServer, counted, failing, numbered
from jaxlstm.lab import checkpoints
from jaxlstm.lab.checkpoints import CheckpointError, DamagedCheckpoint, arrays
from jaxlstm.lab.checkpoints import manifest as manifests

SETUP = """
from pathlib import Path
from faults import dying, numbered
from jaxlstm.lab import checkpoints
from jaxlstm.lab.checkpoints import store  # checkpoints loads it on first use
"""


@pytest.fixture(scope="module")
def fork_server():
    made = []

    def make(call: str) -> ForkServer:
        made.append(ForkServer(SETUP + call))
        return made[-1]

    yield make
    for process in made:
        process.close()


def check_visible(root: Path, oldest: int) -> int:
    """Check every visible checkpoint; return the newest step, at least `oldest`."""
    for step in checkpoints.steps(root):
        restored, meta = checkpoints.restore(root, step, numbered(0))
        assert meta == {"step": step}
        assert all((restored[k] == v).all() for k, v in numbered(step).items())
    found = checkpoints.latest(root, numbered(0), pytest.fail)
    assert found is not None
    assert found[0] >= oldest
    return found[0]


def check_recovery(root: Path) -> None:
    """Check that the next save works and removes all hidden files."""
    step = 10**6
    checkpoints.save(root, step, numbered(step), {"step": step})
    assert list(root.glob(".*")) == []
    check_visible(root, step)


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def save(root: Path, step: int) -> None:
    checkpoints.save(root, step, numbered(step), {"step": step})


def work(root: Path) -> None:
    """Run the operations of a training loop at one checkpoint."""
    save(root, 3)
    checkpoints.link_best(root, 3)
    checkpoints.prune(root, 1)


def fresh(root: Path, *steps: int) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    for step in steps:
        save(root, step)
    return root


WORK = """
def call(task):
    root, at = task
    with dying(Path(root), at):
        checkpoints.save(Path(root), 3, numbered(3), {"step": 3})
        checkpoints.link_best(Path(root), 3)
        checkpoints.prune(Path(root), 1)
"""


def kill_before_each_operation(fork_server, root: Path, steps: tuple, stride: int):
    fresh(root, *steps)
    with counted(root) as operations:
        work(root)
    child = fork_server(WORK)
    codes = []
    for at in range(random.randrange(stride), operations.count, stride):
        fresh(root, *steps)
        child.start((str(root), at))
        codes.append(child.wait())
        checkpoints.clean(root)
        check_visible(root, 2 if 2 in steps else 3)
        check_recovery(root)
    assert set(codes) <= {-9, 0}
    assert codes.count(-9) >= 0.8 * len(codes) > 0


def test_a_kill_before_a_file_operation_costs_no_checkpoint(fork_server, tmp_path):
    kill_before_each_operation(fork_server, tmp_path / "c", (1, 2), stride=5)


def test_a_kill_while_replacing_the_only_checkpoint_keeps_it(fork_server, tmp_path):
    kill_before_each_operation(fork_server, tmp_path / "c", (3,), stride=5)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(1, 2), (3,), (1, 2, 3)])
def test_a_kill_before_every_file_operation_costs_no_checkpoint(
    fork_server, tmp_path, steps
):
    kill_before_each_operation(fork_server, tmp_path / "c", steps, stride=1)


LOOP = """
def call(task):
    root, first = task
    for step in range(first, first + 1000):
        checkpoints.save(Path(root), step, numbered(step), {"step": step})
        checkpoints.link_best(Path(root), step)
        checkpoints.prune(Path(root), 2)
"""


def kill_at_random(fork_server, root: Path, times: int) -> None:
    """Kill children at random times; each continues where the last was killed."""
    child, newest = fork_server(LOOP), 0
    save(root, 0)
    for _ in range(times):
        process = child.start((str(root), newest + 1))
        time.sleep(random.uniform(0.0, 0.3))
        os.kill(process, 9)
        assert child.wait() == -9
        checkpoints.clean(root)
        newest = check_visible(root, newest)
    assert newest > 0
    check_recovery(root)


def test_kills_at_random_times_cost_no_checkpoint(fork_server, tmp_path):
    kill_at_random(fork_server, tmp_path, times=5)


@pytest.mark.slow
def test_a_thousand_kills_at_random_times_cost_no_checkpoint(fork_server, tmp_path):
    kill_at_random(fork_server, tmp_path, times=1000)


@pytest.mark.parametrize(
    ("code", "once"),
    [
        pytest.param(errno.ENOSPC, False, id="ENOSPC from then on"),
        pytest.param(errno.EIO, True, id="EIO once"),
        pytest.param(
            errno.ENOSPC, True, id="ENOSPC once", marks=pytest.mark.combinations
        ),
        pytest.param(
            errno.EIO, False, id="EIO from then on", marks=pytest.mark.combinations
        ),
    ],
)
def test_a_failing_file_operation_costs_no_checkpoint(tmp_path, code, once):
    root = fresh(tmp_path / "c", 1, 2)
    with counted(root) as operations:
        work(root)
    raised = []
    for at in range(random.randrange(12), operations.count, 12):
        fresh(root, 1, 2)
        with failing(root, at, code, once=once):
            try:
                work(root)
            except CheckpointError as error:
                raised.append(str(error))
        check_visible(root, 2)
        check_recovery(root)
    assert raised
    assert all(os.strerror(code) in message for message in raised)


def test_a_failed_save_names_the_reason_and_leaves_no_files(tmp_path):
    save(tmp_path, 1)
    with (
        failing(tmp_path, 5, errno.ENOSPC, once=True),
        pytest.raises(CheckpointError) as caught,
    ):
        save(tmp_path, 2)
    assert str(caught.value) == (
        f"checkpoint 000002: could not be saved in {tmp_path} "
        "(No space left on device); earlier checkpoints are unchanged"
    )
    assert names_in(tmp_path) == ["000001"]


@pytest.mark.parametrize(
    "code",
    [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.combinations)],
)
def test_a_failed_save_leaves_no_checkpoint_and_prints_nothing(tmp_path, code, capfd):
    """A fault of each operation in turn, the last sync of the directory included."""
    root = fresh(tmp_path / "c", 1)
    with counted(root) as operations:
        save(root, 2)
    failed = 0
    for at in range(operations.count):
        fresh(root, 1)
        with failing(root, at, code, once=True):
            try:
                save(root, 2)
                expected = [1, 2]
            except CheckpointError:
                expected, failed = [1], failed + 1
        assert checkpoints.steps(root) == expected
        assert sorted(names_in(root)) == [f"{step:06d}" for step in expected]
    assert failed > operations.count / 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("largest", [0, 100, 1000, 10_000])
def test_a_file_size_limit_is_a_failed_save(tmp_path, largest):
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        with pytest.raises(CheckpointError, match="000002: could not be saved"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(tmp_path) == ["000001"]
    check_recovery(tmp_path)


SHORT = """
import resource
def call(task):
    root, largest = task
    store.reserve = lambda directory, size: None
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        checkpoints.save(Path(root), 2, numbered(2), {"step": 2})
    except checkpoints.CheckpointError as error:
        os._exit(7 if "(File too large); earlier" in str(error) else 8)
"""


def test_a_disk_that_fills_during_the_write_is_a_failed_save(fork_server, tmp_path):
    """The space was free when it was reserved, and taken by others afterwards."""
    save(tmp_path, 1)
    child = fork_server(SHORT)
    for largest in (0, 50, 200, 5000):
        child.start((str(tmp_path), largest))
        assert child.wait() == 7
        check_visible(tmp_path, 1)
        assert checkpoints.steps(tmp_path) == [1]
    check_recovery(tmp_path)


def test_unfinished_files_of_a_live_writer_are_kept(tmp_path):
    from jaxlstm.lab.checkpoints.retention import staged

    with staged(tmp_path, 7) as stage:
        (stage / "half").touch()
        save(tmp_path, 8)
        assert (stage / "half").exists()
        (tmp_path / ".000009.dead.tmp").mkdir()
        checkpoints.clean(tmp_path)
        assert not (tmp_path / ".000009.dead.tmp").exists()
    assert checkpoints.steps(tmp_path) == [7, 8]


# Damaged files


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def flip_bits(root: Path, count: int | None) -> None:
    """Flip `count` bits of each file, or all of them; each must be found and named."""
    small = {
        "w": np.arange(5, dtype=np.float32),
        "step": np.asarray(7),
        "e": np.ones(0),
    }
    directory = checkpoints.save(root, 1, small, {"a": [1, None, "ü"]})
    for path in files_of(directory):
        bits = range(8 * path.stat().st_size)
        share = bits if count is None else random.sample(bits, min(len(bits), count))
        for bit in share:
            flip(path, bit)
            with pytest.raises(
                DamagedCheckpoint, match=r"0001.* damaged|manifest\.json"
            ):
                checkpoints.restore(root, 1, small)
            flip(path, bit)
    checkpoints.restore(root, 1, small)


def test_a_flipped_bit_in_any_file_is_found(tmp_path):
    flip_bits(tmp_path, 300)


@pytest.mark.slow
def test_every_flipped_bit_is_found(tmp_path):
    flip_bits(tmp_path, None)


def test_array_hashes_are_checked_besides_file_hashes(tmp_path, monkeypatch):
    """They also cover errors between the file and the array."""
    directory = checkpoints.save(tmp_path, 1, numbered(1), {})
    monkeypatch.setattr(manifests, "check_hashes", lambda *_: None)
    path = directory / arrays.NAME
    start = path.stat().st_size - sum(leaf.nbytes for leaf in numbered(1).values())
    for _ in range(6):
        bit = random.randrange(8 * start, 8 * path.stat().st_size)
        flip(path, bit)
        with pytest.raises(DamagedCheckpoint, match=r"w\d is damaged: its values"):
            checkpoints.restore(tmp_path, 1, numbered(0))
        flip(path, bit)


@pytest.mark.parametrize("harm", ["missing", "empty", "short", "long", "added"])
def test_a_missing_or_truncated_file_falls_back_with_a_message(tmp_path, harm):
    save(tmp_path, 1)
    for path in files_of(checkpoints.save(tmp_path, 2, numbered(2), {"step": 2})):
        data, other = path.read_bytes(), path.with_name("added")
        if harm == "missing":
            path.unlink()
        elif harm == "added":
            other.touch()
        else:
            path.write_bytes(
                {"empty": b"", "short": data[:-1], "long": data + b"\0"}[harm]
            )
        reports = []
        assert checkpoints.latest(tmp_path, numbered(0), reports.append)[0] == 1
        assert len(reports) == 1
        assert reports[0].startswith("checkpoint 000002")
        assert reports[0].endswith("; trying the previous checkpoint")
        other.unlink(missing_ok=True)
        path.write_bytes(data)
    assert checkpoints.latest(tmp_path, numbered(0), pytest.fail)[0] == 2


def test_if_all_checkpoints_are_damaged_all_are_named(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
        (tmp_path / f"{step:06d}" / manifests.NAME).unlink()
    with pytest.raises(CheckpointError) as caught:
        checkpoints.latest(tmp_path, numbered(0), lambda message: None)
    assert "000001: got no manifest.json, expected" in str(caught.value)
    assert "000002: got no manifest.json, expected" in str(caught.value)


# -- saves in the background ----------------------------------------------------------


def check_until_done(saves):
    for _ in range(1000):
        saves.check()
        time.sleep(0.01)


def test_a_failed_save_is_raised_by_the_next_check():
    messages = []

    def fail():
        saves.message("about to fail")
        raise CheckpointError("the disk is full")

    with checkpoints.BackgroundSaves(messages.append) as saves:
        saves.start(fail)
        with pytest.raises(CheckpointError, match="the disk is full"):
            check_until_done(saves)
        assert messages == ["about to fail"]
        saves.start(lambda: None)


def test_a_block_waits_for_its_last_save_and_keeps_its_own_error():
    done, messages = [], []
    with checkpoints.BackgroundSaves(messages.append) as saves:
        saves.start(lambda: (time.sleep(0.05), done.append(1)))
    assert done == [1]

    def fail():
        raise CheckpointError("the disk is full")

    def block():
        with checkpoints.BackgroundSaves(messages.append) as saves:
            saves.start(fail)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert messages == ["the disk is full"]


def test_a_snapshot_outlives_the_buffers_of_its_tree(tmp_path):
    import jax

    tree = {"w": jax.numpy.arange(4.0)}
    content = checkpoints.snapshot(tree, {})
    jax.jit(lambda w: w + 1, donate_argnums=0)(tree["w"])
    checkpoints.write(tmp_path, 1, content)
    restored, _ = checkpoints.restore(tmp_path, 1, {"w": np.zeros(4, np.float32)})
    assert restored["w"].tolist() == [0.0, 1.0, 2.0, 3.0]
