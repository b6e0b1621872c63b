"""Kernels compiled here for ARM processors: the right instructions, whole objects; and how features are detected.

That the code computes the right thing is checked under emulation, by ``python -m edgellm.tools.check_arm``.
"""

from __future__ import annotations

import base64
import ctypes
import json
import re
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import pytest

from edgellm.errors import InvalidSettingError
from edgellm.kernels import target
from edgellm.kernels.target import NAMED_TARGETS, Target, best_named_target, named_target

KERNELS = ("matmul.q8", "matmul.iq4", "team.work", "norm.rms", "cache.f16")
ARM_TARGETS = tuple(name for name in NAMED_TARGETS if "x86" not in name)
COMPILE = """
    import base64, json, sys
    from edgellm.kernels.cross import compile_with_assembly
    from edgellm.kernels.target import named_target
    target = named_target(sys.argv[1])
    made = {}
    for name in sys.argv[2:]:
        code, text = compile_with_assembly(name, target)
        made[name] = base64.b64encode(code).decode(), text
    print(json.dumps(made))
"""


def run_python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints: one process compiles for one target only."""
    command = [sys.executable, "-P", "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@dataclass(frozen=True)
class Compiled:
    """A kernel's object file and assembly text."""

    code: bytes
    text: str

    def uses(self, *instructions: str) -> bool:
        """Whether any of the instructions occurs."""
        return bool(set(instructions) & set(re.findall(r"^\t([a-z]\w*)", self.text, re.MULTILINE)))


@cache
def compiled(target_name: str) -> dict[str, Compiled]:
    made = json.loads(run_python(COMPILE, target_name, *KERNELS))
    return {name: Compiled(base64.b64decode(code), text) for name, (code, text) in made.items()}


def elf_symbols(code: bytes) -> list[tuple[str, bool]]:
    """Names and whether they are defined, of a 64-bit ELF object (System V ABI, chapter 4)."""
    section_table, size, count = *struct.unpack_from("<Q", code, 40), *struct.unpack_from("<HH", code, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, section_table + size * number) for number in range(count)]
    symbols = next(section for section in sections if section[1] == 2)
    names = sections[symbols[6]][4]
    found = []
    for place in range(symbols[4] + 24, symbols[4] + symbols[5], 24):  # the first means nothing
        name, _, _, section, _, _ = struct.unpack_from("<IBBHQQ", code, place)
        found.append((text_at(code, names + name), section != 0))
    return found


def mach_symbols(code: bytes) -> list[tuple[str, bool]]:
    """The same of a 64-bit Mach-O object (Apple's loader.h and nlist.h), without the leading underscore."""
    commands = struct.unpack_from("<I", code, 16)[0]
    place, found = 32, []
    for _ in range(commands):
        kind, size = struct.unpack_from("<II", code, place)
        if kind == 2:
            table, count, names, _ = struct.unpack_from("<IIII", code, place + 8)
            for number in range(count):
                name, flags, _, _, _ = struct.unpack_from("<IBBHQ", code, table + 16 * number)
                found.append((text_at(code, names + name).removeprefix("_"), flags & 0x0E != 0))
        place += size
    return found


def text_at(code: bytes, place: int) -> str:
    return code[place : code.index(b"\0", place)].decode()


@pytest.mark.parametrize("name", ARM_TARGETS)
def test_objects_are_of_the_right_kind_and_need_nothing(name: str) -> None:
    """One symbol each, and none from outside: what kernels call, they are given by address."""
    apple = "apple" in NAMED_TARGETS[name].triple
    for kernel, made in compiled(name).items():
        machine = struct.unpack_from("<I", made.code, 4)[0] if apple else struct.unpack_from("<H", made.code, 18)[0]
        assert made.code[:4] == (b"\xcf\xfa\xed\xfe" if apple else b"\x7fELF")
        assert machine == (0x0100000C if apple else 183)
        symbols = mach_symbols(made.code) if apple else elf_symbols(made.code)
        assert ("edgellm_" + kernel.replace(".", "_"), True) in symbols
        assert [symbol for symbol, defined in symbols if not defined] == []
        assert not made.uses("bl")


@pytest.mark.parametrize("name", ARM_TARGETS)
def test_products_use_the_best_instructions_and_no_better(name: str) -> None:
    features, made = NAMED_TARGETS[name].features, compiled(name)["matmul.q8"]
    assert made.uses("usdot") == ("i8mm" in features)
    assert made.uses("sdot") == ("dotprod" in features and "i8mm" not in features)
    assert made.uses("smull", "smlal") == ("dotprod" not in features)
    assert made.uses("fmla")
    assert made.uses("fcvtl")  # scales in half precision
    assert not made.uses("mul", "mla") or "\tmul\tv" not in made.text  # products of whole lanes would be slow


@pytest.mark.parametrize("name", ARM_TARGETS)
def test_tables_are_looked_up_by_one_instruction(name: str) -> None:
    assert compiled(name)["matmul.iq4"].text.count("\ttbl") >= 8


@pytest.mark.parametrize("name", ARM_TARGETS)
def test_threads_flush_denormal_numbers_and_wait_politely(name: str) -> None:
    made = compiled(name)["team.work"]
    assert "FPCR" in made.text
    assert made.uses("isb")
    # Atomic additions are one instruction from version 8.1 of the architecture on.
    atomic = "lse" in NAMED_TARGETS[name].features
    assert made.uses("ldaddal") == atomic
    assert made.uses("ldaxr") == (not atomic)


