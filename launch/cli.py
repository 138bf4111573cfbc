"""The command `edgesafe NAME ARGUMENTS`: the launchers of an installed package."""

import importlib
import sys

from . import errors

COMMANDS = ("bench", "evaluate", "export", "plan", "quickstart", "report", "sweep", "train")


def run() -> None:
    """Runs the launcher that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("help", "-h", "--help"):
        print(f"usage: edgesafe COMMAND ARGUMENTS, edgesafe COMMAND --help; commands: {', '.join(COMMANDS)}")
        return
    with errors.reported():
        errors.lookup(dict.fromkeys(COMMANDS), name, "command")
    launcher = importlib.import_module(f"{__package__}.{name}")
    sys.argv[:2] = [f"edgesafe {name}"]
    errors.start(launcher.define_flags, launcher.main, operands=getattr(launcher, "OPERANDS", 0))
