"""Distils a safe system into an adapter on its own frozen language model: step, mining, averaging and the loop.

Alfarra et al., arXiv 2606.09388, algorithm 1.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from edgesafe_jax import losses, parallel
from edgesafe_jax.adapters import Examples, fit_adapter, make_adapter
from edgesafe_jax.errors import ConfigError, check_texts
from edgesafe_jax.guards.verdicts import Guard
from edgesafe_jax.models.chats import Chat, check_chats
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.placements import head_of
from edgesafe_jax.safety.batches import BatchOrder, make_batch_order
from edgesafe_jax.safety.objectives import BatchSource, Objective, Outcomes
from edgesafe_jax.safety.settings import HARD, AlignSettings, check_mixture
from edgesafe_jax.safety.shared import shared_teacher
from edgesafe_jax.safety.system import REFUSAL, SafeSystem, sharpened
from edgesafe_jax.safety.teacher import (
    REFUSE,
    Teacher,
    TeacherBatch,
    TeacherOptions,
    make_teacher,
    outcome_hidden,
    refusal_margins,
)
from edgesafe_jax.training import (
    Checkpoints,
    EvalSchedule,
    MetricWriter,
    Trained,
    TrainState,
    WorkdirError,
    apply_gradients,
    check_whole,
    close_workdir,
    init_state,
    open_workdir,
    read_metrics,
    write_checked,
)
from edgesafe_jax.training import train as run_training
from edgesafe_jax.typing import Adapter, Array, Params, PyTree

_log = logging.getLogger(__name__)

MARGINS = "margins.json"
"""File, in a work directory, of the margins by which a student decided its training prompts."""

INSTRUCTION = f"Answer helpfully. If the request would harm people, say: {REFUSAL}"
"""Initial text of the soft prompt of `align`."""

UNBOUND = ("log_every", "save_every", "parallel", "wandb")
"""Settings that a run may be continued with other values of."""

BEHAVIOUR = {"behaviour": "adapter", "behaviour_own": "own"}
"""Parameters of a state that sampled the present batch, where one serves several steps, and what they are copies of."""

LossFn: TypeAlias = Callable[..., tuple[Array, dict[str, Array]]]
StepFn: TypeAlias = Callable[[TrainState, TeacherBatch], tuple[TrainState, dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class Aligned:
    """The result of a distillation.

    Attributes:
      adapter: the trained adapter.
      metrics: one mapping per step: `step`, `loss`, `answer_loss`, `refusal_loss`, `grad_norm`, those of the objective
        such as `reward`, and every `save_every` steps `eval/refused/GROUP`, the refusal rate on held-out prompts of
        each group, where there are any.
    """

    adapter: Adapter
    metrics: list[dict[str, Any]]


def align(
    model: LanguageModel,
    guard: Guard,
    prompts: Sequence[str | Chat],
    *,
    labels: Sequence[str] | None = None,
    adapter: Adapter | None = None,
    refusal: str = REFUSAL,
    settings: AlignSettings | None = None,
    workdir: str | Path | None = None,
) -> Aligned:
    """Distils a language model with a guard behind it into an adapter that needs no guard.

    Args:
      model: the frozen language model.
      guard: any callable from N prompts and N responses to P(unsafe) `[N]`.
      prompts: user texts to train on, harmful and harmless ones, or chats: lists of messages with role and content,
        the last one the user's.
      labels: one for each prompt, such as its topic: answered prompts of each label get their part of every batch,
        see `AlignSettings.mixture`. None puts all answered prompts in one group, "answer".
      adapter: what is trained; default a soft prompt of 23 vectors that starts from an instruction.
      refusal: what the system says instead of an unsafe answer.
      settings: how it is trained; default the quickstart's.
      workdir: where the teacher, checkpoints and metrics are kept: the same call continues an interrupted run. None
        keeps nothing.

    Returns:
      The adapter and the metrics of each step.

    Raises:
      ConfigError: one string where several are expected, or prompts that leave a group without a row.
      GuardError: the guard returned something other than probabilities.
      WorkdirError: the work directory holds a run with other settings or prompts.
      TrainingError: the loss is not finite.

    Example:
      >>> model = load_model("smollm2-135m-instruct")  # doctest: +SKIP
      >>> aligned = align(model, my_guard, my_prompts, workdir="runs/mine")  # doctest: +SKIP
      >>> generate(model, ["Hello"], max_tokens=40, adapter=aligned.adapter).texts  # doctest: +SKIP
    """
    settings, prompts = settings or AlignSettings(), check_chats("prompts", prompts)
    labels = ["answer"] * len(prompts) if labels is None else check_texts("labels", labels)
    _checked_objective(settings, labels)
    gate = sharpened(guard, sharpness=settings.gate_sharpness, threshold=settings.gate_threshold)
    if adapter is None:
        key = jax.random.fold_in(jax.random.key(settings.seed), 2)
        adapter = make_adapter(key, "soft_prompt", model, init="text", text=INSTRUCTION, num_virtual=23)
    with contextlib.ExitStack() as stack:
        if workdir is None:
            workdir = stack.enter_context(tempfile.TemporaryDirectory())
        data = json.dumps([list(prompts), list(labels)]).encode()
        about = {
            "task": "align",
            "model": model.hash,
            "refusal": refusal,
            "prompts": hashlib.sha256(data).hexdigest(),
            "adapter": str(jax.tree.structure(adapter)),
            "settings": dataclasses.asdict(settings),
        }
        with parallel.main_process_first("alignment/workdir"):
            open_workdir(workdir, about, ignore=[f"settings.{name}" for name in UNBOUND])
        stack.callback(close_workdir, workdir)
        return distil(
            SafeSystem(model, gate, refusal), prompts, labels, adapter=adapter, settings=settings, workdir=workdir
        )


def distil(
    system: SafeSystem,
    prompts: Sequence[str | Chat],
    labels: Sequence[str],
    *,
    adapter: Adapter,
    settings: AlignSettings,
    workdir: str | Path,
    guard_id: str | None = None,
    shared: Path | None = None,
    forms: Sequence[tuple[int, str]] = (),
) -> Aligned:
    """Distils a safe system into an adapter, in a work directory that is open.

    Args:
      system: base model, gate and refusal.
      prompts: user texts or chats.
      labels: one for each prompt.
      adapter: what is trained, as it starts.
      settings: how it is trained.
      workdir: where teacher, checkpoints and metrics lie.
      guard_id: what identifies the guard, see `TeacherOptions`.
      shared: the folder in which several runs share teachers, see `shared.shared_teacher`; None keeps the teacher in
        the work directory.
      forms: (number of a prompt, the same in other words): parts of the adapter that are fitted before the training see
        these too, with what the teacher does on the prompt itself.

    Returns:
      The adapter and the metrics of each step.

    Raises:
      ConfigError, GuardError, WorkdirError, TrainingError: see `align`.
    """
    started, workdir = time.monotonic(), Path(workdir)
    objective = _checked_objective(settings, labels)
    options = TeacherOptions(
        max_tokens=settings.max_tokens,
        num_positions=settings.num_positions,
        temperature=settings.sampling_temperature,
        with_hidden=objective.needs.teacher_hidden,
        num_held_out=settings.num_held_out,
        seed=settings.seed,
        guard_id=guard_id,
    )
    with parallel.main_process_first("alignment/teacher"):
        make = make_teacher if shared is None else shared_teacher
        teacher = make(system, prompts, labels, shared or workdir, options)
        adapter = fit_adapter(adapter, system.model, _examples(teacher, forms))
        teacher = _behind_gate(teacher, adapter, system.model)
    seconds = time.monotonic() - started
    _log.info(f"teacher ready after {seconds:.0f} s; training {settings.num_steps} steps")
    trained = _train(system, teacher, objective, adapter, settings, workdir)
    _log.info(f"trained after {time.monotonic() - started:.0f} s")
    return Aligned(parallel.to_local(trained.params["mean"]), read_metrics(workdir))


def _examples(teacher: Teacher, forms: Sequence[tuple[int, str]]) -> Examples:
    """The prompts that are trained on, and their other forms, with the teacher's P(refuse) of the prompt itself."""
    kept_out = [text for texts in teacher.held_out.values() for text in texts]
    chosen = [(i, text) for i, text in enumerate(teacher.texts) if text not in kept_out]
    numbers = {i for i, _ in chosen}
    chosen += [(i, text) for i, text in forms if i in numbers]
    request = np.array([i for i, _ in chosen], int)
    return Examples([text for _, text in chosen], teacher.data.refusal_prob[request], request)


