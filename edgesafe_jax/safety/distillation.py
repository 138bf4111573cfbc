"""Distilling a safe system into an adapter on its own frozen language model.

One row of a batch holds the user's text once and both outcomes behind it: the base model's answer y and the refusal
y_r. Neither outcome sees the other (the attention mask keeps them apart), so the prompt is computed once for two
sequences. What every row begins with (the adapter's virtual positions, the head of the chat template) is computed once
per step at batch size one. The teacher's distributions come from its cached hidden states: student and teacher share
the frozen output head, so a state of D numbers stands for V logits exactly.

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
from edgesafe_jax.models.decoder import Decoder, DecoderOutput, KeyValues, causal_mask
from edgesafe_jax.models.generation import bucket_length, encode_prompts, encode_shared, pad_tokens
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.safety.system import SequenceTeacher
from edgesafe_jax.typing import Adapter, Array, Params

BUCKETS = (24, 48, 96, 192, 384, 768, 1536, 3072, 6144, 8192)
"""Lengths, in positions, to which the prompts of a training batch are padded: few, for each is compiled."""


@flax.struct.dataclass
class TeacherBatch:
    """Rows of the gated teacher, padded.

    Attributes:
      prompt: `[B, Tp]` int32, the user's text and the template's tail, padded on the right.
      prompt_where: `[B, Tp]` bool.
      response: `[B, Ty]` int32, the base model's answer y with its end-of-sequence token, padded on the right.
      response_where: `[B, Ty]` bool; a row without any is padding of the batch.
      safe_prob: `[B]` float32, a = p(s=1 | x, y).
      teacher_hidden: `[B, Ty, D]` final hidden states of the base model that predict each token of y; `[B, 0, D]`
        where no objective needs them.
    """

    prompt: Array | np.ndarray
    prompt_where: Array | np.ndarray
    response: Array | np.ndarray
    response_where: Array | np.ndarray
    safe_prob: Array | np.ndarray
    teacher_hidden: Array | np.ndarray


@flax.struct.dataclass
class Outcomes:
    """What the student says of both outcomes of each row, under teacher forcing.

    Attributes:
      response_logits: `[B, Ty, V]` float32; position t predicts y_t.
      refusal_logits: `[B, R, V]` float32; position t predicts y_{r,t}. The first equals the response's first.
      teacher_logits: `[B, Ty, V]` float32, the base model's on y; `[B, 0, V]` where no objective needs them.
      refusal_tokens: `[R]` int32, y_r with its end-of-sequence token.
    """

    response_logits: Array
    refusal_logits: Array
    teacher_logits: Array
    refusal_tokens: Array


Objective: TypeAlias = Callable[[Outcomes, TeacherBatch], Array]
"""From the student's view of both outcomes to a loss per row, `[B]`."""


def sequence_objective(loss: Callable[..., Array], *, normalization: losses.Normalization = "mean") -> Objective:
    """Makes an objective of a loss over the log-probabilities of the two whole outcomes.

    Args:
      loss: `losses.sequence_total_variation`, `losses.sequence_kl` or one with their keywords.
      normalization: how the log-probability of a sequence is taken from its tokens'. With "sum" the clip of equation 4
        never binds (an answer of forty tokens has a log-probability far below log a); with "mean" it can.

    Returns:
      The objective.
    """

    def objective(outcomes: Outcomes, batch: TeacherBatch) -> Array:
        response = losses.sequence_log_prob(
            logits=outcomes.response_logits,
            tokens=batch.response,
            where=batch.response_where,
            normalization=normalization,
        )
        refusal_tokens = jnp.broadcast_to(outcomes.refusal_tokens[None], outcomes.refusal_logits.shape[:2])
        refusal = losses.sequence_log_prob(
            logits=outcomes.refusal_logits, tokens=refusal_tokens, normalization=normalization
        )
        return loss(response_log_prob=response, refusal_log_prob=refusal, safe_prob=batch.safe_prob)

    return objective


def token_objective(divergence: Callable[..., Array], *, normalization: losses.Normalization = "mean") -> Objective:
    """Makes an objective of a full-vocabulary divergence to the gated teacher, position by position.

    Args:
      divergence: `losses.forward_kl`, `losses.total_variation`, `losses.jensen_shannon` or one with their keywords.
      normalization: whether each outcome counts by the sum or by the mean over its positions.

    Returns:
      The objective; see `losses.gated_divergence`. It needs the teacher's hidden states.
    """

    def objective(outcomes: Outcomes, batch: TeacherBatch) -> Array:
        return losses.gated_divergence(
            divergence,
            student_logits=outcomes.response_logits,
            teacher_logits=outcomes.teacher_logits,
            refusal_logits=outcomes.refusal_logits,
            refusal_tokens=outcomes.refusal_tokens,
            safe_prob=batch.safe_prob,
            normalization=normalization,
            where=batch.response_where,
        )

    return objective


