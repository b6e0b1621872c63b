"""A side of a benchmark: a child process that is asked, by JSON lines over pipes, to prepare and run measurements.

Requests are objects with a key "do":

- ``open``: load "model" with "threads" (null: the default), "cache_type", "backend"; answers what there is to know.
- ``prepare``: one test, "kind" ("prefill" or "decode"), "tokens", "depth", "batch": fills the cache to the depth and
  runs once untimed; answers "variants", the names of the ways the side can run it.
- ``run``: once, as "variant"; answers "seconds".
- ``generate``: in a fresh process: load, continue "prompt" by "tokens" tokens; answers "load_seconds",
  "peak_memory_bytes", and before them an event when the first token is there.

An answer is an object; one with "error" tells in a line what went wrong; one with "event" comes ahead of the answer.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import IO, Any

from edgellm.errors import EdgeLLMError

SECONDS_TO_ANSWER = 1800.0
"""The longest that one measurement, or filling a cache, may take."""
_LONGEST_LINE = 1 << 20

Event = Callable[[dict[str, Any]], None]


class BenchProcess:
    """A running side. Use as a context manager: the process ends with it.

    Attributes:
        name: how messages call it.
        started: ``time.perf_counter()`` just before the process was started.
    """

    def __init__(self, name: str, command: Sequence[str], on_event: Event | None = None) -> None:
        """Start ``command``.

        Raises:
            EdgeLLMError: it cannot be started.
        """
        self.name = name
        self._on_event = on_event
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self.started = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, encoding="utf-8"
            )
        except OSError as error:
            self._errors.close()
            raise EdgeLLMError(f"cannot start {command[0]}: {error.strerror}") from error
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def identity(self) -> int:
        """The process's number."""
        return self._process.pid

    def ask(self, request: dict[str, Any], seconds: float = SECONDS_TO_ANSWER) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            EdgeLLMError: the side answers with an error, ends, says something that is no answer, or nothing in time.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: reading tells how
        deadline = time.perf_counter() + seconds
        while True:
            answer = self._next(deadline)
            if "error" in answer:
                raise EdgeLLMError(f"{self.name}: {_one_line(str(answer['error']))}")
            if "event" not in answer:
                return answer
            if self._on_event is not None:
                self._on_event(answer)

    def ask_seconds(self, request: dict[str, Any]) -> float:
        """Send a request whose answer is a duration."""
        return number_of(self.ask(request), "seconds", self.name)

    def _next(self, deadline: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=max(0.0, deadline - time.perf_counter()))
        except queue.Empty:
            raise EdgeLLMError(f"{self.name} did not answer in time", "use shorter tests") from None
        if line is None:
            raise EdgeLLMError(f"{self.name} {self._how_it_ended()}")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise EdgeLLMError(f"{self.name} said {_one_line(line)[:80]!r} where an answer in JSON was expected")
        return answer

    def _read(self) -> None:
        output = self._process.stdout
        assert output is not None
        with contextlib.suppress(OSError, ValueError):  # closed while reading; not UTF-8
            while line := output.readline(_LONGEST_LINE):
                self._lines.put(line)
        self._lines.put(None)

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4096))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"{how}: {_one_line(lines[-1])}" if lines else how

    def close(self) -> None:
        """End the process: it gets a moment to end by itself."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
        self._errors.close()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> BenchProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.kill()
        self.close()


def number_of(answer: dict[str, Any], key: str, name: str) -> float:
    """A positive number in an answer.

    Raises:
        EdgeLLMError: there is none.
    """
    value = answer.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise EdgeLLMError(f"{name} answered {_one_line(repr(value))[:40]} for {key} where a number was expected")
    return float(value)


def _one_line(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
