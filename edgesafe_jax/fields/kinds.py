"""Declarations that several tasks share."""

from edgesafe_jax.errors import SEED, Range
from edgesafe_jax.fields.declared import TEXT, Field, Fields, Name
from edgesafe_jax.models.loading import QUANTIZATIONS
from edgesafe_jax.models.precision import FACTORS


def up_to(most: int) -> Range:
    """Returns the range of a count that is at least one."""
    return Range(1, most, integer=True, expected=f"at least 1, and at most {most}")


SIZE = up_to(65_536)
"""Rows of a batch, or the width of a layer."""

TOKENS = up_to(1_000_000)
"""Tokens or words of a text."""

ANY_COUNT = Range(0, 2**31 - 1, integer=True, also=(-1,), expected="0 or more (less than 2**31), or -1 for all")
"""A count that may be 0 for none and -1 for all."""

WEIGHT = Range(0, 1e6)
"""The weight of a kind of example."""

RUN: Fields = {"seed": SEED}
MODEL: Fields = {**RUN, "model": TEXT, "matmul_dtype": Name(("auto", *sorted(FACTORS)))}
"""Fields of tasks that load a language model."""

QUANTIZATION: Field = Name([name for name in QUANTIZATIONS if name != "None"], empty=True)
