"""Export to PEFT: a directory that `peft.PeftModel.from_pretrained` loads, and that `load_adapter` reads back."""

from collections.abc import Mapping
from pathlib import Path

from edgesafe_jax.adapters import stored_form
from edgesafe_jax.adapters.peft_directories import PEFT_KINDS, write_peft
from edgesafe_jax.exporting.exporter import Format
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import Adapter


def _write(adapter: Adapter, model: LanguageModel, folder: Path) -> Mapping[str, str]:
    bound = {"base_model_hash": model.hash, "tokenizer_hash": model.tokenizer.hash}
    write_peft(folder, stored_form(adapter), model.config, base_model=model.name, metadata=bound)
    return {}


PEFT = Format(
    carries=tuple(layout.kind for layout in PEFT_KINDS.values()),
    write=_write,
    usage=(
        "```python\nfrom peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base_model, '{path}')\n```\n\n"
        "where `base_model` is the transformers model of the base weights. "
        "`edgesafe_jax.adapters.load_adapter('{path}', model)` reads the directory back."
    ),
)
