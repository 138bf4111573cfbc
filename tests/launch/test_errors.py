"""How launchers refuse: one message, exit status 2, and what is not expected is not hidden."""

import errno
import os
import re

import jax
import pytest

from edgesafe_jax.adapters import AdapterError
from edgesafe_jax.assets import AssetError
from edgesafe_jax.dynamics import CalibrationError, DynamicsError
from edgesafe_jax.guards.probe import GuardFileError
from edgesafe_jax.guards.verdicts import GuardError
from edgesafe_jax.models.generation import ContextError
from edgesafe_jax.models.loading import LoadingError
from edgesafe_jax.offline_rl import LearningError
from edgesafe_jax.parallel import MultihostError
from edgesafe_jax.training import CheckpointError, TrainingError, TrainingStopped, WorkdirError
from launch import bench, errors, export, quickstart, sweep, train
from tests.launch import cli


@pytest.mark.parametrize(
    "kind",
    [
        AdapterError,
        AssetError,
        CalibrationError,
        CheckpointError,
        ContextError,
        DynamicsError,
        GuardError,
        GuardFileError,
        LearningError,
        LoadingError,
        MultihostError,
        TrainingError,
        WorkdirError,
        errors.ConfigError,
    ],
)
def test_an_expected_error_is_a_message_and_status_2(kind, capsys):
    with pytest.raises(SystemExit) as caught, errors.reported():
        raise kind("the door is shut: open it")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: the door is shut: open it\n"


def test_an_error_of_the_program_keeps_its_traceback(capsys):
    with pytest.raises(ZeroDivisionError), errors.reported():
        1 / 0  # noqa: B018
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EISDIR, "this is a folder"),
    ],
)
def test_an_error_of_the_operating_system_is_a_message_and_status_2(capsys, number, text):
    with pytest.raises(SystemExit) as caught, errors.reported():
        raise OSError(number, os.strerror(number), "/there/report.html")
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: cannot use /there/report.html: {text}")
    assert shown.count("\n") == 1


def test_other_errors_of_the_operating_system_keep_their_traceback(capsys):
    with pytest.raises(OSError, match="Bad file"), errors.reported():
        raise OSError(errno.EBADF, "Bad file descriptor")
    assert capsys.readouterr().err == ""


def test_a_stop_by_a_signal_keeps_its_status():
    with pytest.raises(TrainingStopped) as caught, errors.reported():
        raise TrainingStopped(130)
    assert caught.value.code == 130


def test_nothing_wrong_says_nothing(capsys):
    with errors.reported():
        pass
    assert capsys.readouterr().err == ""


def test_lookup_returns_the_entry():
    assert errors.lookup({"a": 1, "b": 2}, "b", "config.what") == 2


@pytest.mark.parametrize("name", ["c", "", None, 3, ["a"]])
def test_lookup_names_the_value_and_the_choices(name):
    with pytest.raises(errors.ConfigError) as caught:
        errors.lookup({"b": 2, "a": 1}, name, "config.what")
    assert str(caught.value) == f"config.what={name!r}: expected one of a, b."


def test_an_unknown_section_is_refused_before_any_runs(monkeypatch, capsys, tmp_path):
    ran = []
    monkeypatch.setattr(quickstart, "SECTIONS", {"alignment": ran.append})
    message = cli.refused(monkeypatch, capsys, quickstart, f"--workdir={tmp_path}/q", "--only=alignment,cooking")
    assert message == "--only='cooking': expected one of alignment."
    assert ran == []
    assert not (tmp_path / "q").exists()


def test_the_sections_asked_for_run_in_their_order(monkeypatch, tmp_path):
    ran = []
    sections = {name: lambda workdir, name=name: ran.append((name, workdir)) for name in ("one", "two", "three")}
    monkeypatch.setattr(quickstart, "SECTIONS", sections)
    cli.run(monkeypatch, quickstart, f"--workdir={tmp_path}", "--only=three,one")
    assert ran == [("three", tmp_path), ("one", tmp_path)]
    ran.clear()
    cli.run(monkeypatch, quickstart, f"--workdir={tmp_path}")
    assert [name for name, _ in ran] == ["one", "two", "three"]


def test_an_unknown_suite_is_refused(monkeypatch, capsys):
    message = cli.refused(monkeypatch, capsys, bench, "--suite=cooking")
    assert message.startswith("--suite='cooking': expected one of")
    assert "align" in message


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections reads configs with it
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=README.md"], "the config is no Python file"),
        (["--config=BROKEN"], "modulo by zero"),
        (["--config=align_soft_prompt:runlocal", "--profile=FILE"], "give another --profile"),
        (["--config=align_soft_prompt:runlocal", "--config.guard=nothing"], "guard='nothing' is no file"),
        (["--config=align_soft_prompt:runlocal", "--config.seed=100000000000000000000"], "config.seed=1000"),
    ],
)
def test_a_command_line_that_cannot_work_is_one_message_and_leaves_nothing(
    monkeypatch, capsys, tmp_path, arguments, message
):
    (tmp_path / "broken.py").write_text("1 // 0\n")
    names = {"BROKEN": str(tmp_path / "broken.py"), "FILE": str(tmp_path / "broken.py")}
    given = [re.sub("BROKEN|FILE", lambda match: names[match[0]], argument) for argument in arguments]
    told = cli.refused(monkeypatch, capsys, train, f"--workdir={tmp_path}/run", *given)
    assert message in told
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections reads configs with it
@pytest.mark.parametrize(
    ("launcher", "arguments"),
    [
        (train, ["--config=align_soft_prompt:runlocal", "--workdir=FILE"]),
        (quickstart, ["--only=planning", "--workdir=FILE/below"]),
        (quickstart, ["--workdir="]),
        (bench, ["--suite=align", "--workdir=FILE"]),
        (export, ["--checkpoint=packaged", "--format=peft", "--out=FILE"]),
        (sweep, ["--config=study_alignment:runlocal", "--workdir=FILE"]),
    ],
)
def test_outputs_that_cannot_be_are_refused_before_any_work(monkeypatch, capsys, tmp_path, launcher, arguments):
    (tmp_path / "file").write_text("")
    given = [argument.replace("FILE", f"{tmp_path}/file") for argument in arguments]
    told = cli.refused(monkeypatch, capsys, launcher, *given)
    assert "give another --" in told or "expected the name of a folder" in told


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections reads configs with it
def test_tasks_of_one_process_say_so_in_several(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    told = cli.refused(monkeypatch, capsys, train, "--config=offline_rl:runlocal", f"--workdir={tmp_path}/run")
    assert "config.task='offline_rl' runs in one process and 2 were started: expected 'alignment'" in told
    assert "launch.sweep --processes=N" in told
    assert not (tmp_path / "run").exists()
