"""Adapters in the formats of other programs, and measurements inside them.

`EXPORTERS[name](adapter, model, path)` writes a directory in one format, with a model card. `RUNTIMES[name]` runs an
exported file, and `evaluate_runtime` measures safety and usefulness there.

There is no format for LiteRT or ONNX. The maintained converter of LiteRT (litert-torch) takes PyTorch modules, and from
JAX the way there leads through TensorFlow, which is kept out of this project. Converters of JAX functions, such as that
to ONNX, start from what `stablehlo` starts from.
"""

from edgesafe_jax.exporting.card import Measured, Provenance
from edgesafe_jax.exporting.exporter import ExportError, Format, check_target
from edgesafe_jax.exporting.registry import EXPORTERS, Exporter, make_exporter
from edgesafe_jax.exporting.runtime import Runtime, RuntimeFailure, RuntimeSettings
from edgesafe_jax.exporting.runtime_evaluation import RUNTIMES, evaluate_runtime, start_runtime
from edgesafe_jax.exporting.sources import export_checkpoint, read_checkpoint

__all__ = [
    "EXPORTERS",
    "RUNTIMES",
    "ExportError",
    "Exporter",
    "Format",
    "Measured",
    "Provenance",
    "Runtime",
    "RuntimeFailure",
    "RuntimeSettings",
    "check_target",
    "evaluate_runtime",
    "export_checkpoint",
    "make_exporter",
    "read_checkpoint",
    "start_runtime",
]
