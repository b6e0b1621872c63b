"""The peer's side of the benchmark of speech to text: faster-whisper, or whisper.cpp through pywhispercpp.

Runs under an interpreter that has the peer and need not have edgellm, so it imports nothing else:
``PYTHON bench_speech_peer.py PEER MODEL SOUND.npy THREADS BEAMS``, which prints one JSON object.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """Most physical memory this process ever occupied."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def faster_whisper(model: str, threads: int, beams: int) -> Callable[[Any], str]:
    """Its fastest way on a processor: int8, and windows that are not told the text before them, as edgellm does it."""
    peer = importlib.import_module("faster_whisper")
    loaded = peer.WhisperModel(model, device="cpu", compute_type="int8", cpu_threads=threads)

    def run(samples: Any) -> str:
        segments, _ = loaded.transcribe(samples, language="en", beam_size=beams, condition_on_previous_text=False)
        return "".join(segment.text for segment in segments)

    return run


def whisper_cpp(model: str, threads: int, beams: int) -> Callable[[Any], str]:
    """By its usual options."""
    peer = importlib.import_module("pywhispercpp.model")
    strategy = {"params_sampling_strategy": 1} if beams > 1 else {}
    loaded = peer.Model(model, n_threads=threads, print_progress=False, print_realtime=False, language="en", **strategy)

    def run(samples: Any) -> str:
        options = {"beam_search": {"beam_size": beams, "patience": -1.0}} if beams > 1 else {}
        return "".join(segment.text for segment in loaded.transcribe(samples, **options))

    return run


def main() -> None:
    """The command line."""
    import numpy as np

    peer, model, sound, threads, beams = sys.argv[1:6]
    run = {"faster-whisper": faster_whisper, "whisper.cpp": whisper_cpp}[peer](model, int(threads), int(beams))
    samples = np.load(sound)
    run(samples[: 16000 * 5])
    began = time.perf_counter()
    text = run(samples)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak": peak_bytes(), "words": len(text.split())}))


if __name__ == "__main__":
    main()
