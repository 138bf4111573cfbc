"""Export of a soft prompt as tokens: its vectors become rows of the embedding table, its text opens every chat.

Each vector is a new control token, and the chat template begins with these tokens, so that a program which reads the
file and its template runs the model with its soft prompt. What else is in the file stays as it was, block for block.

A new token must never be generated. Where the output head is a matrix of its own, each new token has a copy of the
stored row of an old token in it: its logit equals that token's for every hidden state, so it is never above the
maximum, and a greedy choice takes the first of equals. Where the head is the embedding table, the vectors themselves
are rows of the head, and trained vectors do win: without suppression such a file does not work. Its metadata name the
new tokens as suppressed (`tokenizer.ggml.suppress_tokens` of llama.cpp, `suppress_tokens` of transformers), and only
runtimes that read this can run it. For any other, the format `vocabulary_graft_untied` stores a head of its own, which
costs the size of the table.

Of a soft prompt with a LoRA, the LoRA is merged into the weights first, as the format `merged` does it.
"""

import functools
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgesafe_jax.adapters import LoRA, SoftPrompt
from edgesafe_jax.exporting.compositions import part_of
from edgesafe_jax.exporting.directory_base import copy_settings, read_tensors, write_tensors
from edgesafe_jax.exporting.exporter import ExportError, Format, base_files
from edgesafe_jax.exporting.gguf_base import GGUF_FILE, Field, GgufBase, QuantType, Tensor, copy_gguf, stored_as
from edgesafe_jax.exporting.merged import write_merged
from edgesafe_jax.models.files import read_json
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import IN_FRONT, Adapter

_log = logging.getLogger(__name__)

ROW_MULTIPLE = 64
"""The number of rows of a GGUF table is filled up to a multiple, which the fast matrix products of runtimes need."""

_CONTROL, _UNUSED = 3, 5  # GGUF token types
_TABLE, _HEAD = "token_embd.weight", "output.weight"
_SUPPRESSED = "tokenizer.ggml.suppress_tokens"


def new_tokens(num: int, taken: Sequence[str], stem: str = "soft_prompt") -> list[str]:
    """Returns names of new control tokens.

    Args:
      num: how many.
      taken: the vocabulary.
      stem: what the names begin with.

    Raises:
      ExportError: a name is taken, which is so where the model has been grafted already.
    """
    names = [f"<|{stem}_{index}|>" for index in range(num)]
    if clash := sorted(set(names) & set(taken)):
        raise ExportError(
            f"The vocabulary of the base model has {clash[0]!r} already, so that it cannot grow by it: export from the "
            "model without a soft prompt."
        )
    return names


def opened(template: str, tokens: Sequence[str]) -> str:
    """Returns a chat template that begins with tokens.

    Raises:
      ExportError: there is no template.
    """
    if not template:
        raise ExportError("The base model has no chat template that could open with the soft prompt.")
    return "{{ '" + "".join(tokens) + "' }}" + template


