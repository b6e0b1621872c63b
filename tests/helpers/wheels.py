"""Wheels made on the spot."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping

from file_server import FileServer


def make_wheel(members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def serve_package(
    server: FileServer, package: str, wheels: Mapping[str, bytes], yanked: frozenset[str] = frozenset()
) -> None:
    """Offer wheels, by file name, in a PEP 691 index at /simple."""
    entries = []
    for filename, content in wheels.items():
        server.files[f"/files/{filename}"] = content
        digest = hashlib.sha256(content).hexdigest()
        url = f"../../files/{filename}"
        entries.append(
            {
                "filename": filename,
                "url": url,
                "hashes": {"sha256": digest},
                "size": len(content),
                "yanked": filename in yanked,
            }
        )
    server.files[f"/simple/{package}/"] = json.dumps({"meta": {"api-version": "1.1"}, "files": entries}).encode()
    server.types[f"/simple/{package}/"] = "application/vnd.pypi.simple.v1+json"