def decision_objective(divergence: Callable[..., Array]) -> Objective:
    """Makes an objective of the decision between answer and refusal: the first position, and all of the refusal.

    D(a p_1 + (1 - a) [first token of y_r], q_1) + (1 - a) sum_{t > 1} D([y_{r,t}], q(. | x, y_{r,<t})). Averaged over
    the positions of an answer the first term nearly vanishes, and more so the longer the answer is beside the refusal;
    added on its own it weighs both mistakes alike. The rest of the refusal conflicts with no answer.

    Args:
      divergence: `losses.forward_kl`, `losses.total_variation` or one with their keywords.

    Returns:
      The objective. It needs the teacher's hidden states.
    """

    def objective(outcomes: Outcomes, batch: TeacherBatch) -> Array:
        return losses.gated_divergence(
            divergence,
            student_logits=outcomes.response_logits[:, :1],
            teacher_logits=outcomes.teacher_logits[:, :1],
            refusal_logits=outcomes.refusal_logits,
            refusal_tokens=outcomes.refusal_tokens,
            safe_prob=batch.safe_prob,
            normalization="sum",
            where=batch.response_where[:, :1],
        )

    return objective


def mixed_objective(*terms: tuple[float, Objective]) -> Objective:
    """Adds objectives with weights, for instance TV with a little KL where TV's gradient vanishes."""
    if not terms:
        raise ValueError("mixed_objective needs at least one (weight, objective) pair.")

    def objective(outcomes: Outcomes, batch: TeacherBatch) -> Array:
        total = terms[0][0] * terms[0][1](outcomes, batch)
        for weight, term in terms[1:]:
            total = total + weight * term(outcomes, batch)
        return total

    return objective


def refusal_ids(model: LanguageModel, refusal: str) -> np.ndarray:
    """Returns the refusal as tokens with the end of sequence behind them, `[R]` int32."""
    return np.array([*model.tokenizer.encode(refusal), model.tokenizer.end_id], np.int32)


def forward_outcomes(
    decoder: Decoder, params: Params, adapter: Adapter | None, head: Array, batch: TeacherBatch, refusal: Array
) -> tuple[Array, Array]:
    """Runs the model over both outcomes of each row.

    Args:
      decoder: the module.
      params: its frozen parameters.
      adapter: the trained one, or None for the base model.
      head: `[Th]` int32, the head of the chat template.
      batch: B rows.
      refusal: `[R]` int32; may be empty.

    Returns:
      Final hidden states that predict the answer, `[B, Ty, D]`, and the refusal, `[B, R, D]`.
    """
    rows, num_prompt = batch.prompt.shape
    num_response, num_refusal = batch.response.shape[1], refusal.shape[0]
    shared: KeyValues = encode_shared(decoder, params, adapter, head)
    tokens = jnp.concatenate(
        [batch.prompt, batch.response, jnp.broadcast_to(refusal[None], (rows, num_refusal))], axis=1
    )
    where = jnp.concatenate(
        [batch.prompt_where, batch.response_where, jnp.ones((rows, num_refusal), bool)], axis=1
    )
    # Segment 0 is the prompt; an outcome sees the prompt and itself.
    segment = np.repeat([0, 1, 2], [num_prompt, num_response, num_refusal])
    visible = (segment[:, None] == segment[None, :]) | (segment[None, :] == 0)
    mask = causal_mask(where) & visible[None]
    start = jnp.sum(batch.prompt_where, axis=1, dtype=jnp.int32)[:, None] + shared.keys.shape[3]
    positions = jnp.concatenate(
        [
            jnp.broadcast_to(shared.keys.shape[3] + jnp.arange(num_prompt, dtype=jnp.int32)[None], (rows, num_prompt)),
            start + jnp.arange(num_response, dtype=jnp.int32)[None],
            start + jnp.arange(num_refusal, dtype=jnp.int32)[None],
        ],
        axis=1,
    )
    output: DecoderOutput = decoder.apply(  # type: ignore[assignment]
        {"params": params}, tokens, where=where, positions=positions, mask=mask, past=(shared,)
    )
    # The state that predicts an outcome's first token is the prompt's last one.
    last = jnp.sum(batch.prompt_where, axis=1, dtype=jnp.int32) - 1
    first = jnp.take_along_axis(output.hidden, last[:, None, None], axis=1)
    middle = num_prompt + num_response
    response = jnp.concatenate([first, output.hidden[:, num_prompt : middle - 1]], axis=1)
    refusal_hidden = jnp.concatenate([first, output.hidden[:, middle : middle + num_refusal - 1]], axis=1)
    return response, refusal_hidden[:, :num_refusal]


