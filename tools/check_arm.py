"""Run kernels and a model on emulated ARM processors, and compare with this machine.

    python -m edgellm.tools.check_arm path/to/smollm2.gguf

Needs Debian's packages qemu-user-static and debootstrap, and a checkout of the repository. The first run makes a folder
with an ARM Debian and ARM wheels (about 1 GB, ``--root``), which later runs use again. For each processor (plain NEON,
with the dot product extension, with 8-bit matrix products) it

1. asks the emulated Python which features it detects;
2. runs the tests of the kernels there, on the objects that this machine compiles for the kind of processor
   (`edgellm.kernels.build`), as a wheel brings them; the emulated processor lacks the instructions that they must not
   use;
3. runs a prompt and some tokens of the model, on two threads, and compares the logits with those of this machine;
4. lets the emulated Python compile a kernel by itself.

Emulation says nothing about speed, and little about the order of memory accesses, which is this machine's.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

import edgellm
from edgellm.errors import EdgeLLMError
from edgellm.folders import home_folder
from edgellm.kernels.build import build
from edgellm.kernels.library import source_key
from edgellm.kernels.object_files import ARCHIVE_SUFFIX, read_archive

CPUS = {"cortex-a57": "neon", "cortex-a76": "neon_dotprod", "max": "neon_i8mm"}
"""Processors of the emulator and the instruction set that must be found there."""
PACKAGES = ("pytest", "hypothesis", "platformdirs", "filelock", "gguf", "regex", "click")
SAME_VERSION = ("numpy", "llvmlite", "numba")
SUITE = "bookworm"
LARGEST_DIFFERENCE = 0.05
"""Of logits: far below what quantizing costs, far above roundings in another order."""
_TESTS = ("attention", "doubles", "elementwise", "matmul", "norm", "packing", "quantize")
_PROMPT = "The capital of France is"


@dataclass(frozen=True)
class Emulator:
    """An ARM Debian in a folder and what its Python finds there."""

    root: Path

    @property
    def python(self) -> Path:
        """The interpreter, which only the emulator can run."""
        return self.root / "debian/usr/bin/python3"

    def command(self, cpu: str, arguments: Sequence[str]) -> list[str]:
        """The command that runs Python on an emulated processor."""
        return ["qemu-aarch64-static", "-cpu", cpu, "-L", str(self.root / "debian"), str(self.python), *arguments]

    def environment(self) -> dict[str, str]:
        """Where the emulated Python finds modules and keeps compiled kernels."""
        paths = [self.root / "tree", self.root / "packages"]
        return {
            **os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1",
            "EDGELLM_HOME": str(self.root / "home"), "EDGELLM_INSTRUCTION_SET": "native",
        }  # fmt: skip

    def run(self, cpu: str, *arguments: str, capture: bool = False) -> str:
        """Run Python on an emulated processor; its output if ``capture``.

        Raises:
            EdgeLLMError: it failed.
        """
        return _run(self.command(cpu, ["-P", *arguments]), self.environment(), capture)


def _run(command: Sequence[str], environment: dict[str, str] | None = None, capture: bool = False) -> str:
    """Run a command; its output if ``capture``."""
    done = subprocess.run(
        command, env=environment, text=True, stdout=subprocess.PIPE if capture else None, check=False
    )  # fmt: skip
    if done.returncode:
        raise EdgeLLMError(f"this ended with status {done.returncode}: {shlex.join(command)}")
    return done.stdout or ""


# -- preparing ---------------------------------------------------------------------------------------------------


def _prepare_debian(root: Path) -> None:
    """Unpack a small ARM Debian with Python; nothing in it is run or configured."""
    for program, package in (("qemu-aarch64-static", "qemu-user-static"), ("debootstrap", "debootstrap")):
        if shutil.which(program) is None:
            raise EdgeLLMError(f"there is no {program}", f"apt-get install {package}")
    debian = root / "debian"
    if (debian / "usr/bin/python3").exists():
        return
    click.echo("unpacking an ARM Debian")
    options = ["--foreign", "--arch=arm64", "--variant=minbase", "--include=python3,libstdc++6"]
    _run(["debootstrap", *options, SUITE, str(debian)], capture=True)
    for archive in sorted((debian / "var/cache/apt/archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(archive), str(debian)])


def _prepare_packages(root: Path, version: str) -> None:
    """Unpack ARM wheels for a version of Python."""
    import zipfile

    packages = root / "packages"
    if packages.exists():
        return
    wheels, unpacked = root / "wheels", root / "unpacking"
    wanted = [*PACKAGES, *(f"{name}=={importlib.metadata.version(name)}" for name in SAME_VERSION)]
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)]
    options = [f"--platform={name}" for name in (*platforms, "manylinux2014_aarch64")]
    pip = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--implementation=cp"]
    _run([*pip, f"--python-version={version}", *options, f"--dest={wheels}", *wanted], capture=True)
    shutil.rmtree(unpacked, ignore_errors=True)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
    unpacked.rename(packages)


def _prepare_tree(root: Path) -> None:
    """The package as one folder of links: an editable installation is spread over several. Compiled kernels lie in a
    folder of their own."""
    tree = root / "tree" / "edgellm"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    _link_all(Path(edgellm.__path__[0]), tree)
    for name in ("kernels", "models", "platforms", "tools"):
        specification = importlib.util.find_spec(f"edgellm.{name}")
        assert specification is not None
        assert specification.submodule_search_locations is not None
        (tree / name).unlink(missing_ok=True)
        (tree / name).mkdir()
        _link_all(Path(specification.submodule_search_locations[0]), tree / name)
    (tree / "kernels" / "objects").unlink(missing_ok=True)
    (tree / "kernels" / "objects").symlink_to(root / "objects")


def _link_all(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if path.name != "__pycache__":
            (target / path.name).symlink_to(path)


def prepare(root: Path) -> Emulator:
    """Make what the check needs, as far as it is not there.

    Raises:
        EdgeLLMError: a program is missing or failed.
    """
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    _prepare_debian(root)
    emulator = Emulator(root)
    question = "import sys; print('%d.%d' % sys.version_info[:2])"
    _prepare_packages(root, emulator.run("max", "-c", question, capture=True).strip())
    _prepare_tree(root)
    return emulator


# -- checking ----------------------------------------------------------------------------------------------------

_DESCRIBE = """
import json
from edgellm.kernels.target import best_named_target, current_target
target = current_target()
print(json.dumps([target.instruction_set, best_named_target(target)]))
"""

_COMPILE = """
import ctypes, tempfile
from pathlib import Path
import llvmlite.binding as llvm
import numpy as np
from edgellm.kernels.compile import compile_kernel
from edgellm.kernels.object_files import read_object
from edgellm.kernels.records import ROWS

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "rows.select.o"
    compile_kernel("rows.select", path)
    item = read_object(path)
