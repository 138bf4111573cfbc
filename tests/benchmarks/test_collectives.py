"""What is read from the text of a compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from edgesafe_jax.benchmarks import scaling
from edgesafe_jax.benchmarks.collectives import Collective, _groups, collectives
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.parallel import Layout, make_data_mesh


def test_a_collective_in_a_loop_counts_as_often_as_the_loop_runs():
    mesh = make_data_mesh()

    def forward(x, weights):
        def layer(x, weight):
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ weight), NamedSharding(mesh, P("data"))), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0])

    shapes = [
        jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh, spec))
        for shape, spec in (((64, 32), P("data")), ((3, 32, 32), P(None, "data")))
    ]
    found = collectives(jax.jit(forward).lower(*shapes).compile().as_text(), 8)
    gathered, summed = ([each for each in found if each.kind == kind] for kind in ("all-gather", "all-reduce"))
    assert sum(each.times * each.num_bytes for each in gathered) == 3 * 32 * 32 * 4
    assert [(each.times, each.num_bytes) for each in summed] == [(1, 4)]
    assert all(sorted(each.groups.ravel()) == list(range(8)) and each.groups.shape == (1, 8) for each in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}, ", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4], ", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), ", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, ", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, ", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, ", [[0, 1, 2, 3]]),
        ("replica_groups={}, ", [[0, 1, 2, 3]]),
    ],
)
def test_groups_are_read_in_every_notation(text, expected):
    assert _groups(f"  %x = f32[4] all-reduce(%y), {text}to_apply=%sum", 4).tolist() == expected


def test_a_ring_takes_the_time_of_its_slowest_link():
    groups = np.arange(16).reshape(2, 8)
    assert Collective("all-gather", 3, 800, groups).seconds(100.0) == pytest.approx(3 * 8 * 7 / 8)
    assert Collective("all-reduce", 1, 800, groups).seconds(100.0) == pytest.approx(2 * 8 * 7 / 8)
    assert Collective("reduce-scatter", 1, 100, groups).seconds(100.0) == pytest.approx(7)
    assert not Collective("all-gather", 1, 1, groups).spans(8)
    assert Collective("all-gather", 1, 1, groups).spans(4)


def test_a_step_is_compiled_from_shapes_alone(monkeypatch):
    tiny = DecoderConfig(vocab_size=64, num_layers=2, embed_dim=16, mlp_dim=32, num_heads=4, num_kv_heads=2, head_dim=8)
    monkeypatch.setattr(scaling, "CONFIGS", {"tiny": tiny})
    monkeypatch.setattr(scaling, "PROMPT", 8)
    monkeypatch.setattr(scaling, "ANSWER", 4)
    row = scaling.measure("tiny", 8, Layout(fsdp=2))
    assert row["split"] == "data 4 x fsdp 2 x tensor 1"
    matrices = 2 * (16 * 32 * 2 + 16 * 16 * 2 + 3 * 16 * 32)  # gathered forward and backward, in float32
    assert row["all-gather GB"] * 1e9 >= 4 * (2 * matrices + 64 * 16)
    assert row["between nodes GB"] == 0
    assert 0 < row["fraction of ideal"] < 1
