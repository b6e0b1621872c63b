"""The conversation itself, without any terminal."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from fake_llm import FakeLLM

from edgellm.cli.chat_session import ChatSession
from edgellm.cli.settings import GenerationSettings
from edgellm.errors import ContextOverflowError, EdgeLLMError
from edgellm.sampling import Sampling


def session_of(*answers: str | EdgeLLMError, **options) -> tuple[ChatSession, FakeLLM]:
    model = FakeLLM(*answers, **options)
    return ChatSession(model, GenerationSettings(Sampling()), "fake"), model


def say(session: ChatSession, text: str, cancel: threading.Event | None = None) -> str:
    return "".join(step.text for step in session.send(text, cancel))


def turns(session: ChatSession) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in session.messages]


def test_turns_accumulate() -> None:
    session, model = session_of("I am well.", "Paris.")
    session.system = "Be brief."
    assert say(session, "How are you?") == "I am well."
    assert say(session, "The capital of France?") == "Paris."
    assert turns(session) == [
        ("system", "Be brief."),
        ("user", "How are you?"),
        ("assistant", "I am well."),
        ("user", "The capital of France?"),
        ("assistant", "Paris."),
    ]
    assert model.calls[1]["messages"] == session.messages[:-1]


def test_settings_reach_the_model() -> None:
    session, model = session_of("one two three four", "x")
    session.set("temperature", "0.25")
    session.set("max-tokens", "2")
    session.set("stop", "'a b' c")
    assert say(session, "go") == "one two "
    assert model.calls[0]["sampling"].temperature == 0.25
    assert model.calls[0]["stop"] == ("a b", "c")


def test_cancelled_answer_is_kept() -> None:
    cancel = threading.Event()
    session, _ = session_of("one two three", on_step=lambda index: cancel.set() if index == 2 else None)
    assert say(session, "go", cancel) == "one two "
    assert turns(session)[-1] == ("assistant", "one two ")
    assert session.context_used == 2 + 2


def test_cancelled_before_the_first_word_leaves_no_trace() -> None:
    cancel = threading.Event()
    cancel.set()
    session, _ = session_of("one", "two")
    session.attachments = [("f", "text")]
    say(session, "go", cancel)
    assert session.messages == []
    assert session.attachments == [("f", "text")]


def test_left_loop_keeps_what_was_said() -> None:
    session, _ = session_of("one two three")
    for step in session.send("go"):
        assert step.text == "one "
        break
    assert turns(session) == [("user", "go"), ("assistant", "one ")]


def test_an_empty_answer_is_an_answer() -> None:
    session, _ = session_of("")
    assert say(session, "go") == ""
    assert turns(session) == [("user", "go"), ("assistant", "")]


def test_too_long_a_message_changes_nothing() -> None:
    session, _ = session_of("fine", "fine too", context_length=12)
    say(session, "short")
    with pytest.raises(ContextOverflowError, match=r"the prompt has 25 tokens, the context holds 12; /undo or /clear"):
        say(session, "word " * 20)
    assert turns(session) == [("user", "short"), ("assistant", "fine")]
    assert say(session, "again") == "fine too"


def test_a_failing_engine_changes_nothing() -> None:
    session, _ = session_of(EdgeLLMError("broken"), "well")
    with pytest.raises(EdgeLLMError, match="broken"):
        say(session, "go")
    assert session.messages == []
    assert say(session, "go") == "well"


def test_lone_surrogates_are_refused() -> None:
    session, _ = session_of("x")
    with pytest.raises(EdgeLLMError, match="not valid Unicode"):
        say(session, "a\ud800b")
    assert session.messages == []


def test_regenerate() -> None:
    session, model = session_of("first", "second")
    with pytest.raises(EdgeLLMError, match="no answer to repeat"):
        list(session.regenerate())
    say(session, "go")
    assert "".join(step.text for step in session.regenerate()) == "second"
    assert turns(session) == [("user", "go"), ("assistant", "second")]
    assert model.calls[1]["messages"] == [{"role": "user", "content": "go"}]


def test_failed_regenerate_keeps_the_old_answer() -> None:
    session, _ = session_of("first", EdgeLLMError("broken"))
    say(session, "go")
    with pytest.raises(EdgeLLMError):
        list(session.regenerate())
    assert turns(session) == [("user", "go"), ("assistant", "first")]


def test_undo_and_clear() -> None:
    session, _ = session_of("1", "2", "3")
    session.system = "s"
    for text in ("a", "b", "c"):
        say(session, text)
    assert session.undo() == "c"
    assert turns(session)[-1] == ("assistant", "2")
    assert session.undo() == "b"
    session.clear()
    assert turns(session) == [("system", "s")]
    assert session.undo() is None
    assert turns(session) == [("system", "s")]
    session.system = None
    assert session.messages == []


def test_context_is_counted() -> None:
    session, _ = session_of("one two three", context_length=10)
    assert session.context_used == 0
    say(session, "a b c d")
    assert session.context_used == 5 + 3
    assert not session.nearly_full
    session.timings = None
    assert session.context_used == len(session.model.chat_ids(session.messages)) == 9
    assert session.nearly_full


def test_attached_files_go_with_the_next_message(tmp_path: Path) -> None:
    session, model = session_of("read", "next")
    (tmp_path / "a.txt").write_text("alpha beta\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\ufeffgamma", encoding="utf-8")
    assert session.attach(tmp_path / "a.txt") == 2
    session.attach(tmp_path / "b.txt")
    say(session, "What is in them?")
    assert turns(session)[0] == ("user", "a.txt:\n\nalpha beta\n\nb.txt:\n\ngamma\n\nWhat is in them?")
    say(session, "And now?")
    assert model.calls[1]["messages"][-1] == {"role": "user", "content": "And now?"}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\0b"])
def test_files_that_are_not_text(tmp_path: Path, content: bytes) -> None:
    session, _ = session_of()
    (tmp_path / "f").write_bytes(content)
    for path in (tmp_path / "f", tmp_path, tmp_path / "nowhere"):
        with pytest.raises(EdgeLLMError):
            session.attach(path)
    assert session.attachments == []


def test_save_and_load(tmp_path: Path) -> None:
    session, _ = session_of("Größe: “ja” \U0001f642")
    session.system = "Sprich Deutsch."
    session.set("temperature", "0.123456789")
    session.set("stop", r"'a b' \n")
    say(session, "Wie groß?")
    path = tmp_path / "chat.json"
    session.save(path)
    assert "Größe: “ja” \U0001f642" in path.read_text("utf-8")
    other, model = session_of("weiter")
    other.load(path)
    assert (other.messages, other.settings) == (session.messages, session.settings)
    say(other, "Weiter")
    assert len(model.calls[0]["messages"]) == 4


def test_save_as_markdown(tmp_path: Path) -> None:
    session, _ = session_of("Yes.")
    say(session, "Is it?")
    session.save(tmp_path / "chat.md")
    assert (tmp_path / "chat.md").read_text() == "# Chat with fake\n\n## User\n\nIs it?\n\n## Assistant\n\nYes.\n"


def test_save_where_nothing_can_be_written(tmp_path: Path) -> None:
    session, _ = session_of()
    with pytest.raises(EdgeLLMError, match="cannot write"):
        session.save(tmp_path / "nowhere" / "chat.json")


def test_load_a_bare_list(tmp_path: Path) -> None:
    session, _ = session_of()
    messages = [{"role": "user", "content": "hi", "extra": 1}, {"role": "assistant", "content": "ho"}]
    (tmp_path / "f").write_text(json.dumps(messages))
    session.load(tmp_path / "f")
    assert turns(session) == [("user", "hi"), ("assistant", "ho")]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "3",
        "{}",
        '{"messages": 3}',
        '[{"role": "user"}]',
        '[{"role": "robot", "content": "x"}]',
        '[{"role": "user", "content": 3}]',
        '[{"role": "user", "content": "\\ud800"}]',
        '{"messages": [], "settings": []}',
        '{"messages": [], "settings": {"temperature": "hot"}}',
        '{"messages": [], "settings": {"colour": "blue"}}',
        "[" * 100_000,
    ],
)
def test_load_nonsense_changes_nothing(tmp_path: Path, content: str) -> None:
    session, _ = session_of("x")
    say(session, "go")
    before = list(session.messages), session.settings
    (tmp_path / "f").write_text(content)
    with pytest.raises(EdgeLLMError):
        session.load(tmp_path / "f")
    assert (session.messages, session.settings) == before
