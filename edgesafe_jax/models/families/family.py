"""The declaration of a decoder family, and the readers that most families share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.models.decoder_config import DecoderConfig, RopeScaling


class LoadingError(EdgesafeError, ValueError):
    """A model file that is damaged, incomplete, or of an unsupported kind."""


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a checkpoint's tensor in the parameter tree.

    Attributes:
      path: keys of the parameter tree.
      shape: shape in the checkpoint, where matrices are stored outputs first.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]


GgufRead: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], DecoderConfig]
"""From the metadata of a GGUF file and the shapes of its tensors to the config."""


def _same(config: DecoderConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    del config, name
    return tensor


@dataclasses.dataclass(frozen=True)
class GgufLayout:
    """The layout of a family in GGUF files.

    Attributes:
      architecture: value of `general.architecture`.
      read_config: reads the metadata.
      layer_names: from the part of a layer in GGUF (`attn_q`) to its Hugging Face name (`self_attn.q_proj`).
      transform: undoes what the converter does to a tensor, given its Hugging Face name.
      convert: does it, for a tensor that is written.
    """

    architecture: str
    read_config: GgufRead
    layer_names: Mapping[str, str]
    transform: Callable[[DecoderConfig, str, np.ndarray], np.ndarray] = _same
    convert: Callable[[DecoderConfig, str, np.ndarray], np.ndarray] = _same


@dataclasses.dataclass(frozen=True)
class Family:
    """The layout of a decoder family in checkpoints.

    Attributes:
      read_config: reads the contents of a Hugging Face `config.json`.
      layer_tensors: from the name of a tensor in one layer to its place.
      transform: what is done to the float parameters after reading.
      gguf: how the family is stored in GGUF files, or None where they are not supported.
    """

    read_config: Callable[[Mapping[str, Any]], DecoderConfig]
    layer_tensors: Callable[[DecoderConfig], Mapping[str, Place]]
    transform: Callable[[dict[str, Any]], dict[str, Any]] = lambda params: params
    gguf: GgufLayout | None = None


_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}  # from the name in a config.json to the decoder's

SIZES = (
    "vocab_size",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "rms_norm_eps",
    "max_position_embeddings",
)
"""Fields of a `config.json` that must be there."""


def check_sizes(settings: Mapping[str, Any]) -> None:
    """Checks that a `config.json` gives every size.

    Raises:
      LoadingError: one is not there.
    """
    if missing := [name for name in SIZES if settings.get(name) is None]:
        raise LoadingError(f"config.json lacks {', '.join(missing)}.")


def read_config(
    settings: Mapping[str, Any], *, activation: str = "silu", attention_bias: bool = False, **options: Any
) -> DecoderConfig:
    """Reads the fields of a Hugging Face `config.json` that have the same names in all families.

    A sliding window w sees everything in a sequence of up to w positions. Longer ones are not supported, so
    `max_context` is at most w.

    Args:
      settings: the parsed file.
      activation: the one activation that the family has, by its name in the file.
      attention_bias: whether the file may ask for biases of the queries, keys and values.
      **options: further fields of the config, such as `qk_norm`.

    Returns:
      The config.

    Raises:
      LoadingError: an option that the decoder does not implement, or a size that is not given.
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
    return DecoderConfig(
        vocab_size=int(settings["vocab_size"]),
        num_layers=int(settings["num_hidden_layers"]),
        embed_dim=int(settings["hidden_size"]),
        mlp_dim=int(settings["intermediate_size"]),
        num_heads=heads,
        num_kv_heads=int(settings.get("num_key_value_heads") or heads),
        head_dim=int(settings.get("head_dim") or settings["hidden_size"] // heads),
        rope_base=float(rope.get("rope_theta", settings.get("rope_theta", 10_000.0))),
        rms_eps=float(settings["rms_norm_eps"]),
        max_context=_max_context(settings),
        rope_scaling=_rope_scaling(rope),
        activation=_ACTIVATIONS[activation],
        **{"tie_embeddings": bool(settings.get("tie_word_embeddings", False)), **options},
    )


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise LoadingError(f"RoPE type {kind!r} is not supported; expected 'default' or 'llama3'.")
    if kind == "default":
        return None
    return RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_context=int(rope["original_max_position_embeddings"]),
    )


def _max_context(settings: Mapping[str, Any]) -> int:
    longest = int(settings["max_position_embeddings"])
    # Qwen says whether its window is used; Mistral and Gemma 2 use the one that is given.
    window = settings.get("sliding_window") if settings.get("use_sliding_window", True) else None
    return longest if window is None else min(longest, int(window))


def layer_tensors(config: DecoderConfig) -> dict[str, Place]:
    """Returns the tensors of one layer that every family has."""
    d, f = config.embed_dim, config.mlp_dim
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "self_attn.q_proj.weight": Place(("attention", "query"), (q, d)),
        "self_attn.k_proj.weight": Place(("attention", "key"), (kv, d)),
        "self_attn.v_proj.weight": Place(("attention", "value"), (kv, d)),
        "self_attn.o_proj.weight": Place(("attention", "out"), (d, q)),
        "mlp.gate_proj.weight": Place(("mlp", "gate"), (f, d)),
        "mlp.up_proj.weight": Place(("mlp", "up"), (f, d)),
        "mlp.down_proj.weight": Place(("mlp", "down"), (d, f)),
        "input_layernorm.weight": Place(("attention_norm", "scale"), (d,)),
        "post_attention_layernorm.weight": Place(("mlp_norm", "scale"), (d,)),
    }
