"""The precision that a run began with, kept in its work directory."""

import dataclasses
import json
import logging
from pathlib import Path

from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.precision import Precision, choose_precision, with_chosen
from edgesafe_jax.parallel import main_process_first
from edgesafe_jax.training.workdir import is_whole, write_checked

_log = logging.getLogger(__name__)

PRECISION = "precision.json"
"""What `choose_precision` chose, in a work directory: a run that is continued keeps it, on another machine too."""


def with_kept_precision(model: LanguageModel, workdir: str | Path) -> LanguageModel:
    """Returns a model with the precision that a run began with; the first start chooses it.

    Args:
      model: the model.
      workdir: of the run.

    Returns:
      The model in that precision.
    """
    file = Path(workdir) / PRECISION
    with main_process_first("precision"):
        if not is_whole(file):
            text = json.dumps(dataclasses.asdict(choose_precision(model.config)))
            write_checked(file, lambda part: part.write_text(text, encoding="utf-8"))
    chosen = Precision(**json.loads(file.read_text(encoding="utf-8")))
    _log.info(f"factors of matrix products: {chosen.training} in training, {chosen.decoding} in decoding")
    return with_chosen(model, chosen)
