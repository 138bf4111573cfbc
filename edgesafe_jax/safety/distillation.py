"""Distilling a safe system into an adapter on its own frozen language model.

A row of a batch is a prompt with one outcome behind it: the base model's answer y with weight a, or the refusal y_r
with weight 1 - a. A prompt of which the guard is sure is one row, one of which it is not is two; no forward pass is
spent on an outcome of negligible weight. What every row begins with (the adapter's virtual positions, the head of the
chat template) is computed once per step at batch size one. The teacher's distributions come from its cached hidden
states: student and teacher share the frozen output head, so a state of D numbers stands for V logits exactly, and
`losses.linear_divergence` never holds the logits of a whole batch.

Alfarra et al., arXiv 2606.09388, algorithm 1.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import losses
from edgesafe_jax.losses.distillation import Divergence
from edgesafe_jax.models.decoder import Decoder, DecoderOutput, KeyValues, low_rank_of
from edgesafe_jax.models.generation import bucket_length, encode_prompts, encode_shared, pad_tokens
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.scoring import first_token_margins
from edgesafe_jax.safety.system import SequenceTeacher
from edgesafe_jax.typing import Adapter, Array, Params

BUCKETS = (32, 48, 64, 96, 192, 384, 768, 1536, 3072, 6144, 8192)
"""Lengths, in positions, to which the rows of a training batch are padded: few, for each is compiled."""


@flax.struct.dataclass
class TeacherBatch:
    """Rows of the gated teacher, padded: each a prompt and one outcome.

    Attributes:
      tokens: `[B, T]` int32: the user's text, the template's tail and the outcome but for its last token.
      where: `[B, T]` bool, which of them exist.
      start: `[B]` int32, the position that predicts the outcome's first token.
      outcome: `[B, O]` int32, y or y_r with its end-of-sequence token, padded on the right.
      outcome_where: `[B, O]` bool; a row without any is padding of the batch.
      is_refusal: `[B]` bool, whether the outcome is y_r.
      weight: `[B]` float32, the system's probability of the outcome: a for y, 1 - a for y_r.
      refusal_prob: `[B]` float32, 1 - a.
      refusal_token: `[B]` int32, the first token of y_r.
      teacher_hidden: `[B, O, D]`, final hidden states of the base model that predict each token of y (of a refusal's
        row only the first is used); `[B, 0, D]` where no term needs them.
    """

    tokens: Array | np.ndarray
    where: Array | np.ndarray
    start: Array | np.ndarray
    outcome: Array | np.ndarray
    outcome_where: Array | np.ndarray
    is_refusal: Array | np.ndarray
    weight: Array | np.ndarray
    refusal_prob: Array | np.ndarray
    refusal_token: Array | np.ndarray
    teacher_hidden: Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class SequenceTerm:
    """A loss on the log-probability of each whole outcome.

    Attributes:
      loss: `losses.outcome_total_variation` (equation 4) or `losses.outcome_kl`.
      normalization: how the log-probability of a sequence is taken from its tokens'. With "sum" the clip of equation 4
        never binds (an answer of forty tokens has a log-probability far below log a); with "mean" it can.
      scale: factor of the term.
    """

    loss: Callable[..., Array]
    normalization: losses.Normalization = "mean"
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class TokenTerm:
    """A full-vocabulary divergence to the gated teacher at every position; see `losses.gated_divergence`.

    Attributes:
      divergence: `losses.forward_kl`, `losses.total_variation`, `losses.jensen_shannon` or one with their keywords.
      normalization: whether each outcome counts by the sum or by the mean over its positions.
      scale: factor of the term.
    """

    divergence: Divergence
    normalization: losses.Normalization = "mean"
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class DecisionTerm:
    """A divergence at the decision between answer and refusal: the first position, and all of the refusal.

    D(a p_1 + (1 - a) [first token of y_r], q_1) + (1 - a) sum_{t > 1} D([y_{r,t}], q(. | x, y_{r,<t})). Averaged over
    the positions of an answer the first part nearly vanishes, and more so the longer the answer is beside the refusal;
    added on its own it weighs both mistakes alike. The rest of the refusal conflicts with no answer.

    Attributes:
      divergence: `losses.forward_kl`, `losses.total_variation` or one with their keywords.
      scale: factor of the term.
    """

    divergence: Divergence
    scale: float = 1.0


Term: TypeAlias = SequenceTerm | TokenTerm | DecisionTerm
"""One of the terms that an objective adds up."""


def needs_teacher(terms: Sequence[Term]) -> bool:
    """Whether an objective needs the base model's hidden states."""
    return any(not isinstance(term, SequenceTerm) for term in terms)


