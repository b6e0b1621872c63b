"""A Whisper model, loaded and ready: sound to encoded windows, and decoders of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.gguf import GGUFFile, open_gguf
from edgellm.memory import trim
from edgellm.models.whisper import WhisperGraphs, build_whisper
from edgellm.platforms.batch import BLOCK_TOKENS, Batch, Float32Array, SpeechExecutor
from edgellm.speech.decoding import Decoder
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.tokens import WhisperTokens
from edgellm.tokenizer import Tokenizer
from edgellm.weights import WeightStore

if TYPE_CHECKING:
    pass

Backend = Literal["cpu", "reference"]
Progress = Callable[[str, int, int], None]
"""Called with a stage ("download", "convert", "kernels", "weights"), how much of it is done and how much there is."""

SAMPLES_PER_FRAME = 160
SAMPLES_PER_ROW = 320
"""Samples of sound for each row of the encoder."""
_EXACT = frozenset({"F32", "F64"})
_FLOATS = _EXACT | {"F16", "BF16"}


class WhisperModel:
    """A loaded model. Made by ``WhisperModel.load``; used by one thread at a time.

    Attributes:
        name: what it was loaded by.
        tokens: its vocabulary.
        graphs: what the executor runs.
        window_samples: samples at 16 kHz of a window, 30 s.
        closed: whether ``close`` was called.
    """

    def __init__(self, name: str, file: GGUFFile, graphs: WhisperGraphs, executor: SpeechExecutor) -> None:
        """Join the parts; use ``WhisperModel.load``."""
        self.name = name
        self.graphs = graphs
        self.tokens = WhisperTokens(Tokenizer.load(file))
        if self.tokens.size != graphs.decoder.vocabulary_size:
            raise EdgeLLMError(f"the vocabulary has {self.tokens.size} tokens, the model another number")
        self.window_samples = SAMPLES_PER_ROW * graphs.encoder.source_length
        self._executor = executor
        self._windows = 0
        self._blocks = 0
        # Not a method of self: that would keep the model alive for ever.
        self._finalizer = weakref.finalize(self, _close, executor, file)

    @classmethod
    def load(
        cls,
        model: str | Path = "tiny.en",
        *,
        backend: Backend = "cpu",
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> WhisperModel:
        """Load a model, downloading and converting it first if need be.

        Args:
            model: alias ("tiny.en", "base"), path of a GGUF file, or "hf:owner/repository".
            backend: "cpu", compiled kernels; or "reference", plain NumPy, slow and exact.
            threads: threads to compute with; by default one per physical core.
            progress: told how far loading is.

        Raises:
            ModelNotFoundError, DownloadError: the model could not be had.
            CorruptFileError, UnsupportedModelError: the file could not be used.
            OutOfMemoryError: the model does not fit the memory that is free.
            InvalidSettingError: an argument is out of range.
        """
        if backend not in get_args(Backend):
            raise InvalidSettingError(f"backend is {backend!r}", f"use one of {', '.join(get_args(Backend))}")
        path = _find(str(model), progress)
        with ExitStack() as cleanup:
            file = open_gguf(path)
            cleanup.callback(file.close)
            graphs = build_whisper(file)
            executor = _executor(backend, graphs, WeightStore(file), threads, progress)
            cleanup.callback(executor.close)
            loaded = cls(Path(model).name, file, graphs, executor)
            file.release()  # all is packed, or read again row by row
            trim()  # what reading the vocabulary left behind
            cleanup.pop_all()
        return loaded

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return not self._finalizer.alive

    def reserve(self, windows: int, hypotheses: int) -> None:
        """Make room for so many windows at once, each with so many hypotheses; memory is taken as it is used.

        Raises:
            OutOfMemoryError: they do not fit the memory.
        """
        blocks = windows * (hypotheses + 1) * -(-self.graphs.decoder.context_length // BLOCK_TOKENS)
        if windows > self._windows:
            self._executor.reserve_sources(windows)
            self._windows = windows
        if blocks > self._blocks:
            self._executor.reserve(blocks)
            self._blocks = blocks

    def decoder(self, settings: TranscriptionSettings) -> Decoder:
        """A decoder of up to ``settings.batch_size`` windows at once."""
        self.reserve(settings.batch_size, max(settings.beam_size, settings.best_of))
        return Decoder(self._executor, self.tokens, settings, self._blocks)

    def spectrogram(self, samples: Float32Array, silence_follows: bool = False) -> Float32Array:
        """Log-mel frames (3000, mel_bins) of up to 30 s of sound at 16 kHz; valid until the next call.

        Frames beyond the sound are 0, as in openai-whisper (``pad_or_trim`` of the spectrogram), or if that is wanted
        those of silence: where speech is cut off, fewer of the words before are heard as something else.
        """
        frames = self._executor.spectrogram(samples)
        count = len(samples) // SAMPLES_PER_FRAME
        frames[count:] = frames[:count].min() if silence_follows and count else 0
        return frames

    def encode(self, frames: Float32Array, window: int) -> None:
        """Run the encoder, and keep the decoder's keys and values of it as number ``window``."""
        self._executor.encode(frames, window)

    def encoded(self) -> Float32Array:
        """What the encoder made of the frames read last, (1500, width); a copy."""
        return self._executor.encoded()

    def detect_language(self, window: int) -> dict[str, float]:
        """The probability of each language, by its code, of a window that is encoded; the likeliest first."""
        tokens = self.tokens
        if not tokens.multilingual:
            return {"en": 1.0}
        if not self._blocks:
            self.reserve(1, 1)
        zero = np.zeros(1, np.int32)
        start = np.array([tokens.start], np.int32)
        batch = Batch(start, zero, zero, zero[None], zero, sources=np.array([window], np.int32))
        logits = self._executor.step(batch)[0][list(tokens.languages.values())].astype(np.float64)
        weights = np.exp(logits - logits.max())
        found = dict(zip(tokens.languages, (weights / weights.sum()).tolist(), strict=True))
        return dict(sorted(found.items(), key=lambda entry: -entry[1]))

    def memory(self) -> dict[str, int]:
        """Bytes held: weights, cache (reserved), buffers."""
        return self._executor.memory()

    def close(self) -> None:
        """Give memory and threads back; a second call does nothing."""
        self._finalizer()


def _find(model: str, progress: Progress | None) -> Path:
    # Imported here: whoever has the model already need not wait for all that fetching takes.
    from edgellm.hub import resolve

    def convert(folder: Path, output: Path, report: Progress | None) -> None:
        from edgellm.convert.whisper import convert_for_hub

        convert_for_hub(folder, output, report)

    return resolve(model, progress=progress, convert=convert)


def _close(executor: SpeechExecutor, file: GGUFFile) -> None:
    executor.close()
    file.close()


def _executor(
    backend: Backend, graphs: WhisperGraphs, weights: WeightStore, threads: int | None, progress: Progress | None
) -> SpeechExecutor:
    if backend == "reference":
        from edgellm.platforms.reference_speech import ReferenceSpeechExecutor

        return ReferenceSpeechExecutor(graphs.encoder, graphs.decoder, weights)
    from edgellm.platforms.cpu_speech import CPUSpeechExecutor

    exact = weights.info("blk.0.attn_q.weight").type.name in _EXACT
    plain = weights.info("blk.0.attn_q.weight").type.name in _FLOATS
    return CPUSpeechExecutor(
        graphs.encoder, graphs.decoder, weights, threads, "f32" if exact else "f16", progress,
        quantized_sources=not plain,
    )  # fmt: skip
