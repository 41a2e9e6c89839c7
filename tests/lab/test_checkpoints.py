"""A checkpoint is restored bit by bit, or refused with a message that says why."""

import asyncio
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from jaxlstm.lab import checkpoints
from jaxlstm.lab._util.errors import BadInput
from jaxlstm.lab.checkpoints import CheckpointError, DamagedCheckpoint
from jaxlstm.lab.checkpoints import arrays as arrays_
from jaxlstm.lab.checkpoints import manifest as manifests

DTYPES = [
    *(np.dtype(c) for c in "?bBhHiIlLefdF"),
    *(np.dtype(t) for t in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn)),
]


def small_tree(fill: float = 1.0) -> dict:
    return {
        "params": [
            {
                "w_h": fill + np.arange(36, dtype="f").reshape(3, 4, 3),
                "b": np.zeros((4, 3)),
            }
        ],
        "key": jax.random.key(7),
        "step": np.asarray(16777217, np.int32),
    }


def same_bits(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        x.dtype == y.dtype and x.shape == y.shape and raw(x) == raw(y) for x, y in pairs
    )


def raw(x) -> bytes:
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x).tobytes()


def forge(directory: Path, change) -> None:
    """Change a manifest and update its hash, as an attacker would."""
    path = directory / manifests.NAME
    body = json.loads(path.read_text())
    del body["sha256"]
    change(body)
    digest = manifests.digest(body)
    path.write_text(manifests.render(body | {"sha256": digest}))


# Restoring


