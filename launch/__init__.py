"""Programs: `python -m launch.NAME` from a checkout; installed, `edgesafe NAME` and `edgesafe_jax.launch`."""

import importlib
import pkgutil
from types import ModuleType

import ml_collections

CONFIGS = __name__.removesuffix("launch") + "configs"  # the package beside this one


def config_names() -> list[str]:
    """Names of the packaged configs."""
    return [found.name for found in pkgutil.iter_modules(importlib.import_module(CONFIGS).__path__)]


def config_module(name: str) -> ModuleType:
    """Returns a packaged config's module; one that does not exist is a ValueError."""
    if name not in config_names():
        raise ValueError(f"expected one of {', '.join(config_names())}")
    return importlib.import_module(f"{CONFIGS}.{name}")


def get_config(name: str, variant: str = "") -> ml_collections.ConfigDict:
    """Returns a packaged config, or a variant of it; what does not exist is a ValueError."""
    return config_module(name).get_config(variant)
