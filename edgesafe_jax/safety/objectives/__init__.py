"""Objectives of an alignment: from the student along the outcomes of a batch to one loss per row.

An objective is a class with `needs` and a call; `OBJECTIVES` names those that a config can ask for. To add one, write
the class in a file of its own and enter it in the table:

    @dataclasses.dataclass(frozen=True)
    class TokenFocalKL(Objective):
        gamma: float = 2.0
        needs = Needs(divergences=(losses.forward_kl,))

        def __call__(self, outcomes):
            kl = outcomes.divergence(losses.forward_kl)
            return jnp.sum((1 - jnp.exp(-kl)) ** self.gamma * kl, axis=1) * outcomes.batch.weight

    OBJECTIVES["token_focal_kl"] = TokenFocalKL

Its fields are its options: `objective_options={"token_focal_kl": {"gamma": 1.0}}`. One that is called `normalization`
gets that of the run. An objective on pairs or on samples of the student makes its own batches, see `Objective.batches`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from edgesafe_jax import losses
from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.safety.objectives.base import (
    BatchFn,
    BatchSource,
    Needs,
    Objective,
    Outcomes,
    WeightedSum,
    row_losses,
)
from edgesafe_jax.safety.objectives.base_kl import KLToBase
from edgesafe_jax.safety.objectives.distillation import (
    DecisionObjective,
    SequenceObjective,
    TokenObjective,
    token_jensen_shannon,
    token_reverse_kl,
    token_skewed_kl,
    token_skewed_reverse_kl,
)
from edgesafe_jax.safety.objectives.likelihood import RefusalPerplexity
from edgesafe_jax.safety.objectives.on_policy import OnPolicyDistillation, gkd
from edgesafe_jax.safety.objectives.ppo import PPO
from edgesafe_jax.safety.objectives.preference import DPO
from edgesafe_jax.safety.objectives.reinforce import Reinforce

__all__ = [
    "DPO",
    "OBJECTIVES",
    "PPO",
    "BatchFn",
    "BatchSource",
    "DecisionObjective",
    "KLToBase",
    "Needs",
    "Objective",
    "OnPolicyDistillation",
    "Outcomes",
    "RefusalPerplexity",
    "Reinforce",
    "SequenceObjective",
    "TokenObjective",
    "WeightedSum",
    "make_objective",
    "row_losses",
]

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "tv": lambda normalization: SequenceObjective(losses.outcome_total_variation, normalization),
    "kl": lambda normalization: SequenceObjective(losses.outcome_kl, normalization),
    "token_tv": lambda normalization: TokenObjective(losses.total_variation, normalization),
    "token_kl": lambda normalization: TokenObjective(losses.forward_kl, normalization),
    "token_reverse_kl": token_reverse_kl,
    "token_js": token_jensen_shannon,
    "token_skew_kl": token_skewed_kl,
    "token_skew_reverse_kl": token_skewed_reverse_kl,
    "gkd": gkd,
    "refusal_perplexity": RefusalPerplexity,
    "dpo": DPO,
    "reinforce": Reinforce,
    "ppo": PPO,
}
"""What a config may name: makes the objective from its options, and from `normalization` where it has one."""


def make_objective(
    name: str,
    *,
    normalization: losses.Normalization = "mean",
    decision_weight: float = 0.0,
    kl_to_base: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Objective:
    """Makes an objective of the table, with the terms that are added to it.

    Args:
      name: in `OBJECTIVES`.
      normalization: over the positions of an outcome, for objectives that have one.
      decision_weight: factor of the forward KL at the decision; 0 leaves it out. Objectives that do not distil the
        gated teacher (`Objective.with_decision`) never have it.
      kl_to_base: factor of `KLToBase`; 0 leaves it out.
      options: of the objective, by name.

    Returns:
      The objective.

    Raises:
      ConfigError: an unknown name or option; the message lists the known ones. An option outside its range.
    """
    make = lookup(OBJECTIVES, name, "objective")
    known = inspect.signature(make).parameters
    given = dict(options or {})
    for option in given:
        lookup({each: None for each in known if each != "normalization"}, option, f"objective_options.{name}: option")
    if "normalization" in known:
        given["normalization"] = normalization
    try:
        objective = make(**given)
    except ConfigError as error:
        raise ConfigError(f"objective_options.{name}.{error}") from error
    terms: list[tuple[float, Objective]] = [(1.0, objective)]
    if decision_weight and objective.with_decision:
        terms.append((decision_weight, DecisionObjective(losses.forward_kl)))
    if kl_to_base:
        terms.append((kl_to_base, KLToBase()))
    return objective if len(terms) == 1 else WeightedSum(tuple(terms))
