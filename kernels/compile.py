"""The compiler's process: ``python -m edgellm.kernels.compile FOLDER [TARGET]``.

Reads names of kernels from standard input, a line each, writes their object files into the folder, and prints each name
when it is done. Compiles for this machine as `EDGELLM_INSTRUCTION_SET` has it, or for one of the named targets. With
``-`` for the folder it prints the names of all kernels there are.

A name is MODULE.VARIANT: the module of this package whose ``kernel(variant)`` returns the Python function. A module
lists its variants in ``VARIANTS``.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

from edgellm.kernels.object_files import write_object
from edgellm.kernels.target import choose_target, current_target, named_target


@cache
def _configure() -> None:
    """Tell Numba the CPU before it makes its code generator, which keeps the first answer."""
    from numba.core import config

    target = current_target()
    settings: Any = config
    settings.CPU_NAME, settings.CPU_FEATURES = target.cpu_name, target.feature_string


def compile_kernel(name: str, path: Path) -> None:
    """Compile one kernel for this machine and write its object file."""
    _configure()
    from numba.core import compiler, types
    from numba.core.registry import cpu_target

    module_name, _, variant = name.partition(".")
    module = importlib.import_module(f"edgellm.kernels.{module_name}")
    function = module.kernel(variant)
    # The symbol is made from the name: two kernels of one factory must not clash when they are linked together.
    function.__name__ = function.__qualname__ = f"edgellm_{module_name}_{variant}"
    flags: Any = compiler.Flags()
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"  # division by zero must not raise: there is nobody to catch it
    typing_context, target_context = cpu_target.typing_context, cpu_target.target_context
    typing_context.refresh()
    target_context.refresh()
    parameters = (types.int64,) * function.__code__.co_argcount
    result = compiler.compile_extra(
        typing_context, target_context, function, parameters, module_result(module), flags, {}
    )
    write_object(path, result.fndesc.llvm_func_name, result.library._get_compiled_object())


def module_result(module: object) -> object:
    """Kernels return nothing, unless their module says ``RESULT = "int64"``."""
    from numba.core import types

    return getattr(types, getattr(module, "RESULT", "none"))


def compile_for_target(name: str, target_name: str, path: Path) -> None:
    """Compile one kernel for a named target and write its object file."""
    from edgellm.kernels import cross

    write_object(path, cross.kernel_symbol(name), cross.compile_kernel(name, named_target(target_name)))


def kernel_list() -> list[str]:
    """Names of all kernels for the target that was chosen."""
    found = []
    for source in sorted(Path(__file__).parent.glob("*.py")):
        if "\ndef kernel(" in source.read_text(encoding="utf-8"):
            module = importlib.import_module(f"edgellm.kernels.{source.stem}")
            found += [f"{source.stem}.{variant}" for variant in module.VARIANTS]
    return found


def main(arguments: list[str]) -> None:
    """The process."""
    folder, target_name = arguments[0], arguments[1] if len(arguments) > 1 else ""
    if target_name:
        choose_target(named_target(target_name))
    if folder == "-":
        print("\n".join(kernel_list()))
        return
    for line in sys.stdin:
        name = line.strip()
        path = Path(folder) / f"{name}.o"
        if target_name:
            compile_for_target(name, target_name, path)
        else:
            compile_kernel(name, path)
        print(name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
