"""What an evaluation measures, from the plain mapping that an experiment is described by; in its counts -1 is all."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from edgesafe_jax import corpora
from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.safety import attacks, evaluation, prompts


def count(value: int) -> int | None:
    """Returns a count of a description, in which -1 stands for all, as the library takes it."""
    return None if int(value) < 0 else int(value)


def changed(config: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Returns a description with other values in its part `evaluation`.

    Args:
      config: the description.
      fields: NAME=VALUE entries, such as "split=final" or "attacks.gcg=8"; of several values with commas between.

    Raises:
      ConfigError: an entry without "=", a field that there is not, or no number where one belongs.
    """
    found = {**config, "evaluation": copy.deepcopy(dict(config["evaluation"]))}
    for field in fields:
        name, mark, text = field.partition("=")
        if not mark:
            raise ConfigError(f"{field!r}: expected NAME=VALUE, a field of the evaluation.")
        *folders, last = name.split(".")
        place = found["evaluation"]
        for folder in folders:
            place = lookup(place, folder, "evaluation field")
        old = lookup(place, last, "evaluation field")
        if isinstance(old, Mapping):
            raise ConfigError(f"evaluation.{name} has the fields {', '.join(old)}: expected one of them.")
        try:
            place[last] = (
                text if isinstance(old, str) else int(text) if isinstance(old, int) else tuple(text.split(","))
            )
        except ValueError:
            raise ConfigError(f"evaluation.{name}={text!r}: expected a whole number.") from None
    return found


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
