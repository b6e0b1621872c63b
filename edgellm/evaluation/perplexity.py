"""Perplexity: how surprised a model is by a text (Jelinek et al. 1977), with the windows and averages of llama.cpp."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgellm.evaluation.windows import Progress, Windows, WindowSettings

if TYPE_CHECKING:
    from edgellm.llm import LLM


@dataclass(frozen=True)
class Perplexity:
    """What came out.

    Attributes:
        perplexity: the exponential of the mean loss.
        standard_error: of the perplexity, as if losses were independent.
        windows: how many were computed.
        tokens: how many tokens were scored.
        context: tokens of a window.
        seconds: computing, without loading.
    """

    perplexity: float
    standard_error: float
    windows: int
    tokens: int
    context: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens read, scored or not."""
        return self.windows * self.context / self.seconds if self.seconds else 0.0


def measure_perplexity(
    llm: LLM,
    text: str,
    settings: WindowSettings | None = None,
    progress: Progress | None = None,
    on_window: Callable[[int, float], None] | None = None,
) -> Perplexity:
    """Perplexity of a text.

    Args:
        llm: loaded with a context of one window at least.
        text: any text of one window at least.
        settings: how it is cut.
        progress: called with ("perplexity", tokens done, tokens in all).
        on_window: called after each window with its number from 1 and the perplexity so far.

    Raises:
        InvalidSettingError: the text is too short.
        ContextOverflowError: the model's context is smaller than a window.
    """
    settings = settings or WindowSettings()
    windows = Windows(llm.tokenizer, text, settings)
    begin = time.perf_counter()
    losses: list[NDArray[np.float64]] = []
    if progress is not None:
        progress("perplexity", 0, len(windows) * settings.context)
    for number, scores in enumerate(llm.score(windows), 1):
        losses.append(-scores.logprobs)
        if progress is not None:
            progress("perplexity", number * settings.context, len(windows) * settings.context)
        if on_window is not None:
            on_window(number, float(np.exp(np.mean(losses))))
    seconds = time.perf_counter() - begin
    mean, error = mean_and_error(np.concatenate(losses))
    perplexity = float(np.exp(mean))
    return Perplexity(
        perplexity, error * perplexity, len(windows), sum(map(len, losses)), settings.context, round(seconds, 4)
    )


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean, and its standard error; 0 for fewer than two values."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, 0.0
    variance = float(np.square(values).mean()) - mean * mean
    return mean, float(np.sqrt(max(variance, 0.0) / (len(values) - 1)))