def student_outcomes(
    decoder: Decoder, params: Params, adapter: Adapter | None, head: Array, batch: TeacherBatch, refusal: Array
) -> Outcomes:
    """Computes the student's and the teacher's logits on both outcomes; arguments as in `forward_outcomes`."""
    response, refused = forward_outcomes(decoder, params, adapter, head, batch, refusal)
    num_response = response.shape[1]
    # The two outcomes share their first position: one product with the output head for all that differ.
    hidden = jnp.concatenate([response, refused[:, 1:]], axis=1)
    logits: Array = decoder.apply({"params": params}, hidden, method=Decoder.logits)  # type: ignore[assignment]
    teacher: Array = decoder.apply(  # type: ignore[assignment]
        {"params": params}, batch.teacher_hidden, method=Decoder.logits
    )
    return Outcomes(
        response_logits=logits[:, :num_response],
        refusal_logits=jnp.concatenate([logits[:, :1], logits[:, num_response:]], axis=1),
        teacher_logits=jax.lax.stop_gradient(teacher),
        refusal_tokens=refusal,
    )


def token_teacher(
    model: LanguageModel, batch: TeacherBatch, *, refusal: str
) -> tuple[Array, Array]:
    """The gated teacher at token level: next-token distributions under teacher forcing (equation 2).

    At the first position the two outcomes are mixed, a p(. | x) + (1 - a) [first token of y_r]; behind it the prefix
    tells them apart: on y the teacher is the base model, on y_r the rest of the refusal.

    Args:
      model: the base model.
      batch: B rows; their hidden states are computed here, those in the batch are not used.
      refusal: y_r.

    Returns:
      Probabilities along y `[B, Ty, V]` and along y_r `[B, R, V]`, float32.
    """
    head = jnp.array(model.tokenizer.chat_parts.head, jnp.int32)
    tokens = jnp.array(refusal_ids(model, refusal))
    hidden, _ = forward_outcomes(model.decoder, model.params, None, head, batch, tokens)
    logits: Array = model.decoder.apply({"params": model.params}, hidden, method=Decoder.logits)  # type: ignore[assignment]
    probs = jax.nn.softmax(logits, axis=-1)
    certain = jax.nn.one_hot(tokens, probs.shape[-1], dtype=jnp.float32)
    a = batch.safe_prob[:, None].astype(jnp.float32)
    first = a * probs[:, 0] + (1 - a) * certain[:1]
    along_refusal = jnp.broadcast_to(certain[None], (probs.shape[0], *certain.shape))
    return probs.at[:, 0].set(first), along_refusal.at[:, 0].set(first)


LossFn: TypeAlias = Callable[[Params, Adapter, TeacherBatch], tuple[Array, dict[str, Array]]]


def make_loss(
    decoder: Decoder, *, head: Sequence[int], refusal: np.ndarray, objective: Objective
) -> LossFn:
    """Makes the distillation loss of an adapter.

    Args:
      decoder: the module of the frozen model.
      head: tokens of the chat template before the user's text.
      refusal: `[R]` int32 tokens of the refusal, see `refusal_ids`.
      objective: what is minimised, per row.

    Returns:
      `loss(params, adapter, batch) -> (scalar, metrics)`, the mean over the rows that exist. The metrics are the mean
      log-probability per token that the student gives to safe answers and to the refusals of unsafe ones.
    """
    head_tokens, refusal_tokens = np.array(head, np.int32), np.array(refusal, np.int32)

    def loss(params: Params, adapter: Adapter, batch: TeacherBatch) -> tuple[Array, dict[str, Array]]:
        outcomes = student_outcomes(
            decoder, params, adapter, jnp.array(head_tokens), batch, jnp.array(refusal_tokens)
        )
        exists = jnp.any(batch.response_where, axis=1)
        value = losses.masked_mean(objective(outcomes, batch), where=exists)
        answer = losses.sequence_log_prob(
            logits=outcomes.response_logits, tokens=batch.response, where=batch.response_where, normalization="mean"
        )
        tokens = jnp.broadcast_to(outcomes.refusal_tokens[None], outcomes.refusal_logits.shape[:2])
        refused = losses.sequence_log_prob(logits=outcomes.refusal_logits, tokens=tokens, normalization="mean")
        safe = batch.safe_prob > 0.5
        metrics = {
            "answer_log_prob": losses.masked_mean(answer, where=exists & safe),
            "refusal_log_prob": losses.masked_mean(refused, where=exists & ~safe),
        }
        return value, jax.lax.stop_gradient(metrics)

    return loss


