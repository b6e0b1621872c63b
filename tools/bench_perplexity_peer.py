"""The peer's side of ``bench_perplexity.py``: llama.cpp, through llama-cpp-python's low-level functions.

Runs under an interpreter that has llama-cpp-python and need not have edgellm. Each window is one batch, with logits
for the tokens that are scored, as llama.cpp's own ``llama-perplexity`` has it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import sys
import time
from typing import Any

Request = dict[str, Any]


class Peer:
    """Answers the requests."""

    def __init__(self) -> None:
        self.library = library = importlib.import_module("llama_cpp")
        self.numpy = importlib.import_module("numpy")
        # Kept alive: llama.cpp calls it for every line of its log.
        self.silence = library.llama_log_callback(lambda level, text, data: None)
        library.llama_log_set(self.silence, ctypes.c_void_p(0))
        library.llama_backend_init()

    def open(self, request: Request) -> Request:
        library = self.library
        parameters = library.llama_model_default_params()
        parameters.n_gpu_layers = 0
        model = library.llama_model_load_from_file(os.fsencode(request["model"]), parameters)
        if not model:
            raise RuntimeError("llama.cpp cannot load this model")
        self.vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        settings = library.llama_context_default_params()
        settings.n_ctx = settings.n_batch = request["context"]
        settings.n_ubatch = min(512, request["context"])
        settings.n_threads = settings.n_threads_batch = request["threads"]
        self.context = library.llama_init_from_model(model, settings)
        if not self.context:
            raise RuntimeError("llama.cpp made no context")
        self.batch = library.llama_batch_init(request["context"], 0, 1)
        return {"version": f"llama-cpp-python {library.__version__}"}

    def run(self, request: Request) -> Request:
        """Compute all windows; "seconds" without, "scored_seconds" with reading the losses off the logits."""
        decoding = scoring = 0.0
        losses = 0.0
        for window in request["windows"]:
            begin = time.perf_counter()
            logits = self.decode(window, request["first"])
            decoded = time.perf_counter()
            losses += self.losses(logits, window[request["first"] :])
            decoding += decoded - begin
            scoring += time.perf_counter() - decoded
        count = sum(len(window) - request["first"] for window in request["windows"])
        perplexity = math.exp(losses / count)
        return {"seconds": decoding, "scored_seconds": decoding + scoring, "perplexity": perplexity}

    def decode(self, window: list[int], first: int) -> Any:
        library, batch = self.library, self.batch
        library.llama_memory_clear(library.llama_get_memory(self.context), True)
        for row, token in enumerate(window):
            batch.token[row] = token
            batch.pos[row] = row
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = 0
            batch.logits[row] = int(first - 1 <= row < len(window) - 1)
        batch.n_tokens = len(window)
        status = library.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f"llama_decode answered {status}")
        library.llama_synchronize(self.context)
        shape = (len(window) - first, self.vocabulary)
        return self.numpy.ctypeslib.as_array(library.llama_get_logits(self.context), shape)

    def losses(self, logits: Any, targets: list[int]) -> float:
        peaks = logits.max(axis=1, keepdims=True)
        totals = self.numpy.log(self.numpy.exp(logits - peaks).sum(axis=1)) + peaks[:, 0]
        return float((totals - logits[self.numpy.arange(len(targets)), targets]).sum())


def main() -> None:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            peer = peer or Peer()
            answer = {"open": peer.open, "run": peer.run}[request["do"]](request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
