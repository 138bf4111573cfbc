"""Scores of a language-model guard: log-odds of the summed label mass at the place of its verdict."""

import dataclasses
import functools
import string
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.adapters.lora import LoRA
from edgesafe_jax.errors import check_counts
from edgesafe_jax.guards.registry import PROMPT_SLOT, RESPONSE_SLOT, Field, GuardFormat, TemplateError, neutralise
from edgesafe_jax.guards.verdicts import check_finite_pairs, check_pairs, judged_text
from edgesafe_jax.models.decoder import Decoder, DecoderOutput, KeyValues
from edgesafe_jax.models.generation import BUCKETS, ContextError, bucket_length, encode_shared_once, pad_tokens
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.tokenization import ChatTokenizer
from edgesafe_jax.typing import Array, ArrayLike, LowRank, Params, ProgressFn

LOW_MASS = 0.5
"""Captured mass below which, in the median over pairs, a guard's scores are warned about."""


class LowMassWarning(UserWarning):
    """The labels capture little of the guard's probability mass, so its format may be wrong."""


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """The verdicts of a guard on N pairs.

    Attributes:
      log_odds: `[N]`, log of the summed probability of the unsafe labels over that of the safe ones.
      captured: `[N]`, probability of all labels together at the place of the verdict; the rest went to other tokens.
    """

    log_odds: np.ndarray
    captured: np.ndarray

    @property
    def unsafe(self) -> np.ndarray:
        """`[N]` float64, P(unsafe) among the labels."""
        return unsafe_of_log_odds(self.log_odds)


def unsafe_of_log_odds(log_odds: ArrayLike) -> np.ndarray:
    """Returns P(unsafe), float64, of log-odds of the same shape."""
    return 0.5 + 0.5 * np.tanh(0.5 * np.asarray(log_odds, np.float64))


SCORING_BUCKETS = tuple(sorted({*BUCKETS, 40, 56, 80, 112, 144, 160, 176, 224, 320, 448}))
"""Lengths to which pairs are padded: finer where most pairs are, since padding costs as much as text."""


def label_scores(
    decoder: Decoder,
    params: Params,
    past: Sequence[KeyValues],
    tokens: Array,
    where: Array,
    unsafe: Array,
    safe: Array,
    low_rank: LowRank | None = None,
) -> tuple[Array, Array]:
    """Reads the labels at the last existing position of each row; pure and differentiable.

    Args:
      decoder: the module.
      params: its frozen parameters.
      past: blocks of what stands before the tokens.
      tokens: `[B, T]` int32, the rest of each row.
      where: `[B, T]` bool, which of them exist; padding is at the end.
      unsafe: ids of the unsafe labels' first tokens.
      safe: ids of the safe ones'.
      low_rank: factors added to the decoder's matrices, or None.

    Returns:
      Log-odds of the summed label mass and log of the captured mass, each `[B]` float32.
    """
    output: DecoderOutput = decoder.apply(  # type: ignore[assignment]
        {"params": params}, tokens, where=where, past=tuple(past), low_rank=low_rank
    )
    last = jnp.sum(where, axis=1, dtype=jnp.int32) - 1
    hidden = jnp.take_along_axis(output.hidden, last[:, None, None], axis=1)[:, 0]
    return read_labels(decoder, params, hidden, unsafe, safe)


def read_labels(decoder: Decoder, params: Params, hidden: Array, unsafe: Array, safe: Array) -> tuple[Array, Array]:
    """Reads the labels from the final hidden states `[B, D]` of the verdict; see `label_scores`."""
    logits: Array = decoder.apply({"params": params}, hidden, method=Decoder.logits)  # type: ignore[assignment]
    positive = jax.nn.logsumexp(jnp.take(logits, unsafe, axis=1), axis=1)
    negative = jax.nn.logsumexp(jnp.take(logits, safe, axis=1), axis=1)
    return positive - negative, jnp.logaddexp(positive, negative) - jax.nn.logsumexp(logits, axis=1)


@functools.partial(jax.jit, static_argnames="decoder")
def _label_scores(
    decoder: Decoder,
    params: Params,
    labels: tuple[Array, Array],
    shared: KeyValues | None,
    tokens: Array,
    where: Array,
) -> tuple[Array, Array]:
    past = () if shared is None else (shared,)
    return label_scores(decoder, params, past, tokens, where, *labels)


