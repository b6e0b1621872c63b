"""What can be said about a sound while it comes in: local speakers, how many speak, and embeddings of stretches.

Everything here is done once for each part of the sound and needs only some seconds of it in memory. Who is who is
found afterwards, from what is kept: some kilobytes for each second.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgellm.diarization.embedding_network import EMBEDDING, MOST_FRAMES
from edgellm.diarization.features import FRAME, HOP, frames_in
from edgellm.diarization.models import Models
from edgellm.diarization.segmentation import (
    LocalActivity,
    frame_time,
    last_window_start,
    local_activity,
)
from edgellm.diarization.segmentation_network import (
    FILTER_SAMPLES,
    FRAME_SAMPLES,
    SAMPLE_RATE,
    STEP_SAMPLES,
    WINDOW_SAMPLES,
    WINDOW_STEPS,
)
from edgellm.diarization.stretches import (
    Stretch,
    StretchFinder,
    StretchSettings,
    Window,
    embedding_windows,
    frames,
    speaker_change,
)

Samples = NDArray[np.float32]
_COVERING = 64
"""More windows than ever cover the frames that are not certain yet."""
_FEWEST_FEATURES = 3
"""Two steps of the network, without which there is no deviation."""
_STEPS_PER_FRAME = FRAME_SAMPLES // STEP_SAMPLES


@dataclass(frozen=True)
class AnalysisSettings:
    """How the sound is looked at.

    Attributes:
        step: seconds from one window of the segmentation to the next.
        batch: windows for each call of the network.
        speech: probability from which on somebody speaks.
        overlap: probability from which on two speak.
        stretches: how stretches of one speaker are found and embedded.
    """

    step: float = 2.5
    batch: int = 4
    speech: float = 0.55
    overlap: float = 0.45
    stretches: StretchSettings = field(default_factory=StretchSettings)


class _Buffer:
    """The part of a sound that is still needed."""

    def __init__(self) -> None:
        self._first = 0
        self._pieces: list[Samples] = [np.zeros(0, np.float32)]
        self.end = 0

    def append(self, samples: Samples) -> None:
        self._pieces.append(samples)
        self.end += len(samples)

    def get(self, first: int, end: int) -> Samples:
        """Samples first..end; they must not be forgotten yet."""
        if len(self._pieces) > 1:
            self._pieces = [np.concatenate(self._pieces)]
        return self._pieces[0][first - self._first : end - self._first]

    def forget(self, first: int) -> None:
        """What lies before is not needed any more."""
        self._pieces = [self.get(first, self.end).copy()]
        self._first = first


@dataclass(frozen=True)
class Findings:
    """What is known of a sound.

    Attributes:
        activities: of the windows of the segmentation, in order.
        counts: how many speak in each frame, int8.
        windows: what was embedded, in order.
        embeddings: unit vectors, (windows, 192).
    """

    activities: Sequence[LocalActivity]
    counts: NDArray[np.int8]
    windows: Sequence[Window]
    embeddings: NDArray[np.float32]


class Analysis:
    """Takes a sound in blocks and keeps what clustering needs.

    Attributes:
        heard: samples that came in.
        counts: how many speak in each frame that is certain, int8.
    """

    def __init__(
        self, models: Models, settings: AnalysisSettings, pool: ThreadPoolExecutor, threads: int, live: bool = False
    ) -> None:
        self._models, self._settings, self._pool, self._threads = models, settings, pool, threads
        self._at_once = 1 if live else settings.batch * threads
        self._live = live
        self.heard = 0
        self._step = frames(settings.step)
        self._sound = _Buffer()
        self._responses = np.zeros((2 * len(models.normalization.gains), 0), np.float32)
        self._first_response = 0
        self._next_window = 0
        self._ended = False
        self._finder = StretchFinder(settings.stretches)
        self._waiting: list[tuple[Window, Future[NDArray[np.float32]]]] = []
        self._activities: list[LocalActivity] = []
        self.counts = np.zeros(0, np.int8)
        self._windows: list[Window] = []
        self._embeddings: list[NDArray[np.float32]] = []
        self._provisional: dict[tuple[int, int], NDArray[np.float32]] = {}  # embeddings by samples

    def push(self, block: Samples) -> None:
        """Take more of the sound, mono at 16 kHz."""
        self._sound.append(block)
        self.heard = self._sound.end
        while True:
            ready = [self._next_window + number * self._step for number in range(self._at_once)]
            if ready[-1] * FRAME_SAMPLES + WINDOW_SAMPLES > self._sound.end:
                return
            self._run(ready)
            self._next_window = ready[-1] + self._step
            # The window that reaches the end of the sound begins here or later, wherever that will be.
            self._conclude(ready[-1])

    def finish(self) -> None:
        """The sound has ended: do what is left."""
        samples = self._sound.end
        last = last_window_start(samples)
        starts = list(range(self._next_window, last, self._step))
        if not self._activities or self._activities[-1].first != last:
            starts.append(last)
        needed = last * FRAME_SAMPLES + WINDOW_SAMPLES
        # Its mean is the silence of a sound that is not centred on zero: zeros would be a click.
        silence = float(self._sound.get(last * FRAME_SAMPLES, samples).mean()) if samples else 0.0
        self._sound.append(np.full(max(0, needed - samples), silence, np.float32))
        for number in range(0, len(starts), self._at_once):
            self._run(starts[number : number + self._at_once])
        end = max(len(self.counts), min(_frames_within(samples), self._activities[-1].end))
        self._conclude(end, last=True)
        self._collect()
        self._ended = True

    def findings(self) -> Findings:
        """What is certain: of a sound that has ended, all of it."""
        return Findings(self._activities, self.counts, self._windows, _stacked(self._embeddings))

    def present(self) -> Findings:
        """What can be said up to the last sample heard; the last ten seconds may still change."""
        if self._ended or not self.heard:
            return self.findings()
        activities = [*self._activities, self._activity_now()]
        covering = activities[-_COVERING:]
        first, end = len(self.counts), max(len(self.counts), min(_frames_within(self.heard), activities[-1].end))
        counts = self._count(covering, first, end)
        change = speaker_change(covering, first, end, frames(self._settings.stretches.change_reach))
        windows = self._windows_of(copy(self._finder).push(counts == 1, change, last=True))
        spans = [self._span(window) for window in windows]
        new = [span for span in spans if span not in self._provisional]
        made = self._pool.map(lambda span: embed(self._models, self._sound.get(*span)), new)
        known = {**self._provisional, **dict(zip(new, made, strict=True))}
        self._provisional = {span: known[span] for span in spans}
        embeddings = _stacked([*self._embeddings, *(known[span] for span in spans)])
        return Findings(activities, np.concatenate([self.counts, counts]), [*self._windows, *windows], embeddings)

    def _activity_now(self) -> LocalActivity:
        """Of the last ten seconds, or of what there is and silence after it."""
        start = max(0, self.heard - WINDOW_SAMPLES) // FRAME_SAMPLES
        window = self._sound.get(start * FRAME_SAMPLES, min(start * FRAME_SAMPLES + WINDOW_SAMPLES, self.heard))
        window = np.pad(window, (0, WINDOW_SAMPLES - len(window)), constant_values=float(window.mean()))
        responses = self._models.filters(samples=window[None, None])[0]
        folded = np.empty((1, len(responses) // 2, WINDOW_STEPS), np.float32)
        scale, shifts = self._models.normalization.scale_and_shift(window)
        self._models.fold(np.ascontiguousarray(responses[:, :WINDOW_STEPS]), scale, shifts, folded[0])
        return local_activity(start, self._models.segmentation(folded=folded)[0])

    def _run(self, starts: Sequence[int]) -> None:
        """The segmentation of some windows."""
        self._respond(starts[-1])
        size = self._settings.batch
        batches = [starts[number : number + size] for number in range(0, len(starts), size)]
        for batch, logs in zip(batches, self._pool.map(self._segment, batches), strict=True):
            self._activities += [local_activity(start, log) for start, log in zip(batch, logs, strict=True)]

    def _respond(self, last: int) -> None:
        """The filters' responses up to the end of the window that begins with the frame ``last``."""
        have = self._first_response + self._responses.shape[1]
        end = last * _STEPS_PER_FRAME + WINDOW_STEPS
        bounds = np.linspace(have, end, self._threads + 1).astype(int)
        parts = self._pool.map(self._filter, bounds[:-1], bounds[1:])
        self._responses = np.concatenate([self._responses, *parts], axis=1)

    def _filter(self, first: int, end: int) -> NDArray[np.float32]:
        if first == end:
            return self._responses[:, :0]
        length = (end - first) * STEP_SAMPLES - STEP_SAMPLES // 3 + FILTER_SAMPLES
        samples = self._sound.get(first * STEP_SAMPLES, first * STEP_SAMPLES + length)
        return np.asarray(self._models.filters(samples=samples[None, None])[0], np.float32)

    def _segment(self, starts: Sequence[int]) -> NDArray[np.float32]:
        folded = np.empty((len(starts), len(self._responses) // 2, WINDOW_STEPS), np.float32)
        for start, output in zip(starts, folded, strict=True):
            column = start * _STEPS_PER_FRAME - self._first_response
            window = self._sound.get(start * FRAME_SAMPLES, start * FRAME_SAMPLES + WINDOW_SAMPLES)
            scale, shifts = self._models.normalization.scale_and_shift(window)
            self._models.fold(self._responses[:, column : column + WINDOW_STEPS], scale, shifts, output)
        return self._models.segmentation(folded=folded)

    def _conclude(self, end: int, last: bool = False) -> None:
        """All that is to be known about the frames before ``end`` is known: find stretches in them and embed them."""
        first = len(self.counts)
        covering = [activity for activity in self._activities if activity.end > first]
        counts = self._count(covering, first, end)
        change = speaker_change(covering, first, end, frames(self._settings.stretches.change_reach))
        self.counts = np.concatenate([self.counts, counts])
        self._collect()
        windows = self._windows_of(self._finder.push(counts == 1, change, last))
        for window in windows:
            sound = self._sound.get(*self._span(window)).copy()
            self._waiting.append((window, self._pool.submit(embed, self._models, sound)))
        if self._live:
            self._collect()
        if not last:
            self._forget(min(end, self._finder.first_open))

    def _windows_of(self, stretches: Sequence[Stretch]) -> list[Window]:
        """What of some stretches is to be embedded."""
        windows = [window for one in stretches for window in embedding_windows(one, self._settings.stretches)]
        spans = [self._span(window) for window in windows]
        long = [frames_in(end - first) >= _FEWEST_FEATURES for first, end in spans]
        return [window for window, enough in zip(windows, long, strict=True) if enough]

    def _count(self, activities: Sequence[LocalActivity], first: int, end: int) -> NDArray[np.int8]:
        """How many speak in each frame, by the mean of the windows that cover it."""
        total, number = np.zeros((end - first, 3), np.float32), np.zeros((end - first, 1), np.float32)
        for window in activities:
            low, high = max(first, window.first), min(end, window.end)
            if low < high:
                total[low - first : high - first] += window.counts[low - window.first : high - window.first]
                number[low - first : high - first] += 1
        chances = total / np.maximum(number, 1)
        speech = (number[:, 0] > 0) & (1 - chances[:, 0] > self._settings.speech)
        both = speech & (chances[:, 2] > self._settings.overlap)
        return speech.astype(np.int8) + both.astype(np.int8)

    def _span(self, window: Window) -> tuple[int, int]:
        """First sample of a window and the one after its last."""
        return (
            max(0, int(frame_time(window.first) * SAMPLE_RATE)),
            min(int(frame_time(window.end) * SAMPLE_RATE), self._sound.end),
        )

    def _collect(self) -> None:
        for window, embedding in self._waiting:
            self._windows.append(window)
            self._embeddings.append(embedding.result())
        self._waiting.clear()

    def _forget(self, first: int) -> None:
        """What lies before the frame ``first`` is not needed any more."""
        earliest = self._activities[-1].first  # of any window still to come
        column = earliest * _STEPS_PER_FRAME
        self._responses = self._responses[:, column - self._first_response :].copy()
        self._first_response = column
        self._sound.forget(max(0, min(int(frame_time(first) * SAMPLE_RATE), earliest * FRAME_SAMPLES)))


def _stacked(embeddings: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.array(embeddings, np.float32).reshape(-1, EMBEDDING)


def _frames_within(samples: int) -> int:
    """How many frames begin within so many samples."""
    return max(0, int(np.ceil((samples / SAMPLE_RATE - frame_time(0)) * SAMPLE_RATE / FRAME_SAMPLES)))


def embed(models: Models, samples: Samples) -> NDArray[np.float32]:
    """The embedding of at most two seconds of sound, a unit vector (192,)."""
    features = models.fbank(samples[: FRAME + (MOST_FRAMES - 1) * HOP])
    features -= features.mean(axis=0)
    embedding = models.embedding(features=features[None])[0]
    length = float(np.linalg.norm(embedding))
    return np.asarray(embedding / length if length > 0 else embedding, np.float32)
