"""Hugging Face: what a repository holds, and where to fetch it."""

from __future__ import annotations

import json
import os
import urllib.parse
from dataclasses import dataclass

from edgellm.errors import DownloadError, ModelNotFoundError
from edgellm.hub.aliases import HuggingFaceFile
from edgellm.hub.transfer import HTTPStatusError, Patience, RemoteFile, read_document

DEFAULT_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository; ``sha256`` is known for large files (LFS), which all models are."""

    path: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    """The model files of a repository at one commit."""

    repository: str
    revision: str
    files: tuple[HubFile, ...]


def endpoint() -> str:
    """The hub's address: ``$HF_ENDPOINT`` or the public one."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def list_repository(repository: str, patience: Patience) -> Listing:
    """Ask the hub what a repository holds.

    Raises:
        ModelNotFoundError: there is no such repository, or it is not open to everyone.
        DownloadError: the hub cannot be reached or does not make sense.
    """
    url = f"{endpoint()}/api/models/{repository}?blobs=true"
    try:
        content, _, _ = read_document(url, authorization(), patience)
    except HTTPStatusError as error:
        raise _refused(repository, error) from error
    try:
        answer = json.loads(content)
        files = tuple(_hub_file(entry) for entry in answer["siblings"])
        return Listing(repository, str(answer.get("sha") or "main"), files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"{endpoint()} sent a malformed file list of {repository}", "try again later") from error


def _hub_file(entry: dict[str, object]) -> HubFile:
    lfs = entry.get("lfs")
    details = lfs if isinstance(lfs, dict) else {}
    size = details.get("size", entry.get("size"))
    sha256 = details.get("sha256")
    return HubFile(
        str(entry["rfilename"]), size if isinstance(size, int) else None, sha256 if isinstance(sha256, str) else None
    )


def _refused(repository: str, error: HTTPStatusError) -> Exception:
    if error.status in (401, 403):
        if os.environ.get("HF_TOKEN"):
            hint = f"accept its terms at {endpoint()}/{repository}, or check that HF_TOKEN may read it"
        else:
            hint = f"if it is gated, accept its terms at {endpoint()}/{repository} and set HF_TOKEN"
        return ModelNotFoundError(f"Hugging Face does not give access to {repository}", hint)
    if error.status == 404:
        return ModelNotFoundError(f"there is no repository {repository} on Hugging Face", "check the name")
    return error


def authorization() -> dict[str, str]:
    """The header that carries ``$HF_TOKEN``, if there is one."""
    token = os.environ.get("HF_TOKEN", "").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def remote_file(file: HuggingFaceFile, size: int | None, sha256: str | None) -> RemoteFile:
    """Where a file of a repository is fetched."""
    path = urllib.parse.quote(f"{file.repository}/resolve/{file.revision}/{file.filename}")
    return RemoteFile(f"{endpoint()}/{path}", size, sha256, authorization())
