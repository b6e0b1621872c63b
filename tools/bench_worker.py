"""edgellm's side of a benchmark; what it is asked is described in ``edgellm.tools.bench_process``.

Prefill and decoding go through the executor, as the engine's steps do, with random tokens and without sampling;
``generate`` goes through the public interface.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgellm.errors import EdgeLLMError, InvalidSettingError

if TYPE_CHECKING:
    from edgellm.graph import Graph
    from edgellm.platforms.batch import Executor
    from edgellm.weights import WeightStore

Tell = Callable[[dict[str, Any]], None]


def take_output() -> IO[str]:
    """A private copy of standard output; what libraries print goes to standard error from now on."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


class Side:
    """A loaded model and the test that was prepared last."""

    def __init__(self, request: dict[str, Any], tell: Tell) -> None:
        """Load; see ``open`` among the requests."""
        from edgellm.gguf import open_gguf
        from edgellm.llm import CHUNK_STEP, CHUNK_WEIGHT_BYTES
        from edgellm.models import build_graph
        from edgellm.weights import WeightStore

        self._file = open_gguf(Path(request["model"]))
        graph = build_graph(self._file, None)
        self._executor = make_executor(request, graph, WeightStore(self._file), tell)
        self._graph = graph
        # Prompts are cut as the engine cuts them.
        chunk = CHUNK_STEP * max(1, CHUNK_WEIGHT_BYTES // self._file.size_bytes // CHUNK_STEP)
        self._rows = max(1, min(chunk, self._executor.max_rows))

    def describe(self) -> dict[str, Any]:
        """What ``open`` answers."""
        return {"memory": self._executor.memory(), "context_length": self._graph.context_length}

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Reserve the cache, fill it to the depth, run once."""
        import numpy as np

        from edgellm.cache import blocks_for

        self._test = request
        depth, count, sequences = request["depth"], request["tokens"], request["batch"]
        last = depth + count + 1
        if last > self._graph.context_length:
            raise InvalidSettingError(
                f"{count} tokens at depth {depth} need a context of {last}, the model has {self._graph.context_length}",
                "use a smaller --depth, -p or -n",
            )
        width = blocks_for(last)
        self._executor.reserve(sequences * width)
        self._tables = np.arange(sequences * width, dtype=np.int32).reshape(sequences, width)
        self._random = np.random.default_rng(1)
        self._prompt(depth, 0)
        for sequence in range(1, sequences):
            for block in range(blocks_for(depth)):
                self._executor.copy_block(block, sequence * width + block)
        self._measure(min(count, 2) if request["kind"] == "decode" else count)
        return {"variants": ["edgellm"], "bytes_per_step": self._bytes_per_step()}

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the prepared test once."""
        return {"seconds": self._measure(self._test["tokens"])}

    def _measure(self, count: int) -> float:
        if self._test["kind"] == "prefill":
            begin = time.perf_counter()
            self._prompt(count, self._test["depth"])
            return time.perf_counter() - begin
        return self._decode(count)

    def _prompt(self, count: int, first: int) -> None:
        """Compute a random prompt of the first sequence from position ``first`` on; logits for its last token."""
        import numpy as np

        from edgellm.platforms.batch import Batch

        tokens = self._random.integers(0, self._graph.vocabulary_size, count, np.int32)
        for begin in range(0, count, self._rows):
            part = tokens[begin : begin + self._rows]
            positions = np.arange(first + begin, first + begin + len(part), dtype=np.int32)
            is_last = begin + len(part) == count
            outputs = np.array([len(part) - 1] if is_last else [], np.int32)
            self._executor.step(Batch(part, positions, np.zeros(len(part), np.int32), self._tables[:1], outputs))

    def _decode(self, count: int) -> float:
        """Seconds for ``count`` steps of one token for each sequence, after one step that is not counted."""
        import numpy as np

        from edgellm.platforms.batch import Batch

        sequences = len(self._tables)
        tokens = self._random.integers(0, self._graph.vocabulary_size, (count + 1, sequences), np.int32)
        numbers = np.arange(sequences, dtype=np.int32)
        positions = np.full(sequences, self._test["depth"], np.int32)
        row = tokens[0].copy()
        batch = Batch(row, positions, numbers, self._tables, numbers)
        self._executor.step(batch)
        begin = time.perf_counter()
        for number in range(count):
            row[:] = tokens[number + 1]
            positions += 1
            self._executor.step(batch)
        return time.perf_counter() - begin

    def _bytes_per_step(self) -> int:
        """Bytes a step of decoding must read: the weights once, and of the cache what each sequence sees."""
        from edgellm.platforms.batch import BLOCK_TOKENS

        layers = self._graph.cache
        sizes = [layer.numbers for layer in layers]
        middle = self._test["depth"] + 1 + self._test["tokens"] / 2
        seen = [size * min(middle, layer.window or middle) for size, layer in zip(sizes, layers, strict=True)]
        of_sequence = self._executor.block_bytes / BLOCK_TOKENS * sum(seen) / sum(sizes)
        return int(self._executor.memory()["weights"] + self._test["batch"] * of_sequence)


def make_executor(request: dict[str, Any], graph: Graph, weights: WeightStore, tell: Tell) -> Executor:
    """The executor that ``LLM.load`` would make."""
    if request["backend"] == "reference":
        from edgellm.platforms.reference import ReferenceExecutor

        return ReferenceExecutor(graph, weights)
    from edgellm.platforms.cpu import CPUExecutor

    def progress(stage: str, done: int, total: int) -> None:
        tell({"event": "progress", "stage": stage, "done": done, "total": total})

    return CPUExecutor(graph, weights, request["threads"], request["cache_type"], progress)


def generate(request: dict[str, Any]) -> dict[str, Any]:
    """Load by the public interface, continue a text, tell what that took."""
    from edgellm.llm import LLM
    from edgellm.sampling import Sampling

    begin = time.perf_counter()
    with LLM.load(
        request["model"], backend=request["backend"], threads=request["threads"], cache_type=request["cache_type"]
    ) as llm:
        loaded = time.perf_counter()
        done = llm.generate(
            request["prompt"], max_tokens=request["tokens"], sampling=Sampling(temperature=0, ignore_eos=True)
        )
        return {
            "load_seconds": loaded - begin,
            "peak_memory_bytes": llm.memory().get("peak"),
            "memory": llm.memory(),
            "generated_per_second": done.timings.generated_per_second,
        }


def main() -> None:
    """Answer requests until there are no more."""
    channel = take_output()

    def tell(answer: dict[str, Any]) -> None:
        channel.write(json.dumps(answer) + "\n")
        channel.flush()

    side: Side | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "generate":
                answer = generate(request)
            elif request["do"] == "open":
                side = Side(request, tell)
                answer = side.describe()
            else:
                assert side is not None
                answer = {"prepare": side.prepare, "run": side.run}[request["do"]](request)
        except (EdgeLLMError, OSError) as error:
            answer = {"error": str(error)}
        except MemoryError:
            answer = {"error": "out of memory; use a smaller model or a smaller --depth"}
        tell(answer)


if __name__ == "__main__":
    main()
