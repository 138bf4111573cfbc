"""Fits and tests of symmetries run with double precision switched on."""

import jax
import numpy as np
import pytest

from edgesafe_jax.dynamics import (
    BoxDomain,
    EnsembleSettings,
    Permutation,
    PlanarRotation,
    Product,
    ReachSettings,
    Reflection,
    Sizes,
    WorldModelSettings,
    act_on_segment,
    equivalence_test,
    fit_translations,
    fit_world_model,
    make_bank,
    make_segments,
    make_transitions,
    model_quality,
    sample_elements,
    study_transformation,
    summarize,
)
from tests.dynamics.worlds import SHIFT, TOLERANCE, collect, step

SETTINGS = WorldModelSettings(
    fractions={"training": 0.4, "validation": 0.1, "calibration": 0.4, "fresh": 0.1},
    ensemble=EnsembleSettings(num_members=2, num_elites=1, hidden=(8,), num_epochs=2, batch_size=32),
    alpha=0.2,
)


def test_a_symmetry_is_tested_and_learned():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        data = collect(num_episodes=160)
        arrays = {n: np.asarray(getattr(data, n), np.float64) for n in ("states", "actions", "next_states")}
        data = make_transitions(**arrays, episodes=np.asarray(data.episodes))
        model = fit_world_model(0, data, SETTINGS, moved=SHIFT.moved, tolerance=TOLERANCE, relations=((1, 0),))
        assert set(model_quality(model.ensemble, model.parts["fresh"], tolerance=TOLERANCE)) > {"error of 1 step"}
        distribution, _ = fit_translations(
            jax.random.key(0),
            model.ensemble,
            model.calibration,
            model.support,
            SHIFT,
            data,
            ReachSettings(num_steps=2, batch_size=8, hidden=(4,)),
            domain=BoxDomain((0,), (-2.0,), (2.0,)),
        )
        fresh = model.parts["fresh"]
        bank = make_bank(
            jax.random.key(1),
            model.ensemble,
            model.calibration,
            model.support,
            distribution,
            fresh,
            domain=BoxDomain((0,), (-2.0,), (2.0,)),
            num_elements=2,
        )
        assert bank.accepted.shape == (len(fresh.states), 2)
        elements = sample_elements(jax.random.key(2), SHIFT, len(fresh.states))
        result = equivalence_test(model.ensemble, model.calibration, model.support, SHIFT, elements, fresh)
        assert sum(summarize(result).fractions.values()) == pytest.approx(1)
        study = study_transformation(
            model, SHIFT, elements, make_segments(fresh, 1), true_step=step, tolerance=TOLERANCE, alpha=0.2
        )
        assert study.at_tolerance["scale"] == 1.0


@pytest.mark.parametrize(
    "group",
    [
        SHIFT,
        PlanarRotation(Sizes(4, 2, 2), state_pairs=((0, 1), (2, 3)), action_pairs=((0, 1),), goal_pairs=((0, 1),)),
        Reflection(Sizes(4, 2, 2), state_dims=(0, 2), action_dims=(0,), goal_dims=(0,)),
        Permutation(Sizes(4, 2, 2), state_blocks=((0, 1), (2, 3)), action_blocks=((0,), (1,))),
        Product((Reflection(Sizes(4, 2, 2), state_dims=(0,)), Reflection(Sizes(4, 2, 2), state_dims=(1,)))),
    ],
    ids=lambda group: type(group).__name__,
)
def test_groups_act_and_keep_the_dtype(group):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        element = group.sample(jax.random.key(0))
        again = group.compose(group.inverse(element), element)
        sizes = group.sizes
        for dtype in (np.float32, np.float64):
            state, action, goal = (jax.numpy.ones(n, dtype) for n in (sizes.state, sizes.action, sizes.goal))
            moved = act_on_segment(group, again, states=state[None], actions=action[None], goal=goal)
            assert moved[0].shape == (1, sizes.state)
            np.testing.assert_allclose(moved[0][0], state, atol=1e-6)
        assert np.isfinite(float(group.log_prob(element)))
