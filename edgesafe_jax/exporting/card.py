"""Model cards: what an exported directory says of itself, in the form that model hubs read."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgesafe_jax.adapters import StoredAdapter
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.reporting.results import Result

CARD_FILE = "README.md"

KNOWN_FAILURES = (
    "An adapter that was distilled from a guarded model does not see its own answer: attacks that write the beginning "
    "of the answer (prefill attacks) bypass it more often than they bypass the guard.",
    "Jailbreaks and languages that were not in the training prompts can bypass it, and some harmless requests on "
    "sensitive subjects are refused.",
    "It is bound to its base model: on other weights, also on another quantisation of the same model, the numbers here "
    "do not hold.",
)
"""What holds for all adapters of this library."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """A measured number of a model card.

    Attributes:
      name: what was measured.
      value: the number.
      low: lower end of its 95 % interval, or None.
      high: upper end.
      num: how many prompts it is over, or None.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    num: int | None = None


@dataclasses.dataclass(frozen=True)
class Provenance:
    """How an adapter was made and what was measured of it.

    Attributes:
      training: config of its training.
      measured: numbers of its evaluation, before the export.
      notes: sentences on failures that are particular to it.
      license: SPDX name of the licence of the base model, which binds the adapter too; empty where it is not known.
    """

    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measured: Sequence[Measured] = ()
    notes: Sequence[str] = ()
    license: str = ""


def from_summary(summary: Mapping[str, Any], *, system: str = "student") -> list[Measured]:
    """Reads the refusal rates of a run's `summary.json`.

    Args:
      summary: its contents.
      system: whose numbers.

    Returns:
      A number for each set of prompts.
    """
    found = []
    for name, value in summary.items():
        parts = name.split("/")
        if len(parts) == 4 and parts[0] == "alignment" and parts[2:] == [system, "refused"] and value is not None:
            num = summary.get(f"alignment/{parts[1]}/num_prompts")
            ends = (summary.get(f"{name}_{end}") for end in ("low", "high"))
            found.append(Measured(f"refused, {parts[1]}", value, *ends, num=None if num is None else int(num)))
    return found


def from_result(result: Result, *, system: str = "student") -> list[Measured]:
    """Reads the refusal rates of a results file, numbers `refused/SET/SYSTEM`."""
    named = [(number.name.split("/"), number) for number in result.numbers]
    return [
        Measured(f"refused, {parts[1]}", number.value, number.low, number.high, number.n)
        for parts, number in named
        if len(parts) == 3 and (parts[0], parts[2]) == ("refused", system)
    ]


def make_card(
    format: str,
    stored: StoredAdapter,
    model: LanguageModel,
    folder: Path,
    usage: str,
    details: Mapping[str, str],
    provenance: Provenance,
) -> str:
    """Writes the model card of an exported directory.

    Args:
      format: name of the format.
      stored: the adapter.
      model: its base model.
      folder: the directory, with all other files in it.
      usage: how the result is run.
      details: what the format says of its files, by title.
      provenance: how the adapter was made.

    Returns:
      Markdown with a YAML header.
    """
    training = provenance.training
    about = {
        "Adapter": f"{stored.kind}, {sum(array.size for array in stored.arrays.values()):,} numbers",
        "Format": format,
        "Base model": model.name,
        "Hash of the base model": model.hash,
        "Hash of the tokenizer": model.tokenizer.hash,
        "Objective": str(training.get("objective", "not recorded")),
        "Training data": _data(training),
        **details,
        "Licence": provenance.license or "that of the base model",
    }
    header = {
        "base_model": model.name,
        "tags": ["edgesafe-jax", format, stored.kind],
        "pipeline_tag": "text-generation",
    }
    if provenance.license:
        header["license"] = provenance.license
    lines = ["---", *(f"{name}: {json.dumps(value)}" for name, value in sorted(header.items())), "---", ""]
    lines += [f"# {model.name} with a {stored.kind.replace('_', ' ')}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in about.items()]
    lines += ["", "## Use", "", usage, "", "## Files", "", "| file | bytes |", "|---|---|"]
    lines += [
        f"| {file.relative_to(folder)} | {file.stat().st_size:,} |"
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    ]
    lines += ["", "## Measured", ""]
    if provenance.measured:
        lines += ["Before the export, in JAX. Brackets are 95 % intervals.", ""]
        lines += _measured(provenance.measured)
    else:
        lines += ["Nothing was recorded with this adapter: evaluate it before use."]
    lines += ["", "## Known failures", ""]
    lines += [f"- {note}" for note in (*provenance.notes, *KNOWN_FAILURES)]
    if training:
        lines += ["", "## Training config", "", "```json", json.dumps(training, indent=2, sort_keys=True), "```"]
    return "\n".join(lines) + "\n"


def _measured(numbers: Sequence[Measured]) -> list[str]:
    lines = ["| quantity | N | value |", "|---|---|---|"]
    for each in numbers:
        ends = "" if each.low is None or each.high is None else f" [{each.low:.3g}, {each.high:.3g}]"
        lines.append(f"| {_cell(each.name)} | {'' if each.num is None else each.num} | {each.value:.3g}{ends} |")
    return lines


def _data(training: Mapping[str, Any]) -> str:
    data = training.get("data")
    if not isinstance(data, Mapping):
        return "not recorded"
    counts = ("num_harmful", "num_sensitive", "num_plain", "num_forms", "num_everyday")
    named = [
        f"{name.removeprefix('num_')}: {'all' if data[name] == -1 else data[name]}" for name in counts if name in data
    ]
    return "prompts by group (" + ", ".join(named) + ")" if named else "not recorded"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
