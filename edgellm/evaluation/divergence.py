"""How far a model is from the one it was made from, token by token: what quantizing it cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgellm.evaluation.perplexity import mean_and_error
from edgellm.evaluation.windows import Progress, Windows, WindowSettings

if TYPE_CHECKING:
    from edgellm.llm import LLM
    from edgellm.platforms.scores import RowDivergence


@dataclass(frozen=True)
class Divergence:
    """What came out; nats, and probabilities from 0 to 1.

    Attributes:
        mean: mean divergence of Kullback and Leibler of the model from the base, over the tokens scored.
        mean_error: its standard error.
        median, percentile_99, maximum: of the same.
        base_perplexity, perplexity: of both models on these tokens.
        log_ratio: mean of log(perplexity / base_perplexity); 0 if nothing was lost.
        log_ratio_error: its standard error.
        mean_change: mean of p - base p, the probabilities of the right token.
        rms_change: root of the mean square of the same.
        same_best: share of tokens for which both models hold the same one for the most probable.
        same_best_error: its standard error.
        windows, tokens, context, seconds: as for ``Perplexity``.
    """

    mean: float
    mean_error: float
    median: float
    percentile_99: float
    maximum: float
    base_perplexity: float
    perplexity: float
    log_ratio: float
    log_ratio_error: float
    mean_change: float
    rms_change: float
    same_best: float
    same_best_error: float
    windows: int
    tokens: int
    context: int
    seconds: float


def measure_divergence(
    base: LLM, llm: LLM, text: str, settings: WindowSettings | None = None, progress: Progress | None = None
) -> Divergence:
    """How far ``llm`` is from ``base`` on a text, cut into windows as for the perplexity.

    Args:
        base: the original, loaded with a context of one window at least.
        llm: a model with the same vocabulary, loaded likewise.
        text: any text of one window at least.
        settings: how it is cut.
        progress: called with ("divergence", tokens done, tokens in all).

    Raises:
        InvalidSettingError: the text is too short, or the vocabularies differ.
        ContextOverflowError: a model's context is smaller than a window.
    """
    settings = settings or WindowSettings()
    windows = Windows(base.tokenizer, text, settings)
    begin = time.perf_counter()
    found: list[RowDivergence] = []
    if progress is not None:
        progress("divergence", 0, len(windows) * settings.context)
    for compared in llm.compare(base, windows):
        found.append(compared)
        if progress is not None:
            progress("divergence", len(found) * settings.context, len(windows) * settings.context)
    return _summary(found, settings, time.perf_counter() - begin)


def _summary(found: list[RowDivergence], settings: WindowSettings, seconds: float) -> Divergence:
    # What rounding makes of equal distributions may be just below 0, which no divergence is.
    divergence = np.maximum(np.concatenate([part.divergence for part in found]), 0.0)
    theirs = np.concatenate([part.base.logprobs for part in found])
    ours = np.concatenate([part.own.logprobs for part in found])
    same = np.concatenate([part.base.best == part.own.best for part in found]).astype(np.float64)
    change: NDArray[np.float64] = np.exp(ours) - np.exp(theirs)
    mean, mean_error = mean_and_error(divergence)
    log_ratio, log_ratio_error = mean_and_error(theirs - ours)
    same_best, same_best_error = mean_and_error(same)
    return Divergence(
        mean=mean,
        mean_error=mean_error,
        median=float(np.median(divergence)),
        percentile_99=float(np.percentile(divergence, 99)),
        maximum=float(divergence.max()),
        base_perplexity=float(np.exp(-theirs.mean())),
        perplexity=float(np.exp(-ours.mean())),
        log_ratio=log_ratio,
        log_ratio_error=log_ratio_error,
        mean_change=float(change.mean()),
        rms_change=float(np.sqrt(np.square(change).mean())),
        same_best=same_best,
        same_best_error=same_best_error,
        windows=len(found),
        tokens=len(divergence),
        context=settings.context,
        seconds=round(seconds, 4),
    )