@pytest.mark.parametrize("name", ARM_TARGETS)
def test_half_precision_is_stored_by_the_processor(name: str) -> None:
    assert "fcvt\th" in compiled(name)["cache.f16"].text


def test_a_process_compiles_for_one_target_only() -> None:
    code = """
        from edgellm.kernels.cross import compile_kernel
        from edgellm.kernels.target import named_target
        compile_kernel("rows.select", named_target("linux-aarch64-neon"))
        try:
            compile_kernel("rows.select", named_target("linux-aarch64-i8mm"))
        except RuntimeError as error:
            print(error)
    """
    assert "another target" in run_python(code)


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidSettingError, match="macos-arm64-m1"):
        named_target("pdp-11")


# -- detection ---------------------------------------------------------------------------------------------------

# What Linux reports of some processors: AT_HWCAP and AT_HWCAP2, from the names in their /proc/cpuinfo.
BITS = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 "
    "sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg"
)
BITS2 = "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm bf16"
CORTEX_A72 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
NEOVERSE_N1 = f"{CORTEX_A72} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp ssbs"
NEOVERSE_V1 = (
    f"{NEOVERSE_N1} jscvt fcma sha3 sm3 sm4 sha512 sve asimdfhm dit uscat ilrcpc flagm paca pacg dcpodp "
    "svei8mm svebf16 i8mm bf16"
)


class FakeLibrary:
    """The C library of a Linux or macOS on some ARM processor."""

    def __init__(self, names: str) -> None:
        present = set(names.split())
        self.capabilities = {
            16: sum(1 << bit for bit, name in enumerate(BITS.split()) if name in present),
            26: sum(1 << bit for bit, name in enumerate(BITS2.split()) if name in present),
        }
        self.flags = {name.encode() for name in present}
        self.getauxval: Any = lambda kind: self.capabilities[kind]
        self.getauxval = _Function(self.getauxval)

    def sysctlbyname(self, name: bytes, value: Any, size: Any, new: None, new_size: Any) -> int:
        """Unknown names fail, as they do on older systems."""
        if name not in self.flags:
            return -1
        ctypes.cast(value, ctypes.POINTER(ctypes.c_int))[0] = 1
        return 0


class _Function:
    restype: Any = None
    argtypes: Any = None

    def __init__(self, function: Callable[[int], int]) -> None:
        self.function = function

    def __call__(self, kind: int) -> int:
        return self.function(kind)


@pytest.fixture
def on_arm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes this machine look like another to `edgellm.kernels.target`."""

    def pretend(system: str, names: str) -> Target:
        llvm.get_host_cpu_name()  # its library is loaded before others are made up
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(target, "_ARM", True)
        monkeypatch.setattr(target, "INSTRUCTION_SETS", target._ARM_SETS)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeLibrary(names))
        target.target_for.cache_clear()
        return target.target_for("native")

    yield pretend
    target.target_for.cache_clear()


@pytest.mark.parametrize(
    ("names", "instruction_set", "objects"),
    [
        (CORTEX_A72, "neon", "linux-aarch64-neon"),
        (NEOVERSE_N1, "neon_dotprod", "linux-aarch64-dotprod"),
        (NEOVERSE_V1, "neon_i8mm", "linux-aarch64-i8mm"),
    ],
)
def test_linux_tells_what_an_arm_processor_has(on_arm: Any, names: str, instruction_set: str, objects: str) -> None:
    found = on_arm("linux", names)
    assert found.instruction_set == instruction_set
    assert best_named_target(found) == objects
    flags = found.feature_string.split(",")
    assert ("+dotprod" in flags) == ("asimddp" in names)
    assert ("+sve" in flags) == (names == NEOVERSE_V1)
    assert "-sve2" in flags


def test_macos_tells_what_an_arm_processor_has(on_arm: Any) -> None:
    features = "CRC32 LSE FP16 RDM JSCVT FCMA LRCPC SHA3 DotProd FHM LRCPC2 FlagM"
    names = " ".join(f"hw.optional.arm.FEAT_{name}" for name in features.split())
    found = on_arm("darwin", names)
    assert found.instruction_set == "neon_dotprod"
    assert best_named_target(found) == "macos-arm64-m1"
    found = on_arm("darwin", names + " hw.optional.arm.FEAT_I8MM hw.optional.arm.FEAT_BF16")
    assert found.instruction_set == "neon_i8mm"
    assert best_named_target(found) == "macos-arm64-m2"


def test_a_lower_instruction_set_can_be_forced_on_arm(on_arm: Any) -> None:
    on_arm("linux", NEOVERSE_V1)
    assert target.target_for("neon").features == {"neon", "fp-armv8"}
    assert target.target_for("dotprod").instruction_set == "neon_dotprod"
    on_arm("linux", CORTEX_A72)
    with pytest.raises(InvalidSettingError, match=r"lacks .*dotprod"):
        target.target_for("dotprod")
    with pytest.raises(InvalidSettingError, match="use one of native, neon, dotprod, i8mm"):
        target.target_for("avx2")


@pytest.mark.parametrize("name", [*NAMED_TARGETS])
def test_what_a_target_asks_for_is_what_its_code_is_made_of(name: str) -> None:
    """The features that a processor is asked for are those that the kernels choose by."""
    made = named_target(name)
    assert made.features == NAMED_TARGETS[name].features
    assert {f"+{feature}" for feature in made.features} <= set(made.feature_string.split(","))
