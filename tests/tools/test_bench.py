"""The benchmark: what it runs in which order, what it says, and how it fails; times themselves are never tested."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgellm.cli.main import edgellm
from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.platforms.batch import BLOCK_TOKENS, Batch
from edgellm.tools import bench, bench_machine, bench_process, bench_worker
from edgellm.tools.bench_bandwidth import measure, read_loop
from edgellm.tools.bench_process import BenchProcess
from edgellm.tools.bench_results import (
    BenchReport,
    BenchResult,
    BenchSettings,
    BenchTest,
    Figures,
    StartUp,
    planned_tests,
    warnings,
)

PEERS = Path(__file__).parent / "peers"
MakeModel = Callable[..., Path]
Run = Callable[..., Result]


def scripted(name: str, behaviour: str = "") -> tuple[str, ...]:
    return (sys.executable, str(PEERS / "scripted_side.py"), name, behaviour)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """What the scripted sides were asked, in order of time."""
    path = tmp_path / "requests"
    monkeypatch.setenv("SIDE_LOG", str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``edgellm bench`` with a scripted peer and without pauses."""
    monkeypatch.setattr(bench, "settle", lambda: None)
    monkeypatch.setattr(bench, "load_now", lambda: bench_machine.MachineLoad(0.0, 1.0))

    def run_command(*arguments: str, peer: tuple[str, ...] = scripted("peer")) -> Result:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench, "peer_command", lambda python: peer)
            return CliRunner().invoke(edgellm, ["bench", *arguments], catch_exceptions=False)

    return run_command


def one_line_error(result: Result) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (result.exit_code, result.stdout, len(lines)) == (1, "", 1), result.output
    assert "Traceback" not in result.stderr
    return lines[0].removeprefix("error: ")


