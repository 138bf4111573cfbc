"""A world model for tests of symmetries: parts of the data, an ensemble, its calibration and its support."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from edgesafe_jax.dynamics.ensemble import (
    Ensemble,
    EnsembleSettings,
    fit_ensemble,
    prediction_error,
    variance_calibration,
)
from edgesafe_jax.dynamics.equivariance import Calibration, calibrate
from edgesafe_jax.dynamics.support import Support, fit_support
from edgesafe_jax.dynamics.transitions import Transitions, make_segments, split_episodes


@dataclasses.dataclass(frozen=True)
class WorldModelSettings:
    """Settings of a world model.

    Attributes:
      fractions: from the name of a part of the data to its fraction of the episodes; ``training``, ``validation`` and
        ``calibration`` are used, further parts are kept for the caller.
      ensemble: sizes and optimiser of the ensemble.
      alpha: level of the calibration, over all dimensions of the state.
      horizon: steps of the segments that are tested.
      max_references: most training inputs that the support keeps.
    """

    fractions: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"training": 0.5, "validation": 0.1, "calibration": 0.4}
    )
    ensemble: EnsembleSettings = dataclasses.field(default_factory=EnsembleSettings)
    alpha: float = 0.05
    horizon: int = 1
    max_references: int = 4096


@dataclasses.dataclass(frozen=True)
class WorldModel:
    """A fitted model with the calibration and support that the test of a symmetry needs.

    Attributes:
      parts: the transitions by part, no episode in two of them.
      ensemble: fitted on ``training`` and ``validation``.
      calibration: of the ensemble, on ``calibration``.
      support: of ``training``.
    """

    parts: Mapping[str, Transitions]
    ensemble: Ensemble
    calibration: Calibration
    support: Support


def fit_world_model(
    seed: int,
    data: Transitions,
    settings: WorldModelSettings | None = None,
    *,
    moved: Sequence[int],
    tolerance: Sequence[float],
    relations: tuple[tuple[int, int], ...] = (),
) -> WorldModel:
    """Splits data by episode, fits an ensemble, and finds where it may be trusted.

    Args:
      seed: of the split and of the fit.
      data: the transitions.
      settings: fractions, sizes and level; None: `WorldModelSettings()`.
      moved: dimensions of the state that the transformation moves, see `fit_support`.
      tolerance: `[S]` differences that do not matter, in the units of the state.
      relations: pairs of dimensions whose differences are inputs too, see `fit_ensemble`.

    Returns:
      The world model.

    Raises:
      DynamicsError: if the settings do not fit the data; see `split_episodes`, `fit_ensemble` and `calibrate`.
    """
    settings = settings or WorldModelSettings()
    rows = split_episodes(data.episodes, settings.fractions, seed=seed)
    parts = {name: data.take(chosen) for name, chosen in rows.items()}
    ensemble, _ = fit_ensemble(
        jax.random.key(seed), parts["training"], parts["validation"], settings.ensemble, relations=relations
    )
    return WorldModel(
        parts=parts,
        ensemble=ensemble,
        calibration=calibrate(
            ensemble,
            parts["calibration"],
            tolerance=tolerance,
            alpha=settings.alpha,
            horizon=settings.horizon,
        ),
        support=fit_support(
            ensemble,
            parts["training"],
            parts["calibration"],
            moved=moved,
            max_references=settings.max_references,
        ),
    )


def model_quality(
    ensemble: Ensemble, data: Transitions, *, tolerance: Sequence[float], max_steps: int = 5
) -> dict[str, float]:
    """Measures a model on some transitions, in its worst dimension.

    Args:
      ensemble: the model.
      data: transitions of episodes that it was not fitted on.
      tolerance: `[S]` the unit of the errors.
      max_steps: longest open-loop prediction, if an episode is as long.

    Returns:
      Root mean squared errors of one step and of several, in tolerances; errors in spreads; and how many next states
      lie inside the central 90 % interval.
    """
    length = min(max_steps, int(np.bincount(np.asarray(data.episodes)).max()))
    segments = make_segments(data, length)
    errors = np.asarray(prediction_error(ensemble, segments.states, segments.actions))
    errors = np.max(errors / np.array(tolerance), axis=1)
    spread = variance_calibration(ensemble, data)
    return {
        "error of 1 step": float(errors[0]),
        f"error of {length} steps": float(errors[-1]),
        "error / spread": float(np.max(np.asarray(spread.z_rms))),
        "inside the 90 % interval": float(np.min(np.asarray(spread.coverage[2]))),
    }
