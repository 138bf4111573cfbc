"""One line for each kind of adapter: what the shared contract is tested on."""

import jax
import numpy as np

from edgesafe_jax.adapters import ADAPTERS, make_adapter

OPTIONS = {
    "soft_prompt": {"init": "random", "num_virtual": 3},
    "prefix": {"init": "random", "num_virtual": 2},
    "lora": {"rank": 2, "targets": ("attention/query", "attention/value", "mlp/down")},
    "steering": {"layers": (0, 1)},
    "gate": {"layer": 0, "width": 3},
}
"""Options of each kind for a decoder of two layers."""

CASES = {
    **{kind: (kind, options) for kind, options in OPTIONS.items() if ADAPTERS[kind].alone},
    **{
        f"soft_prompt {placement}": ("soft_prompt", {**OPTIONS["soft_prompt"], "placement": placement})
        for placement in ("after_bos", "system", "before_answer")
    },
    "gate+prefix": ("gate+prefix", OPTIONS),
    "soft_prompt+lora": ("soft_prompt+lora", OPTIONS),
    "prefix+soft_prompt+lora+steering": (
        "prefix+soft_prompt+lora+steering",
        {**OPTIONS, "soft_prompt": {**OPTIONS["soft_prompt"], "placement": "before_answer"}},
    ),
}
"""Kinds, placements and compositions, each with its options."""


def make(case, model, seed=0):
    """The adapter of a case, as it starts."""
    kind, options = CASES[case]
    if "+" in kind:
        options = {name: options[name] for name in kind.split("+")}
    return make_adapter(jax.random.key(seed), kind, model, **options)


def moved(adapter, seed=0, size=0.5):
    """The same with noise on every number, as if it had been trained."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + np.float32(size) * rng.normal(size=leaf.shape).astype(np.float32), adapter)
