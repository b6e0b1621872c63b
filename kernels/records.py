"""The records that executors fill and kernels read: rows of int64 fields.

Each record is a named tuple of byte offsets. This module does not import Numba, so executors can use it cheaply.
`edgellm.kernels.sound_records` has those for speech and other sound.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any


def record(name: str, *fields: str) -> Any:
    """Field names and their byte offsets."""
    make: Any = namedtuple
    return make(name, fields)(*(8 * number for number in range(len(fields))))


# edgellm.kernels.matmul
MATMUL = record(
    "Matmul",
    "rows",  # address of the number of activation rows
    "weights",  # address of the first group
    "groups",  # number of groups of 16 weight rows
    "blocks",  # number of blocks along a weight row
    "input",  # address of the int8 codes (float32 for the float formats)
    "input_stride",  # bytes from one activation row to the next
    "scales",  # address of the activations' block scales (see quantize.py)
    "scales_stride",  # bytes
    "output",  # address of float32 results
    "output_stride",  # bytes
    "bias",  # address of float32, or 0
    "accumulate",  # 1: add to what the output holds
    "group_bytes",  # from one group of weights to the next
    "fine_codes",  # bytes from a row's codes to those of its remainder (fine variants only)
    "fine_scales",  # the same for its scales
    "following",  # address of the record of the next product with few rows, whose weights are asked for ahead; or 0
)


# edgellm.kernels.tile_input
TILE_INPUT = record(
    "TileInput",
    "rows",  # address of the number of activation rows
    "blocks",  # blocks of 32 in a row
    "input",  # address of float32, or of codes
    "input_stride",  # bytes
    "output",  # address of the tiles, see tile_layout.py
    "scales",  # address of the codes' scales
    "scales_stride",  # bytes
)


# edgellm.kernels.matmul_tiles
MATMUL_TILES = record(
    "MatmulTiles",
    "rows",  # address of the number of activation rows
    "weights",  # address of the first group
    "groups",  # number of groups of 16 weight rows
    "blocks",  # number of blocks along a weight row
    "input",  # address of what tile_input wrote
    "tile_bytes",  # from one tile of it to the next
    "tiles_at_once",  # that are multiplied by a group of weights before the next group comes
    "output",  # address of float32 results
    "output_stride",  # bytes
    "bias",  # address of float32, or 0
    "accumulate",  # 1: add to what the output holds
    "group_bytes",  # from one group of weights to the next
    "scratch",  # address of each thread's memory, on a cache line, see tile_layout.py
    "scratch_stride",  # bytes
)


# edgellm.kernels.amx_input
AMX_INPUT = record(
    "AMXInput",
    "rows",  # address of the number of activation rows
    "columns",  # a multiple of 32
    "input",  # address of float32
    "input_stride",  # bytes
    "output",  # address of bfloat16 in the order of tiles
)


# edgellm.kernels.matmul_amx
MATMUL_AMX = record(
    "MatmulAMX",
    "rows",  # address of the number of activation rows
    "weights",  # address of the first group
    "groups",  # number of groups of 16 weight rows
    "columns",  # values along a weight row, a multiple of 32
    "input",  # address of what amx_input wrote
    "output",  # address of float32 results
    "output_stride",  # bytes
    "bias",  # address of float32, or 0
    "accumulate",  # 1: add to what the output holds
    "group_bytes",  # from one group of weights to the next
    "scratch",  # address of each thread's memory, on a cache line, see amx_layout.py
    "scratch_stride",  # bytes
)


# edgellm.kernels.pack
PACK = record(
    "Pack",
    "source",  # address of the first row's bytes in the file
    "source_stride",  # bytes from row to row
    "groups",  # of 16 rows
    "blocks",  # in a row
    "target",  # address of the first group
    "group_bytes",
)


# edgellm.kernels.quantize
QUANTIZE = record(
    "Quantize",
    "rows",  # address of the number of rows
    "blocks",  # blocks of 32 in a row
    "input",  # address of float32
    "input_stride",  # bytes
    "codes",  # address of int8
    "codes_stride",  # bytes
    "scales",  # address
    "scales_stride",  # bytes
    "fine_codes",  # bytes from a row's codes to those of its remainder, 0 if none is wanted
    "fine_scales",  # the same for its scales
)


# edgellm.kernels.quantizer
QUANTIZER = record(
    "Quantizer",
    "source",  # address of the first row
    "kind",  # how its numbers are stored: see quantizer.py
    "blocks",  # in all rows, which follow each other without a gap
    "row_values",  # values in a row
    "importance",  # address of float32 (row_values), of the weighted variants
    "target",  # address of the first block to write
    "scratch",  # address of each thread's memory: SCRATCH_BYTES of quantizer_memory.py
    "problem",  # address of an int64: bit 0 is set where a number is not finite, bit 1 where one is too large
)


# edgellm.kernels.norm
NORM = record(
    "Norm",
    "rows",  # address of the number of rows
    "parts",  # heads in a row, 1 for the whole row
    "width",  # values in a part
    "input",  # address of float32
    "input_stride",  # bytes
    "output",  # address of float32
    "output_stride",  # bytes
    "weight",  # address of float32 (width), or 0
    "bias",  # address of float32 (width), or 0
    "epsilon",  # address of float32
    "accumulate",  # 1: add to what the output holds
    "codes",  # address of int8 to quantize to, or 0; only with parts = 1 and width % 32 = 0
    "codes_stride",  # bytes
    "scales",  # address, see quantize.py
    "scales_stride",  # bytes
    "by_column",  # 1: threads may share the columns of a row
    "fine_codes",  # bytes from a row's codes to those of its remainder, 0 if none is wanted
    "fine_scales",  # the same for its scales
)


# edgellm.kernels.experts; the first fields are those of MATMUL, for one matrix of a stack
EXPERTS = record(
    "Experts",
    *MATMUL._fields,  # input_stride and scales_stride are those of the scratch memory, output_stride is 64
    "matrices",  # matrices in the stack
    "matrix_bytes",  # from one to the next
    "bias_bytes",  # the same of their biases
    "width",  # results of one matrix: the last group of 16 may have fewer rows
    "parts",  # products for each row
    "starts",  # address of int32 (matrices + 1), see routing.py; 0: part j is multiplied by matrix j
    "pairs",  # address of int32 (rows * parts)
    "source_stride",  # bytes from one row of the input to the next
    "source_part",  # bytes from one part of a row to the next, 0 if all parts read the same
    "source_scales_stride",  # the same for the input's scales
    "source_scales_part",
    "row_bytes",  # of what one product reads: codes, or float32
    "scale_bytes",  # of its scales
    "result",  # address of float32, where the products go in the end
    "result_stride",  # bytes
    "scratch",  # address of each thread's memory, see experts.py
    "scratch_stride",  # bytes
)


# edgellm.kernels.routing
ROUTE = record(
    "Route",
    "rows",  # address of the number of rows
    "experts",
    "chosen",
    "input",  # address of float32: the router's logits
    "input_stride",  # bytes
    "output",  # address of float32: numbers, then weights
    "output_stride",  # bytes
    "bias",  # address of float32 (experts), or 0
    "normalize",  # 1: weights are divided by their sum
    "scale",  # address of float32
    "groups",
    "chosen_groups",
    "best_of_group",
    "scratch",  # address of each thread's memory: 20 bytes for each expert, padded to 16 experts
    "scratch_stride",  # bytes
)
ROUTE_LISTS = record(
    "RouteLists",
    "rows",  # address of the number of rows
    "matrices",
    "chosen",
    "routes",  # address of float32: what the route kernel wrote
    "routes_stride",  # bytes
    "starts",  # address of int32 (matrices + 1): where each matrix's part of the list begins
    "pairs",  # address of int32 (rows * chosen): row * chosen + place, ordered by matrix
)


# edgellm.kernels.elements
WEIGHTED_SUM = record(
    "WeightedSum",
    "rows",  # address of the number of rows
    "width",  # of a part and of the result
    "parts",
    "input",  # address of float32
    "input_stride",  # bytes
    "routes",  # address of float32: the weights are behind as many numbers
    "routes_stride",  # bytes
    "output",  # address of float32
    "output_stride",  # bytes
    "accumulate",  # 1: add to what the output holds
)
JOIN = record(
    "Join",
    "rows",  # address of the number of rows
    "heads",
    "a",  # address of float32: the first value of the first head that is wanted
    "a_stride",  # bytes from row to row
    "a_head",  # bytes from head to head
    "a_width",  # values of a head that are copied
    "b",  # what follows them, or 0
    "b_stride",
    "b_head",  # 0: all heads get the same
    "b_width",
    "output",  # address of float32
    "output_stride",  # bytes
)
ROUND_ROWS = record(
    "RoundRows",
    "rows",  # address of the number of rows
    "width",
    "input",  # address of float32
    "input_stride",  # bytes
    "output",  # address of float32
    "output_stride",  # bytes
    "codes",  # address of int8, or 0; only where width % 32 = 0
    "codes_stride",  # bytes
    "scales",  # address, see quantize.py
    "scales_stride",  # bytes
)


# edgellm.kernels.rope
ROPE = record(
    "Rope",
    "rows",  # address of the number of rows
    "heads",
    "width",  # values in a head
    "pairs",  # pairs of a head that turn
    "values",  # address of float32, changed in place
    "stride",  # bytes from row to row
    "cosines",  # address of float32 (rows, pairs)
    "sines",  # address of float32 (rows, pairs)
)


# edgellm.kernels.activation
ACTIVATION = record(
    "Activation",
    "rows",  # address of the number of rows
    "width",  # values in a row
    "a",  # address of float32
    "a_stride",  # bytes
    "b",  # address of float32, or 0
    "b_stride",  # bytes
    "output",  # address of float32
    "output_stride",  # bytes
    "factor",  # address of float32
    "codes",  # address of int8 to quantize to, or 0; only where width % 32 = 0
    "codes_stride",  # bytes
    "scales",  # address, see quantize.py
    "scales_stride",  # bytes
    "fine_codes",  # bytes from a row's codes to those of its remainder, 0 if none is wanted
    "fine_scales",  # the same for its scales
)


# edgellm.kernels.cache
CACHE = record(
    "StoreCache",
    "rows",  # address of the number of rows
    "heads",  # key/value heads
    "key_width",
    "value_width",
    "keys",  # address of float32
    "keys_stride",  # bytes
    "values",  # address of float32
    "values_stride",  # bytes
    "slots",  # address of int32 (rows): block * 32 + slot in the block
    "cache",  # address of the layer's first block
    "block_bytes",
    "head_key_bytes",  # bytes of one head's keys in a block
    "head_value_bytes",
    "values_offset",  # where a block's values begin
)


# edgellm.kernels.attention
ATTENTION = record(
    "Attention",
    "rows",  # address of the number of rows
    "heads",  # key/value heads
    "group",  # query heads per key/value head
    "key_width",
    "value_width",
    "queries",  # address of float32
    "queries_stride",  # bytes
    "output",  # address of float32
    "output_stride",  # bytes
    "positions",  # address of int32 (rows)
    "sequences",  # address of int32 (rows)
    "tables",  # address of int32 (sequences, blocks): block numbers
    "tables_stride",  # address of an int64: bytes
    "cache",  # address of the layer's first block
    "block_bytes",
    "head_key_bytes",
    "head_value_bytes",
    "values_offset",
    "window",  # 0: none
    "constants",  # address of float32: scale, soft cap (0: none)
    "sinks",  # address of float32 (query heads), or 0
    "scratch",  # address of each thread's memory, see attention.py
    "scratch_stride",  # bytes, see attention_layout.py
)


# edgellm.kernels.rows
ROWS = record(
    "SelectRows",
    "rows",  # address of the number of chosen rows
    "width",  # values, padded to 16
    "input",  # address of float32
    "input_stride",  # bytes
    "output",  # address of float32
    "output_stride",  # bytes
    "index",  # address of int32 (rows)
)


def _lines(name: str, *fields: str) -> Any:
    """Fields a cache line apart, so that threads do not disturb each other."""
    make: Any = namedtuple
    return make(name, fields)(*(64 * number for number in range(len(fields))))


# edgellm.kernels.team: the memory that the threads of a team share
TEAM = _lines(
    "Team",
    "arrived",  # threads at the barrier
    "generation",  # barriers passed
    "step",  # 65536 * plans started + threads that take part in the last one
    "finished",  # the step of the last plan that the caller's thread took part in
    "closed",  # 1: workers end
    "plan",  # address of the plan
    "operations",  # operations in the plan
    "late",  # threads that sleep at the barrier, or are about to
    "sleeping",  # workers that sleep until the next plan, or are about to
    "lost",  # nanoseconds that threads waited at barriers beyond the first microseconds, all together
    "spins",  # how often a thread looks at what it waits for before it yields
    "barrier_yields",  # how often a thread yields at a barrier before it sleeps
    "idle_yields",  # how often a worker yields between plans before it sleeps
    "yield_function",  # address of a C function that gives the core to another thread
    "clock_function",  # address of C's clock_gettime, or 0
    "clock",  # which clock
    "system_call",  # address of C's syscall where there are futexes, else 0: threads at barriers do not sleep
    "futex",  # the number of that system call
)
TEAM_BYTES = 64 * len(TEAM)


# edgellm.kernels.scores
SCORES = record(
    "Scores",
    "rows",  # address of the number of rows
    "width",  # of the vocabulary
    "logits",  # address of float32
    "logits_stride",  # bytes
    "targets",  # address of int32: a token for each row
    "output",  # address of float32: what the variant says for each row
    "output_stride",  # bytes
    "base",  # address of the logits to compare with (divergence only)
    "base_stride",  # bytes
)
