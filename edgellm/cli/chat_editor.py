"""The line editor of the chat: history that lasts, several lines, paste as one message, completion."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output

from edgellm.cli.chat_commands import COMMANDS, FILE_COMMANDS
from edgellm.cli.chat_terminal import finished, needs_more
from edgellm.cli.settings import setting_names
from edgellm.folders import history_file


class FullEditor:
    """Reads messages with prompt_toolkit; ``input`` and ``output`` are given in tests only."""

    def __init__(self, input: Input | None = None, output: Output | None = None) -> None:
        self._session: PromptSession[str] = PromptSession(
            message=">>> ",
            prompt_continuation="... ",
            multiline=True,
            history=open_history(history_file()),
            completer=ChatCompleter(),
            complete_while_typing=False,
            key_bindings=key_bindings(),
            input=input,
            output=output,
        )

    def read(self, prefill: str = "") -> str:
        """One message; EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C."""
        return finished(self._session.prompt(default=prefill))


def key_bindings() -> KeyBindings:
    """Enter sends unless the message is unfinished; Alt-Enter and Ctrl-J always begin a new line."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if needs_more(buffer.document.text_before_cursor) and buffer.document.is_cursor_at_the_end:
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    @bindings.add("c-j")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


class ChatCompleter(Completer):
    """Completes commands, names of settings, and paths for the commands that take a file."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        command, space, rest = text.partition(" ")
        if not space:
            yield from _beginning_with(command, list(COMMANDS))
        elif command in FILE_COMMANDS:
            yield from self._paths.get_completions(Document(rest, len(rest)), complete_event)
        elif command == "/set" and " " not in rest:
            yield from _beginning_with(rest, setting_names())


def _beginning_with(text: str, words: list[str]) -> Iterable[Completion]:
    for word in words:
        if word.startswith(text):
            yield Completion(word, start_position=-len(text))


def open_history(path: Path) -> History:
    """The history in a file that only the user can read; in memory where none can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
