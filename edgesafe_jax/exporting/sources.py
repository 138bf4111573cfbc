"""Trained adapters as they lie on the disk: with their base model, and what is known of their training."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from edgesafe_jax.adapters import AdapterError, load_adapter, packaged_soft_prompt
from edgesafe_jax.adapters.peft_directories import CONFIG_FILE
from edgesafe_jax.exporting.card import Provenance, from_result, from_summary
from edgesafe_jax.exporting.exporter import ExportError, check_target
from edgesafe_jax.exporting.hub import check_repo, push
from edgesafe_jax.exporting.registry import make_exporter
from edgesafe_jax.models.files import read_json
from edgesafe_jax.models.loading import LanguageModel, load_model
from edgesafe_jax.reporting.results import read_result
from edgesafe_jax.typing import Adapter

PACKAGED = "packaged"
"""The name of the soft prompt that ships with the package."""

_IN_WORKDIR = "adapter/adapter.safetensors"


def read_checkpoint(checkpoint: str | Path, *, base: str | None = None) -> tuple[Adapter, LanguageModel, Provenance]:
    """Reads an adapter, its base model and what is known of its training.

    Args:
      checkpoint: work directory of a finished alignment run, an adapter file, a directory that PEFT stored, or
        "packaged".
      base: the base model; default the one that the checkpoint names.

    Returns:
      Adapter, base model, provenance.

    Raises:
      ExportError: there is no adapter, or no base model is named.
      AdapterError: the adapter cannot be read, or belongs to another base model.
    """
    path = packaged_soft_prompt() if str(checkpoint) == PACKAGED else Path(checkpoint)
    summary: dict[str, Any] = {}
    if path.is_dir() and (path / CONFIG_FILE).exists():
        named = read_json(path / CONFIG_FILE, AdapterError).get("base_model_name_or_path")
        about: dict[str, Any] = {}
    else:
        if path.is_dir():
            summary = read_json(path / "summary.json", ExportError)
            path = path / _IN_WORKDIR
        if path.suffix != ".safetensors" or not path.exists():
            raise ExportError(
                f"There is no adapter {path}: expected the work directory of a finished alignment run, an adapter file "
                f"(.safetensors with its .json), a directory that PEFT stored, or {PACKAGED!r}."
            )
        about = read_json(path.with_suffix(".json"), AdapterError)
        named = about.get("base_model")
    spec = base or named
    if not spec:
        raise ExportError(f"{path} names no base model: give it with --base.")
    model = load_model(spec, template_variables=json.loads(_variables(about)))
    provenance = Provenance(training=about.get("training", {}), measured=from_summary(summary), license=_license(model))
    return load_adapter(path, model), model, provenance


def export_checkpoint(
    checkpoint: str | Path,
    format: str,
    out: str | Path,
    *,
    base: str | None = None,
    repo: str | None = None,
    packaged_results: Path | None = None,
) -> tuple[Path, str | None]:
    """Exports a trained adapter from the disk; what cannot work is refused before anything is loaded.

    Args:
      checkpoint: see `read_checkpoint`.
      format: in `EXPORTERS`.
      out: the directory to make.
      base: the base model; default the one that the checkpoint names.
      repo: a repository `OWNER/NAME` of the hub to upload the directory to, or None.
      packaged_results: the results file of the packaged soft prompt, for its model card.

    Returns:
      The directory, and the address of the upload or None.

    Raises:
      ConfigError: an unknown format.
      ExportError: a target that is taken, or what `read_checkpoint`, the format or the upload refuses.
    """
    export = make_exporter(format)
    check_target(out)
    if repo:
        check_repo(repo)
    adapter, model, provenance = read_checkpoint(checkpoint, base=base)
    if str(checkpoint) == PACKAGED and packaged_results is not None and packaged_results.exists():
        provenance = dataclasses.replace(provenance, measured=from_result(read_result(packaged_results)))
    path = export(adapter, model, out, provenance=provenance)
    return path, push(path, repo) if repo else None


def _variables(about: dict[str, Any]) -> str:
    return about.get("training", {}).get("template_variables") or "{}"


def _license(model: LanguageModel) -> str:
    """The licence that a GGUF file names."""
    import gguf

    from edgesafe_jax.assets import resolve_model

    source = resolve_model(model.name)
    if source.kind != "gguf":
        return ""
    field = gguf.GGUFReader(str(source.path)).fields.get("general.license")
    return "" if field is None else str(field.contents())