@functools.partial(jax.jit, static_argnames="decoder")
def _adapted_label_scores(
    decoder: Decoder,
    params: Params,
    labels: tuple[Array, Array],
    low_rank: LowRank,
    shared: KeyValues | None,
    tokens: Array,
    where: Array,
) -> tuple[Array, Array]:
    """Reads all but the last existing token of each row as the bare model does, and that one with the factors."""
    past = () if shared is None else (shared,)
    last = jnp.sum(where, axis=1, dtype=jnp.int32)[:, None] - 1
    before = where & (jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] < last)
    read: DecoderOutput = decoder.apply(  # type: ignore[assignment]
        {"params": params}, tokens, where=before, past=past
    )
    verdict = jnp.take_along_axis(tokens, last, axis=1)
    every = jnp.ones(verdict.shape, bool)
    return label_scores(decoder, params, (*past, read.key_values), verdict, every, *labels, low_rank)


@dataclasses.dataclass(frozen=True)
class LanguageModelGuard:
    """A language model that is asked for a verdict: callable as (prompts, responses) -> P(unsafe).

    Attributes:
      model: the guard's language model; what is trained for all positions is merged in.
      format: how it is asked and read.
      adapter: factors that act at the place of the verdict only, see `edgesafe_jax.guards.activated`; None for none.
      max_prompt: tokens of a prompt that are judged; the last ones are kept.
      max_response: tokens of a response that are judged; the first ones are kept.
      batch_size: pairs that run at once.
    """

    model: LanguageModel = dataclasses.field(repr=False)
    format: GuardFormat
    adapter: LoRA | None = dataclasses.field(default=None, repr=False)
    max_prompt: int = 2048
    max_response: int = 2048
    batch_size: int = 16

    def __post_init__(self):
        check_counts(max_prompt=self.max_prompt, max_response=self.max_response, batch_size=self.batch_size)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns P(unsafe), `[N]`, of N pairs."""
        return self.judge(prompts, responses).unsafe

    @functools.cached_property
    def template_hash(self) -> str:
        """Sha256 of the rendered prompts, the forced texts and the labels: scores belong to it."""
        return self.format.hash(self.model.tokenizer)

    def judge(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        *,
        on_batch: ProgressFn | None = None,
    ) -> Verdicts:
        """Judges pairs.

        With several policies the highest log-odds count, and the captured mass belongs to them.

        Args:
          prompts: N user texts, the context.
          responses: N answers, which are judged.
          on_batch: called with (pairs done, pairs in total) of each policy and field.

        Returns:
          Log-odds and captured mass.

        Raises:
          TemplateError: the template does not show the pair, or the labels cannot be told apart by their first token.
          ContextError: a pair does not fit into the model's context.
          ConfigError: what is not a list of texts, or other numbers of prompts and responses.
          GuardError: a score is not finite.
        """
        texts = self._texts(prompts, responses)
        best = Verdicts(np.full(len(texts), -np.inf), np.zeros(len(texts)))
        for pieces in self.format.render(self.model.tokenizer):
            found = self._judge_policy(pieces, texts, on_batch)
            higher = found.log_odds > best.log_odds
            best = Verdicts(
                np.where(higher, found.log_odds, best.log_odds), np.where(higher, found.captured, best.captured)
            )
        if len(texts) and np.median(best.captured) < LOW_MASS:
            warnings.warn(
                f"The labels of the guard {self.model.name} hold {np.median(best.captured):.3f} of its probability "
                f"(median of {len(texts)} pairs): is this its format? Hash of the template: {self.template_hash[:16]}.",
                LowMassWarning,
                stacklevel=2,
            )
        return best

    def _texts(self, prompts: Sequence[str], responses: Sequence[str]) -> list[tuple[str, str]]:
        return [
            (
                self._judged(prompt, self.max_prompt, keep_end=True),
                self._judged(judged_text(response), self.max_response, keep_end=False),
            )
            for prompt, response in zip(*check_pairs(prompts, responses), strict=True)
        ]

    def encode(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[list[list[int]], list[int], list[int]]:
        """Encodes pairs up to the place of the verdict, for training on them.

        Args:
          prompts: N user texts.
          responses: N answers.

        Returns:
          N rows of token ids, and the first tokens of the unsafe and of the safe labels.

        Raises:
          TemplateError: the guard has several policies or fields, so that its verdict is not at one place; or as
            `judge`.
        """
        if len(self.format.policies) != 1 or len(self.format.fields) != 1:
            raise TemplateError(
                f"This guard has {len(self.format.policies)} policies and {len(self.format.fields)} fields: expected "
                "one of each. Train on one policy, dataclasses.replace(format, policies=format.policies[:1])."
            )
        ((head, middle, tail),) = self.format.render(self.model.tokenizer)
        end = tail if tail.endswith(self.format.fields[0].prefix) else tail + self.format.fields[0].prefix
        unsafe, safe = self._labels(self.format.fields[0], f"{head}{middle}{end}")
        rows = [f"{head}{prompt}{middle}{response}{end}" for prompt, response in self._texts(prompts, responses)]
        return [self.model.tokenizer.encode(row, control=True) for row in rows], unsafe, safe

    @functools.cached_property
    def head_tokens(self) -> list[int]:
        """Tokens of the template before the prompt, of the first policy."""
        tokenizer = self.model.tokenizer
        return tokenizer.encode(self.format.render(tokenizer)[0][0], control=True)

    def encode_behind_head(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
        """Encodes pairs as `encode`, without `head_tokens`, with which all of them begin.

        Args:
          prompts: N user texts.
          responses: N answers.

        Returns:
          N rows of token ids.

        Raises:
          TemplateError: as `encode`, or the template's text before the prompt is encoded together with the prompt.
          ContextError: a pair does not fit into the model's context.
        """
        head = self.head_tokens
        rows, _, _ = self.encode(prompts, responses)
        self.check_context(rows)
        if any(row[: len(head)] != head for row in rows):
            raise TemplateError(
                "What this template writes before the prompt grows together with it in this tokenizer: expected it to "
                "end with a control token or a line break."
            )
        return [row[len(head) :] for row in rows]

    def _labels(self, field: Field, before: str) -> tuple[list[int], list[int]]:
        unsafe, safe = (label_ids(self.model, before, labels) for labels in (field.unsafe, field.safe))
        if common := set(unsafe) & set(safe):
            raise TemplateError(
                f"The labels {field.unsafe} and {field.safe} share the first token {min(common)} in this "
                "tokenizer: move what they have in common into the field's prefix."
            )
        return unsafe, safe

    def _judged(self, text: str, num_tokens: int, *, keep_end: bool) -> str:
        """A text as it stands in the prompt: without outer space, cut to length, control strings broken."""
        tokenizer = self.model.tokenizer
        text = cut_text(tokenizer, text.strip(), num_tokens, keep_end=keep_end)
        return neutralise(text, (*tokenizer.control_strings, *self.format.delimiters, PROMPT_SLOT, RESPONSE_SLOT))

    def _judge_policy(
        self,
        pieces: tuple[str, str, str],
        texts: Sequence[tuple[str, str]],
        on_batch: ProgressFn | None,
    ) -> Verdicts:
        head, middle, tail = pieces
        rows = [f"{head}{prompt}{middle}{response}{tail}" for prompt, response in texts]
        verdicts = Verdicts(np.zeros(0), np.zeros(0))
        for number, field in enumerate(self.format.fields):
            forced = "" if number == 0 and tail.endswith(field.prefix) else field.prefix
            rows = [row + forced for row in rows]
            unsafe, safe = self._labels(field, f"{head}{middle}{tail}{forced}")
            verdicts = self._score(rows, unsafe, safe, on_batch)
            chosen = np.where(verdicts.log_odds > 0, field.unsafe[0], field.safe[0])
            rows = [row + label for row, label in zip(rows, chosen, strict=True)]
        return verdicts

    def _score(self, rows: Sequence[str], unsafe: list[int], safe: list[int], on_batch: ProgressFn | None) -> Verdicts:
        """Scores rendered prompts; what all of them begin with is computed once."""
        model = self.model
        encoded = [model.tokenizer.encode(row, control=True) for row in rows]
        self.check_context(encoded)
        num_shared = _common_prefix(encoded)
        log_odds, captured = np.zeros(len(rows)), np.zeros(len(rows))
        if not rows:
            return Verdicts(log_odds, captured)
        labels = jnp.array(unsafe, jnp.int32), jnp.array(safe, jnp.int32)
        score = functools.partial(_label_scores, model.decoder, model.params, labels)
        if self.adapter is not None:
            low_rank = self.adapter.low_rank()
            score = functools.partial(_adapted_label_scores, model.decoder, model.params, labels, low_rank)
        common = jnp.array(encoded[0][:num_shared], jnp.int32)
        shared = encode_shared_once(model.decoder, model.params, None, common) if num_shared else None
        order = sorted(range(len(rows)), key=lambda i: len(encoded[i]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            filled = chosen + [chosen[-1]] * (self.batch_size - len(chosen)) if start else chosen
            rest = [encoded[i][num_shared:] for i in filled]
            length = bucket_length(max(map(len, rest)), SCORING_BUCKETS)
            tokens, where = pad_tokens(rest, pad_id=model.tokenizer.pad_id, length=length)
            odds, log_mass = score(shared, tokens, where)
            log_odds[chosen] = np.asarray(odds)[: len(chosen)]
            captured[chosen] = np.exp(np.asarray(log_mass, np.float64))[: len(chosen)]
            if on_batch is not None:
                on_batch(min(start + self.batch_size, len(order)), len(order))
        sources = (("parameters", model.params), ("adapter", self.adapter))
        check_finite_pairs(np.isfinite(log_odds) & np.isfinite(captured), f"{model.name}'s scores", sources=sources)
        return Verdicts(log_odds, captured)

    def check_context(self, encoded: Sequence[list[int]]) -> None:
        """Refuses rows of tokens that do not fit into the model's context."""
        available = self.model.config.max_context
        for index, row in enumerate(encoded):
            if len(row) > available:
                raise ContextError(
                    f"Pair {index} needs {len(row)} positions; the context of {self.model.name} has {available}. Lower "
                    "max_prompt or max_response."
                )


