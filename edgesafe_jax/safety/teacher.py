"""The teacher of a distillation: prompts are answered, judged, encoded and kept.

A row of a batch is a prompt with one outcome behind it: the base model's answer y with weight a, or the refusal y_r
with weight 1 - a. A prompt of which the guard is sure is one row, one of which it is not is two; no forward pass is
spent on an outcome of negligible weight. What every row begins with (the adapter's virtual positions, the head of the
chat template) is computed once per step at batch size one. The teacher's distributions come from its cached hidden
states: student and teacher share the frozen output head, so a state of D numbers stands for V logits exactly.

Alfarra et al., arXiv 2606.09388, algorithm 1.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from edgesafe_jax import losses
from edgesafe_jax.errors import ConfigError, check_counts, check_texts
from edgesafe_jax.guards.verdicts import checked
from edgesafe_jax.models.chats import Chat, check_chats, flat_text
from edgesafe_jax.models.decoder import Decoder, DecoderOutput, KeyValues, behind
from edgesafe_jax.models.finite import check_finite
from edgesafe_jax.models.generation import Generation, bucket_length, encode_rows, encode_shared, pad_tokens
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.placements import answer_ids, insert_virtual
from edgesafe_jax.models.scoring import first_token_margins
from edgesafe_jax.reporting.progress import ProgressBar
from edgesafe_jax.safety.system import SafeSystem, SequenceTeacher, check_refusal
from edgesafe_jax.training import is_whole, write_checked
from edgesafe_jax.typing import Adapter, Array, Params, ProgressFn

_log = logging.getLogger(__name__)

BUCKETS = (32, 48, 64, 96, 192, 384, 768, 1536, 3072, 6144, 8192)
"""Lengths, in positions, to which the rows of a training batch are padded: few, for each is compiled."""


@flax.struct.dataclass
class TeacherBatch:
    """Rows of the gated teacher, padded: each a prompt and one outcome.

    Attributes:
      tokens: `[B, T]` int32: the user's text, the template's tail and the outcome but for its last token.
      where: `[B, T]` bool, which of them exist.
      start: `[B]` int32, the position that predicts the outcome's first token.
      turn: `[B]` int32, the last position before the answer; before `start` where the answer has begun otherwise.
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
    turn: Array | np.ndarray
    outcome: Array | np.ndarray
    outcome_where: Array | np.ndarray
    is_refusal: Array | np.ndarray
    weight: Array | np.ndarray
    refusal_prob: Array | np.ndarray
    refusal_token: Array | np.ndarray
    teacher_hidden: Array | np.ndarray

    def certainty(self) -> tuple[Array, Array]:
        """The part of the gated teacher that is certain (equation 2, under teacher forcing).

        At the first position the outcomes are mixed, a p(. | x) + (1 - a) [first token of y_r]; behind it the prefix
        tells them apart: on y the teacher is the base model, on y_r the rest of the refusal.

        Returns:
          The part of its probability that the teacher puts on one token, `[B, O]`, and that token, `[B, O]`.
        """
        later = np.arange(self.outcome.shape[1])[None] > 0
        refusal_prob, is_refusal = jnp.asarray(self.refusal_prob), jnp.asarray(self.is_refusal)
        tokens = jnp.where(later, self.outcome, jnp.asarray(self.refusal_token)[:, None])
        return jnp.where(later, is_refusal[:, None].astype(jnp.float32), refusal_prob[:, None]), tokens


def refusal_ids(model: LanguageModel, refusal: str) -> np.ndarray:
    """Returns the refusal as tokens with the end of sequence behind them, `[R]` int32."""
    return np.array([*model.tokenizer.encode_answers([refusal])[0], model.tokenizer.end_id], np.int32)


