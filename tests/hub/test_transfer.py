"""Downloads: whole, resumed, stalled, cut, changed, refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from pathlib import Path

import pytest
from file_server import Answer, FileServer

from edgellm.errors import DownloadError
from edgellm.hub import files as files_module
from edgellm.hub.transfer import HTTPStatusError, Patience, RemoteFile, download, read_document

CONTENT = hashlib.shake_128(b"content").digest(700_001)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def remote(server: FileServer) -> RemoteFile:
    server.files["/model.gguf"] = CONTENT
    server.etags["/model.gguf"] = '"first"'
    return RemoteFile(f"{server.url}/model.gguf", len(CONTENT), SHA256)


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "model.gguf"


def leftovers(destination: Path) -> list[str]:
    return sorted(path.name for path in destination.parent.iterdir() if path != destination)


def test_whole_file_with_progress(remote: RemoteFile, destination: Path, patience: Patience) -> None:
    seen: list[tuple[str, int, int]] = []
    download(remote, destination, lambda *step: seen.append(step), patience)
    assert destination.read_bytes() == CONTENT
    assert leftovers(destination) == []
    downloaded = [done for stage, done, _ in seen if stage == "download"]
    assert downloaded == sorted(downloaded)
    assert downloaded[0] == 0
    assert downloaded[-1] == len(CONTENT)
    assert {total for _, _, total in seen} == {len(CONTENT)}
    assert {stage for stage, _, _ in seen} == {"download", "verify"}


@pytest.mark.parametrize("etag", ['"first"', None, 'W/"weak"'])
def test_cut_connection_is_resumed(
    server: FileServer, remote: RemoteFile, destination: Path, patience: Patience, etag: str | None
) -> None:
    server.etags["/model.gguf"] = etag or ""
    server.next_answers("/model.gguf", Answer(cut_at=300_000))
    download(remote, destination, None, patience)
    assert destination.read_bytes() == CONTENT
    assert server.ranges("/model.gguf") == [None, "bytes=300000-"]


def test_stall_is_resumed(server: FileServer, remote: RemoteFile, destination: Path, patience: Patience) -> None:
    server.next_answers("/model.gguf", Answer(stall_at=200_000))
    download(remote, destination, None, patience)
    assert destination.read_bytes() == CONTENT
    assert server.ranges("/model.gguf") == [None, "bytes=200000-"]


def test_interrupted_then_resumed_by_a_later_call(
    server: FileServer, remote: RemoteFile, destination: Path, patience: Patience
) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(remote, destination, interrupt, patience)
    assert not destination.exists()
    part = destination.with_name("model.gguf.part")
    kept = part.stat().st_size
    assert CONTENT.startswith(part.read_bytes())
    assert kept > 100_000
    download(remote, destination, None, patience)
    assert destination.read_bytes() == CONTENT
    assert server.ranges("/model.gguf") == [None, f"bytes={kept}-"]


def test_part_is_whole_already(server: FileServer, remote: RemoteFile, destination: Path, patience: Patience) -> None:
    write_part(destination, CONTENT, '"first"')
    download(remote, destination, None, patience)
    assert destination.read_bytes() == CONTENT
    assert server.requests == []


def write_part(destination: Path, content: bytes, etag: str | None, sha256: str | None = SHA256) -> None:
    destination.parent.mkdir()
    destination.with_name("model.gguf.part").write_bytes(content)
    note = {"etag": etag, "size": len(CONTENT), "sha256": sha256}
    destination.with_name("model.gguf.part.json").write_text(json.dumps(note))


def test_changed_file_is_not_mixed(
    server: FileServer, remote: RemoteFile, destination: Path, patience: Patience
) -> None:
    """The part is of an older version with another tag: If-Range makes the server send all of the new one."""
    write_part(destination, b"x" * 5000, '"older"')
    download(remote, destination, None, patience)
    assert destination.read_bytes() == CONTENT
    assert server.ranges("/model.gguf") == ["bytes=5000-"]


def test_wrong_part_is_found_by_its_checksum(
    server: FileServer, remote: RemoteFile, destination: Path, patience: Patience
) -> None:
    write_part(destination, b"x" * 5000, '"first"')
    download(remote, destination, None, patience)
    assert destination.read_bytes() == CONTENT
    assert server.ranges("/model.gguf") == ["bytes=5000-", None]


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"size": "big", "sha256": null, "etag": 3}', '{"size": 4}'])
def test_part_without_a_sound_note_is_discarded(
    server: FileServer, remote: RemoteFile, destination: Path, patience: Patience, note: str
) -> None:
    write_part(destination, b"x" * 5000, None)
    destination.with_name("model.gguf.part.json").write_text(note)
    download(remote, destination, None, patience)
    assert destination.read_bytes() == CONTENT
    assert server.ranges("/model.gguf") == [None]


def test_part_of_another_checksum_is_discarded(
    server: FileServer, remote: RemoteFile, destination: Path, patience: Patience
) -> None:
    write_part(destination, CONTENT[:5000], '"first"', sha256="0" * 64)
    download(remote, destination, None, patience)
    assert destination.read_bytes() == CONTENT
    assert server.ranges("/model.gguf") == [None]


def test_without_checksum_a_changed_size_restarts(server: FileServer, destination: Path, patience: Patience) -> None:
    server.files["/model.gguf"] = CONTENT[:90_000]
    write_part(destination, b"x" * 50_000, '"first"', sha256=None)
    server.next_answers("/model.gguf", Answer(), Answer())
    server.etags["/model.gguf"] = '"first"'
    download(RemoteFile(f"{server.url}/model.gguf"), destination, None, patience)
    assert destination.read_bytes() == CONTENT[:90_000]


def test_file_shorter_than_the_part(server: FileServer, destination: Path, patience: Patience) -> None:
    server.files["/model.gguf"] = CONTENT[:1000]
    server.etags["/model.gguf"] = '"first"'
    write_part(destination, b"x" * 50_000, '"first"', sha256=None)
    download(RemoteFile(f"{server.url}/model.gguf"), destination, None, patience)
    assert destination.read_bytes() == CONTENT[:1000]


def test_server_without_ranges(server: FileServer, remote: RemoteFile, destination: Path, patience: Patience) -> None:
    server.next_answers("/model.gguf", Answer(cut_at=300_000), Answer(ignore_range=True))
    download(remote, destination, None, patience)
    assert destination.read_bytes() == CONTENT


def test_server_resuming_at_another_place(
    server: FileServer, remote: RemoteFile, destination: Path, patience: Patience
) -> None:
    wrong = Answer(status=206, headers={"Content-Range": f"bytes 7-{len(CONTENT) - 1}/{len(CONTENT)}"}, body=b"no")
    server.next_answers("/model.gguf", Answer(cut_at=300_000), wrong)
    download(remote, destination, None, patience)
    assert destination.read_bytes() == CONTENT


def test_wrong_checksum_is_refused(
    server: FileServer, remote: RemoteFile, destination: Path, patience: Patience
) -> None:
    server.files["/model.gguf"] = CONTENT[::-1]
    with pytest.raises(DownloadError, match="SHA-256"):
        download(remote, destination, None, patience)
    assert not destination.exists()
    assert leftovers(destination) == []
    assert len(server.requests) == 2


def test_wrong_size_is_refused_before_fetching(
    server: FileServer, remote: RemoteFile, destination: Path, patience: Patience
) -> None:
    server.files["/model.gguf"] = CONTENT + b"more"
    with pytest.raises(DownloadError, match="700005 bytes where 700001 were expected"):
        download(remote, destination, None, patience)
    assert not destination.with_name("model.gguf.part").exists()


def test_unknown_size_is_refused(server: FileServer, remote: RemoteFile, destination: Path, patience: Patience) -> None:
    server.next_answers("/model.gguf", Answer(omit_length=True))
    with pytest.raises(DownloadError, match="does not tell the size"):
        download(remote, destination, None, patience)


def test_busy_then_well(server: FileServer, remote: RemoteFile, destination: Path, patience: Patience) -> None:
    busy = Answer(status=503, headers={"Retry-After": "0"}, body=b"")
    server.next_answers("/model.gguf", Answer(status=500, body=b""), busy)
    download(remote, destination, None, patience)
    assert destination.read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_busy_for_ever(
    server: FileServer, remote: RemoteFile, destination: Path, patience: Patience, caplog: pytest.LogCaptureFixture
) -> None:
    server.next_answers("/model.gguf", *[Answer(status=500, body=b"")] * 9)
    with pytest.raises(DownloadError, match="HTTP status 500"):
        download(remote, destination, None, patience)
    assert len(server.requests) == patience.attempts
    assert [record.getMessage() for record in caplog.records if "trying again" in record.getMessage()]


def test_breaks_for_ever_keeps_the_part(
    server: FileServer, remote: RemoteFile, destination: Path, patience: Patience
) -> None:
    server.next_answers("/model.gguf", Answer(cut_at=300_000), *[Answer(cut_at=0)] * 9)
    with pytest.raises(DownloadError, match=r"300\.0 kB fetched so far are kept"):
        download(remote, destination, None, patience)
    assert destination.with_name("model.gguf.part").read_bytes() == CONTENT[:300_000]


def test_missing_file_is_not_asked_for_again(server: FileServer, destination: Path, patience: Patience) -> None:
    with pytest.raises(HTTPStatusError, match="HTTP status 404") as caught:
        download(RemoteFile(f"{server.url}/nothing"), destination, None, patience)
    assert caught.value.status == 404
    assert len(server.requests) == 1


def test_nobody_listens(destination: Path, patience: Patience) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/model.gguf"
        with pytest.raises(DownloadError, match=r"127\.0\.0\.1.*refused"):
            download(RemoteFile(url), destination, None, patience)


def test_no_answer_at_all(server: FileServer, destination: Path) -> None:
    """The connection is taken but nothing comes: ``answer`` bounds it, whatever the socket's own time limit."""
    server.files["/slow"] = b"x"
    server.next_answers("/slow", Answer(before=lambda: __import__("time").sleep(2)))
    impatient = Patience(answer=0.2, stall=60, attempts=1)
    with pytest.raises(DownloadError, match=r"no answer within 0\.2 s"):
        download(RemoteFile(f"{server.url}/slow"), destination, None, impatient)


