"""Attacks on an aligned model: each is one file and one line of `ATTACKS`."""

from edgesafe_jax.safety.attacks.attempt import Attack, Attempt, MakeAttempts, SearchBudget, Target
from edgesafe_jax.safety.attacks.gcg import make_suffixes, search_suffix
from edgesafe_jax.safety.attacks.long_context import make_long_context
from edgesafe_jax.safety.attacks.prefill import OPENING, make_opening, prefilled
from edgesafe_jax.safety.attacks.rewording import make_rewordings
from edgesafe_jax.safety.attacks.templates import make_jailbreaks
from edgesafe_jax.safety.attacks.two_turns import make_two_turns

__all__ = ["ATTACKS", "Attack", "Attempt", "MakeAttempts", "SearchBudget", "Target", "search_suffix"]

ATTACKS: dict[str, Attack] = {
    "prefill": Attack(f"answer begins with “{OPENING}”", make_opening),
    "prefill_1": Attack("1 token of the bare model's harmful answer prefilled", prefilled(1)),
    "prefill_5": Attack("5 tokens of it prefilled", prefilled(5)),
    "prefill_10": Attack("10 tokens of it prefilled", prefilled(10)),
    "templates": Attack("packaged jailbreak templates", make_jailbreaks),
    "rewordings": Attack("reworded by rule", make_rewordings),
    "two_turns": Attack("after a harmless turn", make_two_turns),
    "long_context": Attack("behind 2,000 characters of harmless text", make_long_context),
    "gcg": Attack("token search on the target (GCG)", make_suffixes, adaptive=True),
}
"""The attacks by name. One entry adds one."""
