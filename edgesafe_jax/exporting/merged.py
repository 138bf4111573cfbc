"""Export of merged weights: the base model's own file with `W + scale A B` in place of the adapted matrices.

A GGUF file becomes a GGUF file: the other tensors are the same block for block, and the merged matrices are stored as
float16, because rounding them to the few bits of a quantised base would lose the addition. A Hugging Face directory
becomes one whose tensors keep their dtypes.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgesafe_jax.adapters import LoRA
from edgesafe_jax.adapters.lora import merge_params
from edgesafe_jax.exporting.directory_base import copy_settings, read_tensors, write_tensors
from edgesafe_jax.exporting.exporter import Format, base_files
from edgesafe_jax.exporting.gguf_base import GGUF_FILE, GgufBase, QuantType, copy_gguf, hf_name, stored_as
from edgesafe_jax.models.directories import family_of, read_settings
from edgesafe_jax.models.loading import LanguageModel, load_model


def _matrices(model: LanguageModel, lora: LoRA) -> dict[tuple[str, int], np.ndarray]:
    """The merged matrices, stored outputs first, by name and layer."""
    exact = model.matmul_dtype is None and model.dtype == np.float32
    merged = merge_params(model.params if exact else load_model(model.name).params, lora)["layers"]
    found = {}
    for matrix in lora.down:
        module, leaf = matrix.split("/")
        for layer in range(lora.first_layer, model.config.num_layers):
            found[matrix, layer] = np.asarray(merged[module][leaf][layer], np.float32).T
    return found


def write_merged(adapter: LoRA, model: LanguageModel, folder: Path) -> Mapping[str, str]:
    """Writes the base model's file with a LoRA in its weights; returns what the model card says of it."""
    source = base_files(model)
    if source.kind == "gguf":
        base = GgufBase(Path(source.path), model.config)
        changed = {
            base.name(matrix, layer): stored_as(base.converted(matrix, weight), QuantType.F16)
            for (matrix, layer), weight in _matrices(model, adapter).items()
        }
        copy_gguf(base, folder / GGUF_FILE, tensors=changed)
        return {"Merged matrices": f"{len(changed)}, stored as float16; all other tensors are those of the base file"}
    family, tensors = family_of(read_settings(Path(source.path))), read_tensors(Path(source.path))
    for (matrix, layer), weight in _matrices(model, adapter).items():
        name = f"{family.layers}.{layer}.{hf_name(family, model.config, matrix)}"
        tensors[name] = np.ascontiguousarray(weight.astype(tensors[name].dtype))
    copy_settings(Path(source.path), folder)
    write_tensors(folder, tensors)
    return {"Merged matrices": f"of {', '.join(sorted(adapter.down))}, in the dtype of the base model"}


MERGED = Format(
    carries=("lora",),
    write=write_merged,
    usage=(
        "```\nllama-cli -m {path}/model.gguf -cnv\n```\n\n"
        "or `load_model('{path}')` where the base model is a Hugging Face directory."
    ),
)