@dataclasses.dataclass(frozen=True)
class TeacherData:
    """The gated teacher of all training prompts, on the host, ready to be cut into batches.

    Rows are grouped by the bucket of their prompt's length; a batch takes rows of one bucket only.

    Attributes:
      prompt: N token rows (user's text and template's tail).
      response: N token rows (answer, with the end of sequence where the answer ended).
      safe_prob: `[N]` float32.
      teacher_hidden: `[N, Ty, D]` float32, or `[N, 0, D]`.
      max_tokens: Ty.
    """

    prompt: list[list[int]]
    response: list[list[int]]
    safe_prob: np.ndarray
    teacher_hidden: np.ndarray
    max_tokens: int

    def __len__(self) -> int:
        return len(self.prompt)

    def batch(self, rows: Sequence[int] | np.ndarray, *, pad_id: int) -> TeacherBatch:
        """Pads the given rows; an index of -1 makes a row of padding."""
        chosen = [int(i) for i in rows]
        longest = max((len(self.prompt[i]) for i in chosen if i >= 0), default=1)
        prompt, prompt_where = pad_tokens(
            [self.prompt[i] if i >= 0 else [pad_id] for i in chosen],
            pad_id=pad_id,
            length=bucket_length(longest, BUCKETS),
        )
        response, response_where = pad_tokens(
            [self.response[i] if i >= 0 else [] for i in chosen], pad_id=pad_id, length=self.max_tokens
        )
        return TeacherBatch(
            prompt=prompt,
            prompt_where=prompt_where,
            response=response,
            response_where=response_where,
            safe_prob=np.where(np.array(chosen) >= 0, self.safe_prob[chosen], 1.0).astype(np.float32),
            teacher_hidden=self.teacher_hidden[chosen],
        )  # type: ignore[arg-type]


@functools.partial(jax.jit, static_argnames=("decoder",))
def _base_hidden(decoder: Decoder, params: Params, head: Array, batch: TeacherBatch) -> Array:
    hidden, _ = forward_outcomes(decoder, params, None, head, batch, jnp.zeros((0,), jnp.int32))
    return hidden


def make_teacher_data(
    model: LanguageModel,
    teacher: SequenceTeacher,
    *,
    max_tokens: int,
    with_hidden: bool,
    batch_size: int = 32,
    on_batch: Callable[[int, int], None] | None = None,
) -> TeacherData:
    """Encodes the gated teacher, with the base model's hidden states where they are wanted.

    Args:
      model: the base model.
      teacher: prompts, answers and weights.
      max_tokens: Ty; longer answers are cut.
      with_hidden: whether to cache the hidden states that token-level objectives need (`N * Ty * D` float32):
        those kept while the answers were sampled, or else computed here.
      batch_size: rows that run at once.
      on_batch: called with (rows done, rows in total).

    Returns:
      The encoded teacher.

    Raises:
      edgesafe_jax.models.generation.ContextError: a prompt with its answer does not fit into the context.
    """
    prompts = encode_prompts(model, teacher.prompts, max_tokens=max_tokens)
    eos = model.tokenizer.end_id
    responses = [
        [*tokens, *([eos] if ended else [])][:max_tokens]
        for tokens, ended in zip(teacher.responses.tokens, teacher.responses.finished, strict=True)
    ]
    data = TeacherData(
        prompt=prompts,
        response=responses,
        safe_prob=np.asarray(teacher.safe_prob, np.float32),
        teacher_hidden=np.zeros((len(prompts), 0, model.config.embed_dim), np.float32),
        max_tokens=max_tokens,
    )
    if not with_hidden:
        return data
    kept = teacher.responses.hidden
    if kept is not None and kept.shape[1] >= max_tokens:
        return dataclasses.replace(data, teacher_hidden=np.ascontiguousarray(kept[:, :max_tokens]))
    hidden = np.zeros((len(prompts), max_tokens, model.config.embed_dim), np.float32)
    head = jnp.array(model.tokenizer.chat_parts.head, jnp.int32)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = data.batch([*chosen, *([-1] * (batch_size - len(chosen)))], pad_id=model.tokenizer.pad_id)
        states = np.asarray(_base_hidden(model.decoder, model.params, head, batch), np.float32)
        hidden[chosen] = states[: len(chosen)]
        if on_batch is not None:
            on_batch(min(start + batch_size, len(order)), len(order))
    return dataclasses.replace(data, teacher_hidden=hidden)


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
      shares: share of the batch by group name; rounded to whole rows, largest remainder first.

    Returns:
      `order(step)`, B row numbers.

    Raises:
      ValueError: an empty group, other names in the shares, or shares that are not positive or too small for a row.
    """
    if set(groups) != set(shares) or not groups:
        raise ValueError(f"groups {sorted(groups)} and shares {sorted(shares)} must have the same names.")
    for name in groups:
        if not len(groups[name]):
            raise ValueError(f"Group {name!r} has no rows: expected at least one prompt of each kind.")
        if not shares[name] > 0:
            raise ValueError(f"Share of {name!r} is {shares[name]}: expected more than 0.")
    names = sorted(groups)
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
        chosen.sort(key=lambda row: len(data.prompt[row]))
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
