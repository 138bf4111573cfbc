"""Typing errors by the package `typo`: about one in every six words of a text."""

import random

from edgesafe_jax.guards.makers.base import Ways, engine, seeded

_ERRORS = ("missing_char", "char_swap", "extra_char", "nearby_char", "skipped_space", "random_space", "repeated_char")


def typo_ways() -> Ways:
    """Returns the ways of the package `typo`: each makes typing errors of one kind.

    Raises:
      MakerError: the package is not installed.
    """
    make = engine("typo", "typo").StrErrer

    def erring(kind: str, text: str) -> str:
        # Given no seed, the package takes one from the clock.
        made = make(text, seed=random.getrandbits(32))
        for _ in range(max(1, round(len(text.split()) / 6))):
            getattr(made, kind)()
        return made.result

    return {kind: seeded(f"typo/{kind}", lambda text, kind=kind: erring(kind, text)) for kind in _ERRORS}
