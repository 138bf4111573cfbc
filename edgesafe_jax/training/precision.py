"""The precision that a run began with, kept in its work directory."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp

from edgesafe_jax.assets.digests import is_whole, write_checked
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.precision import Precision, choose_precision, with_chosen
from edgesafe_jax.parallel import is_main_process, main_process_first
from edgesafe_jax.training.workdir import CONFIG

_log = logging.getLogger(__name__)

PRECISION = "precision.json"
"""What `choose_precision` chose, in a work directory: a run that is continued keeps it, on another machine too."""


def with_kept_precision(model: LanguageModel, workdir: str | Path) -> LanguageModel:
    """Returns a model with the precision that a run began with; the first start chooses it.

    Of a run that has not begun yet nothing is written (several processes agree by the file), see `keep_precision`.

    Args:
      model: the model.
      workdir: of the run.

    Returns:
      The model in that precision.
    """
    file = Path(workdir) / PRECISION
    with main_process_first("precision"):
        if is_whole(file):
            chosen = Precision(**json.loads(file.read_text(encoding="utf-8")))
        else:
            chosen = choose_precision(model.config)
            if file.with_name(CONFIG).exists() or jax.process_count() > 1:
                _write(file, chosen)
    _log.info(f"factors of matrix products: {chosen.training} in training, {chosen.decoding} in decoding")
    return with_chosen(model, chosen)


def keep_precision(model: LanguageModel, workdir: str | Path, asked: str) -> None:
    """Keeps the precision of a model in the work directory of a run that has begun, unless one is kept there.

    Args:
      model: in the precision that `with_kept_precision` chose.
      workdir: of the run.
      asked: what the run asks for; only what "auto" chose is kept.
    """
    file = Path(workdir) / PRECISION
    if asked == "auto" and is_main_process() and not is_whole(file):
        training = jnp.dtype(model.matmul_dtype or model.dtype).name
        decoding = training if model.decoding_dtype is None else jnp.dtype(model.decoding_dtype).name
        _write(file, Precision(training, decoding))


def _write(file: Path, precision: Precision) -> None:
    text = json.dumps(dataclasses.asdict(precision))
    write_checked(file, lambda part: part.write_text(text, encoding="utf-8"))
