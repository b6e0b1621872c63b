"""What decoding is made of: rules of timestamps, segments, prompts, searches, times of words; no real model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_whisper
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.convert import ConvertSettings, convert_whisper
from edgellm.errors import EdgeLLMError, InvalidSettingError, UnsupportedModelError
from edgellm.llm import LLM
from edgellm.speech.alignment import TimedWord, fit_to_segment, merge_punctuation, shorten
from edgellm.speech.decoding import Request
from edgellm.speech.model import WhisperModel
from edgellm.speech.packing import TimeMap, Window
from edgellm.speech.results import Segment, Word
from edgellm.speech.rules import NOT_THE_END, TimestampRules, guard_against_repetition
from edgellm.speech.segmentation import REST_SECONDS, compression_ratio, split
from edgellm.speech.sequences import BlockPool
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.stretches import Stretch
from edgellm.speech.tracks import StreamTrack
from edgellm.speech.transcriber import Transcriber
from edgellm.speech.windows import Beginning

END, START, T0, SIZE = 50256, 50257, 50363, 51864


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_whisper.write_ctranslate2(folder, tiny_whisper.tensors())
    return convert_whisper(folder, folder / "tiny.gguf", ConvertSettings("f32")).path


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[WhisperModel]:
    loaded = WhisperModel.load(path, threads=2)
    yield loaded
    loaded.close()


def encoded(model: WhisperModel, windows: int) -> None:
    random = np.random.default_rng(0)
    model.reserve(8, 5)  # as much as any test here asks for: another reservation would forget the windows
    for window in range(windows):
        samples = random.standard_normal(model.window_samples).astype(np.float32) * np.float32(0.1 + window)
        model.encode(model.spectrogram(samples), window)


# -- searches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
def test_windows_side_by_side_are_decoded_as_alone(model: WhisperModel, beams: int) -> None:
    encoded(model, 4)
    decoder = model.decoder(TranscriptionSettings(beam_size=beams, batch_size=4))
    requests = [Request(window, (START, *range(window)), 0) for window in range(4)]
    together = decoder.decode(requests, 0.0)
    for request, result in zip(requests, together, strict=True):
        alone = decoder.decode([request], 0.0)[0]
        assert alone.tokens == result.tokens
        assert alone.average_log_probability == pytest.approx(result.average_log_probability, abs=1e-4)
        assert alone.no_speech_probability == pytest.approx(result.no_speech_probability, abs=1e-5)
        assert len(result.log_probabilities) == len(result.tokens)


def test_timestamps_keep_their_rules(model: WhisperModel) -> None:
    encoded(model, 2)
    for settings_ in (TranscriptionSettings(batch_size=2, beam_size=2), TranscriptionSettings(batch_size=2)):
        for temperature in (0.0, 1.0):
            for result in model.decoder(settings_).decode(
                [Request(0, (START,), 0), Request(1, (START,), 0)], temperature
            ):
                stamps = [token for token in result.tokens if token >= T0]
                assert stamps == sorted(stamps)
                assert T0 <= result.tokens[0] <= T0 + 50
                assert END not in result.tokens
                runs = "".join("t" if token >= T0 else "." for token in result.tokens)
                assert "ttt" not in runs


def test_the_same_seed_draws_the_same(model: WhisperModel) -> None:
    encoded(model, 1)
    chosen = [
        model.decoder(TranscriptionSettings(seed=seed)).decode([Request(0, (START,), 0)], 0.8)[0].tokens
        for seed in (1, 1, 2)
    ]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize("given", [1, 2, 5])
def test_what_would_be_said_anyway_changes_nothing_as_a_prefix(model: WhisperModel, given: int) -> None:
    encoded(model, 2)
    decoder = model.decoder(TranscriptionSettings(beam_size=1, batch_size=2))
    plain = decoder.decode([Request(0, (START,), 0)], 0.0)[0]
    assert len(plain.tokens) > 5
    prefixed = Request(0, (START,), 0, said=plain.tokens[:given])
    other = Request(1, (START,), 0)
    found, beside = decoder.decode([prefixed, other], 0.0)
    assert found.tokens == plain.tokens
    assert beside.tokens == decoder.decode([other], 0.0)[0].tokens
    assert found.log_probabilities[:given] == (0.0,) * given  # they were not in doubt
    assert found.log_probabilities[given:] == pytest.approx(plain.log_probabilities[given:], abs=1e-4)
    assert decoder.decode([prefixed], 0.8)[0].tokens[:given] == plain.tokens[:given]


def test_guards_against_repetition(model: WhisperModel) -> None:
    encoded(model, 1)
    plain = model.decoder(TranscriptionSettings(beam_size=1)).decode([Request(0, (START,), 0)], 0.0)[0].tokens
    guarded = TranscriptionSettings(beam_size=1, no_repeat_ngram_size=2)
    tokens = model.decoder(guarded).decode([Request(0, (START,), 0)], 0.0)[0].tokens
    pairs = list(itertools.pairwise(tokens))
    assert len(set(pairs)) == len(pairs)
    assert tokens[:2] == plain[:2]
    logits = np.array([2.0, -2.0, 1.0], np.float32)
    guard_against_repetition(logits, [0, 1], TranscriptionSettings(repetition_penalty=2.0))
    assert logits.tolist() == [1.0, -4.0, 1.0]


def test_all_blocks_are_given_back(model: WhisperModel) -> None:
    encoded(model, 2)
    decoder = model.decoder(TranscriptionSettings(batch_size=2))
    before = len(decoder._pool._free)
    for temperature in (0.0, 0.7):
        decoder.decode([Request(0, (START,), 0), Request(1, (START, 5), 0)], temperature)
        assert len(decoder._pool._free) == before


def test_a_language_model_is_asked_for(path: Path, tiny_model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="speech model"):
        LLM.load(path)
    with pytest.raises(UnsupportedModelError, match="not a speech model"):
        WhisperModel.load(tiny_model("llama"))


def test_an_english_model_refuses_other_languages(model: WhisperModel) -> None:
    with pytest.raises(InvalidSettingError, match="English alone"):
        model.tokens.start_sequence("de", "transcribe", True)
    with pytest.raises(InvalidSettingError, match="English alone"):
        model.tokens.start_sequence("en", "translate", True)


def test_tokens_that_are_never_chosen(model: WhisperModel) -> None:
    assert {50, START, 50358} <= set(model.tokens.never_chosen((50,)))
    assert END not in model.tokens.never_chosen((-1, END))
    for token in (-5, SIZE, 10**30):
        with pytest.raises(InvalidSettingError, match=f"suppress_tokens has {token}"):
            model.tokens.never_chosen((-1, token))


def test_a_closed_transcriber_says_so(path: Path) -> None:
    transcriber = Transcriber.load(path)
    transcriber.close()
    transcriber.close()
    with pytest.raises(EdgeLLMError, match="closed"):
        transcriber.transcribe(np.zeros(16000, np.float32))


@pytest.mark.parametrize("seconds", [1 / 16000, 0.3, 0.8])
def test_short_sounds(path: Path, seconds: float) -> None:
    """One sample, less and about as much as this small model's window of 0.8 s."""
    with Transcriber.load(path) as transcriber:
        samples = np.zeros(round(16000 * seconds), np.float32)
        transcript = transcriber.transcribe(samples, TranscriptionSettings(vad_filter=False, temperature=(0.0,)))
        assert transcript.duration == pytest.approx(seconds)
        assert all(0 <= segment.start <= segment.end <= seconds for segment in transcript.segments)


