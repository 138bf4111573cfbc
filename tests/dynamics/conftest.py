"""One fitted model of the small world for all tests of the room."""

import jax
import pytest

from edgesafe_jax.dynamics import EnsembleSettings, calibrate, fit_ensemble, fit_support, split_episodes
from tests.dynamics.worlds import SHIFT, TOLERANCE, collect

SHARES = {"training": 0.45, "validation": 0.1, "calibration": 0.45}


class Fitted:
    """Data, model, calibration and support."""

    def __init__(self, *, num_epochs=40, hidden=(32, 32), **world):
        self.data = collect(**world)
        rows = split_episodes(self.data.episodes, SHARES)
        self.parts = {name: self.data.take(chosen) for name, chosen in rows.items()}
        self.ensemble, self.log = fit_ensemble(
            jax.random.key(1),
            self.parts["training"],
            self.parts["validation"],
            EnsembleSettings(
                num_members=4,
                num_elites=3,
                hidden=hidden,
                learning_rate=3e-3,
                batch_size=64,
                num_epochs=num_epochs,
            ),
        )
        self.calibration = calibrate(self.ensemble, self.parts["calibration"], tolerance=TOLERANCE)
        self.support = fit_support(
            self.ensemble, self.parts["training"], self.parts["calibration"], moved=SHIFT.moved, alpha=0.05
        )


@pytest.fixture(scope="session")
def fitted():
    """The world that is the same everywhere."""
    return Fitted()


@pytest.fixture(scope="session")
def underfitted():
    """The same world after one epoch of a tiny network."""
    return Fitted(num_epochs=1, hidden=(2,))


@pytest.fixture(scope="session")
def sloped():
    """A world with a force that grows with the place."""
    return Fitted(slope=0.6)