def _write_gguf(model: LanguageModel, path: Path, target: Path, vectors: np.ndarray, untie: bool) -> dict[str, str]:
    base = GgufBase(path, model.config)
    table, head = base.tensors[_TABLE], base.tensors.get(_HEAD)
    old, num = len(table.data), len(vectors)
    tokens, types = base.value("tokenizer.ggml.tokens"), base.value("tokenizer.ggml.token_type")
    if tokens is None or types is None or len(tokens) != old:
        raise ExportError(
            f"The vocabulary of {path} cannot grow: its table has {old} rows and its metadata "
            f"{len(tokens or ())} tokens; expected as many."
        )
    names, filling = new_tokens(num, tokens), -(old + num) % ROW_MULTIPLE
    spare = new_tokens(filling, tokens, "unused_row")
    grown, details = grown_table(
        path, table, np.concatenate([vectors, np.zeros((filling, vectors.shape[1]), np.float32)])
    )
    tensors = {_TABLE: grown}
    if untie or head is not None:
        kept = table if head is None else head
        copied = int(np.argmin(np.sum(np.square(gguf.quants.dequantize(kept.data, kept.tensor_type)), axis=1)))
        rows = np.repeat(kept.data[copied : copied + 1], num + filling, axis=0)
        tensors[_HEAD] = Tensor(np.concatenate([kept.data, rows]), kept.tensor_type)
        never = f"generated never: their rows of the output head are copies of that of token {copied}"
    else:
        never = "suppressed by the metadata; a runtime that does not read tokenizer.ggml.suppress_tokens generates them"
    suppressed = [*base.value(_SUPPRESSED, []), *range(old, old + num + filling)]
    fields = {
        "tokenizer.ggml.tokens": _like(base, "tokenizer.ggml.tokens", [*tokens, *names, *spare]),
        "tokenizer.ggml.token_type": _like(
            base, "tokenizer.ggml.token_type", [*types, *[_CONTROL] * num, *[_UNUSED] * filling]
        ),
        _SUPPRESSED: Field(suppressed, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32),
        "tokenizer.chat_template": Field(
            opened(base.value("tokenizer.chat_template", ""), names), gguf.GGUFValueType.STRING
        ),
        # The chat begins with the soft prompt, and what the template writes follows it.
        "tokenizer.ggml.add_bos_token": Field(False, gguf.GGUFValueType.BOOL),
    }
    if (size := base.value(f"{base.architecture}.vocab_size")) is not None:
        fields[f"{base.architecture}.vocab_size"] = _like(base, f"{base.architecture}.vocab_size", size + num + filling)
    if (scores := base.value("tokenizer.ggml.scores")) is not None:
        fields["tokenizer.ggml.scores"] = _like(base, "tokenizer.ggml.scores", [*scores, *[0.0] * (num + filling)])
    copy_gguf(base, target, tensors=tensors, fields=fields)
    error = gguf.quants.dequantize(grown.data[old : old + num], grown.type) - vectors
    return {
        "New tokens": f"{num} (ids {old} to {old + num - 1}), {never}; {filling} unused rows behind them",
        "Rounding of the vectors": f"{grown.type.name}, {_relative(error, vectors):.2g} of their length",
        **details,
    }


def _relative(error: np.ndarray, vectors: np.ndarray) -> float:
    return float(np.linalg.norm(error) / np.linalg.norm(vectors))


def grown_table(path: Path, table: gguf.ReaderTensor, rows: np.ndarray) -> tuple[Tensor, dict[str, str]]:
    """Puts rows behind an embedding table.

    The old rows stay as they are, block for block, where their type can be written here. Those of a K-quant cannot: the
    whole table is then stored again as Q8_0.

    Args:
      path: the file, for messages.
      table: the table.
      rows: `[N, D]` float32.

    Returns:
      The table, and what storing it again costs, for the model card.

    Raises:
      ExportError: a type that can be neither written nor read.
    """
    try:
        added = stored_as(rows, table.tensor_type)
        return Tensor(np.concatenate([table.data, added.data]), added.type), {}
    except NotImplementedError:
        pass
    try:
        old = gguf.quants.dequantize(table.data, table.tensor_type)
    except NotImplementedError as error:
        raise ExportError(
            f"The vocabulary of {path} cannot grow: its embedding table is of type {table.tensor_type.name}, which "
            "nothing here reads: make the file again with llama-quantize --token-embedding-type q8_0."
        ) from error
    grown = stored_as(np.concatenate([old, rows]), QuantType.Q8_0)
    kept = grown.data[: len(old)]
    error = _relative(gguf.quants.dequantize(kept, grown.type) - old, old)
    cost = (
        f"{table.tensor_type.name} stored again as Q8_0, because rows of {table.tensor_type.name} cannot be written: "
        f"{kept.nbytes / table.data.nbytes:.2f} times the size, {error:.2g} of its length of rounding"
    )
    _log.info(f"embedding table of {path.name}: {cost}")
    return grown, {"Embedding table": cost}


def _like(base: GgufBase, name: str, value: Any) -> Field:
    """A field of the type that it has in the base file."""
    types = base.reader.fields[name].types
    return Field(value, types[0], types[-1] if types[0] == gguf.GGUFValueType.ARRAY else None)


