"""Tiny base models on the disk, as a Hugging Face directory and as a GGUF file, and adapters for them."""

import dataclasses

import jax
import numpy as np
import pytest

from edgesafe_jax.adapters import make_adapter
from edgesafe_jax.exporting.gguf_base import GgufBase, QuantType, copy_gguf, stored_as
from edgesafe_jax.models.loading import load_model
from tests.models.test_loading import CONFIG, hf_tensors, write_directory, write_gguf
from tests.tiny import random_params

SIZES = dataclasses.replace(CONFIG, embed_dim=32, mlp_dim=64, max_context=512)


@pytest.fixture(scope="session")
def disk(tmp_path_factory):
    """The folder of the tiny base models; conversions are cached there too."""
    folder = tmp_path_factory.mktemp("bases")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESAFE_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="session")
def hf_model(disk):
    """A base model in a Hugging Face directory."""
    return load_model(str(write_directory(disk / "hf", SIZES, hf_tensors(SIZES, random_params(SIZES)))))


@pytest.fixture(scope="session")
def gguf_model(disk):
    """A base model in a GGUF file whose embedding table is Q8_0 and whose other matrices are Q4_1."""
    plain = write_gguf(disk / "plain.gguf", SIZES, hf_tensors(SIZES, random_params(SIZES)))
    base = GgufBase(plain, SIZES)
    quantised = {
        name: stored_as(tensor.data, QuantType.Q8_0 if name == "token_embd.weight" else QuantType.Q4_1)
        for name, tensor in base.tensors.items()
        if tensor.data.ndim == 2
    }
    copy_gguf(base, disk / "quantised.gguf", tensors=quantised)
    return load_model(str(disk / "quantised.gguf"))


@pytest.fixture(scope="session")
def soft_prompt(hf_model):
    """A soft prompt of six vectors."""
    return make_adapter(jax.random.key(0), "soft_prompt", hf_model, init="random", num_virtual=6)


@pytest.fixture(scope="session")
def lora(hf_model):
    """A LoRA of the upper layer whose B is not zero."""
    targets = ("attention/query", "attention/key", "mlp/down")
    start = make_adapter(jax.random.key(1), "lora", hf_model, rank=3, alpha=2.0, targets=targets, first_layer=1)
    rng = np.random.default_rng(0)
    up = {name: jax.numpy.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)) for name, leaf in start.up.items()}
    return start.replace(up=up)


@pytest.fixture(scope="session")
def prefix(hf_model):
    """A prefix of six positions."""
    return make_adapter(jax.random.key(2), "prefix", hf_model, init="random", num_virtual=6)


@pytest.fixture(scope="session")
def steering(hf_model):
    """A vector of the upper layer."""
    start = make_adapter(jax.random.key(3), "steering", hf_model, layers=(1,))
    return start.replace(vectors=jax.random.normal(jax.random.key(4), start.vectors.shape))


@pytest.fixture(scope="session")
def plain_model(disk, gguf_model):
    """The base model as a GGUF file in float32, in which a runtime rounds nothing."""
    return load_model(str(disk / "plain.gguf"))


def logits(model, tokens, adapter=None):
    """Logits `[T, V]` of one row of tokens."""
    output = model.decoder.apply({"params": model.params}, jax.numpy.asarray(tokens)[None], adapter=adapter)
    return np.asarray(model.decoder.apply({"params": model.params}, output.hidden, method="logits"))[0]
