"""How speech to text does on sounds whose truth is known: ``python -m edgellm.tools.check_speech KIND ...``.

``live FILES``: feeds the files, joined, through a pipe to ``edgellm listen --stdin-pcm`` at the speed they would be
spoken, and tells how long after being spoken words were firm, and how many agree with the transcript of the whole.

``silence``: twenty minutes of silence, noise and tones, which hold no word: how many were invented, and how fast.

``gaps FILES``: the files joined with silences of known lengths: whether words lie within the file they are of.

``encoder FILES``: how far the encoder's output is from the reference executor's, in each file's windows of 30 s.

``mel FILES``: how far log-mel spectrograms are from openai-whisper's, which ``--against`` has.

``agreement FILES``: each file by itself: where its words differ from those of a peer, which ``--reference`` holds or
which is asked (``--against``, ``--faster-whisper``); and from what was said, if ``--transcripts`` tells.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edgellm.audio import SAMPLE_RATE, load_audio
from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.speech.agreement import plain
from edgellm.speech.model import WhisperModel
from edgellm.speech.results import Word
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.transcriber import Transcriber
from edgellm.tools.speech_agreement import compare, own_texts, peer_texts, read_texts
from edgellm.tools.speech_mel import check_mel
from edgellm.tools.speech_words import agreement, aligned, split

Samples = npt.NDArray[np.float32]

_PIPE_PIECE = SAMPLE_RATE // 20
_NEAR = 0.2
"""Seconds a word may lie outside its utterance."""


@dataclass(frozen=True)
class LiveFigures:
    """What ``live`` measures.

    Attributes:
        words: firm ones.
        median: seconds from being spoken to being firm.
        slow: that 95 % of the words keep to.
        agreement: share of words that agree with the transcript of the whole.
    """

    words: int
    median: float
    slow: float
    agreement: float


def check_live(samples: Samples, model: str, arguments: Sequence[str] = (), speed: float = 1.0) -> LiveFigures:
    """Feed a sound through a pipe in real time, and compare.

    Raises:
        EdgeLLMError: listening failed, or nothing was heard.
    """
    lines = _listen(samples, model, arguments, speed)
    firm = [word for line in lines if line["type"] == "firm" for word in line["words"]]
    delays = sorted(word["delay"] for word in firm)
    if not delays:
        raise EdgeLLMError("nothing was heard")
    with Transcriber.load(model) as transcriber:
        whole = transcriber.transcribe(samples)
    live = split("".join(word["word"] for word in firm))
    slow = delays[min(len(delays) - 1, round(0.95 * len(delays)))]
    return LiveFigures(len(firm), statistics.median(delays), slow, agreement(split(whole.text), live))


def _listen(samples: Samples, model: str, arguments: Sequence[str], speed: float) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", "from edgellm.cli.main import main; main()", "listen", "--stdin-pcm", "--json"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen([*command, "--model", model, *arguments], stdin=subprocess.PIPE, stdout=output)
        assert process.stdin is not None
        feeder = threading.Thread(target=_feed, args=(process.stdin, samples, speed), daemon=True)
        feeder.start()
        if process.wait() != 0:
            raise EdgeLLMError(f"listen ended with status {process.returncode}")
        output.seek(0)
        return [json.loads(line) for line in output]


def _feed(pipe: IO[bytes], samples: Samples, speed: float) -> None:
    """Write a sound to a pipe as fast as it would be spoken; begins when the reader takes the first piece."""
    content = np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2")  # of 16-bit files the very samples
    began = time.monotonic()
    try:
        for first in range(0, len(content), _PIPE_PIECE):
            due = began + (first + _PIPE_PIECE) / SAMPLE_RATE / speed
            time.sleep(max(0.0, due - time.monotonic()))
            pipe.write(content[first : first + _PIPE_PIECE].tobytes())
            pipe.flush()
        pipe.close()
    except BrokenPipeError:
        pass


@dataclass(frozen=True)
class SilenceFigures:
    """What ``silence`` measures: words invented in so many minutes, and how fast."""

    minutes: float
    words: int
    text: str
    times_real_time: float


def no_speech(minutes: float, seed: int = 0) -> Samples:
    """Silence, noise of three kinds, chords and melodies in turn, ten seconds each."""
    rng = np.random.default_rng(seed)
    length = 10 * SAMPLE_RATE
    seconds = np.arange(length) / SAMPLE_RATE
    parts: list[npt.NDArray[np.float64]] = []
    for number in range(round(minutes * 6)):
        white = rng.normal(size=length)
        melody = np.repeat(220 * 2 ** (rng.integers(0, 24, 40) / 12), length // 40)
        chord = np.sum([np.sin(2 * np.pi * f * seconds) for f in 110 * 2 ** (rng.integers(0, 36, 4) / 12)], 0)
        phase = 2 * np.pi * np.cumsum(melody) / SAMPLE_RATE
        kinds = (
            np.zeros(length),
            0.003 * white,
            0.1 * white,
            0.2 * np.cumsum(white) / np.abs(np.cumsum(white)).max(),
            0.1 * chord * np.exp(-(seconds % 1) * 3),
            0.2 * np.sum([np.sin(phase * overtone) / overtone for overtone in (1, 2, 3, 4)], 0),
        )
        parts.append(kinds[number % len(kinds)])
    return np.clip(np.concatenate(parts), -1, 1).astype(np.float32)


def check_silence(model: str, minutes: float = 20.0) -> SilenceFigures:
    """Transcribe what holds no word."""
    sound = no_speech(minutes)
    with Transcriber.load(model) as transcriber:
        transcriber.transcribe(sound[: 30 * SAMPLE_RATE])
        began = time.perf_counter()
        transcript = transcriber.transcribe(sound)
        seconds = time.perf_counter() - began
    return SilenceFigures(minutes, len(split(transcript.text)), transcript.text, minutes * 60 / seconds)


@dataclass(frozen=True)
class GapFigures:
    """What ``gaps`` measures.

    Attributes:
        words: that could be told to be of one file.
        inside: share of them that lie within it, give or take 0.2 s.
        in_gaps: how many lie in a silence, 0.2 s or more from its ends.
        monotone: whether times never run backwards.
    """

    words: int
    inside: float
    in_gaps: int
    monotone: bool


def check_gaps(sounds: Sequence[Samples], model: str, settings: TranscriptionSettings, seed: int = 0) -> GapFigures:
    """Join sounds with silences of 0.6 to 5 s, transcribe each and all, and see where the words of all lie."""
    rng = np.random.default_rng(seed)
    with Transcriber.load(model) as transcriber:
        texts = [transcriber.transcribe(sound, settings).text for sound in sounds]
        parts, spans, place = [], [], 0.0
        for sound in sounds:
            gap = np.zeros(int(rng.uniform(0.6, 5) * SAMPLE_RATE), np.float32)
            start = place + len(gap) / SAMPLE_RATE
            place = start + len(sound) / SAMPLE_RATE
            spans.append((start, place))
            parts += [gap, sound]
        words = list(transcriber.transcribe(np.concatenate(parts), settings).words)
    owners = [number for number, text in enumerate(texts) for _ in split(text)]
    known = [word for text in texts for word in split(text)]
    pairs = aligned(known, [plain(word.text) for word in words])
    held = [(words[there], spans[owners[here]]) for here, there in pairs]
    inside = sum(start - _NEAR <= word.start and word.end <= end + _NEAR for word, (start, end) in held)
    times = [time for word in words for time in (word.start, word.end)]
    return GapFigures(
        len(held), inside / max(1, len(held)), sum(_in_gap(word, spans) for word in words), times == sorted(times)
    )


def _in_gap(word: Word, spans: Sequence[tuple[float, float]]) -> bool:
    return not any(word.start < end + _NEAR and word.end > start - _NEAR for start, end in spans)


@dataclass(frozen=True)
class EncoderFigures:
    """What ``encoder`` measures.

    Attributes:
        windows: how many were encoded.
        largest: difference of a number from the reference's.
        mean: of all differences.
        beyond: how many numbers differ by more than 1e-3.
        values: the largest magnitude in the reference's results.
    """

    windows: int
    largest: float
    mean: float
    beyond: int
    values: float


def check_encoder(sounds: Sequence[Samples], model: str) -> EncoderFigures:
    """Encode the windows of each sound, one after another, with both executors, from the same log-mel frames."""
    found: list[tuple[float, float, int, float]] = []  # of each window
    with (
        closing(WhisperModel.load(model)) as compiled,
        closing(WhisperModel.load(model, backend="reference")) as reference,
    ):
        for each in (compiled, reference):
            each.reserve(1, 1)
        size = compiled.window_samples
        for sound in sounds:
            for start in range(0, max(len(sound), 1), size):
                frames = compiled.spectrogram(sound[start : start + size]).copy()
                for each in (compiled, reference):
                    each.encode(frames, 0)
                exact = reference.encoded()
                differences = np.abs(compiled.encoded() - exact)
                beyond = int((~(differences <= 1e-3)).sum())  # so counted, what is no number is beyond too
                found.append((float(differences.max()), float(differences.mean()), beyond, float(np.abs(exact).max())))
    largest, means, beyonds, values = zip(*found, strict=True)
    # Python's own maximum would lose what is no number.
    return EncoderFigures(
        len(found), float(np.max(largest)), float(np.mean(means)), sum(beyonds), float(np.max(values))
    )


def check_agreement(given: argparse.Namespace) -> None:
    """Print where transcripts differ."""
    if given.reference:
        peer = read_texts(given.reference)
    elif given.against and given.faster_whisper:
        peer = peer_texts(given.against, given.faster_whisper, given.files, given.beams, given.threads)
    else:
        raise InvalidSettingError("there is nothing to compare with", "give --reference, or --against and its model")
    settings = TranscriptionSettings(beam_size=given.beams, language="en")
    with Transcriber.load(given.model, threads=given.threads) as transcriber:
        own = own_texts(given.files, lambda path: transcriber.transcribe(path, settings).text)
    compared = compare(peer, own)
    for name, theirs, ours in compared.places:
        print(f"  {name}: peer {theirs!r}, here {ours!r}")
    print(compared.shown("here and the peer"))
    if given.transcripts:
        said = read_texts(given.transcripts)
        print(compare(said, own).shown("here and what was said"))
        print(compare(said, {name: peer[name] for name in own if name in peer}).shown("the peer and what was said"))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m edgellm.tools.check_speech", description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=["live", "silence", "gaps", "encoder", "mel", "agreement"])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--minutes", type=float, default=20.0, help="of silence")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the live sound, at most")
    parser.add_argument("--listen", default="", help="more arguments for edgellm listen")
    parser.add_argument("--beams", type=int, default=5, help="of agreement")
    parser.add_argument("--threads", type=int, default=2, help="of agreement")
    parser.add_argument("--reference", type=Path, help="the peer's texts: JSON lines with file and text")
    parser.add_argument("--transcripts", type=Path, help="what was said, likewise, or as .tsv")
    parser.add_argument("--against", metavar="PYTHON", help="an interpreter that has the peer")
    parser.add_argument("--faster-whisper", metavar="FOLDER", help="the model in CTranslate2's format")
    given = parser.parse_intermixed_args(arguments)
    try:
        _check(given)
    except (EdgeLLMError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130)


def _check(given: argparse.Namespace) -> None:
    """Run one check and print what it found."""
    if given.kind == "silence":
        print(check_silence(given.model, given.minutes))
        return
    if not given.files:
        raise InvalidSettingError("no files were named")
    if given.kind == "agreement":
        check_agreement(given)
        return
    sounds = [load_audio(path) for path in given.files]
    if given.kind == "gaps":
        print(check_gaps(sounds, given.model, TranscriptionSettings(word_timestamps=True)))
    elif given.kind == "encoder":
        print(check_encoder(sounds, given.model))
    elif given.kind == "mel":
        if not given.against:
            raise InvalidSettingError("there is nothing to compare with", "give --against PYTHON with openai-whisper")
        print(check_mel(sounds, given.against))
    else:
        joined = np.concatenate(sounds)[: int(given.seconds * SAMPLE_RATE)]
        print(check_live(joined, given.model, given.listen.split()))


if __name__ == "__main__":
    main()
