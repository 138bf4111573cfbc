"""The fields of configs with the tasks "offline_rl" and "dynamics_equivariance"."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgesafe_jax.dynamics import EnsembleSettings
from edgesafe_jax.errors import COUNT, FRACTION, NON_NEGATIVE, POSITIVE, POSITIVE_COUNT, PROBABILITY, ConfigError, Range
from edgesafe_jax.fields.declared import FLAG, Each, Field, Fields, File, Group, Name, Table
from edgesafe_jax.fields.kinds import RUN, SIZE, up_to
from edgesafe_jax.offline_rl.learners import LEARNERS
from edgesafe_jax.offline_rl.methods import METHODS
from edgesafe_jax.offline_rl.planned import PLANNED
from edgesafe_jax.offline_rl.symmetry_cases import CASES
from edgesafe_jax.offline_rl.worlds import WORLDS, make_world

_PARTS = ("training", "validation", "calibration")
_HIDDEN = Each(SIZE, most=100)
_RATE = Range(0, 10, above=True)
_ENSEMBLE: dict[str, Field] = {
    "num_members": up_to(1000),
    "num_elites": up_to(1000),
    "hidden": _HIDDEN,
    "learning_rate": _RATE,
    "weight_decay": NON_NEGATIVE,
    "batch_size": SIZE,
    "num_epochs": POSITIVE_COUNT,
    "patience": POSITIVE_COUNT,
}
assert set(_ENSEMBLE) == {field.name for field in dataclasses.fields(EnsembleSettings)}


@dataclasses.dataclass(frozen=True)
class Parts:
    """Fractions of the episodes by part, which add up to one.

    Attributes:
      required: parts that must be there.
    """

    required: tuple[str, ...]

    def check(self, name: str, value: Any) -> None:
        """See `Declared.check`."""
        Table(PROBABILITY, least=1).check(name, value)
        if missing := [part for part in self.required if part not in value]:
            raise ConfigError(f"{name} has no {missing[0]}: expected fractions of {', '.join(self.required)}.")
        if abs(sum(value.values()) - 1) > 1e-6:
            raise ConfigError(
                f"{name} adds up to {sum(value.values()):g}: expected positive fractions that add up to 1."
            )


@dataclasses.dataclass(frozen=True)
class World:
    """A world by name, or "module:callable" that makes one."""

    def check(self, name: str, value: Any) -> None:
        """See `Declared.check`."""
        if isinstance(value, str) and ":" in value:
            make_world(value, name)
        else:
            Name(WORLDS).check(name, value)


def offline_rl_fields() -> Fields:
    """Returns the fields of offline policies, without `task`."""
    learner: Mapping[str, Field] = {
        "name": Name(LEARNERS),
        "hidden": _HIDDEN,
        "learning_rate": _RATE,
        "discount": FRACTION,
    }
    return {
        **RUN,
        "num_runs": up_to(10_000),
        "world": World(),
        "data.path": File("transitions (.npz), or a Minari directory"),
        "data.num_episodes": POSITIVE_COUNT,
        "data.fractions": Parts(_PARTS),
        "model": Group(_ENSEMBLE),
        "alpha": PROBABILITY,
        "symmetry.declare_domain": FLAG,
        "symmetry.along": Each(Range(0, 100, integer=True)),
        "symmetry.by_kind": FLAG,
        "symmetry.max_violation": PROBABILITY,
        "symmetry.num_steps": POSITIVE_COUNT,
        "symmetry.num_elements": SIZE,
        "methods": Each(Name(METHODS), least=1),
        "planners": Each(Name(PLANNED)),
        "plan.horizon": SIZE,
        "plan.num_iterations": SIZE,
        "plan.num_samples": SIZE,
        "plan.worst_fraction": FRACTION,
        "plan.shift": POSITIVE,
        "plan.num_factors": SIZE,
        "plan.num_averaged": SIZE,
        "plan.exceptions": FRACTION,
        "plan.num_episodes": SIZE,
        "fresh_episodes": COUNT,
        "her_fraction": FRACTION,
        "augment_fraction": FRACTION,
        "noise_scale": NON_NEGATIVE,
        "rollouts.per_row": Range(0, 1000),
        "rollouts.length": SIZE,
        **{f"learner.{name}": field for name, field in learner.items()},
        "normalize": FLAG,
        "batch_size": SIZE,
        "num_updates": POSITIVE_COUNT,
        "updates_per_step": POSITIVE_COUNT,
        "num_seeds": up_to(10_000),
        "num_episodes": POSITIVE_COUNT,
    }


def dynamics_fields() -> Fields:
    """Returns the fields of tests of symmetries, without `task`."""
    case: dict[str, Field] = {"model": Group(_ENSEMBLE), "num_episodes": POSITIVE_COUNT}
    return {
        **RUN,
        "cases": Each(Name(CASES), least=1),
        "alpha": PROBABILITY,
        "scales": Each(POSITIVE, least=1),
        "data.num_episodes": POSITIVE_COUNT,
        "data.fractions": Parts((*_PARTS, "fresh")),
        "model": Group(_ENSEMBLE),
        "per_case": Table(Group(case), names=CASES),
    }