# -- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "last", "first_text", "first_timestamp"),
    [
        ([], -1, T0, T0),  # begins with a timestamp
        ([T0], T0, 0, SIZE),  # then text
        ([T0, 7], T0, 0, T0 + 1),  # text, the end, or a later timestamp
        ([T0, 7, T0 + 9], T0 + 9, END, T0 + 9),  # the end or the same timestamp again
        ([T0, 7, T0 + 9, T0 + 9], T0 + 9, 0, SIZE),  # text
    ],
)
def test_rules_of_timestamps(
    said: list[int], last: int, first_text: int, first_timestamp: int, model: WhisperModel
) -> None:
    row = TimestampRules(model.tokens, TranscriptionSettings()).row(said, last)
    assert (row[1], row[2]) == (first_text, first_timestamp)
    assert row[3] == (SIZE if said else T0 + 51)


def test_a_packed_window_is_heard_to_its_end(model: WhisperModel) -> None:
    rules = TimestampRules(model.tokens, TranscriptionSettings())
    said = [T0, 7, T0 + 9, T0 + 9]
    assert rules.row(said, T0 + 9, T0 + 10)[0] == NOT_THE_END
    assert rules.row(said, T0 + 9, T0 + 9)[0] != NOT_THE_END


# -- segments -------------------------------------------------------------------------------------------------------


