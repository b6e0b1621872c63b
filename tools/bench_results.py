"""What a benchmark measures and finds, and its form in JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.errors import InvalidSettingError
from edgellm.tools.bench_machine import MachineLoad

MOST_TOKENS = 1 << 20
UNSTEADY = 0.1
"""Standard deviation, as a share of the mean, from which on the user is warned."""


@dataclass(frozen=True)
class BenchSettings:
    """What to measure.

    Attributes:
        model: the file.
        prompt_tokens: lengths of the prompts whose processing is timed.
        generated_tokens: numbers of tokens whose decoding is timed.
        threads: numbers of threads; None is what edgellm takes by default.
        batches: numbers of sequences decoded together.
        depths: numbers of tokens that are in the cache before.
        repetitions: timed runs of each test.
        cache_type: number format of the cache.
        backend: executor, "cpu" or "reference".
        against: command of the peer's side, or None.
    """

    model: Path
    prompt_tokens: tuple[int, ...] = (512,)
    generated_tokens: tuple[int, ...] = (128,)
    threads: tuple[int | None, ...] = (None,)
    batches: tuple[int, ...] = (1,)
    depths: tuple[int, ...] = (0,)
    repetitions: int = 5
    cache_type: str = "f16"
    backend: str = "cpu"
    against: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidSettingError: one is out of range.
        """
        limits = {
            "-p": (self.prompt_tokens, 0, MOST_TOKENS),
            "-n": (self.generated_tokens, 0, MOST_TOKENS),
            "-t": (tuple(count for count in self.threads if count is not None), 1, 256),
            "-b": (self.batches, 1, 256),
            "--depth": (self.depths, 0, MOST_TOKENS),
            "-r": ((self.repetitions,), 1, 1000),
        }
        for name, (values, least, most) in limits.items():
            for value in values:
                if not least <= value <= most:
                    raise InvalidSettingError(f"{name} is {value}", f"give a number from {least} to {most}")


@dataclass(frozen=True)
class Figures:
    """A measured quantity: all runs, and what they come to."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle run."""
        return statistics.median(self.runs)

    @property
    def mean(self) -> float:
        """The average run."""
        return statistics.fmean(self.runs)

    @property
    def std(self) -> float:
        """Standard deviation of a sample; 0 for one run."""
        return statistics.stdev(self.runs) if len(self.runs) > 1 else 0.0

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        runs = [round(run, 6) for run in self.runs]
        return {"median": round(self.median, 6), "mean": round(self.mean, 6), "std": round(self.std, 6), "runs": runs}


@dataclass(frozen=True)
class BenchTest:
    """One line of the table: prefill or decode ``tokens`` tokens a sequence; threads None: the default."""

    kind: str
    tokens: int
    threads: int | None
    batch: int
    depth: int

    @property
    def name(self) -> str:
        """As llama-bench names it: pp512, tg128."""
        return f"{'pp' if self.kind == 'prefill' else 'tg'}{self.tokens}"

    def __str__(self) -> str:
        """For people: tg128, 2 threads, 4 sequences, depth 4096."""
        parts = [self.name, f"{self.threads or 'auto'} thread{'' if self.threads == 1 else 's'}"]
        if self.batch > 1:
            parts.append(f"{self.batch} sequences")
        if self.depth:
            parts.append(f"depth {self.depth}")
        return ", ".join(parts)

    def request(self) -> dict[str, Any]:
        """For a side of the benchmark."""
        return {
            "do": "prepare", "kind": self.kind, "tokens": self.tokens, "depth": self.depth, "batch": self.batch,
        }  # fmt: skip


