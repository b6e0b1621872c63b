"""The slash commands of the chat."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli.console import number, one_line
from edgellm.errors import EdgeLLMError

if TYPE_CHECKING:
    from edgellm.cli.chat_terminal import TerminalChat


@dataclass(frozen=True)
class Command:
    """A slash command: how it is written and what it does."""

    name: str
    arguments: str
    summary: str
    run: Callable[[TerminalChat, str], None]


def run_command(chat: TerminalChat, text: str) -> None:
    """Run what a line that begins with a slash says.

    Raises:
        EdgeLLMError: there is no such command, or it failed.
    """
    name, _, argument = text.strip().partition(" ")
    command = COMMANDS.get(ALIASES.get(name, name))
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise EdgeLLMError(
            f"there is no command {one_line(name)}", f"{hint}/help lists them; a space in front sends it as a message"
        )
    command.run(chat, argument.strip())


def _help(chat: TerminalChat, argument: str) -> None:
    width = max(len(f"{command.name} {command.arguments}") for command in COMMANDS.values())
    for command in COMMANDS.values():
        chat.say(f"{f'{command.name} {command.arguments}':<{width}}  {command.summary}")
    chat.say('\nEnter sends; Alt-Enter, a backslash at the end, or """ around it all make several lines.')
    chat.say("A paste is one message. Up and down go through what was said; Tab completes. Ctrl-C stops an answer.")


def _set(chat: TerminalChat, argument: str) -> None:
    name, _, value = argument.partition(" ")
    name = name.replace("-", "_").removeprefix("__")
    shown = chat.session.settings.shown()
    if name in ("context", "threads", "cache_type", "backend", "offline"):
        raise EdgeLLMError(f"{name} is fixed once the model is loaded", f"start again with --{name.replace('_', '-')}")
    if not name:
        for setting, text in shown.items():
            chat.say(f"{setting} = {text}")
    elif value:
        chat.session.set(name, value.strip())
        chat.say(f"{name} = {chat.session.settings.shown()[name]}")
    elif name in shown:
        chat.say(f"{name} = {shown[name]}")
    else:
        raise EdgeLLMError(f"there is no setting {name!r}", f"there are: {', '.join(shown)}")


def _show(chat: TerminalChat, argument: str) -> None:
    session = chat.session
    if argument == "messages":
        for message in session.messages:
            chat.say(f"{message['role']}: {message['content']}")
        return
    if argument:
        raise EdgeLLMError(f"/show {argument} is unknown", "write /show or /show messages")
    chat.say(f"model = {session.model_name}")
    chat.say(f"context = {number(session.context_used)} / {number(session.model.context_length)}")
    chat.say(f"messages = {len(session.messages)}")
    chat.say(f"system = {session.system or 'none'}")
    for name, _ in session.attachments:
        chat.say(f"attached = {name}")
    _set(chat, "")


def _system(chat: TerminalChat, argument: str) -> None:
    if argument:
        chat.session.system = None if argument == "none" else argument
        chat.session.timings = None
    chat.say(f"system = {chat.session.system or 'none'}")


def _clear(chat: TerminalChat, argument: str) -> None:
    chat.session.clear()
    chat.say("forgotten" + ("; the system message stays" if chat.session.system else ""))


def _undo(chat: TerminalChat, argument: str) -> None:
    text = chat.session.undo()
    chat.say(f"taken back: {_beginning(text)}" if text is not None else "there is nothing to take back")


def _regenerate(chat: TerminalChat, argument: str) -> None:
    chat.regenerate()


def _edit(chat: TerminalChat, argument: str) -> None:
    """Change the last message: in the user's own editor if one is set, else at the next prompt."""
    text = chat.session.last_user_text
    if text is None:
        raise EdgeLLMError("there is no message to edit yet", "say something first")
    if not (os.environ.get("VISUAL") or os.environ.get("EDITOR")):
        chat.session.undo()
        chat.prefill = text
        return
    try:
        edited = click.edit(text, extension=".txt")
    except click.ClickException as error:
        raise EdgeLLMError(error.message, "set EDITOR to a program that is there") from error
    if edited is None or not edited.strip():
        chat.say("nothing changed")
        return
    chat.session.undo()
    chat.send(edited.rstrip("\n"))


def _read(chat: TerminalChat, argument: str) -> None:
    if argument == "none":
        chat.session.attachments = []
        chat.say("no file is attached")
        return
    path = _path(argument, "/read FILE")
    tokens = chat.session.attach(path)
    chat.say(f"{path.name} ({number(tokens)} tokens) goes with your next message")


def _save(chat: TerminalChat, argument: str) -> None:
    path = _path(argument, "/save FILE.json or /save FILE.md")
    if path.exists() and path.resolve() not in chat.known_files:
        raise EdgeLLMError(f"{path} exists already", "choose another name")
    chat.session.save(path)
    chat.known_files.add(path.resolve())
    chat.say(f"saved {len(chat.session.messages)} messages to {path}")


def _load(chat: TerminalChat, argument: str) -> None:
    path = _path(argument, "/load FILE.json")
    chat.session.load(path)
    chat.known_files.add(path.resolve())
    chat.say(f"loaded {len(chat.session.messages)} messages from {path}")


def _exit(chat: TerminalChat, argument: str) -> None:
    chat.leaving = True


def _path(argument: str, usage: str) -> Path:
    if len(argument) > 1 and argument[0] == argument[-1] and argument[0] in "'\"":
        argument = argument[1:-1]
    if not argument:
        raise EdgeLLMError("a file name is missing", f"write {usage}")
    return Path(argument).expanduser()


def _beginning(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= 60 else f"{line[:57]}..."


_COMMANDS = (
    Command("/help", "", "this list", _help),
    Command("/set", "[NAME [VALUE]]", "show or change settings: temperature, top_k, max_tokens, ...", _set),
    Command("/show", "[messages]", "model, context, system message, settings", _show),
    Command("/system", "[TEXT]", "show or set the system message; none removes it", _system),
    Command("/clear", "", "forget the conversation", _clear),
    Command("/undo", "", "take back the last message and its answer", _undo),
    Command("/regen", "", "another answer to the last message", _regenerate),
    Command("/edit", "", "change the last message and send it again ($EDITOR, or here)", _edit),
    Command("/read", "FILE", "send a text file with the next message; none leaves it out again", _read),
    Command("/save", "FILE", "write the conversation to FILE.json or FILE.md", _save),
    Command("/load", "FILE", "go on with a conversation from FILE.json", _load),
    Command("/exit", "", "leave (also Ctrl-D)", _exit),
)

COMMANDS = {command.name: command for command in _COMMANDS}
ALIASES = {"/quit": "/exit", "/bye": "/exit", "/?": "/help", "/regenerate": "/regen"}
FILE_COMMANDS = ("/read", "/save", "/load")
