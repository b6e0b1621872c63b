"""Splitting and joining: bit for bit, all or nothing, readable by others."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf_bytes import ARRAY, FLOAT32, Parts, key, string, strings, tensor, text, uint16, uint32
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm import splitting
from edgellm.cli.main import edgellm
from edgellm.errors import CorruptFileError, EdgeLLMError, InvalidSettingError
from edgellm.gguf import open_gguf
from edgellm.splitting import SplitSettings, join, split

FLOAT64, UINT64 = 12, 10


def odd_file(path: Path, lengths: list[int], alignment: int = 64) -> Path:
    """A file with one-dimensional tensors of so many values, and values of kinds that few files have."""
    nested = struct.pack("<IQ", ARRAY, 2) + struct.pack("<IQ2H", 2, 2, 1, 2) + struct.pack("<IQ", 8, 1) + text("x")
    keys = [
        string("general.architecture", "odd"),
        uint32("general.alignment", alignment),
        uint16("odd.small", 7),
        key("odd.exact", FLOAT64, struct.pack("<d", 0.1)),
        key("odd.nan", FLOAT32, b"\x01\x00\xc0\x7f"),
        key("odd.nothing", ARRAY, struct.pack("<IQ", UINT64, 0)),
        key("odd.nested", ARRAY, nested),
        string("odd.broken", b"\xff\xfe"),
        strings("tokenizer.ggml.tokens", [b"a", b"\xf0\x9f", b""]),
    ]
    tensors, data = [], b""
    for index, length in enumerate(lengths):
        tensors.append(tensor(f"tensor.{index}", [length], 0, len(data)))
        values = np.random.default_rng(index).standard_normal(length).astype("<f4").tobytes()
        data += values + bytes(-len(values) % alignment)
    return Parts(keys, tensors, data, alignment=alignment).write(path)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    return odd_file(tmp_path / "odd.gguf", [100, 1, 7, 300, 16, 50])


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=12),
    alignment=st.sampled_from([8, 32, 64, 4096]),
    limit=st.one_of(st.integers(1, 5), st.integers(3000, 30000)),
)
def test_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], alignment: int, limit: int
) -> None:
    folder = tmp_path_factory.mktemp("files")
    source = odd_file(folder / "odd.gguf", lengths, alignment)
    by_size = limit >= 3000
    try:
        written = split(source, folder / "part", SplitSettings(*(limit, None) if by_size else (None, limit)))
    except EdgeLLMError as error:
        assert by_size
        assert "larger than allowed" in str(error)
        return
    assert [path.stat().st_size for path in written.paths] == list(written.sizes)
    assert sum(written.tensors) == len(lengths)
    assert max(written.sizes) <= limit if by_size else max(written.tensors) <= limit
    with open_gguf(written.paths[-1]) as parts, open_gguf(source) as whole:
        assert list(parts.tensors) == list(whole.tensors)
        assert all(np.array_equal(parts.raw(name), whole.raw(name)) for name in whole.tensors)
    joined = join(written.paths[0], folder / "joined.gguf")
    assert joined.paths[0].read_bytes() == source.read_bytes()


def test_names_and_keys_are_those_of_llama_cpp(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    from gguf import GGUFReader

    source = tiny_model("llama")
    written = split(source, tmp_path / "tiny.gguf", SplitSettings(max_tensors=8))
    count = len(written.paths)
    assert [path.name for path in written.paths] == [f"tiny-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    total = 0
    for number, path in enumerate(written.paths):
        reader = GGUFReader(path)
        found = {name: (reader.fields[name].types[0].name, int(reader.fields[name].contents())) for name in SPLIT}
        assert found == dict(
            zip(SPLIT, [("UINT16", number), ("UINT16", count), ("INT32", sum(written.tensors))], strict=True)
        )
        assert ("general.architecture" in reader.fields) == (number == 0)
        total += len(reader.tensors)
    assert total == len(GGUFReader(source).tensors)


SPLIT = ("split.no", "split.count", "split.tensors.count")


def test_shards_are_split_again(odd: Path, tmp_path: Path) -> None:
    thirds = split(odd, tmp_path / "a", SplitSettings(max_tensors=2))
    halves = split(thirds.paths[1], tmp_path / "b", SplitSettings(max_tensors=3))
    assert halves.tensors == (3, 3)
    assert [path.read_bytes() for path in halves.paths] == [
        path.read_bytes() for path in split(odd, tmp_path / "c", SplitSettings(max_tensors=3)).paths
    ]


def test_one_shard_and_folders(odd: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    [path] = split(odd, folder, SplitSettings(max_bytes=1 << 20)).paths
    assert path == folder / "odd-00001-of-00001.gguf"
    assert join(path, folder).paths == (folder / "odd.gguf",)
    assert (folder / "odd.gguf").read_bytes() == odd.read_bytes()


def test_limits(odd: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgeLLMError, match=r"the keys and the vocabulary.* at least \d+ bytes"):
        split(odd, tmp_path / "x", SplitSettings(max_bytes=100))
    with pytest.raises(EdgeLLMError, match=r"tensor 'tensor.3' would make a shard of 1.4 kB, .* at least 1408 bytes"):
        split(odd, tmp_path / "x", SplitSettings(max_bytes=1300))
    assert max(split(odd, tmp_path / "x", SplitSettings(max_bytes=1408)).sizes) == 1408
    for limits in ((None, None), (1, 1), (0, None), (None, 0)):
        with pytest.raises(InvalidSettingError):
            SplitSettings(*limits)


def test_more_shards_than_can_be_opened(tmp_path: Path) -> None:
    many = odd_file(tmp_path / "many.gguf", [1] * 1001)
    with pytest.raises(EdgeLLMError, match="that would make 1001 shards"):
        split(many, tmp_path / "x", SplitSettings(max_tensors=1))


def test_what_is_there_is_kept(odd: Path, tmp_path: Path) -> None:
    (tmp_path / "x-00002-of-00003.gguf").write_bytes(b"precious")
    before = listing(tmp_path)
    with pytest.raises(EdgeLLMError, match=r"x-00002-of-00003\.gguf exists already.*--force"):
        split(odd, tmp_path / "x", SplitSettings(max_tensors=2))
    assert listing(tmp_path) == before
    written = split(odd, tmp_path / "x", SplitSettings(max_tensors=2, force=True))
    before = listing(tmp_path)
    with pytest.raises(EdgeLLMError, match="exists already"):
        join(written.paths[0], odd)
    assert listing(tmp_path) == before
    join(written.paths[0], odd, force=True)
    assert listing(tmp_path) == before
    with pytest.raises(EdgeLLMError, match="there is no folder"):
        join(written.paths[0], tmp_path / "absent" / "x.gguf")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("when", ["writing", "moving"])
def test_interrupted(odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, force: bool) -> None:
    """Ctrl-C leaves the folder as it was: no file more, no file less, nothing replaced."""
    if force:
        for number in (1, 3):
            (tmp_path / f"x-0000{number}-of-00003.gguf").write_bytes(b"old")
    before = listing(tmp_path)
    real, calls = Path.replace, 0

    def interrupted(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(self, target)

    def progress(stage: str, done: int, total: int) -> None:
        assert stage == "split"
        if when == "writing" and done > total // 2:
            raise KeyboardInterrupt

    if when == "moving":
        monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        split(odd, tmp_path / "x", SplitSettings(max_tensors=2, force=force), progress)
    assert listing(tmp_path) == before
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize("command", ["split", "join"])
def test_full_disk(odd: Path, tmp_path: Path, command: str) -> None:
    """The system refuses to write more than 1500 bytes to a file."""
    out = tmp_path / "out"
    out.mkdir()
    source = split(odd, tmp_path / "x", SplitSettings(max_tensors=1)).paths[0] if command == "join" else odd
    arguments = [command, str(source), str(out / "y"), *(["--max-tensors", "4"] if command == "split" else [])]
    code = (
        "import resource, sys\nfrom edgellm.cli.main import main\nimport edgellm.splitting\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))\nsys.argv = ['edgellm', *sys.argv[1:]]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: writing to {out} failed: File too large; free some")
    assert list(out.iterdir()) == []


def test_too_little_room(odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(splitting.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(EdgeLLMError, match=r"1\.0 kB are free"):
        split(odd, tmp_path / "x", SplitSettings(max_tensors=2))


def test_a_source_that_shrinks(odd: Path, tmp_path: Path) -> None:
    before = set(listing(tmp_path))

    def progress(stage: str, done: int, total: int) -> None:
        os.truncate(odd, 1000)

    with pytest.raises(CorruptFileError, match="became shorter"):
        split(odd, tmp_path / "x", SplitSettings(max_tensors=2), progress)
    assert set(listing(tmp_path)) == before


def test_shards_that_do_not_belong_together(odd: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgeLLMError, match="whole file"):
        join(odd, tmp_path / "joined.gguf")
    first, second, third = split(odd, tmp_path / "x", SplitSettings(max_tensors=2)).paths
    kept = second.read_bytes()
    second.write_bytes(third.read_bytes())
    with pytest.raises(CorruptFileError, match="says that it is part 3 of 3, expected part 2"):
        join(first, tmp_path / "joined.gguf")
    second.write_bytes(kept[:-100])
    with pytest.raises(CorruptFileError, match="the file ends at"):
        join(first, tmp_path / "joined.gguf")
    second.unlink()
    with pytest.raises(CorruptFileError, match=r"missing: x-00002-of-00003\.gguf"):
        join(first, tmp_path / "joined.gguf")
    assert not (tmp_path / "joined.gguf").exists()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(edgellm, list(map(str, arguments)))


def test_command_line(odd: Path, tmp_path: Path) -> None:
    done = run("split", odd, tmp_path / "x", "--max-size", "0.0025M")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{tmp_path}/x-00001-of-00002.gguf (4 tensors, 2.4 kB)\n")
    told = json.loads(run("split", odd, tmp_path / "x", "--max-size", "0.0025m", "--force", "--json").stdout)
    assert [file["tensors"] for file in told["files"]] == [4, 2]
    assert told["size_bytes"] == sum(Path(file["path"]).stat().st_size for file in told["files"])
    told = json.loads(run("join", told["files"][0]["path"], tmp_path / "y.gguf", "--json").stdout)
    assert told["files"] == [
        {"path": str(tmp_path / "y.gguf"), "size_bytes": odd.stat().st_size, "tensors": 6},
    ]
    again = run("join", tmp_path / "x-00001-of-00002.gguf", tmp_path / "y.gguf")
    assert (again.exit_code, again.stderr.count("\n")) == (1, 1)
    for wrong in ([], ["--max-size", "1G", "--max-tensors", "3"], ["--max-size", "2 miles"], ["--max-size", "0"]):
        assert run("split", odd, tmp_path / "z", *wrong).exit_code == 2


def test_llama_cpp_loads_shards(smollm2_path: Path, tmp_path: Path) -> None:
    default = Path.home() / ".cache" / "edgellm-peers" / "bin" / "python"
    python = os.environ.get("EDGELLM_PEERS_PYTHON") or str(default)
    try:
        found = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode == 0
    except OSError:
        found = False
    if not found:
        pytest.skip(f"{python} has no llama-cpp-python: run peers/setup of the shared material")
    code = (
        "import sys, llama_cpp\n"
        "for path in sys.argv[1:]:\n"
        "    model = llama_cpp.Llama(path, n_ctx=64, n_threads=1, verbose=False)\n"
        "    print(repr(model('The capital of France is', max_tokens=8, temperature=0)['choices'][0]['text']))\n"
        "    model.close()\n"
    )
    written = split(smollm2_path, tmp_path / "shards", SplitSettings(max_bytes=31_000_000))
    assert 0 in written.tensors  # the vocabulary and the largest matrix need a shard each
    joined = join(written.paths[0], tmp_path / "joined.gguf")
    assert joined.paths[0].read_bytes() == smollm2_path.read_bytes()
    done = subprocess.run(
        [python, "-c", code, str(smollm2_path), str(written.paths[0])], capture_output=True, text=True, check=True
    )
    whole, shards = done.stdout.splitlines()
    assert whole == shards
    assert "Paris" in whole