def refusal_ids(model: LanguageModel, refusal: str) -> np.ndarray:
    """Returns the refusal as tokens with the end of sequence behind them, `[R]` int32."""
    return np.array([*model.tokenizer.encode(refusal), model.tokenizer.end_id], np.int32)


def outcome_hidden(
    decoder: Decoder, params: Params, adapter: Adapter | None, head: Array, batch: TeacherBatch
) -> Array:
    """Runs the model along the outcome of each row.

    Args:
      decoder: the module.
      params: its frozen parameters.
      adapter: the trained one, or None for the base model.
      head: `[Th]` int32, the head of the chat template.
      batch: B rows.

    Returns:
      The final hidden states that predict the outcome's tokens, `[B, O, D]`.
    """
    shared: KeyValues = encode_shared(decoder, params, adapter, head)
    output: DecoderOutput = decoder.apply(  # type: ignore[assignment]
        {"params": params}, batch.tokens, where=batch.where, past=(shared,), low_rank=low_rank_of(adapter)
    )
    offsets = np.arange(batch.outcome.shape[1], dtype=np.int32)
    columns = jnp.minimum(batch.start[:, None] + offsets[None], batch.tokens.shape[1] - 1)
    return jnp.take_along_axis(output.hidden, columns[:, :, None], axis=1)


def certainty(batch: TeacherBatch) -> tuple[Array, Array]:
    """What the gated teacher is sure of (equation 2, under teacher forcing).

    At the first position the outcomes are mixed, a p(. | x) + (1 - a) [first token of y_r]; behind it the prefix tells
    them apart: on y the teacher is the base model, on y_r the rest of the refusal.

    Args:
      batch: B rows.

    Returns:
      The part of its probability that the teacher puts on one token, `[B, O]`, and that token, `[B, O]`.
    """
    later = np.arange(batch.outcome.shape[1])[None] > 0
    tokens = jnp.where(later, batch.outcome, batch.refusal_token[:, None])
    return jnp.where(later, batch.is_refusal[:, None].astype(jnp.float32), batch.refusal_prob[:, None]), tokens


def token_teacher(model: LanguageModel, batch: TeacherBatch) -> Array:
    """The gated teacher at token level: next-token distributions along each row's outcome; see `certainty`.

    Args:
      model: the base model.
      batch: B rows; their hidden states are computed here, those in the batch are not used.

    Returns:
      Probabilities `[B, O, V]`, float32.
    """
    head = jnp.array(model.tokenizer.chat_parts.head, jnp.int32)
    hidden = outcome_hidden(model.decoder, model.params, None, head, batch)
    probs = jax.nn.softmax(_project(model.decoder, model.params, hidden), axis=-1)
    certain, tokens = certainty(batch)
    one_hot = jax.nn.one_hot(tokens, probs.shape[-1], dtype=jnp.float32)
    return (1 - certain)[..., None] * probs + certain[..., None] * one_hot


def _project(decoder: Decoder, params: Params, hidden: Array) -> Array:
    return decoder.apply({"params": params}, hidden, method=Decoder.logits)  # type: ignore[return-value]


def _position_weights(term: TokenTerm | DecisionTerm, batch: TeacherBatch) -> Array:
    """How much each position of an outcome counts in a term, `[B, O]` float32, the row's weight included."""
    exists = jnp.asarray(batch.outcome_where, jnp.float32)
    if isinstance(term, TokenTerm):
        count = jnp.sum(exists, axis=1, keepdims=True)
        weights = exists if term.normalization == "sum" else exists / jnp.maximum(count, 1.0)
    else:
        first = (np.arange(exists.shape[1]) == 0)[None]
        weights = jnp.where(first | batch.is_refusal[:, None], exists, 0.0)
    return term.scale * weights * batch.weight[:, None]