def test_segments_of_a_window() -> None:
    tokens = [T0, 1, T0 + 50, T0 + 60, 2, 3, T0 + 100]
    parts, reached = split(tokens, T0, 30.0)
    assert [(part.start, part.end, part.tokens[1:-1]) for part in parts] == [(0.0, 1.0, (1,)), (1.2, 2.0, (2, 3))]
    assert reached == 30.0
    parts, reached = split([*tokens, T0 + 100, 4], T0, 30.0)
    assert (len(parts), reached) == (2, 2.0)  # what follows was cut off
    parts, reached = split([*tokens, T0 + 100, 4], T0, 3.0, full=True)
    assert [(part.start, part.end) for part in parts[2:]] == [(2.0, 3.0)]
    assert reached == 3.0
    assert split([*tokens, T0 + 100], T0, 2.0 + REST_SECONDS / 2, full=True)[1] == 2.0 + REST_SECONDS / 2
    assert split([*tokens, T0 + 100], T0, 2.0 + 2 * REST_SECONDS, full=True)[1] == 2.0
    assert split([1, 2], T0, 5.0) == ([split([1, 2], T0, 5.0)[0][0]], 5.0)
    assert split([], T0, 5.0)[1] == 5.0


@given(st.lists(st.integers(0, 80), max_size=40), st.floats(0.2, 30), st.booleans())
def test_any_tokens_give_ordered_times(numbers: list[int], seconds: float, whole: bool) -> None:
    tokens = [T0 + number if number < 40 else number for number in numbers]
    parts, reached = split(tokens, T0, seconds, whole)
    assert 0 <= reached <= max(seconds, 0.8)
    assert all(0 <= part.start <= part.end for part in parts)


def test_repetition_is_seen_by_compression() -> None:
    assert compression_ratio("") == 0
    assert compression_ratio("no, " * 100) > 10 > 2.4 > compression_ratio("A few words that do not repeat.")


# -- words ----------------------------------------------------------------------------------------------------------


def word(text: str, start: float, end: float) -> TimedWord:
    return TimedWord(text, (1,), start, end, 0.5)


def test_punctuation_joins_its_word() -> None:
    words = [word(' "', 0, 1), word(" Hi", 1, 2), word(",", 2, 3), word(" you", 3, 4), word("!", 4, 5)]
    merged = merge_punctuation(words, '"', ",!")
    assert [(one.text, one.start, one.end) for one in merged] == [(' " Hi,', 1, 2), (" you!", 3, 4)]


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from([" a", " b.", ".", " c"])), min_size=1, max_size=12))
@settings(max_examples=100)
def test_words_stay_ordered(steps: list[tuple[float, str]]) -> None:
    times = np.cumsum([0.0, *(length for length, _ in steps)]).tolist()
    words = [word(text, *times[place : place + 2]) for place, (_, text) in enumerate(steps)]
    shortened, median = shorten(words)
    fitted, start, end = fit_to_segment(list(shortened), times[0], times[-1], 0.0, median)
    assert start <= end
    for one in fitted:
        assert one.start <= one.end + 1e-9


def test_tokens_become_words(model: WhisperModel) -> None:
    tokens = model.tokens.encode(" Hello wörld, yes.")
    words = model.tokens.split_to_words(tokens, "en")
    assert [text for text, _ in words] == [" Hello", " wörld", ",", " yes", "."]
    assert [token for _, part in words for token in part] == tokens


# -- memory and settings --------------------------------------------------------------------------------------------


def test_blocks_are_copied_where_they_part() -> None:
    copies: list[tuple[int, int]] = []
    pool = BlockPool(4, lambda source, target: copies.append((source, target)))
    first: list[int] = []
    pool.writable(first, 40)
    second = pool.share(first)
    pool.writable(second, 41)
    assert copies == [(first[1], second[1])]
    assert first[0] == second[0]
    pool.writable(first, 41)
    assert len(copies) == 1
    pool.give(first)
    pool.give(second)
    assert len({pool.take() for _ in range(4)}) == 4
    with pytest.raises(EdgeLLMError, match="full"):
        pool.take()