engine = llvm.create_mcjit_compiler(
    llvm.parse_assembly(""), llvm.Target.from_default_triple().create_target_machine()
)
engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(item.code))
engine.finalize_object()
x, output = np.arange(64, dtype=np.float32).reshape(4, 16), np.zeros((2, 16), np.float32)
rows, index, record = np.array([2]), np.array([3, 1], np.int32), np.zeros(len(ROWS), np.int64)
fields = {"rows": rows.ctypes.data, "width": 16, "input": x.ctypes.data, "input_stride": 64,
          "output": output.ctypes.data, "output_stride": 64, "index": index.ctypes.data}
for name, value in fields.items():
    record[getattr(ROWS, name) // 8] = value
kind = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
)
place = (ctypes.c_int64 * 2)()
kind(engine.get_function_address(item.symbol))(place, place, record.ctypes.data, 0, 1)
assert np.array_equal(output, x[[3, 1]])
"""


def check_detection(emulator: Emulator, cpu: str) -> str:
    """The emulated processor's features must be found; returns the name of the target that suits it best."""
    found, best = json.loads(emulator.run(cpu, "-c", _DESCRIBE, capture=True))
    click.echo(f"{cpu}: detected {found}, takes objects for {best}")
    if found != CPUS[cpu]:
        raise EdgeLLMError(f"{cpu} was taken for {found}, not {CPUS[cpu]}")
    return str(best)