def row_losses(terms: Sequence[Term], decoder: Decoder, params: Params, hidden: Array, batch: TeacherBatch) -> Array:
    """Adds an objective up for each row.

    Summed over the rows of one prompt it is the objective of that prompt: its outcomes' losses weighed by their
    probabilities.

    Args:
      terms: the objective.
      decoder: the module, for its output head.
      params: its frozen parameters.
      hidden: the student's `[B, O, D]`, from `outcome_hidden`.
      batch: B rows.

    Returns:
      `[B]` float32; a row of padding gives 0.
    """
    project = functools.partial(_project, decoder)
    where = jnp.asarray(batch.outcome_where)
    total = jnp.zeros(where.shape[0], jnp.float32)
    token_terms = [term for term in terms if not isinstance(term, SequenceTerm)]
    if token_terms:
        divergences = tuple(dict.fromkeys(term.divergence for term in token_terms))
        certain, tokens = certainty(batch)
        values = losses.linear_divergence(
            divergences,
            student_hidden=hidden,
            teacher_hidden=batch.teacher_hidden,
            head=params,
            certain_prob=certain,
            certain_tokens=tokens,
            project=project,
            where=where,
        )
        found = dict(zip(divergences, values, strict=True))
        for term in token_terms:
            total = total + jnp.sum(_position_weights(term, batch) * found[term.divergence], axis=1)
    sequence_terms = [term for term in terms if isinstance(term, SequenceTerm)]
    if sequence_terms:
        log_prob = losses.linear_log_prob(
            hidden=hidden, tokens=batch.outcome, head=params, project=project, where=where
        )
        summed, count = jnp.sum(log_prob, axis=1), jnp.maximum(jnp.sum(where, axis=1, dtype=jnp.float32), 1.0)
        exists = jnp.any(where, axis=1)
        for term in sequence_terms:
            value = summed if term.normalization == "sum" else summed / count
            total = total + term.scale * term.loss(log_prob=value, weight=batch.weight, where=exists)
    return total


LossFn: TypeAlias = Callable[[Params, Adapter, TeacherBatch], tuple[Array, dict[str, Array]]]


def make_loss(decoder: Decoder, *, head: Sequence[int], terms: Sequence[Term]) -> LossFn:
    """Makes the distillation loss of an adapter.

    Args:
      decoder: the module of the frozen model.
      head: tokens of the chat template before the user's text.
      terms: what is minimised, added up per row.

    Returns:
      `loss(params, adapter, batch) -> (scalar, metrics)`, the mean over the rows that exist; the metrics are the means
      over the rows that are answers and over those that are refusals.

    Raises:
      ValueError: no terms.
    """
    if not terms:
        raise ValueError("An objective needs at least one term.")
    head_tokens = np.array(head, np.int32)

    def loss(params: Params, adapter: Adapter, batch: TeacherBatch) -> tuple[Array, dict[str, Array]]:
        hidden = outcome_hidden(decoder, params, adapter, jnp.array(head_tokens), batch)
        value = row_losses(terms, decoder, params, hidden, batch)
        exists = jnp.any(jnp.asarray(batch.outcome_where), axis=1)
        refused = jnp.asarray(batch.is_refusal)
        metrics = {
            "answer_loss": losses.masked_mean(value, where=exists & ~refused),
            "refusal_loss": losses.masked_mean(value, where=exists & refused),
        }
        return losses.masked_mean(value, where=exists), jax.lax.stop_gradient(metrics)

    return loss


def refusal_margins(
    model: LanguageModel, adapter: Adapter | None, prompts: Sequence[str], refusal: str, *, batch_size: int = 32
) -> np.ndarray:
    """By how much the first token of the refusal leads, in nats, where an answer begins.

    Above 0 a greedy answer begins like the refusal. One forward pass per prompt instead of a generation.

    Args:
      model: the frozen language model.
      adapter: the student's, or None.
      prompts: N user texts.
      refusal: the refusal.
      batch_size: rows that run at once.

    Returns:
      `[N]`, the log-probability of that token less that of the likeliest other one.
    """
    first = int(refusal_ids(model, refusal)[0])
    return first_token_margins(model, prompts, first, adapter=adapter, batch_size=batch_size)


