import numpy as np
import pytest

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards.planted import rules_under_error
from edgesafe_jax.guards.robustness import SetScores


def test_planted_errors_by_hand():
    unsafe = np.array([[0.9, 0.9, 0.9, 0.9], [0.1, 0.1, 0.1, np.nan]])
    scores = SetScores(unsafe, np.array([1.0, 0.0]))
    found = rules_under_error(scores, fractions=(0.0, 0.25, 0.5), rules=("mean", "median", "max", "min"), wrong=0.0)
    assert all(set(row.values()) == {0.0} for row in found[0.0].values())
    assert found[0.25]["mean"]["missed"] == 0.0  # 0.675
    assert found[0.25]["mean"]["error"] == pytest.approx((0.225 + 0.1 / 3) / 2, abs=1e-6)
    assert found[0.25]["min"]["missed"] == 1.0
    assert found[0.5]["mean"]["missed"] == found[0.5]["median"]["missed"] == 1.0  # 0.45
    assert found[0.5]["max"] == {"missed": 0.0, "false_alarms": 0.0, "error": 0.0}


def test_sets_without_labels_are_refused():
    for labels in ([1.0, np.nan], [1.0, 1.0]):
        with pytest.raises(ConfigError, match="need labels"):
            rules_under_error(SetScores(np.full((2, 2), 0.5), np.array(labels)), fractions=(0.1,), rules=("mean",))