def _write_directory(
    model: LanguageModel, path: Path, folder: Path, vectors: np.ndarray, untie: bool
) -> dict[str, str]:
    tensors, settings = read_tensors(path), read_json(path / "config.json", ExportError)
    embedding, output = "model.embed_tokens.weight", "lm_head.weight"
    table = tensors[embedding]
    first, num = model.tokenizer.max_id + 1, len(vectors)
    names = new_tokens(num, list(json.loads(model.tokenizer.to_json())["model"]["vocab"]))
    # A table may have more rows than there are tokens: those are taken first.
    tensors[embedding] = _with_rows(table, first, vectors)
    if tied := model.config.tie_embeddings and not untie:
        tensors.pop(output, None)
        never = "suppressed in generation_config.json; a program that does not read it generates them"
    else:
        head = np.asarray(table if model.config.tie_embeddings else tensors[output])
        copied = int(np.argmin(np.sum(np.square(head[:first].astype(np.float32)), axis=1)))
        tensors[output] = _with_rows(head, first, np.repeat(head[copied : copied + 1], num, axis=0))
        never = f"generated never: their rows of the output head are copies of that of token {copied}"
    copy_settings(path, folder)
    write_tensors(folder, tensors)
    settings |= {"vocab_size": len(tensors[embedding]), "tie_word_embeddings": tied}
    _write_json(folder / "config.json", settings)
    generation = read_json(folder / "generation_config.json", ExportError)
    suppressed = [*(generation.get("suppress_tokens") or []), *range(first, first + num)]
    eos = settings.get("eos_token_id", list(model.tokenizer.eos_ids))
    _write_json(folder / "generation_config.json", {"eos_token_id": eos, **generation, "suppress_tokens": suppressed})
    _write_tokenizer(model, folder, names)
    return {"New tokens": f"{num} (ids {first} to {first + num - 1}), {never}"}


def _with_rows(table: Any, first: int, rows: np.ndarray) -> np.ndarray:
    """A table with rows put in from a place on, longer where they reach beyond its end."""
    table = np.asarray(table)
    return np.concatenate([table[:first], rows.astype(table.dtype), table[first + len(rows) :]])


def _write_tokenizer(model: LanguageModel, folder: Path, names: Sequence[str]) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(model.tokenizer.to_json())
    tokenizer.add_special_tokens(list(names))
    tokenizer.save(str(folder / "tokenizer.json"))
    about = read_json(folder / "tokenizer_config.json", ExportError)
    for file in folder.glob("chat_template*"):
        file.unlink()
    about.pop("added_tokens_decoder", None)  # tokenizer.json has them, the new ones too
    about |= {"chat_template": opened(model.tokenizer.chat_template, names), "add_bos_token": False}
    _write_json(folder / "tokenizer_config.json", about)


def _write_json(path: Path, contents: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def _write(untie: bool, adapter: Adapter, model: LanguageModel, folder: Path) -> Mapping[str, str]:
    if adapter.placement != IN_FRONT:
        raise ExportError(
            f"This soft prompt stands at {adapter.placement!r}: expected one in front of everything, with "
            "which the chat template can open."
        )
    prompt, lora = part_of(adapter, SoftPrompt), part_of(adapter, LoRA)
    assert prompt is not None
    source = base_files(model)
    vectors = np.asarray(prompt.embeddings, np.float32)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".merged-") as scratch:
        path, details = Path(source.path), {}
        if lora is not None:
            details = dict(write_merged(lora, model, Path(scratch)))
            path = Path(scratch) / GGUF_FILE if source.kind == "gguf" else Path(scratch)
        if source.kind == "gguf":
            details |= _write_gguf(model, path, folder / GGUF_FILE, vectors, untie)
            size = (folder / GGUF_FILE).stat().st_size / Path(source.path).stat().st_size
            return details | {"Size": f"{size - 1:+.3%} of the base file"}
        return details | _write_directory(model, path, folder, vectors, untie)


def _format(untie: bool) -> Format:
    return Format(
        carries=("soft_prompt", "soft_prompt+lora"),
        write=functools.partial(_write, untie),
        usage=(
            "```\nllama-cli -m {path}/model.gguf -cnv --jinja\n```\n\n"
            "`python -m launch.evaluate --runtime=llama_cpp --model={path}/model.gguf` measures it there.\n\n"
            "Where the base model is a Hugging Face directory: `AutoModelForCausalLM.from_pretrained('{path}')`. "
            "The chat template carries the soft prompt: text that does not go through it is answered by the base model."
        ),
    )


VOCABULARY_GRAFT = _format(untie=False)
VOCABULARY_GRAFT_UNTIED = _format(untie=True)
