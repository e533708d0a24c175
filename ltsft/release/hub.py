"""Pushing to the Hugging Face hub: an SFT folder, or a composition that was exported as an ordinary folder."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
from huggingface_hub import HfApi

from ltsft.composition import COMPOSITION_FILE
from ltsft.errors import ConfigError, ServiceError, SFTFileError
from ltsft.sft import MANIFEST_FILE, load_sft

__all__ = ["push_folder"]

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95}")


def push_folder(folder: str | Path, repository: str, *, is_private: bool = True, endpoint: str | None = None) -> str:
    """Push an SFT or an exported composition; the repository is made where it is missing.

    The token is the one that `huggingface_hub` finds (``HF_TOKEN``, or what ``hf auth login`` stored).

    Args:
        folder: an SFT folder, which is checked whole first, or one written by `export_composition`.
        repository: OWNER/NAME.
        is_private: whether a new repository is private.
        endpoint: of the hub; the one of the environment without it.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: the repository's name is not OWNER/NAME.
        SFTFileError: the folder is neither an SFT nor an export.
        ServiceError: the hub refused or could not be reached.
    """
    folder = Path(folder)
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"a repository is OWNER/NAME, got {repository!r}")
    if (folder / MANIFEST_FILE).is_file():
        what = load_sft(folder).title.partition(" (")[0]
    elif (folder / COMPOSITION_FILE).is_file():
        what = "composition"
    else:
        raise SFTFileError(f"{folder} is neither an SFT folder nor an exported composition; nothing was pushed")
    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(repository, private=is_private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Add {what}")
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:  # the last two from uploads of large files
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ServiceError(f"the hub could not take {repository}: {first}; check HF_TOKEN and its rights") from error
    return str(commit.commit_url)
