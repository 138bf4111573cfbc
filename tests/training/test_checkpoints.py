import errno
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from edgesafe_jax.errors import StorageError
from edgesafe_jax.training import CheckpointError, Checkpoints


@struct.dataclass
class Adapter:
    embeddings: jax.Array
    name: str = struct.field(pytree_node=False, default="prompt")


def make_state(scale: float = 1.0) -> dict:
    params = Adapter(jnp.linspace(-scale, scale, 12).reshape(4, 3))
    return {
        "params": params,
        "opt_state": optax.adamw(1e-3).init(params),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
        "low": jnp.arange(5, dtype=jnp.bfloat16) / 3,
        "odd": jnp.array([jnp.nan, -jnp.inf, -0.0], jnp.float32),
        "order": np.random.default_rng(0).permutation(7),
        "wide": np.array([0.1, 1e300]),
        "empty": np.zeros((0, 3)),
        "scalar": np.float32(0.1),
        "step": 2**40,
        "rate": 0.1,
        "best": -float("inf"),
        "done": True,
        "nothing": None,
    }


def raw(leaf) -> bytes:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


@pytest.fixture
def saved(tmp_path):
    """Three checkpoints, of steps 10, 20 and 30."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, {"w": jnp.full(50, float(step))})
    return Checkpoints(tmp_path / "checkpoints")


LIKE = {"w": jnp.zeros(50)}


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    state = make_state()
    blank = make_state(scale=2.0) | {"key": jax.random.key(9), "step": 0, "rate": 0.0, "order": np.zeros(7, int)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state)
        step, restored = checkpoints.restore_latest(blank)
    assert step == 5
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for new, old in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert type(new) is type(old)
        assert getattr(new, "dtype", None) == getattr(old, "dtype", None)
        assert np.shape(new) == np.shape(old)
        assert raw(new) == raw(old)
    assert jax.random.bits(restored["keys"][1]) == jax.random.bits(state["keys"][1])


def test_leaves_return_to_the_devices_of_like(tmp_path):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.arange(4.0), "key": jax.random.key(1)})
        like = {"w": jnp.zeros(4), "key": jax.random.key(0)}
        _, restored = checkpoints.restore_latest(jax.device_put(like, sharding))
        assert restored["w"].sharding == sharding
        assert restored["key"].sharding == sharding
        _, restored = checkpoints.restore_latest(like)
        assert not restored["w"].committed


def test_no_checkpoint_is_none_and_reading_makes_no_files(tmp_path):
    assert Checkpoints(tmp_path / "none").restore_latest({}) is None
    (tmp_path / "empty").mkdir()
    assert Checkpoints(tmp_path / "empty").restore_latest({}) is None
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_keeps_the_newest_and_leaves_a_saved_step_alone(tmp_path):
    with Checkpoints(tmp_path, keep=2, save_interval=3) as checkpoints:
        assert [step for step in range(1, 8) if checkpoints.should_save(step)] == [3, 6]
        for step in (3, 6, 9):
            checkpoints.save(step, {"w": jnp.float32(step)})
        checkpoints.save(9, {"w": jnp.float32(0)})
        assert checkpoints.steps() == [6, 9]
        assert checkpoints.restore_latest({"w": jnp.float32(0)})[1]["w"] == 9
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="save_interval=0"):
        Checkpoints(tmp_path, save_interval=0)


def damage_empty(path):
    shutil.rmtree(path)
    path.mkdir()


def damage_no_arrays(path):
    shutil.rmtree(path / "arrays")


def damage_no_manifest(path):
    shutil.rmtree(path / "manifest")


def damage_truncated_manifest(path):
    file = path / "manifest" / "metadata"
    file.write_text(file.read_text()[:20])


def damage_truncated_arrays(path):
    for file in (path / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_silent(path):
    file = path / "manifest" / "metadata"
    manifest = json.loads(file.read_text())
    manifest["w"]["sha256"] = "0" * 64
    file.write_text(json.dumps(manifest))


DAMAGES = [
    damage_empty,
    damage_no_arrays,
    damage_no_manifest,
    damage_truncated_manifest,
    damage_truncated_arrays,
    damage_silent,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_last_good_checkpoint_is_used_and_said(saved, caplog, damage):
    damage(saved.directory / "30")
    before = sorted(saved.directory.rglob("*"))
    with caplog.at_level(logging.WARNING):
        step, state = saved.restore_latest(LIKE)
    assert step == 20
    assert state["w"][0] == 20
    [message] = [record.getMessage() for record in caplog.records if record.name.startswith("edgesafe_jax")]
    assert str(saved.directory / "30") in message
    assert "damaged" in message
    assert message.endswith(f"using the last good one, {saved.directory / '20'}")
    assert sorted(saved.directory.rglob("*")) == before
    # The run that continues reaches step 30 again.
    saved.save(30, {"w": jnp.full(50, 31.0)})
    assert saved.restore_latest(LIKE)[1]["w"][0] == 31
    assert (saved.directory / "damaged-30").is_dir()
    assert saved.steps() == [10, 20, 30]
    saved.close()


@pytest.mark.parametrize("damaged", ["manifest.ocdbt", "d/*"])
def test_a_damaged_checkpoint_is_one_warning_and_nothing_else(saved, caplog, capfd, damaged):
    [file] = (saved.directory / "30" / "arrays").glob(damaged)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert saved.restore_latest({"w": jnp.zeros(50)})[0] == 20
    assert len(caplog.records) == 1
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""


def test_no_permission_to_read_is_not_damage(saved, monkeypatch):
    def refuse(self, step):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Checkpoints, "_read", refuse)
    with pytest.raises(StorageError, match=r"checkpoints/30: permission denied"):
        saved.restore_latest(LIKE)


def test_swapped_arrays_do_not_pass_for_the_right_ones(saved, caplog):
    shutil.rmtree(saved.directory / "30" / "arrays")
    shutil.copytree(saved.directory / "20" / "arrays", saved.directory / "30" / "arrays")
    assert saved.restore_latest(LIKE)[0] == 20
    assert "the bytes of w do not have the digest" in caplog.text


def test_what_a_killed_save_left_is_no_checkpoint(saved):
    (saved.directory / "30").rename(saved.directory / "30.orbax-checkpoint-tmp")
    assert saved.restore_latest(LIKE)[0] == 20
    saved.save(30, {"w": jnp.full(50, 32.0)})
    saved.close()
    assert saved.restore_latest(LIKE)[1]["w"][0] == 32
    assert sorted(path.name for path in saved.directory.iterdir()) == ["10", "20", "30"]


def test_a_directory_that_vanished_is_not_begun_anew(saved):
    saved.save(40, {"w": jnp.full(50, 40.0)})
    saved.directory.rename(saved.directory.with_name("elsewhere"))
    with pytest.raises(CheckpointError, match=r"checkpoints was moved or deleted.*new place"):
        saved.save(50, {"w": jnp.full(50, 50.0)})
    assert not saved.directory.exists()
    saved.close()


def test_no_good_checkpoint_says_what_to_delete(saved):
    for step in (10, 20, 30):
        damage_silent(saved.directory / str(step))
    with pytest.raises(CheckpointError, match=r"none of the checkpoints in .*/checkpoints can be read .*Delete that"):
        saved.restore_latest(LIKE)
    assert saved.steps() == [10, 20, 30]


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": jnp.zeros(51)}, r"leaf 'w' is jax float32\[50\], expected jax float32\[51\]"),
        ({"w": jnp.zeros(50, jnp.bfloat16)}, r"leaf 'w' is jax float32\[50\], expected jax bfloat16\[50\]"),
        ({"w": np.zeros(50, np.float32)}, r"leaf 'w' is jax .*, expected numpy"),
        ({"w": jnp.zeros(50), "b": {"c": 1}}, r"no leaf 'b/c' \(1 missing\)"),
        ({}, r"unexpected leaf 'w'"),
    ],
)
def test_another_structure_is_an_error_that_names_the_leaf(saved, like, message):
    with pytest.raises(CheckpointError, match=message + r".*use another work directory"):
        saved.restore_latest(like)


def test_another_random_key_implementation_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"key": jax.random.key(0)})
        with pytest.raises(CheckpointError, match=r"'key' is random key threefry2x32 .*, expected random key rbg"):
            checkpoints.restore_latest({"key": jax.random.key(0, impl="rbg")})


@pytest.mark.parametrize("leaf", ["text", 2**80, np.array(["a"]), np.array([None]), 1j])
def test_a_leaf_that_cannot_be_saved_is_named(tmp_path, leaf):
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(TypeError, match="leaf 'a/0' of the state"):
        checkpoints.save(1, {"a": [leaf]})
    assert not (tmp_path / "c").exists()


def test_two_leaves_of_one_name_are_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=r"two leaves .* name 'a/b'"):
        checkpoints.save(1, {"a/b": 1, "a": {"b": 2}})
