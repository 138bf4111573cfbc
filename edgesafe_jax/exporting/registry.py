"""The table of export formats.

To add a format, write one file that ends in a `Format` and add a line to `EXPORTERS`.
"""

import dataclasses
from pathlib import Path

from edgesafe_jax.adapters import stored_form
from edgesafe_jax.errors import lookup
from edgesafe_jax.exporting.card import CARD_FILE, Provenance, make_card
from edgesafe_jax.exporting.compositions import advice, simplified
from edgesafe_jax.exporting.exporter import ExportError, Format, new_directory
from edgesafe_jax.exporting.gguf_adapters import CONTROL_VECTOR, LORA_GGUF
from edgesafe_jax.exporting.merged import MERGED
from edgesafe_jax.exporting.peft import PEFT
from edgesafe_jax.exporting.prefix_cache import PREFIX_CACHE
from edgesafe_jax.exporting.stablehlo import STABLEHLO
from edgesafe_jax.exporting.vocabulary_graft import VOCABULARY_GRAFT, VOCABULARY_GRAFT_UNTIED
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import IN_FRONT, Adapter


@dataclasses.dataclass(frozen=True)
class Exporter:
    """Writes adapters in one format.

    Attributes:
      name: of the format.
      format: the format.
    """

    name: str
    format: Format

    def __call__(
        self, adapter: Adapter, model: LanguageModel, path: str | Path, *, provenance: Provenance | None = None
    ) -> Path:
        """Writes a new directory with the exported files and a model card.

        Args:
          adapter: the adapter.
          model: its base model, as `load_model` returned it.
          path: the directory, which must not exist. It is there as a whole or not at all.
          provenance: how the adapter was trained and what was measured, for the model card.

        Returns:
          The directory.

        Raises:
          ExportError: an adapter or a base model that the format cannot take, the files of another base model, or a
            name that is taken.
          StorageError: the directory cannot be written.
        """
        adapter = simplified(adapter)
        stored = stored_form(adapter)
        if not self.format.holds(stored.kind):
            able = [name for name, exporter in EXPORTERS.items() if exporter.format.holds(stored.kind)]
            raise ExportError(
                f"The format {self.name!r} cannot carry a {stored.kind}, only {' or '.join(self.format.carries)}. "
                f"Formats for a {stored.kind}: {', '.join(able) or 'none'}.{advice(adapter)}"
            )
        if adapter.placement != IN_FRONT:
            raise ExportError(
                f"A soft prompt with placement={adapter.placement!r} cannot be exported, only {IN_FRONT!r}."
            )
        path = Path(path)
        with new_directory(path) as folder:
            details = self.format.write(adapter, model, folder)
            usage = self.format.usage.format(path=path.name)
            card = make_card(self.name, stored, model, folder, usage, details, provenance or Provenance())
            (folder / CARD_FILE).write_text(card, encoding="utf-8")
        return path


def make_exporter(name: str) -> Exporter:
    """Returns the exporter of a format; an unknown name is a `ConfigError` that lists the known ones."""
    return lookup(EXPORTERS, name, "format")


EXPORTERS: dict[str, Exporter] = {
    name: Exporter(name, made)
    for name, made in {
        "peft": PEFT,
        "merged": MERGED,
        "lora": LORA_GGUF,
        "control_vector": CONTROL_VECTOR,
        "prefix_cache": PREFIX_CACHE,
        "stablehlo": STABLEHLO,
        "vocabulary_graft": VOCABULARY_GRAFT,
        "vocabulary_graft_untied": VOCABULARY_GRAFT_UNTIED,
    }.items()
}
"""Exporters by the name of their format."""
