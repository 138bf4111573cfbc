"""Training, generation and checkpoints of a model that is split over eight devices, against one device."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from edgesafe_jax import parallel
from edgesafe_jax.adapters import compose, init_lora
from edgesafe_jax.models.generation import generate
from edgesafe_jax.models.loading import with_precision
from edgesafe_jax.parallel import Layout
from edgesafe_jax.safety import AlignSettings
from edgesafe_jax.safety.training import make_step
from edgesafe_jax.training import CheckpointError, Checkpoints, checkpoints
from tests.safety.rows import ADAPTER

SETTINGS = AlignSettings(num_steps=3, warmup_steps=1, batch_size=8, average_from=0.4)


@pytest.fixture(scope="module")
def split_model(tiny_model):
    """Eight devices: two copies of a model, each in two parts by FSDP times two by tensor parallelism."""
    on_host = dataclasses.replace(tiny_model, params=jax.tree.map(np.asarray, tiny_model.params))
    return with_precision(dataclasses.replace(on_host, mesh=parallel.make_model_mesh(Layout(fsdp=2, tensor=2))))


def adapter_of(model):
    lora = init_lora(jax.random.key(5), model.config, rank=2, targets=("attention/query", "attention/out", "mlp/down"))
    return compose(ADAPTER, dataclasses.replace(lora, up=jax.tree.map(lambda leaf: leaf + 0.1, lora.up)))


def start(model, mesh):
    return make_step(model, SETTINGS.make_objective(), adapter_of(model), SETTINGS, mesh)


def trained(model, data, mesh):
    step, state = start(model, mesh)
    batch, losses = data.batch([*range(6), 0, 1], pad_id=0), []
    for _ in range(SETTINGS.num_steps):
        state, metrics = step(state, parallel.shard_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(scope="module")
def split_state(split_model, data):
    mesh = parallel.make_mesh(Layout(fsdp=2, tensor=2), batch_size=SETTINGS.batch_size)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    return trained(split_model, data, mesh)


def test_losses_and_adapter_are_those_of_one_device(tiny_model, data, split_state):
    expected, losses = trained(tiny_model, data, parallel.make_data_mesh(1))
    state, found = split_state
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    assert losses[-1] < losses[0]
    chex.assert_trees_all_close(state.params, expected.params, rtol=0, atol=1e-5)
    # The state is still split: the adapter as the table says, and Adam's moments as the adapter.
    moment = state.opt_state[1][0].mu
    for adapter in (state.params["adapter"], state.params["mean"], moment):
        virtual, lora = adapter.parts
        assert virtual.embeddings.sharding.spec == P(None, "fsdp")
        assert lora.down["attention/out"].sharding.spec == P(None, "tensor")
        assert lora.up["mlp/down"].sharding.spec == P(None, None, "fsdp")


def test_answers_are_those_of_one_device(tiny_model, split_model, split_state):
    assert split_model.params["layers"]["mlp"]["gate"].sharding.spec == P(None, "fsdp", "tensor")
    assert split_model.params["embedding"].sharding.spec == P(("tensor", "fsdp"))
    assert {shard.data.shape for shard in split_model.params["embedding"].addressable_shards} == {(68, 16)}
    prompts = ["hello you", "the user in 20", "a b c", "us er now", "w"]  # filled up to eight slots
    adapter = split_state[0].params["mean"]
    found = generate(split_model, prompts, max_tokens=8, adapter=adapter)
    expected = generate(tiny_model, prompts, max_tokens=8, adapter=jax.tree.map(np.asarray, adapter))
    assert found.tokens == expected.tokens
    assert any(found.tokens)


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_a_checkpoint_of_eight_devices_is_restored_on_fewer(split_model, split_state, tmp_path, num_devices):
    state, _ = split_state
    with Checkpoints(tmp_path) as kept:
        kept.save(3, state)
    layout = {1: Layout(), 2: Layout(tensor=2), 8: Layout(fsdp=4)}[num_devices]
    mesh = parallel.make_mesh(layout, batch_size={1: 1, 2: 1, 8: 8}[num_devices])
    assert mesh.size == num_devices
    like = parallel.distribute(jax.tree.map(lambda leaf: jax.device_put(leaf, jax.devices()[0]), state), mesh)
    step, restored = Checkpoints(tmp_path).restore_latest(like)
    assert step == 3
    chex.assert_trees_all_equal(restored, state)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == jax.tree.map(lambda leaf: leaf.sharding, like)


def test_a_checkpoint_without_room_is_named(split_state, tmp_path, monkeypatch):
    state, _ = split_state
    Checkpoints(tmp_path).save(3, state)

    def full(array, sharding):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr(checkpoints, "place", full)
    with pytest.raises(
        CheckpointError, match=r"no room on the devices for the rest of it, from leaf '.*' of \d+ bytes"
    ):
        Checkpoints(tmp_path).restore_latest(state)
