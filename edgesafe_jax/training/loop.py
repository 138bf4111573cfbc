"""The training loop: resumable at any step, bit for bit on one device.

The batch is a function of the step, so the order of the data has no state of its own. The checkpoint holds everything
that the next step depends on, random key and best parameters included. The lines of metrics are on the disk before the
checkpoint that follows them, so a resumed run writes exactly those that are missing.
"""

import dataclasses
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn, Self

import jax
import jax.numpy as jnp
import optax
from flax import struct

from edgesafe_jax import parallel
from edgesafe_jax.errors import ConfigError, EdgesafeError, check_counts
from edgesafe_jax.training.checkpoints import Checkpoints
from edgesafe_jax.training.metric_writers import MetricWriter
from edgesafe_jax.typing import Array, PRNGKey, PyTree

_log = logging.getLogger(__name__)


class TrainingError(EdgesafeError, RuntimeError):
    """Training cannot go on."""


class TrainingStopped(SystemExit):
    """A signal stopped training and the state is saved; the exit status is 128 + the signal."""


class TrainState(struct.PyTreeNode):
    """All that a step changes.

    Attributes:
      step: steps done, int32 scalar.
      params: the trained parameters, any pytree.
      opt_state: the optimiser's state.
      key: a typed random key; a step splits it or folds `step` into it.
    """

    step: Array
    params: PyTree
    opt_state: PyTree
    key: PRNGKey


class Best(struct.PyTreeNode):
    """The parameters with the highest score so far.

    Attributes:
      params: the parameters.
      score: their score.
      step: steps done when they were evaluated; 0 if there has been no evaluation.
      num_worse: evaluations since that were no better.
    """

    params: PyTree
    score: float
    step: int
    num_worse: int


class Trained(struct.PyTreeNode):
    """The result of training, and the content of a checkpoint.

    Attributes:
      state: the state after the last step.
      best: the best evaluated parameters.
    """

    state: TrainState
    best: Best

    @property
    def params(self) -> PyTree:
        """The best evaluated parameters, or the last ones if there was no evaluation."""
        return self.best.params if self.best.step else self.state.params


StepFn = Callable[[TrainState, Any], tuple[TrainState, Mapping[str, Array]]]
EvalResult = float | Mapping[str, float] | None


@dataclasses.dataclass(frozen=True)
class EvalSchedule:
    """The evaluation during training: what, how often and when it stops training.

    Attributes:
      score: a deterministic function of the state that returns a score, higher is better; or a mapping, logged with
        the prefix ``eval/``, whose ``score`` is that score; or None for neither.
      every: steps between two evaluations; one more follows the last step.
      patience: training stops after this many evaluations in a row without a higher score; None never stops early.
    """

    score: Callable[[TrainState], EvalResult]
    every: int
    patience: int | None = None

    def __post_init__(self):
        check_counts(every=self.every, patience=1 if self.patience is None else self.patience)


def init_state(params: PyTree, optimizer: optax.GradientTransformation, *, key: PRNGKey) -> TrainState:
    """Makes the state before the first step.

    Args:
      params: the parameters to start from; they are copied.
      optimizer: an optax optimiser.
      key: a typed random key.

    Returns:
      The state, with `step` 0.
    """
    # A copy, so that a step may donate its state, and strongly typed, as restored parameters are.
    params = jax.tree.map(lambda leaf: jnp.array(leaf, dtype=jnp.result_type(leaf)), params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), key=key)


