"""Transcripts of files against those of a peer, and of both against what was said: see `edgellm.tools.check_speech`."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import EdgeLLMError
from edgellm.tools.speech_words import edits, split


@dataclass(frozen=True)
class Compared:
    """Words of some files.

    Attributes:
        files: how many.
        words: of the reference.
        edits: words to change, add or leave out.
        places: file by file, the words of the reference and those in their place.
    """

    files: int
    words: int
    edits: int
    places: tuple[tuple[str, str, str], ...]

    def shown(self, name: str) -> str:
        """In a line."""
        share = 100 * (1 - self.edits / max(1, self.words))
        return f"{name}: {self.files} files, {self.edits} edits in {self.words} words, {share:.2f} % agree"


def compare(reference: Mapping[str, str], texts: Mapping[str, str]) -> Compared:
    """Texts by file name; files that only one side has are left out."""
    words = total = 0
    places: list[tuple[str, str, str]] = []
    common = [name for name in texts if name in reference]
    for name in common:
        expected, found = split(reference[name]), split(texts[name])
        words += len(expected)
        for first, last, begin, end in edits(expected, found):
            total += max(last - first, end - begin)
            places.append((name, " ".join(expected[first:last]), " ".join(found[begin:end])))
    return Compared(len(common), words, total, tuple(places))


def read_texts(path: Path) -> dict[str, str]:
    """Texts by file name: of JSON lines with ``file`` and ``text``, or a table of both in tab-separated columns.

    Raises:
        EdgeLLMError: the file cannot be read, or has no such columns.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            table: Iterator[Mapping[str, str]] = (
                csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
                if path.suffix == ".tsv"
                else (json.loads(line) for line in lines)
            )
            return {Path(row["file"]).name: row["text"] for row in table}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgeLLMError(
            f"{path} holds no texts of files ({error})", "give JSON lines or a .tsv with file and text"
        ) from error


def peer_texts(python: str, model: str, files: Sequence[Path], beams: int, threads: int = 2) -> dict[str, str]:
    """What faster-whisper hears with float32 arithmetic.

    Raises:
        EdgeLLMError: it failed.
    """
    script = Path(__file__).with_name("speech_agreement_peer.py")
    command = [python, str(script), model, str(beams), str(threads), *map(str, files)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise EdgeLLMError(f"{python} cannot be run: {error.strerror}", "name an interpreter") from error
    if result.returncode:
        said = result.stderr.strip().splitlines() or [f"status {result.returncode}"]
        raise EdgeLLMError(f"faster-whisper failed: {said[-1]}")
    return {str(name): str(text) for name, text in json.loads(result.stdout.splitlines()[-1]).items()}


def own_texts(files: Sequence[Path], transcribe: Callable[[Path], str]) -> dict[str, str]:
    """What is heard in each file."""
    return {path.name: transcribe(path) for path in files}