def outcome_hidden(
    decoder: Decoder, params: Params, adapter: Adapter | None, head: Array, batch: TeacherBatch
) -> Array:
    """Runs the model along the outcome of each row.

    Args:
      decoder: the module.
      params: its frozen parameters.
      adapter: the trained one, or None for the base model.
      head: `[Th]` int32, what all chats begin with, see `placements.head_of`.
      batch: B rows.

    Returns:
      The final hidden states that predict the outcome's tokens, `[B, O, D]`.
    """
    shared: KeyValues = encode_shared(decoder, params, adapter, head)
    tokens, where = jnp.asarray(batch.tokens), jnp.asarray(batch.where)
    start, inserted = jnp.asarray(batch.start), len(answer_ids(adapter))
    if inserted:
        tokens, where = insert_virtual(tokens, where, jnp.asarray(batch.turn), inserted)
        start = start + inserted
    output: DecoderOutput = decoder.apply(  # type: ignore[assignment]
        {"params": params}, tokens, where=where, past=(shared,), **behind(adapter)
    )
    offsets = np.arange(batch.outcome.shape[1], dtype=np.int32)
    columns = jnp.minimum(start[:, None] + offsets[None], tokens.shape[1] - 1)
    return jnp.take_along_axis(output.hidden, columns[:, :, None], axis=1)


def token_teacher(model: LanguageModel, batch: TeacherBatch) -> Array:
    """The gated teacher at token level: next-token distributions along each row's outcome.

    Args:
      model: the base model.
      batch: B rows; their hidden states are computed here, those in the batch are not used.

    Returns:
      Probabilities `[B, O, V]`, float32.
    """
    head = jnp.array(model.tokenizer.chat_parts.head, jnp.int32)
    hidden = outcome_hidden(model.decoder, model.params, None, head, batch)
    certain, tokens = batch.certainty()
    logits = project(model.decoder, model.params, hidden)
    return jnp.exp(losses.gated_teacher(teacher_logits=logits, certain_prob=certain, certain_tokens=tokens))


def project(decoder: Decoder, params: Params, hidden: Array) -> Array:
    """Logits `[..., V]` of hidden states `[..., D]`, by the model's output head."""
    return decoder.apply({"params": params}, hidden, method=Decoder.logits)  # type: ignore[return-value]


def refusal_margins(
    model: LanguageModel,
    adapter: Adapter | None,
    prompts: Sequence[str | Chat],
    refusal: str,
    *,
    batch_size: int = 32,
) -> np.ndarray:
    """Margins of the refusal's first token at the start of an answer, in nats.

    Above 0 a greedy answer begins like the refusal. One forward pass per prompt instead of a generation.

    Args:
      model: the frozen language model.
      adapter: the student's, or None.
      prompts: N user texts or chats.
      refusal: the refusal.
      batch_size: rows that run at once.

    Returns:
      `[N]`, the log-probability of that token less that of the likeliest other one.
    """
    check_refusal(refusal)
    first = int(refusal_ids(model, refusal)[0])
    return first_token_margins(model, prompts, first, adapter=adapter, batch_size=batch_size)


