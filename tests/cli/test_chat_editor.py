"""The line editor, fed with key presses."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from edgellm.cli.chat_editor import ChatCompleter, FullEditor
from edgellm.folders import history_file


def typed(*keys: str, prefill: str = "") -> list[str]:
    """The messages that come of these key presses, one reading each."""
    messages = []
    with create_pipe_input() as pipe:
        editor = FullEditor(pipe, DummyOutput())
        for press in keys:
            pipe.send_text(press)
            messages.append(editor.read(prefill))
    return messages


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("hello\r", "hello"),
        ("two\x1b\rlines\r", "two\nlines"),
        ("two\nlines\r", "two\nlines"),
        ("two\\\rlines\r", "two\nlines"),
        ('"""a\rb\r\rc"""\r', "a\nb\n\nc"),
        ("\x1b[200~pasted\nlines\r\nof text\x1b[201~\r", "pasted\nlines\nof text"),
        ("before \x1b[200~a\n\nb\x1b[201~ after\r", "before a\n\nb after"),
        ("  spaces  \r", "  spaces  "),
        ("gone\x15kept\r", "kept"),
    ],
)
def test_keys(keys: str, message: str) -> None:
    assert typed(keys) == [message]


def test_prefill_is_edited() -> None:
    assert typed(" more\r", prefill="some") == ["some more"]


def test_control_c_and_control_d() -> None:
    with pytest.raises(KeyboardInterrupt):
        typed("half\x03")
    with pytest.raises(EOFError):
        typed("\x04")


def test_history_lasts() -> None:
    assert typed("first\r", "second\r") == ["first", "second"]
    assert typed("\x1b[A\x1b[A\r") == ["first"]
    if sys.platform != "win32":
        assert stat.S_IMODE(history_file().stat().st_mode) == 0o600


def test_without_a_place_for_the_history(own_home: Path) -> None:
    own_home.write_text("")
    assert typed("works\r") == ["works"]


def completions(text: str) -> list[str]:
    found = ChatCompleter().get_completions(Document(text, len(text)), CompleteEvent())
    return [text[: len(text) + completion.start_position] + completion.text for completion in found]


def test_completion(tmp_path: Path) -> None:
    (tmp_path / "notes one.txt").write_text("")
    assert completions("/re") == ["/regen", "/read"]
    assert completions("/set top_") == ["/set top_k", "/set top_p", "/set top_n_sigma"]
    assert completions(f"/read {tmp_path}/no") == [f"/read {tmp_path}/notes one.txt"]
    assert completions(f"/load {tmp_path}/x") == []
    assert completions("hello /re") == []
    assert completions("/set top_k 4") == []
