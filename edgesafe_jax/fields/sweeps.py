"""The fields of configs with the task "sweep"."""

from edgesafe_jax.errors import Range
from edgesafe_jax.fields.declared import TEXT, TEXT_OR_NOTHING, Each, Fields, Free, Group, Table

_WHEN_MADE = "the sweep, when its axes and cells are made; each cell is checked as a config of its own"


def sweep_fields() -> Fields:
    """Returns the fields of a sweep, without `task`."""
    selection: Fields = {
        "search": Each(TEXT),
        "repeat": TEXT_OR_NOTHING,
        "num_best": Range(0, 100_000, integer=True),
        "measure": Table(Range(-1e6, 1e6)),
    }
    report: Fields = {
        "tables": Table(Table(TEXT, least=1), least=1),
        "frontier": Each(TEXT, most=2),
        "curve": TEXT_OR_NOTHING,
        "along": Each(TEXT),
    }
    return {
        "base": TEXT,
        "variant": TEXT_OR_NOTHING,
        **dict.fromkeys(("changes", "axes", "levels", "factors"), Free(_WHEN_MADE)),
        "selection": Group(selection),
        "report": Group(report),
    }
