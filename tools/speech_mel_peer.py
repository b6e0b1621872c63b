"""The peer's side of `edgellm.tools.speech_mel`: openai-whisper's log-mel spectrograms.

Runs under an interpreter that has the peer and need not have edgellm: ``PYTHON speech_mel_peer.py SOUNDS RESULTS``, two
files of NumPy arrays: sounds of up to 30 s at 16 kHz by name, and (bands, 3000) by name and number of bands.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

FRAMES = 3000
BANDS = (80, 128)


def main() -> None:
    """The command line."""
    audio, torch = importlib.import_module("whisper.audio"), importlib.import_module("torch")
    results: dict[str, Any] = {}
    with np.load(sys.argv[1]) as sounds:
        for name in sounds.files:
            samples = torch.from_numpy(sounds[name])
            padding = audio.N_SAMPLES if len(samples) < audio.N_SAMPLES else 0  # as it transcribes, and as it cuts
            for bands in BANDS:
                spectrogram = audio.log_mel_spectrogram(samples, n_mels=bands, padding=padding)
                results[f"{name}-{bands}"] = np.asarray(spectrogram)[:, :FRAMES]
    np.savez(sys.argv[2], **results)


if __name__ == "__main__":
    main()
