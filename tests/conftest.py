"""What tests share: seeds, the folder of test material, a real browser."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `telepresence` does; numpy reads it when it is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # likewise; read when torch is imported

import numpy as np
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent

CHROMIUM_FLAGS = (
    "--no-sandbox",  # containers run as root
    "--autoplay-policy=no-user-gesture-required",
    # Media between two processes of a machine that may have no network but loopback:
    "--allow-loopback-in-peer-connection",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the avatars that tests learn out of the developer's data folder."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests share the machine with a browser and a daemon."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real clips and model files that is not part of the repository."""
    folder = Path(os.environ.get("TELEPRESENCE_SHARED", ROOT.parent / "shared"))
    if not (folder / "clips").is_dir():
        pytest.skip(f"needs the test material in {folder} (TELEPRESENCE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def models(shared: Path) -> Path:
    """MediaPipe's model files."""
    return shared / "models"


@pytest.fixture(scope="session")
def vision(models: Path) -> None:
    """MediaPipe's package for browsers, fetched if need be."""
    from insta_runtime.errors import UserError
    from telepresence.tracking.models import vision_path

    try:
        vision_path(models)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def launch_chromium() -> Iterator[Callable[..., Browser]]:
    """Start Debian's Chromium, headless, with more flags if wanted: ``launch_chromium("--flag") -> Browser``.

    Playwright's synchronous interface owns the event loop of the main thread while it runs: no async test may use it.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs a browser: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())

        def launch(*flags: str, **options: Any) -> Browser:
            browser = playwright.chromium.launch(
                executable_path=program, headless=True, args=[*CHROMIUM_FLAGS, *flags], **options
            )
            stack.callback(browser.close)
            return browser

        yield launch


@pytest.fixture
def chromium(launch_chromium: Callable[..., Browser]) -> Browser:
    """A headless Chromium with an empty profile."""
    return launch_chromium()


@dataclass
class RunningDaemon:
    """``telepresence run`` in a process of its own, serving at ``address``; all that it prints goes to ``log``."""

    process: subprocess.Popen[bytes]
    log: Path
    address: str = ""

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.address}/status", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def wait_until(self, condition: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        """The first ``/status`` that fulfils ``condition``; fails with what was printed after ``seconds``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            status = self.status()
            if condition(status):
                return status
            time.sleep(0.2)
        pytest.fail(f"not within {seconds} s: {self.status()}\n{self.output()}")

    def stop(self) -> int:
        """Ctrl-C; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., RunningDaemon]]:
    """``start_daemon("--source", "synthetic")``: the daemon on a free port, once ``/healthz`` answers.

    ``program`` replaces ``[python, -m, telepresence]``, ``cwd`` and ``env`` go to the process.
    """
    running: list[RunningDaemon] = []

    def start(*arguments: str, program: tuple[str, ...] | None = None, **options: Any) -> RunningDaemon:
        command = [*(program or (sys.executable, "-m", "telepresence")), "run", "--port", "0", *arguments]
        log = tmp_path / f"daemon{len(running)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **{"cwd": ROOT, **options}
            )
        daemon = RunningDaemon(process, log)
        running.append(daemon)
        end = time.monotonic() + 90
        while time.monotonic() < end and process.poll() is None:
            found = re.search(r"http://127\.0\.0\.1:\d+", daemon.output())
            if found:
                daemon.address = found.group()
                try:
                    urllib.request.urlopen(f"{daemon.address}/healthz", timeout=10).close()
                except OSError:
                    pass
                else:
                    return daemon
            time.sleep(0.1)
        pytest.fail(f"the daemon does not serve:\n{daemon.output()}")

    yield start
    for daemon in running:
        try:
            daemon.stop()
        except subprocess.TimeoutExpired:
            daemon.process.kill()
            daemon.process.wait()
