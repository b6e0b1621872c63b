"""The chat at a terminal: reading messages, showing answers as they come."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import click

from edgellm.cli.chat_commands import run_command
from edgellm.cli.chat_session import ChatSession
from edgellm.cli.console import cancel_on_interrupt, clean, number, one_line
from edgellm.cli.results import speed_line
from edgellm.cli.wrap import WordWrapper
from edgellm.errors import EdgeLLMError
from edgellm.results import Step

QUOTES = '"""'


class Editor(Protocol):
    """Where messages come from."""

    def read(self, prefill: str = "") -> str:
        """One message, to begin with ``prefill``; EOFError at the end, KeyboardInterrupt when given up."""


class TerminalChat:
    """The loop of a chat at a terminal.

    Attributes:
        session: the conversation.
        prefill: what the next message begins with.
        leaving: set by /exit.
        known_files: files this chat has saved or loaded, which /save may overwrite.
    """

    def __init__(self, session: ChatSession, editor: Editor, wrap: bool = False) -> None:
        self.session = session
        self.prefill = ""
        self.leaving = False
        self.known_files: set[Path] = set()
        self._editor = editor
        self._wrap = wrap
        self._interrupted = False

    def run(self) -> None:
        """Read and answer until the user leaves."""
        while not self.leaving:
            try:
                prefill, self.prefill = self.prefill, ""
                text = self._editor.read(prefill)
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:
                if self._interrupted:
                    self.say("Ctrl-D or /exit leaves")
                self._interrupted = True
                continue
            self._interrupted = False
            try:
                self.handle(text)
            except EdgeLLMError as error:
                self.say(f"error: {one_line(str(error))}")
            click.echo()

    def handle(self, text: str) -> None:
        """Run a command, or send a message and show its answer.

        Raises:
            EdgeLLMError: it cannot be done; the conversation is as before.
        """
        if text.startswith("/"):
            run_command(self, text)
        elif text.strip():
            self.send(text)

    def send(self, text: str) -> None:
        """Send a message and show the answer."""
        with cancel_on_interrupt() as cancel:
            self._show(self.session.send(text, cancel))

    def regenerate(self) -> None:
        """Show another answer to the last message."""
        with cancel_on_interrupt() as cancel:
            self._show(self.session.regenerate(cancel))

    def say(self, text: str) -> None:
        """Tell the user something beside the conversation."""
        click.secho(clean(text), dim=True)

    def _show(self, steps: Iterator[Step]) -> None:
        finish = None
        wrapper = WordWrapper(lambda: shutil.get_terminal_size().columns)
        for step in steps:
            text = clean(step.text)
            click.echo(wrapper.push(text) if self._wrap else text, nl=False)
            finish = step.finish_reason
        click.echo(wrapper.flush())
        if finish == "cancelled":
            kept = self.session.messages[-1:] and self.session.messages[-1]["role"] == "assistant"
            self.say("stopped; " + ("what there is stays in the conversation" if kept else "nothing was said yet"))
        self._tell_state(finish)

    def _tell_state(self, finish: str | None) -> None:
        """Speed, how full the context is, and a warning before it runs out."""
        session = self.session
        length = session.model.context_length
        if session.timings is not None:
            context = f"context {number(session.context_used)} / {number(length)}"
            self.say(f"[{speed_line(session.timings)}; {context}]")
        if finish == "length" and session.context_used >= length - 1:
            self.say("the context is full: the answer broke off; /undo or /clear make room")
        elif finish == "length":
            self.say("max_tokens is reached; /set max_tokens none lifts it")
        if session.nearly_full and finish != "length":
            share = 100 * session.context_used // length
            self.say(f"the context is {share} % full; /clear begins anew, /undo takes the last exchange back")


def needs_more(text: str) -> bool:
    '''Whether Enter begins a new line: inside """ quotes, or after a backslash.'''
    quoted = text.lstrip().startswith(QUOTES) and text.count(QUOTES) % 2 == 1
    return quoted or text.endswith("\\")


def finished(text: str) -> str:
    """The message that was meant: without the quotes around it, or the backslashes that continued lines."""
    stripped = text.strip()
    if stripped.startswith(QUOTES) and stripped.endswith(QUOTES) and len(stripped) >= 2 * len(QUOTES):
        return stripped[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text.replace("\\\n", "\n")


class PlainEditor:
    """Lines from standard input, for terminals without cursor control; prompts go to stderr."""

    def read(self, prefill: str = "") -> str:
        lines: list[str] = [prefill] if prefill else []
        while True:
            click.echo("... " if lines else ">>> ", nl=False, err=True)
            lines.append(input())
            text = "\n".join(lines)
            if not needs_more(text):
                return finished(text)


def open_editor(full: bool) -> Editor:
    """The best editor there is: with history, multi-line editing and completion if ``full``."""
    if full:
        from edgellm.cli.chat_editor import FullEditor

        return FullEditor()
    return PlainEditor()
