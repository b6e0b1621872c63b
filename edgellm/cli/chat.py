"""``edgellm chat``: talk to a model, at a terminal, through a pipe, or as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli import loading
from edgellm.cli.chat_session import ChatSession
from edgellm.cli.console import cancel_on_interrupt, clean, notice, number, one_line
from edgellm.cli.options import ModelOptions, given_model, model_options, read_stdin, read_text_file
from edgellm.cli.results import timings_object, to_json
from edgellm.cli.settings import generation_options, given_settings
from edgellm.errors import EdgeLLMError
from edgellm.hub import ALIASES
from edgellm.hub.files import format_bytes

if TYPE_CHECKING:
    from edgellm.llm import LLM

INTERRUPTED = 130
_LIMITS = {"model": "what the model was made for", "request": "as asked for", "memory": "what fits the free memory"}


@click.command("chat")
@click.argument("model", default="smollm2")
@click.option("-p", "--prompt", help="Send this one message, print the answer and leave.")
@click.option("--system", help="The system message: who the model is to be.")
@click.option("--system-file", type=click.Path(path_type=Path), help="Read the system message from this file.")
@click.option("--load", "load_file", type=click.Path(path_type=Path), help="Go on with a chat that /save has written.")
@click.option("--json", "as_json", is_flag=True, help="A message a line on standard input, a JSON object a line back.")
@click.option("--wrap/--no-wrap", default=True, help="Break lines between words at a terminal.")
@generation_options
@model_options
def chat_command(
    model: str,
    prompt: str | None,
    system: str | None,
    system_file: Path | None,
    load_file: Path | None,
    as_json: bool,
    wrap: bool,
) -> None:
    """Talk to MODEL (smollm2 unless you name one).

    Text piped into standard input is one message; the answer goes to standard output.
    """
    if system is not None and system_file is not None:
        raise click.UsageError("--system and --system-file exclude each other")
    options = given_model(model)
    with loading.open_model(options) as llm:
        session = ChatSession(llm, given_settings(llm.sampling), model)
        if load_file is not None:
            session.load(load_file)
        if system is not None or system_file is not None:
            session.system = system if system_file is None else read_text_file(system_file)
        elif load_file is None and model in ALIASES:
            session.system = ALIASES[model].system
        if llm.template.warning:
            notice(llm.template.warning)
        _run(session, llm, options, prompt, as_json, wrap)


def _run(session: ChatSession, llm: LLM, options: ModelOptions, prompt: str | None, as_json: bool, wrap: bool) -> None:
    if as_json:
        lines: Iterable[bytes] = sys.stdin.buffer if prompt is None else [to_json({"content": prompt}).encode()]
        if not answer_lines(session, lines):
            raise click.exceptions.Exit(1)
    elif prompt is not None or not sys.stdin.isatty():
        answer_once(session, read_stdin().rstrip("\r\n") if prompt is None else prompt)
    else:
        from edgellm.cli.chat_terminal import TerminalChat, open_editor

        click.echo(_banner(llm, options))
        TerminalChat(session, open_editor(sys.stdout.isatty()), wrap and sys.stdout.isatty()).run()


def answer_once(session: ChatSession, text: str) -> None:
    """One message, and its answer as plain text."""
    if not text.strip():
        raise EdgeLLMError("the message is empty", "pipe a text in, or give --prompt TEXT")
    cancelled = False
    with cancel_on_interrupt() as cancel:
        for step in session.send(text, cancel):
            click.echo(clean(step.text), nl=False)
            cancelled = step.finish_reason == "cancelled"
    click.echo()
    if cancelled:
        raise click.exceptions.Exit(INTERRUPTED)


def answer_lines(session: ChatSession, lines: Iterable[bytes]) -> bool:
    """For programs: each line is a message, as JSON ({"content": ...} or a string) or as plain text.

    Each is answered by one JSON object: role, content, finish_reason, timings, context_used and context_length; or
    error. Returns whether all went well.
    """
    well = True
    for line in lines:
        if not line.strip():
            continue
        try:
            click.echo(to_json(_answer_object(session, _message_text(line))))
        except EdgeLLMError as error:
            well = False
            click.echo(to_json({"error": error.message, "hint": error.hint}))
    return well


def _message_text(line: bytes) -> str:
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise EdgeLLMError(f"the line is not UTF-8: {error.reason} at byte {error.start}") from error
    if text[:1] not in ("{", '"'):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EdgeLLMError(f"the line is not JSON: {error}", 'send {"content": "..."} or plain text') from error
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise EdgeLLMError("the object has no text named content", 'send {"content": "..."}')
    return content


def _answer_object(session: ChatSession, text: str) -> dict[str, Any]:
    with cancel_on_interrupt() as cancel:
        steps = list(session.send(text, cancel))
    if steps[-1].finish_reason == "cancelled":
        raise click.exceptions.Exit(INTERRUPTED)
    return {
        "role": "assistant",
        "content": session.messages[-1]["content"],
        "finish_reason": steps[-1].finish_reason,
        "timings": timings_object(session.timings) if session.timings else None,
        "context_used": session.context_used,
        "context_length": session.model.context_length,
    }


def _banner(llm: LLM, options: ModelOptions) -> str:
    """Model, size, context, how it is run, and where help is."""
    from importlib.metadata import version

    size = format_bytes(llm.model_path.stat().st_size)
    name = one_line(str(llm.metadata.get("general.name") or llm.graph.architecture))
    context = f"context {number(llm.context_length)} tokens ({_LIMITS.get(llm.context_limited_by, 'limited')})"
    return (
        f"edgellm {version('edgellm')}: {options.model} ({name}, {one_line(llm.model_path.name)}, {size})\n"
        f"{context}; {_executor(options)}\n"
        "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves"
    )


def _executor(options: ModelOptions) -> str:
    if options.backend == "reference":
        return "reference executor"
    from edgellm.platforms.features import physical_cores

    threads = options.threads or physical_cores()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"