def apply_gradients(state: TrainState, gradients: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """Takes one optimiser step.

    Args:
      state: the state before.
      gradients: a pytree like `state.params`.
      optimizer: the optimiser that `state` was made with.

    Returns:
      The state after, with `step` one higher and the key as it was.
    """
    with jax.numpy_dtype_promotion("standard"):  # Optax itself relies on it: decay ** count.
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


def train(
    step_fn: StepFn,
    state: TrainState,
    batches: Callable[[int], Any],
    *,
    num_steps: int,
    writer: MetricWriter | None = None,
    checkpoints: Checkpoints | None = None,
    log_every: int = 10,
    evaluation: EvalSchedule | None = None,
    progress: bool = True,
) -> Trained:
    """Trains from the newest good checkpoint, or from `state` if there is none, to the end.

    Steps are counted from 0. Metrics are fetched from the device every `log_every` steps, at an evaluation and at a
    checkpoint; one line is written for each step. SIGINT and SIGTERM save a checkpoint after the current step and
    raise `TrainingStopped`; the same call then continues. A second signal acts at once.

    On several hosts all processes call this with the same arguments. Process 0 alone writes metrics and checkpoints, on
    a file system from which all read. A signal to any of them stops all after the same step, two steps later.

    Args:
      step_fn: from a state and a batch to the next state, with `step` one higher, and a mapping of scalar metrics in
        which ``loss`` must stay finite; jitted by the caller.
      state: the state to start from.
      batches: a pure function from the step to its batch.
      num_steps: steps in all, those of an interrupted run included.
      writer: where the metrics go.
      checkpoints: where states are saved and restored from; a last one is saved at the end.
      log_every: steps between two fetches of metrics.
      evaluation: what is evaluated during training, how often, and when to stop early; None for nothing.
      progress: whether to show step, loss, steps per second and the time left on stderr.

    Returns:
      The last state and the best parameters; `Trained.params` are those to use.

    Raises:
      ConfigError: a count is less than 1, or `step_fn` does not count its steps.
      TrainingError: the loss, a parameter or a score is not finite, or the checkpoint is past `num_steps`. The last
        good checkpoint stays.
      TrainingStopped: after a signal.

    Example:
      >>> optimizer = optax.sgd(0.5)
      >>> @jax.jit
      ... def step_fn(state, target):
      ...     loss, gradients = jax.value_and_grad(lambda w: (w - target) ** 2)(state.params)
      ...     return apply_gradients(state, gradients, optimizer), {"loss": loss}
      >>> start = init_state(jnp.float32(0.0), optimizer, key=jax.random.key(0))
      >>> trained = train(step_fn, start, lambda step: jnp.float32(3.0), num_steps=2, progress=False)
      >>> float(trained.params)
      3.0
    """
    check_counts(num_steps=num_steps, log_every=log_every)
    patience = None if evaluation is None else evaluation.patience
    best = Best(params=_copy(state.params), score=-math.inf, step=0, num_worse=0)
    start = 0
    if checkpoints is not None and (restored := checkpoints.restore_latest(Trained(state, best))):
        start, trained = restored
        state, best = trained.state, trained.best
        if start > num_steps:
            raise TrainingError(
                f"the checkpoint in {checkpoints.directory} is at step {start}, past "
                f"num_steps={num_steps}: ask for more steps or use another work directory"
            )
    if not parallel.is_main_process():
        writer, progress = None, False
    vote = parallel.StopVote()
    if writer is not None:
        writer.resume(start)

    done = start
    pending: list[tuple[int, Mapping[str, Any]]] = []
    shown = _Progress(start, num_steps, enabled=progress)

    def flush() -> None:
        """Brings the pending metrics to the host, checks them and writes them."""
        lines = jax.device_get(pending)
        pending.clear()
        for step, metrics in lines:
            if writer is not None:
                writer.write(step, metrics)
            if not math.isfinite(float(metrics.get("loss", 0.0))):
                _fail(f"the loss is {float(metrics['loss'])} at step {step}", step, checkpoints)
        if lines and "loss" in lines[-1][1]:
            shown.show(done, float(lines[-1][1]["loss"]))

    def save() -> None:
        """Saves the state, once all metrics up to it are on the disk."""
        flush()
        if int(state.step) != done:
            raise ConfigError(f"state.step is {int(state.step)} after {done} steps: step_fn must add 1 to it each time")
        _check_finite(state.params, done - 1, checkpoints)
        if writer is not None:
            writer.sync()
        if checkpoints is not None:
            checkpoints.save(done, Trained(state, best))

    with _StopSignals() as signals, shown:
        while done < num_steps and not (patience and best.num_worse >= patience):
            state, metrics = step_fn(state, batches(done))
            pending.append((done, metrics))
            done += 1
            if evaluation and (done % evaluation.every == 0 or done == num_steps):
                if math.isfinite(float(metrics.get("loss", 0.0))):  # Otherwise flush says what is wrong.
                    best, scores = _evaluate(evaluation.score, state, best, done)
                    pending[-1] = (done - 1, {**metrics, **scores})
                flush()
            elif done % log_every == 0 or done == start + 1:
                flush()
            stopped = vote(bool(signals.received))
            if stopped or (checkpoints is not None and checkpoints.should_save(done)):
                save()
            if stopped and done < num_steps:
                parallel.any_process(True)  # No process says that the state is saved before process 0 has saved it.
                signals.leave(done, num_steps, saved=checkpoints is not None)
        save()
        if parallel.any_process(bool(signals.received)):
            signals.leave(done, num_steps, saved=checkpoints is not None)
    return Trained(state=state, best=best)


def _evaluate(
    score_fn: Callable[[TrainState], EvalResult], state: TrainState, best: Best, done: int
) -> tuple[Best, dict[str, float]]:
    result = score_fn(state)
    if result is None:
        return best, {}
    scores = dict(result) if isinstance(result, Mapping) else {"score": float(result)}
    logged = {f"eval/{name}": value for name, value in scores.items()}
    if "score" not in scores:
        return best, logged
    score = float(scores["score"])
    if math.isnan(score):
        raise TrainingError(f"the evaluation returned the score {score} after {done} steps: expected a number")
    if score > best.score:
        # A copy, because a step may donate its state.
        return Best(params=_copy(state.params), score=score, step=done, num_worse=0), logged
    return best.replace(num_worse=best.num_worse + 1), logged


def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


def _fail(what: str, step: int, checkpoints: Checkpoints | None) -> NoReturn:
    steps = checkpoints.steps() if checkpoints is not None else []
    kept = f"The checkpoint of step {steps[-1]} is kept" if steps else "There is no checkpoint"
    raise TrainingError(
        f"{what}. {kept}. Try a smaller learning rate, clip the gradients, compute the loss in float32, or look at the "
        f"batch, batches({step})"
    )


def _check_finite(params: PyTree, step: int, checkpoints: Checkpoints | None) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.all(jnp.isfinite(leaf))):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            _fail(f"parameter {name or '(root)'} is not finite after step {step}", step, checkpoints)


