"""The table of shardings: which parameters it names, what does not divide, and what is read of a file."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.models import sharding
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.loading import with_precision
from edgesafe_jax.models.quantised import to_int8
from edgesafe_jax.parallel import Layout, make_model_mesh

SIZES = {"num_layers": 2, "embed_dim": 16, "mlp_dim": 24, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
VARIANTS = {
    "llama": {},
    "gpt2": {"norm": "layer", "gated": False, "linear_bias": True, "qkv_bias": True, "learned_positions": True},
    "gemma": {"post_norms": True, "qk_norm": "head", "tie_embeddings": False},
    "olmo": {"pre_norms": False, "post_norms": True, "qk_norm": "projection"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_matrix_of_every_family_is_split(variant):
    config = DecoderConfig(vocab_size=64, **SIZES, **VARIANTS[variant])
    mesh = make_model_mesh(Layout(fsdp=2, tensor=2))
    shape = jax.ShapeDtypeStruct((1, 2), "int32")
    params = jax.eval_shape(Decoder(config).init, jax.random.key(0), shape)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = sharding.path_name(path)
        shard = sharding.sharding_of(name, leaf.shape, mesh).shard_shape(leaf.shape)
        if len(leaf.shape) == (3 if name.startswith("layers") else 2):
            assert np.prod(shard) * 4 == leaf.size, name
        else:
            assert np.prod(shard) in (leaf.size, leaf.size // 2), name


def test_an_axis_that_does_not_divide_is_split_over_fewer_or_whole():
    mesh = make_model_mesh(Layout(fsdp=2, tensor=4))
    spec = {rows: sharding.sharding_of("embedding", (rows, 16), mesh).spec for rows in (64, 68, 50)}
    assert spec == {64: P(("tensor", "fsdp")), 68: P("tensor"), 50: P()}
    assert sharding.sharding_of("own/kernel", (16, 1), mesh).spec == P()
    assert sharding.sharding_of("opt_state/1/0/mu/up/mlp/down", (2, 3, 16), mesh).spec == P(None, None, "fsdp")
    assert sharding.sharding_of("embedding", (64,), mesh).spec == P()  # another array of that name


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        (
            Layout(tensor=8),
            {"num_heads": 8},
            "tensor=8 does not divide num_kv_heads=2 of the model: expected one of 1, 2.",
        ),
        (Layout(tensor=4), {}, "tensor=4 does not divide num_kv_heads=2 of the model: expected one of 1, 2."),
        (Layout(tensor=2), {"mlp_dim": 25}, "tensor=2 does not divide mlp_dim=25 of the model: expected one of 1."),
        (
            Layout(fsdp=4),
            {"embed_dim": 18},
            "fsdp=4 does not divide embed_dim=18 of the model: expected one of 1, 2, 3, 6",
        ),
    ],
)
def test_sizes_that_do_not_divide_are_refused(layout, changes, message):
    with pytest.raises(ConfigError, match=message):
        sharding.check_mesh(DecoderConfig(vocab_size=64, **{**SIZES, **changes}), make_model_mesh(layout))


def test_only_the_parts_of_this_process_are_read():
    mesh, read = make_model_mesh(Layout(fsdp=2, tensor=4)), []

    class File:
        shape = (2, 16, 24)

        def __getitem__(self, index):
            read.append(index)
            return np.arange(2 * 16 * 24, dtype=np.float32).reshape(self.shape)[index]

    found = sharding.put("layers/mlp/up", File(), mesh, lambda part: part * 2)
    np.testing.assert_array_equal(found, 2 * np.arange(2 * 16 * 24).reshape(2, 16, 24))
    assert len(read) == 8
    assert all(rows != slice(None) and columns != slice(None) for _, rows, columns in read)


def test_quantised_and_packed_matrices_are_split(tiny_model):
    mesh = make_model_mesh(Layout(fsdp=2, tensor=2))
    int8 = with_precision(replace(tiny_model, params=to_int8(tiny_model.params), mesh=mesh))
    up = int8.params["layers"]["mlp"]["up"]  # stored outputs first
    assert up.codes.sharding.spec == P(None, "tensor", "fsdp")
    assert up.scales.sharding.spec == P(None, "tensor")
    packed = with_precision(replace(tiny_model, mesh=mesh), matmul_dtype=jax.numpy.dtype("bfloat16"))
    assert packed.params["layers"]["mlp"]["up"].sharding.spec == P(None, "fsdp", "tensor")
    expected = with_precision(tiny_model, matmul_dtype=jax.numpy.dtype("bfloat16"))
    np.testing.assert_array_equal(packed.params["layers"]["mlp"]["up"], expected.params["layers"]["mlp"]["up"])