def _behind_gate(teacher: Teacher, adapter: Adapter, model: LanguageModel) -> Teacher:
    """The teacher without the rows of prompts that a gate leaves to the bare model, and groups that have no other."""
    routes = adapter.routes(model, teacher.texts)
    if routes is None:
        return teacher
    opened = np.zeros(len(teacher.texts), bool)
    for numbers, routed in routes:
        opened[numbers] = routed is not None
    reached = {name: [row for row in rows if opened[teacher.data.sample[row]]] for name, rows in teacher.groups.items()}
    counts = ", ".join(f"{len(rows)} of {len(teacher.groups[name])} {name}" for name, rows in reached.items())
    _log.info(f"rows of prompts on which the gate opens: {counts}")
    return dataclasses.replace(teacher, groups={name: rows for name, rows in reached.items() if rows})


def _checked_objective(settings: AlignSettings, labels: Sequence[str]) -> Objective:
    """Makes the objective of settings that fit the labels and the processes, or raises ConfigError."""
    check_groups(settings, (REFUSE, *dict.fromkeys(labels)))
    objective = settings.make_objective()
    if objective.needs.samples and jax.process_count() > 1:
        raise ConfigError(f"objective={settings.objective!r} samples from the student: expected one process.")
    return objective


def check_groups(settings: AlignSettings, groups: Sequence[str]) -> None:
    """Checks the mixtures of a batch against the groups that there are, before any work.

    Args:
      settings: with the mixtures.
      groups: names of the groups, refusals among them.

    Raises:
      ConfigError: a mixture names other groups, or leaves one without a row.
    """
    mixture = settings.mixture or default_mixture(groups)
    check_mixture("mixture", mixture, groups, batch_size=settings.batch_size)
    if settings.mining_step < settings.num_steps:
        mined = settings.mining.mixture
        hard = [name for name in mined if name.startswith(HARD) and name.removeprefix(HARD) in groups]
        check_mixture("mining.mixture", mined, (*groups, *hard), batch_size=settings.batch_size)