def test_redirect_keeps_the_token_on_the_same_host_only(
    server: FileServer, remote: RemoteFile, destination: Path, patience: Patience
) -> None:
    port = server.url.rpartition(":")[2]
    server.next_answers("/start", Answer(status=302, headers={"Location": "/middle"}, body=b""))
    # localhost is another host name than 127.0.0.1, as a content delivery network's would be
    there = f"http://localhost:{port}/model.gguf"
    server.next_answers("/middle", Answer(status=307, headers={"Location": there}, body=b""))
    start = RemoteFile(f"{server.url}/start", len(CONTENT), SHA256, {"Authorization": "Bearer secret"})
    download(start, destination, None, patience)
    tokens = {request.path: request.headers.get("Authorization") for request in server.requests}
    assert tokens == {"/start": "Bearer secret", "/middle": "Bearer secret", "/model.gguf": None}


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "/start"])
def test_strange_redirects_are_refused(server: FileServer, destination: Path, patience: Patience, target: str) -> None:
    server.next_answers("/start", *[Answer(status=302, headers={"Location": target}, body=b"")] * 40)
    with pytest.raises(DownloadError):
        download(RemoteFile(f"{server.url}/start"), destination, None, patience)
    assert not destination.exists()


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_only_http(url: str, destination: Path, patience: Patience) -> None:
    with pytest.raises(DownloadError, match="not an http or https address"):
        download(RemoteFile(url), destination, None, patience)


def test_full_disk_is_seen_before_the_download(
    remote: RemoteFile, destination: Path, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(destination.parent.parent)._replace(free=files_module.SPARE_BYTES + len(CONTENT) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match="not enough space"):
        download(remote, destination, None, patience)
    assert leftovers(destination) == []


def test_document_is_bounded(server: FileServer, patience: Patience, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.hub.transfer._LARGEST_DOCUMENT", 1000)
    server.files["/small"], server.files["/large"] = b"x" * 1000, b"x" * 1001
    assert read_document(f"{server.url}/small", {}, patience)[0] == b"x" * 1000
    with pytest.raises(DownloadError, match=r"more than 1\.0 kB"):
        read_document(f"{server.url}/large", {}, patience)


def test_document_is_asked_for_again(server: FileServer, patience: Patience) -> None:
    server.files["/list"] = b"[]"
    server.next_answers("/list", Answer(status=502, body=b""))
    assert read_document(f"{server.url}/list", {}, patience)[0] == b"[]"


def test_waits_grow_up_to_a_limit() -> None:
    patience = Patience(backoff=1.0, longest_backoff=5.0)
    assert [patience.pause(attempt) for attempt in range(2, 7)] == [1.0, 2.0, 4.0, 5.0, 5.0]
