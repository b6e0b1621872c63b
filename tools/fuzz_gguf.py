"""Fuzz the GGUF reader: damaged files must give a clean error or a correct load, in bounded time and memory.

    python -m edgellm.tools.fuzz_gguf --count 100000 --seed 1

Every case is a function of the seed and its number, so that a finding is repeated with ``--case NUMBER``. Cases run
in a worker process whose address space may grow by 64 MB and the size of the file, and which is interrupted after
two seconds; a worker that dies or stops answering is a finding too, and the next one goes on behind it.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import click
import numpy as np

from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.gguf import GGUFFile, StringArray, open_gguf
from edgellm.tools.fuzz_gguf_seeds import Layout, Seed, build_seeds, make_seed, mutate, read_plainly

SECONDS_A_CASE = 2.0
EXTRA_BYTES = 64 << 20
_SILENT_SECONDS = 10.0
_LARGEST_SEED = 16 << 20
_DECODED_VALUES = 1 << 16


@dataclass(frozen=True)
class Finding:
    """A case that did not end as it should."""

    case: int
    kind: str
    mutation: str
    detail: str


@dataclass
class Report:
    """What a run found.

    Attributes:
        outcomes: how many cases ended how: loaded, CorruptFileError, UnsupportedModelError.
        messages: how many errors of each wording, names and numbers left out.
        findings: the cases that ended otherwise.
        seconds: wall time.
    """

    outcomes: Counter[str]
    messages: Counter[str]
    findings: list[Finding]
    seconds: float = 0.0


class _TooSlowError(BaseException):
    """Raised by the alarm; not an Exception, so that no handler on the way swallows it."""


class _WrongLoadError(Exception):
    """The reader accepted a file and gave something else than it holds."""


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise _WrongLoadError(what)


def _same(value: object, plain: object) -> bool:
    """Whether a metadata value is what the plain reader found."""
    if isinstance(value, str):
        return isinstance(plain, bytes) and value == plain.decode("utf-8", errors="replace")
    if isinstance(value, StringArray):
        return (
            value.tolist() == plain
            and list(value) == plain
            and all(value[-i - 1] == plain[-i - 1] for i in range(min(len(value), 3)))
        )
    if isinstance(value, np.ndarray):
        return value.tobytes() == plain and (value.dtype != bool or max(plain, default=0) <= 1)
    if isinstance(value, tuple):
        return isinstance(plain, list) and len(value) == len(plain) and all(map(_same, value, plain))
    if isinstance(value, float) and math.isnan(value):
        return isinstance(plain, float) and math.isnan(plain)
    return value == plain


def check_load(file: GGUFFile, files: dict[str, bytes]) -> None:
    """Touch everything in an accepted file and compare it with a plain reading of its bytes."""
    parts = [data for _, data in sorted(files.items())] if len(file.paths) > 1 else [files[file.path.name]]
    layouts = [read_plainly(data) for data in parts]
    _expect(file.metadata.keys() == layouts[0].values.keys(), "the keys differ")
    for key, value in file.metadata.items():
        _expect(_same(value, layouts[0].values[key]), f"the value of {key!r} differs")
    names = [name for layout in layouts for name in layout.tensors]
    _expect(list(file.tensors) == names, "the tensors differ")
    for layout, data in zip(layouts, parts, strict=True):
        spans = sorted(_check_tensor(file, name, layout, data) for name in layout.tensors)
        _expect(all(one[1] <= two[0] for one, two in pairwise(spans)), "tensors overlap")
    file.release()


def _check_tensor(file: GGUFFile, name: str, layout: Layout, data: bytes) -> tuple[int, int]:
    info = file.tensors[name]
    dimensions, type_id, offset = layout.tensors[name]
    _expect(info.shape == dimensions[::-1] and info.type == type_id, f"tensor {name!r} has another shape or type")
    raw = file.raw(name)
    start = layout.data_offset + offset
    _expect(offset % layout.alignment == 0, f"tensor {name!r} is not aligned")
    _expect(raw.tobytes() == data[start : start + info.size_bytes], f"tensor {name!r} has other bytes")
    _expect(raw.size * info.type.block_size == math.prod(dimensions) * info.type.block_bytes, f"size of {name!r}")
    if math.prod(dimensions) <= _DECODED_VALUES:
        _expect(file.decode(name).shape == info.shape, f"tensor {name!r} decodes to another shape")
        _expect(file.decode(name, slice(0, 1)).shape == (1, info.columns), f"a row of {name!r} has another shape")
    return start, start + info.size_bytes


def examine(folder: Path, name: str, files: dict[str, bytes]) -> tuple[str, str]:
    """Open one damaged model and say how that ended: (outcome, message or description of what is wrong)."""
    try:
        with open_gguf(folder / name) as file:
            check_load(file, files)
        return "loaded", ""
    except (CorruptFileError, UnsupportedModelError) as error:
        text = str(error)
        if "\n" in text or len(text) > 1000:
            return "bad message", text
        return type(error).__name__, text
    except MemoryError:
        return "memory", traceback.format_exc()
    except _TooSlowError:
        return "hang", traceback.format_exc()
    except Exception:
        return "exception", traceback.format_exc()


def prepare(seeds: list[Seed], seed: int, case: int, folder: Path) -> tuple[str, dict[str, bytes], str]:
    """Write the files of one case into ``folder``; returns the file to open, all files, and what was done."""
    files, name, mutation = mutate(Random(f"{seed}:{case}"), seeds)
    for old in folder.iterdir():
        # Unlinked, not overwritten: a mapping of the last case may still be alive.
        old.unlink()
    for file_name, data in files.items():
        (folder / file_name).write_bytes(data)
    return name, files, mutation


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise _TooSlowError


def _limit_memory(seeds: list[Seed]) -> None:
    """Allow the address space to grow by what the reader may use, after everything lazy has been loaded."""
    import resource

    if not Path("/proc/self/statm").exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for name, data in seed.files.items():
                (Path(folder) / name).write_bytes(data)
            examine(Path(folder), next(iter(seed.files)), seed.files)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    largest = max(len(data) for seed in seeds for data in seed.files.values())
    resource.setrlimit(resource.RLIMIT_AS, (now + EXTRA_BYTES + largest,) * 2)


def _work(pipe: Connection, seeds: list[Seed], seed: int, first: int, last: int, current: Any) -> None:
    signal.signal(signal.SIGALRM, _interrupt)
    _limit_memory(seeds)
    outcomes: Counter[str] = Counter()
    messages: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in range(first, last):
            current.value = case
            target, files, mutation = prepare(seeds, seed, case, folder)
            signal.setitimer(signal.ITIMER_REAL, SECONDS_A_CASE)
            outcome, text = examine(folder, target, files)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if outcome in ("loaded", "CorruptFileError", "UnsupportedModelError"):
                outcomes[outcome] += 1
                messages[_wording(text)] += 1
            else:
                pipe.send(Finding(case, outcome, mutation, text))
            if case % 500 == 499 or case == last - 1:
                pipe.send((outcomes, messages))
                outcomes, messages = Counter(), Counter()
    pipe.send(None)


def _wording(message: str) -> str:
    """A message without the names and numbers of the case."""
    return re.sub(r"(b?'([^'\\]|\\.)*'|b?\"([^\"\\]|\\.)*\"|\[[^\]]*\]|\S+\.gguf|-?\d+)", "~", message)


def run(seeds: list[Seed], seed: int, count: int, progress: Any = None) -> Report:
    """Run ``count`` cases in worker processes; ``progress`` is called with the number of cases newly done."""
    started = time.monotonic()
    report = Report(Counter(), Counter(), [])
    context = multiprocessing.get_context("spawn")
    current = context.RawValue("q", 0)
    first = 0
    while first < count:
        current.value = first
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(sender, seeds, seed, first, count, current), daemon=True)
        worker.start()
        sender.close()
        verdict = _follow(worker, receiver, current, report, progress)
        worker.join()
        if verdict is None:
            break
        case = int(current.value)
        report.findings.append(Finding(case, verdict, _describe(seeds, seed, case), f"exit code {worker.exitcode}"))
        first = case + 1
    report.seconds = time.monotonic() - started
    return report


def _follow(worker: Any, pipe: Connection, current: Any, report: Report, progress: Any) -> str | None:
    """Collect what a worker sends until it is done (None), dies ("crash") or stops moving ("hang")."""
    seen, since = int(current.value), time.monotonic() + _SILENT_SECONDS
    while True:
        try:
            if pipe.poll(0.2):
                message = pipe.recv()
                if message is None:
                    return None
                if isinstance(message, Finding):
                    report.findings.append(message)
                else:
                    report.outcomes.update(message[0])
                    report.messages.update(message[1])
        except EOFError:
            return "crash"
        if int(current.value) != seen:
            if progress:
                progress(int(current.value) - seen)
            seen, since = int(current.value), time.monotonic()
        elif time.monotonic() - since > _SILENT_SECONDS:
            worker.kill()
            return "hang"


def _describe(seeds: list[Seed], seed: int, case: int) -> str:
    return mutate(Random(f"{seed}:{case}"), seeds)[2]


def repeat(seeds: list[Seed], seed: int, case: int, folder: Path) -> tuple[str, str, str]:
    """Run one case in this process, leaving its files in ``folder``: (outcome, message, mutation)."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise click.ClickException(f"the folder {folder} is not empty; name a new one with --keep")
    name, files, mutation = prepare(seeds, seed, case, folder)
    return *examine(folder, name, files), mutation


