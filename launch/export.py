r"""Writes a trained adapter in the format of another program, with a model card.

    python -m launch.export --checkpoint=WORKDIR --format=peft --out=DIR

The checkpoint is the work directory of a finished alignment run, an adapter file, or `packaged` for the soft prompt
that ships with the package.
"""

from pathlib import Path

from absl import flags

from edgesafe_jax import exporting
from edgesafe_jax.exporting.sources import read_checkpoint
from . import errors, startup


def define_flags() -> None:
    """Defines the command line; not on import, so that several launchers can be imported together."""
    flags.DEFINE_string("checkpoint", None, "Work directory, adapter file, or 'packaged'.")
    flags.DEFINE_string("format", None, f"One of {', '.join(exporting.EXPORTERS)}.")
    flags.DEFINE_string("out", None, "The directory to make.")
    flags.DEFINE_string("base", None, "Base model; default the one that the checkpoint names.")
    flags.mark_flags_as_required(["checkpoint", "format", "out"])


def main(argv: list[str]) -> None:
    """Exports the adapter."""
    startup.configure()
    with errors.reported():
        given = flags.FLAGS
        export = exporting.make_exporter(given.format)
        exporting.check_target(given.out)
        adapter, model, provenance = read_checkpoint(given.checkpoint, base=given.base)
        path = export(adapter, model, given.out, provenance=provenance)
        print(f"wrote {path}: " + ", ".join(sorted(file.name for file in Path(path).iterdir())))


if __name__ == "__main__":
    errors.start(define_flags, main)
