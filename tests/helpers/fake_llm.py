"""A language model that says what it is told to: a queue of answers, a token a word."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgellm.errors import ContextOverflowError, EdgeLLMError
from edgellm.results import Completion, Step, Timings
from edgellm.sampling import Sampling


class FakeLLM:
    """Has of ``edgellm.LLM`` what the command line uses; ``calls`` records how it was asked."""

    def __init__(
        self,
        *answers: str | EdgeLLMError,
        context_length: int = 1000,
        on_step: Callable[[int], None] | None = None,
        pause: float = 0.0,
        warning: str | None = None,
    ) -> None:
        self.answers = deque(answers)
        self.context_length = context_length
        self.context_limited_by = "model"
        self.sampling = Sampling(temperature=0.5)
        self.template = SimpleNamespace(warning=warning)
        self.model_path = Path(__file__)
        self.metadata: dict[str, Any] = {"general.name": "Fake"}
        self.graph = SimpleNamespace(architecture="fake")
        self.calls: list[dict[str, Any]] = []
        self.closed = False
        self._on_step, self._pause = on_step, pause

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        return [sum(map(ord, word)) for word in text.split()]

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return [token for message in messages for token in [0, *self.tokenize(message["content"])]]

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
        self.calls.append({"messages": messages, "max_tokens": max_tokens, "sampling": sampling, "stop": stop})
        return self._steps(self.chat_ids(messages), max_tokens, logprobs, cancel)

    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        logprobs: int = 0,
        cancel: threading.Event | None = None,
    ) -> Iterator[Step]:
        self.calls.append({"prompt": prompt, "max_tokens": max_tokens, "sampling": sampling, "stop": stop})
        return self._steps(list(prompt), max_tokens, logprobs, cancel)

    def generate(self, prompt: Sequence[int], *, max_tokens: int | None = None) -> Completion:
        return Completion.from_steps(prompt, self.stream(prompt, max_tokens=max_tokens))

    def _steps(
        self, ids: list[int], max_tokens: int | None, logprobs: int, cancel: threading.Event | None
    ) -> Iterator[Step]:
        if len(ids) >= self.context_length:
            raise ContextOverflowError(len(ids), self.context_length)
        answer = self.answers.popleft()
        if isinstance(answer, EdgeLLMError):
            raise answer
        room = self.context_length - len(ids)
        words = re.findall(r"\S+\s*", answer)
        limit = min(len(words), room, room if max_tokens is None else max_tokens)

        def timings(count: int) -> Timings:
            return Timings(len(ids), len(ids) // 2, 0.5, count, 0.25)

        for index, word in enumerate(words[:limit]):
            if self._on_step:
                self._on_step(index)
            time.sleep(self._pause)
            if cancel is not None and cancel.is_set():
                yield Step("", None, finish_reason="cancelled", timings=timings(index))
                return
            top = tuple((token, -1.0 - token) for token in range(logprobs))
            yield Step(word, 100 + index, -0.25 if logprobs else None, top)
        finish = "stop" if limit == len(words) else "length"
        yield Step("", 2 if finish == "stop" else None, finish_reason=finish, timings=timings(limit))
