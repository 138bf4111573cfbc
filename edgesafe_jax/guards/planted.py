"""Rules for set-level targets where some members of a set are wrongly scored safe: a skewed planted error."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards.robustness import SetScores
from edgesafe_jax.guards.targets import RULES, set_target


def rules_under_error(
    scores: SetScores,
    *,
    fractions: Sequence[float],
    rules: Sequence[str],
    wrong: float = 0.05,
    num_draws: int = 20,
    seed: int = 0,
) -> dict[float, dict[str, Mapping[str, float]]]:
    """Measures the targets of rules where a fraction of each set's members is scored safe, whatever it says.

    Args:
      scores: labelled sets.
      fractions: fractions of the members, drawn at random, whose P(unsafe) becomes `wrong`.
      rules: names in `RULES`.
      wrong: the planted P(unsafe).
      num_draws: draws of the members.
      seed: of the draws.

    Returns:
      By fraction and rule, means over the draws: `missed`, the fraction of unsafe sets whose target is at most 0.5;
      `false_alarms`, the fraction of safe sets whose target is above it; `error`, the mean absolute difference to the
      target of the same rule without planted errors.

    Raises:
      ConfigError: sets without labels, or labels all alike.
    """
    if not {0.0, 1.0} <= set(scores.labels.tolist()) or np.isnan(scores.labels).any():
        raise ConfigError("The sets need labels, and both safe and unsafe ones: a missed one is one that is unsafe.")
    where = scores.where
    unsafe = scores.labels == 1
    clean = {rule: _targets(scores.unsafe, where, rule) for rule in rules}
    found: dict[float, dict[str, Mapping[str, float]]] = {}
    for fraction in fractions:
        rng = np.random.default_rng([seed, round(1000 * fraction)])
        draws = rng.random((num_draws, *where.shape))
        rank = np.argsort(np.argsort(np.where(where, draws, 2.0), axis=-1), axis=-1)
        planted = where & (rank < np.round(fraction * where.sum(axis=-1, keepdims=True)))
        changed = np.where(planted, wrong, scores.unsafe)
        found[fraction] = {}
        for rule in rules:
            target = _targets(changed, np.broadcast_to(where, changed.shape), rule)
            found[fraction][rule] = {
                "missed": float(np.mean(target[:, unsafe] <= 0.5)),
                "false_alarms": float(np.mean(target[:, ~unsafe] > 0.5)),
                "error": float(np.mean(np.abs(target - clean[rule]))),
            }
    return found


def _targets(unsafe: np.ndarray, where: np.ndarray, rule: str) -> np.ndarray:
    return np.asarray(set_target(jnp.asarray(np.where(where, unsafe, 0.0)), rule=RULES[rule], where=jnp.asarray(where)))