def _train(
    system: SafeSystem,
    teacher: Teacher,
    objective: Objective,
    adapter: Adapter,
    settings: AlignSettings,
    workdir: Path,
) -> Trained:
    """Runs the loop, in two parts where hard prompts are mined between them."""
    model = system.model
    mesh = parallel.make_mesh(settings.parallel, batch_size=settings.batch_size)
    step, state = make_step(model, objective, adapter, settings, mesh, head=teacher.data.head)
    deal = functools.partial(make_batch_order, teacher.data.lengths, batch_size=settings.batch_size, seed=settings.seed)
    watched = {name: texts for name, texts in teacher.held_out.items() if texts}

    def refusal_rates(current: TrainState) -> dict[str, float]:
        """Refusal rates on the prompts that were held out, by what the system does with them."""
        adapter = parallel.to_local(current.params["mean"])
        return {
            f"refused/{name}": float(np.mean(refusal_margins(model, adapter, texts, system.refusal) > 0))
            for name, texts in watched.items()
        }

    with (
        MetricWriter(workdir, wandb=settings.wandb) as writer,
        Checkpoints(workdir / "checkpoints", save_interval=settings.save_every) as checkpoints,
    ):

        def advance(order: BatchOrder, num_steps: int) -> Trained:
            source = BatchSource(
                model,
                teacher.data,
                order,
                guard=system.guard if objective.needs.reward else None,
                texts=teacher.texts,
                max_tokens=settings.max_tokens,
                seed=settings.seed,
                needs=objective.needs,
                recovery=settings.recovery,
            )
            batches = objective.batches(source)

            def advanced(current: TrainState, number: int) -> tuple[TrainState, dict[str, Array]]:
                return step(current, parallel.shard_batch(batches(number, current), mesh))

            return run_training(
                advanced,
                state,
                lambda number: number,
                num_steps=num_steps,
                writer=writer,
                checkpoints=checkpoints,
                log_every=settings.log_every,
                evaluation=EvalSchedule(refusal_rates, settings.save_every) if watched else None,
            )

        mixture = settings.mixture or default_mixture(teacher.groups)
        order = deal(groups=teacher.groups, mixture={name: mixture[name] for name in teacher.groups})
        mined_from = settings.mining_step
        if mined_from < settings.num_steps:
            if not (workdir / MARGINS).exists():
                halfway = advance(order, mined_from)
                with parallel.main_process_first("alignment/mining"):
                    if parallel.is_main_process():
                        _log.info(f"the student decides {len(teacher.texts)} training prompts")
                        adapter = parallel.to_local(halfway.params["mean"])
                        margins = refusal_margins(model, adapter, teacher.texts, system.refusal)
                        write_margins(workdir, margins)
            margins = read_margins(workdir, len(teacher.texts))
            groups, mixture = mine(teacher, margins, settings.mining.mixture, margin=settings.mining.margin)
            # Both, for a checkpoint from before the mining may be the last good one.
            order = _switch(order, deal(groups=groups, mixture=mixture), mined_from)
        return advance(order, settings.num_steps)