class _Progress:
    """One line on stderr, rewritten on a terminal."""

    def __init__(self, start: int, total: int, *, enabled: bool):
        self._enabled = enabled
        self._total = total
        self._from: tuple[int, float] | None = None
        self._live = sys.stderr.isatty()

    def show(self, done: int, loss: float) -> None:
        if not self._enabled:
            return
        now = time.monotonic()
        line = f"step {done}/{self._total}  loss {loss:.4g}"
        if self._from is None:  # The first step compiles: the clock starts after it.
            self._from = done, now
        elif done > self._from[0]:
            rate = (done - self._from[0]) / max(now - self._from[1], 1e-9)
            left = round((self._total - done) / rate)
            line += f"  {rate:.3g} steps/s  {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        print(f"\r{line}\x1b[K" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._enabled and self._live and self._from is not None:
            print(file=sys.stderr)


class _StopSignals:
    """Remembers SIGINT and SIGTERM until the end of a step, then gives the former handlers back."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def leave(self, done: int, num_steps: int, *, saved: bool) -> NoReturn:
        number = self.received or signal.SIGTERM  # Another process was asked to stop.
        what = "the state is saved: the same command continues" if saved else "nothing is saved"
        print(
            f"\nstopped by {signal.Signals(number).name} after {done} of {num_steps} steps; {what}",
            file=sys.stderr,
            flush=True,
        )
        raise TrainingStopped(128 + number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()  # A second signal acts as it did before training.

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there.
            for number in (signal.SIGINT, signal.SIGTERM):
                former = signal.signal(number, self._receive)
                self._former[number] = signal.SIG_DFL if former is None else former  # None: not set from Python.
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()
        if self.received and error[0] is None:  # It came after the last question: what follows training is stopped.
            os.kill(os.getpid(), self.received)
