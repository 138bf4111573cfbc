"""Evaluation metrics of predictions: deterministic, computed on the host with NumPy."""

from edgesafe_jax.metrics.agreement import (
    ConfusionCounts,
    accuracy,
    confusion_counts,
    excess_positive_rate,
    f1_score,
    shared_positive_rate,
)
from edgesafe_jax.metrics.calibration import (
    binary_nll,
    brier_score,
    equal_width_bins,
    expected_calibration_error,
    fit_temperature,
    scale_temperature,
)
from edgesafe_jax.metrics.flips import LabelFlips, SetSpread, label_flips, set_spread
from edgesafe_jax.metrics.instructions import VERIFIERS, follows, last_number
from edgesafe_jax.metrics.intervals import (
    Interval,
    bootstrap_interval,
    paired_bootstrap_interval,
    rate_interval,
    wilson_interval,
)
from edgesafe_jax.metrics.ranking import auroc, average_precision, fpr_at_tpr
from edgesafe_jax.metrics.refusal import (
    after_reasoning,
    make_refusal_score,
    make_refused_by_meaning,
    refused_by_pattern,
)

__all__ = [
    "VERIFIERS",
    "ConfusionCounts",
    "Interval",
    "LabelFlips",
    "SetSpread",
    "accuracy",
    "after_reasoning",
    "auroc",
    "average_precision",
    "binary_nll",
    "bootstrap_interval",
    "brier_score",
    "confusion_counts",
    "equal_width_bins",
    "excess_positive_rate",
    "expected_calibration_error",
    "f1_score",
    "fit_temperature",
    "follows",
    "fpr_at_tpr",
    "label_flips",
    "last_number",
    "make_refusal_score",
    "make_refused_by_meaning",
    "paired_bootstrap_interval",
    "rate_interval",
    "refused_by_pattern",
    "scale_temperature",
    "set_spread",
    "shared_positive_rate",
    "wilson_interval",
]
