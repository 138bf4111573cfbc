"""Launchers called as from the command line, in this process."""

import sys
from types import ModuleType

import pytest
from absl import flags

from launch import errors, startup


def run(monkeypatch: pytest.MonkeyPatch, launcher: ModuleType, *arguments: str) -> None:
    """Parses the arguments and calls the launcher's main; its flags are gone afterwards."""
    argv = [launcher.__name__, *arguments]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(startup, "configure", lambda: None)  # the settings of the tests stay
    before = set(flags.FLAGS)
    try:
        launcher.define_flags()
        launcher.main(errors.parse_flags(argv, operands=getattr(launcher, "OPERANDS", 0)))
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], launcher: ModuleType, *arguments: str
) -> str:
    """Runs a launcher that has to refuse its input; returns the one message it gives."""
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, launcher, *arguments)
    shown = capsys.readouterr()
    assert caught.value.code == 2
    assert shown.err.startswith("error: ")
    assert shown.err.count("error:") == 1
    assert "Traceback" not in shown.err
    return shown.err.removeprefix("error: ").rstrip("\n")
