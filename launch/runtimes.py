r"""The evaluation of an exported model inside a runtime, a part of `launch.evaluate`.

    python -m launch.evaluate --runtime=llama_cpp --model=FILE.gguf [--checkpoint=WORKDIR] [--sets=strongreject,plain]

The sets, judges and numbers are those of the config of the work directory, or the defaults of
configs/align_soft_prompt.py. The numbers are written beside the model as `FILE.evaluation/summary.json`.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from edgesafe_jax.errors import ConfigError, lookup
from edgesafe_jax.exporting import runtime_evaluation
from edgesafe_jax.exporting.runtime import RuntimeSettings
from edgesafe_jax.safety import requested
from . import alignment, get_config


def define_flags() -> None:
    """Defines the flags of the runtime."""
    flags.DEFINE_string("runtime", None, f"Evaluate inside one of {', '.join(runtime_evaluation.RUNTIMES)}.")
    flags.DEFINE_string("model", None, "The file that the runtime runs.")
    flags.DEFINE_list("sets", [], "Only these sets of prompts, with --runtime; default all of the config.")
    flags.DEFINE_integer("num_prompts", -1, "Only the first prompts or questions of each set, with --runtime.")


def evaluate(name: str, model: str | None, checkpoint: str | None, only: Sequence[str], num_prompts: int) -> None:
    """Measures a model file inside a runtime, prints the table and writes the numbers."""
    if not model:
        raise ConfigError(f"--runtime={name} needs --model=FILE, the file that it runs.")
    lookup(runtime_evaluation.RUNTIMES, name, "--runtime")
    config = get_config("align_soft_prompt").to_dict() if checkpoint is None else alignment.read_run(checkpoint)
    wanted, (sets, _), report = config["evaluation"], requested.evaluation_sets(config), Path(f"{model}.evaluation")
    num = num_prompts if num_prompts > 0 else None
    chosen = {each: lookup(sets, each, "--sets")[:num] for each in only or sets}
    given = {"num_prefill": wanted["attacks"]["prefill"], "num_choices": wanted["num_choices"]}
    counts = {each: requested.count(number) for each, number in given.items()}
    more = {each: num if count is None else min(count, num or count) for each, count in counts.items()}
    choices = () if only else wanted["multiple_choice"]
    # The runtime is started first: a file that it cannot load ends here.
    with runtime_evaluation.start_runtime(name, model, RuntimeSettings(num_parallel=2)) as runtime:
        base, guard, _ = alignment.load_system({**config, "matmul_dtype": "float32"}, report)
        judges, longest = alignment.load_judges(config, guard, base), wanted["max_tokens"]
        found = runtime_evaluation.evaluate_runtime(
            runtime, chosen, judges, max_tokens=longest, choices=choices, **more
        )
    print(f"{runtime_evaluation.write_results(report, found).to_text()}\nnumbers: {report / 'summary.json'}")