@st.composite
def arrays(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    count = int(np.prod(shape)) * dtype.itemsize
    data = draw(st.binary(min_size=count, max_size=count))
    if dtype == np.bool_:
        data = bytes(byte % 2 for byte in data)
    return np.frombuffer(data, dtype).reshape(shape)


keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(
    lambda text: text.replace("/", "|")
)
trees = st.recursive(
    arrays(),
    lambda inner: (
        st.dictionaries(keys, inner, max_size=3) | st.lists(inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(trees, st.integers(0, 10**9))
def test_any_tree_is_restored_bit_by_bit(tmp_path, tree, step):
    shutil.rmtree(tmp_path)
    checkpoints.save(tmp_path, step, tree, {})
    restored, _ = checkpoints.restore(tmp_path, step, tree)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    assert same_bits(restored, tree)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored))


def test_dtypes_keys_and_byte_orders_are_preserved(tmp_path, x64):
    tree = {
        "bf16": jnp.asarray([1.0, jnp.nan, -0.0], jnp.bfloat16),
        "above 2**24": jnp.asarray(16777217, jnp.int32),
        "f64": jnp.asarray(1 / 3),
        "empty": jnp.zeros((0, 3)),
        "minus zero": jnp.full(4, -0.0),
        "threefry": jax.random.key(3),
        "rbg": jax.random.split(jax.random.key(3, impl="rbg"), (2, 3)),
        "raw key": jax.random.PRNGKey(0),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big-endian": np.arange(3, dtype=">i4"),
    }
    checkpoints.save(tmp_path, 1, tree, {})
    restored, _ = checkpoints.restore(tmp_path, 1, tree)
    big = tree.pop("big-endian")
    np.testing.assert_array_equal(restored.pop("big-endian"), big)
    assert same_bits(restored, tree)
    assert jax.random.key_impl(restored["rbg"]) == jax.random.key_impl(tree["rbg"])


def test_leaves_are_placed_like_the_given_tree(tmp_path):
    mesh = jax.make_mesh((8,), ("data",))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    tree = {"split": jnp.arange(16.0), "free": jnp.ones(2), "host": np.ones(2)}
    checkpoints.save(tmp_path, 1, tree, {})
    like = tree | {"split": jax.device_put(tree["split"], rows)}
    restored, _ = checkpoints.restore(tmp_path, 1, like)
    assert restored["split"].sharding == rows
    assert not restored["free"].committed
    assert isinstance(restored["host"], np.ndarray)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    with pytest.raises(BadInput, match="host: got float64, which JAX converts"):
        checkpoints.restore(tmp_path, 1, abstract)
    with jax.enable_x64(True):
        assert same_bits(checkpoints.restore(tmp_path, 1, abstract)[0], tree)


def test_a_restored_array_can_be_donated(tmp_path):
    tree = {"x": jnp.arange(1000.0)}
    checkpoints.save(tmp_path, 1, tree, {})
    restored, _ = checkpoints.restore(tmp_path, 1, tree)
    twice = jax.jit(lambda x: x * 2, donate_argnums=0)(restored["x"])
    assert restored["x"].is_deleted()
    np.testing.assert_array_equal(twice, tree["x"] * 2)


def test_meta_is_restored_and_must_be_json(tmp_path):
    meta = {"config": {"seed": 0, "name": "ü\n"}, "best": None, "loss": 1 / 3}
    checkpoints.save(tmp_path, 1, small_tree(), meta)
    assert checkpoints.read_meta(tmp_path, 1) == meta
    for bad in [{"x": np.ones(2)}, {"x": float("nan")}]:
        with pytest.raises(TypeError, match="meta: cannot be written as JSON"):
            checkpoints.save(tmp_path, 2, small_tree(), bad)


def test_saving_works_inside_a_running_event_loop(tmp_path):
    async def cell():
        checkpoints.save(tmp_path, 1, small_tree(), {})
        return checkpoints.restore(tmp_path, 1, small_tree())[0]

    assert same_bits(asyncio.run(cell()), small_tree())


@pytest.mark.parametrize("name", ["with space", "line\nbreak", "ünïcödé", "x" * 200])
def test_unusual_directory_names_work(tmp_path, name):
    checkpoints.save(tmp_path / name, 1, small_tree(), {})
    (tmp_path / name).rename(tmp_path / "moved")
    assert same_bits(
        checkpoints.restore(tmp_path / "moved", 1, small_tree())[0], small_tree()
    )


def test_a_copied_directory_can_be_restored(tmp_path):
    checkpoints.save(tmp_path / "a", 1, small_tree(), {})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert checkpoints.latest(tmp_path / "b", small_tree(), pytest.fail)


def by_name(path: str) -> str:
    """Map the positional paths of `small_tree` to named ones."""
    return path.replace("params/0/", "params/rnn/")


def named_tree(fill: float = 1.0) -> dict:
    """Return `small_tree` with named instead of positional parameters."""
    tree = small_tree(fill)
    return tree | {"params": {"rnn": tree["params"][0]}}


def test_stored_leaves_can_be_renamed(tmp_path):
    for step in (1, 2):
        checkpoints.save(tmp_path, step, small_tree(step), {"step": step})
    restored, meta = checkpoints.restore(tmp_path, 1, named_tree(), rename=by_name)
    assert meta == {"step": 1}
    assert jax.tree.structure(restored) == jax.tree.structure(named_tree())
    assert same_bits(restored, named_tree(1))
    found = checkpoints.latest(tmp_path, named_tree(), pytest.fail, rename=by_name)
    assert found[0] == 2
    assert same_bits(found[1], named_tree(2))
    with pytest.raises(CheckpointError, match="params/rnn/w_h: got no such leaf"):
        checkpoints.restore(tmp_path, 1, named_tree())


def test_empty_leaves_and_keys_can_be_renamed(tmp_path):
    old = {"0": np.zeros((0, 2)), "1": jax.random.key(3)}
    new = {"empty": np.ones((0, 2)), "key": jax.random.key(0)}
    names = {"0": "empty", "1": "key"}
    checkpoints.save(tmp_path, 1, old, {})
    restored, _ = checkpoints.restore(tmp_path, 1, new, rename=names.__getitem__)
    assert same_bits(restored["empty"], old["0"])
    assert same_bits(restored["key"], old["1"])


def test_differences_are_named_by_the_new_path_and_damage_by_the_stored_one(tmp_path):
    directory = checkpoints.save(tmp_path, 1, small_tree(), {})
    like = named_tree()
    like["params"]["rnn"]["b"] = np.zeros((2, 3))
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(tmp_path, 1, like, rename=by_name)
    assert str(caught.value) == (
        "checkpoint 000001: params/rnn/b: got [4, 3], expected [2, 3] in this config"
    )
    path = directory / arrays_.NAME
    values = small_tree()["params"][0]["w_h"].tobytes()
    path.write_bytes(path.read_bytes().replace(values, values[::-1]))
    with pytest.raises(DamagedCheckpoint, match=r"params/0/w_h is damaged"):
        checkpoints.restore(tmp_path, 1, named_tree(), rename=by_name)


def test_two_leaves_cannot_be_renamed_to_the_same_path(tmp_path):
    checkpoints.save(tmp_path, 1, {"a": np.ones(2), "b": np.ones(2)}, {})
    with pytest.raises(BadInput, match="rename: got the same path 'w' for 'a' and 'b'"):
        checkpoints.restore(tmp_path, 1, {"w": np.ones(2)}, rename=lambda path: "w")


# Refusing


@pytest.mark.parametrize(
    "tree", [{"a": 1.0}, {"a": np.asarray("text")}, {"a": np.asarray([{}])}, {"a": abs}]
)
def test_only_numeric_arrays_can_be_saved(tmp_path, tree):
    with pytest.raises(TypeError, match=r"^a: got .*expected an array of numbers"):
        checkpoints.save(tmp_path, 1, tree, {})
    assert checkpoints.steps(tmp_path) == []


def test_two_leaves_with_the_same_path_are_refused(tmp_path):
    x = np.ones(1)
    with pytest.raises(ValueError, match="two leaves with the same path"):
        checkpoints.save(tmp_path, 1, {"a/b": x, "a": {"b": x}}, {})


def test_every_difference_between_trees_is_named(tmp_path):
    checkpoints.save(tmp_path, 500, small_tree(), {})
    like = small_tree()
    like["params"][0]["w_h"] = np.ones((2, 4, 2), np.float32)
    like["params"].append(np.ones(1, np.float32))
    like["step"] = np.ones((), np.float32)
    like["key"] = jax.random.key(0, impl="rbg")
    del like["params"][0]["b"]
    with pytest.raises(CheckpointError) as caught:
        checkpoints.restore(tmp_path, 500, like)
    assert sorted(str(caught.value).splitlines()) == [
        "checkpoint 000500: key: got key<fry>, expected key<rbg> in this config",
        "checkpoint 000500: params/0/b: got float64 [4, 3], expected no such leaf in "
        "this config",
        "checkpoint 000500: params/0/w_h: got [3, 4, 3], expected [2, 4, 2] in this "
        "config",
        "checkpoint 000500: params/1: got no such leaf, expected float32 [1] in this "
        "config",
        "checkpoint 000500: step: got int32, expected float32 in this config",
    ]
    with pytest.raises(CheckpointError, match="w_h"):
        checkpoints.latest(tmp_path, like, pytest.fail)


def test_a_newer_format_names_the_version_it_needs(tmp_path):
    checkpoints.save(tmp_path, 1, small_tree(), {})
    newest = checkpoints.save(tmp_path, 2, small_tree(), {})
    forge(newest, lambda b: b.update(format_version=3, needs="3.1", odd=[1]))
    with pytest.raises(
        CheckpointError, match=r"000002: got format 3.*needs jaxlstm >= 3\.1"
    ) as e:
        checkpoints.latest(tmp_path, small_tree(), pytest.fail)
    assert not isinstance(e.value, DamagedCheckpoint)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.update(format_version="1"),
        lambda b: b.update(step=3),
        lambda b: b.pop("leaves"),
        lambda b: b["leaves"][0].update(shape=[10**12]),
        lambda b: b["leaves"][0].update(dtype="key<none>"),
        lambda b: b["files"].update({"../../etc/passwd": b["files"].popitem()[1]}),
        lambda b: b.update(extra=1),
    ],
)
def test_a_forged_manifest_is_refused(tmp_path, change):
    directory = checkpoints.save(tmp_path, 1, small_tree(), {})
    forge(directory, change)
    with pytest.raises(CheckpointError, match="checkpoint 000001"):
        checkpoints.restore(tmp_path, 1, small_tree())


