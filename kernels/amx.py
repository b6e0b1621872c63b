"""Intel's AMX: products of matrices in tile registers, as Numba intrinsics; and the same operations in software.

Eight tiles exist, each configured here to its full size of 16 rows of 64 bytes. A product adds to tile C (16 x 16,
float32 or int32) that of A (16 rows of 32 bfloat16 or 64 int8) and B, whose row p holds, for each of the 16 columns,
the 2 bfloat16 or 4 int8 that meet those of A at the same place in its rows.

The operations are those of Intel's Software Developer's Manual, volume 2. `EmulatedTiles` rounds as it prescribes:
bfloat16 products are added by fused operations, the even and the odd ones apart, both sums are added, then their sum
to C; all rounded to nearest even, with denormal numbers counting as zero.

Every operation takes the address of ``STATE_BYTES`` of memory that belong to the calling thread. The numbers of tiles
are part of an instruction's code: so `zero(3)` makes an operation, which kernels then call.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import register_jitable

from edgellm.kernels.amx_layout import TILE_BYTES
from edgellm.kernels.simd import (
    absolute,
    bits_float,
    broadcast_int,
    call_named,
    float_bits,
    helper,
    instruction,
    load_floats,
    load_ints,
    multiply_add,
    set_int64,
    splat_float,
    splat_int,
    store_floats,
    store_ints,
    where_not_greater,
)

_CONFIGURATION_BYTES = 64
_i8, _i64 = ir.IntType(8), ir.IntType(64)


def _address(builder, value):
    return builder.inttoptr(value, ir.PointerType())


def _numbers(*tiles):
    return [ir.Constant(_i8, tile) for tile in tiles]


class HardwareTiles:
    """The instructions themselves. The process must have been granted the tile registers, or it ends."""

    @staticmethod
    def configure():
        """Make all tiles 16 rows of 64 bytes; the memory begins with the configuration that the CPU reads."""

        @instruction(types.none, types.int64)
        def load_configuration(builder, state):
            call_named(builder, "llvm.x86.ldtilecfg", ir.VoidType(), [_address(builder, state)])

        @helper
        def configure_tiles(state):
            set_int64(state, 1)  # palette 1, first row 0
            set_int64(state + 8, 0)
            set_int64(state + 16, 0x0040004000400040)  # bytes in a row of tiles 0-3
            set_int64(state + 24, 0x0040004000400040)
            set_int64(state + 32, 0)
            set_int64(state + 40, 0)
            set_int64(state + 48, 0x1010101010101010)  # rows of tiles 0-7
            set_int64(state + 56, 0)
            load_configuration(state)

        return configure_tiles

    @staticmethod
    def release():
        """Give the tiles back, so that the system need not save them."""

        @instruction(types.none, types.int64)
        def release_tiles(builder, state):
            call_named(builder, "llvm.x86.tilerelease", ir.VoidType(), [])

        return release_tiles

    @staticmethod
    def zero(tile):
        """(state): clear a tile."""

        @instruction(types.none, types.int64)
        def zero_tile(builder, state):
            call_named(builder, "llvm.x86.tilezero", ir.VoidType(), _numbers(tile))

        return zero_tile

    @staticmethod
    def load(tile):
        """(state, address): read 16 rows of 64 bytes, one behind the other."""

        @instruction(types.none, types.int64, types.int64)
        def load_tile(builder, state, address):
            arguments = [*_numbers(tile), _address(builder, address), ir.Constant(_i64, 64)]
            call_named(builder, "llvm.x86.tileloadd64", ir.VoidType(), arguments)

        return load_tile

    @staticmethod
    def store(tile):
        """(state, address): write 16 rows of 64 bytes, one behind the other."""

        @instruction(types.none, types.int64, types.int64)
        def store_tile(builder, state, address):
            arguments = [*_numbers(tile), _address(builder, address), ir.Constant(_i64, 64)]
            call_named(builder, "llvm.x86.tilestored64", ir.VoidType(), arguments)

        return store_tile

    @staticmethod
    def dot_bfloats(c, a, b):
        """(state): C += A B in bfloat16, summed in float32."""

        @instruction(types.none, types.int64)
        def dot_tiles(builder, state):
            call_named(builder, "llvm.x86.tdpbf16ps", ir.VoidType(), _numbers(c, a, b))

        return dot_tiles

    @staticmethod
    def dot_bytes(c, a, b):
        """(state): C += A B in signed bytes, summed in int32, exactly."""

        @instruction(types.none, types.int64)
        def dot_tiles(builder, state):
            call_named(builder, "llvm.x86.tdpbssd", ir.VoidType(), _numbers(c, a, b))

        return dot_tiles


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
def _signed_byte(four, left):
    """The byte that lies ``left`` bits below the top of each lane, widened: subtracting 256 where its sign is set."""
    byte = ((four << splat_int(left)) >> splat_int(24)) & splat_int(0xFF)
    return byte - ((byte & splat_int(0x80)) << splat_int(1))


@register_jitable
def _dot_bfloats(c, a, b):
    for row in range(16):
        even = odd = splat_float(0.0)
        for pair in range(16):
            x, w = broadcast_int(a + 64 * row + 4 * pair), load_ints(b + 64 * pair)
            even = _flush(multiply_add(_low_half(x), _low_half(w), even))
            odd = _flush(multiply_add(_high_half(x), _high_half(w), odd))
        place = c + 64 * row
        store_floats(place, _flush(_flush(load_floats(place)) + _flush(even + odd)))


@register_jitable
def _dot_bytes(c, a, b):
    for row in range(16):
        place = c + 64 * row
        total = load_ints(place)
        for four in range(16):
            x, w = broadcast_int(a + 64 * row + 4 * four), load_ints(b + 64 * four)
            for left in (0, 8, 16, 24):
                total = total + _signed_byte(x, left) * _signed_byte(w, left)
        store_ints(place, total)


class EmulatedTiles:
    """The same in software, for any CPU: the tiles lie in the state's memory."""

    @staticmethod
    def configure():
        """Nothing to do."""

        @helper
        def configure_tiles(state):
            pass

        return configure_tiles

    release = configure

    @staticmethod
    def zero(tile):
        """(state): clear a tile."""
        place = _CONFIGURATION_BYTES + TILE_BYTES * tile

        @helper
        def zero_tile(state):
            for row in range(16):
                store_ints(state + place + 64 * row, splat_int(0))

        return zero_tile

    @staticmethod
    def load(tile):
        """(state, address): read 16 rows of 64 bytes, one behind the other."""
        place = _CONFIGURATION_BYTES + TILE_BYTES * tile

        @helper
        def load_tile(state, address):
            for row in range(16):
                store_ints(state + place + 64 * row, load_ints(address + 64 * row))

        return load_tile

    @staticmethod
    def store(tile):
        """(state, address): write 16 rows of 64 bytes, one behind the other."""
        place = _CONFIGURATION_BYTES + TILE_BYTES * tile

        @helper
        def store_tile(state, address):
            for row in range(16):
                store_ints(address + 64 * row, load_ints(state + place + 64 * row))

        return store_tile

    @staticmethod
    def dot_bfloats(c, a, b):
        """(state): C += A B in bfloat16, summed in float32."""
        to, left, right = (_CONFIGURATION_BYTES + TILE_BYTES * tile for tile in (c, a, b))

        @helper
        def dot_tiles(state):
            _dot_bfloats(state + to, state + left, state + right)

        return dot_tiles

    @staticmethod
    def dot_bytes(c, a, b):
        """(state): C += A B in signed bytes, summed in int32, exactly."""
        to, left, right = (_CONFIGURATION_BYTES + TILE_BYTES * tile for tile in (c, a, b))

        @helper
        def dot_tiles(state):
            _dot_bytes(state + to, state + left, state + right)

        return dot_tiles


def tiles(mode):
    """The tile operations of a kernel's variant: "emulated", or "" for the instructions."""
    return EmulatedTiles if mode == "emulated" else HardwareTiles
