"""How well and how fast speakers are told apart: ``python -m edgellm.tools.score_diarization SOUND...``.

Each sound needs its truth beside it, an RTTM file of the same name, or the one given with --reference for all. Prints
the error rate with a collar of 0.25 s on each side and without, overlap counted, and whether the number of speakers is
right. With --minutes, times the diarizer on the sounds one after another, repeated up to that length.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from edgellm.audio import load_audio
from edgellm.diarization import Diarizer, ErrorRate, Turn, diarization_error_rate, read_rttm
from edgellm.diarization.rttm import read_uem
from edgellm.errors import EdgeLLMError

_RATE = 16_000


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", nargs="+", type=Path, metavar="SOUND")
    parser.add_argument("--reference", type=Path, help="one RTTM file for all sounds")
    parser.add_argument("--uem", type=Path, help="the parts to score")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, nargs="*", default=[], help="measure the speed on so much sound")
    options = parser.parse_args()
    with Diarizer.load(threads=options.threads) as diarizer:
        if options.minutes:
            measure(diarizer, options.sounds, options.minutes)
        else:
            score(diarizer, options.sounds, options.reference, options.uem)


def score(diarizer: Diarizer, sounds: list[Path], reference: Path | None, uem: Path | None) -> None:
    """Print the error rate of each sound and of all together."""
    truth = read_rttm(reference) if reference else {}
    parts = read_uem(uem) if uem else {}
    near, exact, right = ErrorRate(), ErrorRate(), 0
    for sound in sounds:
        turns = truth[sound.stem] if reference else _beside(sound)
        found = diarizer.diarize(sound)
        rates = [
            diarization_error_rate(turns, found.turns, collar, False, parts.get(sound.stem)) for collar in (0.25, 0)
        ]
        near, exact = near + rates[0], exact + rates[1]
        speakers = len({turn.speaker for turn in turns})
        right += speakers == len(found.speakers)
        figures = " / ".join(f"{100 * rate.rate:.2f}" for rate in rates)
        print(f"{sound.stem}: {figures} %, {len(found.speakers)} speakers of {speakers}", flush=True)
    shares = [100 * part / max(exact.total, 1e-9) for part in (exact.missed, exact.false_alarm, exact.confusion)]
    print(f"all: {100 * near.rate:.2f} / {100 * exact.rate:.2f} %, {right} of {len(sounds)} with the right number")
    print("without collar: missed {:.2f} %, false alarms {:.2f} %, confusion {:.2f} %".format(*shares))


def measure(diarizer: Diarizer, sounds: list[Path], minutes: list[float]) -> None:
    """Print how many times real time the diarizer is, and the memory it takes."""
    sound = np.concatenate([load_audio(path) for path in sounds])
    diarizer.diarize(sound[: 30 * _RATE])
    for length in minutes:
        samples = np.resize(sound, round(60 * length * _RATE))
        wall, cpu = time.perf_counter(), time.process_time()
        found = diarizer.diarize(samples)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        speed = f"{length:g} minutes: {wall:.2f} s, {found.duration / wall:.1f} times real time"
        memory = f"{_memory() - samples.nbytes / 1e6:.0f} MB without the sound"
        print(f"{speed}, {cpu / length:.2f} s of processor for a minute, {memory}", flush=True)


def _beside(sound: Path) -> list[Turn]:
    found = read_rttm(sound.with_suffix(".rttm"))
    if len(found) != 1:
        raise EdgeLLMError(f"{sound.with_suffix('.rttm')} speaks of {len(found)} files, expected one")
    return next(iter(found.values()))


def _memory() -> float:
    """Resident memory of this process in megabytes; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
    except OSError:
        return 0.0


if __name__ == "__main__":
    main()
