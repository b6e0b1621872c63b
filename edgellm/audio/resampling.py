"""Changing the sample rate of a stream, by soxr."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellm.audio.decoders import SAMPLE_RATE, Samples
from edgellm.errors import EdgeLLMError


class Resampler:
    """Blocks of (samples, channels) at one rate become blocks at 16 kHz.

    The filter is soxr's high quality one (20 bits, linear phase). It holds samples back, which ``flush`` gives out.

    Raises:
        EdgeLLMError: the package soxr is missing.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._channels = channels
        self._stream: Any = None
        if sample_rate != SAMPLE_RATE:
            try:
                import soxr
            except ImportError as error:
                raise EdgeLLMError("resampling needs the package soxr", "pip install 'edgellm[speech]'") from error
            self._stream = soxr.ResampleStream(sample_rate, SAMPLE_RATE, channels, dtype="float32", quality="HQ")

    def push(self, block: Samples) -> Samples:
        """The samples that are ready after this block."""
        return block if self._stream is None else self._run(block, last=False)

    def flush(self) -> Samples:
        """The samples still held back; nothing may be pushed afterwards."""
        empty = np.empty((0, self._channels), np.float32)
        return empty if self._stream is None else self._run(empty, last=True)

    def _run(self, block: Samples, last: bool) -> Samples:
        result = self._stream.resample_chunk(np.ascontiguousarray(block, np.float32), last=last)
        return np.asarray(result, np.float32).reshape(-1, self._channels)
