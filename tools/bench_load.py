"""How an engine gets on beside busy processes: ``python -m edgellm.tools.bench_load MODEL [--against PYTHON]``.

For each number of busy processes (Python programs that only count) the ways to run the model take turns in short runs:
the default settings, fixed numbers of threads, and llama.cpp if an interpreter that has llama-cpp-python is named. Each
way has a process of its own, which stays loaded. Figures are medians in tokens per second. At the end the processor
time that the loaded, idle engine uses is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.errors import EdgeLLMError
from edgellm.tools.bench import OURS, PEER, WORKER, peer_command, settle
from edgellm.tools.bench_machine import LoadMeter, process_seconds
from edgellm.tools.bench_process import BenchProcess
from edgellm.tools.bench_results import Figures

BUSY = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
while True:
    pass
"""  # ends with the program that started it, however that ends
DEFAULT = "default"
IDLE_SECONDS = 2.0


@dataclass(frozen=True)
class LoadSettings:
    """What to measure.

    Attributes:
        model: the file.
        busy: numbers of busy processes.
        threads: fixed numbers of threads of edgellm, beside the default settings.
        peer_threads: numbers of threads of the peer.
        decode_tokens: tokens of a run of decoding; 0: none.
        prefill_tokens: tokens of a run of prefill; 0: none.
        rounds: runs of each way.
        against: command of the peer, or None.
    """

    model: Path
    busy: tuple[int, ...] = (0, 1, 2)
    threads: tuple[int, ...] = (1, 2, 4)
    peer_threads: tuple[int, ...] = (1, 2)
    decode_tokens: int = 64
    prefill_tokens: int = 0
    rounds: int = 5
    against: tuple[str, ...] | None = None