@dataclasses.dataclass(frozen=True)
class TeacherData:
    """The gated teacher of all training prompts, on the host, ready to be cut into batches.

    Attributes:
      prompts: S token rows (user's text and template's tail), one per prompt.
      sample: `[N]`, which prompt each row belongs to.
      outcomes: N token rows (answer or refusal, with the end of sequence where it ended).
      is_refusal: `[N]` bool.
      weight: `[N]` float32, the system's probability of the outcome.
      refusal: y_r with its end-of-sequence token.
      refusal_prob: `[S]` float32, 1 - a.
      teacher_hidden: `[S, O, D]` float32, or `[S, 0, D]`.
      max_tokens: O, the longest outcome, in tokens.
    """

    prompts: list[list[int]]
    sample: np.ndarray
    outcomes: list[list[int]]
    is_refusal: np.ndarray
    weight: np.ndarray
    refusal: list[int]
    refusal_prob: np.ndarray
    teacher_hidden: np.ndarray
    max_tokens: int

    def __len__(self) -> int:
        return len(self.outcomes)

    def length(self, row: int) -> int:
        """Positions of a row."""
        return len(self.prompts[self.sample[row]]) + len(self.outcomes[row]) - 1

    def batch(self, rows: Sequence[int] | np.ndarray, *, pad_id: int) -> TeacherBatch:
        """Pads the given rows; an index of -1 makes a row of padding."""
        chosen = [int(i) for i in rows]
        exists = np.array([i >= 0 for i in chosen])
        prompts = [self.prompts[self.sample[i]] if i >= 0 else [pad_id] for i in chosen]
        outcomes = [self.outcomes[i] if i >= 0 else [] for i in chosen]
        lines = [[*prompt, *outcome[:-1]] for prompt, outcome in zip(prompts, outcomes, strict=True)]
        tokens, where = pad_tokens(lines, pad_id=pad_id, length=bucket_length(max(map(len, lines)), BUCKETS))
        outcome, outcome_where = pad_tokens(outcomes, pad_id=pad_id, length=self.max_tokens)
        sample = self.sample[chosen]
        return TeacherBatch(
            tokens=tokens,
            where=where,
            start=np.array([len(prompt) - 1 for prompt in prompts], np.int32),
            outcome=outcome,
            outcome_where=outcome_where,
            is_refusal=self.is_refusal[chosen] & exists,
            weight=np.where(exists, self.weight[chosen], 1.0).astype(np.float32),
            refusal_prob=np.where(exists, self.refusal_prob[sample], 0.0).astype(np.float32),
            refusal_token=np.full(len(chosen), self.refusal[0], np.int32),
            teacher_hidden=self.teacher_hidden[sample],
        )  # type: ignore[arg-type]


_base_hidden = jax.jit(
    lambda decoder, params, head, batch: outcome_hidden(decoder, params, None, head, batch), static_argnums=0
)


def make_teacher_data(
    model: LanguageModel,
    teacher: SequenceTeacher,
    *,
    max_tokens: int,
    with_hidden: bool,
    min_weight: float = 0.01,
    batch_size: int = 32,
    on_batch: Callable[[int, int], None] | None = None,
) -> TeacherData:
    """Encodes the gated teacher, with the base model's hidden states where they are wanted.

    Args:
      model: the base model.
      teacher: prompts, answers and weights.
      max_tokens: longest answer; longer ones are cut. The refusal is whole, however long.
      with_hidden: whether to cache the hidden states that token-level terms need (`S * O * D` float32): those kept
        while the answers were sampled, or else computed here.
      min_weight: outcomes of less weight get no row; 0 keeps all of positive weight.
      batch_size: rows that run at once.
      on_batch: called with (prompts done, prompts in total).

    Returns:
      The encoded teacher; its rows are the answers of all prompts, then the refusals.

    Raises:
      ValueError: `min_weight` is not in [0, 0.5).
      edgesafe_jax.models.generation.ContextError: a prompt with its answer does not fit into the context.
    """
    if not 0 <= min_weight < 0.5:
        raise ValueError(f"min_weight={min_weight}: expected in [0, 0.5), so that each prompt keeps an outcome.")
    refusal = refusal_ids(model, teacher.refusal).tolist()
    longest = max(max_tokens, len(refusal))
    prompts = encode_prompts(model, teacher.prompts, max_tokens=longest)
    eos = model.tokenizer.end_id
    answers = [
        [*tokens, *([eos] if ended else [])][:max_tokens]
        for tokens, ended in zip(teacher.responses.tokens, teacher.responses.finished, strict=True)
    ]
    safe = np.asarray(teacher.safe_prob, np.float32)
    answered, refused = (np.flatnonzero((weight > 0) & (weight >= min_weight)) for weight in (safe, 1 - safe))
    data = TeacherData(
        prompts=prompts,
        sample=np.concatenate([answered, refused]),
        outcomes=[*(answers[i] for i in answered), *(refusal for _ in refused)],
        is_refusal=np.repeat([False, True], [len(answered), len(refused)]),
        weight=np.concatenate([safe[answered], 1 - safe[refused]]),
        refusal=refusal,
        refusal_prob=1 - safe,
        teacher_hidden=np.zeros((len(prompts), 0, model.config.embed_dim), np.float32),
        max_tokens=longest,
    )
    if not with_hidden:
        return data
    hidden = np.zeros((len(prompts), longest, model.config.embed_dim), np.float32)
    kept = teacher.responses.hidden
    if kept is not None and kept.shape[1] >= max_tokens:
        hidden[:, :max_tokens] = kept[:, :max_tokens]
        return dataclasses.replace(data, teacher_hidden=hidden)
    plain = dataclasses.replace(
        data, sample=np.arange(len(prompts)), outcomes=answers, is_refusal=np.zeros(len(prompts), bool), weight=safe
    )
    head = jnp.array(model.tokenizer.chat_parts.head, jnp.int32)
    order = sorted(range(len(plain)), key=plain.length)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = plain.batch([*chosen, *([-1] * (batch_size - len(chosen)))], pad_id=model.tokenizer.pad_id)
        states = np.asarray(_base_hidden(model.decoder, model.params, head, batch), np.float32)
        hidden[chosen] = states[: len(chosen)]
        if on_batch is not None:
            on_batch(min(start + batch_size, len(order)), len(order))
    return dataclasses.replace(data, teacher_hidden=hidden)


