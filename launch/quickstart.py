r"""The quickstart: a soft prompt distilled from SmolLM2 and its guard, steadier guards, policies, a planner, a report.

    python -m launch.quickstart [--workdir DIR] [--only SECTION[,SECTION]] [--checkpoint DIR]

Weights and data are fetched on the first run. An interrupted run continues with the same command; a finished one is
measured again. With `--checkpoint` no soft prompt is trained: that of another work directory is measured.
"""

import time
from collections.abc import Callable
from pathlib import Path

from absl import flags

from edgesafe_jax.training import check_folder
from . import alignment, errors, get_config, guards, offline, planning, startup


def define_flags() -> None:
    """Defines the command line; not on import, so that several launchers can be imported together."""
    flags.DEFINE_string("workdir", "workdirs/quickstart", "Where everything about the run is written.")
    flags.DEFINE_list("only", None, "Sections to run; default all.")
    flags.DEFINE_string("checkpoint", None, "Work directory of a finished alignment run to measure instead.")


def _alignment(workdir: Path) -> None:
    if checkpoint := flags.FLAGS.checkpoint:
        alignment.evaluate(alignment.read_run(checkpoint), workdir, checkpoint=checkpoint)
        return
    config = get_config("align_soft_prompt", "quickstart").to_dict()
    alignment.train(config, workdir)
    alignment.evaluate(config, workdir)


def _guards(workdir: Path) -> None:
    run = workdir / "guards"
    guards.train_consistency(get_config("guard_consistency", "quickstart").to_dict(), run)
    guards.evaluate_consistency(run, workdir)


def _offline_rl(workdir: Path) -> None:
    offline.train_policies(get_config("offline_rl", "quickstart").to_dict(), workdir / "offline_rl", report=workdir)


SECTIONS: dict[str, Callable[[Path], None]] = {
    "alignment": _alignment,
    "guards": _guards,
    "offline_rl": _offline_rl,
    "planning": planning.compare,
}
"""The sections, by the names that `--only` takes."""


def main(argv: list[str]) -> None:
    """Runs the sections."""
    startup.configure()
    with errors.reported():
        names = flags.FLAGS.only or list(SECTIONS)
        chosen = [(name, errors.lookup(SECTIONS, name, "--only")) for name in names]
        workdir = check_folder(flags.FLAGS.workdir, "--workdir")
        for name, section in chosen:
            started = time.monotonic()
            print(f"== {name} ==")
            section(workdir)
            print(f"== {name}: {time.monotonic() - started:.0f} s ==")


if __name__ == "__main__":
    errors.start(define_flags, main)
