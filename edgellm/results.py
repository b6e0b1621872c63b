"""What a generation gives back: one ``Step`` per token while it runs, one ``Completion`` when it is done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]
"""``stop``: an end-of-generation token or a stop string; ``length``: ``max_tokens`` or the context is used up."""


@dataclass(frozen=True)
class Timings:
    """How long a request took, waiting for other requests included, the caller's own time between steps not.

    ``prompt_tokens`` counts the whole prompt, ``cached_tokens`` the part of it that was found computed already.
    ``prompt_seconds`` ends when the logits of the first new token are there; ``generated_seconds`` begins there.
    """

    prompt_tokens: int
    cached_tokens: int
    prompt_seconds: float
    generated_tokens: int
    generated_seconds: float

    @property
    def prompt_per_second(self) -> float:
        """Prompt tokens computed per second, cached ones not counted; 0 where nothing was measured."""
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def generated_per_second(self) -> float:
        """Tokens decoded per second. The first token came with the prompt, so it does not count; 0 if it is alone."""
        if self.generated_tokens < 2 or self.generated_seconds <= 0:
            return 0.0
        return (self.generated_tokens - 1) / self.generated_seconds


@dataclass(frozen=True)
class Step:
    """One token of a generation.

    ``text`` is what can be shown now: it lags behind ``id`` while a character is incomplete or while the text may
    turn out to be a stop string. ``id`` is None on a last step that brings no token (cancelled, or ``max_tokens=0``).
    ``logprob`` and ``top_logprobs`` (pairs of id and log-probability, best first) come from the model's own logits,
    before any sampling setting; they are there only if they were asked for. ``finish_reason`` and ``timings`` are set
    on the last step, ``stop_text`` if a stop string ended it.
    """

    text: str
    id: int | None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    stop_text: str | None = None

    @property
    def logprobs(self) -> tuple[tuple[int, float], ...]:
        """The same as ``top_logprobs``."""
        return self.top_logprobs


@dataclass(frozen=True)
class Completion:
    """A finished generation.

    ``ids`` are all tokens the model chose, a final end-of-generation token included; ``text`` leaves out that token,
    and the stop string, if one was met (``stop_text``). ``steps`` are all steps, with log-probabilities if asked for.
    """

    text: str
    ids: list[int]
    prompt_ids: list[int]
    finish_reason: FinishReason
    stop_text: str | None
    steps: tuple[Step, ...]
    timings: Timings

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that did not have to be computed."""
        return self.timings.cached_tokens

    @property
    def logprobs(self) -> list[float | None]:
        """Log-probability of each id; None where log-probabilities were not asked for."""
        return [step.logprob for step in self.steps if step.id is not None]

    @classmethod
    def from_steps(cls, prompt_ids: Sequence[int], steps: Iterable[Step]) -> Completion:
        """Gather the steps of one whole stream.

        Raises:
            ValueError: the steps break off before the last one.
        """
        gathered = tuple(steps)
        last = gathered[-1] if gathered else None
        if last is None or last.finish_reason is None or last.timings is None:
            raise ValueError("the stream ended before its last step")
        return cls(
            text="".join(step.text for step in gathered),
            ids=[step.id for step in gathered if step.id is not None],
            prompt_ids=list(prompt_ids),
            finish_reason=last.finish_reason,
            stop_text=last.stop_text,
            steps=gathered,
            timings=last.timings,
        )
