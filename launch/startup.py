"""The start of every launcher: connects the hosts of a run, sets up logging, and runs the task of a config."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from edgesafe_jax import assets
from edgesafe_jax.benchmarks.compilation import keep_compiled, profiled
from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.models.loading import LanguageModel, load_model
from edgesafe_jax.parallel import Layout, check_platform, initialize_multihost, make_model_mesh
from edgesafe_jax.training import check_folder
from edgesafe_jax.training.precision import with_kept_precision
from .errors import reported

Task = Callable[[Mapping[str, Any], str | Path], Path]
"""From a config and a work directory to what was written."""


def configure() -> None:
    """Sets the process up; called by launchers only. An environment that cannot work ends in one message."""
    with reported():
        initialize_multihost()
        check_platform()
    # Of other packages only warnings are shown.
    absl_logging.get_absl_handler().setLevel(logging.WARNING)
    # The library's messages go to stderr unchanged.
    package = logging.getLogger("edgesafe_jax")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)
    package.setLevel(logging.INFO)
    keep_compiled(assets.cache_dir() / "compiled")


MATMUL_DTYPES: dict[str, Any] = {"auto": None, "float32": None, "bfloat16": jnp.dtype(jnp.bfloat16)}
"""Values of `config.matmul_dtype`: dtypes of the factors of matrix products; "auto" measures which is faster."""


def template_variables(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads `config.template_variables`, JSON text or nothing; anything else is a ConfigError."""
    text = config.get("template_variables") or "{}"
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        example = json.dumps({"enable_thinking": False})
        raise ConfigError(f"config.template_variables={text!r}: expected a JSON object, such as {example}.")
    return found


def load_config_model(config: Mapping[str, Any], workdir: str | Path) -> LanguageModel:
    """Loads the model of a config: `model`, `quantization`, `matmul_dtype`, `template_variables` and `parallel`.

    Args:
      config: of the run.
      workdir: of the run; may not be there yet; keeps the precision that "auto" chooses, see `training.precision`.

    Returns:
      The model.
    """
    name = config["matmul_dtype"]
    dtype = lookup(MATMUL_DTYPES, name, "config.matmul_dtype")
    mesh = make_model_mesh(Layout(**config.get("parallel", {})))
    model = load_model(config["model"], matmul_dtype=dtype, quantization=config.get("quantization") or None, mesh=mesh)
    if name == "auto":
        model = with_kept_precision(model, workdir)
    tokenizer = model.tokenizer
    if file := config.get("chat_template"):
        tokenizer = tokenizer.with_template(Path(file).read_text(encoding="utf-8"))
    return dataclasses.replace(model, tokenizer=tokenizer.with_variables(template_variables(config)))


def define_config_flags() -> None:
    """Defines `--config` and `--workdir`; not on import, so that several launchers can be imported together."""
    config_flags.DEFINE_config_file("config", None, "The experiment, a file of configs/.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Where everything about the run is written.")
    flags.DEFINE_string("profile", None, "Where a trace of the run is written, for TensorBoard or ui.perfetto.dev.")
    flags.mark_flags_as_required(["config", "workdir"])


def run_task(tasks: Mapping[str, Task], *, multihost: tuple[str, ...] = ()) -> Path:
    """Runs the task that the config of the command line names.

    Args:
      tasks: what `config.task` may name.
      multihost: tasks that may run in several processes.

    Returns:
      What the task returns.
    """
    configure()
    with reported():
        for name in ("workdir", "profile"):
            if (folder := flags.FLAGS[name].value) is not None:
                check_folder(folder, f"--{name}")
    with reported(), profiled(flags.FLAGS.profile):
        config = flags.FLAGS.config.to_dict()
        task = lookup(tasks, config.get("task"), "config.task")
        if jax.process_count() > 1 and config["task"] not in multihost:
            raise ConfigError(
                f"config.task={config['task']!r} runs in one process and {jax.process_count()} were started: expected "
                f"{' or '.join(map(repr, multihost)) or 'one'}. launch.sweep --processes=N divides runs of any task."
            )
        return task(config, flags.FLAGS.workdir)
