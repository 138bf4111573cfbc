r"""Measures an aligned model: safety, over-refusal, usefulness, cost.

    python -m launch.evaluate --checkpoint=WORKDIR
    python -m launch.evaluate --checkpoint=WORKDIR --prompts=FILE.jsonl --output=OUT.jsonl

The first writes `summary.json` and `report.html` into the work directory. The second answers a user's own prompts (JSONL
with `prompt` and, where known, `label`: harmful or benign) and writes one JSON line per prompt.
"""

from pathlib import Path

from absl import app, flags

from edgesafe_jax.corpora import read_prompts
from edgesafe_jax.training.workdir import read_config
from launch import alignment, errors, startup

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Work directory of a finished alignment run.")
_PROMPTS = flags.DEFINE_string("prompts", None, "JSONL of prompts to answer instead of the packaged sets.")
_OUTPUT = flags.DEFINE_string("output", None, "Where the answers go; default answers.jsonl in the work directory.")


def main(argv: list[str]) -> None:
    """Evaluates the run."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
    startup.configure()
    with errors.reported():
        workdir = Path(_CHECKPOINT.value)
        config = read_config(workdir)
        if config.get("task") != "alignment":
            raise errors.ConfigError(f"{workdir} holds a run of task {config.get('task')!r}; expected 'alignment'.")
        if _PROMPTS.value is None:
            alignment.evaluate(config, workdir)
            return
        try:
            chosen = read_prompts(_PROMPTS.value)
        except (OSError, ValueError) as error:
            raise errors.ConfigError(str(error)) from error
        output = Path(_OUTPUT.value) if _OUTPUT.value else workdir / "answers.jsonl"
        print(f"wrote {alignment.answer_prompts(config, workdir, chosen, output)}")


def run() -> None:
    """Parses the flags and runs."""
    flags.mark_flags_as_required(["checkpoint"])
    app.run(main)


if __name__ == "__main__":
    run()
