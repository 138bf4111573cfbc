"""Losses: pure functions of arrays, one value per element, reduced by `masked_mean`."""

from edgesafe_jax.losses._reduction import Normalization, masked_mean, masked_sum_and_count
from edgesafe_jax.losses.consistency import consistency, consistency_anchor
from edgesafe_jax.losses.divergences import (
    Divergence,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
    total_variation,
)
from edgesafe_jax.losses.fused import linear_divergence, linear_head, linear_log_prob
from edgesafe_jax.losses.gated import gated_divergence, gated_teacher
from edgesafe_jax.losses.outcomes import (
    outcome_kl,
    outcome_total_variation,
    sequence_kl,
    sequence_log_prob,
    sequence_total_variation,
    sequence_total_variation_bound,
)
from edgesafe_jax.losses.policy_gradient import (
    gae,
    kl_penalty,
    leave_one_out,
    ppo_clip,
    reinforce,
    value_loss,
    whiten,
)
from edgesafe_jax.losses.preference import dpo, ipo, simpo

__all__ = [
    "Divergence",
    "Normalization",
    "consistency",
    "consistency_anchor",
    "dpo",
    "forward_kl",
    "gae",
    "gated_divergence",
    "gated_teacher",
    "ipo",
    "jensen_shannon",
    "kl_penalty",
    "leave_one_out",
    "linear_divergence",
    "linear_head",
    "linear_log_prob",
    "masked_mean",
    "masked_sum_and_count",
    "outcome_kl",
    "outcome_total_variation",
    "ppo_clip",
    "reinforce",
    "reverse_kl",
    "sequence_kl",
    "sequence_log_prob",
    "sequence_total_variation",
    "sequence_total_variation_bound",
    "simpo",
    "skewed_kl",
    "skewed_reverse_kl",
    "total_variation",
    "value_loss",
    "whiten",
]
