"""What an evaluation measures, from the plain mapping that an experiment is described by; in its counts -1 is all."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from edgesafe_jax import corpora
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.safety import attacks, evaluation, prompts


def count(value: int) -> int | None:
    """Returns a count of a description, in which -1 stands for all, as the library takes it."""
    return None if int(value) < 0 else int(value)


def evaluation_settings(config: Mapping[str, Any]) -> evaluation.EvaluationSettings:
    """Returns the settings of an evaluation: `config["evaluation"]` has the fields of `EvaluationSettings`.

    Raises:
      ConfigError: see `EvaluationSettings`.
    """
    wanted = config["evaluation"]
    given: dict[str, Any] = {"search": attacks.SearchBudget(**wanted["search"]), "seed": int(config["seed"])}
    for name in {field.name for field in dataclasses.fields(evaluation.EvaluationSettings)} - set(given):
        value = wanted[name]
        if isinstance(value, Mapping):
            given[name] = {each: count(number) for each, number in value.items()}
        else:
            given[name] = tuple(value) if isinstance(value, Sequence) else count(value)
    return evaluation.EvaluationSettings(**given)


def data_split(config: Mapping[str, Any]) -> prompts.Split:
    """Returns the division of the prompt sets.

    Raises:
      ConfigError: an unknown `evaluation.split`.
    """
    return prompts.Split(
        num_reserved_questions=int(config["data"]["num_reserved_questions"]),
        jailbreak_chars=int(config["evaluation"]["jailbreak_chars"]),
        half=config["evaluation"]["split"],
    )


def evaluation_sets(config: Mapping[str, Any]) -> tuple[dict[str, list[corpora.Prompt]], dict[str, corpora.Records]]:
    """Returns the sets of prompts, those of a user's files among them, and all records of these files.

    Raises:
      ConfigError: there is no set.
    """
    wanted = config["evaluation"]
    files = corpora.read_files(wanted["files"])
    sizes = {name: count(wanted[name]) for name in prompts.EVALUATION_SETS if name in wanted}
    if sets := prompts.evaluation_prompts(sizes, data_split(config)) | prompts.file_prompts(files):
        return sets, files
    raise ConfigError("config.evaluation leaves out every set of prompts: expected at least one above 0.")
