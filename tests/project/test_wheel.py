"""The built wheel, installed in an empty environment outside the checkout, as by ``pip install``."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="needs hatchling: make setup-dev")

PICTURES = """() => {
  const video = document.querySelector("video");
  if (!video || video.videoWidth === 0 || video.readyState < 2) return null;
  return [video.videoWidth, video.videoHeight, video.getVideoPlaybackQuality().totalVideoFrames];
}"""


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        ".",
    ]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``telepresence`` command of an empty environment that holds the wheel alone.

    Its dependencies are read from the environment of the tests (gigabytes are not copied): a path in a ``.pth``
    file is searched after the wheel, and the checkout that is installed there as editable is not followed.
    """
    folder = tmp_path_factory.mktemp("outside") / "venv"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)],
        check=True,
        capture_output=True,
    )
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "telepresence"


def _outside() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def test_the_wheel_carries_what_the_program_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "telepresence/configs/cpu.toml",
        "telepresence/configs/default.toml",
        "telepresence/py.typed",
        "insta_runtime/py.typed",
        "insta_runtime/data/open_head.npz",
        "insta_runtime/cuda/README.md",
        "telepresence/measure/report/page.html",
        "telepresence/measure/report/chart.svg",
    } <= names
    assert any(name.startswith("telepresence/streaming/") and name.endswith(".html") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "tools/", "configs/", "cuda/"))]


def test_doctor_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    report = tmp_path / "doctor.json"
    done = subprocess.run(
        [installed, "doctor", "--json", report],
        cwd=tmp_path,
        env=_outside(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    findings = {finding["topic"]: finding for finding in json.loads(report.read_text())["findings"]}
    assert str(installed.parents[1]) in findings["telepresence"]["found"]
    assert findings["open default head"]["ok"] is True


def test_presets_are_found_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    command = [installed, "evaluate", "absent", "absent", "--device", "cpu", "--config", "huge"]
    done = subprocess.run(command, cwd=tmp_path, env=_outside(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cpu, default" in done.stderr


def test_the_wheel_serves_the_synthetic_actor_to_a_browser(
    installed: Path, tmp_path: Path, start_daemon: Callable[..., Any], chromium: Browser
) -> None:
    daemon = start_daemon("--source", "synthetic", program=(str(installed),), cwd=tmp_path, env=_outside())
    page = chromium.new_page()
    page.goto(daemon.address)
    page.wait_for_function(PICTURES, timeout=120_000)
    width, height, before = page.evaluate(PICTURES)
    assert (width, height) == (512, 512)
    page.wait_for_function(f"() => ({PICTURES})()?.[2] > {before + 10}", timeout=120_000)
    page.close()
    assert daemon.stop() == 0, daemon.output()
    assert "Traceback" not in daemon.output()
