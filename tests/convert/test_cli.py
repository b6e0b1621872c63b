"""``edgellm convert`` on the command line, and checkpoints from Hugging Face."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from file_server import Answer, FileServer, running_server

from edgellm.cli.main import edgellm
from edgellm.convert import ConvertSettings, convert, source
from edgellm.errors import DownloadError, ModelNotFoundError
from edgellm.gguf import open_gguf
from edgellm.hub.transfer import Patience


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(edgellm, ["convert", *map(str, arguments)])


def test_words_and_json(shared: Path, tmp_path: Path) -> None:
    folder, output = shared / "fixtures" / "llama", tmp_path / "out.gguf"
    done = _run(folder, "--output", output, "--type", "F16")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{output} (llama, f16, 30 tensors, ")
    again = _run(folder, "-o", output)
    assert again.exit_code == 1
    assert again.stderr == f"error: {output} exists already; choose another --output, or replace it with --force\n"
    told = json.loads(_run(folder, "-o", output, "--force", "--json").stdout)
    assert told["path"] == str(output)
    assert (told["architecture"], told["type"], told["notices"]) == ("llama", "f32", [])
    assert told["size_bytes"] == output.stat().st_size


def test_errors_are_one_line(tmp_path: Path) -> None:
    done = _run(tmp_path / "absent")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: there is no folder ")
    assert done.stderr.count("\n") == 1
    assert _run(tmp_path, "--type", "q3").exit_code == 2


def test_a_converted_model_runs(shared: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gguf"
    assert _run(shared / "fixtures" / "qwen3", "-o", output).exit_code == 0
    arguments = ["generate", str(output), "-p", "the cat", "--max-tokens", "4", "--backend", "reference", "--json"]
    done = CliRunner().invoke(edgellm, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["finish_reason"] in ("length", "stop")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    quick = Patience(answer=5.0, stall=1.0, attempts=2, attempts_with_data=2, backoff=0.01)
    monkeypatch.setattr(source, "_LOOK_UP", quick)
    monkeypatch.setattr(source, "_DOWNLOAD", quick)
    with running_server() as files:
        monkeypatch.setenv("HF_ENDPOINT", files.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
        monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "edgellm"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield files


def _serve(server: FileServer, repository: str, files: dict[str, bytes]) -> None:
    siblings = []
    for name, content in files.items():
        server.files[f"/{repository}/resolve/c0ffee/{name}"] = content
        siblings.append(
            {"rfilename": name, "size": len(content), "lfs": {"sha256": hashlib.sha256(content).hexdigest()}}
        )
    listing = {"id": repository, "sha": "c0ffee", "siblings": siblings}
    server.files[f"/api/models/{repository}"] = json.dumps(listing).encode()


@pytest.fixture
def on_hub(server: FileServer, shared: Path) -> FileServer:
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    files = {name: (shared / "fixtures" / "llama" / name).read_bytes() for name in names}
    _serve(server, "o/tiny", {**files, "pytorch_model.bin": b"pickle", "onnx/model.onnx": b"x", "run.py": b"evil"})
    return server


def test_from_hugging_face(on_hub: FileServer, tmp_path: Path) -> None:
    """Only what a conversion reads is fetched, once; nothing that could be run."""
    done = convert("hf:o/tiny", tmp_path / "out.gguf")
    with open_gguf(done.path) as file:
        assert file.metadata["general.name"] == "tiny"
    asked = {request.path for request in on_hub.requests}
    assert not any(name in path for path in asked for name in ("pytorch", "onnx", "run.py"))
    on_hub.requests.clear()
    convert("hf:o/tiny", tmp_path / "again.gguf", ConvertSettings(offline=True))
    assert on_hub.requests == []


def test_an_interrupted_download_goes_on(on_hub: FileServer, tmp_path: Path) -> None:
    path = "/o/tiny/resolve/c0ffee/model.safetensors"
    on_hub.next_answers(path, *[Answer(status=503)] * 4)
    with pytest.raises(DownloadError):
        convert("hf:o/tiny", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    on_hub.answers[path].clear()
    convert("hf:o/tiny", tmp_path / "out.gguf")
    tokenizer = [request for request in on_hub.requests if request.path.endswith("/tokenizer.json")]
    assert len(tokenizer) == 1


def test_what_the_hubs_own_client_has_fetched(server: FileServer, shared: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "huggingface" / "hub" / "models--o--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in (shared / "fixtures" / "llama").iterdir():
        (snapshot / path.name).symlink_to(path)
    convert("hf:o/tiny", tmp_path / "out.gguf")
    assert server.requests == []


def test_repositories_without_a_checkpoint(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is not on this machine"):
        convert("hf:o/tiny", settings=ConvertSettings(offline=True))
    _serve(server, "o/tiny", {"tiny-Q8_0.gguf": b"GGUF", "config.json": b"{}"})
    with pytest.raises(ModelNotFoundError, match=r"no weights in safetensors files; .*edgellm pull hf:o/tiny"):
        convert("hf:o/tiny")
    with pytest.raises(ModelNotFoundError, match="names one of several"):
        convert("hf:o/tiny:Q4_K_M")
    with pytest.raises(ModelNotFoundError, match="is not of the form"):
        convert("hf:../tiny")