@dataclass
class BenchResult:
    """What one test gave, in tokens per second of all sequences together.

    Attributes:
        speed: of edgellm.
        bytes_per_step: bytes that a step of decoding must read; None for prefill.
        bandwidth_share: of the measured bandwidth, by these bytes; above 1 where weights stay in a cache.
        peer: of the peer, by variant.
    """

    test: BenchTest
    speed: Figures
    bytes_per_step: int | None = None
    bandwidth_share: float | None = None
    peer: dict[str, Figures] = field(default_factory=dict)

    @property
    def best_peer(self) -> str | None:
        """The fastest of the peer's variants."""
        return max(self.peer, key=lambda name: self.peer[name].median, default=None)

    @property
    def ratio(self) -> float | None:
        """Our median over that of the peer's fastest variant."""
        best = self.best_peer
        return None if best is None else self.speed.median / self.peer[best].median

    def as_object(self) -> dict[str, Any]:
        """For JSON."""
        test = self.test
        result: dict[str, Any] = {
            "name": test.name,
            "threads": "auto" if test.threads is None else test.threads,
            "batch": test.batch,
            "depth": test.depth,
            "tokens_per_second": self.speed.as_object(),
        }
        if self.bytes_per_step is not None:
            result |= {"bytes_per_step": self.bytes_per_step, "bandwidth_share": _rounded(self.bandwidth_share)}
        if self.best_peer is not None:
            result["against"] = {
                "tokens_per_second": self.peer[self.best_peer].as_object(),
                "ratio": _rounded(self.ratio),
                "variant": self.best_peer,
                "variants": {name: figures.as_object() for name, figures in self.peer.items()},
            }
        return result


@dataclass
class StartUp:
    """One side's start in fresh processes: seconds to load, seconds from process start to first token, most memory."""

    load: Figures
    first_token: Figures
    peak_memory: int | None
    memory: dict[str, int] = field(default_factory=dict)
    generated_per_second: float | None = None

    def as_object(self) -> dict[str, Any]:
        """For JSON: medians, and all runs beside them."""
        return {
            "load_seconds": round(self.load.median, 6),
            "first_token_seconds": round(self.first_token.median, 6),
            "peak_memory_bytes": self.peak_memory,
            "start": {
                "load_seconds": self.load.as_object(),
                "first_token_seconds": self.first_token.as_object() | {"best": round(min(self.first_token.runs), 6)},
            },
        }


@dataclass
class BenchReport:
    """All that a benchmark found; ``bandwidth`` is in bytes a second by number of threads."""

    settings: BenchSettings
    results: list[BenchResult] = field(default_factory=list)
    start: StartUp | None = None
    peer_start: StartUp | None = None
    peer_version: str = ""
    peer_system: str = ""
    bandwidth: dict[int, float] = field(default_factory=dict)
    load: dict[str, MachineLoad] = field(default_factory=dict)

    def as_object(self, model: str) -> dict[str, Any]:
        """For JSON."""
        from edgellm.platforms.features import describe
        from edgellm.tools.bench_bandwidth import METHOD

        assert self.start is not None
        result = {
            "model": model,
            "tests": [result.as_object() for result in self.results],
            **self.start.as_object(),
            "memory": self.start.memory,
            "generated_per_second": _rounded(self.start.generated_per_second),
            "memory_bandwidth": {
                "method": METHOD,
                "bytes_per_second": {str(threads): round(rate) for threads, rate in self.bandwidth.items()},
            },
            "load": {moment: load.as_object() for moment, load in self.load.items()},
            "path": str(self.settings.model),
            "cache_type": self.settings.cache_type,
            "backend": self.settings.backend,
            "repetitions": self.settings.repetitions,
            "machine": describe(),
        }
        if self.peer_start is not None:
            result["against"] = {
                "version": self.peer_version, "system_info": self.peer_system, **self.peer_start.as_object(),
            }  # fmt: skip
        return result


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def planned_tests(settings: BenchSettings) -> list[BenchTest]:
    """All tests, those of one number of threads together. A length of 0 stands for no test."""
    tests = []
    for threads in dict.fromkeys(settings.threads):
        for depth in dict.fromkeys(settings.depths):
            for tokens in dict.fromkeys(filter(None, settings.prompt_tokens)):
                tests.append(BenchTest("prefill", tokens, threads, 1, depth))
            for batch in dict.fromkeys(settings.batches):
                for tokens in dict.fromkeys(filter(None, settings.generated_tokens)):
                    tests.append(BenchTest("decode", tokens, threads, batch, depth))
    return tests


def warnings(report: BenchReport) -> Iterator[str]:
    """What makes the figures doubtful, one line each."""
    during = report.load.get("during")
    busiest = max((load.other_cores or 0.0 for load in report.load.values()), default=0.0)
    if any(load.busy for load in report.load.values()):
        shown = busiest if during is None or during.other_cores is None else during.other_cores
        yield f"other processes kept {shown:.1f} cores busy while this ran (at most {busiest:.1f}): figures are rough"
    for result in report.results:
        if result.speed.std > UNSTEADY * result.speed.mean:
            yield f"{result.test}: runs vary by {100 * result.speed.std / result.speed.mean:.0f} %"
