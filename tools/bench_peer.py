"""The peer's side of a benchmark: llama.cpp, through llama-cpp-python's low-level functions.

Runs under an interpreter that has llama-cpp-python and need not have edgellm, so it imports nothing else. What it is
asked is described in ``bench_process.py``. As llama.cpp's own ``llama-bench`` does it: random tokens, logits for the
last token of a prompt only, no sampling. Flash attention is a variant: off, and what llama.cpp chooses by itself.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

Request = dict[str, Any]
CACHE_TYPES = {"f16": 1, "q8_0": 8}  # ggml's numbers
NO_FLASH_ATTENTION = "flash attention off"
NEEDED = ("llama_model_load_from_file", "llama_init_from_model", "llama_get_memory", "llama_memory_seq_rm")


def take_output() -> IO[str]:
    """A private copy of standard output; what libraries print goes to standard error from now on."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def peak_bytes() -> int | None:
    """Most physical memory this process ever occupied, or None."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Context:
    """One llama_context made for one test."""

    def __init__(
        self,
        library: Any,
        model: Any,
        settings: Request,
        tokens: int,
        batch_rows: int,
        sequences: int,
        variant: str,
    ) -> None:
        parameters = library.llama_context_default_params()
        parameters.n_ctx = sequences * (-(-tokens // 256) * 256)
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = settings["threads"]
        parameters.type_k = parameters.type_v = CACHE_TYPES[settings["cache_type"]]
        parameters.kv_unified = False  # each sequence reads what is its own, as real users' do
        if variant == NO_FLASH_ATTENTION:
            parameters.flash_attn_type = 0
        self.library = library
        self.context = library.llama_init_from_model(model, parameters)
        if not self.context:
            raise RuntimeError(f"llama.cpp made no context of {parameters.n_ctx} tokens")
        self.memory = library.llama_get_memory(self.context)
        self.rows = min(library.llama_n_batch(self.context), max(1, batch_rows))
        self.batch = library.llama_batch_init(max(self.rows, sequences), 0, 1)

    def _decode(self) -> None:
        status = self.library.llama_decode(self.context, self.batch)
        if status:
            raise RuntimeError(f"llama_decode answered {status}")

    def _set(self, row: int, token: int, position: int, sequence: int, wanted: int) -> None:
        batch = self.batch
        batch.token[row] = token
        batch.pos[row] = position
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = sequence
        batch.logits[row] = wanted

    def prompt(self, tokens: list[int], first: int, sequence: int) -> None:
        """Compute a prompt that begins at position ``first``; logits for its last token."""
        for begin in range(0, len(tokens), self.rows):
            part = tokens[begin : begin + self.rows]
            for row, token in enumerate(part):
                self._set(row, token, first + begin + row, sequence, int(begin + row == len(tokens) - 1))
            self.batch.n_tokens = len(part)
            self._decode()
        self.library.llama_synchronize(self.context)

    def step(self, tokens: list[int], position: int) -> None:
        """One token for each sequence."""
        for sequence, token in enumerate(tokens):
            self._set(sequence, token, position, sequence, 1)
        self.batch.n_tokens = len(tokens)
        self._decode()

    def copy(self, sequences: int) -> None:
        """Give all sequences the first one's content, each in memory of its own."""
        for sequence in range(1, sequences):
            self.library.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)

    def cut(self, position: int) -> None:
        """Forget everything from a position on, in all sequences."""
        for sequence in range(self.library.llama_n_seq_max(self.context)):
            if not self.library.llama_memory_seq_rm(self.memory, sequence, position, -1):
                raise RuntimeError("llama.cpp cannot take tokens back from this model's memory")

    def close(self) -> None:
        self.library.llama_batch_free(self.batch)
        self.library.llama_free(self.context)


