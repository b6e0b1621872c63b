"""What the commands share for the terminal: notices, progress bars, numbers for people, safe text, Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

import click

from edgellm.errors import EdgeLLMError
from edgellm.hub.files import format_bytes

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

# Everything of Unicode's category Cc but newline and tab: no model and no file can move the cursor or set a title.
_CONTROL = dict.fromkeys(code for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\n\t")

_STAGES = {
    "download": "downloading",
    "verify": "checking",
    "unpack": "unpacking",
    "kernels": "compiling kernels",
    "weights": "preparing weights",
    "convert": "converting",
    "merge": "merging",
    "quantize": "quantizing",
    "calibrate": "reading the text",
    "split": "splitting",
    "join": "joining",
    "hash": "hashing",
    "perplexity": "measuring perplexity",
    "divergence": "comparing",
    "choices": "answering",
    "diarize": "telling speakers apart",
    "transcribe": "transcribing",
}
_BYTE_STAGES = frozenset({"download", "verify", "unpack", "convert", "merge", "quantize", "split", "join", "hash"})
_TOKEN_STAGES = frozenset({"perplexity", "divergence"})
_PATIENCE = 0.4
"""Seconds a stage may take before a bar is drawn."""
_LINE_PATIENCE = 2.0
"""Seconds a stage may take before a line is written where no bar can be drawn."""
_LINE_EVERY = 10.0
"""Seconds between lines of progress where no bar can be drawn."""


_STDERR = 2
"""Its number to the operating system."""


def clean(text: str) -> str:
    """Text from a model or a file, without control characters: terminal escape sequences lose their effect."""
    return text.translate(_CONTROL)


def one_line(text: str) -> str:
    """Safe text on a single line."""
    return " ".join(clean(text).split())


def escaped(text: str) -> str:
    """Safe text on a single line that loses nothing: what cannot be printed is written as Python writes it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def number(value: int) -> str:
    """A count for people: 1 234."""
    return f"{value:,}".replace(",", " ")


def clock(seconds: float) -> str:
    """A length of time for people: 1:02:03, or 2:03 where there are no hours."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def notice(text: str) -> None:
    """Tell the user something beside the output: on stderr, above a progress bar if there is one."""
    if ProgressDisplay.active is not None:
        ProgressDisplay.active.say(one_line(text))
    else:
        click.echo(one_line(text), err=True)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what libraries in C write of their own accord off the screen, such as libmpg123 of every damaged frame.

    What matters of it is in our own errors and warnings. Python's ``sys.stderr`` writes where it did.
    """
    try:
        usual = sys.stderr.fileno() == _STDERR
    except (AttributeError, OSError, ValueError):  # closed, or a program's own object
        usual = False
    if not usual:
        yield
        return
    previous = sys.stderr
    previous.flush()
    with os.fdopen(os.dup(_STDERR), "w", buffering=1, encoding=previous.encoding, errors="replace") as screen:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _STDERR)
        os.close(nowhere)
        sys.stderr = screen
        try:
            yield
        finally:
            sys.stderr = previous
            os.dup2(screen.fileno(), _STDERR)


class NoticeHandler(logging.Handler):
    """Shows what the library logs as notices."""

    def emit(self, record: logging.LogRecord) -> None:
        notice(record.getMessage())


@contextmanager
def cancel_on_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one raises KeyboardInterrupt."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def interrupted(signum: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    previous = signal.signal(signal.SIGINT, interrupted)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)


class ProgressDisplay:
    """Shows how far loading is: a bar on a terminal, a line now and then elsewhere, nothing while all is quick.

    Call it with a stage's name, how much is done and how much there is.
    """

    active: ProgressDisplay | None = None

    def __init__(self) -> None:
        self._stage = ""
        self._began = 0.0
        self._began_with = 0
        self._last_line = 0.0
        self._bars: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressDisplay:
        ProgressDisplay.active = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ProgressDisplay.active = None
        self._end_stage()
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self._end_stage()
            self._stage, self._began, self._began_with, self._last_line = stage, now, done, 0.0
        bars = sys.stderr.isatty()
        if self._task is None and (now - self._began < (_PATIENCE if bars else _LINE_PATIENCE) or done >= total):
            return
        if bars:
            self._draw(done, total)
        elif now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            click.echo(f"{self._label()}: {self._amount(done, total)}", err=True)

    @property
    def drawing(self) -> bool:
        """Whether there is a bar on the screen now."""
        return self._bars is not None

    def say(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(text, highlight=False, markup=False)
        else:
            click.echo(text, err=True)

    def _label(self) -> str:
        return _STAGES.get(self._stage, self._stage)

    def _amount(self, done: int, total: int) -> str:
        rate = (done - self._began_with) / max(1e-9, time.monotonic() - self._began)
        if self._stage in _BYTE_STAGES:
            return f"{format_bytes(done)} of {format_bytes(total)}, {format_bytes(rate)}/s"
        if self._stage in _TOKEN_STAGES:
            return f"{number(done)} of {number(total)} tokens, {rate:.0f} tok/s"
        if self._stage == "transcribe":
            return f"{clock(done)} of {clock(total)}, {rate:.1f} times real time"
        return f"{number(done)} of {number(total)}"

    def _draw(self, done: int, total: int) -> None:
        if self._bars is None:
            self._bars = _new_bars()
            self._bars.start()
        if self._task is None:
            self._task = self._bars.add_task(self._label(), total=total, amount="")
        self._bars.update(self._task, completed=done, total=total, amount=self._amount(done, total))

    def _end_stage(self) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
        self._task = None


def _new_bars() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def make_folder(folder: Path) -> None:
    """Make the folder that outputs go to, so that no work is done in vain.

    Raises:
        EdgeLLMError: it cannot be made, or nothing can be written there.
    """
    hint = "choose another --output-dir"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeLLMError(f"the folder {folder} cannot be made: {error.strerror}", hint) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EdgeLLMError(f"nothing can be written to the folder {folder}", hint)
