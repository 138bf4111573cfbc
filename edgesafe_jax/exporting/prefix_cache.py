"""Export of what an adapter puts in front of every chat as keys and values: nothing is left to compute before the user.

The directory holds `prefix.safetensors`: `keys` and `values`, `[L, K, S, E]` float32 of the S positions 0 to S - 1, as
they are attended to (normed and rotated; the first half of E is paired with the second), first the P virtual positions,
then the tokens with which the chat template begins. The chat goes on at position S. The metadata name the positions,
the tokens and the hash of the base model.

For a GGUF file of an architecture with one kind of attention there is also `prefix.slot`, a prompt cache of
llama.cpp's server: the same numbers in float16, in the order of that runtime, under placeholder tokens for the virtual
positions. A chat that begins with these tokens, which `chat_template.jinja` writes, finds them computed.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from edgesafe_jax.exporting.exporter import ExportError, Format, base_files
from edgesafe_jax.exporting.gguf_base import GgufBase, QuantType
from edgesafe_jax.models.generation import encode_shared_once
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import IN_FRONT, Adapter

TENSORS_FILE, SLOT_FILE, TEMPLATE_FILE = "prefix.safetensors", "prefix.slot", "chat_template.jinja"

_MAGIC, _VERSION = 0x67677371, 4  # of a file with the state of one sequence ("ggsq")
_SERVER_TOKENS = (0xFFFFFFFF, 1)  # how the server marks its own list of tokens, and its version


def slot_bytes(tokens: Sequence[int], keys: np.ndarray, values: np.ndarray) -> bytes:
    """Returns a prompt cache of llama.cpp's server.

    Args:
      tokens: S ids.
      keys: `[L, S, K E]`, in the order of the runtime; stored as float16.
      values: `[L, S, K E]`.
    """
    num = len(tokens)
    words = [*_SERVER_TOKENS, num, *tokens, 0]
    parts = [struct.pack("<3I", _MAGIC, _VERSION, len(words)), np.array(words, "<u4").tobytes()]
    # One stream, its cells, and of each cell the position, the number of sequences and the sequence; then whether
    # values are transposed (no), the number of layers, and two fields that are zero for such models.
    cells = np.stack([np.arange(num), np.ones(num), np.zeros(num)], axis=1).astype("<u4")
    parts += [struct.pack("<2I", 1, num), cells.tobytes(), struct.pack("<4I", 0, len(keys), 0, 0)]
    for stack in (keys, values):
        for rows in stack.astype("<f2"):
            parts += [struct.pack("<iQ", int(QuantType.F16), rows[0].nbytes), rows.tobytes()]
    return b"".join(parts)


def _write(adapter: Adapter, model: LanguageModel, folder: Path) -> Mapping[str, str]:
    if adapter.placement != IN_FRONT:
        raise ExportError(
            f"This adapter stands at {adapter.placement!r}, behind what depends on the user: only one in front of the "
            "chat template can be computed once."
        )
    source, head = base_files(model), list(model.tokenizer.chat_parts.head)
    block = encode_shared_once(model.decoder, model.params, adapter, jnp.array(head, jnp.int32))
    keys, values = (np.asarray(leaf[:, 0], np.float32) for leaf in (block.keys, block.values))
    metadata = {
        "layout": "keys, values: [layers, key/value heads, positions, head dimension]; rotated, halves paired",
        "num_virtual": str(adapter.num_virtual),
        "num_positions": str(keys.shape[2]),
        "tokens": json.dumps(head),
        "base_model_hash": model.hash,
        "tokenizer_hash": model.tokenizer.hash,
    }
    safetensors.numpy.save_file({"keys": keys, "values": values}, folder / TENSORS_FILE, metadata)
    details = {"Positions": f"{adapter.num_virtual} virtual and {len(head)} of the chat template"}
    if source.kind != "gguf":
        return details
    base = GgufBase(Path(source.path), model.config)
    control = model.tokenizer.bos_token or model.tokenizer.eos_token
    [placeholder] = model.tokenizer.encode(control, control=True)
    tokens = [placeholder] * adapter.num_virtual + head
    num_layers, num_heads, num, width = keys.shape
    rows = keys.transpose(0, 1, 3, 2).reshape(num_layers, num_heads * width, num)
    ordered = np.stack([base.converted("attention/key", layer).T for layer in rows])
    plain = values.transpose(0, 2, 1, 3).reshape(num_layers, num, num_heads * width)
    (folder / SLOT_FILE).write_bytes(slot_bytes(tokens, ordered, plain))
    opening = "{{ '" + control * adapter.num_virtual + "' }}"
    (folder / TEMPLATE_FILE).write_text(opening + model.tokenizer.chat_template, encoding="utf-8")
    return {**details, "Placeholder of the virtual positions": f"{control} (id {placeholder})"}


PREFIX_CACHE = Format(
    carries=("soft_prompt", "prefix"),
    write=_write,
    usage=(
        "```\nllama-server -m BASE.gguf --slot-save-path {path}/ --chat-template-file {path}/chat_template.jinja\n"
        "curl -X POST 'localhost:8080/slots/0?action=restore' -d '{{\"filename\": \"prefix.slot\"}}'\n```\n\n"
        "where the base model is a GGUF file. `prefix.safetensors` is for any other program; its metadata describe it."
    ),
)