def forge_arrays(directory: Path, data: bytes) -> None:
    """Replace the arrays of a checkpoint, as an attacker would."""
    path = directory / arrays_.NAME
    path.write_bytes(data)
    listed = {"size": len(data), "sha256": manifests.hash_file(path)}
    forge(directory, lambda body: body["files"].update({path.name: listed}))


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["step"].update(shape=[10**12]),
        lambda h: h["step"].update(shape=[3, 4, 3]),
        lambda h: h["step"].update(dtype="F32"),
        lambda h: h["step"].update(dtype="BF16"),
        lambda h: h["step"].update(dtype="O"),
        lambda h: h["step"].update(data_offsets=[0, 4]),
        lambda h: h["step"].update(data_offsets=[0, 1 << 60]),
        lambda h: h.update(more=h["step"]),
        lambda h: h.pop("step"),
    ],
)
def test_a_forged_array_header_is_refused(tmp_path, change):
    directory = checkpoints.save(tmp_path, 1, small_tree(), {})
    data = (directory / arrays_.NAME).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header)
    text = json.dumps(header).encode()
    forge_arrays(directory, len(text).to_bytes(8, "little") + text + data[end:])
    with pytest.raises(DamagedCheckpoint, match=r"000001 .*arrays\.safetensors"):
        checkpoints.restore(tmp_path, 1, small_tree())


