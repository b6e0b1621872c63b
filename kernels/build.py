"""Compile kernels to object files: ``python -m edgellm.kernels.build FOLDER NAME...``.

A name is MODULE.VARIANT: the module of this package whose ``kernel(variant)`` returns the Python function.
Prints each name when its object is written.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from edgellm.kernels.library import write_object
from edgellm.kernels.target import current_target


def _configure() -> None:
    """Tell Numba the CPU before it makes its code generator, which keeps the first answer."""
    from numba.core import config

    target = current_target()
    settings: Any = config
    settings.CPU_NAME, settings.CPU_FEATURES = target.cpu_name, target.feature_string


def compile_kernel(name: str, path: Path) -> None:
    """Compile one kernel and write its object file."""
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


def main(arguments: list[str]) -> None:
    """Compile the named kernels into a folder."""
    folder = Path(arguments[0])
    for name in arguments[1:]:
        compile_kernel(name, folder / f"{name}.o")
        print(name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
