"""Measure how fast a model runs here, alone or in turns with llama.cpp; ``edgellm bench`` shows what this finds.

Each side runs in a process of its own and is idle while the other one is measured. Every test is run once untimed and
then ``repetitions`` times, the sides taking turns, so that whatever slows the machine down slows both. Figures are
medians; the spread is given beside them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgellm.errors import EdgeLLMError
from edgellm.tools.bench_machine import LoadMeter, load_now
from edgellm.tools.bench_process import BenchProcess, number_of
from edgellm.tools.bench_results import (
    BenchReport,
    BenchResult,
    BenchSettings,
    BenchTest,
    Figures,
    StartUp,
    planned_tests,
)

Progress = Callable[[str, int, int], None]

PROMPT = "Once upon a time"
GENERATED_TOKENS = 128
"""Tokens of the generation whose peak memory is measured."""
SETTLING_SECONDS = 0.25
"""Between a run of one side and the next of the other: by then the threads of OpenMP have stopped spinning."""

OURS, PEER = "edgellm", "llama.cpp"
WORKER = (sys.executable, "-m", "edgellm.tools.bench_worker")
BANDWIDTH = (sys.executable, "-m", "edgellm.tools.bench_bandwidth")
COMMAND = (sys.executable, "-c", "from edgellm.cli.main import main; main()")
PEER_SCRIPT = Path(__file__).with_name("bench_peer.py")


def peer_command(python: str) -> tuple[str, ...]:
    """The command that runs the peer's side with an interpreter that has llama-cpp-python."""
    return (python, str(PEER_SCRIPT))


def settle() -> None:
    """Wait until the side that ran last is idle."""
    time.sleep(SETTLING_SECONDS)