def test_a_stream_keeps_only_what_may_be_read() -> None:
    track = StreamTrack(iter([np.full(1000, number, np.float32) for number in range(100)]), offset=5.0)
    assert track.read(0.0, 1500).tolist() == [0.0] * 1000 + [1.0] * 500
    assert track.read(1.0, 2000)[0] == 16
    assert len(track._kept) <= 4000
    assert track.start_time(2.0) == pytest.approx(5 + min(2.0, 18 / 16))
    assert len(track.read(100.0, 10)) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("language", "klingon"), ("task", "sing"), ("beam_size", 0), ("beam_size", 99), ("temperature", ()),
        ("temperature", (-1.0,)), ("clip_timestamps", (3.0, 1.0)), ("clip_timestamps", (float("nan"),)),
        ("no_speech_threshold", 2.0), ("batch_size", 0),
    ],
)  # fmt: skip
def test_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(InvalidSettingError, match=name):
        TranscriptionSettings(**{name: value})


def test_settings_in_other_words() -> None:
    assert TranscriptionSettings(language="German").language == "de"
    assert TranscriptionSettings(language="Castilian").language == "es"
    assert TranscriptionSettings(temperature=0).temperature == (0.0,)  # type: ignore[arg-type]
    assert TranscriptionSettings(clip_timestamps=(1, 2, 5)).clips == ((1.0, 2.0), (5.0, None))


def test_a_beginning_that_is_known_is_kept(model: WhisperModel) -> None:
    """And what follows it is what follows it without being told; all blocks are given back."""
    encoded(model, 2)
    for beams in (1, 3):
        decoder = model.decoder(TranscriptionSettings(beam_size=beams, batch_size=2))
        before = len(decoder._pool._free)
        free = decoder.decode([Request(0, (START,), 0), Request(1, (START,), 0)], 0.0)
        said = free[1].tokens[:4]
        score = sum(free[1].log_probabilities[:4])
        told = decoder.decode([Request(0, (START,), 0), Request(1, (START,), 0, said=said, said_score=score)], 0.0)
        assert told[0].tokens == free[0].tokens
        assert told[1].tokens[:4] == said
        if beams == 1:
            assert told[1].tokens == free[1].tokens
            assert told[1].average_log_probability == pytest.approx(free[1].average_log_probability, abs=1e-3)
        drawn = decoder.decode([Request(1, (START,), 0, said=said)], 0.7)[0]
        assert drawn.tokens[:4] == said
        assert len(decoder._pool._free) == before


def test_the_tokens_of_words_that_are_known() -> None:
    letters = {1: " one", 2: " two", 3: ",", 4: " three", 5: "ee"}

    def text(tokens: Any) -> str:
        return "".join(letters.get(token, "") for token in tokens)

    first = Segment(
        0, 0, 2, " one two,", (T0, 1, 2, 3, T0 + 100), words=(Word(0, 1, " one", 1), Word(1, 2, " two,", 1))
    )
    last = Segment(1, 2, 3, " threeee", (T0 + 100, 4, 5, T0 + 150), words=(Word(2, 3, " threeee", 1),))
    known = [Beginning((first, last), count).tokens(text) for count in range(5)]
    assert known[0] == ()
    assert known[1] == (T0, 1)
    assert known[2] == (T0, 1, 2)  # the sign behind it may still change
    assert known[3] == known[4] == (T0, 1, 2, 3, T0 + 100, T0 + 100, 4, 5)
    elsewhere = Segment(1, 2, 3, " threeee", (T0, 4, 5, T0 + 50), words=last.words, seek=200)
    assert Beginning((first, elsewhere), 3).tokens(text) == (T0, 1, 2)


@pytest.mark.parametrize("length", [1, 3, 500])
def test_a_beginning_of_any_length_fits(path: Path, length: int) -> None:
    """One that is longer than what the model can read is searched for again."""
    with Transcriber.load(path) as transcriber:
        tokens = (T0, *transcriber.model.tokens.encode(" a")[-1:] * length)
        text = transcriber.model.tokens.text(tokens)
        assert text.replace(" ", "").isalnum()
        known = Beginning((Segment(0, 0, 2, text, tokens, words=(Word(0, 1, text, 1),)),), 1)
        window = Window(np.zeros(16_000, np.float32), TimeMap([Stretch(0, 16_000)]))
        settings = TranscriptionSettings(language="en", beam_size=2, temperature=(0.0,), logprob_threshold=None)
        found = transcriber.transcribe_window(window, settings, known, cut_off=True)
    assert sum(len(segment.tokens) for segment in found) <= 448
