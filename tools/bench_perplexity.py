"""How fast perplexity is measured: ``python -m edgellm.tools.bench_perplexity MODEL TEXT --against PYTHON``.

edgellm and llama.cpp (through an interpreter that has llama-cpp-python) compute the same windows in turn. The peer's
time is that of its batches alone; with reading the losses off the logits in NumPy it is given too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from edgellm.errors import EdgeLLMError
from edgellm.evaluation.windows import Windows, WindowSettings
from edgellm.hub import resolve
from edgellm.llm import LLM
from edgellm.scoring import ScoredText
from edgellm.tools.bench_process import BenchProcess, number_of

PEER_SCRIPT = Path(__file__).with_name("bench_perplexity_peer.py")


@dataclass(frozen=True)
class Comparison:
    """Seconds of each run, and both perplexities."""

    ours: tuple[float, ...]
    peer: tuple[float, ...]
    peer_scored: tuple[float, ...]
    perplexity: float
    peer_perplexity: float

    @property
    def ratio(self) -> float:
        """How many times as fast edgellm is."""
        return median(self.peer) / median(self.ours)


def compare(
    model: str, text: str, settings: WindowSettings, threads: int, repetitions: int, peer: Sequence[str]
) -> Comparison:
    """Run both sides in turn, ``repetitions`` times.

    Raises:
        EdgeLLMError: a side cannot run the model.
    """
    path = resolve(model)
    ours, theirs, scored, losses, peer_perplexity = [], [], [], np.zeros(0), 0.0
    with LLM.load(path, context=settings.context, threads=threads) as llm, BenchProcess("llama.cpp", peer) as other:
        other.ask({"do": "open", "model": str(path), "threads": threads, "context": settings.context})
        windows: list[ScoredText] = list(Windows(llm.tokenizer, text, settings))
        request = {"do": "run", "windows": [list(window.tokens) for window in windows], "first": windows[0].first}
        list(llm.score(windows[:1]))
        other.ask({**request, "windows": request["windows"][:1]})  # type: ignore[index]
        for _ in range(repetitions):
            begin = time.perf_counter()
            losses = np.concatenate([-found.logprobs for found in llm.score(windows)])
            ours.append(time.perf_counter() - begin)
            answer = other.ask(request)
            theirs.append(number_of(answer, "seconds", other.name))
            scored.append(number_of(answer, "scored_seconds", other.name))
            peer_perplexity = number_of(answer, "perplexity", other.name)
    perplexity = float(np.exp(losses.mean()))
    return Comparison(tuple(ours), tuple(theirs), tuple(scored), perplexity, peer_perplexity)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--against", required=True, metavar="PYTHON", help="a Python that has llama-cpp-python")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args(arguments)
    try:
        text = given.text.read_text(encoding="utf-8")
        settings = WindowSettings(given.context, given.windows)
        command = (given.against, str(PEER_SCRIPT))
        found = compare(given.model, text, settings, given.threads, given.repetitions, command)
    except (EdgeLLMError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    tokens = given.context * given.windows
    print(f"edgellm    {tokens / median(found.ours):8.0f} tok/s, perplexity {found.perplexity:.4f}")
    print(f"llama.cpp  {tokens / median(found.peer):8.0f} tok/s, perplexity {found.peer_perplexity:.4f}")
    print(f"           {tokens / median(found.peer_scored):8.0f} tok/s with the losses read off its logits in NumPy")
    print(f"ratio      {found.ratio:8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
