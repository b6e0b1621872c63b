"""A short run of the fuzzer, and proof that it notices what it looks for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgellm.errors import CorruptFileError
from edgellm.gguf import GGUFFile, open_gguf

if sys.platform == "win32":
    pytest.skip("the fuzzer needs POSIX signals and limits", allow_module_level=True)

from edgellm.tools import fuzz_gguf
from edgellm.tools.fuzz_gguf import Report, examine, load_seeds, run
from edgellm.tools.fuzz_gguf_seeds import Seed


@pytest.fixture(scope="module")
def seeds() -> list[Seed]:
    return load_seeds(())


def test_damaged_files_are_refused_or_loaded_right(seeds: list[Seed]) -> None:
    report = run(seeds, seed=3, count=3000)
    assert report.findings == []
    assert report.outcomes.total() == 3000
    assert report.outcomes.keys() == {"loaded", "CorruptFileError", "UnsupportedModelError"}
    assert len(report.messages) > 30


def test_cases_repeat(seeds: list[Seed], tmp_path: Path) -> None:
    first = fuzz_gguf.repeat(seeds, 3, 17, tmp_path / "one")
    again = fuzz_gguf.repeat(load_seeds(()), 3, 17, tmp_path / "two")
    assert first == again
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert contents[0] == contents[1] != {}


def _open_and(action):
    def opener(path: Path) -> GGUFFile:
        file = open_gguf(path)
        action(file)
        return file

    return opener


def _raise(error: BaseException):
    def action(file: GGUFFile) -> None:
        raise error

    return action


def _lose_a_tensor(file: GGUFFile) -> None:
    file.tensors = dict(list(file.tensors.items())[:-1])


def _change_a_byte(file: GGUFFile) -> None:
    file._bytes = [np.array(file._bytes[0])]
    file._bytes[0][-64:] ^= 1


@pytest.mark.parametrize(
    ("action", "outcome"),
    [
        (lambda file: None, "loaded"),
        (_lose_a_tensor, "exception"),
        (_change_a_byte, "exception"),
        (_raise(RecursionError()), "exception"),
        (_raise(CorruptFileError("two\nlines")), "bad message"),
        (_raise(CorruptFileError("x" * 5000)), "bad message"),
        (_raise(MemoryError()), "memory"),
        (lambda file: time.sleep(60), "hang"),
    ],
)
def test_wrong_behaviour_is_noticed(
    seeds: list[Seed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action, outcome: str
) -> None:
    name, data = next(iter(seeds[2].files.items()))
    (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(fuzz_gguf, "open_gguf", _open_and(action))
    before = signal.signal(signal.SIGALRM, fuzz_gguf._interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3 if outcome == "hang" else 20)
    try:
        assert examine(tmp_path, name, seeds[2].files)[0] == outcome
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("target", "arguments", "verdict"), [(os.abort, (), "crash"), (time.sleep, (60,), "hang")])
def test_dead_and_silent_workers_are_noticed(monkeypatch: pytest.MonkeyPatch, target, arguments, verdict: str) -> None:
    monkeypatch.setattr(fuzz_gguf, "_SILENT_SECONDS", 0.5)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=target, args=arguments, daemon=True)
    worker.start()
    if verdict == "crash":
        sender.close()
    assert (
        fuzz_gguf._follow(worker, receiver, context.RawValue("q", 5), Report(Counter(), Counter(), []), None) == verdict
    )
    worker.join()


def test_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(fuzz_gguf.main, ["--count", "50", "--seed", "4"])
    assert result.exit_code == 0
    assert "0 findings" in result.output
    result = CliRunner().invoke(fuzz_gguf.main, ["--seed", "4", "--case", "7", "--keep", str(tmp_path / "kept")])
    assert result.exit_code == 0
    assert "case 7 of seed 4: " in result.output
    assert list((tmp_path / "kept").iterdir())
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    result = CliRunner().invoke(fuzz_gguf.main, ["--file", str(tmp_path / "bad.gguf")])
    assert result.exit_code != 0
