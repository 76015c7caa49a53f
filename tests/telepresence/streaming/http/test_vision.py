"""Files for face tracking in the browser, served by the daemon."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from insta_runtime.errors import UserError
from telepresence.tracking.model_files import VISION, vision_path


def get(studio: Any, name: str) -> tuple[int, str, bytes]:
    """Status, media type and body."""
    try:
        with urllib.request.urlopen(f"{studio.server.address}vision/{name}", timeout=600) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def test_tracking_files_are_served_and_contact_no_other_server(studio: Any, models: Path, vision: None) -> None:
    studio.models = models
    for name, media_type, begin in (
        ("vision.js", "text/javascript; charset=utf-8", b""),
        ("loader.js", "text/javascript; charset=utf-8", b""),
        ("vision.wasm", "application/wasm", b"\0asm"),
        ("model.task", "application/octet-stream", b"\0\0PK"),
    ):
        status, found, body = get(studio, name)
        assert (status, found) == (200, media_type)
        assert body.startswith(begin)
        assert len(body) > 100_000
        if name == "vision.js":
            assert b"https://" not in body, "a later version of the package reports its use"
    for name in ("other.js", "..%2Fapp.js", "%2e%2e%2f%2e%2e%2fserver.py", "vision_bundle.mjs"):
        assert get(studio, name)[0] == 404


def test_a_missing_file_is_reported_in_one_line(studio: Any, tmp_path: Path) -> None:
    studio.models = tmp_path / "none"
    status, _, body = get(studio, "model.task")
    assert status == 503
    assert b"correct --models" in body
    (tmp_path / VISION.name).write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the expected"):
        vision_path(tmp_path)
