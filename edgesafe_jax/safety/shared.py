"""What several runs on one model and one guard compute alike: the teacher, and the base model's greedy answers.

Each lies in a folder of its own below a shared one, named by a digest of everything that it depends on. A folder is
locked while it is filled; its files are checked as those of a work directory are.
"""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesafe_jax.models.chats import Chat
from edgesafe_jax.models.generation import Generation, generate
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.safety.system import SafeSystem
from edgesafe_jax.safety.teacher import HIDDEN, RECORD, Teacher, TeacherOptions, make_teacher
from edgesafe_jax.training import close_workdir, is_whole, locks, open_workdir, write_checked
from edgesafe_jax.training.workdir import read_config
from edgesafe_jax.typing import Adapter, ProgressFn

_log = logging.getLogger(__name__)


def shared_teacher(
    system: SafeSystem, prompts: Sequence[str | Chat], labels: Sequence[str], folder: Path, options: TeacherOptions
) -> Teacher:
    """Makes the teacher of a run, or reads the one that another run with the same teacher has made.

    Answers and hidden states of a teacher that has another guard, and is otherwise the same, are taken over.

    Args:
      system: base model, guard and refusal.
      prompts: S user texts or chats.
      labels: S names.
      folder: where runs share teachers. A process that needs one that another process is making waits for it.
      options: how it is sampled. Hidden states are kept in any case, for the runs that need them; `guard_id` has to
        identify the guard with everything that changes its verdicts; None shares no verdicts.

    Returns:
      The teacher, see `teacher.make_teacher`.

    Raises:
      ConfigError: see `teacher.make_teacher`.
    """
    about = {
        **_about(system.model),
        "refusal": system.refusal,
        "guard": options.guard_id,
        "prompts": _digest(list(prompts)),
        "max_tokens": options.max_tokens,
        "num_positions": options.num_positions,
        "temperature": options.temperature,
        "seed": options.seed,
    }
    place = folder / f"teacher_{_digest(about)[:16]}"
    place.mkdir(parents=True, exist_ok=True)
    waits = False
    while (owner := locks.acquire(place)) is not None:  # each attempt takes a second
        if not waits:
            _log.info(f"waiting for the teacher that {owner} makes")
        waits = True
    try:
        open_workdir(place, about)
        if not is_whole(place / RECORD):
            _copy_answers(folder, place, about)
        teacher = make_teacher(system, prompts, labels, place, dataclasses.replace(options, with_hidden=True))
    finally:
        close_workdir(place)
    if options.with_hidden:
        return teacher
    none = np.zeros((len(teacher.data.prompts), 0, system.model.config.embed_dim), np.float32)
    return dataclasses.replace(teacher, data=dataclasses.replace(teacher.data, teacher_hidden=none))


def _copy_answers(folder: Path, place: Path, about: Mapping[str, Any]) -> None:
    """Copies the answers and hidden states of a teacher that differs in its guard alone, whose verdicts are not taken.

    `teacher.make_teacher` weighs answers again where another guard has weighed them.
    """
    for other in sorted(folder.glob("teacher_*")):
        record, hidden = other / RECORD, other / HIDDEN
        if not record.exists() or {**read_config(other), "guard": about["guard"]} != about:
            continue
        if is_whole(record) and is_whole(hidden):
            _log.info(f"answers and hidden states are those of {other.name}, which another guard weighed")
            for file in (hidden, record):
                write_checked(place / file.name, lambda part, file=file: shutil.copyfile(file, part))
            return


def keep_answers(folder: Path) -> Callable[..., Generation]:
    """Makes a `generate` that keeps the greedy answers of a model without adapter in a folder.

    Args:
      folder: where answers lie, one file for each call with other arguments.

    Returns:
      A function with the signature and the results of `models.generate`; other calls are passed on.
    """

    def answer(
        model: LanguageModel,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        adapter: Adapter | None = None,
        temperature: float = 0.0,
        prefills: Sequence[str] | None = None,
        on_batch: ProgressFn | None = None,
        **options: Any,
    ) -> Generation:
        def call() -> Generation:
            return generate(
                model,
                prompts,
                max_tokens=max_tokens,
                adapter=adapter,
                temperature=temperature,
                prefills=prefills,
                on_batch=on_batch,
                **options,
            )

        if adapter is not None or temperature or options.get("keep_hidden"):
            return call()
        about = {
            **_about(model),
            "prompts": list(prompts),
            "prefills": None if prefills is None else list(prefills),
            "max_tokens": max_tokens,
        }
        file = folder / f"answers_{_digest(about)[:16]}.json"
        if not is_whole(file):
            found = dataclasses.asdict(call())
            write_checked(file, lambda part: part.write_text(json.dumps(found), encoding="utf-8"))
        return Generation(**json.loads(file.read_text(encoding="utf-8")))

    return answer


def _about(model: LanguageModel) -> dict[str, str]:
    """What a model's answers depend on."""
    return {
        "model": model.hash,
        "tokenizer": model.tokenizer.hash,
        "dtypes": f"{model.dtype} {model.matmul_dtype} {model.decoding_dtype}",
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
