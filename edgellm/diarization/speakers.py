"""How many speakers there are and how each of them sounds, from the embeddings of a whole sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.clustering import Tree, average_linkage, clusters_at_widest_gap, cosine_distances
from edgellm.diarization.segmentation import FRAMES_PER_SECOND, LOCAL_SPEAKERS, LocalActivity
from edgellm.diarization.stretches import Window, frames
from edgellm.errors import InvalidSettingError

Embeddings = NDArray[np.float32]
MOST_AT_ONCE = 4000
"""More embeddings are first joined to tight groups, so that time and memory do not grow with their square."""
_GROUP_DISTANCE = 0.3


@dataclass(frozen=True)
class SpeakerCount:
    """What is known beforehand; None: nothing."""

    exactly: int | None = None
    at_least: int | None = None
    at_most: int | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("speakers", self.exactly),
            ("min_speakers", self.at_least),
            ("max_speakers", self.at_most),
        ):
            if value is not None and value < 1:
                raise InvalidSettingError(f"{name} is {value}", "give 1 or more")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise InvalidSettingError(f"min_speakers {self.at_least} is above max_speakers {self.at_most}")
        if self.exactly is not None and (self.at_least is not None or self.at_most is not None):
            raise InvalidSettingError("speakers was given, and a bound besides", "give the number or its bounds")


@dataclass(frozen=True)
class ClusterSettings:
    """How embeddings are joined to speakers.

    Attributes:
        lowest_cut, highest_cut: the tree is cut in the widest gap between these distances.
        clear: seconds of a window from which on it takes part; shorter ones join the nearest speaker.
        shortest, smallest_share: a speaker has so many seconds of speech, or this share of all of it if that is less.
        local_speech: seconds of clean speech that make a local speaker count for the smallest number of speakers.
        local_share: of the windows in which so many must be seen.
    """

    lowest_cut: float = 0.45
    highest_cut: float = 0.80
    clear: float = 1.0
    shortest: float = 2.5
    smallest_share: float = 0.08
    local_speech: float = 1.5
    local_share: float = 0.2


def find_speakers(
    windows: Sequence[Window],
    embeddings: Embeddings,
    activities: Sequence[LocalActivity],
    known: SpeakerCount,
    settings: ClusterSettings,
) -> Embeddings:
    """The mean embedding of each speaker, unit vectors (speakers, 192).

    Args:
        windows: what was embedded.
        embeddings: unit vectors, (windows, 192).
        activities: of the segmentation, which bound the number of speakers from below.
        known: what the user knows of their number.
        settings: see there.
    """
    if len(windows) == 0:
        return np.zeros((0, embeddings.shape[1]), np.float32)
    clear = np.array([window.end - window.first >= frames(settings.clear) for window in windows])
    if clear.sum() < max(2, known.exactly or 0, known.at_least or 0):
        clear[:] = True
    chosen = [window for window, is_clear in zip(windows, clear, strict=True) if is_clear]
    tree, members = _tree(embeddings[clear])
    pick = _Picker(tree, members, chosen, settings)
    labels, kept = pick.choose(known, _smallest_number(activities, settings))
    centres = np.stack([embeddings[clear][labels == label].mean(axis=0) for label in kept])
    lengths = np.linalg.norm(centres, axis=1, keepdims=True)
    return np.asarray(centres / np.maximum(lengths, 1e-9), np.float32)


def _tree(embeddings: Embeddings) -> tuple[Tree, NDArray[np.int64]]:
    """The tree over groups of embeddings, and the group of each; up to `MOST_AT_ONCE` each is a group by itself."""
    groups = np.arange(len(embeddings))
    means: Embeddings = embeddings
    sizes: NDArray[np.float64] = np.ones(len(embeddings))
    while len(means) > MOST_AT_ONCE:
        labels = np.zeros(len(means), np.int64)
        count = 0
        for first in range(0, len(means), MOST_AT_ONCE // 2):
            part = slice(first, first + MOST_AT_ONCE // 2)
            tree = average_linkage(cosine_distances(means[part]), sizes[part])
            here = tree.cut(1 + int((tree.heights > _GROUP_DISTANCE).sum()))
            labels[part] = count + here
            count += int(here.max()) + 1
        if count > 0.9 * len(means):
            break
        groups = labels[groups]
        total = np.zeros((count, means.shape[1]))
        np.add.at(total, labels, means * sizes[:, None])
        sizes = np.bincount(labels, weights=sizes, minlength=count).astype(np.float64)
        means = np.asarray(total / sizes[:, None], np.float32)
    # The mean distance between two groups is 1 - the product of their means, so that linkage goes on as if it had
    # never been interrupted.
    return average_linkage(cosine_distances(means), sizes), groups


class _Picker:
    """Cuts the tree and says which clusters are speakers."""

    def __init__(
        self, tree: Tree, groups: NDArray[np.int64], windows: Sequence[Window], settings: ClusterSettings
    ) -> None:
        self._tree, self._groups, self._windows, self._settings = tree, groups, windows, settings
        self._needed = min(settings.shortest, settings.smallest_share * self._seconds(np.ones(len(windows), bool)))

    def choose(self, known: SpeakerCount, local: int) -> tuple[NDArray[np.int64], list[int]]:
        """The cluster of each window, and the clusters that are speakers."""
        settings = self._settings
        count = clusters_at_widest_gap(self._tree.heights, settings.lowest_cut, settings.highest_cut)
        lowest = known.exactly or known.at_least or min(local, known.at_most or local)
        highest = known.exactly or known.at_most
        labels, kept = self._cut(count)
        while highest is not None and len(kept) > highest and count > 1:
            count -= 1
            labels, kept = self._cut(count)
        while len(kept) < lowest and count < self._tree.leaves:
            count += 1
            labels, kept = self._cut(count)
        if len(kept) < lowest and (known.exactly or known.at_least):
            # Not so many speak long enough: take short ones.
            count = min(lowest, self._tree.leaves)
            labels = self._tree.cut(count)[self._groups]
            kept = list(range(count))
        return labels, self._longest(labels, kept, highest)

    def _cut(self, count: int) -> tuple[NDArray[np.int64], list[int]]:
        labels = self._tree.cut(count)[self._groups]
        kept = [label for label in range(count) if self._seconds(labels == label) >= self._needed]
        return labels, kept or self._longest(labels, list(range(count)), 1)

    def _longest(self, labels: NDArray[np.int64], kept: list[int], most: int | None) -> list[int]:
        if most is None or len(kept) <= most:
            return kept
        return sorted(sorted(kept, key=lambda label: -self._seconds(labels == label))[:most])

    def _seconds(self, chosen: NDArray[np.bool_]) -> float:
        """How much the chosen windows, which are in order of time, cover."""
        total, reached = 0, 0
        for window, is_chosen in zip(self._windows, chosen, strict=True):
            if is_chosen:
                total += max(0, window.end - max(window.first, reached))
                reached = max(reached, window.end)
        return total / FRAMES_PER_SECOND


def _smallest_number(activities: Sequence[LocalActivity], settings: ClusterSettings) -> int:
    """How many speak at least: so many local speakers are heard alone for long enough in enough windows."""
    needed = frames(settings.local_speech)
    seen = []
    for activity in activities:
        active = activity.speakers > 0.5
        alone = active & (active.sum(axis=1, keepdims=True) == 1)
        seen.append(int((alone.sum(axis=0) >= needed).sum()))
    if not seen:
        return 1
    return max([1, *(n for n in range(2, LOCAL_SPEAKERS + 1) if np.mean(np.array(seen) >= n) >= settings.local_share)])