def load_seeds(paths: tuple[Path, ...]) -> list[Seed]:
    """The seeds built here and those of the user, which are whole GGUF files of at most 16 MiB.

    Raises:
        click.ClickException: a file is too large, or the reader does not load a seed as it is.
    """
    with tempfile.TemporaryDirectory() as folder:
        seeds = build_seeds(Path(folder))
        for seed in seeds:
            for name, data in seed.files.items():
                (Path(folder) / name).write_bytes(data)
            outcome, text = examine(Path(folder), next(iter(seed.files)), seed.files)
            if outcome != "loaded":
                raise click.ClickException(f"the undamaged {', '.join(seed.files)} gives {outcome}: {text}")
    for path in paths:
        if path.stat().st_size > _LARGEST_SEED:
            raise click.ClickException(f"{path} has more than {_LARGEST_SEED >> 20} MiB; a seed should be small")
        open_gguf(path).close()
        seeds.append(make_seed({path.name: path.read_bytes()}))
    return seeds


@click.command(help=__doc__.split("\n")[0])
@click.option("--count", default=10_000, show_default=True, help="Number of damaged files.")
@click.option("--seed", default=0, show_default=True, help="Seed of the mutations.")
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A GGUF file to damage besides the built-in ones; may be given several times.",
)
@click.option("--case", type=int, help="Run only this case, and say how it ends.")
@click.option("--keep", type=click.Path(path_type=Path), help="With --case: the folder to leave its files in.")
def main(count: int, seed: int, files: tuple[Path, ...], case: int | None, keep: Path | None) -> None:
    if sys.platform == "win32":
        raise click.ClickException("the fuzzer needs POSIX signals and limits")
    seeds = load_seeds(files)
    if case is not None:
        outcome, text, mutation = repeat(seeds, seed, case, keep or Path(tempfile.mkdtemp(prefix="fuzz-gguf-")))
        click.echo(f"case {case} of seed {seed}: {mutation}\n{outcome}: {text}")
        return
    with click.progressbar(length=count, label=f"{count} damaged files", file=sys.stderr) as bar:
        report = run(seeds, seed, count, bar.update)
    for finding in report.findings:
        click.echo(f"{finding.kind} in case {finding.case} of seed {seed}: {finding.mutation}\n{finding.detail}")
    counts = ", ".join(f"{number} {outcome}" for outcome, number in report.outcomes.most_common())
    click.echo(f"{counts}; {len(report.messages)} kinds of message; {report.seconds:.0f} s")
    click.echo(f"{len(report.findings)} findings" + ("; repeat one with --case" if report.findings else ""))
    sys.exit(1 if report.findings else 0)


if __name__ == "__main__":
    main()
