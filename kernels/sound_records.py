"""The records of kernels for speech and other sound; see `edgellm.kernels.records`."""

from __future__ import annotations

from edgellm.kernels.records import record

# edgellm.kernels.unfold
UNFOLD = record(
    "Unfold",
    "rows",  # address of the number of rows to write
    "input_rows",  # address of the number of rows there are
    "width",  # values of four bytes in a row of the input: float64 counts twice
    "size",  # neighbours side by side
    "stride",  # rows from one to the next
    "input",  # address of float32 or float64
    "input_stride",  # bytes
    "output",  # address of the same
    "output_stride",  # bytes
)


# edgellm.kernels.mel
MEL = record(
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
FBANK = record(
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
FOLD = record(
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
LSTM = record(
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
DENSE = record(
    "Dense",
    "steps",  # moments
    "layers",  # in the table
    "table",  # address of the layers' own records
    "layer_bytes",  # from one to the next
    "scratch",  # address of what all offsets are from
)
DENSE_LAYER = record(
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
CHOOSE = record(
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
WHOLE = record(
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
SMOOTH = record(
    "Smooth",
    "rows",
    "frames",  # at least 7
    "heads",
    "input",  # address of float32 (heads, rows, stride)
    "stride",  # bytes from row to row; 64 bytes before the first and after each row can be read
    "head_bytes",  # from head to head
    "output",  # address of float32 (rows, stride)
)
WARP = record(
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


# edgellm.kernels.double_attention
DOUBLE_ATTENTION = record(
    "DoubleAttention",
    "rows",  # address of the number of rows
    "heads",
    "width",  # of a head, a multiple of 16
    "queries",  # address of float64
    "queries_stride",  # bytes
    "keys",  # address of float64
    "keys_stride",  # bytes
    "values",  # address of float64
    "values_stride",  # bytes
    "output",  # address of float64
    "output_stride",  # bytes
    "arranged_keys",  # address of float64, see double_attention.py
    "arranged_values",  # address of float64
    "head_bytes",  # from one head to the next, of both
    "scale",  # address of float64, above 0
    "scores_bytes",  # from one query's scores to the next's
    "scratch",  # address of each thread's memory, a tile's scores
    "scratch_stride",  # bytes
)