def _common_prefix(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with, leaving each at least one of its own."""
    if not rows:
        return 0
    shortest, longest = min(rows), max(rows)  # in lexicographic order: what these two share, all do
    most = min(len(row) for row in rows) - 1
    return next((i for i in range(most) if shortest[i] != longest[i]), most)


def cut_text(tokenizer: ChatTokenizer, text: str, num_tokens: int, *, keep_end: bool = False) -> str:
    """Returns the beginning of a text, or its end, that is at most so many tokens.

    Args:
      tokenizer: counts the tokens.
      text: the text.
      num_tokens: most tokens, at least 1.
      keep_end: whether the end is kept.

    Returns:
      The text, or the part of it in whole characters.
    """
    ids = tokenizer.encode(text)
    for num in range(num_tokens, 0, -1):
        if len(ids) <= num_tokens:
            return text
        # A token may hold a part of a character, which is decoded as a replacement character.
        part = tokenizer.decode(ids[-num:] if keep_end else ids[:num]).strip("\ufffd" + string.whitespace)
        if len(tokenizer.encode(part)) <= num_tokens:
            return part
    return ""


def label_ids(model: LanguageModel, before: str, labels: Sequence[str]) -> list[int]:
    """The first token of each label where it stands, from the tokenizer itself.

    Args:
      model: has the tokenizer.
      before: the text that the labels follow.
      labels: words, with the space before them if they have one.

    Returns:
      Token ids without repetition.

    Raises:
      TemplateError: a label is empty or grows together with the text before it.
    """
    context = model.tokenizer.encode(before, control=True)
    found = []
    for label in labels:
        joined = model.tokenizer.encode(before + label, control=True)
        if len(joined) <= len(context) or joined[: len(context)] != context:
            raise TemplateError(
                f"The label {label!r} and the text before it, {before[-20:]!r}, are encoded together: move the space "
                "between them from one to the other."
            )
        found.append(joined[len(context)])
    return list(dict.fromkeys(found))
