"""SIMD kernels, written in Python and compiled by Numba for the CPU at hand.

A kernel is a function ``kernel(record, thread, threads)`` of three 64-bit integers: the address of its operation's
record (a row of int64 fields, see `edgellm.kernels.records`), the number of the calling thread and the number of
threads. It allocates nothing and knows nothing of any model.

Importing this package, `edgellm.kernels.library`, `edgellm.kernels.target` or `edgellm.kernels.packing` does not
import Numba: a warm start loads object files that an earlier run compiled.
"""
