"""Log-mel spectrograms against openai-whisper's: see `edgellm.tools.check_speech`."""

from __future__ import annotations

import subprocess
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import EdgeLLMError
from edgellm.folders import kernels_folder
from edgellm.kernels.library import KernelLibrary
from edgellm.kernels.target import current_target
from edgellm.platforms.mel import HOP, KERNELS, MelPlan
from edgellm.platforms.threads import KERNELS as TEAM_KERNELS
from edgellm.platforms.threads import ThreadTeam
from edgellm.tools.speech_mel_peer import BANDS, FRAMES

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class MelFigures:
    """What ``mel`` measures.

    Attributes:
        windows: of 30 s or less.
        largest: difference of a number from the peer's, with 80 bands.
        largest_of_128: the same with 128.
    """

    windows: int
    largest: float
    largest_of_128: float


def check_mel(sounds: Sequence[Samples], python: str) -> MelFigures:
    """Compare the windows of each sound, one after another.

    Raises:
        EdgeLLMError: there is no sound, or the peer failed or gave something else than it should.
    """
    size = HOP * FRAMES
    windows = [sound[start : start + size] for sound in sounds for start in range(0, max(len(sound), 1), size)]
    named = {str(number): window for number, window in enumerate(windows) if len(window)}
    if not named:
        raise EdgeLLMError("the files hold no sound", "name others")
    expected = peer_spectrograms(python, named)
    library = KernelLibrary(current_target(), kernels_folder())
    addresses = library.load(sorted({*KERNELS, *TEAM_KERNELS}))
    with closing(ThreadTeam(addresses, 2, library)) as team:
        largest = []
        for bands in BANDS:
            plan = MelPlan(bands, FRAMES, team, addresses)
            found = ((plan.run(window)[:, :bands].T, expected[f"{name}-{bands}"]) for name, window in named.items())
            each = [float(np.abs(ours - theirs).max()) for ours, theirs in found]
            largest.append(float(np.max(each)))  # Python's own maximum would lose what is no number
    return MelFigures(len(named), *largest)


def peer_spectrograms(python: str, sounds: Mapping[str, Samples]) -> dict[str, Samples]:
    """openai-whisper's spectrograms (bands, FRAMES) by the name of a sound and the number of bands.

    Raises:
        EdgeLLMError: it failed, or gave something else.
    """
    with tempfile.TemporaryDirectory() as folder:
        sent, answer = Path(folder, "sounds.npz"), Path(folder, "results.npz")
        content: dict[str, Any] = dict(sounds)
        try:
            np.savez(sent, **content)
        except OSError as error:
            raise EdgeLLMError(
                f"the sounds cannot be given to the peer: {error.strerror}",
                f"make room in {tempfile.gettempdir()} or set TMPDIR",
            ) from error
        _run_peer(python, sent, answer)
        try:
            with np.load(answer, allow_pickle=False) as results:
                spectrograms = {name: results[name] for name in results.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise EdgeLLMError(f"what openai-whisper gave cannot be read: {error}") from error
    for name in sounds:
        for bands in BANDS:
            if spectrograms.get(f"{name}-{bands}", np.zeros(0)).shape != (bands, FRAMES):
                raise EdgeLLMError(f"openai-whisper gave no spectrogram of {bands} bands and {FRAMES} frames")
    return spectrograms


def _run_peer(python: str, sent: Path, answer: Path) -> None:
    script = Path(__file__).with_name("speech_mel_peer.py")
    try:
        result = subprocess.run([python, str(script), sent, answer], capture_output=True, text=True, check=False)
    except OSError as error:
        raise EdgeLLMError(f"{python} cannot be run: {error.strerror}", "name an interpreter") from error
    if result.returncode:
        said = result.stderr.strip().splitlines() or [f"status {result.returncode}"]
        raise EdgeLLMError(f"openai-whisper failed: {said[-1]}")
