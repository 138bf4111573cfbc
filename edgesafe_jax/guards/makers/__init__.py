"""Makers of paraphrases by rules: each gives functions of a text by name, its ways.

One maker is one module with a function that returns its ways and one entry of `MAKERS`; the ways of a maker have one
author, so a guard is tested on the ways of makers that it was not trained with. `registers` is this project's, as
`edgesafe_jax.guards.styles` is; `nlpaug`, `typo` and `conventions` call packages of other authors, which the extra
`paraphrases` installs.
"""

from collections.abc import Callable, Mapping

from edgesafe_jax.guards.makers.base import MakerError, Ways, seeded
from edgesafe_jax.guards.makers.conventions import convention_ways
from edgesafe_jax.guards.makers.nlpaug import nlpaug_ways
from edgesafe_jax.guards.makers.registers import REGISTERS
from edgesafe_jax.guards.makers.typo import typo_ways

MAKERS: Mapping[str, Callable[[], Ways]] = {
    "register": lambda: REGISTERS,
    "nlpaug": nlpaug_ways,
    "typo": typo_ways,
    "conventions": convention_ways,
}
"""From the name of a maker to its ways; called when they are needed, so that packages are imported then."""

__all__ = ["MAKERS", "REGISTERS", "MakerError", "Ways", "convention_ways", "nlpaug_ways", "seeded", "typo_ways"]