class TestCommand:
    def test_json(self, run, log, tiny_model: MakeModel) -> None:
        path = str(tiny_model())
        common = ["--backend", "reference", "-p", "24", "-n", "3", "-t", "2", "-b", "1,2", "-r", "2", "--depth", "0,40"]
        result = run(path, *common, "--against", sys.executable, "--json")
        assert result.exit_code == 0, result.stderr
        assert result.stdout.count("\n") == 1
        report = json.loads(result.stdout)
        tests = {(test["name"], test["batch"], test["depth"]) for test in report["tests"]}
        kinds = [("pp24", 1), ("tg3", 1), ("tg3", 2)]
        assert tests == {(*kind, depth) for kind in kinds for depth in (0, 40)}
        assert {test["threads"] for test in report["tests"]} == {2}
        for test in report["tests"]:
            speed, against = test["tokens_per_second"], test["against"]
            assert len(speed["runs"]) == 2
            assert min(speed["runs"]) > 0
            assert speed["median"] == pytest.approx(statistics.median(speed["runs"]))
            assert speed["mean"] == pytest.approx(statistics.mean(speed["runs"]))
            assert speed["std"] == pytest.approx(statistics.stdev(speed["runs"]), abs=1e-5)
            # The scripted peer does 50 tokens a second, in each sequence; its slower variant must not count.
            assert against["tokens_per_second"]["median"] == pytest.approx(50 * test["batch"])
            assert against["variants"]["slow"]["median"] == pytest.approx(25 * test["batch"])
            assert against["variant"] == "default"
            assert against["ratio"] == pytest.approx(speed["median"] / (50 * test["batch"]), rel=1e-3)
            assert ("bytes_per_step" in test) == test["name"].startswith("tg")
        assert report["model"] == path
        assert report["load_seconds"] > 0
        assert report["first_token_seconds"] >= report["start"]["first_token_seconds"]["best"] > 0
        assert report["peak_memory_bytes"] > report["memory"]["weights"] > 0
        assert len(report["start"]["load_seconds"]["runs"]) == 2
        assert set(report["load"]) == {"before", "during", "after"}
        assert report["against"]["version"] == "scripted 1.0"
        assert (report["against"]["load_seconds"], report["against"]["peak_memory_bytes"]) == (0.125, 1 << 20)
        opened = [request for request in log() if request["do"] in ("open", "generate")]
        assert {(request["threads"], request["cache_type"]) for request in opened} == {(2, "f16")}

    def test_table(self, run, log, tiny_model: MakeModel) -> None:
        arguments = [str(tiny_model()), "--backend", "reference", "-p", "0", "-n", "2", "-t", "1", "-r", "1"]
        result = run(*arguments, "--against", sys.executable)
        assert result.exit_code == 0, result.stderr
        head, row = [line for line in result.stdout.splitlines() if line.strip().startswith(("test", "tg2"))]
        assert head.split()[:5] == ["test", "threads", "batch", "depth", "tok/s"]
        assert row.split()[:4] == ["tg2", "1", "1", "0"]
        assert "50.0" in row
        assert "edgellm: loads in" in result.stdout
        assert "llama.cpp: loads in 0.12 s" in result.stdout
        assert "llama.cpp: scripted 1.0; the faster of: slow, default" in result.stdout
        assert "tg2, 1 thread: " in result.stderr

    def test_bandwidth_is_compared(self, run, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
        printed = "import json, sys; print(json.dumps({threads: 2e9 for threads in sys.argv[1:]}))"
        monkeypatch.setattr(bench, "BANDWIDTH", (sys.executable, "-c", printed))
        result = run(str(tiny_model()), "-p", "0", "-n", "2", "-t", "1", "-r", "1", "--json")
        assert result.exit_code == 0, result.stderr
        report = json.loads(result.stdout)
        (test,) = report["tests"]
        assert report["memory_bandwidth"]["bytes_per_second"] == {"1": 2_000_000_000}
        expected = test["bytes_per_step"] * test["tokens_per_second"]["median"] / 2e9
        assert test["bandwidth_share"] == pytest.approx(expected, abs=1e-4)
        assert test["bytes_per_step"] > report["memory"]["weights"]
        assert "against" not in report

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["-p", "abc"], "'abc' was given, expected whole numbers with commas between"),
            (["-t", "1,x"], "expected whole numbers with commas between, or auto"),
            (["-b", ""], "expected whole numbers"),
        ],
    )
    def test_arguments_that_are_no_numbers(self, run, arguments: list[str], said: str) -> None:
        result = run("any.gguf", *arguments)
        assert (result.exit_code, said in result.stderr) == (2, True)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["-t", "0"], "-t is 0; give a number from 1 to 256"),
            (["-b", "-3"], "-b is -3; give a number from 1 to 256"),
            (["--depth", "-1"], "--depth is -1; give a number from 0"),
            (["-r", "0"], "-r is 0; give a number from 1"),
            (["-n", "99999999"], "-n is 99999999; give a number from 0"),
            (["-p", "0", "-n", "0"], "there is nothing to measure; give -p or -n a number above 0"),
            (["--against", "no-such-python"], "there is no program no-such-python; --against takes a Python"),
        ],
    )
    def test_arguments_out_of_range(self, run, tiny_model: MakeModel, arguments: list[str], said: str) -> None:
        assert said in one_line_error(run(str(tiny_model()), *arguments))

    def test_errors_of_the_model(self, run, tmp_path: Path, tiny_model: MakeModel) -> None:
        assert "missing.gguf" in one_line_error(run(str(tmp_path / "missing.gguf")))
        damaged = tmp_path / "damaged.gguf"
        damaged.write_bytes(tiny_model().read_bytes()[:5000])
        assert one_line_error(run(str(damaged), "--backend", "reference", "-r", "1")).startswith("edgellm: ")
        said = one_line_error(run(str(tiny_model()), "--backend", "reference", "--depth", "200", "-p", "60"))
        assert "60 tokens at depth 200 need a context of 261, the model has 256; use a smaller --depth" in said

    @pytest.mark.parametrize(
        ("behaviour", "said"),
        [
            ("error", "llama.cpp: llama.cpp cannot load [31mthis model"),
            ("garbage", "llama.cpp said 'llama_model_loader: loaded meta data' where an answer in JSON was expected"),
            ("exit", "llama.cpp ended with exit code 1: no such instruction"),
        ],
    )
    def test_errors_of_the_peer(self, run, log, tiny_model: MakeModel, behaviour: str, said: str) -> None:
        arguments = [str(tiny_model()), "--backend", "reference", "-r", "1", "--against", sys.executable]
        assert one_line_error(run(*arguments, peer=scripted("peer", behaviour))) == said


