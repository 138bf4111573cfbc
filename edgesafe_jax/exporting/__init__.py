"""Adapters in the formats of other programs, and measurements inside them.

`EXPORTERS[name](adapter, model, path)` writes a directory in one format, with a model card.
"""

from edgesafe_jax.exporting.card import Measured, Provenance
from edgesafe_jax.exporting.exporter import ExportError, Format, check_target
from edgesafe_jax.exporting.registry import EXPORTERS, Exporter, make_exporter

__all__ = ["EXPORTERS", "ExportError", "Exporter", "Format", "Measured", "Provenance", "check_target", "make_exporter"]
