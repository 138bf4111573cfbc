"""Export as StableHLO: the model with its adapter as two compiled functions and their weights, without this library.

`prefill.stablehlo` and `decode.stablehlo` are what `jax.export` serialises, for CPU, CUDA and TPU; JAX keeps reading
such files for the time that its compatibility guarantee gives. `manifest.json` names their arguments in order: first
the weights of `weights.safetensors`, then what changes from call to call::

    prefill(*weights, tokens [1, T] int32, length [] int32) -> logits [V], keys, values
    decode(*weights, token [] int32, position [] int32, keys, values) -> logits [V], keys, values

`keys` and `values` are `[L, 1, K, C, E]`. The adapter's positions and the beginning of the chat template are among the
weights: `tokens` are those behind them, padded to T; the next position is `manifest["first_position"] + length`, and
the last one is C - 1.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.flax

from edgesafe_jax.exporting.exporter import ExportError, Format
from edgesafe_jax.models.decoder import Decoder, DecoderOutput, KeyValues, behind
from edgesafe_jax.models.generation import encode_shared_once
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.tensors import flatten, unflatten
from edgesafe_jax.typing import IN_FRONT, Adapter, Array

VERSION = 1
"""Of the manifest."""

PLATFORMS = ("cpu", "cuda", "tpu")
PROMPT, CONTEXT = 256, 1024
"""T and C, where the model's context is not shorter."""

_Step = Callable[..., tuple[Array, Array, Array]]


def _functions(decoder: Decoder, names: Sequence[str], context: int) -> tuple[_Step, _Step]:
    """Makes the two functions of weights in the order of their names."""

    def apply(weights: Sequence[Array], tokens: Array, past: KeyValues, **given: Any) -> tuple[Array, KeyValues]:
        tree = unflatten(dict(zip(names, weights, strict=True)))  # type: ignore[arg-type]
        changes = {name: tree[name] for name in ("steering",) if name in tree}
        if "low_rank" in tree:
            changes["low_rank"] = {
                module: {leaf: (pair["down"], pair["up"]) for leaf, pair in leaves.items()}
                for module, leaves in tree["low_rank"].items()
            }
        variables = {"params": tree["params"]}
        output: DecoderOutput = decoder.apply(variables, tokens, past=(past,), **changes, **given)  # type: ignore[assignment]
        return output.hidden, output.key_values

    def logits(weights: Sequence[Array], hidden: Array) -> Array:
        tree = unflatten(dict(zip(names, weights, strict=True)))  # type: ignore[arg-type]
        return decoder.apply({"params": tree["params"]}, hidden, method=Decoder.logits)  # type: ignore[return-value]

    def prefill(*args: Array) -> tuple[Array, Array, Array]:
        weights, (tokens, length) = args[:-2], args[-2:]
        shared = KeyValues(*(weights[names.index(f"prefix/{name}")] for name in ("keys", "values")))
        where = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] < length
        hidden, new = apply(weights, tokens, shared, where=where)
        joined = [jnp.concatenate(pair, axis=3) for pair in ((shared.keys, new.keys), (shared.values, new.values))]
        room = context - joined[0].shape[3]
        keys, values = (jnp.pad(leaf, ((0, 0),) * 3 + ((0, room), (0, 0))) for leaf in joined)
        return logits(weights, hidden[0, length - 1]), keys, values

    def decode(*args: Array) -> tuple[Array, Array, Array]:
        weights, (token, position, keys, values) = args[:-4], args[-4:]
        exists = jnp.arange(context, dtype=jnp.int32)[None] < position
        hidden, new = apply(weights, token[None, None], KeyValues(keys, values, exists))
        zero = jnp.zeros((), position.dtype)
        place = (zero, zero, zero, position, zero)
        keys, values = (
            jax.lax.dynamic_update_slice(old, leaf, place) for old, leaf in ((keys, new.keys), (values, new.values))
        )
        return logits(weights, hidden[0, 0]), keys, values

    return prefill, decode


def _weights(model: LanguageModel, adapter: Adapter) -> dict[str, Array]:
    """All numbers that the functions need, by name."""
    head = jnp.array(model.tokenizer.chat_parts.head, jnp.int32)
    block = encode_shared_once(model.decoder, model.params, adapter, head)
    changes = behind(adapter)
    tree: dict[str, Any] = {"params": model.params, "prefix": {"keys": block.keys, "values": block.values}}
    if "low_rank" in changes:
        tree["low_rank"] = {
            module: {leaf: {"down": down, "up": up} for leaf, (down, up) in leaves.items()}
            for module, leaves in changes["low_rank"].items()
        }
    if "steering" in changes:
        tree["steering"] = changes["steering"]
    return {name: jnp.asarray(leaf) for name, leaf in flatten(tree)}


def _write(adapter: Adapter, model: LanguageModel, folder: Path) -> Mapping[str, str]:
    if adapter.placement != IN_FRONT:
        raise ExportError(f"This adapter stands at {adapter.placement!r}: expected one in front of the chat template.")
    weights = _weights(model, adapter)
    names = sorted(weights)
    leaves = [jax.ShapeDtypeStruct(weights[name].shape, weights[name].dtype) for name in names]
    first = weights["prefix/keys"].shape[3]
    context = min(CONTEXT, model.config.max_context)
    prompt = min(PROMPT, context - first - 1)
    if prompt < 1:
        raise ExportError(f"The {first} positions in front leave no room in a context of {context}.")
    scalar = jax.ShapeDtypeStruct((), np.int32)
    c = model.config
    cache = jax.ShapeDtypeStruct((c.num_layers, 1, c.num_kv_heads, context, c.head_dim), weights["prefix/keys"].dtype)
    given = {
        "prefill": (jax.ShapeDtypeStruct((1, prompt), np.int32), scalar),
        "decode": (scalar, scalar, cache, cache),
    }
    for (name, inputs), function in zip(given.items(), _functions(model.decoder, names, context), strict=True):
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*leaves, *inputs)
        (folder / f"{name}.stablehlo").write_bytes(bytes(exported.serialize()))
    safetensors.flax.save_file(weights, folder / "weights.safetensors")
    manifest = {
        "version": VERSION,
        "jax": jax.__version__,
        "weights": names,
        "prefill": ["tokens", "length"],
        "decode": ["token", "position", "keys", "values"],
        "results": ["logits", "keys", "values"],
        "prompt": prompt,
        "context": context,
        "first_position": first,
        "eos_ids": list(model.tokenizer.eos_ids),
        "pad_id": model.tokenizer.pad_id,
        "base_model_hash": model.hash,
        "platforms": list(PLATFORMS),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(model.tokenizer.to_json(), encoding="utf-8")
    return {"Sizes": f"prompts of up to {prompt} tokens, {context} positions in all, {first} of them in front"}


STABLEHLO = Format(
    carries=("soft_prompt", "prefix", "lora", "steering"),
    composes=True,
    write=_write,
    usage=(
        "```python\nfrom pathlib import Path\n\nimport jax.export\n\n"
        "prefill = jax.export.deserialize(bytearray(Path('{path}/prefill.stablehlo').read_bytes()))\n"
        "```\n\n`prefill.call(*weights, tokens, length)` computes the logits of the next token, keys and values; "
        "`manifest.json` names the weights in order."
    ),
)