class Peer:
    """Answers the requests."""

    def __init__(self) -> None:
        self.library = library = importlib.import_module("llama_cpp")
        if not all(hasattr(library, name) for name in NEEDED):
            raise RuntimeError(f"llama-cpp-python {library.__version__} is too old; install 0.3.16 or newer")
        # Kept alive: llama.cpp calls it for every line of its log.
        self.silence = library.llama_log_callback(lambda level, text, data: None)
        library.llama_log_set(self.silence, ctypes.c_void_p(0))
        library.llama_backend_init()
        self.model: Any = None
        self.contexts: dict[str, Context] = {}
        self.random = random.Random(1)

    def open(self, request: Request) -> Request:
        self.settings = request
        parameters = self.library.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = self.library.llama_model_load_from_file(os.fsencode(request["model"]), parameters)
        if not self.model:
            raise RuntimeError("llama.cpp cannot load this model")
        self.vocabulary = self.library.llama_model_get_vocab(self.model)
        self.tokens = self.library.llama_vocab_n_tokens(self.vocabulary)
        information = self.library.llama_print_system_info()
        return {
            "version": f"llama-cpp-python {self.library.__version__}",
            "system_info": information.decode(errors="replace") if isinstance(information, bytes) else "",
        }

    def draw(self, count: int) -> list[int]:
        return [self.random.randrange(self.tokens) for _ in range(count)]

    def variants(self) -> list[str]:
        """With a quantized cache there is no attention but flash attention."""
        chooses = hasattr(self.library.llama_context_default_params(), "flash_attn_type")
        return [NO_FLASH_ATTENTION, "default"] if chooses and self.settings["cache_type"] == "f16" else ["default"]

    def prepare(self, request: Request) -> Request:
        for context in self.contexts.values():
            context.close()
        self.contexts = {}
        self.test = request
        depth, count, sequences = request["depth"], request["tokens"], request["batch"]
        for variant in self.variants():
            rows = max(depth, count if request["kind"] == "prefill" else 1)
            context = Context(self.library, self.model, self.settings, depth + count + 1, rows, sequences, variant)
            self.contexts[variant] = context
            if depth:
                context.prompt(self.draw(depth), 0, 0)
                context.copy(sequences)
            self.measure(context, min(count, 2) if request["kind"] == "decode" else count)
        return {"variants": list(self.contexts)}

    def run(self, request: Request) -> Request:
        return {"seconds": self.measure(self.contexts[request["variant"]], self.test["tokens"])}

    def measure(self, context: Context, count: int) -> float:
        depth, sequences = self.test["depth"], self.test["batch"]
        tokens = self.draw(count * sequences)
        context.cut(depth)
        if self.test["kind"] == "prefill":
            begin = time.perf_counter()
            context.prompt(tokens, depth, 0)
            return time.perf_counter() - begin
        context.step(self.draw(sequences), depth)
        self.library.llama_synchronize(context.context)
        begin = time.perf_counter()
        for number in range(count):
            context.step(tokens[number * sequences : (number + 1) * sequences], depth + 1 + number)
        self.library.llama_synchronize(context.context)
        return time.perf_counter() - begin

    def generate(self, request: Request, tell: Callable[[Request], None]) -> Request:
        """The first token is chosen as a program would, the others repeat it: this is not about text."""
        begin = time.perf_counter()
        self.open(request)
        text = request["prompt"].encode()
        ids = (self.library.llama_token * (len(text) + 8))()
        count = self.library.llama_tokenize(self.vocabulary, text, len(text), ids, len(ids), True, True)
        if count < 1:
            raise RuntimeError("llama.cpp cannot tokenize the prompt")
        total = count + request["tokens"]
        context = Context(self.library, self.model, self.settings, max(512, total), count, 1, "default")
        loaded = time.perf_counter()
        context.prompt(list(ids)[:count], 0, 0)
        logits = self.library.llama_get_logits_ith(context.context, -1)
        token = int(importlib.import_module("numpy").ctypeslib.as_array(logits, (self.tokens,)).argmax())
        tell({"event": "first token"})
        for position in range(count, total - 1):
            context.step([token], position)
        self.library.llama_synchronize(context.context)
        context.close()
        return {"load_seconds": loaded - begin, "peak_memory_bytes": peak_bytes()}


def main() -> None:
    channel = take_output()

    def tell(answer: Request) -> None:
        channel.write(json.dumps(answer) + "\n")
        channel.flush()

    peer: Peer | None = None
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if peer is None:
                peer = Peer()
            if request["do"] == "generate":
                answer = peer.generate(request, tell)
            else:
                answer = {"open": peer.open, "prepare": peer.prepare, "run": peer.run}[request["do"]](request)
        except Exception as error:  # whatever it is, the other side should hear of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        tell(answer)


if __name__ == "__main__":
    main()
