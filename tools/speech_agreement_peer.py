"""The peer's side of `edgellm.tools.speech_agreement`: what faster-whisper hears in files, with float32 arithmetic.

Runs under an interpreter that has the peer and need not have edgellm:
``PYTHON speech_agreement_peer.py MODEL BEAMS THREADS FILE ...``, which prints one JSON object of texts by file name.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    """The command line."""
    model, beams, threads, *files = sys.argv[1:]
    peer = importlib.import_module("faster_whisper")
    loaded = peer.WhisperModel(model, device="cpu", compute_type="float32", cpu_threads=int(threads))
    texts = {}
    for path in files:
        segments, _ = loaded.transcribe(path, language="en", beam_size=int(beams))
        texts[Path(path).name] = "".join(segment.text for segment in segments)
    print(json.dumps(texts))


if __name__ == "__main__":
    main()
