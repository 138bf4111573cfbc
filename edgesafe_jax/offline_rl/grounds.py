"""Point masses on uneven ground, where a translation is a symmetry along one direction or within places of one kind.

`river`: a band with a current crosses the arena from right to left. Moving along the band changes nothing; moving into
or out of it changes the law. The data are from a strip at the left, at all heights, so that they show all that has to
be known of the rest, if one knows which translations are symmetries.

The current is nine tenths of a full action. That strength decides what is seen: to stay in the river a policy has to
act at nearly full power against it, which neither a policy that extrapolates nor one that learned from translations
across the banks does. With a current of half a full action hindsight goals alone suffice in the whole arena, and the
wider the strip of the data, the further a policy extrapolates.
"""

import dataclasses

import jax
import jax.numpy as jnp

from edgesafe_jax.offline_rl.tasks import ARENA, RIGHT, Box, Law, Stratum, Task, Wall, make_point_mass
from edgesafe_jax.typing import Array

_STRIP: Box = ((-2.0, -2.0), (-0.8, 2.0))
_BANK = 0.5
_SLOPE = 0.04  # the current falls off within about a tenth on both sides of a bank
_CURRENT = 2.7
# A step through the current changes the velocity by 0.27 m/s, so that differences half as large matter here.
_TOLERANCE = (0.05, 0.05, 0.15, 0.15)


def _in_river(box: Box) -> Box:
    """The part of a box in the river, where its current is whole."""
    return (box[0][0], 0.2 - _BANK), (box[1][0], _BANK - 0.2)


def make_river() -> Task:
    """Makes the river: a point mass whose data start and have their goals in a strip at the left.

    Between the banks at y = -0.5 and 0.5 the current accelerates it by 2.7 1/s^2 to the left; a full action gives 3.
    """

    def current(place: Array) -> Array:
        inside = jax.nn.sigmoid((_BANK - jnp.abs(place[1])) / _SLOPE)
        return inside * jnp.array([-_CURRENT, 0.0])

    return dataclasses.replace(
        make_point_mass(
            name="river",
            borders=tuple(Wall(axis=1, at=bank, low=ARENA[0][0], high=ARENA[1][0]) for bank in (-_BANK, _BANK)),
            law=Law(field=current),
            data=Stratum(_STRIP, _STRIP),
            strata={
                "in distribution": Stratum(_STRIP, _STRIP),
                "river on the left": Stratum(_STRIP, _in_river(_STRIP)),
                "right half": Stratum(RIGHT, RIGHT),
                "river on the right": Stratum(RIGHT, _in_river(RIGHT)),
            },
            explores=False,
        ),
        tolerance=_TOLERANCE,
    )


_ICE: tuple[Box, ...] = (((-2.0, -1.2), (0.5, -0.2)), ((0.2, -1.2), (2.0, 1.0)))
_EDGE = 0.12  # on both sides of a border it is unclear which of them a place is
_ICE_DRAG, _SAND_DRAG = 2.0, 4.0


def ice_margin(place: Array) -> Array:
    """Returns how far a place `[2]` of the patches is inside the ice, below 0 on sand."""
    low, high = (jnp.asarray([box[end] for box in _ICE]) for end in (0, 1))
    return jnp.max(jnp.min(jnp.minimum(place[None] - low, high - place[None]), axis=1))


def make_patches() -> Task:
    """Makes the patches: a point mass on sand and on ice that slopes, with data from a strip at the left.

    Sand has a drag of 4 1/s. Ice has one of 2 1/s, and its slope accelerates by 2.7 1/s^2 to the left; a full action
    gives 3. The ice is broader at the right than at the left, so that no translation of the whole arena is a symmetry:
    those that lead from ice to ice and from sand to sand are. `Task.kinds` is a map that is unclear near borders.
    """

    def on_ice(place: Array) -> Array:
        return jax.nn.sigmoid(ice_margin(place) / _SLOPE)

    def kinds(state: Array) -> Array:
        margin = ice_margin(state[:2])
        return jax.nn.sigmoid(jnp.stack([-margin - _EDGE, margin - _EDGE]) / _SLOPE)

    return dataclasses.replace(
        make_point_mass(
            name="patches",
            borders=_ICE_BORDERS,
            law=Law(
                drag=lambda place: _SAND_DRAG + on_ice(place) * (_ICE_DRAG - _SAND_DRAG),
                field=lambda place: on_ice(place) * jnp.array([-_CURRENT, 0.0]),
            ),
            data=Stratum(_STRIP, _STRIP),
            strata={
                "in distribution": Stratum(_STRIP, _STRIP),
                "ice on the left": Stratum(_STRIP, ((_STRIP[0][0], -0.9), (_STRIP[1][0], -0.5))),
                "right half": Stratum(RIGHT, RIGHT),
                "ice on the right": Stratum(RIGHT, ((0.5, -0.9), (RIGHT[1][0], 0.7))),
            },
            explores=False,
        ),
        tolerance=_TOLERANCE,
        kinds=kinds,
    )


_ICE_BORDERS = (
    Wall(axis=1, at=-1.2, low=-2.0, high=2.0),
    Wall(axis=1, at=-0.2, low=-2.0, high=0.2),
    Wall(axis=0, at=0.2, low=-0.2, high=1.0),
    Wall(axis=1, at=1.0, low=0.2, high=2.0),
)