@dataclass
class LoadReport:
    """What was measured.

    Attributes:
        speeds: tokens per second by (kind of test, busy processes, way).
        other_cores: by (kind of test, busy processes): cores' worth of what else ran; figures are rough where it is
            not near 0.
        idle_cores: how much of a core the idle engine uses.
    """

    speeds: dict[tuple[str, int, str], Figures] = field(default_factory=dict)
    other_cores: dict[tuple[str, int], float | None] = field(default_factory=dict)
    idle_cores: float = 0.0

    def best(self, kind: str, busy: int, name: str) -> float | None:
        """The best median among the fixed ways of one program."""
        ways = [
            figures.median
            for (a_kind, a_busy, way), figures in self.speeds.items()
            if (a_kind, a_busy) == (kind, busy) and way.startswith(name) and not way.endswith(DEFAULT)
        ]
        return max(ways, default=None)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One object for each kind of test and number of busy processes."""
        for kind, busy in dict.fromkeys((kind, busy) for kind, busy, _way in self.speeds):
            speeds = {way: figures for (*key, way), figures in self.speeds.items() if key == [kind, busy]}
            default = speeds[f"{OURS} {DEFAULT}"].median
            best, peer = self.best(kind, busy, OURS), self.best(kind, busy, PEER)
            yield {
                "test": kind,
                "busy_processes": busy,
                "tokens_per_second": {way: figures.as_object() for way, figures in speeds.items()},
                "default_to_best_fixed": round(default / best, 3) if best else None,
                "default_to_peer": round(default / peer, 3) if peer else None,
                "other_cores": self.other_cores.get((kind, busy)),
            }


@contextmanager
def busy_processes(count: int) -> Iterator[list[int]]:
    """So many processes that keep a core busy; gives their numbers."""
    children = [subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE) for _ in range(count)]
    try:
        time.sleep(0.2 if count else 0.0)
        yield [child.pid for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


def _open_sides(settings: LoadSettings, stack: ExitStack) -> dict[str, BenchProcess]:
    """A loaded process for each way."""
    ways: list[tuple[str, Sequence[str], int | None]] = [(f"{OURS} {DEFAULT}", WORKER, None)]
    ways += [(f"{OURS} {threads}", WORKER, threads) for threads in settings.threads]
    if settings.against is not None:
        ways += [(f"{PEER} {threads}", settings.against, threads) for threads in settings.peer_threads]
    sides = {}
    for name, command, threads in ways:
        sides[name] = side = stack.enter_context(BenchProcess(name, command))
        request = {"do": "open", "model": str(settings.model), "cache_type": "f16", "backend": "cpu"}
        side.ask({**request, "threads": threads})
    return sides


def _idle_cores(side: BenchProcess) -> float:
    settle()
    before = process_seconds(side.identity)
    time.sleep(IDLE_SECONDS)
    return (process_seconds(side.identity) - before) / IDLE_SECONDS


def measure(settings: LoadSettings) -> LoadReport:
    """Measure everything.

    Raises:
        EdgeLLMError: the model cannot be used, or one of the sides fails.
    """
    report = LoadReport()
    with ExitStack() as stack:
        sides = _open_sides(settings, stack)
        for kind, tokens in (("decode", settings.decode_tokens), ("prefill", settings.prefill_tokens)):
            if not tokens:
                continue
            variants = {}
            for name, side in sides.items():
                answer = side.ask({"do": "prepare", "kind": kind, "tokens": tokens, "depth": 0, "batch": 1})
                variants[name] = answer["variants"][0]
            for busy in settings.busy:
                meter = LoadMeter()
                seconds: dict[str, list[float]] = {name: [] for name in sides}
                with busy_processes(busy) as others:
                    for _ in range(settings.rounds):
                        for name, side in sides.items():
                            settle()
                            meter.begin([side.identity, *others])
                            seconds[name].append(side.ask_seconds({"do": "run", "variant": variants[name]}))
                            meter.end([side.identity, *others])
                report.other_cores[kind, busy] = meter.load().as_object()["other_cores"]
                for name, runs in seconds.items():
                    report.speeds[kind, busy, name] = Figures(tuple(tokens / second for second in runs))
        report.idle_cores = _idle_cores(sides[f"{OURS} {DEFAULT}"])
    return report


def _print(report: LoadReport) -> None:
    for row in report.rows():
        speeds = ", ".join(f"{way} {figures['median']:.1f}" for way, figures in row["tokens_per_second"].items())
        print(f"{row['test']}, {row['busy_processes']} busy: {speeds}")
        ratios = [f"default / best fixed {row['default_to_best_fixed']}"]
        if row["default_to_peer"] is not None:
            ratios.append(f"default / best of llama.cpp {row['default_to_peer']}")
        print(f"    {', '.join(ratios)}; others used {row['other_cores']} cores")
    print(f"idle: {report.idle_cores:.3f} cores")


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if not all(0 <= count <= 64 for count in counts):
        raise argparse.ArgumentTypeError("give numbers from 0 to 64")
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m edgellm.tools.bench_load", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--against", metavar="PYTHON", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--busy", type=_counts, default=(0, 1, 2), metavar="N,...", help="numbers of busy processes")
    parser.add_argument("--threads", type=_counts, default=(1, 2, 4), metavar="N,...", help="fixed numbers of threads")
    parser.add_argument("--peer-threads", type=_counts, default=(1, 2), metavar="N,...", help="the same of llama.cpp")
    parser.add_argument("-n", "--tokens", type=int, default=64, help="tokens decoded in a run; 0: none")
    parser.add_argument("-p", "--prompt-tokens", type=int, default=0, help="tokens of a prompt; 0: none")
    parser.add_argument("-r", "--rounds", type=int, default=5, help="runs of each way")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all figures")
    options = parser.parse_args(arguments)
    settings = LoadSettings(
        model=options.model.resolve(),
        busy=options.busy,
        threads=options.threads,
        peer_threads=options.peer_threads,
        decode_tokens=options.tokens,
        prefill_tokens=options.prompt_tokens,
        rounds=options.rounds,
        against=None if options.against is None else peer_command(options.against),
    )
    try:
        report = measure(settings)
    except EdgeLLMError as error:
        parser.exit(1, f"error: {error}\n")
    if options.json:
        print(json.dumps({"tests": list(report.rows()), "idle_cores": report.idle_cores}))
    else:
        _print(report)


if __name__ == "__main__":
    main()
