"""Whether products of many rows should run on Intel's AMX: asked for, tried out in a child process, remembered.

Linux grants the tile registers only to a process that asks, a virtual machine may announce and then refuse them, and
whoever uses them without a grant is ended. So a child process asks first, multiplies a matrix and measures
(`edgellm.platforms.amx_probe`). Its answer is kept beside the compiled kernels.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgellm.errors import EdgeLLMError
from edgellm.folders import kernels_folder
from edgellm.kernels.target import Target, current_target

FEATURES = ("amx-tile", "amx-int8", "amx-bf16")
PROBE_SECONDS = 300  # with the compiling of the kernels that it needs, on a slow and busy machine
_MEANINGS = {
    "absent": "not on this CPU",
    "works": "works",
    "refused": "the system does not grant the tile registers to this process",
    "ended": "the process that tried it was ended by the system",
    "wrong": "gives wrong results here",
    "slower": "is slower here than the other kernels",
    "untested": "could not be tried out",
}


@dataclass(frozen=True)
class AMXStatus:
    """One of the states above, and how many times faster than the other kernels a product was."""

    state: str
    gain: float | None = None

    @property
    def usable(self) -> bool:
        """Whether kernels may and should use it."""
        return self.state == "works"

    def __str__(self) -> str:
        gain = f", {self.gain:.1f} times as fast as the other kernels" if self.gain is not None else ""
        return _MEANINGS[self.state] + (gain if self.state in ("works", "slower") else "")


def request_permission() -> bool:
    """Ask Linux for the tile registers, for this process and all its threads."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    arch_prctl, request_feature, tile_data = 158, 0x1023, 18
    try:
        return bool(ctypes.CDLL(None).syscall(arch_prctl, request_feature, tile_data) == 0)
    except (OSError, AttributeError):
        return False


def run_probe() -> AMXStatus:
    """What a child process finds."""
    if getattr(sys, "frozen", False):
        return AMXStatus("untested")  # there is no interpreter to start
    command = [sys.executable, "-P", "-m", "edgellm.platforms.amx_probe"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False,
            env={**os.environ, "EDGELLM_INSTRUCTION_SET": "native"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return AMXStatus("untested")
    if done.returncode < 0:
        return AMXStatus("ended")
    return _read(done.stdout) or AMXStatus("untested")


def _read(text: str) -> AMXStatus | None:
    try:
        found = json.loads(text)
        gain = found["gain"]
        if found["state"] in _MEANINGS and (gain is None or isinstance(gain, float)):
            return AMXStatus(found["state"], gain)
    except (ValueError, KeyError, TypeError):
        pass
    return None


def _machine() -> dict[str, str]:
    """What the answer depends on besides the kernels and the CPU's features."""
    from edgellm.platforms.features import cpu_model

    return {"cpu": cpu_model(), "system": platform.release()}


def find_status(target: Target, folder: Path, probe: Callable[[], AMXStatus] = run_probe) -> AMXStatus:
    """The state on the machine of this target; ``folder`` keeps the answer."""
    if not sys.platform.startswith("linux") or not target.has(*FEATURES):
        return AMXStatus("absent")
    path, machine = folder / "amx.json", _machine()
    try:
        kept = json.loads(path.read_text())
        known = _read(json.dumps(kept["status"])) if kept["machine"] == machine else None
    except (OSError, ValueError, KeyError, TypeError):
        known = None
    if known is not None:
        return known
    status = probe()
    if status.state != "untested":
        _keep(path, {"machine": machine, "status": asdict(status)})
    return status


def _keep(path: Path, found: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as file:
            json.dump(found, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:  # it will be tried out again
        with suppress(OSError):
            temporary.unlink()


@cache
def amx_status() -> AMXStatus:
    """The state for this process. If it works, the process may use the tile registers from now on."""
    from edgellm.kernels.library import KernelLibrary

    target = current_target()
    if not target.has(*FEATURES):
        return AMXStatus("absent")
    try:
        status = find_status(target, KernelLibrary(target, kernels_folder()).folder)
    except EdgeLLMError:
        return AMXStatus("untested")
    if status.usable and not request_permission():
        return AMXStatus("refused")
    return status


def amx_works() -> bool:
    """Whether this process can use AMX and gains by it."""
    return amx_status().usable


def amx_mode() -> str | None:
    """How products of many rows use tiles: "hardware", "emulated" (for tests) or None."""
    if current_target().forced == "amx_emulated":
        return "emulated"
    return "hardware" if amx_works() else None