@pytest.mark.parametrize("data", [b"", b"\x80\x04.", b"\xff" * 64, b"PK\x03\x04" * 9])
def test_other_files_in_place_of_the_arrays_are_refused(tmp_path, data):
    directory = checkpoints.save(tmp_path, 1, small_tree(), {})
    forge_arrays(directory, data)
    with pytest.raises(DamagedCheckpoint, match=r"arrays\.safetensors"):
        checkpoints.restore(tmp_path, 1, small_tree())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{}", '{"sha256": 1}', "[" * 10**5, "9" * 10**5, "\ud800"],
)
def test_a_manifest_with_other_content_is_refused(tmp_path, text):
    directory = checkpoints.save(tmp_path, 1, small_tree(), {})
    (directory / manifests.NAME).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DamagedCheckpoint, match=r"000001: manifest\.json has changed"):
        checkpoints.restore(tmp_path, 1, small_tree())


def test_a_huge_manifest_is_not_read(tmp_path):
    directory = checkpoints.save(tmp_path, 1, small_tree(), {})
    os.truncate(directory / manifests.NAME, 1 << 40)
    with pytest.raises(DamagedCheckpoint, match="at most 64 MiB"):
        checkpoints.restore(tmp_path, 1, small_tree())


def test_what_is_read_back_differently_is_a_failed_save(tmp_path, monkeypatch):
    """A disk that flips a bit is found before the checkpoint gets its name."""
    checkpoints.save(tmp_path, 1, small_tree(1), {})
    write = arrays_.write

    def flipping(directory, arrays):
        write(directory, arrays)
        (path,) = directory.iterdir()
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))

    monkeypatch.setattr(arrays_, "write", flipping)
    for step in (1, 2):
        with pytest.raises(CheckpointError, match=r"read back and differs .* damaged"):
            checkpoints.save(tmp_path, step, small_tree(2), {})
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]
    assert same_bits(checkpoints.restore(tmp_path, 1, small_tree())[0], small_tree(1))


def test_meta_may_hold_paths_that_are_not_utf_8(tmp_path):
    meta = {"paths": [os.fsdecode(b"/data/\xff\xfe.txt")]}
    checkpoints.save(tmp_path, 1, small_tree(), meta)
    assert checkpoints.restore(tmp_path, 1, small_tree())[1] == meta
    assert checkpoints.read_meta(tmp_path, 1) == meta


def test_other_programs_read_the_arrays_by_their_paths(tmp_path):
    from safetensors.numpy import load_file

    tree = small_tree()
    found = load_file(checkpoints.save(tmp_path, 1, tree, {}) / arrays_.NAME)
    assert set(found) == {"params/0/w_h", "params/0/b", "key", "step"}
    np.testing.assert_array_equal(found["params/0/w_h"], tree["params"][0]["w_h"])
    assert found["params/0/b"].dtype == np.float64


def as_format_1(directory: Path, tree: dict[str, np.ndarray]) -> None:
    """Rewrite a checkpoint as earlier versions wrote it: with Orbax, as Zarr arrays."""
    from orbax.checkpoint import PyTreeCheckpointHandler
    from orbax.checkpoint.args import PyTreeSave

    (directory / arrays_.NAME).unlink()
    full = {name: leaf for name, leaf in tree.items() if leaf.size}
    names = {f"{i:04d}.{name}": leaf for i, (name, leaf) in enumerate(full.items())}
    handler = PyTreeCheckpointHandler(
        use_ocdbt=False, use_zarr3=False, use_compression=False
    )
    handler.save((directory / "arrays").resolve(), args=PyTreeSave(names))
    handler.close()
    rehash(directory)


def rehash(directory: Path) -> None:
    """Update what a manifest records of the files."""
    files = {
        name: {"size": size, "sha256": manifests.hash_file(directory / name)}
        for name, size in manifests.list_files(directory).items()
    }
    forge(directory, lambda body: body.update(files=files, format_version=1))


