"""A conversation: its messages and settings, and what can be done with them. Knows nothing of any terminal."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgellm.cli.options import is_unicode, read_text_file, require_unicode
from edgellm.cli.settings import GenerationSettings
from edgellm.errors import ContextOverflowError, EdgeLLMError
from edgellm.hub.files import write_atomically
from edgellm.results import Step, Timings
from edgellm.sampling import Sampling

FORMAT = "edgellm-chat"
NEARLY_FULL = 0.8
"""Share of the context from which on the user is warned."""

Message = dict[str, str]


class ChatModel(Protocol):
    """What a conversation needs of a model; ``edgellm.LLM`` has it."""

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer together."""

    def chat_stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        logprobs: int = 0,
        cancel: threading.Event | None = None,
    ) -> Iterator[Step]:
        """Answer a conversation, token by token."""

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The prompt that these messages make."""

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text."""


@dataclass
class ChatSession:
    """A conversation with a model.

    Attributes:
        model_name: how the user called it; written into saved chats.
        messages: dictionaries with role and content, the system message first if there is one.
        attachments: files read for the next message: name and text.
        timings: of the last answer.
    """

    model: ChatModel
    settings: GenerationSettings
    model_name: str = ""
    messages: list[Message] = field(default_factory=list)
    attachments: list[tuple[str, str]] = field(default_factory=list)
    timings: Timings | None = None

    @property
    def system(self) -> str | None:
        """The system message's text."""
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages[1:] if self.system is not None else self.messages
        self.messages = [{"role": "system", "content": text}, *rest] if text else list(rest)

    @property
    def last_user_text(self) -> str | None:
        """What the user wrote last."""
        return next((message["content"] for message in reversed(self.messages) if message["role"] == "user"), None)

    @property
    def context_used(self) -> int:
        """Tokens of the context that the conversation fills."""
        if self.timings is not None:
            return self.timings.prompt_tokens + self.timings.generated_tokens
        return len(self.model.chat_ids(self.messages)) if self.messages else 0

    @property
    def nearly_full(self) -> bool:
        """Whether little room is left."""
        return self.context_used > NEARLY_FULL * self.model.context_length

    def send(self, text: str, cancel: threading.Event | None = None) -> Iterator[Step]:
        """Say something, together with the attached files; the steps of the answer follow.

        The answer enters the conversation as far as it came, also when it was cancelled or the loop was left.
        When it fails, or was cancelled before it began, the conversation is as before.

        Raises:
            ContextOverflowError: it does not fit the context any more.
            EdgeLLMError: the template does not take such a conversation; or the engine failed.
        """
        require_unicode(text)
        attached = [f"{name}:\n\n{content.strip()}" for name, content in self.attachments]
        before = list(self.messages), list(self.attachments), self.timings
        self.messages.append({"role": "user", "content": "\n\n".join([*attached, text] if text else attached)})
        self.attachments = []
        yield from self._answer(before, cancel)

    def regenerate(self, cancel: threading.Event | None = None) -> Iterator[Step]:
        """Answer the last message anew; the old answer comes back when that fails.

        Raises:
            EdgeLLMError: nothing has been said yet; and all that ``send`` raises.
        """
        if self.last_user_text is None:
            raise EdgeLLMError("there is no answer to repeat yet", "say something first")
        before = list(self.messages), list(self.attachments), self.timings
        while self.messages[-1]["role"] != "user":
            self.messages.pop()
        yield from self._answer(before, cancel)

    def _answer(
        self,
        before: tuple[list[Message], list[tuple[str, str]], Timings | None],
        cancel: threading.Event | None,
    ) -> Iterator[Step]:
        pieces: list[str] = []
        keep = False
        try:
            steps = self.model.chat_stream(
                [dict(message) for message in self.messages],
                max_tokens=self.settings.max_tokens,
                sampling=self.settings.sampling,
                stop=self.settings.stop,
                cancel=cancel,
            )
            self.timings = None
            for step in steps:
                pieces.append(step.text)
                self.timings = step.timings
                keep = any(pieces) or step.finish_reason not in (None, "cancelled")
                yield step
        except ContextOverflowError as error:
            keep = False
            hint = "/undo or /clear make room, --context N at the start may give more"
            if before[1]:
                hint = f"/read none leaves out the attached files, {hint}"
            raise ContextOverflowError(error.prompt_tokens, error.context_length, hint) from error
        except EdgeLLMError:
            keep = False
            raise
        finally:
            if keep:
                self.messages.append({"role": "assistant", "content": "".join(pieces)})
            else:
                self.messages, self.attachments, self.timings = before

    def undo(self) -> str | None:
        """Take back the last message and its answer; returns that message, or None if there was none."""
        text = self.last_user_text
        while text is not None and self.messages:
            self.timings = None
            if self.messages.pop()["role"] == "user":
                break
        return text

    def clear(self) -> None:
        """Forget everything but the system message and the settings."""
        system = self.system
        self.messages, self.attachments, self.timings = [], [], None
        self.system = system

    def set(self, name: str, text: str) -> None:
        """Change a setting; InvalidSettingError if there is no such setting or value."""
        self.settings = self.settings.changed(name, text)

    def attach(self, path: Path) -> int:
        """Read a text file for the next message; returns how many tokens it has.

        Raises:
            EdgeLLMError: it cannot be read or is not text.
        """
        text = read_text_file(path)
        self.attachments.append((path.name, text))
        return len(self.model.tokenize(text, special=False))

    def save(self, path: Path) -> None:
        """Write the conversation: as Markdown if the name ends in .md, else as JSON, which ``load`` reads.

        Raises:
            EdgeLLMError: the file cannot be written.
        """
        as_markdown = path.suffix.lower() in (".md", ".markdown")
        text = self._markdown() if as_markdown else self._json()
        try:
            write_atomically(path, text)
        except OSError as error:
            raise EdgeLLMError(f"cannot write {path}: {error.strerror}") from error

    def load(self, path: Path) -> None:
        """Go on with a conversation that was saved as JSON; also takes a bare list of messages.

        Raises:
            EdgeLLMError: the file cannot be read or is not such a conversation. Nothing has changed then.
        """
        try:
            content = json.loads(read_text_file(path))
        except (ValueError, RecursionError) as error:
            raise EdgeLLMError(f"{path} is not JSON: {error}", "load what /save FILE.json wrote") from error
        messages = content.get("messages") if isinstance(content, dict) else content
        settings = content.get("settings", {}) if isinstance(content, dict) else {}
        if not isinstance(messages, list) or not all(map(_is_message, messages)) or not isinstance(settings, dict):
            hint = "it needs a list of messages, each with a role and a content"
            raise EdgeLLMError(f"{path} does not hold a conversation", hint)
        changed = self.settings
        for name, value in settings.items():
            changed = changed.changed(name, str(value))
        self.settings = changed
        self.messages = [{"role": message["role"], "content": message["content"]} for message in messages]
        self.attachments, self.timings = [], None

    def _json(self) -> str:
        conversation = {
            "format": FORMAT,
            "model": self.model_name,
            "settings": self.settings.shown(),
            "messages": self.messages,
        }
        return json.dumps(conversation, ensure_ascii=False, indent=2) + "\n"

    def _markdown(self) -> str:
        parts = [f"# Chat with {self.model_name}"]
        parts += [f"## {message['role'].capitalize()}\n\n{message['content'].strip()}" for message in self.messages]
        return "\n\n".join(parts) + "\n"


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in ("system", "user", "assistant")
        and isinstance(value.get("content"), str)
        and is_unicode(value["content"])
    )
