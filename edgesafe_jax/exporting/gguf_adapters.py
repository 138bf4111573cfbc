"""Export of adapters as llama.cpp's own adapter files: a LoRA, and steering vectors as a control vector."""

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np

from edgesafe_jax.adapters import LoRA, Steering
from edgesafe_jax.exporting.exporter import ExportError, Format, base_files
from edgesafe_jax.exporting.gguf_base import GgufBase, QuantType, Tensor, write_tensors
from edgesafe_jax.models.loading import LanguageModel

ADAPTER_FILE = "adapter.gguf"


def open_base(model: LanguageModel) -> GgufBase:
    """Opens the GGUF file of a base model.

    Raises:
      ExportError: the model was loaded from something else.
    """
    source = base_files(model)
    if source.kind != "gguf":
        raise ExportError(
            f"{model.name} is a Hugging Face directory: this format belongs to a GGUF file. Convert the directory with "
            "llama.cpp's convert_hf_to_gguf.py, or use the format 'peft'."
        )
    return GgufBase(Path(source.path), model.config)


def _write_file(path: Path, architecture: str, describe: Callable[[gguf.GGUFWriter], None], tensors: dict) -> None:
    writer = gguf.GGUFWriter(str(path), architecture)
    describe(writer)
    exact = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    write_tensors(writer, {name: Tensor(array, QuantType.F32) for name, array in exact.items()})


def _write_lora(adapter: LoRA, model: LanguageModel, folder: Path) -> Mapping[str, str]:
    base = open_base(model)
    tensors, rank = {}, 0
    for matrix, downs in adapter.down.items():
        for layer, (down, up) in enumerate(zip(downs, adapter.up[matrix], strict=True), start=adapter.first_layer):
            name, rank = base.name(matrix, layer), down.shape[1]
            tensors[f"{name}.lora_a"] = np.asarray(down).T
            tensors[f"{name}.lora_b"] = base.converted(matrix, np.asarray(up).T)

    def describe(writer: gguf.GGUFWriter) -> None:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", adapter.scale * rank)

    _write_file(folder / ADAPTER_FILE, base.architecture, describe, tensors)
    return {"Factors": f"of {len(tensors) // 2} matrices, float32"}


def _write_control_vector(adapter: Steering, model: LanguageModel, folder: Path) -> Mapping[str, str]:
    base = open_base(model)
    if 0 in adapter.layers:
        raise ExportError(
            "These steering vectors change the output of layer 0, which a control vector of llama.cpp leaves alone: "
            "train them for layers from 1 on."
        )
    # llama.cpp counts layers from 0 too, and adds `direction.N` to the output of layer N.
    tensors = {f"direction.{layer}": vector for layer, vector in zip(adapter.layers, adapter.vectors, strict=True)}

    def describe(writer: gguf.GGUFWriter) -> None:
        writer.add_string("controlvector.model_hint", base.architecture)
        writer.add_uint32("controlvector.layer_count", len(tensors))

    _write_file(folder / ADAPTER_FILE, "controlvector", describe, tensors)
    return {"Directions": f"of layers {', '.join(map(str, adapter.layers))}, float32"}


LORA_GGUF = Format(
    carries=("lora",),
    write=_write_lora,
    usage="```\nllama-cli -m BASE.gguf --lora {path}/adapter.gguf -cnv\n```",
)
CONTROL_VECTOR = Format(
    carries=("steering",),
    write=_write_control_vector,
    usage="```\nllama-cli -m BASE.gguf --control-vector {path}/adapter.gguf -cnv\n```",
)
