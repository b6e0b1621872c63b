"""Compile kernels for another CPU or system, with Numba's code generator pointed at another target of LLVM.

One process compiles for one target: the kernels' modules choose their instructions when they are imported.

    choose_target(named_target("linux-aarch64-dotprod"))
    code = compile_kernel("matmul.q4", named_target("linux-aarch64-dotprod"))
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from numba.core import codegen, compiler, config, types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from edgellm.kernels.target import Target, choose_target


class CrossCodegen(codegen.AOTCPUCodegen):
    """Numba's generator of object files, for the triple, CPU and features of a target."""

    def __init__(self, target: Target) -> None:
        self._target = target
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        super().__init__("edgellm", target.cpu_name)

    def _create_empty_module(self, name: str) -> Any:
        module = super()._create_empty_module(name)
        module.triple = self._target.triple
        return module

    def _init(self, llvm_module: Any) -> None:
        # As the base class does, but without an engine that would run the code in this process.
        settings: Any = config
        machine = llvm.Target.from_triple(self._target.triple).create_target_machine(
            cpu=self._target.cpu_name,
            features=self._target.feature_string,
            opt=int(settings.OPT),
            reloc="pic",
            codemodel="default",
        )
        self._llvm_module, self._tm = llvm_module, machine
        self._target_data = machine.target_data
        self._data_layout = str(self._target_data)
        self._tm_features = self._target.feature_string
        self._loopvect, self._opt_level = False, 0

    @property
    def target_data(self) -> Any:
        """Sizes and alignments on the target."""
        return self._target_data


@cache
def _contexts(target: Target) -> tuple[Any, Any]:
    """Numba's contexts of types and of code, whose code generator is replaced: helpers are compiled by it too."""
    choose_target(target)
    typing_context, context = cpu_target.typing_context, cpu_target.target_context
    typing_context.refresh()
    context.refresh()  # compiles Numba's run-time functions for the host, which kernels do not use
    context._internal_codegen = CrossCodegen(target)
    context.post_lowering = lambda module, library: None  # would link those functions
    # Would load the code. Numba only wants some built-in function, a different one each time: here, a list's method.
    context.get_executable = lambda library, description, environment: [].clear
    return typing_context, context


def kernel_symbol(name: str) -> str:
    """The symbol of the kernel ``module.variant``."""
    return "edgellm_" + name.replace(".", "_")


def _compile(name: str, target: Target) -> Any:
    """Numba's code library with the kernel, optimized and under its symbol."""
    typing_context, context = _contexts(target)
    module_name, _, variant = name.partition(".")
    module = importlib.import_module(f"edgellm.kernels.{module_name}")
    function = module.kernel(variant)
    flags: Any = compiler.Flags()
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"  # division by zero must not raise: there is nobody to catch it
    parameters = (types.int64,) * function.__code__.co_argcount
    # Kernels return nothing, unless their module says otherwise.
    result_type = getattr(types, getattr(module, "RESULT", "none"))
    result = compiler.compile_extra(typing_context, context, function, parameters, result_type, flags, {})
    library = result.library
    with global_compiler_lock:
        library._ensure_finalized()
    library._final_module.get_function(result.fndesc.llvm_func_name).name = kernel_symbol(name)
    _drop_environments(library)
    return library


def _drop_environments(library: Any) -> None:
    """Remove Numba's pointers to the Python objects of each function, which kernels have no use for."""
    module = library._final_module
    for variable in module.global_variables:
        if variable.name.startswith("_ZN08NumbaEnv"):
            variable.linkage = "internal"
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(library._codegen._tm, llvm.create_pipeline_tuning_options()))


def compile_kernel(name: str, target: Target) -> bytes:
    """The object file (ELF or Mach-O) of the kernel ``module.variant``, whose symbol is ``kernel_symbol(name)``.

    Raises:
        RuntimeError: this process already compiles for another target.
    """
    code: bytes = _compile(name, target).emit_native_object()
    return code


def compile_with_assembly(name: str, target: Target) -> tuple[bytes, str]:
    """The object file and the same code as text, to be read."""
    library = _compile(name, target)
    return library.emit_native_object(), library.get_asm_str()
