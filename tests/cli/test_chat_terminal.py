"""The chat's loop and slash commands, with messages from a script."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_llm import FakeLLM

from edgellm.cli.chat_commands import COMMANDS
from edgellm.cli.chat_session import ChatSession
from edgellm.cli.chat_terminal import TerminalChat, finished, needs_more
from edgellm.cli.settings import GenerationSettings
from edgellm.errors import EdgeLLMError
from edgellm.sampling import Sampling


class Script:
    """An editor that types these lines; exceptions are raised. ``prefills`` records what each line began with."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self._lines: Iterator[str | type[BaseException]] = iter([*lines, EOFError])
        self.prefills: list[str] = []

    def read(self, prefill: str = "") -> str:
        self.prefills.append(prefill)
        line = next(self._lines)
        if isinstance(line, str):
            return line
        raise line


def chat_of(model: FakeLLM, *lines: str | type[BaseException]) -> tuple[TerminalChat, Script]:
    script = Script(*lines)
    return TerminalChat(ChatSession(model, GenerationSettings(Sampling()), "fake"), script), script


def shown(capsys: pytest.CaptureFixture[str], model: FakeLLM, *lines: str | type[BaseException]) -> str:
    """What a chat with these lines prints."""
    chat, _ = chat_of(model, *lines)
    chat.run()
    return capsys.readouterr().out


def test_answer_speed_and_context(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, FakeLLM("I am well.", context_length=1234), "How are you?")
    assert output.startswith("I am well.\n[")
    assert "prompt 4 tokens (2 cached), 4.0 tok/s; answer 3 tokens, 8.0 tok/s; context 7 / 1 234]" in output


def test_model_output_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, FakeLLM("a\x1b[2Jb\x9b31m\x07\rc\x08\nd\te\x00\x7f"), "hi")
    assert output.startswith("a[2Jb31mc\nd\te\n")
    assert not any(ord(character) < 32 and character not in "\n\t" for character in output)


def test_warning_before_the_context_runs_out(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, FakeLLM("one two three", "x", context_length=10), "a b c d e f", "/undo", "a")
    assert output.count("the context is 100 % full; /clear begins anew") == 1
    output = shown(capsys, FakeLLM("one two three", context_length=12), "a b c d")
    assert "full" not in output


def test_answer_that_reaches_the_end_of_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, FakeLLM("one two three four", context_length=6), "a b")
    assert output.startswith("one two three \n")
    assert "the context is full: the answer broke off; /undo or /clear make room" in output


def test_max_tokens_is_named_when_it_ends_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, FakeLLM("one two three four"), "/set max_tokens 2", "hi")
    assert "one two \n" in output
    assert "max_tokens is reached" in output


def test_message_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, FakeLLM("fine", context_length=8), "word " * 20, "hi")
    assert "error: the prompt has 21 tokens, the context holds 8; /undo or /clear make room" in output
    assert "fine" in output


def test_interrupt_keeps_the_partial_answer(capsys: pytest.CaptureFixture[str]) -> None:
    def press_control_c(index: int) -> None:
        if index == 2:
            os.kill(os.getpid(), signal.SIGINT)

    model = FakeLLM("one two three four", "again", on_step=press_control_c)
    chat, _ = chat_of(model, "count", "go on")
    chat.run()
    output = capsys.readouterr().out
    assert "one two \nstopped; what there is stays in the conversation\n" in output
    assert [message["content"] for message in chat.session.messages] == ["count", "one two ", "go on", "again"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_at_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, FakeLLM("x"), KeyboardInterrupt, "hi", KeyboardInterrupt, KeyboardInterrupt)
    assert output.count("Ctrl-D or /exit leaves") == 1


def test_empty_lines_say_nothing() -> None:
    chat, _ = chat_of(FakeLLM(), "", "  ", "\n")
    chat.run()
    assert chat.session.messages == []


def test_exit_leaves_at_once() -> None:
    for command in ("/exit", "/quit", "/bye"):
        chat, script = chat_of(FakeLLM(), command, "never read")
        chat.run()
        assert len(script.prefills) == 1


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, FakeLLM(), "/help")
    required = "/clear /edit /exit /help /load /read /regen /save /set /show /system /undo"
    assert " ".join(sorted(COMMANDS)) == required
    for command in COMMANDS.values():
        assert command.name in output
        assert command.summary in output


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, FakeLLM(), "/regn", "/etc/passwd")
    assert "error: there is no command /regn; did you mean /regen?" in output
    assert "error: there is no command /etc/passwd; /help lists them" in output


def test_a_space_in_front_sends_a_slash() -> None:
    chat, _ = chat_of(FakeLLM("x"), " /etc/passwd")
    chat.run()
    assert chat.session.messages[0]["content"] == " /etc/passwd"