def build_objects(emulator: Emulator, target_name: str) -> None:
    """Compile all kernels for a target, unless they are there."""
    objects = emulator.root / "objects"
    path = objects / f"{target_name}{ARCHIVE_SUFFIX}"
    if not read_archive(path, source_key(), ["rows.select"]):
        click.echo(f"compiling the kernels for {target_name}")
        objects.mkdir(exist_ok=True)
        build(target_name, objects)


def check_kernels(emulator: Emulator, cpu: str, tests: Path) -> None:
    """The tests of the kernels must pass."""
    files = [str(tests / "kernels" / f"test_{name}.py") for name in _TESTS]
    emulator.run(cpu, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tests.parent), *files)


def check_compiling(emulator: Emulator, cpu: str) -> None:
    """Numba must compile a kernel on the emulated processor itself, and what it makes must run."""
    emulator.run(cpu, "-c", _COMPILE)
    click.echo(f"{cpu}: compiles a kernel by itself")


def check_model(emulator: Emulator, cpu: str, model: Path, expected: Path) -> None:
    """Logits must be those of this machine, and so the tokens."""
    got = emulator.root / f"{cpu}.npz"
    worker = ["-m", "edgellm.tools.check_arm_worker", str(model), str(got), "--follow", str(expected)]
    emulator.run(cpu, *worker)
    with np.load(expected) as ours, np.load(got) as theirs:
        difference = float(np.abs(ours["logits"] - theirs["logits"]).max())
        same = bool((ours["logits"].argmax(axis=1) == theirs["logits"].argmax(axis=1)).all())
    tokens = "the same tokens" if same else "OTHER TOKENS"
    click.echo(f"{cpu}: {tokens}, logits differ by {difference:.6f} at most")
    if not same or difference > LARGEST_DIFFERENCE:
        raise EdgeLLMError(f"{cpu} computes something else than this machine")


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--root", type=click.Path(file_okay=False, path_type=Path), help="Folder for the ARM system.")
@click.option("--tests", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The tests' folder.")
@click.option("--cpu", "cpus", multiple=True, type=click.Choice(list(CPUS)), help="Only these processors.")
@click.option("--tokens", default=8, show_default=True, help="Tokens to generate.")
@click.option("--skip-kernels", is_flag=True, help="Run only the model.")
def main(
    model: Path, root: Path | None, tests: Path | None, cpus: tuple[str, ...], tokens: int, skip_kernels: bool
) -> None:
    """Run kernels and MODEL on emulated ARM processors."""
    try:
        _check(model, root or home_folder() / "arm", tests, cpus or tuple(CPUS), tokens, skip_kernels)
    except EdgeLLMError as error:
        raise click.ClickException(str(error)) from error


def _check(
    model: Path, root: Path, tests: Path | None, cpus: Sequence[str], tokens: int, skip_kernels: bool
) -> None:  # fmt: skip
    tests = tests or Path(edgellm.__path__[0]).resolve().parent / "tests"
    if not skip_kernels and not (tests / "kernels").is_dir():
        raise EdgeLLMError(f"there are no tests in {tests}", "give their folder with --tests")
    emulator = prepare(root)
    expected = root.resolve() / "expected.npz"
    worker = [sys.executable, "-P", "-m", "edgellm.tools.check_arm_worker", str(model.resolve()), str(expected)]
    _run([*worker, "--prompt", _PROMPT, "--tokens", str(tokens)])
    for cpu in cpus:
        build_objects(emulator, check_detection(emulator, cpu))
        if not skip_kernels:
            check_kernels(emulator, cpu, tests.resolve())
        check_model(emulator, cpu, model.resolve(), expected)
    check_compiling(emulator, cpus[-1])
    click.echo("all ARM checks passed")


if __name__ == "__main__":
    main()
