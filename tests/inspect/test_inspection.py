"""What ``show`` and ``inspect`` tell, against other readers of the same files; and files that mean harm."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf_bytes import ARRAY, FLOAT32, Parts, key, string, strings, tensor, uint32

from edgellm.cli.main import edgellm
from edgellm.errors import CorruptFileError, TemplateError
from edgellm.gguf import open_gguf
from edgellm.inspection import hash_data, keys, summarize, template_example, tensors
from edgellm.splitting import SplitSettings, split


def run(*arguments: object) -> Result:
    return CliRunner().invoke(edgellm, list(map(str, arguments)))


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", weight_types=("Q8_0", "Q4_0"))


def test_keys_and_tensors_as_the_gguf_package_reads_them(model: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(model)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    with open_gguf(model) as file:
        told = list(keys(file, 1 << 20))
        assert [one.name for one in told] == list(fields)
        for one in told:
            field = fields[one.name]
            assert one.type == " of ".join(kind.name.lower() for kind in field.types)
            expected = field.contents()
            if one.type == "float32":
                assert np.float32(one.value) == np.float32(expected)
            else:
                assert one.value == expected
            assert one.length == (len(expected) if isinstance(expected, list) else None)
        entries = list(tensors(file))
    assert [entry.name for entry in entries] == [one.name for one in reader.tensors]
    for entry, one in zip(entries, reader.tensors, strict=True):
        assert (entry.type, entry.weights, entry.size_bytes) == (one.tensor_type.name, one.n_elements, one.n_bytes)
        assert (entry.shape, entry.offset) == (tuple(reversed(one.shape.tolist())), one.data_offset)
        assert entry.bits_per_weight == 8 * int(one.n_bytes) / int(one.n_elements)


def test_summary_adds_up(model: Path) -> None:
    with open_gguf(model) as file:
        summary, entries = summarize(file), list(tensors(file))
    assert (summary.architecture, summary.layers, summary.heads, summary.kv_heads) == ("llama", 2, 4, 2)
    assert summary.context_length == 256
    assert summary.parameters == sum(entry.weights for entry in entries)
    assert summary.bits_per_weight == 8 * sum(entry.size_bytes for entry in entries) / summary.parameters
    assert {share.type for share in summary.types} == {entry.type for entry in entries}
    assert sum(share.tensors for share in summary.types) == len(entries)
    assert list(summary.types) == sorted(summary.types, key=lambda share: -share.size_bytes)
    assert summary.templates == ("default",)


@pytest.mark.parametrize("shards", [1, 3])
def test_hashes(model: Path, tmp_path: Path, shards: int) -> None:
    paths: tuple[Path, ...] = (model,)
    if shards > 1:
        paths = split(model, tmp_path / "x", SplitSettings(max_tensors=8)).paths
        assert len(paths) >= shards
    seen: list[tuple[int, int]] = []
    with open_gguf(paths[0]) as file:
        found = hash_data(file, lambda stage, done, total: seen.append((done, total)))
        expected = {name: hashlib.sha256(file.raw(name).tobytes()).hexdigest() for name in file.tensors}
    assert found.tensors == expected
    assert found.files == tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    total = sum(path.stat().st_size for path in paths)
    assert seen[-1] == (total, total)
    told = json.loads(run("inspect", paths[0], "--hashes", "--json").stdout)
    assert {entry["name"]: entry["sha256"] for entry in told["tensors"]} == expected
    assert list(told["sha256"].values()) == list(found.files)
    lines = run("inspect", paths[0], "--hashes").stdout.splitlines()
    assert [line.split()[-1] for line in lines[: len(expected)]] == [
        expected[line.split()[0]] for line in lines[: len(expected)]
    ]
    assert lines[-1] == f"{found.files[-1]}  {paths[-1]}"


def test_a_file_that_shrinks_while_it_is_hashed(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model.read_bytes())
    with open_gguf(path) as file, pytest.raises(CorruptFileError, match="became shorter"):
        hash_data(file, lambda stage, done, total: os.truncate(path, done))


def test_sections(model: Path) -> None:
    everything = run("inspect", model)
    assert everything.exit_code == 0, everything.output
    count = {name: len(run("inspect", model, f"--{name}").stdout.splitlines()) for name in ("metadata", "tensors")}
    with open_gguf(model) as file:
        assert count == {"metadata": len(file.metadata), "tensors": len(file.tensors)}
        rendered = template_example(file).text
    assert rendered.count("<|im_start|>") == 5
    assert run("inspect", model, "--template").stdout == rendered + "\n"
    for part in (f"metadata: {count['metadata']} keys\n", f"tensors: {count['tensors']}\n", rendered):
        assert part in everything.stdout
    told = json.loads(run("inspect", model, "--json").stdout)
    assert told["metadata"]["general.architecture"] == {"type": "string", "length": None, "value": "llama"}
    tokens = told["metadata"]["tokenizer.ggml.tokens"]
    assert (tokens["type"], len(tokens["value"])) == ("array of string", 8)
    assert tokens["length"] == told["vocabulary"] > 8
    assert told["template"]["text"] == rendered
    assert set(json.loads(run("inspect", model, "--tensors", "--json").stdout)) == set(told) - {"metadata", "template"}


def test_show_in_short(model: Path) -> None:
    told = run("show", model).stdout
    facts = dict(line.split(maxsplit=1) for line in told.splitlines())
    with open_gguf(model) as file:
        assert f"{summarize(file).bits_per_weight:.2f} bits per weight" in facts["quantization"]
    assert facts["context"] == "256"
    assert "chat template  yes (--template prints it)" in told


def with_template(path: Path, template: str | None, **more: str) -> Path:
    entries = [string("general.architecture", "llama"), strings("tokenizer.ggml.tokens", [b"<s>", b"</s>"])]
    entries += [uint32("tokenizer.ggml.bos_token_id", 0), uint32("tokenizer.ggml.eos_token_id", 7)]
    if template is not None:
        entries.append(string("tokenizer.chat_template", template))
    entries += [string(f"tokenizer.chat_template.{name}", text) for name, text in more.items()]
    return Parts(entries, [tensor("t", [4])], bytes(32)).write(path)


def test_templates(tmp_path: Path) -> None:
    """Templates that refuse system messages, fail, are several, or are not there."""
    path = tmp_path / "x.gguf"
    refuses = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "|{{ m.content }}{% endfor %}"
    )
    done = run("inspect", with_template(path, "{{ bos_token }}" + refuses), "--template")
    assert done.stdout == "<s>|Hello!|Hello! What can I do for you?|Name three rivers.\n"
    assert done.stderr == "note: the template takes no system message\n"
    with_template(path, "{{ raise_exception('always') }}")
    done = run("inspect", path, "--template")
    assert (done.exit_code, done.stderr.count("\n"), "always" in done.stderr) == (1, 1, True)
    done = run("inspect", path)
    assert (done.exit_code, "always" in done.stdout) == (0, True)
    assert "always" in json.loads(run("inspect", path, "--json").stdout)["template"]["error"]
    with open_gguf(path) as file, pytest.raises(TemplateError):
        template_example(file)
    done = run("inspect", with_template(path, "a", other="b"), "--template")
    assert (done.stdout, done.stderr) == ("a\n", "note: there are several templates, default, other; this is default\n")
    done = run("inspect", with_template(path, None), "--template")
    assert "the file has no chat template; using the" in done.stderr
    assert "Name three rivers." in done.stdout


NASTY = "a\x1b]0;owned\x07\x1b[2J\n\r\x9b31m\u202eb"


def test_nothing_in_a_file_reaches_the_terminal_raw(tmp_path: Path) -> None:
    entries = [string("general.architecture", NASTY), string("general.name", NASTY), string(NASTY, NASTY)]
    entries += [strings(f"x{NASTY}", [NASTY.encode(), b"\xff\x1b"]), string("general.license", "MIT\nsize 1 GB")]
    entries += [string("tokenizer.chat_template", f"{{{{ messages[1].content }}}}{NASTY}")]
    path = Parts(entries, [tensor(NASTY, [4])], bytes(32)).write(tmp_path / "x.gguf")
    for arguments in (
        ["show"],
        ["inspect"],
        ["inspect", "--hashes"],
        ["inspect", "--metadata"],
        ["show", "--template"],
    ):
        for more in ([], ["--json"]):
            done = run(arguments[0], path, *arguments[1:], *more)
            assert done.exit_code == 0, done.output
            for text in (done.stdout, done.stderr):
                assert not [letter for letter in text if (letter < " " and letter != "\n") or "\x7f" <= letter < "\xa0"]
    assert len(run("inspect", path, "--metadata").stdout.splitlines()) == len(entries)
    assert len(run("inspect", path, "--tensors").stdout.splitlines()) == 1
    told = run("show", path).stdout
    assert "license        MIT size 1 GB\n" in told
    assert "\u202e" not in told
    assert json.loads(run("inspect", path, "--json").stdout)["name"] == NASTY


def test_odd_values(tmp_path: Path) -> None:
    """No number, arrays in arrays, arrays for each layer, types that are not what the key should have."""
    inner = struct.pack("<IQ", ARRAY, 2) + 2 * struct.pack("<IQI", 4, 1, 7)
    heads = struct.pack("<IQ3I", 4, 3, 4, 8, 2)
    entries = [string("general.architecture", "x"), uint32("general.name", 3), uint32("general.file_type", 99999)]
    entries += [key("x.nan", FLOAT32, struct.pack("<f", float("nan"))), key("x.nested", ARRAY, inner)]
    entries += [key("x.attention.head_count", ARRAY, heads), string("x.context_length", "long")]
    path = Parts(entries, [tensor("t", []), tensor("u", [2, 3, 1], 1, 32)], bytes(64)).write(tmp_path / "x.gguf")
    told = json.loads(run("inspect", path, "--json").stdout)
    assert told["metadata"]["x.nan"]["value"] == "nan"
    assert told["metadata"]["x.nested"] == {"type": "array of array", "length": 2, "value": [[7], [7]]}
    assert (told["name"], told["context_length"], told["heads"]) == (None, None, [4, 8, 2])
    assert [entry["weights"] for entry in told["tensors"]] == [1, 6]
    assert [entry["shape"] for entry in told["tensors"]] == [[], [1, 3, 2]]
    shown = run("show", path).stdout
    assert "quantization   file type 99999, 18.29 bits per weight\n" in shown
    assert "heads          2 to 8 (2 to 8 for keys and values)\n" in shown


def test_a_file_without_tensors(tmp_path: Path) -> None:
    path = Parts([string("general.type", "adapter")]).write(tmp_path / "x.gguf")
    told = run("show", path).stdout
    assert "type           adapter\n" in told
    assert "tensors        none\n" in told
    assert run("inspect", path, "--hashes").exit_code == 0


def test_published_file(smollm2_path: Path) -> None:
    with open_gguf(smollm2_path) as file:
        summary = summarize(file)
    assert (summary.parameters, summary.quantization, summary.license) == (134_515_008, "Q4_1", "apache-2.0")
