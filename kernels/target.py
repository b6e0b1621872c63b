"""The CPU that kernels are compiled for: its name and its instruction-set extensions.

``EDGELLM_INSTRUCTION_SET`` forces a lower set (``plain``, ``avx2``, ``avx512`` or ``avx512_vnni``; on ARM ``neon``,
``dotprod`` or ``i8mm``), so that every path can be tested on one machine; ``amx_emulated`` leaves the host its set and
runs the kernels for AMX in software, slowly. `NAMED_TARGETS` are CPUs to compile for ahead of time, on any machine.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from edgellm.errors import InvalidSettingError

# What each forced set leaves of the host's features. LLVM needs the whole chain: AVX2 code without "avx" is refused.
_SSE = {"64bit", "cmov", "cx8", "fxsr", "mmx", "sse", "sse2"}
_AVX2 = _SSE | {
    "avx", "avx2", "bmi", "bmi2", "cx16", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2",
    "ssse3", "xsave",
}  # fmt: skip
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "evex512"}
_NEON = {"fp-armv8", "neon"}
_DOTPROD = _NEON | {"crc", "dotprod", "fullfp16", "lse", "rdm"}
_I8MM = _DOTPROD | {"bf16", "i8mm", "rcpc"}
_X86_SETS = {
    "plain": ("x86-64", _SSE),
    "avx2": ("x86-64-v3", _AVX2),
    "avx512": ("x86-64-v4", _AVX512),
    "avx512_vnni": ("x86-64-v4", _AVX512 | {"avx512vnni"}),
}
_ARM_SETS = {
    "neon": ("generic", _NEON),
    "dotprod": ("generic", _DOTPROD),
    "i8mm": ("generic", _I8MM),
}
_ARM = platform.machine().lower() in ("aarch64", "arm64")
INSTRUCTION_SETS = _ARM_SETS if _ARM else _X86_SETS


@dataclass(frozen=True)
class Target:
    """A CPU as LLVM names it: the features present, and LLVM's list of those present (+) and absent (-).

    ``forced`` is what `EDGELLM_INSTRUCTION_SET` must be for another process to arrive at the same target. ``triple`` is
    LLVM's name of the machine and system, empty for the ones at hand.
    """

    cpu_name: str
    features: frozenset[str]
    feature_string: str
    forced: str = "native"
    triple: str = ""

    def has(self, *names: str) -> bool:
        """Whether all of the named features are present."""
        return self.features.issuperset(names)

    @property
    def instruction_set(self) -> str:
        """The name of the best path that the kernels have for this CPU."""
        if self.has("avx512bw", "avx512vl"):
            return "avx512_vnni" if self.has("avx512vnni") else "avx512"
        if self.has("avx2", "fma", "f16c"):
            return "avx_vnni" if self.has("avxvnni") else "avx2"
        if self.has("neon"):
            if self.has("i8mm"):
                return "neon_i8mm"
            return "neon_dotprod" if self.has("dotprod") else "neon"
        return "plain"


_chosen: Target | None = None


def current_target() -> Target:
    """What `choose_target` set; else the host's CPU, or a lower one if ``EDGELLM_INSTRUCTION_SET`` asks for it."""
    return _chosen or target_for(os.environ.get("EDGELLM_INSTRUCTION_SET", "native"))


def choose_target(target: Target) -> None:
    """Let this process compile for another CPU; only before a kernel's module is imported.

    Raises:
        RuntimeError: kernels were already imported for another target.
    """
    global _chosen
    if "edgellm.kernels.simd" in sys.modules and current_target() != target:
        raise RuntimeError("this process already compiles kernels for another target: start a new one")
    _chosen = target


@cache
def target_for(instruction_set: str) -> Target:
    """The host's CPU ("native") with no more than the named instruction set.

    Raises:
        InvalidSettingError: the name is unknown, or the host lacks what it asks for.
    """
    import llvmlite.binding as llvm

    host = _arm_features() if _ARM else {}
    if not host:
        host = dict(llvm.get_host_cpu_features().items())
    present = {name for name, on in host.items() if on}
    name = llvm.get_host_cpu_name()
    if instruction_set not in ("native", "amx_emulated"):
        if instruction_set not in INSTRUCTION_SETS:
            known = ", ".join(["native", *INSTRUCTION_SETS])
            raise InvalidSettingError(f"EDGELLM_INSTRUCTION_SET is {instruction_set!r}", f"use one of {known}")
        name, allowed = INSTRUCTION_SETS[instruction_set]
        missing = (allowed & host.keys()) - present
        base = "neon" if _ARM else "sse2"
        if missing or base not in present:
            absent = ", ".join(sorted(missing)) or base
            raise InvalidSettingError(f"this CPU lacks {absent}, which {instruction_set} needs", "use native")
        present &= allowed
    flags = ",".join(f"{'+' if feature in present else '-'}{feature}" for feature in sorted(host))
    return Target(name, frozenset(present), flags, instruction_set)


# -- ARM's features at run time ----------------------------------------------------------------------------------
# LLVM reads them from /proc/cpuinfo, which an emulator or a sandbox may not show as the program's CPU has it.

