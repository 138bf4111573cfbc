"""One line for each kind of adapter: what the shared contract is tested on."""

import jax
import numpy as np

from edgesafe_jax.adapters import make_adapter

OPTIONS = {
    "soft_prompt": {"init": "random", "num_virtual": 3},
    "prefix": {"init": "random", "num_virtual": 2},
    "lora": {"rank": 2, "targets": ("attention/query", "attention/value", "mlp/down")},
    "steering": {"layers": (0, 1)},
}
"""Options of each kind for a decoder of two layers."""

COMPOSITIONS = ("soft_prompt+lora", "prefix+soft_prompt+lora+steering")

KINDS = (*OPTIONS, *COMPOSITIONS)


def make(kind, model, seed=0):
    """An adapter of a kind, or of several, as it starts."""
    names = kind.split("+")
    options = OPTIONS[kind] if len(names) == 1 else {name: OPTIONS[name] for name in names}
    return make_adapter(jax.random.key(seed), kind, model, **options)


def moved(adapter, seed=0, size=0.5):
    """The same with noise on every number, as if it had been trained."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + np.float32(size) * rng.normal(size=leaf.shape).astype(np.float32), adapter)
