"""Names of models and of files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import CorruptFileError, EdgeLLMError, ModelNotFoundError
from edgellm.hub.aliases import ALIASES, Wheel
from edgellm.hub.files import (
    FileGroup,
    format_bytes,
    group_model_files,
    local_model,
    quantization_of,
    safe_filename,
    write_atomically,
)
from edgellm.hub.names import AliasName, HuggingFaceName, OllamaName, OtherName, PackageName, PathName, parse_name


def test_every_form() -> None:
    assert parse_name("smollm2") == AliasName(ALIASES["smollm2"])
    assert parse_name("hf:owner/repo") == HuggingFaceName("owner/repo", None)
    assert parse_name("hf:owner/repo-GGUF:Q8_0") == HuggingFaceName("owner/repo-GGUF", "Q8_0")
    assert parse_name("hf:owner/repo:sub/file-Q8_0.gguf") == HuggingFaceName("owner/repo", "sub/file-Q8_0.gguf")
    assert parse_name("pypi:package") == PackageName((Wheel("package"),))
    assert parse_name("pypi:a==1.0, b==2.0.post1") == PackageName((Wheel("a", "1.0"), Wheel("b", "2.0.post1")))
    assert parse_name("ollama:llama3.2") == OllamaName("llama3.2", "latest")
    assert parse_name("ollama:someone/model:1b") == OllamaName("someone/model", "1b")
    assert parse_name("model.gguf") == PathName(Path("model.gguf"))
    assert parse_name("folder/model") == PathName(Path("folder/model"))
    assert parse_name("model") == OtherName("model")


@pytest.mark.parametrize("name", ["smollm2", "hf:o/r:Q4_0", "pypi:a==1,b==2", "ollama:a:b", "x/y.gguf"])
def test_names_written_out_mean_the_same(name: str) -> None:
    assert parse_name(str(parse_name(name))) == parse_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *["hf:", "hf:repo", "hf:a/b/c", "hf:../x", "hf:a/..", "hf:a/b:../c", "hf:a/b:x//y", "hf:-a/b", "hf:a/b?c"],
        *["pypi:", "pypi:a==", "pypi:--index-url=x", "pypi:a;b", "pypi:a,", "pypi:a==1/2", "ollama:", "ollama:../x"],
    ],
)
def test_malformed(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="is not of the form"):
        parse_name(name)


@settings(deadline=None)
@given(st.text(max_size=40), st.sampled_from(["", "hf:", "pypi:", "ollama:"]))
def test_any_text_is_a_name_or_a_clean_error(text: str, prefix: str) -> None:
    try:
        parse_name(prefix + text)
    except EdgeLLMError as error:
        assert "\n" not in str(error) or "\n" in text


def test_home_is_expanded(own_home: Path) -> None:
    assert parse_name("~/model.gguf") == PathName(own_home / "home" / "model.gguf")


def test_files_are_sorted_into_models() -> None:
    names = ["b-00002-of-00002.gguf", "README.md", "a.gguf", "b-00001-of-00002.gguf", "c.gguf.part01", "c.gguf.part00"]
    assert group_model_files(names) == [
        FileGroup("a.gguf", ("a.gguf",), 1, False),
        FileGroup("b.gguf", ("b-00001-of-00002.gguf", "b-00002-of-00002.gguf"), 2, False),
        FileGroup("c.gguf", ("c.gguf.part00", "c.gguf.part01"), 2, True),
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["a-00001-of-00003.gguf", "a-00003-of-00003.gguf"],
        ["a.gguf.part00", "a.gguf.part02"],
        ["a.gguf.part3"],
        ["a-00002-of-00002.gguf"],
    ],
)
def test_missing_parts(names: list[str]) -> None:
    [group] = group_model_files(names)
    with pytest.raises(CorruptFileError, match=r"a\.gguf is in \d parts, of which \d are there"):
        group.require_complete()


def test_pieces_from_one_are_whole() -> None:
    [group] = group_model_files(["a.gguf.part1", "a.gguf.part2", "a.gguf.part3"])
    group.require_complete()
    assert group.members == ("a.gguf.part1", "a.gguf.part2", "a.gguf.part3")


def test_ten_pieces_are_in_order_of_number() -> None:
    [group] = group_model_files([f"a.gguf.part{number}" for number in (10, 2, 1, 3, 4, 5, 6, 7, 8, 9)])
    assert [int(name.rpartition("part")[2]) for name in group.members] == list(range(1, 11))


def test_the_same_part_twice() -> None:
    with pytest.raises(CorruptFileError, match="both claim"):
        group_model_files(["a.gguf.part1", "a.gguf.part01"])


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("gemma-3-270m-q4_k_m.gguf", "Q4_K_M"),
        ("model-UD-IQ2_XXS.gguf", "UD-IQ2_XXS"),
        ("Qwen3-0.6B-BF16.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("BitNet-TQ1_0.gguf", "TQ1_0"),
        ("Q8_0/model-Q8_0.gguf", "Q8_0"),
        ("model.gguf", None),
        ("iq-test.gguf", None),
    ],
)
def test_quantization_of_a_file(filename: str, expected: str | None) -> None:
    assert quantization_of(filename) == expected


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"GGUF")


def test_any_shard_stands_for_all(tmp_path: Path) -> None:
    touch(tmp_path, "m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf", "other.gguf")
    first = tmp_path / "m-00001-of-00003.gguf"
    for number in (1, 2, 3):
        assert local_model(tmp_path / f"m-0000{number}-of-00003.gguf") == first
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(CorruptFileError, match=r"m-00002-of-00003\.gguf is missing"):
        local_model(first)


def test_a_folder_with_one_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no \.gguf file"):
        local_model(tmp_path)
    touch(tmp_path, "m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    assert local_model(tmp_path).name == "m-00001-of-00002.gguf"
    touch(tmp_path, "n.gguf")
    with pytest.raises(ModelNotFoundError, match=r"n\.gguf"):
        local_model(tmp_path)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    touch(tmp_path, "right.gguf")
    with pytest.raises(ModelNotFoundError, match=r"there is no file .*wrong\.gguf; in .*: right\.gguf"):
        local_model(tmp_path / "wrong.gguf")
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        local_model(tmp_path / "nowhere" / "wrong.gguf")


@given(st.text(max_size=300))
def test_safe_file_names(name: str) -> None:
    safe = safe_filename(name)
    assert safe not in ("", ".", "..")
    assert not set(safe) & set("/\\:\0")
    assert len(safe) <= 200
    assert Path("folder", safe).parent == Path("folder")


def test_sizes_for_people() -> None:
    assert [format_bytes(count) for count in (0, 999, 1000, 98_362_432, 4.7e9, 2e12)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "98.4 MB",
        "4.7 GB",
        "2.0 TB",
    ]


def test_atomic_writing_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["file"]