class Bench:
    """Runs a benchmark; ``run`` yields nothing but tells ``progress`` and ``on_result`` how it goes on."""

    def __init__(
        self,
        settings: BenchSettings,
        progress: Progress | None = None,
        on_result: Callable[[BenchResult], None] | None = None,
        worker: Sequence[str] = WORKER,
    ) -> None:
        """Plan the tests.

        Args:
            settings: what to measure.
            progress: called with a stage ("kernels", "measuring", "starting"), how much is done and how much there is.
            on_result: called with each result when it is there.
            worker: command of our own side.
        """
        self._settings = settings
        self._progress = progress or (lambda stage, done, total: None)
        self._on_result = on_result or (lambda result: None)
        self._worker = worker
        self._tests = planned_tests(settings)
        self._meter = LoadMeter()
        self._runs = 0
        self._report = BenchReport(settings)

    def run(self) -> BenchReport:
        """Measure everything.

        Raises:
            EdgeLLMError: the model cannot be used, or one of the sides fails.
        """
        report = self._report
        report.load["before"] = load_now()
        bandwidth = self._measure_bandwidth()
        for threads in dict.fromkeys(test.threads for test in self._tests):
            self._measure_threads(threads)
        # Measured twice, since whatever disturbs makes the memory look slow and the model good.
        again = self._measure_bandwidth()
        report.bandwidth = {threads: max(rate, again[threads]) for threads, rate in bandwidth.items()}
        for result in report.results:
            result.bandwidth_share = self._share(result)
        self._measure_starts()
        report.load["during"] = self._meter.load()
        report.load["after"] = load_now()
        return report

    # -- tests ----------------------------------------------------------------------------------------------------

    def _measure_threads(self, threads: int | None) -> None:
        with ExitStack() as stack:
            sides = [stack.enter_context(BenchProcess(OURS, self._worker, self._on_event))]
            if self._settings.against is not None:
                sides.append(stack.enter_context(BenchProcess(PEER, self._settings.against)))
            for side in sides:
                answer = side.ask({"do": "open", **self._model_request(side.name, threads)})
                if side.name != OURS:
                    self._report.peer_version = str(answer.get("version", ""))
                    self._report.peer_system = str(answer.get("system_info", ""))
            for test in self._tests:
                if test.threads == threads:
                    result = self._measure(test, sides)
                    self._report.results.append(result)
                    self._on_result(result)

    def _measure(self, test: BenchTest, sides: list[BenchProcess]) -> BenchResult:
        ways: list[tuple[BenchProcess, str]] = []
        bytes_per_step = None
        for side in sides:
            answer = side.ask(test.request())
            if side.name == OURS and test.kind == "decode":
                bytes_per_step = round(number_of(answer, "bytes_per_step", side.name))
            variants = answer.get("variants")
            if not isinstance(variants, list) or not variants:
                raise EdgeLLMError(f"{side.name} named no variants of {test.name}")
            ways += [(side, str(variant)) for variant in variants]
        seconds: dict[tuple[str, str], list[float]] = {(side.name, variant): [] for side, variant in ways}
        for _ in range(self._settings.repetitions):
            for side, variant in ways:
                seconds[side.name, variant].append(self._timed_run(side, variant, with_others=len(sides) > 1))
            self._advance()
        tokens = test.tokens * test.batch
        speeds = {way: Figures(tuple(tokens / second for second in runs)) for way, runs in seconds.items()}
        own = next(speed for (name, _), speed in speeds.items() if name == OURS)
        peer = {variant: speed for (name, variant), speed in speeds.items() if name != OURS}
        return BenchResult(test, own, bytes_per_step, peer=peer)

    def _timed_run(self, side: BenchProcess, variant: str, with_others: bool) -> float:
        if with_others:
            settle()
        self._meter.begin([side.identity])
        seconds = side.ask_seconds({"do": "run", "variant": variant})
        self._meter.end([side.identity])
        return seconds

    def _share(self, result: BenchResult) -> float | None:
        bandwidth = self._report.bandwidth.get(result.test.threads or default_threads())
        if bandwidth is None or result.bytes_per_step is None:
            return None
        return result.bytes_per_step * result.speed.median / result.test.batch / bandwidth

    def _advance(self) -> None:
        self._runs += 1
        self._progress("measuring", self._runs, len(self._tests) * self._settings.repetitions)

    def _on_event(self, event: dict[str, Any]) -> None:
        if event.get("stage") == "kernels":
            self._progress("kernels", int(event["done"]), int(event["total"]))

    def _model_request(self, name: str, threads: int | None) -> dict[str, Any]:
        return {
            "model": str(self._settings.model),
            "threads": threads if name == OURS else threads or default_threads(),
            "cache_type": self._settings.cache_type,
            "backend": self._settings.backend,
        }

    # -- start-up -------------------------------------------------------------------------------------------------

    def _measure_starts(self) -> None:
        threads = max((count for count in self._settings.threads if count is not None), default=None)
        own: list[dict[str, Any]] = []
        peer: list[dict[str, Any]] = []
        own_first: list[float] = []
        peer_first: list[float] = []
        for number in range(self._settings.repetitions):
            self._progress("starting", number, self._settings.repetitions)
            # Peak memory is measured once: the first time, all tokens are generated.
            tokens = GENERATED_TOKENS if number == 0 else 1
            own_first.append(self._own_first_token(threads))
            own.append(self._generate(OURS, self._worker, threads, tokens)[0])
            if self._settings.against is not None:
                answer, first = self._generate(PEER, self._settings.against, threads, tokens)
                peer.append(answer)
                peer_first.append(first)
        self._progress("starting", self._settings.repetitions, self._settings.repetitions)
        self._report.start = _start_up(OURS, own, own_first)
        if peer:
            self._report.peer_start = _start_up(PEER, peer, peer_first)

    def _own_first_token(self, threads: int | None) -> float:
        """Seconds from starting ``edgellm generate`` to its first byte of output."""
        settings = self._settings
        command = [
            *COMMAND, "generate", str(settings.model.resolve()), "--prompt", PROMPT, "--max-tokens", "1",
            "--temperature", "0", "--cache-type", settings.cache_type, "--backend", settings.backend,
        ]  # fmt: skip
        if threads is not None:
            command += ["--threads", str(threads)]
        begin = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            assert child.stdout is not None and child.stderr is not None
            first = os.read(child.stdout.fileno(), 1)
            seconds = time.perf_counter() - begin
            _, errors = child.communicate()
        if not first or child.returncode:
            lines = errors.decode("utf-8", "replace").strip().splitlines() or [f"exit code {child.returncode}"]
            raise EdgeLLMError(f"edgellm generate failed: {lines[-1].removeprefix('error: ')}")
        return seconds

    def _generate(
        self, name: str, command: Sequence[str], threads: int | None, tokens: int
    ) -> tuple[dict[str, Any], float]:
        """Let a fresh process generate; its answer, and seconds from its start to its first token."""
        moments: list[float] = []
        with BenchProcess(name, command, lambda event: moments.append(time.perf_counter())) as side:
            request = {"do": "generate", "prompt": PROMPT, "tokens": tokens, **self._model_request(name, threads)}
            answer = side.ask(request)
            return answer, (moments[0] if moments else time.perf_counter()) - side.started

    # -- bandwidth ------------------------------------------------------------------------------------------------

    def _measure_bandwidth(self) -> dict[int, float]:
        counts = sorted({threads or default_threads() for threads in self._settings.threads})
        if self._settings.backend != "cpu" or not any(test.kind == "decode" for test in self._tests):
            return {}
        self._progress("measuring memory", 0, 1)
        result = subprocess.run([*BANDWIDTH, *map(str, counts)], capture_output=True, text=True, check=False)
        try:
            return {int(threads): float(rate) for threads, rate in json.loads(result.stdout).items()}
        except (ValueError, AttributeError):
            lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
            raise EdgeLLMError(f"the memory's speed could not be measured: {lines[-1]}") from None


def _start_up(name: str, answers: list[dict[str, Any]], first: list[float]) -> StartUp:
    memory = answers[0].get("memory")
    peak = answers[0].get("peak_memory_bytes")
    speed = answers[0].get("generated_per_second")
    return StartUp(
        load=Figures(tuple(number_of(answer, "load_seconds", name) for answer in answers)),
        first_token=Figures(tuple(first)),
        peak_memory=peak if isinstance(peak, int) else None,
        memory={str(key): value for key, value in memory.items()} if isinstance(memory, dict) else {},
        generated_per_second=speed if isinstance(speed, float) else None,
    )


def default_threads() -> int:
    """The number of threads that edgellm takes if nobody says."""
    from edgellm.platforms.features import physical_cores

    return physical_cores()
