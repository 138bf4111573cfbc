"""The agreement of a runtime with JAX: for every token that the runtime chose, which one JAX chooses there.

A greedy answer of the runtime is JAX's own, token for token, exactly where JAX chooses each of its tokens; so one pass
over the runtime's answers decides it, and says by how much the two differ where they do.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import ConfigError, check_texts
from edgesafe_jax.metrics import rate_interval
from edgesafe_jax.models.decoder import Decoder, DecoderOutput
from edgesafe_jax.models.generation import PROMPT_BUCKETS, bucket_length, pad_tokens
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What JAX says of a runtime's greedy answers.

    Attributes:
      margins: for each prompt `[T]`, by how much JAX's logit of its own choice exceeds that of the runtime's token: 0
        where they agree.
      excluded: for each prompt `[T]` bool, whether a token that may not be chosen has the largest logit of all.
    """

    margins: list[np.ndarray]
    excluded: list[np.ndarray]

    @property
    def equal(self) -> np.ndarray:
        """`[N]` bool, whether the whole answer is JAX's."""
        return np.array([not np.any(row > 0) for row in self.margins], bool)

    @property
    def first_margins(self) -> np.ndarray:
        """`[M]`, of each answer that is not JAX's the margin at its first differing token."""
        return np.array([row[row > 0][0] for row in self.margins if np.any(row > 0)])

    def numbers(self) -> dict[str, float]:
        """Flat numbers with the ends of their intervals."""
        whole = np.concatenate(self.margins)
        differing = whole[whole > 0]
        values = {"num_prompts": float(len(self.margins)), "num_tokens": float(len(whole))}
        values |= rate_interval(self.equal).named("equal_answers")
        values |= rate_interval(whole == 0).named("equal_tokens")
        values |= rate_interval(np.concatenate(self.excluded)).named("excluded_tokens_above")
        if len(differing):
            values |= {"margin_median": float(np.median(differing)), "margin_max": float(differing.max())}
            values["first_margin_median"] = float(np.median(self.first_margins))
            values["first_margin_max"] = float(self.first_margins.max())
        return values


def own_differences(answers: Sequence[Sequence[Sequence[int]]], found: Sequence[Agreement]) -> np.ndarray:
    """Says how near to ties a runtime is where it differs from itself under other settings.

    Args:
      answers: token ids of two runs on the same prompts.
      found: what JAX says of each.

    Returns:
      `[M]`, for each prompt that was answered differently the distance of JAX's logits of the two first differing
      tokens.
    """
    gaps = []
    for row, (first, second) in enumerate(zip(*answers, strict=True)):
        pairs = enumerate(zip(first, second, strict=False))
        place = next((number for number, (a, b) in pairs if a != b), None)
        if place is not None:
            gaps.append(abs(found[0].margins[row][place] - found[1].margins[row][place]))
    return np.array(gaps)


def agreement(
    model: LanguageModel,
    prompts: Sequence[str],
    answers: Sequence[Sequence[int]],
    *,
    num_tokens: int | None = None,
    batch_size: int = 16,
) -> Agreement:
    """Compares greedy answers of a runtime with the choices of JAX.

    Args:
      model: the same file, loaded here; what opens its chat template is part of the chat.
      prompts: N user texts.
      answers: N answers as token ids, the token that ended an answer included or not.
      num_tokens: tokens with ids below it may be chosen: those of the base model, where a runtime suppresses the new
        ones of a grafted file. None for all.
      batch_size: rows that run at once.

    Returns:
      The margins.

    Raises:
      ConfigError: other numbers of prompts and answers, or an empty answer.
    """
    prompts = check_texts("prompts", prompts)
    if len(prompts) != len(answers) or not all(len(row) for row in answers):
        raise ConfigError(f"{len(prompts)} prompts and {len(answers)} answers: expected as many, and none empty.")
    head = list(model.tokenizer.chat_parts.head)
    begun = [head + row for row in model.tokenizer.encode_prompts([prompt.strip() for prompt in prompts])]
    order = sorted(range(len(prompts)), key=lambda i: len(begun[i]) + len(answers[i]))
    longest = max(map(len, answers))
    found: list[np.ndarray] = [np.zeros(0)] * len(prompts)
    excluded: list[np.ndarray] = [np.zeros(0, bool)] * len(prompts)
    allowed = model.config.vocab_size if num_tokens is None else num_tokens
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        filled = chosen + [chosen[-1]] * (batch_size - len(chosen))
        rows = [[*begun[i], *answers[i]] for i in filled]
        length = bucket_length(max(map(len, rows)), PROMPT_BUCKETS)
        tokens, where = pad_tokens(rows, pad_id=model.tokenizer.pad_id, length=length)
        given, _ = pad_tokens([answers[i] for i in filled], pad_id=0, length=longest)
        first = np.array([len(begun[i]) - 1 for i in filled], np.int32)
        margins, above = map(np.asarray, _margins(model.decoder, allowed, model.params, tokens, where, first, given))
        for row, index in enumerate(chosen):
            found[index] = margins[row, : len(answers[index])]
            excluded[index] = above[row, : len(answers[index])]
    return Agreement(found, excluded)


def _compute(
    decoder: Decoder, allowed: int, params: object, tokens: Array, where: Array, first: Array, given: Array
) -> tuple[Array, Array]:
    output: DecoderOutput = decoder.apply({"params": params}, tokens, where=where)  # type: ignore[assignment]
    places = first[:, None] + jnp.arange(given.shape[1], dtype=jnp.int32)[None]
    hidden = jnp.take_along_axis(output.hidden, jnp.minimum(places, tokens.shape[1] - 1)[:, :, None], axis=1)
    logits: Array = decoder.apply({"params": params}, hidden, method=Decoder.logits)  # type: ignore[assignment]
    best = jnp.max(logits[:, :, :allowed], axis=-1)
    chosen = jnp.take_along_axis(logits, given[:, :, None], axis=-1)[:, :, 0]
    return best - chosen, jnp.max(logits, axis=-1) > best


_margins = jax.jit(_compute, static_argnums=(0, 1))
