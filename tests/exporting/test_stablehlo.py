"""StableHLO: the files alone answer as the model with its adapter does."""

import json

import jax
import jax.export
import numpy as np
import pytest
import safetensors.numpy

from edgesafe_jax.adapters import compose
from edgesafe_jax.exporting import EXPORTERS
from edgesafe_jax.models import generate

PROMPT, NUM = "in the 12th hell", 5


def answer(path, tokens):
    """Greedy decoding with nothing but the files and JAX."""
    manifest = json.loads((path / "manifest.json").read_text())
    arrays = safetensors.numpy.load_file(path / "weights.safetensors")
    weights = [arrays[name] for name in manifest["weights"]]
    prefill, decode = (
        jax.export.deserialize(bytearray((path / f"{name}.stablehlo").read_bytes())) for name in ("prefill", "decode")
    )
    row = np.full((1, manifest["prompt"]), manifest["pad_id"], np.int32)
    row[0, : len(tokens)] = tokens
    logits, keys, values = prefill.call(*weights, row, np.int32(len(tokens)))
    step = jax.jit(decode.call)
    found = []
    for place in range(manifest["first_position"] + len(tokens), manifest["first_position"] + len(tokens) + NUM):
        found.append(int(np.argmax(logits)))
        logits, keys, values = step(*weights, np.int32(found[-1]), np.int32(place), keys, values)
    return found


@pytest.mark.parametrize("kind", ["soft_prompt", "lora"])
def test_the_files_alone_answer_like_the_model(request, hf_model, tmp_path, kind):
    adapter = request.getfixturevalue(kind)
    path = EXPORTERS["stablehlo"](adapter, hf_model, tmp_path / "out")
    [tokens] = hf_model.tokenizer.encode_prompts([PROMPT])
    expected = generate(hf_model, [PROMPT], max_tokens=NUM, adapter=adapter).tokens[0]
    assert len(expected) > 1
    assert answer(path, tokens)[: len(expected)] == expected


def test_every_kind_is_lowered(request, hf_model, tmp_path):
    """Compositions too."""
    for kinds in (("prefix",), ("soft_prompt", "lora", "steering")):
        adapter = compose(*map(request.getfixturevalue, kinds))
        path = EXPORTERS["stablehlo"](adapter, hf_model, tmp_path / kinds[0])
        read = jax.export.deserialize(bytearray((path / "decode.stablehlo").read_bytes()))
        manifest = json.loads((path / "manifest.json").read_text())
        assert read.platforms == tuple(manifest["platforms"])
        assert len(read.in_avals) == len(manifest["weights"]) + len(manifest["decode"])
