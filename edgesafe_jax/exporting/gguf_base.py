"""GGUF files as a base: where the matrices of a decoder lie in them, and copies with some tensors changed."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgesafe_jax.exporting.exporter import ExportError
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.families.family import Family, GgufLayout, Place
from edgesafe_jax.models.gguf_files import layout_of

GGUF_FILE = "model.gguf"
"""The name of a model's file in an exported directory."""

QuantType = gguf.GGMLQuantizationType


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor as it is stored.

    Attributes:
      data: the array, rows of bytes where the type is a quantised one.
      type: how it is stored.
    """

    data: np.ndarray
    type: QuantType


def stored_as(array: np.ndarray, kind: QuantType) -> Tensor:
    """Stores float numbers in a type of GGUF, rounding where the type is coarser."""
    return Tensor(gguf.quants.quantize(np.ascontiguousarray(array, np.float32), kind), kind)


@dataclasses.dataclass(frozen=True)
class Field:
    """A metadata field.

    Attributes:
      value: what it holds.
      type: of the value.
      item_type: of the items, where the value is a list.
    """

    value: Any
    type: gguf.GGUFValueType
    item_type: gguf.GGUFValueType | None = None


class GgufBase:
    """An open GGUF file of a supported family.

    Args:
      path: the file.
      config: of the model that was loaded from it.

    Raises:
      LoadingError: another architecture than those of `FAMILIES`.
    """

    def __init__(self, path: Path, config: DecoderConfig):
        self.path = path
        self.config = config
        self.reader = gguf.GGUFReader(str(path))
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        self.architecture = str(self.value("general.architecture"))
        found: tuple[Family, GgufLayout] = layout_of(self.architecture, path)
        self.family, self.layout = found

    def value(self, name: str, default: Any = None) -> Any:
        """Returns the contents of a metadata field."""
        field = self.reader.fields.get(name)
        return default if field is None else field.contents()

    def hf_name(self, matrix: str) -> str:
        """Returns the Hugging Face name of a layer's matrix (`attention/query`) inside the layer."""
        return hf_name(self.family, self.config, matrix)

    def name(self, matrix: str, layer: int) -> str:
        """Returns the name of a layer's matrix (`attention/query`) in the file."""
        module = self.hf_name(matrix).removesuffix(".weight")
        [part] = [part for part, name in self.layout.layer_names.items() if name == module]
        return f"blk.{layer}.{part}.weight"

    def converted(self, matrix: str, weight: np.ndarray) -> np.ndarray:
        """Orders the rows of a matrix, stored outputs first, as the file has them."""
        return np.ascontiguousarray(self.layout.convert(self.config, self.hf_name(matrix), weight))


def hf_name(family: Family, config: DecoderConfig, matrix: str) -> str:
    """Returns the Hugging Face name of a layer's matrix (`attention/query`) inside the layer.

    Raises:
      ExportError: the family does not store this matrix as a tensor of its own.
    """
    path = tuple(matrix.split("/"))
    places = family.layer_tensors(config)
    names = [name for name, place in places.items() if isinstance(place, Place) and place.path == path]
    if not names:
        raise ExportError(f"This model family does not store {matrix} as a tensor of its own: nothing can replace it.")
    return names[0]


def copy_gguf(
    base: GgufBase,
    target: Path,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    fields: Mapping[str, Field] | None = None,
) -> None:
    """Copies a GGUF file; what is not named is the same byte for byte.

    Args:
      base: the file.
      target: the copy.
      tensors: tensors that take the place of those of their name, or come at the end.
      fields: metadata fields, in the same way.
    """
    tensors, fields = dict(tensors or {}), dict(fields or {})
    writer = gguf.GGUFWriter(str(target), base.architecture)
    writer.data_alignment = base.reader.alignment
    for name, field in base.reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        kept = Field(field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
        _add_field(writer, name, fields.pop(name, kept))
    for name, field in fields.items():
        _add_field(writer, name, field)
    replaced = {
        name: tensors.pop(name, Tensor(tensor.data, tensor.tensor_type)) for name, tensor in base.tensors.items()
    }
    write_tensors(writer, {**replaced, **tensors})


def _add_field(writer: gguf.GGUFWriter, name: str, field: Field) -> None:
    writer.add_key_value(name, field.value, field.type, field.item_type)


def write_tensors(writer: gguf.GGUFWriter, tensors: Mapping[str, Tensor]) -> None:
    """Writes the metadata that a writer was given and the tensors, and closes it."""
    for name, tensor in tensors.items():
        writer.add_tensor_info(name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors.values():
        writer.write_tensor_data(tensor.data)
    writer.close()
