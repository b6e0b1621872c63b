"""From clusters of embeddings to who speaks in each frame."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.segmentation import LOCAL_SPEAKERS, LocalActivity
from edgellm.diarization.stretches import Window


def window_evidence(
    windows: Sequence[Window], similarities: NDArray[np.float32], sharpness: float, count: int
) -> NDArray[np.float32]:
    """Probability of each speaker in each frame by the embeddings around it, (frames, speakers).

    Zero outside the stretches that have any.

    Args:
        windows: what was embedded.
        similarities: cosine with each speaker's mean, (windows, speakers).
        sharpness: factor before the softmax.
        count: frames in all.
    """
    scaled = sharpness * (similarities - similarities.max(axis=1, keepdims=True))
    chances = np.exp(scaled)
    chances /= chances.sum(axis=1, keepdims=True)
    evidence = np.zeros((count, similarities.shape[1]), np.float32)
    for window, chance in zip(windows, chances, strict=True):
        evidence[window.first : window.end] += chance
    total = evidence.sum(axis=1, keepdims=True)
    np.divide(evidence, total, out=evidence, where=total > 0)
    for before, after in itertools.pairwise(windows):
        # Windows of one stretch leave gaps: each window reaches half-way.
        if before.stretch == after.stretch and before.end < after.first:
            middle = (before.end + after.first) // 2
            evidence[before.end : middle] = evidence[before.end - 1]
            evidence[middle : after.first] = evidence[after.first]
    return evidence


def local_votes(
    activities: Sequence[LocalActivity], evidence: NDArray[np.float32], single: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """What the local speakers say about each frame, (frames, speakers).

    In each window a local speaker stands for the speakers that the embeddings hear while it speaks alone.
    """
    votes = np.zeros_like(evidence)
    number = np.zeros((len(evidence), 1), np.float32)
    for activity in activities:
        end = min(activity.end, len(evidence))
        if end <= activity.first:
            continue
        here = slice(activity.first, end)
        speakers = activity.speakers[: end - activity.first].astype(np.float32)
        heard = evidence[here] * single[here, None]
        meaning = speakers.T @ heard
        total = meaning.sum(axis=1, keepdims=True)
        meaning = np.divide(meaning, total, out=np.zeros_like(meaning), where=total > 1e-3)
        assert meaning.shape[0] == LOCAL_SPEAKERS
        votes[here] += speakers @ meaning
        number[here] += 1
    return np.asarray(votes / np.maximum(number, 1), np.float32)


def active_speakers(scores: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The ``counts`` best speakers of each frame, (frames, speakers); of those without any score none."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(scores.shape[1])[None, :], axis=1)
    return np.asarray((ranks < counts[:, None]) & (scores > 0))
