"""Soft prompts: trained vectors in front of the input embeddings of a frozen decoder.

Lester, Al-Rfou, Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning" (2021); the alignment method is
Alfarra et al., "Distilling Safe LLM Systems via Soft Prompts for On Device Settings", arXiv 2606.09388.
"""

import flax.struct
import jax
import jax.numpy as jnp

from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import Array, PRNGKey


@flax.struct.dataclass
class SoftPrompt:
    """P trained vectors in front of the chat.

    Attributes:
      embeddings: `[P, D]` float32, in units of the embedding table.
    """

    embeddings: Array

    @property
    def num_virtual(self) -> int:
        """P."""
        return self.embeddings.shape[0]

    def virtual_embeddings(self) -> Array:
        """The vectors themselves."""
        return self.embeddings

    def low_rank(self) -> None:
        """Returns None: a soft prompt leaves the matrices as they are."""


def soft_prompt_from_text(model: LanguageModel, text: str, *, num_virtual: int | None = None) -> SoftPrompt:
    """Starts from the embeddings of an instruction.

    Args:
      model: whose embedding table and tokenizer are used.
      text: the instruction; its tokens are repeated or cut to fit.
      num_virtual: P; default as many as the text has tokens.

    Returns:
      The soft prompt.

    Raises:
      ValueError: an empty text or a P below one.
    """
    ids = model.tokenizer.encode(text)
    if not ids:
        raise ValueError("The instruction text is empty: a soft prompt needs at least one token to start from.")
    num_virtual = len(ids) if num_virtual is None else num_virtual
    _check(num_virtual)
    repeated = (ids * (num_virtual // len(ids) + 1))[:num_virtual]
    return SoftPrompt(_rows(model, jnp.array(repeated, jnp.int32)))


def soft_prompt_from_vocabulary(model: LanguageModel, key: PRNGKey, *, num_virtual: int) -> SoftPrompt:
    """Starts from the embeddings of tokens drawn uniformly from the vocabulary.

    Raises:
      ValueError: a P below one.
    """
    _check(num_virtual)
    ids = jax.random.randint(key, (num_virtual,), 0, model.tokenizer.vocab_size)
    return SoftPrompt(_rows(model, ids))


def random_soft_prompt(model: LanguageModel, key: PRNGKey, *, num_virtual: int) -> SoftPrompt:
    """Starts from Gaussian vectors with the mean and standard deviation of the embedding table, per dimension.

    An ablation: random vectors cost safety by themselves before any training (Alfarra et al.).

    Raises:
      ValueError: a P below one.
    """
    _check(num_virtual)
    table = model.params["embedding"].astype(jnp.float32)
    noise = jax.random.normal(key, (num_virtual, table.shape[1]), jnp.float32)
    return SoftPrompt(jnp.mean(table, axis=0)[None] + noise * jnp.std(table, axis=0)[None])


def _check(num_virtual: int) -> None:
    if num_virtual < 1:
        raise ValueError(f"num_virtual={num_virtual}: expected at least 1.")


def _rows(model: LanguageModel, ids: Array) -> Array:
    return jnp.take(model.params["embedding"], ids, axis=0).astype(jnp.float32)
