"""HTTP for large files: resumable, checked, stall-proof. Built on urllib, so proxies and SSL_CERT_FILE are honoured."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.errors import DownloadError
from edgellm.hub.files import Progress, format_bytes, require_space, sha256_of, write_atomically

log = logging.getLogger(__name__)

_CHUNK = 1 << 18
_LARGEST_DOCUMENT = 64 << 20
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server and how often to ask again.

    Attributes:
        answer: seconds until the answer's head must have come.
        stall: seconds without data, or with hardly any, until the connection is given up.
        attempts: in a row without any data.
        attempts_with_data: in a row once a download has got some data.
        backoff: seconds before the second attempt; doubles with each one up to ``longest_backoff``.
        slowest: bytes a second; less than this over the whole time ``stall`` is a stall.
    """

    answer: float = 20.0
    stall: float = 30.0
    attempts: int = 6
    attempts_with_data: int = 6
    backoff: float = 1.0
    longest_backoff: float = 30.0
    slowest: int = 1024

    def pause(self, attempt: int) -> float:
        """Seconds to wait before attempt number ``attempt`` (the second is 2)."""
        return min(self.longest_backoff, self.backoff * 2.0 ** (attempt - 2))


EAGER = Patience(answer=4.0, attempts=1)
"""For a source that has another one behind it: no answer within four seconds means go on to the next."""


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch.

    Attributes:
        size: in bytes, when known beforehand; the server must agree.
        sha256: in hexadecimal, when known.
        headers: sent to this host only, never to one it redirects to.
    """

    url: str
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class _RetryError(Exception):
    """Something that may pass: a stall, a broken connection, a busy server."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


_PASSING_ERRORS: tuple[type[Exception], ...] = (
    _RetryError,
    urllib.error.URLError,
    ConnectionError,
    TimeoutError,
    http.client.HTTPException,
    ssl.SSLError,
)


class _RestartError(Exception):
    """What has been fetched so far belongs to another version of the file."""


class _CarefulRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects without giving an authorization to another host or going from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and urllib.parse.urlsplit(newurl).scheme != "https":
            raise DownloadError(f"{req.full_url} redirects to an unencrypted address, which edgellm does not follow")
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        authorization = req.unredirected_hdrs.get("Authorization")
        if following is not None and following.host == req.host and authorization:
            following.add_unredirected_header("Authorization", authorization)
        return following


def read_document(url: str, headers: Mapping[str, str], patience: Patience) -> tuple[bytes, str, str]:
    """Fetch a small document whole.

    Returns:
        Its bytes, its content type, and the address it came from in the end.

    Raises:
        DownloadError: no answer, an error answer (``status`` holds its number), or more than 64 MB.
    """
    for attempt in range(1, patience.attempts + 1):
        try:
            with _open(url, headers, patience) as response:
                content = response.read(_LARGEST_DOCUMENT + 1)
                if len(content) > _LARGEST_DOCUMENT:
                    raise DownloadError(f"{url} answered with more than {format_bytes(_LARGEST_DOCUMENT)}")
                return content, response.headers.get("Content-Type", ""), response.url
        except _PASSING_ERRORS as error:
            if attempt == patience.attempts:
                raise DownloadError(f"{_host(url)}: {_reason(error)}", "check the network connection") from error
            _wait(error, attempt + 1, patience.attempts, patience)
    raise AssertionError("a patience of no attempts")


def download(remote: RemoteFile, destination: Path, progress: Progress | None, patience: Patience) -> None:
    """Fetch a file to ``destination``, resuming what an earlier call left in ``destination``.part.

    The file appears under its name only when it is whole, has the right size and, when one is known, the
    right SHA-256. When interrupted, the part stays for the next time.

    Raises:
        DownloadError: the server cannot be reached, refuses, or sends something else; or the disk is full.
    """
    part = _Part(destination)
    restarts = 0
    attempt = 1
    moving = False
    while True:
        before = part.size
        try:
            _fetch(remote, part, progress, patience)
            _verify(remote, part, progress)
            return part.finish()
        except _RestartError as restart:
            part.discard()
            restarts += 1
            if restarts > 1:
                raise DownloadError(f"{remote.url}: {restart}", "try again later, or from another source") from restart
            log.warning("%s; starting %s again", restart, destination.name)
        except _PASSING_ERRORS as error:
            # Progress since the last failure earns fresh patience: a long download on a bad line gets through.
            attempt = 2 if part.size >= before + _CHUNK else attempt + 1
            moving = moving or part.size > before
            allowed = patience.attempts_with_data if moving else patience.attempts
            if attempt > allowed:
                raise DownloadError(f"{_host(remote.url)}: {_reason(error)}", _resume_hint(part)) from error
            _wait(error, attempt, allowed, patience)