def default_mixture(groups: Iterable[str]) -> dict[str, float]:
    """Three rows in eight are refusals; the other groups share the rest evenly."""
    others = [name for name in groups if name != REFUSE]
    return {REFUSE: 3.0, **{name: 5.0 / len(others) for name in others}}


def _switch(before: BatchOrder, after: BatchOrder, step: int) -> BatchOrder:
    """One order of the data up to a step, another from it on."""
    return lambda number: (before if number < step else after)(number)


def make_optimizer(settings: AlignSettings) -> optax.GradientTransformation:
    """Adam with warm-up and cosine decay, gradients clipped by their global norm."""
    steps = settings.num_steps
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=settings.learning_rate,
        warmup_steps=min(settings.warmup_steps, steps - 1),
        decay_steps=steps,
        end_value=settings.learning_rate * settings.final_learning_rate,
    )
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.adam(schedule, eps=1e-7))


def make_loss(decoder: Decoder, *, head: Sequence[int] | np.ndarray, objective: Objective) -> LossFn:
    """Makes the distillation loss of an adapter.

    Args:
      decoder: the module of the frozen model.
      head: tokens of the chat template before the user's text, see `placements.head_of`.
      objective: what is minimised.

    Returns:
      `loss(params, adapter, batch, own=()) -> (scalar, metrics)`, the mean over the rows that exist, `own` being the
      objective's own parameters; the metrics are the means over the rows that are answers and over those that are
      refusals, and those of the objective.
    """
    head_tokens = np.array(head, np.int32)

    def loss(params: Params, adapter: Adapter, batch: TeacherBatch, own: PyTree = ()) -> tuple[Array, dict[str, Array]]:
        hidden = outcome_hidden(decoder, params, adapter, jnp.array(head_tokens), batch)
        outcomes = Outcomes(decoder, params, hidden, batch, objective.needs, own=own)
        value = objective(outcomes)
        exists = jnp.any(jnp.asarray(batch.outcome_where), axis=1)
        refused = jnp.asarray(batch.is_refusal)
        metrics = {
            "answer_loss": losses.masked_mean(value, where=exists & ~refused),
            "refusal_loss": losses.masked_mean(value, where=exists & refused),
            **objective.metrics(outcomes),
        }
        return losses.masked_mean(value, where=exists), jax.lax.stop_gradient(metrics)

    return loss


