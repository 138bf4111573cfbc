r"""Measures an aligned model (safety, over-refusal, usefulness, cost) or a trained guard.

    python -m launch.evaluate --checkpoint=WORKDIR
    python -m launch.evaluate --checkpoint=WORKDIR --prompts=FILE.jsonl --output=OUT.jsonl

The first writes `summary.json` and `report.html` into the work directory; `--set=NAME=VALUE` changes a field of the
config's evaluation, such as `--set=attacks.gcg=8` or `--set=files=xstest=FILE.csv`. `--set=split=final` measures on the
prompts that no choice was made on and writes into the folder `final`. With `--baseline=OTHER` two runs that were
measured on the same prompts are compared, prompt by prompt. The second answers a user's own prompts
(JSONL with `prompt` and, where known, `label`: harmful or benign) and writes one JSON line per prompt.

    python -m launch.evaluate --runtime=llama_cpp --model=FILE.gguf

runs safety, over-refusal and usefulness of an exported file inside a runtime, see `launch.runtimes`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from edgesafe_jax import adapters, assets, corpora
from edgesafe_jax.corpora import read_prompts
from edgesafe_jax.fields import check_fields
from edgesafe_jax.reporting import make_table
from edgesafe_jax.reporting.progress import ProgressBar
from edgesafe_jax.safety import compare, evaluation, read_values, requested
from edgesafe_jax.training import check_folder, check_output
from edgesafe_jax.training.workdir import read_config
from . import alignment, errors, guards, runtimes, startup

GUARDS: dict[str, Callable[[Path], object]] = {
    "guard_consistency": guards.evaluate_consistency,
    "guard_smol": guards.evaluate_smolguard,
}
"""Evaluations of guards by task; every other work directory is that of an alignment run."""


def define_flags() -> None:
    """Defines the command line; not on import, so that several launchers can be imported together."""
    flags.DEFINE_string("checkpoint", None, "Work directory of a finished run.")
    flags.DEFINE_string("prompts", None, "JSONL of prompts to answer instead of the packaged sets.")
    flags.DEFINE_string("output", None, "Where the answers go; default answers.jsonl in the work directory.")
    flags.DEFINE_multi_string("set", [], "NAME=VALUE, a field of the evaluation in the run's config.")
    flags.DEFINE_string("baseline", None, "Another measured work directory, with which this one is compared.")
    runtimes.define_flags()


def answer_prompts(
    config: Mapping[str, Any], checkpoint: str | Path, chosen: Sequence[corpora.Prompt], output: str | Path
) -> Path:
    """Answers a user's own prompts with an aligned model; writes JSON lines, see `evaluation.answer_rows`."""
    model, guard, _ = alignment.load_system(config, checkpoint)
    adapter = adapters.load_adapter(alignment.stored_adapter(checkpoint), model)
    judges, longest = alignment.load_judges(config, guard, model), int(config["evaluation"]["max_tokens"])
    with ProgressBar("answering") as progress:
        rows = evaluation.answer_rows(model, adapter, chosen, judges, max_tokens=longest, on_batch=progress)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return assets.write_atomically(Path(output), lambda part: part.write_text(text, encoding="utf-8"))


def main(argv: list[str]) -> None:
    """Evaluates the run."""
    startup.configure()
    with errors.reported():
        given = flags.FLAGS
        if given.runtime:
            runtimes.evaluate(given.runtime, given.model, given.checkpoint, given.sets, given.num_prompts)
            return
        if not given.checkpoint:
            raise errors.ConfigError("expected --checkpoint=WORKDIR, or --runtime=llama_cpp with --model=FILE.")
        workdir = Path(given.checkpoint)
        task = read_config(workdir).get("task")
        check_folder(workdir, "--checkpoint")
        if given.output and given.prompts is None:
            raise errors.ConfigError(f"--output={given.output} needs --prompts=FILE.jsonl, whose answers go there.")
        if task in GUARDS:
            if given.prompts is not None:
                raise errors.ConfigError(
                    f"--prompts={given.prompts} needs the work directory of an alignment run; {workdir} has the task "
                    f"{task!r}."
                )
            GUARDS[task](workdir)
        elif given.prompts is None:
            if given.baseline is not None:
                print(make_table(compare(read_values(workdir), read_values(given.baseline))).to_text())
                return
            config = requested.changed(alignment.read_run(workdir), given.set)
            check_fields(config, below="evaluation")
            final = config["evaluation"]["split"] == "final"
            alignment.evaluate(config, workdir / "final" if final else workdir, checkpoint=workdir)
        else:
            config = alignment.read_run(workdir)
            output = Path(given.output) if given.output else workdir / "answers.jsonl"
            check_output(output, "--output")
            chosen = read_prompts(given.prompts)
            print(f"wrote {answer_prompts(config, workdir, chosen, output)}")


if __name__ == "__main__":
    errors.start(define_flags, main)
