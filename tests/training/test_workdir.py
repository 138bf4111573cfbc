import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import filelock
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.assets import write_atomically
from edgesafe_jax.errors import EdgesafeError, StorageError
from edgesafe_jax.training import (
    WorkdirError,
    check_folder,
    check_output,
    check_whole,
    close_workdir,
    is_whole,
    open_workdir,
    write_checked,
    write_json,
    write_summary,
)
from edgesafe_jax.training.workdir import read_config, to_json, write_text

CONFIG = {"objective": "tv", "optimizer": {"rate": 1e-3, "steps": 100}, "layers": (1, 2), "debug": False}


def test_a_new_directory_gets_the_configuration(tmp_path):
    workdir = open_workdir(tmp_path / "a" / "b", CONFIG)
    assert workdir == tmp_path / "a" / "b"
    assert read_config(workdir) == {**CONFIG, "layers": [1, 2]}
    assert sorted(path.name for path in workdir.iterdir()) == [".lock", ".owner.json", "config.json"]


def test_the_same_configuration_resumes(tmp_path):
    open_workdir(tmp_path, CONFIG)
    before = (tmp_path / "config.json").stat().st_mtime_ns
    open_workdir(tmp_path, dict(reversed(CONFIG.items())))
    assert (tmp_path / "config.json").stat().st_mtime_ns == before


def test_another_configuration_is_refused_with_every_difference(tmp_path):
    open_workdir(tmp_path, CONFIG)
    other = {"objective": "kl", "optimizer": {"rate": 1e-3, "steps": 200}, "layers": (1, 2), "seed": 1, "debug": 0}
    with pytest.raises(WorkdirError) as refused:
        open_workdir(tmp_path, other)
    assert str(refused.value).splitlines() == [
        f"{tmp_path} holds a run with another configuration:",
        "  debug: false there, 0 now",
        '  objective: "tv" there, "kl" now',
        "  optimizer.steps: 100 there, 200 now",
        "  seed: (missing) there, 1 now",
        "give another --workdir, or delete this one to start it afresh",
    ]
    assert read_config(tmp_path)["objective"] == "tv"


def test_ignored_keys_may_differ_and_the_newest_are_kept(tmp_path):
    open_workdir(tmp_path, CONFIG | {"log": {"every": 10}, "logging": 1})
    changed = CONFIG | {"log": {"every": 20, "board": True}, "logging": 1}
    open_workdir(tmp_path, changed, ignore=["log"])
    assert read_config(tmp_path)["log"] == {"every": 20, "board": True}
    with pytest.raises(WorkdirError, match="logging: 1 there, 2 now"):
        open_workdir(tmp_path, changed | {"logging": 2}, ignore=["log"])


def test_directories_that_cannot_be_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="is a file"):
        open_workdir(tmp_path / "file", CONFIG)
    (tmp_path / "lost" / "checkpoints").mkdir(parents=True)
    with pytest.raises(WorkdirError, match=r"checkpoints but no config\.json"):
        open_workdir(tmp_path / "lost", CONFIG)
    (tmp_path / "torn").mkdir()
    for content in ('{"objective": ', "[1]"):
        (tmp_path / "torn" / "config.json").write_text(content)
        with pytest.raises(WorkdirError, match=r"config\.json.*delete it"):
            open_workdir(tmp_path / "torn", CONFIG)
    with pytest.raises(WorkdirError, match="is this a work directory"):
        read_config(tmp_path / "nothing")


def start_other_process(workdir: Path) -> subprocess.Popen:
    """A process that opens a work directory, says so or why not, and then waits."""
    program = (
        "import sys, time\n"
        "from edgesafe_jax.training import WorkdirError, open_workdir\n"
        "try:\n    open_workdir(sys.argv[1], {'seed': 0})\nexcept WorkdirError as error:\n    print(error)\n"
        "else:\n    print('open', flush=True)\n    time.sleep(300)\n"
    )
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", program, str(workdir)], cwd=root, stdout=subprocess.PIPE, text=True)


