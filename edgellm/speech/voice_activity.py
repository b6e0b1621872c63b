"""Where in a sound somebody speaks: Silero's voice activity model, run by ONNX Runtime, block by block.

The model (Silero VAD 6, MIT licence) gives a probability of speech for every 32 ms. Stretches of speech are made of
them by the rule that comes with it: speech begins where the probability reaches ``threshold`` and ends where it stays
below ``neg_threshold`` for ``min_silence_duration_ms``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgellm.audio import SAMPLE_RATE
from edgellm.errors import CorruptFileError, EdgeLLMError, InvalidSettingError
from edgellm.speech.stretches import FRAME, Stretch, StretchFinder

Samples = npt.NDArray[np.float32]

DEFAULT_MODEL = "silero-vad"

_CONTEXT = 64
"""Samples of the frame before that the model sees with each frame."""
_STATE = (1, 1, 128)
_MOST_FRAMES = 512
"""In one call: 16 s."""


@dataclass(frozen=True)
class VoiceActivitySettings:
    """When sound counts as speech; the names are Silero's and faster-whisper's.

    Attributes:
        threshold: probability from which on it is speech.
        neg_threshold: probability below which speech ends; None is 0.15 under ``threshold``.
        min_speech_duration_ms: shorter stretches are left out.
        max_speech_duration_s: longer stretches are cut in a pause, or else where they are quietest; ``inf`` cuts none.
        min_silence_duration_ms: shorter pauses do not end a stretch.
        speech_pad_ms: added on both sides of a stretch, at most half of the pause beside it.

    Raises:
        InvalidSettingError: a setting is out of range.
    """

    threshold: float = 0.5
    neg_threshold: float | None = None
    min_speech_duration_ms: int = 250
    max_speech_duration_s: float = 30.0
    min_silence_duration_ms: int = 500
    speech_pad_ms: int = 200

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InvalidSettingError(f"threshold is a probability above 0 and up to 1, not {self.threshold}")
        if self.neg_threshold is not None and not 0 <= self.neg_threshold <= self.threshold:
            raise InvalidSettingError(f"neg_threshold is from 0 to the threshold, not {self.neg_threshold}")
        for name in ("min_speech_duration_ms", "min_silence_duration_ms", "speech_pad_ms"):
            if not 0 <= getattr(self, name) <= 3_600_000:
                raise InvalidSettingError(f"{name} is a time from 0 to an hour, not {getattr(self, name)}")
        if not self.max_speech_duration_s >= 1:
            raise InvalidSettingError(f"max_speech_duration_s is at least 1, not {self.max_speech_duration_s}")
        if self.max_speech_duration_s * 1000 < self.min_speech_duration_ms + 4 * self.speech_pad_ms:
            raise InvalidSettingError(
                f"max_speech_duration_s, {self.max_speech_duration_s:g}, is too short for min_speech_duration_ms, "
                f"{self.min_speech_duration_ms}, and padding, {self.speech_pad_ms}"
            )

    def finder(self) -> StretchFinder:
        """What makes stretches of probabilities under these settings."""
        negative = max(self.threshold - 0.15, 0.01) if self.neg_threshold is None else self.neg_threshold
        longest = self.max_speech_duration_s * SAMPLE_RATE
        per_ms = SAMPLE_RATE // 1000
        return StretchFinder(
            threshold=self.threshold,
            neg_threshold=negative,
            min_speech=self.min_speech_duration_ms * per_ms,
            max_speech=int(longest) if math.isfinite(longest) else None,
            min_silence=self.min_silence_duration_ms * per_ms,
            pad=self.speech_pad_ms * per_ms,
        )


class VoiceActivityModel:
    """Silero's model in memory. It keeps no state of a sound, so several streams may share it.

    Raises:
        EdgeLLMError: the package onnxruntime is missing.
        CorruptFileError: the file is not the model.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise EdgeLLMError(
                "finding speech needs the package onnxruntime", "pip install 'edgellm[speech]', or turn it off"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other threads have work to do
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(Path(path)), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors share no class but this
            raise CorruptFileError(
                f"{path} is not a voice activity model", f"get it with: edgellm pull {DEFAULT_MODEL}"
            ) from error
        names = [value.name for value in self._session.get_inputs()]
        if names != ["input", "h", "c"]:
            raise CorruptFileError(
                f"{path} is not Silero's sequence model: it takes {', '.join(names)}",
                f"get it with: edgellm pull {DEFAULT_MODEL}",
            )

    @classmethod
    def load(cls, model: str = DEFAULT_MODEL, *, threads: int = 1, offline: bool = False) -> VoiceActivityModel:
        """Load it by name or path; fetched if it is not on this machine.

        Raises:
            EdgeLLMError: it cannot be found, fetched or read.
        """
        from edgellm.hub import resolve

        return cls(resolve(model, offline=offline), threads)

    def run(self, frames: Samples, hidden: Samples, cell: Samples) -> tuple[Samples, Samples, Samples]:
        """Probabilities of frames (count, 64 + 512), and the state after them (1, 1, 128)."""
        outputs = self._session.run(["speech_probs", "hn", "cn"], {"input": frames, "h": hidden, "c": cell})
        return outputs[0].reshape(-1), outputs[1], outputs[2]


class VoiceActivityDetector:
    """Finds the stretches of speech in one stream of 16 kHz samples, as they come in.

    Args:
        model: may be shared.
        settings: when sound counts as speech.
    """

    def __init__(self, model: VoiceActivityModel, settings: VoiceActivitySettings | None = None) -> None:
        self._model = model
        self._finder = (settings or VoiceActivitySettings()).finder()
        self._hidden = np.zeros(_STATE, np.float32)
        self._cell = np.zeros(_STATE, np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)
        self._rest = np.empty(0, np.float32)
        self._samples = 0

    @property
    def samples(self) -> int:
        """Pushed so far."""
        return self._samples

    @property
    def speaking_since(self) -> int | None:
        """Where the stretch begins that is not over yet, its padding included; None if nobody speaks."""
        return self._finder.speaking_since

    @property
    def silent_since(self) -> int:
        """The sample after the last frame that may have been speech; 0 while there was none."""
        return self._finder.silent_since

    @property
    def settled(self) -> int:
        """Samples before this one belong to no stretch that is still to be told."""
        return self._finder.settled

    def push(self, samples: Samples) -> list[Stretch]:
        """Take more samples; returns the stretches that are over now, in order."""
        self._samples += len(samples)
        joined = np.concatenate((self._rest, samples)) if len(self._rest) else samples
        whole = len(joined) - len(joined) % FRAME
        self._rest = joined[whole:].copy()
        return self._finder.push(self._probabilities(joined[:whole]))

    def flush(self) -> list[Stretch]:
        """The stretches left when the sound has ended; nothing may be pushed afterwards."""
        stretches = []
        if len(self._rest):
            padded = np.zeros(FRAME, np.float32)
            padded[: len(self._rest)] = self._rest
            self._rest = np.empty(0, np.float32)
            stretches = self._finder.push(self._probabilities(padded))
        return stretches + self._finder.flush(self._samples)

    def _probabilities(self, samples: Samples) -> npt.NDArray[np.float32]:
        found = [np.empty(0, np.float32)]
        for frames in self._frames(samples):
            probabilities, self._hidden, self._cell = self._model.run(frames, self._hidden, self._cell)
            found.append(probabilities)
        return np.concatenate(found)

    def _frames(self, samples: Samples) -> Iterator[Samples]:
        """Whole frames, each behind the last samples of the one before: (count, 64 + 512)."""
        for first in range(0, len(samples), FRAME * _MOST_FRAMES):
            part = samples[first : first + FRAME * _MOST_FRAMES].reshape(-1, FRAME)
            frames = np.empty((len(part), _CONTEXT + FRAME), np.float32)
            frames[:, _CONTEXT:] = part
            frames[0, :_CONTEXT] = self._context
            frames[1:, :_CONTEXT] = part[:-1, -_CONTEXT:]
            self._context = part[-1, -_CONTEXT:].copy()
            yield frames


def find_speech(
    samples: Samples, model: VoiceActivityModel, settings: VoiceActivitySettings | None = None
) -> list[Stretch]:
    """The stretches of speech in 16 kHz samples."""
    detector = VoiceActivityDetector(model, settings)
    return detector.push(samples) + detector.flush()
