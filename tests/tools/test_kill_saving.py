"""Processes that learn and save are killed at random moments; nothing but the last moments is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_five_deaths_leave_an_avatar_each(root: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(root / "tools" / "kill_saving.py"),
        "--kills",
        "5",
        "--json",
        str(tmp_path / "f.json"),
    ]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "f.json").read_text())
    assert (figures["kills"], figures["lost"], figures["older"]) == (5, 0, 0)
    assert figures["without_training"] == 0
    assert figures["steps"] > 5
