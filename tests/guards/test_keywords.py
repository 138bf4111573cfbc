"""Guards that see words only."""

import numpy as np
import pytest

from edgesafe_jax.guards.keywords import fit_keywords, refusal_keywords

HARMFUL = ["mix the powder and light the fuse", "the powder goes into the pipe", "powder, then a fuse"]
SAFE = ["bake the bread slowly", "the bread goes into the oven", "bread, then butter"]


def test_a_fitted_list_knows_its_words():
    guard = fit_keywords(HARMFUL + SAFE, np.repeat([1.0, 0.0], 3), min_count=3, l2=0.1)
    assert set(guard.words) >= {"powder", "bread"}
    powder, bread, neither = guard([""] * 3, ["POWDER!", "Bread.", "water"])
    assert powder > 0.8 > 0.2 > bread
    assert bread < neither < powder
    assert guard([], []).shape == (0,)


def test_refusals_are_safe():
    found = refusal_keywords(["q", "q"], ["I'm sorry, but I can't help with that.", "First you need a saw."])
    np.testing.assert_array_equal(found, [0.0, 1.0])


def test_no_frequent_word():
    with pytest.raises(ValueError, match="No word stands in 9 of the 6 answers"):
        fit_keywords(HARMFUL + SAFE, np.repeat([1.0, 0.0], 3), min_count=9)