# LLVM's name, the bit of Linux's AT_HWCAP (0-63) or AT_HWCAP2 (64 and up), macOS's hw.optional.arm name. Features whose
# instructions a compiler uses unasked, and those that kernels ask for.
_ARM_FEATURES: Mapping[str, tuple[int, str]] = {
    "fp-armv8": (0, "AdvSIMD"),
    "neon": (1, "AdvSIMD"),
    "crc": (7, "FEAT_CRC32"),
    "lse": (8, "FEAT_LSE"),
    "fullfp16": (10, "FEAT_FP16"),
    "rdm": (12, "FEAT_RDM"),
    "jsconv": (13, "FEAT_JSCVT"),
    "complxnum": (14, "FEAT_FCMA"),
    "rcpc": (15, "FEAT_LRCPC"),
    "sha3": (17, "FEAT_SHA3"),
    "dotprod": (20, "FEAT_DotProd"),
    "sve": (22, ""),
    "fp16fml": (23, "FEAT_FHM"),
    "rcpc-immo": (26, "FEAT_LRCPC2"),
    "flagm": (27, "FEAT_FlagM"),
    "sve2": (64 + 1, ""),
    "altnzcv": (64 + 7, "FEAT_FlagM2"),
    "fptoint": (64 + 8, "FEAT_FRINTTS"),
    "i8mm": (64 + 13, "FEAT_I8MM"),
    "bf16": (64 + 14, "FEAT_BF16"),
}


def _arm_features() -> dict[str, bool]:
    """Whether the CPU and the system have each of `_ARM_FEATURES`; empty where the system does not tell."""
    ask = {"linux": _linux_arm_features, "darwin": _macos_arm_features}.get(sys.platform)
    return ask() if ask else {}


def _linux_arm_features() -> dict[str, bool]:
    import ctypes

    ask = ctypes.CDLL(None).getauxval
    ask.restype, ask.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    bits = ask(16) | ask(26) << 64  # AT_HWCAP, AT_HWCAP2
    return {name: bool(bits >> bit & 1) for name, (bit, _) in _ARM_FEATURES.items()}


def _macos_arm_features() -> dict[str, bool]:
    import ctypes

    library = ctypes.CDLL(None)

    def flag(name: str) -> bool:
        value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
        place = f"hw.optional.{'' if name == 'AdvSIMD' else 'arm.'}{name}".encode()
        failed = library.sysctlbyname(place, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
        return not failed and value.value == 1

    found = {name: bool(system_name) and flag(system_name) for name, (_, system_name) in _ARM_FEATURES.items()}
    return {**found, "fp-armv8": True, "neon": True}  # every Mac with an ARM processor has them


# -- targets to compile for ahead of time ------------------------------------------------------------------------


@dataclass(frozen=True)
class NamedTarget:
    """A kind of machine that objects are compiled for on another one."""

    system: str  # sys.platform
    triple: str
    cpu_name: str
    features: frozenset[str]  # that a CPU must have to run the code
    without: frozenset[str] = frozenset()  # what the CPU of that name has beyond, but others of its kind may lack

    def target(self) -> Target:
        """As the kernels take it."""
        flags = [*(f"+{name}" for name in sorted(self.features)), *(f"-{name}" for name in sorted(self.without))]
        return Target(self.cpu_name, self.features, ",".join(flags), triple=self.triple)


_VNNI = (_AVX512 | {"avx512vnni"}) - {"evex512"}  # a name of some versions of LLVM, where x86-64-v4 has it
_AMX = _VNNI | {"amx-bf16", "amx-int8", "amx-tile", "avx512bf16"}
_LINUX_X86, _LINUX_ARM, _MACOS_ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "arm64-apple-macosx11.0.0"
_VECTORS_OF_ANY_LENGTH = frozenset({"sve", "sve2"})  # M2 and others with i8mm have none
NAMED_TARGETS: Mapping[str, NamedTarget] = {
    "linux-x86_64-avx2": NamedTarget("linux", _LINUX_X86, "x86-64-v3", frozenset(_AVX2)),
    "linux-x86_64-vnni": NamedTarget("linux", _LINUX_X86, "x86-64-v4", frozenset(_VNNI)),
    "linux-x86_64-amx": NamedTarget("linux", _LINUX_X86, "x86-64-v4", frozenset(_AMX)),
    "linux-aarch64-neon": NamedTarget("linux", _LINUX_ARM, "generic", frozenset(_NEON)),
    "linux-aarch64-dotprod": NamedTarget("linux", _LINUX_ARM, "generic", frozenset(_DOTPROD)),
    "linux-aarch64-i8mm": NamedTarget("linux", _LINUX_ARM, "generic", frozenset(_I8MM), _VECTORS_OF_ANY_LENGTH),
    "macos-arm64-m1": NamedTarget("darwin", _MACOS_ARM, "apple-m1", frozenset(_DOTPROD | {"rcpc"})),
    "macos-arm64-m2": NamedTarget("darwin", _MACOS_ARM, "apple-m2", frozenset(_I8MM)),
}


def named_target(name: str) -> Target:
    """The target of that name.

    Raises:
        InvalidSettingError: there is none.
    """
    if name not in NAMED_TARGETS:
        raise InvalidSettingError(f"no target is named {name!r}", f"use one of {', '.join(NAMED_TARGETS)}")
    return NAMED_TARGETS[name].target()


def best_named_target(host: Target) -> str | None:
    """The most capable of `NAMED_TARGETS` whose code this machine, with a CPU of those features, can run."""
    machine = "aarch64" if _ARM else "x86_64"
    kinds = {"aarch64": ("aarch64", "arm64"), "x86_64": ("x86_64",)}[machine]
    fits = [
        (len(named.features), name)
        for name, named in NAMED_TARGETS.items()
        if sys.platform == named.system and named.triple.startswith(kinds) and host.has(*named.features)
    ]
    return max(fits)[1] if fits else None
