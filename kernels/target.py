"""The CPU that kernels are compiled for: its name and its instruction-set extensions.

``EDGELLM_INSTRUCTION_SET`` forces a lower set (``plain``, ``avx2`` or ``avx512``), so that every path can be tested
on one machine.
"""

from __future__ import annotations

import os
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
INSTRUCTION_SETS = {
    "plain": ("x86-64", _SSE),
    "avx2": ("x86-64-v3", _AVX2),
    "avx512": ("x86-64-v4", _AVX512),
}


@dataclass(frozen=True)
class Target:
    """A CPU as LLVM names it: the features present, and LLVM's list of those present (+) and absent (-).

    ``forced`` is what `EDGELLM_INSTRUCTION_SET` must be for another process to arrive at the same target.
    """

    cpu_name: str
    features: frozenset[str]
    feature_string: str
    forced: str = "native"

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
            return "neon_dotprod" if self.has("dotprod") else "neon"
        return "plain"


def current_target() -> Target:
    """The host's CPU, or a lower one if ``EDGELLM_INSTRUCTION_SET`` asks for it."""
    return target_for(os.environ.get("EDGELLM_INSTRUCTION_SET", "native"))


@cache
def target_for(instruction_set: str) -> Target:
    """The host's CPU ("native") with no more than the named instruction set.

    Raises:
        InvalidSettingError: the name is unknown, or the host lacks what it asks for.
    """
    import llvmlite.binding as llvm

    host = llvm.get_host_cpu_features()
    present = {name for name, on in host.items() if on}
    name = llvm.get_host_cpu_name()
    if instruction_set != "native":
        if instruction_set not in INSTRUCTION_SETS:
            known = ", ".join(["native", *INSTRUCTION_SETS])
            raise InvalidSettingError(f"EDGELLM_INSTRUCTION_SET is {instruction_set!r}", f"use one of {known}")
        name, allowed = INSTRUCTION_SETS[instruction_set]
        missing = (allowed & host.keys()) - present
        if missing or "sse2" not in present:
            absent = ", ".join(sorted(missing)) or "sse2"
            raise InvalidSettingError(f"this CPU lacks {absent}, which {instruction_set} needs", "use native")
        present &= allowed
    flags = ",".join(f"{'+' if feature in present else '-'}{feature}" for feature in sorted(host))
    return Target(name, frozenset(present), flags, instruction_set)