class TestOrder:
    def test_sides_take_turns(self, log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(bench, "load_now", lambda: bench_machine.MachineLoad(0.0, 1.0))
        monkeypatch.setattr(bench, "COMMAND", (sys.executable, "-c", "print('x')"))
        pauses: list[None] = []
        monkeypatch.setattr(bench, "settle", lambda: pauses.append(None))
        settings = BenchSettings(
            tmp_path / "m", (4,), (2,), (1, 2), (1, 3), (0,), 2, backend="none", against=scripted("peer")
        )
        seen: list[BenchResult] = []
        progress: list[tuple[str, int, int]] = []
        report = bench.Bench(
            settings, lambda *step: progress.append(step), seen.append, worker=scripted("edgellm")
        ).run()  # fmt: skip
        turn = [("edgellm", "run"), ("peer", "run"), ("peer", "run")]
        a_test = [("edgellm", "prepare"), ("peer", "prepare"), *turn, *turn]
        opened = [("edgellm", "open"), ("peer", "open")]
        started = [("edgellm", "generate"), ("peer", "generate")]
        requests = [(request["side"], request["do"]) for request in log()]
        assert requests == [*opened, *a_test * 3, *opened, *a_test * 3, *started, *started]
        assert [r.get("variant") for r in log() if r["do"] == "run"] == ["edgellm", "slow", "default"] * 12
        assert len(pauses) == 36
        prepared = [(r["kind"], r["tokens"], r["batch"]) for r in log() if r["do"] == "prepare" and r["side"] == "peer"]
        assert prepared == [("prefill", 4, 1), ("decode", 2, 1), ("decode", 2, 3)] * 2
        assert [r["threads"] for r in log() if r["do"] == "open"] == [1, 1, 2, 2]
        assert [r["tokens"] for r in log() if r["do"] == "generate"] == [128, 128, 1, 1]
        assert seen == report.results
        assert [result.ratio for result in seen] == pytest.approx([1.0] * 6)
        assert [result.speed.median for result in seen] == pytest.approx([50, 50, 150] * 2)
        assert [step for step in progress if step[0] == "measuring"] == [("measuring", n, 12) for n in range(1, 13)]

    def test_tests_planned(self) -> None:
        settings = BenchSettings(Path("m"), (512, 0, 64), (128,), (1, None, 1), (1, 4), (0, 4096))
        names = Counter((test.name, test.batch, test.depth, test.threads) for test in planned_tests(settings))
        assert set(names.values()) == {1}
        assert len(names) == 2 * 2 * (2 + 2)
        assert ("tg128", 4, 4096, None) in names
        assert not any(name == "pp0" or (name.startswith("pp") and batch > 1) for name, batch, _, _ in names)


class TestProcess:
    @pytest.mark.parametrize(
        ("behaviour", "said"),
        [
            ("list", "side said '[1, 2]' where an answer in JSON was expected"),
            ("deep", "where an answer in JSON was expected"),
            ("negative", "side answered -1 for seconds where a number was expected"),
            ("not finite", "side answered inf for seconds where a number was expected"),
            ("no variants", "side answered None for seconds where a number was expected"),
            ("quiet exit", "side ended with exit code 3"),
            ("signal", "side was ended by signal 9"),
        ],
    )
    def test_bad_answers(self, log, behaviour: str, said: str) -> None:
        with pytest.raises(EdgeLLMError) as caught, BenchProcess("side", scripted("x", behaviour)) as side:
            side.ask_seconds({"do": "run"})
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_silence(self, log) -> None:
        side = BenchProcess("side", scripted("x", "silence"))
        with pytest.raises(EdgeLLMError, match="side did not answer in time"), side:
            side.ask({"do": "run"}, seconds=0.2)
        with pytest.raises(ProcessLookupError):  # it is gone, and waited for
            os.kill(side.identity, 0)

    def test_no_such_program(self, tmp_path: Path) -> None:
        with pytest.raises(EdgeLLMError, match="cannot start /no/such/python: No such file"):
            BenchProcess("side", ["/no/such/python"])

    def test_events_come_before_the_answer(self, log) -> None:
        events: list[dict[str, Any]] = []
        with BenchProcess("side", scripted("x"), events.append) as side:
            assert side.ask({"do": "generate"})["load_seconds"] == 0.125
        assert events == [{"event": "first token"}]

    def test_most_is_read_of_a_line(self, log, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench_process, "_LONGEST_LINE", 16)
        side = BenchProcess("side", scripted("x", "garbage"))
        with pytest.raises(EdgeLLMError, match="said 'llama_model_load' where"), side:
            side.ask({"do": "run"})


class RecordingExecutor:
    """Stands for an executor: keeps the batches, and which cache slots were written."""

    max_rows = 16
    block_bytes = 640

    def __init__(self, graph: Any, *unused: object) -> None:
        self.graph = graph
        self.batches: list[Batch] = []
        self.written: set[tuple[int, int]] = set()
        self.blocks = 0

    def reserve(self, blocks: int) -> None:
        self.blocks = blocks
        self.written.clear()

    def copy_block(self, source: int, destination: int) -> None:
        self.written |= {(destination, slot) for block, slot in self.written if block == source}

    def step(self, batch: Batch) -> np.ndarray:
        kept = Batch(*(np.copy(getattr(batch, name)) for name in Batch.__dataclass_fields__))
        self.batches.append(kept)
        assert len(batch.tokens) <= self.max_rows
        assert batch.block_tables.max() < self.blocks
        for position, sequence in zip(batch.positions.tolist(), batch.sequences.tolist(), strict=True):
            table = batch.block_tables[sequence]
            self.written.add((int(table[position // BLOCK_TOKENS]), position % BLOCK_TOKENS))
            for before in range(position):  # whatever is attended to must be there
                assert (int(table[before // BLOCK_TOKENS]), before % BLOCK_TOKENS) in self.written
        return np.zeros((len(batch.outputs), self.graph.vocabulary_size), np.float32)

    def memory(self) -> dict[str, int]:
        return {"weights": 1000, "cache": 0, "buffers": 0}


class TestOurSide:
    @pytest.fixture
    def side(self, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> bench_worker.Side:
        monkeypatch.setattr(bench_worker, "make_executor", lambda request, graph, *rest: RecordingExecutor(graph))
        return bench_worker.Side({"model": str(tiny_model())}, lambda answer: None)

    def test_prefill(self, side: bench_worker.Side) -> None:
        side.prepare({"kind": "prefill", "tokens": 20, "depth": 35, "batch": 1})
        batches = side._executor.batches
        batches.clear()
        assert side.run({})["seconds"] > 0
        assert [len(batch.tokens) for batch in batches] == [16, 4]
        assert np.concatenate([batch.positions for batch in batches]).tolist() == list(range(35, 55))
        assert [batch.outputs.tolist() for batch in batches] == [[], [3]]

    def test_decode_of_several_sequences(self, side: bench_worker.Side) -> None:
        answer = side.prepare({"kind": "decode", "tokens": 5, "depth": 40, "batch": 3})
        batches = side._executor.batches
        assert np.concatenate([batch.positions for batch in batches[:3]]).tolist() == list(range(40))
        batches.clear()
        side.run({})
        assert [batch.positions.tolist() for batch in batches] == [[position] * 3 for position in range(40, 46)]
        for batch in batches:
            assert batch.sequences.tolist() == batch.outputs.tolist() == [0, 1, 2]
            assert len(set(batch.block_tables.reshape(-1).tolist())) == batch.block_tables.size
        assert len({tuple(batch.tokens.tolist()) for batch in batches}) > 1
        # Weights, and the cache of three sequences in the middle of the run: 640 bytes hold 32 tokens.
        assert answer["bytes_per_step"] == int(1000 + 3 * 20 * 43.5)

    def test_window_limits_what_is_read(self, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench_worker, "make_executor", lambda request, graph, *rest: RecordingExecutor(graph))
        side = bench_worker.Side({"model": str(tiny_model("gemma3", window=16, layers=6))}, lambda answer: None)
        answer = side.prepare({"kind": "decode", "tokens": 4, "depth": 100, "batch": 1})
        assert answer["bytes_per_step"] == int(1000 + 20 * (5 * 16 + 103) / 6)

    def test_compiled_kernels(self, tiny_model: MakeModel) -> None:
        request = {"model": str(tiny_model()), "threads": 2, "cache_type": "f16", "backend": "cpu"}
        with BenchProcess("edgellm", bench.WORKER) as side:
            answer = side.ask({"do": "open", **request})
            assert answer["context_length"] == 256
            for kind, batch in [("prefill", 1), ("decode", 3)]:
                side.ask({"do": "prepare", "kind": kind, "tokens": 9, "depth": 33, "batch": batch})
                assert side.ask_seconds({"do": "run"}) > 0


class TestPeerScript:
    @pytest.fixture
    def library_log(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
        path = tmp_path / "batches"
        monkeypatch.setenv("LIBRARY_LOG", str(path))
        monkeypatch.setenv("PYTHONPATH", str(PEERS / "fake_library"))
        return lambda: [json.loads(line) for line in path.read_text().splitlines()]

    def ask(self, *requests: dict[str, Any], cache_type: str = "f16", model: str = "m.gguf") -> list[dict[str, Any]]:
        common = {"model": model, "threads": 3, "cache_type": cache_type}
        with BenchProcess("llama.cpp", bench.peer_command(sys.executable)) as side:
            return [side.ask(request) for request in ({"do": "open", **common}, *requests)]

    def test_prefill(self, library_log) -> None:
        prepare = {"do": "prepare", "kind": "prefill", "tokens": 20, "depth": 10, "batch": 1}
        opened, prepared, ran = self.ask(prepare, {"do": "run", "variant": "default"})
        assert opened == {"version": "llama-cpp-python 9.9.9", "system_info": "AVX512 = 1"}
        assert prepared == {"variants": ["flash attention off", "default"]}
        assert ran["seconds"] > 0
        batches = library_log()
        # Per variant: the depth in two batches of at most 8 rows, the prompt in three; then the timed run.
        assert [batch["flash_attention"] for batch in batches] == [0] * 5 + [-1] * 5 + [-1] * 3
        assert all(batch["threads"] == 3 and batch["cache"] == [1, 1] for batch in batches)
        rows = [row for batch in batches[-3:] for row in batch["rows"]]
        assert rows == [[0, position, int(position == 29)] for position in range(10, 30)]

    def test_decode_of_several_sequences(self, library_log) -> None:
        prepare = {"do": "prepare", "kind": "decode", "tokens": 4, "depth": 9, "batch": 3}
        self.ask(prepare, {"do": "run", "variant": "flash attention off"})
        last = library_log()[-5:]
        assert [batch["rows"] for batch in last] == [[[s, position, 1] for s in range(3)] for position in range(9, 14)]
        assert {batch["flash_attention"] for batch in last} == {0}

    def test_quantized_cache_needs_flash_attention(self, library_log) -> None:
        prepare = {"do": "prepare", "kind": "decode", "tokens": 4, "depth": 0, "batch": 1}
        assert self.ask(prepare, cache_type="q8_0")[1] == {"variants": ["default"]}
        assert {(batch["flash_attention"], *batch["cache"]) for batch in library_log()} == {(-1, 8, 8)}

    def test_generate(self, library_log) -> None:
        events: list[dict[str, Any]] = []
        with BenchProcess("llama.cpp", bench.peer_command(sys.executable), events.append) as side:
            request = {"model": "m.gguf", "threads": 1, "cache_type": "f16", "prompt": "Once upon", "tokens": 4}
            answer = side.ask({"do": "generate", **request})
        assert events == [{"event": "first token"}]
        assert answer["load_seconds"] > 0
        assert answer["peak_memory_bytes"] > 1 << 20
        assert [row[1] for batch in library_log() for row in batch["rows"]] == [0, 1, 2, 3, 4, 5, 6, 7]

    def test_errors(self, library_log, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(EdgeLLMError, match=r"llama\.cpp: RuntimeError: llama\.cpp cannot load this model"):
            self.ask(model="picture.png")
        monkeypatch.setenv("PYTHONPATH", "")
        with pytest.raises(EdgeLLMError, match=r"llama\.cpp: ModuleNotFoundError: No module named 'llama_cpp'"):
            self.ask()


class TestMachine:
    def test_other_work_is_what_remains(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter([0.0, 2.0, 10.0, 12.0])
        busy = iter([100.0, 104.0, 150.0, 151.0])  # 5 seconds in 4, on all cores
        own = iter([7.0, 9.0, 9.0, 10.0])  # of which 3 were ours
        monkeypatch.setattr(bench_machine.time, "perf_counter", lambda: next(clock))
        monkeypatch.setattr(bench_machine, "busy_seconds", lambda: next(busy))
        monkeypatch.setattr(bench_machine, "process_seconds", lambda process: next(own))
        meter = bench_machine.LoadMeter()
        for _ in range(2):
            meter.begin([1])
            meter.end([1])
        assert meter.load().other_cores == pytest.approx(0.5)
        assert meter.load().busy

    def test_systems_that_do_not_tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench_machine, "busy_seconds", lambda: None)
        monkeypatch.setattr(bench_machine.os, "getloadavg", lambda: (_ for _ in ()).throw(OSError()))
        load = bench_machine.load_now(0.0)
        assert load.as_object() == {"other_cores": None, "load_average": None}
        assert not load.busy

    @pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system has no /proc")
    def test_time_of_a_process(self) -> None:
        before = bench_machine.process_seconds(os.getpid())
        busy = bench_machine.busy_seconds()
        while bench_machine.process_seconds(os.getpid()) < before + 0.05:
            sum(range(10_000))
        after = bench_machine.busy_seconds()
        assert busy is not None and after is not None
        assert after > busy
        assert bench_machine.process_seconds(1 << 30) == 0.0

    @pytest.mark.parametrize("threads", [1, 3])
    def test_reading_touches_everything(self, threads: int) -> None:
        buffer = np.random.default_rng(0).integers(0, 1 << 62, 96 * 1024, np.uint64)
        read = read_loop()
        lanes = np.bitwise_xor.reduce(buffer.view(np.int32).reshape(-1, 16))
        assert np.int32(read(buffer.ctypes.data, buffer.nbytes, 2048)) == lanes.sum(dtype=np.int32)
        reads: list[tuple[int, int]] = []

        def recorded(address: int, size: int, ahead: int) -> int:
            reads.append((address - buffer.ctypes.data, size))
            return read(address, size, ahead)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edgellm.tools.bench_bandwidth._SECONDS", 0.001)
            assert measure(threads, recorded, buffer) > 0
        assert set(reads) == {(part * buffer.nbytes // threads, buffer.nbytes // threads) for part in range(threads)}


class TestResults:
    def test_figures(self) -> None:
        assert Figures((4.0, 1.0, 2.0)).as_object() == {
            "median": 2.0, "mean": pytest.approx(7 / 3, abs=1e-6), "std": pytest.approx(1.527525, abs=1e-6),
            "runs": [4.0, 1.0, 2.0],
        }  # fmt: skip
        assert Figures((3.0,)).std == 0.0

    def test_settings_are_checked(self) -> None:
        with pytest.raises(InvalidSettingError, match="-t is 500"):
            BenchSettings(Path("m"), threads=(1, 500))

    def test_warnings(self) -> None:
        quiet, busy = bench_machine.MachineLoad(0.02, 1.0), bench_machine.MachineLoad(1.5, 3.0)
        settings = BenchSettings(Path("m"))
        test = BenchTest("decode", 8, None, 1, 0)
        steady = BenchResult(test, Figures((100.0, 101.0)))
        shaky = BenchResult(test, Figures((100.0, 150.0)))
        assert list(warnings(BenchReport(settings, [steady], load={"during": quiet, "after": quiet}))) == []
        lines = list(warnings(BenchReport(settings, [shaky], load={"before": busy, "during": quiet})))
        assert len(lines) == 2
        assert "other processes kept 0.0 cores busy while this ran (at most 1.5)" in lines[0]
        assert lines[1] == "tg8, auto threads: runs vary by 28 %"

    def test_best_of_starts(self) -> None:
        start = StartUp(Figures((0.2, 0.1)), Figures((0.9, 0.5, 0.6)), None)
        assert start.as_object()["first_token_seconds"] == 0.6
        assert start.as_object()["start"]["first_token_seconds"]["best"] == 0.5