def _resume_hint(part: _Part) -> str:
    if part.size:
        return f"the {format_bytes(part.size)} fetched so far are kept; run the same command to go on"
    return "check the network connection"


class _Part:
    """The unfinished file, and a note beside it of which version of the remote file it belongs to."""

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.path = destination.with_name(destination.name + ".part")
        self._note = destination.with_name(destination.name + ".part.json")

    @property
    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def version(self) -> dict[str, Any]:
        """What is noted of the version: ``etag``, ``size`` and ``sha256``, each a value or None."""
        try:
            note = json.loads(self._note.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def note_version(self, etag: str | None, size: int, sha256: str | None) -> None:
        write_atomically(self._note, json.dumps({"etag": etag, "size": size, "sha256": sha256}))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def finish(self) -> None:
        self.path.replace(self.destination)
        self._note.unlink(missing_ok=True)


def _fetch(remote: RemoteFile, part: _Part, progress: Progress | None, patience: Patience) -> None:
    """One attempt to bring the part to the file's full size."""
    part.path.parent.mkdir(parents=True, exist_ok=True)
    start = _resumable(remote, part)
    if start and start == part.version().get("size"):
        return
    headers = dict(remote.headers)
    if start:
        headers["Range"] = f"bytes={start}-"
        if etag := part.version().get("etag"):
            headers["If-Range"] = str(etag)
    with _open_range(remote.url, headers, patience) as response:
        start, total = _extent(response, start)
        if remote.size is not None and total != remote.size:
            raise DownloadError(
                f"the file at {_host(remote.url)} has {total} bytes where {remote.size} were expected",
                "it has changed there; try again later, or another source",
            )
        noted = part.version().get("size")
        if start and noted is not None and noted != total:
            raise _RestartError("the file has changed on the server since the download began")
        require_space(part.path.parent, total - start)
        if not start:
            part.discard()
        part.note_version(_strong_etag(response), total, remote.sha256)
        _copy(response, part, start, total, progress, patience)


def _open_range(url: str, headers: Mapping[str, str], patience: Patience) -> http.client.HTTPResponse:
    try:
        return _open(url, headers, patience)
    except HTTPStatusError as error:
        if error.status == 416 and "Range" in headers:
            raise _RestartError("the file has become shorter than what was downloaded of it") from error
        raise


def _resumable(remote: RemoteFile, part: _Part) -> int:
    """How many bytes of the part can be built upon: all or none."""
    if not part.size:
        return 0
    version = part.version()
    same = version.get("sha256") == remote.sha256 if remote.sha256 else bool(version.get("etag"))
    size = version.get("size")
    if not same or not isinstance(size, int) or part.size > size or remote.size not in (None, size):
        part.discard()
        return 0
    return part.size


def _extent(response: http.client.HTTPResponse, asked: int) -> tuple[int, int]:
    """Where the answer's bytes begin in the file, and the size of the whole file."""
    if response.status == 206:
        match = re.match(r"bytes (\d+)-(\d+)/(\d+)\Z", response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != asked:
            raise _RestartError("the server resumed at another place than was asked for")
        return asked, int(match[3])
    length = response.headers.get("Content-Length", "")
    if not length.isdecimal():
        raise DownloadError(f"{_host(response.url)} does not tell the size of the file", "try another source")
    return 0, int(length)


def _copy(
    response: http.client.HTTPResponse,
    part: _Part,
    start: int,
    total: int,
    progress: Progress | None,
    patience: Patience,
) -> None:
    done = start
    window_start, window_bytes = time.monotonic(), 0
    with part.path.open("ab" if start else "wb") as file:
        while done < total:
            if progress:
                progress("download", done, total)
            chunk = response.read1(min(_CHUNK, total - done))
            if not chunk:
                raise _RetryError(f"the connection ended at {format_bytes(done)} of {format_bytes(total)}")
            _write(file, chunk)
            done += len(chunk)
            window_bytes += len(chunk)
            elapsed = time.monotonic() - window_start
            if elapsed > patience.stall:
                if window_bytes < patience.slowest * elapsed:
                    raise _RetryError(f"stalled at {format_bytes(done)} of {format_bytes(total)}")
                window_start, window_bytes = time.monotonic(), 0
        os.fsync(file.fileno())
    if progress:
        progress("download", total, total)


def _write(file: Any, chunk: bytes) -> None:
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise DownloadError(f"cannot write {file.name}: {error.strerror}") from error


def _verify(remote: RemoteFile, part: _Part, progress: Progress | None) -> None:
    if remote.sha256 is None:
        return
    found = sha256_of(part.path, progress)
    if found != remote.sha256:
        raise _RestartError(f"what was downloaded has SHA-256 {found[:12]}…, expected {remote.sha256[:12]}…")


def _open(url: str, headers: Mapping[str, str], patience: Patience) -> http.client.HTTPResponse:
    """Ask for a URL; give up when the answer has not begun in time, wherever it hangs (name look-up included)."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url} is not an http or https address")
    request = urllib.request.Request(url)
    request.add_header("User-Agent", "edgellm")
    request.add_header("Accept-Encoding", "identity")
    for name, value in headers.items():
        if name == "Authorization":
            request.add_unredirected_header(name, value)
        else:
            request.add_header(name, value)
    box: dict[str, Any] = {}
    abandoned = threading.Event()

    def ask() -> None:
        try:
            response = urllib.request.build_opener(_CarefulRedirects).open(request, timeout=patience.stall)
            if abandoned.is_set():
                response.close()
            box["response"] = response
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=ask, daemon=True, name="edgellm-connect")
    thread.start()
    try:
        thread.join(patience.answer)
    finally:
        if thread.is_alive():
            abandoned.set()
    if "error" in box:
        raise _understood(box["error"])
    if "response" not in box:
        raise _RetryError(f"no answer within {patience.answer:g} s")
    response: http.client.HTTPResponse = box["response"]
    return response


def _understood(error: BaseException) -> BaseException:
    """An error of urllib as one of ours: to be tried again, or final."""
    if isinstance(error, urllib.error.HTTPError):
        reason = f"HTTP status {error.code} {error.reason}"
        error.close()
        if error.code in _TRANSIENT:
            return _RetryError(reason, _retry_after(error.headers.get("Retry-After", "")))
        return HTTPStatusError(f"{error.url}: {reason}", error.code)
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, ssl.SSLCertVerificationError):
        return DownloadError(
            f"the certificate of the server is not trusted: {error.reason.verify_message}",
            "if your network re-signs traffic, set SSL_CERT_FILE to its certificate",
        )
    return error


class HTTPStatusError(DownloadError):
    """The server answered with an error; ``status`` is its number."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _retry_after(value: str) -> float | None:
    return min(float(value), 60.0) if value.isdecimal() else None


def _strong_etag(response: http.client.HTTPResponse) -> str | None:
    """The answer's entity tag if it vouches for every byte (RFC 9110 section 8.8.1), as resuming needs."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else None


def _wait(error: BaseException, attempt: int, allowed: int, patience: Patience) -> None:
    asked = error.wait if isinstance(error, _RetryError) else None
    seconds = asked if asked is not None else patience.pause(attempt)
    log.warning("%s; trying again in %.0f s (%d of %d)", _reason(error), seconds, attempt, allowed)
    time.sleep(seconds)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        inner = error.reason
        return _reason(inner) if isinstance(inner, BaseException) else str(inner)
    if isinstance(error, TimeoutError):
        return "no data arrived in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc.rpartition("@")[2]
