"""Usefulness beside multiple choice and the divergence from the base model: each measure is one file and one line."""

from edgesafe_jax.safety.usefulness import gsm8k, instructions, perplexity
from edgesafe_jax.safety.usefulness.measure import Measure, Reading

__all__ = ["USEFULNESS", "Measure", "Reading"]

USEFULNESS: dict[str, Measure] = {
    "instructions": instructions.MEASURE,
    "gsm8k": gsm8k.MEASURE,
    "perplexity": perplexity.MEASURE,
}
"""The measures by name."""
