"""Intel's AMX: products of matrices in tile registers, as Numba intrinsics; and the same operations in software.

Eight tiles exist, each configured here to its full size of 16 rows of 64 bytes. A product adds to tile C (16 x 16
float32) that of A (16 rows of 32 bfloat16) and B, whose row p holds, for each of the 16 columns, the two bfloat16 that
meet the values 2 p and 2 p + 1 of A's rows.

The operations are those of Intel's Software Developer's Manual, volume 2. `EmulatedTiles` rounds as it prescribes:
bfloat16 products are added by fused operations, the even and the odd ones apart, both sums are added, then their sum
to C; all rounded to nearest even, with denormal numbers counting as zero.

Every operation takes the address of ``STATE_BYTES`` of memory that belong to the calling thread. The numbers of tiles
are part of an instruction's code, so kernels write them as literals.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, register_jitable

from edgellm.kernels.amx_layout import TILE_BYTES
from edgellm.kernels.memory import broadcast_int, load_floats, load_ints, set_int64, store_floats, store_ints
from edgellm.kernels.simd import (
    absolute,
    bits_float,
    call_named,
    float_bits,
    helper,
    instruction,
    multiply_add,
    splat_float,
    splat_int,
    where_not_greater,
)

_CONFIGURATION_BYTES = 64
_i8, _i64, _void = ir.IntType(8), ir.IntType(64), ir.VoidType()


def _address(builder, value):
    return builder.inttoptr(value, ir.PointerType())


def _tile_instruction(name, tiles, memory=False):
    """An operation (state, tiles...), or (state, tile, address), that is one of the CPU's instructions.

    Rows in memory lie one behind the other.
    """

    def write(signature, builder, values):
        numbers = [ir.Constant(_i8, kind.literal_value) for kind in signature.args[1 : 1 + tiles]]
        place = [_address(builder, values[2]), ir.Constant(_i64, 64)] if memory else []
        call_named(builder, name, _void, [*numbers, *place])

    def typed(*parameters):
        if not all(isinstance(kind, types.IntegerLiteral) for kind in parameters[1 : 1 + tiles]):
            return None  # Numba asks for the literals' types first

        def codegen(context, builder, signature, values):
            write(signature, builder, values)
            return context.get_dummy_value()

        return types.none(*parameters), codegen

    # Numba reads the arity from the definition.
    definitions = {
        1: lambda context, state: typed(state),
        2: lambda context, state, tile: typed(state, tile),
        3: lambda context, state, tile, address: typed(state, tile, address),
        4: lambda context, state, c, a, b: typed(state, c, a, b),
    }
    definition = definitions[1 + tiles + memory]
    definition.__name__ = name.rpartition(".")[2]
    return intrinsic(prefer_literal=True)(definition)


@instruction(types.none, types.int64)
def _load_configuration(builder, state):
    call_named(builder, "llvm.x86.ldtilecfg", _void, [_address(builder, state)])


@helper
def _configure(state):
    set_int64(state, 1)  # palette 1, first row 0
    set_int64(state + 8, 0)
    set_int64(state + 16, 0x0040004000400040)  # bytes in a row of tiles 0-3
    set_int64(state + 24, 0x0040004000400040)
    set_int64(state + 32, 0)
    set_int64(state + 40, 0)
    set_int64(state + 48, 0x1010101010101010)  # rows of tiles 0-7
    set_int64(state + 56, 0)
    _load_configuration(state)


class HardwareTiles:
    """The instructions themselves. The process must have been granted the tile registers, or it ends."""

    configure = staticmethod(_configure)
    """(state): make all tiles 16 rows of 64 bytes; the memory begins with the configuration that the CPU reads."""
    release = staticmethod(_tile_instruction("llvm.x86.tilerelease", 0))
    """(state): give the tiles back, so that the system need not save them."""
    zero = staticmethod(_tile_instruction("llvm.x86.tilezero", 1))
    """(state, tile): clear a tile."""
    load = staticmethod(_tile_instruction("llvm.x86.tileloadd64", 1, memory=True))
    """(state, tile, address): read 16 rows of 64 bytes, one behind the other."""
    store = staticmethod(_tile_instruction("llvm.x86.tilestored64", 1, memory=True))
    """(state, tile, address): write 16 rows of 64 bytes, one behind the other."""
    dot_bfloats = staticmethod(_tile_instruction("llvm.x86.tdpbf16ps", 3))
    """(state, c, a, b): C += A B in bfloat16, summed in float32."""


@helper
def _flush(value):
    """Denormal numbers are zero, whatever the thread's own setting."""
    size = float_bits(absolute(value))
    return where_not_greater(size, splat_int(0x007FFFFF), splat_float(0.0), value)


@helper
def _low_half(pairs):
    return _flush(bits_float(pairs << splat_int(16)))


@helper
def _high_half(pairs):
    return _flush(bits_float(pairs & splat_int(0xFFFF0000)))


@helper
def _tile(state, number):
    return state + _CONFIGURATION_BYTES + TILE_BYTES * number


@helper
def _do_nothing(state):
    pass


@register_jitable
def _copy(target, source):
    for row in range(16):
        store_ints(target + 64 * row, load_ints(source + 64 * row))


@helper
def _emulated_zero(state, tile):
    for row in range(16):
        store_ints(_tile(state, tile) + 64 * row, splat_int(0))


@helper
def _emulated_load(state, tile, address):
    _copy(_tile(state, tile), address)


@helper
def _emulated_store(state, tile, address):
    _copy(address, _tile(state, tile))


@register_jitable
def _emulated_dot_bfloats(state, c, a, b):
    for row in range(16):
        even = odd = splat_float(0.0)
        for pair in range(16):
            x = broadcast_int(_tile(state, a) + 64 * row + 4 * pair)
            w = load_ints(_tile(state, b) + 64 * pair)
            even = _flush(multiply_add(_low_half(x), _low_half(w), even))
            odd = _flush(multiply_add(_high_half(x), _high_half(w), odd))
        place = _tile(state, c) + 64 * row
        store_floats(place, _flush(_flush(load_floats(place)) + _flush(even + odd)))


class EmulatedTiles:
    """The same in software, for any CPU: the tiles lie in the state's memory."""

    configure = staticmethod(_do_nothing)
    release = staticmethod(_do_nothing)
    zero = staticmethod(_emulated_zero)
    load = staticmethod(_emulated_load)
    store = staticmethod(_emulated_store)
    dot_bfloats = staticmethod(_emulated_dot_bfloats)


def tiles(mode):
    """The tile operations of a kernel's variant: "emulated", or "" for the instructions."""
    return EmulatedTiles if mode == "emulated" else HardwareTiles