@dataclasses.dataclass(frozen=True)
class TeacherData:
    """The gated teacher of all training prompts, on the host, ready to be cut into batches.

    Attributes:
      head: what all chats begin with, in tokens.
      prompts: S token rows (what follows of the user's text or chat, and the template's tail), one per prompt.
      sample: `[N]`, which prompt each row belongs to.
      outcomes: N token rows (answer or refusal, with the end of sequence where it ended).
      is_refusal: `[N]` bool.
      weight: `[N]` float32, the system's probability of the outcome.
      answers: S token rows, the base model's answer to each prompt, whatever its weight.
      refusal: y_r with its end-of-sequence token.
      refusal_prob: `[S]` float32, 1 - a.
      teacher_hidden: `[S, O, D]` float32, or `[S, 0, D]`.
      max_tokens: O, the longest outcome, in tokens.
    """

    head: list[int]
    prompts: list[list[int]]
    sample: np.ndarray
    outcomes: list[list[int]]
    is_refusal: np.ndarray
    weight: np.ndarray
    answers: list[list[int]]
    refusal: list[int]
    refusal_prob: np.ndarray
    teacher_hidden: np.ndarray
    max_tokens: int

    def __len__(self) -> int:
        return len(self.outcomes)

    @property
    def lengths(self) -> np.ndarray:
        """Positions of each row, `[N]`."""
        rows = zip(self.sample, self.outcomes, strict=True)
        return np.array([len(self.prompts[sample]) + len(outcome) - 1 for sample, outcome in rows], int)

    def batch(
        self,
        rows: Sequence[int] | np.ndarray,
        *,
        pad_id: int,
        prefixes: Sequence[Sequence[int]] | None = None,
        said: np.ndarray | None = None,
    ) -> TeacherBatch:
        """Pads rows.

        Args:
          rows: B numbers of rows; -1 makes a row of padding.
          pad_id: id of the padding.
          prefixes: for each row the tokens with which the answer has begun before the outcome, or none. Behind a prefix
            the system is certain to refuse.
          said: `[B]`, of how many tokens of its own outcome each row is the continuation, fewer than it has; 0 where
            there is a prefix. Behind these the system is certain to go on.

        Returns:
          The rows.
        """
        chosen = [int(i) for i in rows]
        exists = np.array([i >= 0 for i in chosen])
        begun = [[] for _ in chosen] if prefixes is None else [list(prefix) for prefix in prefixes]
        said = np.zeros(len(chosen), int) if said is None else said
        prefixed = np.array([bool(b) for b in begun], bool)
        begun = [b or self.outcomes[i][:num] for i, b, num in zip(chosen, begun, said, strict=True)]
        prompts = [
            [*self.prompts[self.sample[i]], *b] if i >= 0 else [pad_id] for i, b in zip(chosen, begun, strict=True)
        ]
        outcomes = [self.outcomes[i][num:] if i >= 0 else [] for i, num in zip(chosen, said, strict=True)]
        lines = [[*prompt, *outcome[:-1]] for prompt, outcome in zip(prompts, outcomes, strict=True)]
        tokens, where = pad_tokens(lines, pad_id=pad_id, length=bucket_length(max(map(len, lines)), BUCKETS))
        outcome, outcome_where = pad_tokens(outcomes, pad_id=pad_id, length=self.max_tokens)
        sample = self.sample[chosen]
        hidden = self.teacher_hidden[sample]
        for row in np.flatnonzero(said):
            hidden[row] = np.roll(hidden[row], -said[row], axis=0)  # of the positions behind the outcome none is read
        return TeacherBatch(
            tokens=tokens,
            where=where,
            start=np.array([len(prompt) - 1 for prompt in prompts], np.int32),
            turn=np.array(
                [len(prompt) - len(prefix) - 1 for prompt, prefix in zip(prompts, begun, strict=True)], np.int32
            ),
            outcome=outcome,
            outcome_where=outcome_where,
            is_refusal=self.is_refusal[chosen] & exists,
            weight=np.where(exists, self.weight[chosen], 1.0).astype(np.float32),
            refusal_prob=np.select([~exists | (said > 0), prefixed], [0.0, 1.0], self.refusal_prob[sample]).astype(
                np.float32
            ),
            refusal_token=np.full(len(chosen), self.refusal[0], np.int32),
            teacher_hidden=hidden,
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
    on_batch: ProgressFn | None = None,
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
      ConfigError: `min_weight` is not in [0, 0.5).
      edgesafe_jax.models.generation.ContextError: a prompt with its answer does not fit into the context.
    """
    check_counts(max_tokens=max_tokens, batch_size=batch_size)
    if not 0 <= min_weight < 0.5:
        raise ConfigError(f"min_weight={min_weight}: expected in [0, 0.5), so that each prompt keeps an outcome.")
    refusal = refusal_ids(model, teacher.refusal).tolist()
    longest = max(max_tokens, len(refusal))
    shared, prompts = encode_rows(model, teacher.prompts, max_tokens=longest)
    # An answer keeps the end that the model gave it.
    ends = teacher.responses.ends or [model.tokenizer.end_id if done else None for done in teacher.responses.finished]
    answers = [
        [*tokens, *([] if end is None else [end])][:max_tokens]
        for tokens, end in zip(teacher.responses.tokens, ends, strict=True)
    ]
    safe = np.asarray(teacher.safe_prob, np.float32)
    answered, refused = (np.flatnonzero((weight > 0) & (weight >= min_weight)) for weight in (safe, 1 - safe))
    data = TeacherData(
        head=shared,
        prompts=prompts,
        sample=np.concatenate([answered, refused]),
        outcomes=[*(answers[i] for i in answered), *(refusal for _ in refused)],
        is_refusal=np.repeat([False, True], [len(answered), len(refused)]),
        weight=np.concatenate([safe[answered], 1 - safe[refused]]),
        answers=answers,
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
        check_finite(hidden, "The kept hidden states of answer")
        return dataclasses.replace(data, teacher_hidden=hidden)
    plain = dataclasses.replace(
        data, sample=np.arange(len(prompts)), outcomes=answers, is_refusal=np.zeros(len(prompts), bool), weight=safe
    )
    head = jnp.array(shared, jnp.int32)
    order = sorted(range(len(plain)), key=plain.lengths.tolist().__getitem__)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = plain.batch([*chosen, *([-1] * (batch_size - len(chosen)))], pad_id=model.tokenizer.pad_id)
        states = np.asarray(_base_hidden(model.decoder, model.params, head, batch), np.float32)
        hidden[chosen] = states[: len(chosen)]
        if on_batch is not None:
            on_batch(min(start + batch_size, len(order)), len(order))
    check_finite(hidden, "The hidden states of answer", sources=(("parameter", model.params),))
    return dataclasses.replace(data, teacher_hidden=hidden)


REFUSE = "refuse"
"""The group of the rows that are refusals; answers are grouped by the label of their prompt."""

RECORD = "teacher.json"
HIDDEN = "teacher_hidden.safetensors"
"""Files of the answers, verdicts and hidden states in a work directory."""


@dataclasses.dataclass(frozen=True)
class TeacherOptions:
    """Settings of the teacher's sampling.

    Attributes:
      max_tokens: longest answer.
      num_positions: positions of each answer that are kept, from its start.
      temperature: of the sampling; 0 for greedy answers.
      with_hidden: whether the base model's hidden states are kept.
      num_held_out: prompts of each group that get no row.
      seed: of the sampling and of the choice of held-out prompts.
      guard_id: what identifies the guard; kept answers that another one judged are judged again. None for a guard that
        has no name: kept answers are always judged again.
    """

    max_tokens: int
    num_positions: int
    temperature: float = 0.0
    with_hidden: bool = True
    num_held_out: int = 0
    seed: int = 0
    guard_id: str | None = None


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The gated teacher of a run.

    Attributes:
      data: encoded rows.
      groups: row numbers by group: refusals, and answers by the label of their prompt.
      held_out: the prompts that are kept out of `groups`, by group.
      texts: S prompts.
    """

    data: TeacherData
    groups: dict[str, list[int]]
    held_out: dict[str, list[str | Chat]]
    texts: list[str | Chat]


def make_teacher(
    system: SafeSystem, prompts: Sequence[str | Chat], labels: Sequence[str], workdir: Path, options: TeacherOptions
) -> Teacher:
    """Samples, gates and encodes the teacher, or reads back what the work directory keeps of it.

    Args:
      system: base model, guard and refusal.
      prompts: S user texts or chats.
      labels: S names; answered prompts of one label are one group.
      workdir: where answers, verdicts and hidden states are kept.
      options: how it is sampled.

    Returns:
      The teacher.

    Raises:
      ConfigError: one string where several are expected, a label that is called like the group of refusals, or a group
        without a row.
    """
    texts, labels = check_chats("prompts", prompts), check_texts("labels", labels)
    if len(labels) != len(texts):
        raise ConfigError(f"{len(labels)} labels for {len(texts)} prompts: expected as many.")
    if REFUSE in labels:
        raise ConfigError(f"A prompt has the label {REFUSE!r}, which names the refusals: give it another label.")
    sequence, data = _kept_or_sampled(system, texts, workdir, options)
    verdicts = [REFUSE if safe < 0.5 else label for safe, label in zip(sequence.safe_prob, labels, strict=True)]
    names = [REFUSE, *dict.fromkeys(labels)]
    held_out = _held_out(verdicts, names, options.num_held_out, options.seed)
    groups: dict[str, list[int]] = {name: [] for name in names}
    for row, (sample, refused) in enumerate(zip(data.sample, data.is_refusal, strict=True)):
        if sample not in held_out:
            groups[REFUSE if refused else labels[int(sample)]].append(row)
    counts = ", ".join(f"{len(groups[name])} {name}" for name in names)
    _log.info(f"{len(texts)} prompts, {len(held_out)} of them held out; rows: {counts}.")
    if empty := [name for name in names if not groups[name]]:
        raise ConfigError(
            f"No row to train on of the kind {', '.join(empty)} ({counts}): the guard refuses all or none of them. "
            "Move gate_threshold, give more prompts, or look at the guard."
        )
    kept_out = {name: [texts[i] for i in sorted(held_out) if verdicts[i] == name] for name in names}
    return Teacher(data, groups, kept_out, texts)


def _kept_or_sampled(
    system: SafeSystem, texts: list[str | Chat], workdir: Path, options: TeacherOptions
) -> tuple[SequenceTeacher, TeacherData]:
    """Answers and verdicts on them, those of the work directory where it keeps any of these prompts."""
    file = workdir / RECORD
    hidden = workdir / HIDDEN
    # Hidden states that are computed apart from the sampling differ in the last bits: both are made again.
    usable = is_whole(file) and (not options.with_hidden or not hidden.exists() or is_whole(hidden))
    kept = json.loads(file.read_text(encoding="utf-8")) if usable else None
    if kept is not None and kept["prompts"] != texts:
        kept = None
    judged = kept is not None and options.guard_id is not None and kept.get("guard") == options.guard_id
    if kept is None:
        with ProgressBar(f"sampling {len(texts)} answers of the base model") as progress:
            sequence = system.sequence_teacher(
                texts,
                key=jax.random.fold_in(jax.random.key(options.seed), 1),
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                keep_hidden=options.with_hidden,
                on_batch=progress,
            )
    else:
        answers = Generation(kept["tokens"], kept["texts"], kept["finished"], ends=kept.get("ends"))
        if judged:
            safe_prob = np.array(kept["safe_prob"])
        else:
            if options.guard_id is not None:
                _log.info("another guard than the one that weighed the kept answers: weighing them again")
            safe_prob = 1.0 - checked(system.guard)([flat_text(text) for text in texts], answers.texts)
        sequence = SequenceTeacher(texts, answers, safe_prob, system.refusal)
    data = _encoded(system.model, sequence, workdir, options, fresh=kept is None)
    if not judged:
        record = {
            "prompts": texts,
            "texts": sequence.responses.texts,
            "tokens": sequence.responses.tokens,
            "finished": sequence.responses.finished,
            "ends": sequence.responses.ends,
            "guard": options.guard_id,
            "safe_prob": sequence.safe_prob.tolist(),
        }
        # The last file of the teacher: where it is, the hidden states that belong to it are too.
        write_checked(file, lambda part: part.write_text(json.dumps(record), encoding="utf-8"))
    return sequence, data


def _held_out(verdicts: Sequence[str], names: Sequence[str], num: int, seed: int) -> set[int]:
    """Chooses `num` prompts of each verdict, or a fifth of them where there are fewer than five times as many."""
    rng = np.random.default_rng([seed, 11])
    chosen: set[int] = set()
    for name in names:
        members = np.flatnonzero(np.array(verdicts) == name)
        chosen.update(rng.permutation(members)[: min(num, len(members) // 5)].tolist())
    return chosen


def _encoded(
    model: LanguageModel, sequence: SequenceTeacher, workdir: Path, options: TeacherOptions, *, fresh: bool
) -> TeacherData:
    """Encodes the teacher; its hidden states are kept in the work directory: a resumed run has the same bits."""
    file = workdir / HIDDEN
    encode = functools.partial(make_teacher_data, model, sequence, max_tokens=options.num_positions)
    if options.with_hidden and not fresh and file.exists():
        data = encode(with_hidden=False)
        hidden = safetensors.numpy.load_file(file)["hidden"]
        if hidden.shape[:2] == (len(data.prompts), data.max_tokens):
            check_finite(hidden, f"{file}: the hidden states of answer")
            return dataclasses.replace(data, teacher_hidden=hidden)
    with ProgressBar("reading the teacher's hidden states") as progress:
        data = encode(with_hidden=options.with_hidden, on_batch=progress)
    if options.with_hidden:
        # Safetensors writes the buffer of an array as it lies: it must be contiguous.
        hidden = np.ascontiguousarray(data.teacher_hidden)
        write_checked(file, lambda part: safetensors.numpy.save_file({"hidden": hidden}, part))
    return data
