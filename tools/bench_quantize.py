"""Quantizing against llama.cpp: seconds, and the squared errors of the weights.

``python -m edgellm.tools.bench_quantize MODEL TYPE ... --against PYTHON`` quantizes MODEL, an F32 or F16 file, to each
type in turn with edgellm and with llama.cpp, on two threads, and prints the medians of their times and, for each type
of tensor that came out, the mean squared error of both. PYTHON is an interpreter that has llama-cpp-python. With
``--pure`` all matrices get one type.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm.errors import EdgeLLMError
from edgellm.gguf import open_gguf
from edgellm.quantize import QuantizeSettings, quantize
from edgellm.quantize.mixtures import FLOAT_TYPES, find_mixture

_ROWS = 4096
_PEER = """
import ctypes, json, sys, time
import llama_cpp

quiet = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
for line in sys.stdin:
    source, target, file_type, pure, threads = json.loads(line)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.pure, parameters.nthread = file_type, pure, threads
    parameters.allow_requantize = True
    began = time.perf_counter()
    failed = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters))
    print(json.dumps([failed, time.perf_counter() - began]), flush=True)
"""


class _Peer:
    """A process with llama-cpp-python that quantizes files."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def quantize(self, model: Path, target: Path, kind: str, pure: bool, threads: int) -> float:
        """Seconds it took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = [str(model), str(target), find_mixture(kind).file_type, pure, threads]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        failed, seconds = json.loads(line) if line else (1, 0.0)
        if failed:
            raise EdgeLLMError(f"llama.cpp did not quantize {model} to {kind}")
        return float(seconds)


@contextmanager
def _peer(python: str) -> Iterator[_Peer]:
    with subprocess.Popen([python, "-c", _PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield _Peer(process)
        assert process.stdin is not None
        process.stdin.close()


@dataclass
class _Errors:
    """Of all tensors of one type: how many values, and both sums of squared errors."""

    values: int = 0
    own: float = 0.0
    peer: float = 0.0


def squared_errors(model: Path, own: Path, peer: Path) -> dict[str, _Errors]:
    """By the type that tensors got, which must be the same in both files."""
    found: dict[str, _Errors] = {}
    with open_gguf(model) as source, open_gguf(own) as ours, open_gguf(peer) as theirs:
        for name, info in ours.tensors.items():
            if theirs.tensors[name].type != info.type:
                raise EdgeLLMError(f"{name} is {info.type.name} here and {theirs.tensors[name].type.name} there")
            if info.type in FLOAT_TYPES:
                continue
            errors = found.setdefault(info.type.name, _Errors())
            for first in range(0, info.rows, _ROWS):
                rows = slice(first, first + _ROWS)
                values = source.decode(name, rows)
                errors.values += values.size
                errors.own += float(np.square(ours.decode(name, rows) - values, dtype=np.float64).sum())
                errors.peer += float(np.square(theirs.decode(name, rows) - values, dtype=np.float64).sum())
    return found


def compare(peer: _Peer, model: Path, kind: str, options: argparse.Namespace) -> None:
    """Quantize to one type in turns and print what came out."""
    times: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        own, other = Path(folder) / "own.gguf", Path(folder) / "peer.gguf"
        settings = QuantizeSettings(kind, pure=options.pure, threads=options.threads, force=True, allow_requantize=True)
        quantize(model, own, settings)  # warm: kernels compiled, file in memory
        for _ in range(options.rounds):
            times[1].append(peer.quantize(model, other, kind, options.pure, options.threads))
            began = time.perf_counter()
            quantize(model, own, settings)
            times[0].append(time.perf_counter() - began)
        ours, theirs = map(statistics.median, times)
        print(f"{kind}: {ours:.2f} s, llama.cpp {theirs:.2f} s, {theirs / ours:.1f} times as fast", flush=True)
        for name, errors in squared_errors(model, own, other).items():
            ratio = f"{errors.own / errors.peer:.3f}" if errors.peer else "-"
            mean, other_mean = errors.own / errors.values, errors.peer / errors.values
            print(f"    {name}: mean squared error {mean:.3e}, llama.cpp {other_mean:.3e}, ratio {ratio}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m edgellm.tools.bench_quantize", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("types", nargs="+")
    parser.add_argument("--against", required=True, metavar="PYTHON")
    parser.add_argument("--pure", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for the files that are made")
    options = parser.parse_args(arguments)
    try:
        with _peer(options.against) as peer:
            for kind in options.types:
                compare(peer, options.model, kind, options)
    except (EdgeLLMError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
