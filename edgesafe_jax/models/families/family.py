"""The declaration of a decoder family, and the readers that most families share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.models.decoder_config import DecoderConfig


class LoadingError(EdgesafeError, ValueError):
    """A model file that is damaged, incomplete, or of an unsupported kind."""


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a checkpoint's tensor in the parameter tree.

    Attributes:
      path: keys of the parameter tree.
      shape: shape in the checkpoint.
      as_stored: whether a matrix is kept as it is stored; else it is stored outputs first, and transposed.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    as_stored: bool = False


Places: TypeAlias = Mapping[str, Place | tuple[Place, ...]]
"""From the name of a tensor to its place, or to the places of the parts that it joins along its outputs."""

Transform: TypeAlias = Callable[[DecoderConfig, str, np.ndarray], np.ndarray]
"""What is done to a tensor after reading, given its Hugging Face name."""


@dataclasses.dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of its model.

    Attributes:
      architecture: value of `general.architecture`, with which the fields begin.
      fields: the metadata.
      names: of the tensors.
      read: returns a tensor as floats.
    """

    architecture: str
    fields: Mapping[str, Any]
    names: frozenset[str]
    read: Callable[[str], np.ndarray]

    def value(self, name: str) -> Any:
        """Returns a field of the architecture.

        Raises:
          LoadingError: it is not there.
        """
        if (found := self.get(name)) is None:
            raise LoadingError(f"the metadata has no {self.architecture}.{name}; the file is incomplete.")
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """Returns a field of the architecture, or the default."""
        return self.fields.get(f"{self.architecture}.{name}", default)


OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
"""From the names of tensors outside the layers in GGUF to their Hugging Face names."""

LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""The same for the parts of a layer, without `weight` and `bias`."""


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


def keep(config: DecoderConfig, name: str, tensor: np.ndarray) -> np.ndarray:
    """The transformation that does nothing."""
    del config, name
    return tensor


@dataclasses.dataclass(frozen=True)
class GgufLayout:
    """The layout of a family in GGUF files.

    Attributes:
      architecture: value of `general.architecture`.
      read_config: reads the metadata.
      layer_names: from the part of a layer in GGUF (`attn_q`) to its Hugging Face name (`self_attn.q_proj`).
      outer_names: from the other tensors to their Hugging Face names.
      transform: undoes what the converter does to a tensor.
      convert: does it, for a tensor that is written.
    """

    architecture: str
    read_config: Callable[[GgufHeader], DecoderConfig]
    layer_names: Mapping[str, str] = dataclasses.field(default_factory=lambda: LAYER_NAMES)
    outer_names: Mapping[str, str] = dataclasses.field(default_factory=lambda: OUTER_NAMES)
    transform: Transform = keep
    convert: Transform = keep


def outer_tensors(config: DecoderConfig) -> dict[str, Place]:
    """Returns the tensors outside the layers: embedding table, last norm, and head where it is not the table."""
    table = (config.vocab_size, config.embed_dim)
    tensors = {
        "model.embed_tokens.weight": Place(("embedding",), table, as_stored=True),
        "model.norm.weight": Place(("final_norm", "scale"), (config.embed_dim,)),
    }
    return tensors if config.tie_embeddings else tensors | {"lm_head.weight": Place(("head",), table)}


@dataclasses.dataclass(frozen=True)
class Family:
    """The layout of a decoder family in checkpoints.

    Attributes:
      read_config: reads the contents of a Hugging Face `config.json`, with `max_context` beside them where another
        context than the model's own is wanted.
      layer_tensors: from the name of a tensor in one layer to its place.
      outer_tensors: the same for the tensors outside the layers.
      sizes: fields of a `config.json` that must be there.
      layers: what the names of the layers' tensors begin with.
      embedding: name of the embedding table.
      ignored: pattern of the names of tensors that are not read.
      transform: what is done to the tensors of a directory.
      gguf: how the family is stored in GGUF files, or None where they are not supported.
    """

    read_config: Callable[[Mapping[str, Any]], DecoderConfig]
    layer_tensors: Callable[[DecoderConfig], Places]
    outer_tensors: Callable[[DecoderConfig], Places] = outer_tensors
    sizes: tuple[str, ...] = SIZES
    layers: str = "model.layers"
    embedding: str = "model.embed_tokens.weight"
    ignored: str = r".*rotary_emb\.inv_freq"
    transform: Transform = keep
    gguf: GgufLayout | None = None


def layer_tensors(config: DecoderConfig) -> dict[str, Place | tuple[Place, ...]]:
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
