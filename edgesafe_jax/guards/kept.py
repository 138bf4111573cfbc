"""Answers and features stored in a folder, so that an interrupted training of a guard continues."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import jax
import numpy as np

from edgesafe_jax.assets import is_whole, write_checked
from edgesafe_jax.corpora import Prompt
from edgesafe_jax.guards.examples import pair_key
from edgesafe_jax.models.generation import generate
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.reporting.progress import ProgressBar
from edgesafe_jax.training import write_json

Features: TypeAlias = Callable[[Sequence[str], Sequence[str], str], np.ndarray]
"""From N prompts, N responses and a name under which they are kept to features `[N, M]`."""


def kept_answers(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    name: str,
    folder: str | Path,
    *,
    max_tokens: int,
    temperature: float,
    batch_size: int = 64,
) -> list[str]:
    """Generates the model's answers to prompts, or reads them back.

    Args:
      model: the language model.
      prompts: N prompts.
      name: under which the answers are kept.
      folder: where they are kept, as `NAME.json`.
      max_tokens: longest answer, in tokens.
      temperature: of the sampling; 0 is greedy.
      batch_size: prompts that run at once.

    Returns:
      N texts.
    """
    file = Path(folder) / f"{name}.json"
    texts = [p.text for p in prompts]
    if is_whole(file):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["prompts"] == texts:
            return kept["responses"]
    with ProgressBar(f"answering {len(texts)} prompts: {name}") as progress:
        answers = generate(
            model,
            texts,
            max_tokens=max_tokens,
            temperature=temperature,
            key=jax.random.key(0),
            batch_size=batch_size,
            on_batch=progress,
        )
    write_json(file, {"prompts": texts, "responses": answers.texts}, checked=True)
    return answers.texts


def kept_features(features: Features, folder: str | Path) -> Features:
    """Makes features that are computed once for each pair and kept in a folder.

    Args:
      features: computes features of pairs.
      folder: where they are kept, one file for each call that computes some.

    Returns:
      Features in the same form.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    known: dict[str, np.ndarray] = {}
    for file in filter(is_whole, sorted(folder.glob("*.npz"))):
        with np.load(file) as stored:
            known |= dict(zip(stored["keys"].tolist(), stored["values"], strict=True))

    def kept(prompts: Sequence[str], responses: Sequence[str], name: str) -> np.ndarray:
        keys = [pair_key(x, y) for x, y in zip(prompts, responses, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in known]
        if missing:
            values = features([prompts[i] for i in missing], [responses[i] for i in missing], name).astype(np.float32)
            fresh = {keys[i]: value for i, value in zip(missing, values, strict=True)}
            # A file of its own for each reading: one of the same name would replace what was read before.
            reading = hashlib.sha256("".join(fresh).encode()).hexdigest()[:12]
            write_checked(
                folder / f"{name}-{reading}.npz",
                lambda part: np.savez(part, keys=np.array(list(fresh)), values=np.stack(list(fresh.values()))),
            )
            known.update(fresh)
        return np.stack([known[key] for key in keys])

    return kept
