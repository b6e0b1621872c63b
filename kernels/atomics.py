"""Instructions for threads: atomics, calls by address, and the treatment of denormal numbers."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from edgellm.kernels.simd import TARGET, call_named, instruction

_i32, _i64 = ir.IntType(32), ir.IntType(64)
_pointer = ir.PointerType()
_X86, _ARM = TARGET.has("sse2"), TARGET.has("neon")
_FLUSH = 0x8040  # in MXCSR: flush to zero, denormals are zero
_FLUSH_ARM = 1 << 24  # in FPCR: both
_WHOLE_SYSTEM = 15  # the operand of a barrier instruction


@instruction(types.int64, types.int64)
def atomic_load(builder, address):
    return builder.load_atomic(builder.inttoptr(address, _pointer), "acquire", 8, typ=_i64)


@instruction(types.int64, types.int64, types.int64)
def atomic_add(builder, address, value):
    """Add and return what was there before."""
    return builder.atomic_rmw("add", builder.inttoptr(address, _pointer), value, "seq_cst")


@instruction(types.int64, types.int64, types.int64)
def atomic_exchange(builder, address, value):
    return builder.atomic_rmw("xchg", builder.inttoptr(address, _pointer), value, "seq_cst")


@instruction(types.none)
def pause(builder):
    """Tell the core that this is a waiting loop."""
    if _X86:
        call_named(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
    elif _ARM:
        # "yield" does nothing on most cores; emptying the pipeline takes about as long as pausing does elsewhere.
        call_named(builder, "llvm.aarch64.isb", ir.VoidType(), [ir.Constant(_i32, _WHOLE_SYSTEM)])


class _FunctionAddress(ir.instructions.CastInstr):
    """A pointer to a function: LLVM's pointers carry no type, so the builder must be told which to call."""

    function_type = None


def _function_at(builder, address, kind):
    function = builder.inttoptr(address, _pointer)
    function.__class__ = _FunctionAddress
    function.function_type = kind
    return function


@instruction(types.none, types.int64)
def call_yield(builder, address):
    """Call a C function without arguments, such as sched_yield."""
    builder.call(_function_at(builder, address, ir.FunctionType(_i32, [])), [])


@instruction(types.int64, types.int64, types.int64)
def call_clock(builder, address, clock):
    """Nanoseconds that C's ``clock_gettime`` at an address gives for a clock."""
    kind = ir.FunctionType(_i32, [_i32, _pointer])
    time = cgutils.alloca_once(builder, _i64, size=2)
    builder.call(_function_at(builder, address, kind), [builder.trunc(clock, _i32), time])
    nanoseconds = builder.load(builder.gep(time, [ir.Constant(_i64, 1)], source_etype=_i64), typ=_i64)
    return builder.add(builder.mul(builder.load(time, typ=_i64), ir.Constant(_i64, 1_000_000_000)), nanoseconds)


@intrinsic
def call_system(context, function, number, address, operation, value, mask):
    """Linux's futex by C's ``syscall`` at an address: the call's number, a word's address, what to do, the value
    expected or the number of threads to wake, and the mask of threads; no time limit."""

    def codegen(context, builder, _signature, values):
        function, number, address, operation, value, mask = values
        kind = ir.FunctionType(_i64, [_i64] * 7)
        nothing = ir.Constant(_i64, 0)
        arguments = [number, address, operation, value, nothing, nothing, mask]
        return builder.call(_function_at(builder, function, kind), arguments)

    return types.int64(*[types.int64] * 6), codegen


@instruction(types.none, types.int64, types.int64, types.int64, types.int64)
def call_kernel(builder, address, record, thread, threads):
    """Call a kernel by its address, in Numba's own calling convention: result, error, arguments."""
    kind = ir.FunctionType(_i32, [_pointer, _pointer, _i64, _i64, _i64])
    unused = cgutils.alloca_once(builder, _i64, size=2)
    builder.call(_function_at(builder, address, kind), [unused, unused, record, thread, threads])


@instruction(types.int64)
def flush_denormals(builder):
    """Treat denormal numbers as zero in this thread: one operand of them costs a hundred cycles. Returns the state
    before."""
    if _ARM:
        state = call_named(builder, "llvm.aarch64.get.fpcr", _i64, [])
        call_named(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), [builder.or_(state, ir.Constant(_i64, _FLUSH_ARM))])
        return state
    if not _X86:
        return ir.Constant(_i64, 0)
    place = cgutils.alloca_once(builder, _i32)
    call_named(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), [place])
    state = builder.load(place, typ=_i32)
    builder.store(builder.or_(state, ir.Constant(_i32, _FLUSH)), place)
    call_named(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [place])
    return builder.zext(state, _i64)


@instruction(types.none, types.int64)
def restore_denormals(builder, state):
    """Put back what `flush_denormals` returned: the thread may be the host application's."""
    if _ARM:
        call_named(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), [state])
    elif _X86:
        place = cgutils.alloca_once(builder, _i32)
        builder.store(builder.trunc(state, _i32), place)
        call_named(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [place])
