"""Nothing half-written under the final name, nothing overwritten, little memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import write_large_checkpoint

from edgellm.convert import ConvertSettings, convert
from edgellm.errors import EdgeLLMError
from edgellm.gguf import TensorType, open_gguf

SMALL = {"layers": 1, "width": 2048, "feed_forward": 2048, "vocabulary": 32000}


@pytest.fixture(scope="session")
def large_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 180 MB in two shards; the embedding is 131 MB of it."""
    folder = tmp_path_factory.mktemp("large") / "large"
    write_large_checkpoint(folder, **SMALL)
    return folder


def test_two_shards_and_types(large_checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    done = convert(
        large_checkpoint,
        tmp_path / "out.gguf",
        ConvertSettings(type="q8_0"),
        progress=lambda stage, count, total: seen.append((stage, count, total)),
    )
    assert (done.architecture, done.type, done.notices) == ("llama", "q8_0", ())
    assert done.size_bytes == done.path.stat().st_size
    assert {stage for stage, _, _ in seen} == {"convert"}
    counts = [count for _, count, _ in seen]
    assert counts == sorted(counts)
    assert counts[-1] == seen[-1][2]
    with open_gguf(done.path) as file:
        assert file.tensors["token_embd.weight"].type is TensorType.Q8_0
        assert file.tensors["token_embd.weight"].shape == (32000, 2048)
        assert sum(tensor.rows * tensor.columns for tensor in file.tensors.values()) == done.parameters
        assert file.metadata["general.size_label"] == "89M"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("kind", ["auto", "q8_0"])
def test_memory_is_far_below_the_largest_tensor(large_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    """The embedding alone has 131 MB, 262 MB as float32; the process without it takes some 60 MB."""
    program = (
        "import sys\n"
        "from edgellm.convert import ConvertSettings, convert\n"
        "from edgellm.memory import peak_bytes\n"
        "convert(sys.argv[1], sys.argv[2], ConvertSettings(type=sys.argv[3], threads=2))\n"
        "print(peak_bytes())"
    )
    command = [sys.executable, "-c", program, str(large_checkpoint), str(tmp_path / "out.gguf"), kind]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak < 200 << 20


def test_the_number_of_threads_does_not_matter(shared: Path, tmp_path: Path) -> None:
    contents = []
    for threads in (1, 3):
        path = tmp_path / f"{threads}.gguf"
        convert(shared / "fixtures" / "mixtral", path, ConvertSettings(type="q8_0", threads=threads))
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_an_existing_file_is_kept(shared: Path, tmp_path: Path) -> None:
    source, path = shared / "fixtures" / "llama", tmp_path / "out.gguf"
    path.write_bytes(b"precious")
    with pytest.raises(EdgeLLMError, match=r"out\.gguf exists already.*--force"):
        convert(source, path)
    assert path.read_bytes() == b"precious"
    convert(source, path, ConvertSettings(force=True))
    assert path.read_bytes().startswith(b"GGUF")


def test_names_of_files(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = shared / "fixtures" / "llama"
    assert convert(source).path == Path("llama-F32.gguf")
    (tmp_path / "sub").mkdir()
    done = convert(source, "sub", ConvertSettings(type="f16", name="My/Model 1"))
    assert done.path == Path("sub/My-Model-1-F16.gguf")
    with pytest.raises(EdgeLLMError, match="there is no folder absent"):
        convert(source, "absent/out.gguf")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_interrupt_leaves_nothing(shared: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        assert any(name.endswith(".part") for name in _names(tmp_path))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(shared / "fixtures" / "llama", tmp_path / "out.gguf", progress=interrupt)
    assert _names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
def test_ctrl_c_leaves_nothing(large_checkpoint: Path, tmp_path: Path) -> None:
    program = "from edgellm.cli.main import main; main()"
    command = [
        sys.executable,
        "-c",
        program,
        "convert",
        str(large_checkpoint),
        "-o",
        str(tmp_path / "out.gguf"),
        "--type",
        "f32",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not any(path.stat().st_size > 1 << 20 for path in tmp_path.glob(".*.part")) and time.monotonic() < end:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert _names(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit for the size of files")
def test_a_full_disk_leaves_nothing(shared: Path, tmp_path: Path) -> None:
    """A limit for the size of files stands for the full disk: writing fails in the midst of a tensor."""
    program = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "sys.argv[0] = 'edgellm'\n"
        "from edgellm.cli.main import main\n"
        "main()"
    )
    arguments = ["convert", str(shared / "fixtures" / "llama"), "-o", str(tmp_path / "out.gguf")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: writing ")
    assert done.stderr.count("\n") == 1
    assert _names(tmp_path) == []


def test_a_disk_without_room_is_seen_beforehand(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(EdgeLLMError, match=r"the file takes .* 1000 B are free"):
        convert(shared / "fixtures" / "llama", tmp_path / "out.gguf")


def test_an_error_while_encoding_leaves_nothing(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.convert import writer

    def fail(*arguments: object) -> Callable[..., object]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(writer, "encode", fail)
    with pytest.raises(OSError, match="Input/output"):
        convert(shared / "fixtures" / "llama", tmp_path / "out.gguf")
    assert _names(tmp_path) == []
