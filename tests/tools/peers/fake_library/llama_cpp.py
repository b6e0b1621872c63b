"""Stands for llama-cpp-python: the functions that the peer's side calls, recording what it is asked to compute.

Every decoded batch becomes a line of the file that LIBRARY_LOG names. Positions must follow one another in every
sequence, as llama.cpp demands.
"""

from __future__ import annotations

import ctypes
import json
import os
from types import SimpleNamespace

__version__ = "9.9.9"
llama_token = ctypes.c_int32
VOCABULARY = 100


def llama_log_callback(function):
    return function


def llama_log_set(callback, data):
    print("llama.cpp prints what it likes on standard output")
    callback(0, b"log", None)


def llama_backend_init():
    pass


def llama_print_system_info():
    return b"AVX512 = 1"


def llama_model_default_params():
    return SimpleNamespace(n_gpu_layers=-1)


def llama_model_load_from_file(path, parameters):
    assert parameters.n_gpu_layers == 0
    return SimpleNamespace(path=path) if path.endswith(b".gguf") else None


def llama_model_get_vocab(model):
    return model


def llama_vocab_n_tokens(vocabulary):
    return VOCABULARY


def llama_context_default_params():
    return SimpleNamespace(
        n_ctx=512, n_seq_max=1, n_threads=4, n_threads_batch=4, type_k=1, type_v=1, flash_attn_type=-1, kv_unified=True
    )


class _Context:
    def __init__(self, parameters):
        self.parameters = parameters
        self.lengths = [0] * parameters.n_seq_max
        self.capacity = parameters.n_ctx // parameters.n_seq_max
        self.logits = (ctypes.c_float * VOCABULARY)(*range(VOCABULARY))


def llama_init_from_model(model, parameters):
    assert parameters.n_threads == parameters.n_threads_batch
    return _Context(parameters)


def llama_get_memory(context):
    return context


def llama_n_batch(context):
    return 8


def llama_n_seq_max(context):
    return context.parameters.n_seq_max


def llama_batch_init(rows, embedding, sequences):
    return SimpleNamespace(
        n_tokens=0,
        token=[0] * rows,
        pos=[0] * rows,
        n_seq_id=[0] * rows,
        seq_id=[[0] * sequences for _ in range(rows)],
        logits=[0] * rows,
    )


def llama_decode(context, batch):
    rows = range(batch.n_tokens)
    for row in rows:
        sequence = batch.seq_id[row][0]
        assert batch.n_seq_id[row] == 1
        assert 0 <= batch.token[row] < VOCABULARY
        assert batch.pos[row] == context.lengths[sequence], "positions must follow one another"
        assert batch.pos[row] < context.capacity
        context.lengths[sequence] += 1
    entry = {
        "flash_attention": context.parameters.flash_attn_type,
        "threads": context.parameters.n_threads,
        "cache": [context.parameters.type_k, context.parameters.type_v],
        "rows": [[batch.seq_id[row][0], batch.pos[row], batch.logits[row]] for row in rows],
    }
    with open(os.environ["LIBRARY_LOG"], "a") as log:  # noqa: PTH123
        log.write(json.dumps(entry) + "\n")
    return 0


def llama_memory_seq_rm(memory, sequence, begin, end):
    assert end == -1
    memory.lengths[sequence] = min(memory.lengths[sequence], begin)
    return True


def llama_memory_seq_cp(memory, source, target, begin, end):
    assert (begin, end) == (-1, -1)
    assert not memory.parameters.kv_unified
    memory.lengths[target] = memory.lengths[source]


def llama_synchronize(context):
    pass


def llama_get_logits_ith(context, row):
    assert row == -1
    return ctypes.cast(context.logits, ctypes.POINTER(ctypes.c_float))


def llama_tokenize(vocabulary, text, length, ids, room, special, parse):
    assert length == len(text) <= room
    for index, byte in enumerate(text[:5]):
        ids[index] = byte % VOCABULARY
    return 5


def llama_batch_free(batch):
    pass


def llama_free(context):
    pass
