"""Reading a tokenizer with its chat template: the project's own reading of GGUF, and transformers' of directories."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from edgesafe_jax.models.files import is_failure, read_json
from edgesafe_jax.models.templates import TokenizerError
from edgesafe_jax.models.tokenization import ChatTokenizer

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # GGUF token types
_ADDED_TYPES = (_CONTROL, _USER_DEFINED)
_END_FIELDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # the ends of a sequence, a turn and a message

_LONGEST_TOKEN = 2_000  # its ways to be merged are as many, and each is a copy of it

_DIGIT_PRE_TOKENIZERS = ("smollm",)
_PLAIN_PRE_TOKENIZERS = ("gpt-2", "default")


def tokenizer_from_gguf(metadata: dict[str, Any]) -> ChatTokenizer:
    """Builds the tokenizer from the metadata of a GGUF file.

    Args:
      metadata: contents of the `tokenizer.*` fields.

    Returns:
      The tokenizer, with the chat template of the same file.

    Raises:
      TokenizerError: a tokenizer model or a pre-tokenizer that is not supported, or a missing field.
    """

    def field(name: str) -> Any:
        if f"tokenizer.{name}" not in metadata:
            raise TokenizerError(f"The GGUF metadata has no tokenizer.{name}; is the file complete?")
        return metadata[f"tokenizer.{name}"]

    if metadata.get("tokenizer.ggml.model") == "llama":
        return _sentence_piece_from_gguf(metadata, field)
    if "tokenizer.ggml.pre" not in metadata and "tokenizer.ggml.model" in metadata:
        raise TokenizerError(
            "The GGUF metadata has no tokenizer.ggml.pre, without which text cannot be split as the model was trained: "
            "the file was made by an old converter. Convert it again, or use the model's Hugging Face directory."
        )
    model, pre = field("ggml.model"), field("ggml.pre")
    if model != "gpt2" or pre not in _DIGIT_PRE_TOKENIZERS + _PLAIN_PRE_TOKENIZERS:
        raise TokenizerError(
            f"GGUF tokenizer model {model!r} with pre-tokenizer {pre!r} is not supported: expected 'gpt2' with one of "
            f"{_DIGIT_PRE_TOKENIZERS + _PLAIN_PRE_TOKENIZERS}. Use the model's Hugging Face directory, which has a "
            "tokenizer.json."
        )
    tokens, types, merges = field("ggml.tokens"), field("ggml.token_type"), field("ggml.merges")
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=[tuple(m.split(" ", 1)) for m in merges], fuse_unk=False)
    )
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in _DIGIT_PRE_TOKENIZERS:
        digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    added = [(token, kind == _CONTROL) for token, kind in zip(tokens, types, strict=True) if kind in _ADDED_TYPES]
    for special in (True, False):
        chosen = [
            tokenizers.AddedToken(t, special=special, normalized=False) for t, control in added if control == special
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(chosen)
    return _chat_tokenizer(tokenizer, metadata, field)


def _chat_tokenizer(
    tokenizer: tokenizers.Tokenizer, metadata: dict[str, Any], field: Callable[[str], Any]
) -> ChatTokenizer:
    """The tokenizer with the control tokens and the chat template that the metadata name."""
    tokens, eos = field("ggml.tokens"), int(field("ggml.eos_token_id"))
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    ends = [int(metadata[name]) for name in (f"tokenizer.ggml.{end}" for end in _END_FIELDS) if name in metadata]
    return ChatTokenizer(
        tokenizer,
        chat_template=metadata.get("tokenizer.chat_template", ""),
        eos_ids=ends,
        pad_id=int(metadata.get("tokenizer.ggml.padding_token_id", eos)),
        bos_token=tokens[int(bos)] if bos is not None else "",
        eos_token=tokens[eos],
        suppressed_ids=metadata.get("tokenizer.ggml.suppress_tokens", ()),
    )


def _sentence_piece_from_gguf(metadata: dict[str, Any], field: Callable[[str], Any]) -> ChatTokenizer:
    """Builds a SentencePiece tokenizer of BPE: the pair whose joined piece has the highest score is merged first."""
    tokens, scores, types = field("ggml.tokens"), field("ggml.scores"), field("ggml.token_type")
    if (longest := max(map(len, tokens), default=0)) > _LONGEST_TOKEN:
        raise TokenizerError(f"A token has {longest:,} characters: expected at most {_LONGEST_TOKEN:,}.")
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = []
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (_NORMAL, _USER_DEFINED):
            pairs = ((token[:i], token[i:]) for i in range(1, len(token)))
            merges += [(-scores[index], index, pair) for pair in pairs if pair[0] in vocab and pair[1] in vocab]
    merges.sort(key=lambda merge: merge[:2])
    unknown = tokens[int(field("ggml.unknown_token_id"))]
    pairs = [pair for _, _, pair in merges]
    model = tokenizers.models.BPE(vocab=vocab, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    replaced = tokenizers.normalizers.Replace(" ", "\u2581")
    decoders = [
        tokenizers.decoders.Replace("\u2581", " "),
        tokenizers.decoders.ByteFallback(),
        tokenizers.decoders.Fuse(),
    ]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        replaced = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend("\u2581"), replaced])
        decoders.append(tokenizers.decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = replaced
    tokenizer.decoder = tokenizers.decoders.Sequence(decoders)
    for kind, add in ((_CONTROL, tokenizer.add_special_tokens), (_USER_DEFINED, tokenizer.add_tokens)):
        chosen = [token for token, found in zip(tokens, types, strict=True) if found == kind]
        add([tokenizers.AddedToken(token, special=kind == _CONTROL, normalized=False) for token in chosen])
    return _chat_tokenizer(tokenizer, metadata, field)


def tokenizer_from_directory(path: Path) -> ChatTokenizer:
    """Reads the tokenizer of a Hugging Face directory with transformers.

    A directory whose `tokenizer_config.json` names a tokenizer class is read as `AutoTokenizer` reads it, any other as
    its `tokenizer.json` says. No code of the directory is run.

    Args:
      path: the directory.

    Returns:
      The tokenizer, with the chat template of the same directory.

    Raises:
      TokenizerError: a file is missing or damaged, or names an unknown token.
    """
    file = path / "tokenizer.json"
    settings, generation, model = (
        read_json(path / name, TokenizerError)
        for name in ("tokenizer_config.json", "generation_config.json", "config.json")
    )
    if not file.exists() and not settings.get("tokenizer_class"):
        raise TokenizerError(f"{path} has no tokenizer.json; save the model with a fast tokenizer.")
    if file.exists():
        _check_tokenizer_file(file, settings)
    import transformers  # not at import time: it takes seconds

    reader = transformers.AutoTokenizer if settings.get("tokenizer_class") else transformers.PreTrainedTokenizerFast
    try:
        # Older files write a token as an object without its type, which transformers refuses.
        tokens = {
            name: value["content"]
            for name, value in settings.items()
            if name.endswith("_token") and isinstance(value, dict) and "content" in value
        }
        loaded = reader.from_pretrained(path, local_files_only=True, trust_remote_code=False, **tokens)
        tokenizer = loaded.backend_tokenizer
    except BaseException as error:  # of many kinds, some of them bare, and panics
        if not is_failure(error):
            raise
        raise TokenizerError(
            f"The tokenizer of {path} cannot be read ({type(error).__name__}: {error}); save the model with a fast "
            "tokenizer."
        ) from error
    template = loaded.chat_template or ""
    if isinstance(template, dict):
        template = template.get("default", "")
    eos: list[int] = []
    for source in (generation.get("eos_token_id"), model.get("eos_token_id")):
        if source is not None:
            eos.extend(source if isinstance(source, list) else [source])
    if loaded.eos_token_id is not None:
        eos.append(loaded.eos_token_id)
    if not eos:
        raise TokenizerError(f"{path} names no end-of-sequence token in tokenizer_config.json or config.json.")
    return ChatTokenizer(
        tokenizer,
        chat_template=template,
        eos_ids=eos,
        pad_id=eos[0] if loaded.pad_token_id is None else loaded.pad_token_id,
        bos_token=loaded.bos_token or "",
        eos_token=loaded.eos_token or "",
        suppressed_ids=generation.get("suppress_tokens") or (),
    )


def _check_tokenizer_file(file: Path, settings: dict[str, Any]) -> None:
    """Checks that a tokenizer.json can be read and has the end token, which transformers would add to it."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except BaseException as error:  # the library raises the bare class, and panics
        if not is_failure(error):
            raise
        raise TokenizerError(f"{file} is damaged ({error}); copy or download it again.") from error
    end = settings.get("eos_token") or ""
    end = end["content"] if isinstance(end, dict) else end
    if end and tokenizer.token_to_id(end) is None:
        raise TokenizerError(f"eos_token {end!r} of {file.parent} is not in its tokenizer.json.")
