"""Uploads of exported directories to a model hub, for those with a network and an account there."""

from pathlib import Path

import huggingface_hub
import huggingface_hub.errors
import huggingface_hub.utils

from edgesafe_jax.exporting.exporter import ExportError


def check_repo(repo: str) -> None:
    """Checks the name of a repository before any work.

    Raises:
      ExportError: it is no name such as `owner/name`.
    """
    try:
        huggingface_hub.utils.validate_repo_id(repo)
    except huggingface_hub.errors.HFValidationError as error:
        raise ExportError(f"--push={repo!r}: expected the name of a repository, OWNER/NAME.") from error
    if "/" not in repo:
        raise ExportError(f"--push={repo!r}: expected the name of a repository, OWNER/NAME.")


def push(path: Path, repo: str) -> str:
    """Uploads a directory; the repository is made where there is none.

    Args:
      path: the directory.
      repo: `OWNER/NAME`.

    Returns:
      The address of the upload.

    Raises:
      ExportError: no network, no account, or no right to write there. The directory stays as it is.
    """
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=path, commit_message="Export by edgesafe_jax"))
    except Exception as error:  # network, account, rights: many unrelated types
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise ExportError(
            f"{path} is written, but it could not be uploaded to {repo} ({type(error).__name__}: {first}). Log in with "
            f"`hf auth login`, then `hf upload {repo} {path}`."
        ) from error
