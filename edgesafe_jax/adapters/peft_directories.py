"""PEFT directories: the layout of the adapters that the PEFT library stores, in both directions.

A directory holds `adapter_config.json` and `adapter_model.safetensors`. Prompt tuning is a soft prompt here, prefix
tuning a prefix, LoRA a LoRA. PEFT names a base model but does not identify it; directories that this library writes
carry the hashes of base model and tokenizer in the metadata of the tensors, and they are checked when they are there.

PEFT: Mangrulkar et al., "PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods", 2022.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from edgesafe_jax.adapters.kind import AdapterError, StoredAdapter
from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.files import read_json
from edgesafe_jax.typing import IN_FRONT

CONFIG_FILE, TENSORS_FILE = "adapter_config.json", "adapter_model.safetensors"

MODULES = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}
"""From the matrices that a LoRA can adapt to the modules of the Llama-like classes of transformers."""

_LORA_NAME = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(\w+\.\w+)\.lora_([AB])(?:\.default)?\.weight")

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PeftKind:
    """The layout of one adapter kind in PEFT's files.

    Attributes:
      kind: name in `ADAPTERS`.
      read: from the contents of `adapter_config.json`, the tensors and the base model's config to arrays and fields.
      write: from arrays, fields and the base model's config to fields of `adapter_config.json` and tensors.
    """

    kind: str
    read: Callable[[Mapping[str, Any], Arrays, DecoderConfig], tuple[Arrays, dict[str, Any]]]
    write: Callable[[Arrays, Mapping[str, Any], DecoderConfig], tuple[dict[str, Any], Arrays]]


def read_peft(path: Path, config: DecoderConfig) -> tuple[StoredAdapter, dict[str, str]]:
    """Reads a PEFT directory.

    Args:
      path: the directory.
      config: of the base model.

    Returns:
      The adapter, and the metadata of its tensors, among which are the hashes of the base model if this library wrote
      them.

    Raises:
      AdapterError: a missing or damaged file, a method of PEFT that has no kind here, or an option that a kind here
        does not have.
    """
    about = read_json(path / CONFIG_FILE, AdapterError)
    if not about:
        raise AdapterError(f"{path} has no {CONFIG_FILE}: expected an adapter file, or a directory that PEFT stored.")
    try:
        layout = lookup(PEFT_KINDS, about.get("peft_type"), "peft_type")
    except ConfigError as error:
        raise AdapterError(f"{path}: {error}") from None
    try:
        with safetensors.safe_open(path / TENSORS_FILE, framework="flax") as handle:  # numpy reads no bfloat16
            tensors = {name: np.asarray(handle.get_tensor(name)).astype(np.float32) for name in handle.keys()}  # noqa: SIM118
            metadata = dict(handle.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise AdapterError(
            f"{path / TENSORS_FILE} is not readable ({error}): save the adapter with safe_serialization=True."
        ) from error
    try:
        arrays, fields = layout.read(about, tensors, config)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from None
    return StoredAdapter(layout.kind, arrays, fields), metadata


def to_peft(stored: StoredAdapter, config: DecoderConfig, *, base_model: str) -> tuple[dict[str, Any], Arrays]:
    """Returns the contents of `adapter_config.json` and the tensors of a PEFT directory.

    Args:
      stored: the adapter.
      config: of the base model.
      base_model: what PEFT loads as the base model, such as a hub id.

    Raises:
      AdapterError: a kind that PEFT does not have.
    """
    named = {layout.kind: peft_type for peft_type, layout in PEFT_KINDS.items()}
    if stored.kind not in named:
        raise AdapterError(f"PEFT has no {stored.kind}: expected one of {', '.join(sorted(named))}.")
    about, tensors = PEFT_KINDS[named[stored.kind]].write(stored.arrays, stored.fields, config)
    common = {
        "peft_type": named[stored.kind],
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
    }
    return {**common, **about}, {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def write_peft(
    path: Path, stored: StoredAdapter, config: DecoderConfig, *, base_model: str, metadata: Mapping[str, str]
) -> None:
    """Writes the two files of a PEFT directory into an existing folder.

    Args:
      path: the folder.
      stored: the adapter.
      config: of the base model.
      base_model: what PEFT loads as the base model.
      metadata: of the tensors.

    Raises:
      AdapterError: a kind that PEFT does not have.
    """
    about, tensors = to_peft(stored, config, base_model=base_model)
    (path / CONFIG_FILE).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    safetensors.numpy.save_file(dict(tensors), path / TENSORS_FILE, {"format": "pt", **metadata})


def virtual_token_fields(config: DecoderConfig, num_virtual: int) -> dict[str, Any]:
    """Returns the fields of `adapter_config.json` that all methods with virtual tokens have."""
    return {
        "num_virtual_tokens": num_virtual,
        "token_dim": config.embed_dim,
        "num_transformer_submodules": 1,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
    }


def only_tensor(tensors: Arrays, name: str) -> np.ndarray:
    """Returns the tensor of a method that stores one."""
    if set(tensors) != {name}:
        raise AdapterError(f"{TENSORS_FILE} holds {sorted(tensors)[:4]}: expected {name!r} alone.")
    return tensors[name]


def _read_prompt(about: Mapping[str, Any], tensors: Arrays, config: DecoderConfig) -> tuple[Arrays, dict[str, Any]]:
    del about, config
    embeddings = only_tensor(tensors, "prompt_embeddings")
    return {"embeddings": embeddings}, {"num_virtual": len(embeddings), "placement": IN_FRONT}


def _write_prompt(arrays: Arrays, fields: Mapping[str, Any], config: DecoderConfig) -> tuple[dict[str, Any], Arrays]:
    if fields["placement"] != IN_FRONT:
        raise AdapterError(f"PEFT puts a soft prompt in front of everything, and this one is {fields['placement']!r}.")
    about = {**virtual_token_fields(config, len(arrays["embeddings"])), "prompt_tuning_init": "RANDOM"}
    return about, {"prompt_embeddings": arrays["embeddings"]}


def _read_prefix(about: Mapping[str, Any], tensors: Arrays, config: DecoderConfig) -> tuple[Arrays, dict[str, Any]]:
    if about.get("prefix_projection"):
        raise AdapterError("its prefix comes out of a network (prefix_projection): store it without.")
    rows, c = only_tensor(tensors, "prompt_embeddings"), config
    if rows.ndim != 2 or rows.shape[1] != 2 * c.num_layers * c.num_kv_heads * c.head_dim:
        raise AdapterError(
            f"its prefix has shape {list(rows.shape)}: expected keys and values of {c.num_layers} layers with "
            f"{c.num_kv_heads} heads of {c.head_dim}."
        )
    stacked = rows.reshape(len(rows), c.num_layers, 2, c.num_kv_heads, c.head_dim).transpose(2, 1, 3, 0, 4)
    return {"keys": stacked[0], "values": stacked[1]}, {"num_virtual": len(rows)}


def _write_prefix(arrays: Arrays, fields: Mapping[str, Any], config: DecoderConfig) -> tuple[dict[str, Any], Arrays]:
    del fields
    stacked = np.stack([arrays["keys"], arrays["values"]]).transpose(3, 1, 0, 2, 4)
    num, heads = len(stacked), config.num_kv_heads
    about = {**virtual_token_fields(config, num), "token_dim": heads * config.head_dim, "num_attention_heads": heads}
    return about, {"prompt_embeddings": stacked.reshape(num, -1)}


_UNSUPPORTED = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
)
"""Options of LoRA in PEFT that change the computation and that the LoRA here does not have."""


def _read_lora(about: Mapping[str, Any], tensors: Arrays, config: DecoderConfig) -> tuple[Arrays, dict[str, Any]]:
    used = [name for name in _UNSUPPORTED if about.get(name)]
    if about.get("bias", "none") != "none" or about.get("lora_bias"):
        used.append("bias")
    if used:
        raise AdapterError(f"its LoRA uses {', '.join(used)}: expected one without, or merge it into the weights.")
    targets = {module: target for target, module in MODULES.items()}
    factors: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in tensors.items():
        match = _LORA_NAME.fullmatch(name)
        if match is None or match[2] not in targets or int(match[1]) >= config.num_layers:
            raise AdapterError(
                f"the tensor {name!r} has no place in a decoder of {config.num_layers} layers: expected factors of "
                f"{', '.join(MODULES.values())}."
            )
        part = "down" if match[3] == "A" else "up"
        factors.setdefault(f"{targets[match[2]]}/{part}", {})[int(match[1])] = tensor.T
    layers = {tuple(sorted(found)) for found in factors.values()}
    if len(layers) != 1 or (chosen := layers.pop()) != tuple(range(chosen[0], config.num_layers)):
        raise AdapterError(
            f"its LoRA adapts other layers in some matrices, or not the uppermost ones (of {config.num_layers}): "
            "expected all layers, or all from one on (layers_to_transform)."
        )
    rank = int(about["r"])
    scale = float(about["lora_alpha"]) / (rank**0.5 if about.get("use_rslora") else rank)
    return (
        {name: _stacked(name, [found[layer] for layer in chosen]) for name, found in factors.items()},
        {"rank": rank, "scale": scale, "first_layer": chosen[0]},
    )


def _stacked(name: str, matrices: Sequence[np.ndarray]) -> np.ndarray:
    if len({matrix.shape for matrix in matrices}) != 1:
        raise AdapterError(f"the factors of {name} have other shapes in some layers: expected one rank for all.")
    return np.stack(matrices)


def _write_lora(arrays: Arrays, fields: Mapping[str, Any], config: DecoderConfig) -> tuple[dict[str, Any], Arrays]:
    first, rank = int(fields["first_layer"]), int(fields["rank"])
    tensors, modules = {}, set()
    for name, stack in arrays.items():
        target, part = name.rsplit("/", 1)
        modules.add(MODULES[target].rsplit(".", 1)[1])
        factor = "A" if part == "down" else "B"
        for layer, matrix in enumerate(stack, start=first):
            tensors[f"base_model.model.model.layers.{layer}.{MODULES[target]}.lora_{factor}.weight"] = matrix.T
    about = {
        "r": rank,
        "lora_alpha": float(fields["scale"]) * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(modules),
        "layers_to_transform": list(range(first, config.num_layers)) if first else None,
    }
    return about, tensors


PEFT_KINDS: dict[str, PeftKind] = {
    "PROMPT_TUNING": PeftKind("soft_prompt", _read_prompt, _write_prompt),
    "PREFIX_TUNING": PeftKind("prefix", _read_prefix, _write_prefix),
    "LORA": PeftKind("lora", _read_lora, _write_lora),
}
"""Adapter kinds by the `peft_type` of `adapter_config.json`."""
