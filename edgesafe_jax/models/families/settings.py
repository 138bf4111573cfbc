"""Reading the sizes and constants of a model: from a `config.json`, and from the metadata of a GGUF file."""

from collections.abc import Mapping, Sequence
from typing import Any

from edgesafe_jax.errors import Range, shortened
from edgesafe_jax.models.decoder_config import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, DecoderConfig
from edgesafe_jax.models.families.family import SIZES, GgufHeader, LoadingError
from edgesafe_jax.models.families.rope import read_rope

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
"""From the name in a `config.json` to the decoder's."""


def check_sizes(settings: Mapping[str, Any], names: Sequence[str] = SIZES) -> None:
    """Checks that a `config.json` gives every size.

    Raises:
      LoadingError: one is not there.
    """
    if missing := [name for name in names if settings.get(name) is None]:
        raise LoadingError(f"config.json lacks {', '.join(missing)}.")


_COUNT = Range(1, 10_000_000, integer=True)
_PLAUSIBLE = {
    **dict.fromkeys(("vocab_size", "intermediate_size", "n_inner"), _COUNT),
    **dict.fromkeys(("num_hidden_layers", "n_layer"), Range(1, MAX_LAYERS, integer=True)),
    **dict.fromkeys(("hidden_size", "n_embd"), Range(1, MAX_WIDTH, integer=True)),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), Range(1, MAX_HEADS, integer=True)),
    "head_dim": Range(1, MAX_HEADS, integer=True),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), Range(1, 2**31 - 1, integer=True)),
    **dict.fromkeys(("sliding_window", "sliding_window_pattern"), Range(1, 2**31 - 1, integer=True)),
    "num_labels": Range(0, 100_000, integer=True),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon"), Range(0, 1)),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq"), Range(1, 1e15)),
}
"""Ranges of the fields of a `config.json` by which something is allocated or divided."""


def check_plausible(settings: Mapping[str, Any]) -> None:
    """Checks the sizes of a `config.json` before anything is made of them.

    Raises:
      LoadingError: one that no model has.
    """
    for name, allowed in _PLAUSIBLE.items():
        value = settings.get(name)
        # transformers writes a window of 0 or false where there is none
        if value is None or (not value and name in ("n_inner", "sliding_window", "sliding_window_pattern")):
            continue
        if value not in allowed:
            raise LoadingError(f"config.json: {name}={shortened(value)}: expected {allowed.describe()}.")