def row_counts(batch_size: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Divides the rows of a batch among groups, whole rows, largest remainder first.

    Args:
      batch_size: B.
      shares: share of the batch by group name, in any unit.

    Returns:
      Rows by group, at least one each, B in all.

    Raises:
      ValueError: shares that are not positive, or too small for a row.
    """
    for name, value in shares.items():
        if not value > 0:
            raise ValueError(f"Share of {name!r} is {value}: expected more than 0.")
    names = sorted(shares)
    total = sum(shares[name] for name in names)
    exact = {name: batch_size * shares[name] / total for name in names}
    counts = {name: int(exact[name]) for name in names}
    for name in sorted(names, key=lambda n: counts[n] - exact[n])[: batch_size - sum(counts.values())]:
        counts[name] += 1
    for name in names:
        if not counts[name]:
            raise ValueError(
                f"Share of {name!r} is {shares[name]} of {total}: not one row of a batch of {batch_size}. Raise "
                "batch_size or the share."
            )
    return counts


def make_batch_order(
    data: TeacherData, *, batch_size: int, seed: int, groups: Mapping[str, Sequence[int]], shares: Mapping[str, float]
) -> Callable[[int], np.ndarray]:
    """Makes the rows of each step a function of the step alone, so that an interrupted run continues exactly.

    Every batch takes rows of all groups in the given shares, and of one length bucket where it can: within a group,
    rows are dealt in a fixed random order, sorted by length within windows of some batches.

    Args:
      data: the encoded teacher.
      batch_size: B.
      seed: of the order.
      groups: row numbers by group name; every group has at least one row.
      shares: share of the batch by group name, see `row_counts`.

    Returns:
      `order(step)`, B row numbers.

    Raises:
      ValueError: an empty group, other names in the shares, or shares that are not positive or too small for a row.
    """
    if set(groups) != set(shares) or not groups:
        raise ValueError(f"groups {sorted(groups)} and shares {sorted(shares)} must have the same names.")
    for name in groups:
        if not len(groups[name]):
            raise ValueError(f"Group {name!r} has no rows: expected at least one of each kind.")
    counts = row_counts(batch_size, shares)
    names = sorted(groups)
    window = 16  # batches within which rows are sorted by length

    @functools.lru_cache(maxsize=4 * len(names))
    def dealt(name: str, number: int) -> list[np.ndarray]:
        """The rows of one group for one window of batches."""
        rows = np.asarray(groups[name])
        needed = window * counts[name]
        begin = number * needed
        chosen = []
        for position in range(begin, begin + needed):
            epoch, index = divmod(position, len(rows))
            chosen.append(int(rows[_permutation(len(rows), seed, epoch, name)[index]]))
        chosen.sort(key=data.length)
        return np.array_split(np.array(chosen), window)

    def order(step: int) -> np.ndarray:
        number, index = divmod(step, window)
        # One random order of the window's batches for all groups: short rows meet short rows.
        index = int(np.random.default_rng([seed, number, 7]).permutation(window)[index])
        return np.concatenate([dealt(name, number)[index] for name in names])

    return order


@functools.lru_cache(maxsize=64)
def _permutation(size: int, seed: int, epoch: int, name: str) -> np.ndarray:
    return np.random.default_rng([seed, epoch, *name.encode()]).permutation(size)
