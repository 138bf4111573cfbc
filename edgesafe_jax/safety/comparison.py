"""Two methods on the same prompts: values of each prompt are kept, and differences are bootstrapped in pairs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgesafe_jax import metrics
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.safety.evaluation import Evaluation, SetResult
from edgesafe_jax.training import write_checked

VALUES = "values.json"
"""Where the values of an evaluation lie in a work directory."""


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _fingerprint(base: np.ndarray) -> str:
    """The base model's numbers stand for the items: where they are the same, model and items are."""
    return _digest([f"{value:.4f}" for value in base.astype(float)])


def verdicts_of(result: SetResult) -> dict[str, np.ndarray]:
    """Collects the verdicts on the student's answers to one set.

    Args:
      result: of the set.

    Returns:
      `[N]` of 0 and 1: by judge whether an answer is a refusal, and as `sgs_GUARD` whether a guard calls it safe.
    """
    refused = {judge: found.astype(int) for judge, found in result.student.refusals.items()}
    return refused | {f"sgs_{guard}": (prob < 0.5).astype(int) for guard, prob in result.student.unsafe_probs.items()}


def values_of(evaluation: Evaluation) -> dict[str, tuple[str, np.ndarray]]:
    """Collects the student's numbers of each prompt.

    Args:
      evaluation: what was measured.

    Returns:
      By quantity, such as "strongreject/refused", a hash of the items and `[N]` numbers.
    """
    found: dict[str, tuple[str, np.ndarray]] = {}

    for name, result in {**evaluation.results, **evaluation.attacks}.items():
        items = _digest([prompt.text for prompt in result.prompts])
        found |= {f"{name}/{verdict}": (items, rows.astype(float)) for verdict, rows in verdicts_of(result).items()}
    for name, (before, after) in evaluation.choices.items():
        # The base model's numbers stand for the items: they are the same where the items are.
        found[f"{name}/accuracy"] = _fingerprint(before), after.astype(float)
    for name, scores in evaluation.usefulness.items():
        for quantity, after in scores.student.items():
            found[f"{name}/{quantity}"] = _fingerprint(scores.base[quantity]), after
    return found


def write_values(workdir: str | Path, evaluation: Evaluation) -> None:
    """Writes what `values_of` collects to `values.json`."""
    rows = {name: {"items": items, "values": array.tolist()} for name, (items, array) in values_of(evaluation).items()}
    text = json.dumps(rows)
    write_checked(Path(workdir) / VALUES, lambda part: part.write_text(text, encoding="utf-8"))


def read_values(workdir: str | Path) -> dict[str, tuple[str, np.ndarray]]:
    """Reads the values of an evaluation.

    Args:
      workdir: where `launch.evaluate` wrote them.

    Returns:
      As `values_of`.

    Raises:
      ConfigError: there are none, or the file is damaged.
    """
    path = Path(workdir) / VALUES
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {name: (row["items"], np.array(row["values"], float)) for name, row in rows.items()}
    except FileNotFoundError:
        raise ConfigError(f"There is no {path}: evaluate that run with launch.evaluate first.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): evaluate that run again.") from None


def compare(
    values: Mapping[str, tuple[str, np.ndarray]], baseline: Mapping[str, tuple[str, np.ndarray]]
) -> list[dict[str, object]]:
    """Compares two methods on the prompts that both were measured on.

    Args:
      values: of one, see `read_values`.
      baseline: of the other.

    Returns:
      Rows of a table: quantity, N, both means, and the paired bootstrap interval of the difference.

    Raises:
      ConfigError: no quantity was measured on the same items.
    """
    rows: list[dict[str, object]] = []
    for name, (items, array) in values.items():
        other = baseline.get(name)
        if other is None or other[0] != items or len(other[1]) != len(array):
            continue
        rows.append(
            {
                "quantity": name,
                "N": len(array),
                "this": float(array.mean()),
                "baseline": float(other[1].mean()),
                "difference": metrics.paired_bootstrap_interval(values=array, baseline=other[1]),
            }
        )
    if not rows:
        raise ConfigError("The two evaluations have no quantity on the same prompts: measure both with one config.")
    return rows
