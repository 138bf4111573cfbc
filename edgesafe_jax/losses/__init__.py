"""Losses: pure functions of arrays, one value per element, reduced by `masked_mean`."""

from edgesafe_jax.losses._reduction import Normalization, masked_mean, masked_sum_and_count
from edgesafe_jax.losses.consistency import consistency, consistency_anchor
from edgesafe_jax.losses.divergences import (
    Divergence,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skewed_kl,
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

__all__ = [
    "Divergence",
    "Normalization",
    "consistency",
    "consistency_anchor",
    "forward_kl",
    "gated_divergence",
    "gated_teacher",
    "jensen_shannon",
    "linear_divergence",
    "linear_head",
    "linear_log_prob",
    "masked_mean",
    "masked_sum_and_count",
    "outcome_kl",
    "outcome_total_variation",
    "reverse_kl",
    "sequence_kl",
    "sequence_log_prob",
    "sequence_total_variation",
    "sequence_total_variation_bound",
    "skewed_kl",
    "total_variation",
]