def test_a_work_directory_has_one_process_until_that_ends(tmp_path):
    workdir = tmp_path / "run"
    with start_other_process(workdir) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "open\n"
            named = rf"run is in use by process {other.pid} on host {socket.gethostname()} since 20.*wait for it to end"
            with pytest.raises(WorkdirError, match=named):
                open_workdir(workdir, {"seed": 0})
            assert read_config(workdir) == {"seed": 0}  # Reading stays possible.
        finally:
            other.send_signal(signal.SIGKILL)
    # What a killed process leaves does not lock.
    assert open_workdir(workdir, {"seed": 0}) == open_workdir(str(workdir), {"seed": 0})
    with start_other_process(workdir) as other:
        assert f"process {os.getpid()} on host" in other.communicate()[0]


def test_a_work_directory_is_free_after_closing_and_after_a_refusal(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text('{"seed": 1}')
    close_workdir(open_workdir(tmp_path / "a", {"seed": 0}))
    close_workdir(tmp_path / "nowhere")
    with pytest.raises(WorkdirError, match="seed: 1 there, 0 now"):
        open_workdir(tmp_path / "b", {"seed": 0})
    for name in "ab":
        with filelock.FileLock(tmp_path / name / ".lock", timeout=0):
            pass


def test_a_lock_without_an_owner_file_is_still_a_lock(tmp_path):
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(WorkdirError, match=r"in use by another process: wait"):
        open_workdir(tmp_path, {"seed": 0})


def test_what_killed_writes_left_is_removed_at_the_next_start(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    gone, alive = killed.pid, os.getppid()
    for name in (f".a.json.{gone}.tmp", f".a.{gone}-0a1b2c3d.tmp.npz", f"report/.b.{gone}-00000000.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    kept = [f".a.{alive}-0a1b2c3d.tmp.json", ".a.tmp", "notes.12.tmp"]
    for name in kept:
        (tmp_path / name).write_text("")
    open_workdir(tmp_path, CONFIG)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*kept, ".lock", ".owner.json", "config.json"}


@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_directory_that_cannot_be_written_is_one_message(tmp_path, monkeypatch, call):
    def refuse(path, *arguments, **keywords):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path if call == "mkdir" else os, call, refuse)
        with pytest.raises(StorageError, match=r"cannot use .*: permission denied\. Give another path"):
            open_workdir(tmp_path / "run", CONFIG)


def test_a_file_in_the_place_of_a_folder_is_one_message(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(StorageError, match=r"cannot use .*/a: a part of this path is a file"):
        write_text(tmp_path / "a" / "b.txt", "")


DAMAGES = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "flipped": lambda file: file.write_bytes(file.read_bytes().replace(b"bomb", b"cake")),
    "emptied": lambda file: file.write_bytes(b""),
    "without digest": lambda file: file.with_name("teacher.json.sha256").unlink(),
    "broken digest": lambda file: file.with_name("teacher.json.sha256").write_bytes(b"\xff"),
    "empty digest": lambda file: file.with_name("teacher.json.sha256").write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_side_file_is_noticed(tmp_path, caplog, damage):
    file = tmp_path / "made" / "teacher.json"
    assert not is_whole(file)
    assert caplog.text == ""
    with pytest.raises(WorkdirError, match=r"teacher\.json is missing: start afresh"):
        check_whole(file, "start afresh")

    def write(part):
        return part.write_text('{"prompt": "how to make a bomb"}')

    assert write_checked(file, write) == file
    assert is_whole(file)
    check_whole(file, "start afresh")
    DAMAGES[damage](file)
    assert not is_whole(file)
    assert re.search(r"teacher\.json (is damaged \(.*\)|has no digest beside it): it is made again", caplog.text)
    with pytest.raises(WorkdirError, match=r"teacher\.json (is damaged|has no digest).*: start afresh"):
        check_whole(file, "start afresh")
    write_checked(file, write)
    assert is_whole(file)


def test_digests_are_those_of_sha256sum(tmp_path):
    write_checked(tmp_path / "a.txt", lambda part: part.write_text("abc"))
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a.txt\n"
    assert (tmp_path / "a.txt.sha256").read_text() == expected


def test_a_write_that_fails_leaves_the_file_and_its_digest(tmp_path):
    file = write_checked(tmp_path / "a.txt", lambda part: part.write_text("abc"))

    def fail(part):
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checked(file, fail)
    assert is_whole(file)
    assert file.read_text() == "abc"


def test_summary_replaces_a_section_and_keeps_the_others(tmp_path):
    write_summary(tmp_path, "alignment", {"loss": 0.5, "refusal/harmful": np.float32(0.25)})
    write_summary(tmp_path, "alignment_full", {"loss": jnp.float32(1.5)})
    returned = write_summary(tmp_path, "alignment", {"steps": np.int64(3), "bad": float("inf"), "ok": True})
    expected = {"alignment_full/loss": 1.5, "alignment/steps": 3, "alignment/bad": None, "alignment/ok": True}
    assert json.loads((tmp_path / "summary.json").read_text()) == expected == returned
    assert os.listdir(tmp_path) == ["summary.json"]


def test_summary_takes_numbers_under_plain_section_names_only(tmp_path):
    for section in ("", "a/b"):
        with pytest.raises(ValueError, match="expected a name"):
            write_summary(tmp_path, section, {})
    for value in ("0.5", [1.0, 2.0], np.ones(2)):
        with pytest.raises(ValueError, match="a/x: expected a number"):
            write_summary(tmp_path, "a", {"x": value})
    assert not list(tmp_path.iterdir())


def test_json_of_arrays_numbers_and_what_is_not_finite():
    value = {
        "jax": jnp.array([1.0, jnp.nan]),
        "numpy": np.float64("-inf"),
        "bf16": jnp.bfloat16(0.5),
        "path": Path("a/b"),
        1: (True, None, "x", 2**70),
    }
    assert to_json(value) == {
        "jax": [1.0, None],
        "numpy": None,
        "bf16": 0.5,
        "path": str(Path("a/b")),
        "1": [True, None, "x", 2**70],
    }
    with pytest.raises(TypeError, match="type object as JSON"):
        to_json({"x": object()})


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    file = tmp_path / "value.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})

    def full_disk(descriptor):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="no space"):
            write_text(file, "half")
    assert json.loads(file.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["value.json"]


def test_a_killed_write_leaves_nothing_behind_the_next_one(tmp_path):
    file = tmp_path / "weights.bin"
    killed = "from edgesafe_jax.assets import write_atomically; import os, sys; "
    killed += "write_atomically(sys.argv[1], lambda part: part.write_bytes(b'half') and os._exit(9))"
    subprocess.run([sys.executable, "-c", killed, str(file)], check=False)
    [left] = tmp_path.iterdir()
    running = left.with_name(re.sub(r"\.\d+-", f".{os.getpid()}-", left.name))
    running.write_bytes(b"being written")
    write_atomically(file, lambda part: part.write_bytes(b"whole"))
    assert sorted(tmp_path.iterdir()) == sorted([file, running])


@pytest.mark.parametrize("path", ["", " ", "a\0b", "file", "file/below", "x" * 300, "/proc/none"])
def test_outputs_that_cannot_be_are_noticed_before_any_work(tmp_path, path):
    (tmp_path / "file").write_text("")
    given = path if not path.strip() or path.startswith("/") else f"{tmp_path}/{path}"
    with pytest.raises(EdgesafeError):
        check_folder(given, "--workdir")
    if path != "x" * 300:
        with pytest.raises(EdgesafeError):
            check_output(given if path != "file" else str(tmp_path), "--output")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert check_folder(tmp_path / "new" / "run", "--workdir") == tmp_path / "new" / "run"
    assert check_output(tmp_path / "new" / "a.jsonl", "--output").name == "a.jsonl"
    assert not (tmp_path / "new").exists()


def test_a_disk_that_takes_no_bytes_is_noticed_before_any_work(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(StorageError, match=r"the disk is full .*Make room"):
        check_folder(tmp_path, "--workdir")
