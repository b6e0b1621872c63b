"""A web server on this machine for download tests: serves byte strings, and misbehaves on request."""

from __future__ import annotations

import http.server
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """How to answer one request for a file instead of simply serving it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None  # None: what is being served
    cut_at: int | None = None  # close the connection after this many bytes of the body
    stall_at: int | None = None  # send nothing more after this many bytes, for stall_seconds
    stall_seconds: float = 3.0
    before: Callable[[], None] | None = None  # called before anything is sent
    ignore_range: bool = False
    omit_length: bool = False


@dataclass
class Request:
    """What a client asked for."""

    path: str
    headers: dict[str, str]


class FileServer:
    """Files by path, the requests that came, and a queue of special answers for each path."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        self.etags: dict[str, str] = {}
        self.answers: dict[str, deque[Answer]] = defaultdict(deque)
        self.requests: list[Request] = []
        self.url = ""

    def next_answers(self, path: str, *answers: Answer) -> None:
        self.answers[path].extend(answers)

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of every request for a path."""
        return [request.headers.get("Range") for request in self.requests if request.path == path]


@contextmanager
def running_server() -> Iterator[FileServer]:
    files = FileServer()

    class Handler(_Handler):
        content = files

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    files.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    content: FileServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.content.requests.append(Request(self.path, dict(self.headers.items())))
        path = self.path.partition("?")[0]
        queue = self.content.answers[path]
        answer = queue.popleft() if queue else Answer()
        if answer.before:
            answer.before()
        body = answer.body if answer.body is not None else self.content.files.get(path)
        if body is None:
            self.send_error(404)
            return
        status, extra, body = self._ranged(path, answer, body)
        self.send_response(status)
        for name, value in {**extra, **answer.headers}.items():
            self.send_header(name, value)
        if not answer.omit_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._send(body, answer)

    def _ranged(self, path: str, answer: Answer, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body when the Range and If-Range headers are honoured."""
        headers = {"Content-Type": self.content.types.get(path, "application/octet-stream")}
        etag = self.content.etags.get(path)
        if etag:
            headers["ETag"] = etag
        match = re.match(r"bytes=(\d+)-\Z", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if not match or answer.ignore_range or answer.status != 200 or condition not in (None, etag):
            return answer.status, headers, body
        start = int(match[1])
        if start >= len(body):
            return 416, headers, b""
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return 206, headers, body[start:]

    def _send(self, body: bytes, answer: Answer) -> None:
        stop = min(limit for limit in (answer.cut_at, answer.stall_at, len(body)) if limit is not None)
        try:
            self.wfile.write(body[:stop])
            self.wfile.flush()
            if answer.stall_at is not None:
                time.sleep(answer.stall_seconds)
        except (BrokenPipeError, ConnectionResetError):
            pass
        self.close_connection = True
