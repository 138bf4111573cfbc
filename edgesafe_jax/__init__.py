"""edgesafe_jax: safe on-device language models and real-time planning, as pure functions in JAX.

Every room is an attribute of the package and is imported at its first use:

    import edgesafe_jax

    edgesafe_jax.losses.forward_kl(student_logits=student, teacher_logits=teacher)
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgesafe_jax import (
        adapters,
        assets,
        benchmarks,
        corpora,
        dynamics,
        errors,
        exporting,
        fields,
        guards,
        losses,
        metrics,
        models,
        offline_rl,
        parallel,
        planning,
        processes,
        reporting,
        safety,
        sweeps,
        training,
        typing,
    )

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "adapters",
    "assets",
    "benchmarks",
    "corpora",
    "dynamics",
    "errors",
    "exporting",
    "fields",
    "guards",
    "losses",
    "metrics",
    "models",
    "offline_rl",
    "parallel",
    "planning",
    "processes",
    "reporting",
    "safety",
    "sweeps",
    "training",
    "typing",
]


def __getattr__(name: str) -> ModuleType:
    """Imports a room at its first use."""
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}: expected one of {', '.join(__all__)}")


def __dir__() -> list[str]:
    """The public names, rooms included that have not been imported yet."""
    return sorted({*globals(), *__all__})