OLD = {
    "half": np.arange(3).astype(ml_dtypes.bfloat16),
    "matrix": np.arange(6, dtype="f").reshape(2, 3),
    "scalar": np.asarray(7),
    "without elements": np.zeros((0, 2)),
}


def test_checkpoints_of_format_1_are_read(tmp_path):
    directory = checkpoints.save(tmp_path, 1, OLD, {})
    as_format_1(directory, OLD)
    assert same_bits(checkpoints.restore(tmp_path, 1, OLD)[0], OLD)
    (chunk,) = directory.glob("arrays/*matrix/0*")
    chunk.write_bytes(chunk.read_bytes()[::-1])
    with pytest.raises(DamagedCheckpoint, match="matrix is damaged"):
        checkpoints.restore(tmp_path, 1, OLD)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**12], "chunks": [10**12]},
        {"shape": [2, 3], "chunks": [10**6, 1]},
        {"compressor": {"id": "zstd", "level": 1}},
        {"filters": [{"id": "pickle"}]},
        {"dtype": "|O"},
        {"order": "F"},
    ],
)
def test_a_forged_header_of_format_1_is_refused(tmp_path, change):
    directory = checkpoints.save(tmp_path, 1, OLD, {})
    as_format_1(directory, OLD)
    (header,) = directory.glob("arrays/*matrix/.zarray")
    header.write_text(json.dumps(json.loads(header.read_text()) | change))
    rehash(directory)
    with pytest.raises(DamagedCheckpoint, match="000001 is damaged: matrix"):
        checkpoints.restore(tmp_path, 1, OLD)


def test_links_are_not_followed(tmp_path):
    root = tmp_path / "checkpoints"
    directory = checkpoints.save(root, 1, small_tree(), {})
    outside = tmp_path / "outside"
    shutil.copytree(directory, outside)
    (root / "000002").symlink_to(outside)
    assert checkpoints.steps(root) == [1]
    moved = directory / arrays_.NAME
    moved.unlink()
    moved.symlink_to(outside / moved.name)
    with pytest.raises(
        DamagedCheckpoint, match="safetensors: got a link or a device, expected"
    ):
        checkpoints.restore(root, 1, small_tree())
    checkpoints.save(root, 3, small_tree(), {})
    checkpoints.prune(root, 1)
    assert (outside / arrays_.NAME).is_file()


# Listing and pruning


def test_only_directories_named_by_a_number_are_checkpoints(tmp_path):
    for step in (1000000, 9, 100, 10):
        checkpoints.save(tmp_path, step, small_tree(), {})
    for name in ("1", "000x10", ".000011.abc.tmp", "٠٠٠٠٠١"):
        (tmp_path / name).mkdir()
    (tmp_path / "000012").touch()
    assert checkpoints.steps(tmp_path) == [9, 10, 100, 1000000]
    with pytest.raises(ValueError, match="step: got -1"):
        checkpoints.save(tmp_path, -1, small_tree(), {})
    assert checkpoints.steps(tmp_path / "nowhere") == []
    assert checkpoints.latest(tmp_path / "nowhere", small_tree(), pytest.fail) is None


def test_the_newest_checkpoint_has_the_largest_step(tmp_path):
    for step in (1, 2):
        checkpoints.save(tmp_path, step, small_tree(step), {"step": step})
    os.utime(tmp_path / "000001", (2**31, 2**31))
    step, tree, meta = checkpoints.latest(tmp_path, small_tree(), pytest.fail)
    assert (step, meta) == (2, {"step": 2})
    assert same_bits(tree, small_tree(2))


def test_a_missing_step_lists_the_existing_ones(tmp_path):
    checkpoints.save(tmp_path, 5, small_tree(), {})
    with pytest.raises(
        CheckpointError, match="got step 6, expected the step of a checkpoint: 5"
    ):
        checkpoints.restore(tmp_path, 6, small_tree())


def test_pruning_keeps_the_newest_the_best_and_the_protected(tmp_path):
    for step in range(1, 8):
        best = None if step < 5 else 2
        checkpoints.save(tmp_path, step, small_tree(), {"best": best})
    assert checkpoints.prune(tmp_path, 2, protect={3}) == [1, 4, 5]
    assert checkpoints.steps(tmp_path) == [2, 3, 6, 7]
    assert checkpoints.best(tmp_path) == 2
    with pytest.raises(ValueError, match="at least 1"):
        checkpoints.prune(tmp_path, 0)


