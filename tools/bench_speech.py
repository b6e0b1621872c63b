"""Speed and memory of speech to text, against peers taking turns: ``python -m edgellm.tools.bench_speech FILES ...``.

The files are joined, repeated to the length wanted, and transcribed by a new process for each run, which loads the
model and transcribes five seconds before the clock starts. Every process decodes with the same number of beams.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgellm.audio import SAMPLE_RATE, load_audio
from edgellm.errors import EdgeLLMError

_OWN = """
import json, sys, time
import numpy as np
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.transcriber import Transcriber
from edgellm.tools.bench_speech_peer import peak_bytes
model, sound, threads, beams = sys.argv[1:5]
with Transcriber.load(model, threads=int(threads)) as transcriber:
    settings = TranscriptionSettings(beam_size=int(beams), language="en")
    samples = np.load(sound)
    transcriber.transcribe(samples[:80000], settings)
    began = time.perf_counter()
    text = transcriber.transcribe(samples, settings).text
    seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "peak": peak_bytes(), "words": len(text.split())}))
"""


@dataclass(frozen=True)
class Figures:
    """Of one program, medians over the runs: times real time, peak memory in MB, and words heard."""

    program: str
    times_real_time: float
    megabytes: float
    words: int


def joined(files: Sequence[Path], seconds: float) -> npt.NDArray[np.float32]:
    """The sounds one after the other, again and again up to a length."""
    sound = np.concatenate([load_audio(path) for path in files])
    if not len(sound):
        raise EdgeLLMError("the files hold no sound")
    return np.resize(sound, round(seconds * SAMPLE_RATE))


def measure(commands: dict[str, list[str]], seconds: float, runs: int) -> list[Figures]:
    """Run the commands in turn, so many times each."""
    found: dict[str, list[dict[str, float]]] = {program: [] for program in commands}
    for _ in range(runs):
        for program, command in commands.items():
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if result.returncode:
                raise EdgeLLMError(f"{program} ended with status {result.returncode}")
            found[program].append(json.loads(result.stdout.splitlines()[-1]))
    medians = {
        program: {key: statistics.median(run[key] for run in entries) for key in ("seconds", "peak", "words")}
        for program, entries in found.items()
    }
    return [
        Figures(program, seconds / values["seconds"], values["peak"] / 1e6, round(values["words"]))
        for program, values in medians.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m edgellm.tools.bench_speech", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--seconds", type=float, default=600.0, help="of sound")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--against", metavar="PYTHON", help="an interpreter that has the peers")
    parser.add_argument("--faster-whisper", metavar="FOLDER", help="the model in CTranslate2's format")
    parser.add_argument("--whisper-cpp", metavar="FILE", help="the model in whisper.cpp's format")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "sound.npy"
        np.save(sound, joined(given.files, given.seconds))
        rest = [str(sound), str(given.threads), str(given.beams)]
        commands = {"edgellm": [sys.executable, "-c", _OWN, given.model, *rest]}
        peer = str(Path(__file__).with_name("bench_speech_peer.py"))
        for name, model in (("faster-whisper", given.faster_whisper), ("whisper.cpp", given.whisper_cpp)):
            if given.against and model:
                commands[name] = [given.against, peer, name, model, *rest]
        for figures in measure(commands, given.seconds, given.runs):
            print(
                f"{figures.program:15} {figures.times_real_time:6.1f} times real time, "
                f"{figures.megabytes:5.0f} MB, {figures.words} words"
            )


if __name__ == "__main__":
    try:
        main()
    except (EdgeLLMError, OSError) as error:
        sys.exit(f"error: {error}")
