"""`check_speech`: the encoder, texts of others, and wrong input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_whisper

from edgellm.convert import ConvertSettings, convert_whisper
from edgellm.errors import EdgeLLMError
from edgellm.tools.check_speech import check_encoder, main
from edgellm.tools.speech_agreement import read_texts


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["live"], "no files were named"),
        (["live", "missing.wav"], "there is no file missing.wav"),
        (["agreement", "missing.wav"], "there is nothing to compare with"),
        (["agreement", "missing.wav", "--reference", "missing.json"], "missing.json"),
        (["agreement", "missing.wav", "--against", "./missing", "--faster-whisper", "."], "missing"),
    ],
)
def test_wrong_input_gives_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    line = capsys.readouterr().err
    assert left.value.code == 1
    assert line.startswith("error: ")
    assert said in line
    assert line.count("\n") == 1


def test_texts_are_read_from_both_forms(tmp_path: Path) -> None:
    lines, table = tmp_path / "texts.jsonl", tmp_path / "texts.tsv"
    lines.write_text('{"file": "sounds/a.wav", "text": "one two"}\n')
    table.write_text("file\ttext\na.wav\tone two\n")
    assert read_texts(lines) == read_texts(table) == {"a.wav": "one two"}


@pytest.mark.parametrize(("kind", "least", "most"), [("f32", 0, 1e-5), ("q8_0", 1e-4, 1)])
def test_the_encoder_is_compared_with_the_reference(kind: str, least: float, most: float, tmp_path: Path) -> None:
    tiny_whisper.write_ctranslate2(tmp_path, tiny_whisper.tensors())
    path = convert_whisper(tmp_path, tmp_path / "model.gguf", ConvertSettings(kind)).path
    random = np.random.default_rng(0)
    sounds = [random.standard_normal(count).astype(np.float32) for count in (0, 9, 2 * 320 * tiny_whisper.SOURCE + 1)]
    figures = check_encoder(sounds, str(path))
    assert figures.windows == 1 + 1 + 3
    assert (figures.beyond == 0) == (kind == "f32")
    assert least <= figures.mean <= figures.largest <= most < figures.values


def test_what_is_no_number_is_told_of(tmp_path: Path) -> None:
    """In whichever window it is."""
    weights = tiny_whisper.tensors()
    weights["encoder.ln_post.bias"][3] = np.nan
    tiny_whisper.write_ctranslate2(tmp_path, weights)
    path = convert_whisper(tmp_path, tmp_path / "model.gguf", ConvertSettings("f32")).path
    figures = check_encoder([np.ones(9, np.float32), np.ones(8, np.float32)], str(path))
    assert np.isnan(figures.largest)
    assert figures.beyond == 2 * tiny_whisper.SOURCE


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b'{"file": 1}', b"text\n"])
def test_texts_that_are_none_are_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(content)
    with pytest.raises(EdgeLLMError, match=r"texts\.jsonl"):
        read_texts(path)
