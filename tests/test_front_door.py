"""`import edgesafe_jax` gives every room, and imports none before its first use."""

import pathlib

import pytest

import edgesafe_jax
from tests.test_layering import run_python

PACKAGE = pathlib.Path(edgesafe_jax.__file__).parent


def test_every_room_is_an_attribute():
    rooms = {path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    rooms |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(edgesafe_jax.__all__) - {"__version__"} == rooms
    for room in rooms:
        assert getattr(edgesafe_jax, room).__name__ == f"edgesafe_jax.{room}"
    assert rooms <= set(dir(edgesafe_jax))


def test_a_room_is_imported_at_its_first_use():
    result = run_python(
        """
        import sys
        import edgesafe_jax
        loaded = [name for name in sys.modules if name.startswith("edgesafe_jax.")]
        assert not loaded, loaded
        assert "jax" not in sys.modules
        assert edgesafe_jax.losses.forward_kl.__name__ == "forward_kl"
        assert "edgesafe_jax.planning" not in sys.modules
        """
    )
    assert result.returncode == 0, result.stderr


def test_an_unknown_room_is_an_attribute_error_that_lists_the_known():
    with pytest.raises(AttributeError, match=r"no attribute 'lossess': expected one of .*losses"):
        edgesafe_jax.lossess  # noqa: B018