def test_set(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ("/set temperature 0.5", "/set top-k", "/set colour blue", "/set top_p 7", "/set context 5", "/set", "hi")
    model = FakeLLM("x")
    output = shown(capsys, model, *lines)
    assert "temperature = 0.5\n" in output
    assert "top_k = 40\n" in output
    assert "error: there is no setting 'colour'" in output
    assert "error: top_p = " in output
    assert "error: context is fixed once the model is loaded; start again with --context" in output
    assert "dry_sequence_breakers = '\\n' : '\"' '*'\n" in output
    assert model.calls[0]["sampling"].temperature == 0.5


def test_system(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeLLM("x", "y")
    output = shown(capsys, model, "/system", "/system Be brief.", "hi", "/show", "/system none", "ho")
    assert "system = none\n" in output
    assert output.count("system = Be brief.\n") == 2
    assert model.calls[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert model.calls[1]["messages"][0] == {"role": "user", "content": "hi"}


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, FakeLLM("the answer"), "hi", "/show", "/show messages", "/show nonsense")
    assert "model = fake\ncontext = 4 / 1 000\nmessages = 2\n" in output
    assert "user: hi\nassistant: the answer\n" in output
    assert "error: /show nonsense is unknown" in output


def test_clear_undo_regenerate(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeLLM("first", "second", "third")
    output = shown(capsys, model, "/undo", "/regen", "hi", "/regen", "/undo", "/undo", "hi", "/clear", "/show messages")
    assert "there is nothing to take back" in output
    assert "error: there is no answer to repeat yet" in output
    assert "taken back: hi" in output
    assert "forgotten" in output
    assert [len(call["messages"]) for call in model.calls] == [1, 1, 1]
    assert output.rstrip().endswith("forgotten")


def test_edit_at_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeLLM("x", "y")
    chat, script = chat_of(model, "/edit", "the frist", "/edit", "the first")
    chat.run()
    assert "there is no message to edit yet" in capsys.readouterr().out
    assert script.prefills == ["", "", "", "the frist", ""]
    assert model.calls[1]["messages"] == [{"role": "user", "content": "the first"}]


@pytest.mark.skipif(sys.platform == "win32", reason="the editor here is a shell script")
def test_edit_in_an_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed s/frist/first/ "$1" > "$1.new" && mv "$1.new" "$1"\ntouch -d tomorrow "$1"\n')
    editor.chmod(0o700)
    monkeypatch.setenv("EDITOR", str(editor))
    model = FakeLLM("x", "y")
    chat, _ = chat_of(model, "the frist", "/edit")
    chat.run()
    assert model.calls[1]["messages"] == [{"role": "user", "content": "the first"}]
    monkeypatch.setenv("EDITOR", str(tmp_path / "nowhere"))
    chat, _ = chat_of(FakeLLM("x"), "hi", "/edit")
    chat.run()
    assert "error: " in capsys.readouterr().out
    assert len(chat.session.messages) == 2


def test_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a file.txt"
    path.write_text("alpha beta")
    model = FakeLLM("x")
    output = shown(capsys, model, "/read", f"/read {tmp_path / 'nowhere'}", f"/read '{path}'", "/show", "Summarise it.")
    assert "error: a file name is missing; write /read FILE" in output
    assert "error: cannot read" in output
    assert "a file.txt (2 tokens) goes with your next message" in output
    assert "attached = a file.txt" in output
    assert model.calls[0]["messages"][0]["content"] == "a file.txt:\n\nalpha beta\n\nSummarise it."


def test_read_too_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f").write_text("word " * 20)
    model = FakeLLM("x", context_length=10)
    output = shown(capsys, model, f"/read {tmp_path / 'f'}", "hi", "/read none", "hi")
    assert "error: the prompt has 23 tokens, the context holds 10; /read none leaves out the attached files" in output
    assert model.calls[1]["messages"] == [{"role": "user", "content": "hi"}]


def test_save_and_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, other = tmp_path / "chat.json", tmp_path / "other.json"
    other.write_text("mine")
    output = shown(capsys, FakeLLM("x", "y"), "hi", f"/save {path}", "ho", f"/save {path}", f"/save {other}")
    assert f"saved 2 messages to {path}" in output
    assert f"saved 4 messages to {path}" in output
    assert f"error: {other} exists already" in output
    assert other.read_text() == "mine"
    assert [message["role"] for message in json.loads(path.read_text())["messages"]] == ["user", "assistant"] * 2
    model = FakeLLM("z")
    output = shown(capsys, model, f"/load {other}", f"/load {path}", "on", f"/save {path}")
    assert f"error: {other} is not JSON" in output
    assert f"loaded 4 messages from {path}" in output
    assert f"saved 6 messages to {path}" in output
    assert len(model.calls[0]["messages"]) == 5


def test_engine_errors_are_one_line_and_the_chat_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, FakeLLM(EdgeLLMError("broken", "mend it"), "well"), "hi", "hi")
    assert "error: broken; mend it\n" in output
    assert "well\n" in output


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("hello", False),
        ("hello\\", True),
        ("hello\\\nworld", False),
        ('"""hello', True),
        ('  """hello\nworld', True),
        ('"""hello"""', False),
        ('he said """x', False),
        ("", False),
    ],
)
def test_when_a_message_goes_on(text: str, more: bool) -> None:
    assert needs_more(text) is more


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("hello", "hello"),
        ("two\\\nlines", "two\nlines"),
        ('"""\na\n  b\n"""', "a\n  b"),
        ('"""a"""', "a"),
        ('""""""', ""),
        ('"""', '"""'),
        ('say """x"""', 'say """x"""'),
        ("  indented", "  indented"),
    ],
)
def test_what_a_message_means(typed: str, meant: str) -> None:
    assert finished(typed) == meant
