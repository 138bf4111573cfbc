"""SmolLM3: as Llama, with every fourth layer without RoPE."""

from collections.abc import Mapping
from typing import Any

from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families.family import Family, GgufHeader, GgufLayout, layer_tensors
from edgesafe_jax.models.families.llama import interleave, undo_interleaving
from edgesafe_jax.models.families.settings import read_config, read_gguf_config

_PERIOD = 4


def _rotary_layers(num_layers: int, period: int = _PERIOD) -> tuple[bool, ...]:
    return tuple((i + 1) % period != 0 for i in range(num_layers))


def _read_config(settings: Mapping[str, Any]) -> DecoderConfig:
    layers = int(settings.get("num_hidden_layers") or 0)
    flags = settings.get("no_rope_layers")  # 1 where a layer has RoPE
    if flags is None:
        flags = _rotary_layers(layers, int(settings.get("no_rope_layer_interval") or _PERIOD))
    return read_config(settings, rotary_layers=tuple(map(bool, flags[:layers])))


def _read_gguf_config(header: GgufHeader) -> DecoderConfig:
    return read_gguf_config(header, rotary_layers=_rotary_layers(int(header.value("block_count"))))


FAMILY = Family(
    read_config=_read_config,
    layer_tensors=layer_tensors,
    gguf=GgufLayout("smollm3", _read_gguf_config, transform=undo_interleaving, convert=interleave),
)