def read_config(
    settings: Mapping[str, Any], *, activation: str = "silu", attention_bias: bool = False, **options: Any
) -> DecoderConfig:
    """Reads the fields of a Hugging Face `config.json` that have the same names in all families.

    Args:
      settings: the parsed file.
      activation: the one activation that the family has, by its name in the file.
      attention_bias: whether the file may ask for biases of the queries, keys and values.
      **options: further fields of the config, such as `qk_norm`.

    Returns:
      The config.

    Raises:
      LoadingError: an option that the decoder does not implement, or a size that is not given.
      ConfigError: a `max_context` that the model does not have.
    """
    family = settings["model_type"]
    found = settings.get("hidden_act") or activation
    if found != activation:
        raise LoadingError(f"hidden_act {found!r} is not supported; expected {activation!r} of a {family} model.")
    if settings.get("mlp_bias") or (not attention_bias and settings.get("attention_bias")):
        raise LoadingError(f"Biases in the feed-forward or {family} attention layers are not supported.")
    check_sizes(settings)
    # transformers 5 writes rope settings into rope_parameters, earlier versions beside it.
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    heads = int(settings["num_attention_heads"])
    head_dim = int(settings.get("head_dim") or settings["hidden_size"] // heads)
    rotary_dim = int(head_dim * float(rope.get("partial_rotary_factor") or settings.get("partial_rotary_factor") or 1))
    base = float(rope.get("rope_theta", settings.get("rope_theta", 10_000.0)))
    longest = int(settings["max_position_embeddings"])
    stretched = read_rope(rope, base=base, size=rotary_dim, longest=longest, context=settings.get("max_context"))
    fields = {
        "vocab_size": int(settings["vocab_size"]),
        "num_layers": int(settings["num_hidden_layers"]),
        "embed_dim": int(settings["hidden_size"]),
        "mlp_dim": int(settings["intermediate_size"]),
        "num_heads": heads,
        "num_kv_heads": int(settings.get("num_key_value_heads") or heads),
        "head_dim": head_dim,
        "rotary_dim": None if rotary_dim == head_dim else rotary_dim,
        "rope_base": base,
        "norm_eps": float(settings["rms_norm_eps"]),
        "activation": _ACTIVATIONS[activation],
        **stretched,
        **_window(settings),
        "tie_embeddings": bool(settings.get("tie_word_embeddings", False)),
    }
    return DecoderConfig(**{**fields, **options})


def _window(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The sliding window, and which layers slide: those that the file names, or all."""
    # Qwen says whether its window is used; other families use the one that is given.
    window = settings.get("sliding_window") if settings.get("use_sliding_window", True) else None
    kinds = settings.get("layer_types") or ["sliding_attention"] * int(settings["num_hidden_layers"])
    if unknown := set(kinds) - {"sliding_attention", "full_attention"}:
        raise LoadingError(f"layer_types has {unknown.pop()!r}; expected 'sliding_attention' and 'full_attention'.")
    slides = tuple(kind == "sliding_attention" for kind in kinds)
    if window is None or not any(slides):
        return {}
    return {"window": int(window), "sliding_layers": slides}


def read_gguf_config(header: GgufHeader, **options: Any) -> DecoderConfig:
    """Reads the metadata that have the same names in all families.

    Args:
      header: what the file says.
      **options: further fields of the config, or other values of them.

    Returns:
      The config.

    Raises:
      LoadingError: a field is missing, or RoPE is scaled in a way that is not supported.
    """
    num_heads, embed_dim = int(header.value("attention.head_count")), int(header.value("embedding_length"))
    _check_header(header)
    rotary_dim = header.get("rope.dimension_count")
    head_dim = int(header.get("attention.key_length") or rotary_dim or embed_dim // num_heads)
    head_dim = int(options.pop("head_dim", head_dim))
    rotary_dim = head_dim if rotary_dim is None else int(rotary_dim)
    eps = options.pop("norm_eps", None) or header.value("attention.layer_norm_rms_epsilon")
    fields = {
        "vocab_size": len(header.fields.get("tokenizer.ggml.tokens", ())),
        "num_layers": int(header.value("block_count")),
        "embed_dim": embed_dim,
        "mlp_dim": int(header.value("feed_forward_length")),
        "num_heads": num_heads,
        "num_kv_heads": int(header.get("attention.head_count_kv", num_heads)),
        "head_dim": head_dim,
        "rotary_dim": None if rotary_dim == head_dim else rotary_dim,
        "rope_base": float(header.get("rope.freq_base", 10_000.0)),
        "rope_divisors": _divisors(header, rotary_dim),
        "norm_eps": float(eps),
        "max_context": int(header.value("context_length")),
        "tie_embeddings": "output.weight" not in header.names,
    }
    return DecoderConfig(**{**fields, **options})


def _check_header(header: GgufHeader) -> None:
    """Checks the numbers by which something is divided, or made, before the config is."""
    for name, most in (
        ("attention.head_count", MAX_HEADS),
        ("block_count", MAX_LAYERS),
        ("embedding_length", MAX_WIDTH),
        ("context_length", 2**31 - 1),
    ):
        value = header.value(name)
        if value not in Range(1, most, integer=True):
            raise LoadingError(f"{header.architecture}.{name}={shortened(value)}: expected 1 to {most}.")
    if (size := header.get("rope.dimension_count")) is not None and size not in Range(0, MAX_HEADS, integer=True):
        raise LoadingError(f"{header.architecture}.rope.dimension_count={size}: expected 0 to {MAX_HEADS}.")


def _divisors(header: GgufHeader, rotary_dim: int) -> tuple[float, ...]:
    """The divisors of the rotary frequencies: a tensor of the file, or one factor."""
    if "rope_freqs.weight" in header.names:
        return tuple(header.read("rope_freqs.weight").ravel().tolist())
    kind = header.get("rope.scaling.type", "none")
    if kind == "linear":
        return (float(header.value("rope.scaling.factor")),) * (rotary_dim // 2)
    if kind in ("none", "longrope"):  # the divisors of LongRoPE are tensors, which its family reads
        return ()
    raise LoadingError(f"RoPE scaling {kind!r} in GGUF is not supported; use the Hugging Face directory.")
