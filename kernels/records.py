"""The records that executors fill and kernels read: rows of int64 fields.

Each record is a named tuple of byte offsets. This module does not import Numba, so executors can use it cheaply.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any


def _record(name: str, *fields: str) -> Any:
    make: Any = namedtuple
    return make(name, fields)(*(8 * number for number in range(len(fields))))


# edgellm.kernels.matmul
MATMUL = _record(
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
)


# edgellm.kernels.tile_input
TILE_INPUT = _record(
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
MATMUL_TILES = _record(
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
)


# edgellm.kernels.amx_input
AMX_INPUT = _record(
    "AMXInput",
    "rows",  # address of the number of activation rows
    "columns",  # a multiple of 32
    "input",  # address of float32
    "input_stride",  # bytes
    "output",  # address of bfloat16 in the order of tiles
)


# edgellm.kernels.matmul_amx
MATMUL_AMX = _record(
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
PACK = _record(
    "Pack",
    "source",  # address of the first row's bytes in the file
    "source_stride",  # bytes from row to row
    "groups",  # of 16 rows
    "blocks",  # in a row
    "target",  # address of the first group
    "group_bytes",
)


# edgellm.kernels.quantize
QUANTIZE = _record(
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
QUANTIZER = _record(
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
NORM = _record(
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
EXPERTS = _record(
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
ROUTE = _record(
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
ROUTE_LISTS = _record(
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
WEIGHTED_SUM = _record(
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
JOIN = _record(
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
ROUND_ROWS = _record(
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
ROPE = _record(
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
ACTIVATION = _record(
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
CACHE = _record(
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
ATTENTION = _record(
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
ROWS = _record(
    "SelectRows",
    "rows",  # address of the number of chosen rows
    "width",  # values, padded to 16
    "input",  # address of float32
    "input_stride",  # bytes
    "output",  # address of float32
    "output_stride",  # bytes
    "index",  # address of int32 (rows)
)


# edgellm.kernels.unfold
UNFOLD = _record(
    "Unfold",
    "rows",  # address of the number of rows to write
    "input_rows",  # address of the number of rows there are
    "width",  # values in a row of the input
    "size",  # neighbours side by side
    "stride",  # rows from one to the next
    "input",  # address of float32
    "input_stride",  # bytes
    "output",  # address of float32
    "output_stride",  # bytes
)


# edgellm.kernels.mel
MEL = _record(
    "Mel",
    "frames",  # address of the number of frames
    "samples",  # address of float32: 400 from frame to frame's end, 160 from frame to frame
    "window",  # address of float32 (201): the first half of the window
    "waves",  # address of cosines and sines, see mel.py
    "filters",  # address of float32 (groups, 224, 16): the weight of each power in 16 mel bands
    "ranges",  # address of int32 (groups, 4): which even and which odd powers a group reads
    "groups",  # of 16 mel bands
    "output",  # address of float32: logarithms
    "output_stride",  # bytes
    "peaks",  # address of float32, 64 bytes for each thread: the largest logarithm that it has seen
    "scratch",  # address of each thread's memory, see mel.py
    "scratch_stride",  # bytes
)


# edgellm.kernels.fbank
FBANK = _record(
    "Fbank",
    "frames",  # address of the number of frames
    "samples",  # address of float32: 400 from a frame's beginning to its end, 160 from frame to frame
    "window",  # address of float32 (400)
    "order",  # address of int32 (256): where each complex point of a frame goes
    "factors",  # address of float32 (85, 3, 2): cosines and sines of the transform's passes
    "halves",  # address of float32 (256, 2): cosines and sines by which the real transform is pulled apart
    "filters",  # address of float32 (bands, 256)
    "ranges",  # address of int32 (bands, 2): which powers a band reads
    "bands",
    "output",  # address of float32
    "output_stride",  # bytes
    "scratch",  # address of each thread's memory, see fbank.py
    "scratch_stride",  # bytes
)


# edgellm.kernels.fold
FOLD = _record(
    "Fold",
    "rows",  # address of the number of rows
    "width",  # values in a row
    "a",  # address of float32
    "b",  # address of float32
    "stride",  # bytes from row to row, of both
    "scale",  # address of float32
    "shifts",  # address of float32 (rows)
    "output",  # address of float32
    "output_stride",  # bytes
)


# edgellm.kernels.lstm
LSTM = _record(
    "LSTM",
    "rows",  # address of the number of sequences
    "steps",  # in each sequence
    "units",  # of the layer, a multiple of 16
    "width",  # bytes of input of each step, a multiple of 4; may be 0
    "input",  # address of the first step's uint8 codes
    "input_row",  # bytes from one sequence to the next
    "input_step",  # bytes from one step to the next, negative to go backwards
    "starts",  # address of float32 (units / 16, 4, 16): what is added to the products of each step
    "starts_row",  # bytes from one sequence to the next, 0 if all have the same
    "starts_step",
    "weights",  # address of int8, see lstm.py
    "scales",  # address of float32 (units / 16, 4, 16): by which the products are multiplied
    "output",  # address of the first step's uint8 codes
    "output_row",
    "output_step",
    "nothing",  # address of uint8 (units): the codes of zero
    "cells",  # address of each thread's memory: float32 (4, units)
    "cells_stride",  # bytes
)


# edgellm.kernels.dense
DENSE = _record(
    "Dense",
    "steps",  # moments
    "layers",  # in the table
    "table",  # address of the layers' own records
    "layer_bytes",  # from one to the next
    "scratch",  # address of what all offsets are from
)
DENSE_LAYER = _record(
    "DenseLayer",
    "channels",  # so far, a multiple of 16
    "input",  # offset of float32 (steps, channels and more): a layer with a mask puts 32 channels behind them
    "input_stride",  # bytes
    "factors",  # address of float32 (channels)
    "shifts",  # address of float32 (channels)
    "groups",  # of 64 outputs
    "weights",  # address of int8 (groups, channels / 4, 64, 4)
    "scales",  # address of float32 (64 groups)
    "bias",  # address of float32 (64 groups)
    "rectify",  # 1: outputs below zero become zero
    "output",  # offset of float32 (steps, 64 groups)
    "output_stride",  # bytes
    "dilation",  # of the second half; 0: there is none
    "local",  # address of int8 (3, 16 groups, 32, 4): of the moments before, at, and after
    "local_scales",  # address of float32 (32)
    "narrow",  # address of float32 (64 groups, 64)
    "narrow_bias",  # address of float32 (64)
    "wide",  # address of float32 (64, 32)
    "wide_bias",  # address of float32 (32)
    "values",  # offset of 8192 bytes
    "codes",  # offset of uint8 (steps, channels)
    "steps",  # offset of float32 (steps)
    "mask",  # offset of float32 (32)
    "padded",  # offset of uint8 (steps + 2 dilations, 64 groups)
)


# edgellm.kernels.choose
CHOOSE = _record(
    "Choose",
    "rows",  # address of the number of rows
    "logits",  # address of float32
    "logits_stride",  # bytes
    "bias",  # address of float32: rows of what is added to the logits, minus infinity for what must not be chosen
    "bias_stride",  # bytes
    "rules",  # address of int32, 8 for each row: see choose.py
    "timestamps",  # number of the first timestamp
    "count",  # candidates wanted
    "tokens",  # address of int32 (rows, 16): the best, the best first
    "scores",  # address of float32 (rows, 16): their log-probabilities
)


# edgellm.kernels.whole_attention
WHOLE = _record(
    "WholeAttention",
    "rows",  # address of the number of rows
    "heads",
    "width",  # of a head, a multiple of 16
    "keys",  # rows of a source
    "queries",  # address of float32; of what is stored, the keys
    "queries_stride",  # bytes
    "output",  # address of float32; of what is stored, the values
    "output_stride",  # bytes
    "sources",  # address of int32: the source of each row; of what is stored, of the first
    "store",  # address of what is stored
    "source_bytes",  # from one source to the next
    "head_bytes",  # from one head to the next
    "scales",  # where a head's key scales begin
    "values",  # where its values begin
    "value_scales",  # where their scales begin
    "constants",  # address of float32: the scale
    "scratch",  # address of each thread's memory, see whole_attention.py
    "scratch_stride",  # bytes
)


# edgellm.kernels.alignment
SMOOTH = _record(
    "Smooth",
    "rows",
    "frames",  # at least 7
    "heads",
    "input",  # address of float32 (heads, rows, stride)
    "stride",  # bytes from row to row; 64 bytes before the first and after each row can be read
    "head_bytes",  # from head to head
    "output",  # address of float32 (rows, stride)
)
WARP = _record(
    "Warp",
    "rows",
    "frames",
    "gains",  # address of float32 (rows, stride)
    "stride",  # bytes from row to row
    "costs",  # address of float32 (2, frames + 1)
    "steps",  # address of bytes (rows + 1, frames + 1)
    "path",  # address of int32 (rows + frames, 2): row and frame, from the end to the beginning
    "length",  # address of an int64: how many steps the path has
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
SCORES = _record(
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