def test_pruning_keeps_the_last_intact_checkpoint(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoints.save(tmp_path, step, small_tree(), {})
    os.truncate(tmp_path / "000004" / arrays_.NAME, 3)
    (tmp_path / "000003" / manifests.NAME).unlink()
    checkpoints.prune(tmp_path, 1)
    assert checkpoints.steps(tmp_path) == [2, 3, 4]
    reports = []
    assert checkpoints.latest(tmp_path, small_tree(), reports.append)[0] == 2
    assert "000004 is damaged: arrays.safetensors: got 3 bytes" in reports[0]
    assert "000003: got no manifest.json, expected a complete" in reports[1]


def test_the_best_step_is_recorded_in_the_newest_checkpoint(tmp_path):
    assert checkpoints.best(tmp_path) is None
    checkpoints.save(tmp_path, 1, small_tree(), {"best": None})
    assert checkpoints.best(tmp_path) is None
    checkpoints.save(tmp_path, 2, small_tree(), {"ledger": {"best_step": 1}})
    assert checkpoints.best(tmp_path) == 1
    newest = checkpoints.save(tmp_path, 3, small_tree(), {"best": 2})
    assert checkpoints.best(tmp_path) == 2
    (newest / manifests.NAME).unlink()
    assert checkpoints.best(tmp_path) == 1
    shutil.rmtree(tmp_path / "000001")
    assert checkpoints.best(tmp_path) is None


def test_the_link_best_is_never_read_as_a_fact(tmp_path):
    checkpoints.save(tmp_path, 1, small_tree(), {"best": 1})
    for target in ("../outside", "/etc", "000002"):
        (tmp_path / "best").unlink(missing_ok=True)
        (tmp_path / "best").symlink_to(target)
        assert checkpoints.best(tmp_path) == 1
        assert checkpoints.linked_best(tmp_path) == target
    checkpoints.link_best(tmp_path, 1)
    assert checkpoints.linked_best(tmp_path) == "000001"
    checkpoints.link_best(tmp_path, None)
    assert checkpoints.linked_best(tmp_path) is None


def test_a_copy_of_the_best_checkpoint_gives_way_to_the_link(tmp_path):
    """`cp -rL`, `shutil.copytree` and zip copy the directory in place of the link."""
    checkpoints.save(tmp_path / "a", 1, small_tree(), {"best": 1})
    checkpoints.link_best(tmp_path / "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b/best").is_symlink()
    assert checkpoints.best(tmp_path / "b") == 1
    assert checkpoints.steps(tmp_path / "b") == [1]
    checkpoints.link_best(tmp_path / "b", 1)
    assert checkpoints.linked_best(tmp_path / "b") == "000001"
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [
        "000001",
        "best",
    ]


def test_a_directory_named_best_that_is_no_checkpoint_is_kept(tmp_path):
    checkpoints.save(tmp_path, 1, small_tree(), {"best": 1})
    (tmp_path / "best").mkdir()
    (tmp_path / "best/notes.txt").touch()
    with pytest.raises(CheckpointError, match="best: cannot be written"):
        checkpoints.link_best(tmp_path, 1)
    assert (tmp_path / "best/notes.txt").exists()
    assert list(tmp_path.glob(".*")) == []


def test_a_checkpoint_can_be_replaced(tmp_path):
    checkpoints.save(tmp_path, 1, small_tree(1), {})
    checkpoints.save(tmp_path, 1, small_tree(2), {})
    assert same_bits(checkpoints.restore(tmp_path, 1, small_tree())[0], small_tree(2))
    assert list(tmp_path.iterdir()) == [tmp_path / "000001"]


def test_missing_disk_space_is_found_before_the_first_step(tmp_path):
    checkpoints.require_room(tmp_path, small_tree(), copies=3)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match="no room for 1000000000000 checkpoints"):
        checkpoints.require_room(tmp_path, small_tree(), copies=10**12)


def test_a_path_with_parent_directories_is_accepted(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tree = {"w": np.arange(3.0)}
    for root in (Path("../run"), tmp_path / "here" / ".." / "run"):
        checkpoints.save(root, 5, tree, {})
        found, _ = checkpoints.restore(root, 5, tree)
        np.testing.assert_array_equal(found["w"], tree["w"])
