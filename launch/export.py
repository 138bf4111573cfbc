r"""Writes a trained adapter in the format of another program, with a model card.

    python -m launch.export --checkpoint=WORKDIR --format=peft --out=DIR

The checkpoint is the work directory of a finished alignment run, an adapter file, or `packaged` for the soft prompt
that ships with the package. `--push=OWNER/NAME` uploads the directory, too.

    python -m launch.export --checkpoint=packaged --format=vocabulary_graft --out=safe
    llama-cli -m safe/model.gguf -cnv --jinja
"""

from pathlib import Path

from absl import flags

from edgesafe_jax.exporting import EXPORTERS, export_checkpoint
from edgesafe_jax.training import check_folder
from . import config_module, errors, startup


def define_flags() -> None:
    """Defines the command line; not on import, so that several launchers can be imported together."""
    flags.DEFINE_string("checkpoint", None, "Work directory, adapter file, or 'packaged'.")
    flags.DEFINE_string("format", None, f"One of {', '.join(EXPORTERS)}.")
    flags.DEFINE_string("out", None, "The directory to make.")
    flags.DEFINE_string("base", None, "Base model; default the one that the checkpoint names.")
    flags.DEFINE_string("push", None, "OWNER/NAME of a repository of the hub to upload the directory to.")
    flags.mark_flags_as_required(["checkpoint", "format", "out"])


def main(argv: list[str]) -> None:
    """Exports the adapter."""
    startup.configure()
    with errors.reported():
        given = flags.FLAGS
        check_folder(given.out, "--out")
        results = Path(str(config_module("align_soft_prompt").__file__)).parent / "results" / "align_soft_prompt.json"
        target = {"base": given.base, "repo": given.push, "packaged_results": results}
        path, upload = export_checkpoint(given.checkpoint, given.format, given.out, **target)
        print(
            f"wrote {path}"
            + (f", uploaded to {upload}" if upload else "")
            + f"; {path / 'README.md'} says how to run it"
        )


if __name__ == "__main__":
    errors.start(define_flags, main)