def make_step(
    model: LanguageModel,
    objective: Objective,
    adapter: Adapter,
    settings: AlignSettings,
    mesh: Mesh,
    *,
    head: Sequence[int] | None = None,
) -> tuple[StepFn, TrainState]:
    """Makes the jitted step and the state before the first one, both on all devices of the mesh.

    Args:
      model: the frozen language model.
      objective: what is minimised.
      adapter: what is trained, as it starts.
      settings: optimiser and averaging.
      mesh: the devices.
      head: what the chats begin with, see `TeacherData.head`; None for the head of one-turn chats.

    Returns:
      The step and the state. The state's parameters are the adapter and the running mean of it over the last part of
      the run, `{"adapter": ..., "mean": ...}`; with `"own"` where the objective has parameters, and with `"behaviour"`
      and `"behaviour_own"`, what sampled the present batch, where a batch serves several steps.
    """
    optimizer, every = make_optimizer(settings), objective.needs.updates_per_sample
    own = objective.init_own(jax.random.fold_in(jax.random.key(settings.seed), 4), model)
    if has_own := bool(jax.tree.leaves(own)):
        optimizer = optax.partition({"adapter": optimizer, "own": objective.own_optimizer()}, ("adapter", "own"))
    decoder = model.decoder.clone(mesh=mesh if mesh.size > 1 else None)
    loss = make_loss(decoder, head=head_of(model, adapter, head), objective=objective)
    first = int(settings.average_from * settings.num_steps + 1e-9)  # 0.29 times 100 is 29, not 28.99...

    def step(params: Any, state: TrainState, batch: TeacherBatch) -> tuple[TrainState, dict[str, Array]]:
        trained, mean = state.params["adapter"], state.params["mean"]
        argnums = (1, 3) if has_own else 1
        inner = state.replace(params=(trained, state.params["own"]) if has_own else trained)
        (value, measured), gradient = jax.value_and_grad(loss, argnums=argnums, has_aux=True)(
            params, trained, batch, state.params.get("own", ())
        )
        inner = apply_gradients(inner, gradient, optimizer)
        moved = inner.params[0] if has_own else inner.params
        # The mean over the steps from `first` on; before that, a copy of the adapter.
        count = jnp.maximum(inner.step - first, 1).astype(jnp.float32)
        mean = jax.tree.map(lambda m, a: m + (a - m) / count, mean, moved)
        measured = {"loss": value, "grad_norm": optax.tree.norm(gradient[0] if has_own else gradient), **measured}
        found = {"adapter": moved, "mean": mean} | ({"own": inner.params[1]} if has_own else {})
        for name in [name for name in state.params if name in BEHAVIOUR]:
            begins = inner.step % every == 0
            now, before = found[BEHAVIOUR[name]], state.params[name]
            found[name] = jax.tree.map(functools.partial(jnp.where, begins), now, before)
        return inner.replace(params=found), measured

    initial = init_state((adapter, own) if has_own else adapter, optimizer, key=jax.random.key(settings.seed))
    begin = {"adapter": initial.params[0], "own": initial.params[1]} if has_own else {"adapter": initial.params}
    begin["mean"] = begin["adapter"]
    if every > 1:
        begin |= {name: begin[source] for name, source in BEHAVIOUR.items() if source in begin}
    initial = initial.replace(params=jax.tree.map(jnp.copy, begin))
    params, initial = parallel.distribute((model.params, initial), mesh)
    split = jax.tree.map(lambda leaf: leaf.sharding, initial) if mesh.size > 1 else None
    # The state stays split as it is.
    compiled = jax.jit(step, out_shardings=split and (split, NamedSharding(mesh, PartitionSpec())))
    return functools.partial(compiled, params), initial


def write_margins(workdir: Path, margins: np.ndarray) -> None:
    """Keeps the margins by which a student decided its training prompts."""
    text = json.dumps({"margins": margins.tolist()})
    write_checked(workdir / MARGINS, lambda part: part.write_text(text, encoding="utf-8"))


def read_margins(workdir: Path, num: int) -> np.ndarray:
    """Reads the margins of `num` prompts back.

    Raises:
      WorkdirError: the file is damaged, or the margins are those of other prompts.
    """
    way_out = "delete it and the folder checkpoints beside it; the same command then trains anew with the same teacher"
    check_whole(workdir / MARGINS, way_out)
    margins = np.array(json.loads((workdir / MARGINS).read_text(encoding="utf-8"))["margins"])
    if margins.shape != (num,):
        raise WorkdirError(
            f"{workdir / MARGINS} holds the margins of {margins.size} prompts; the run has {num}. The prompts have "
            "changed since: start in another work directory."
        )
    return margins


def mine(
    teacher: Teacher, margins: np.ndarray, mixture: Mapping[str, float], *, margin: float
) -> tuple[dict[str, list[int]], dict[str, float]]:
    """Adds groups of hard rows: those on whose first token a student was wrong, or right by less than some nats.

    Args:
      teacher: its rows and groups.
      margins: `[S]` nats by which the refusal's first token led, by prompt.
      mixture: weights of the groups; those named `hard_NAME` are made here.
      margin: nats, how near is hard.

    Returns:
      Row numbers by group and their weights; the weight of a hard group without rows is its group's.
    """
    groups, weights = dict(teacher.groups), {name: float(mixture[name]) for name in teacher.groups}
    for hard_name in (HARD + name for name in teacher.groups if HARD + name in mixture):
        name = hard_name.removeprefix(HARD)
        wrong_way = margins * (-1 if name == REFUSE else 1)
        hard = [row for row in groups[name] if wrong_way[teacher.data.sample[row]] > -margin]
        weight = float(mixture[hard_name])
        if hard:
            groups[hard_name], weights[hard_name] = hard, weight
        else:
            weights[name] += weight
        _log.info(f"{len(hard)} of {len(groups[name])} {name} rows are hard")
    return groups, weights
