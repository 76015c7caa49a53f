"""Fixtures of all tests: seeds, the folder of test material, a real browser, a running daemon."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["TELEPRESENCE_CHECKS"] = "1"  # thread ownership; read on import, and inherited by daemons that tests start
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `telepresence` does; numpy reads it when it is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # likewise; read when torch is imported

import numpy as np
import pytest

from tests.support import running_daemon
from tests.support.running_daemon import ROOT, RunningDaemon

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

    from telepresence.tracking.face_models import FaceModels

BROWSER_WAIT_MS = 120_000
"""Milliseconds that a page waits for an element or a navigation before the test fails."""

CHROMIUM_FLAGS = (
    "--no-sandbox",  # containers run as root
    "--autoplay-policy=no-user-gesture-required",
    # Media between two processes of a machine that may have no network but loopback:
    "--allow-loopback-in-peer-connection",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what tests save out of the data and state folders of the developer."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one torch thread, because tests share the machine with a browser and a daemon."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads_use_their_own_objects() -> Iterator[None]:
    """Fail a test in which a thread used an object of another one, even if a worker has caught the error."""
    from telepresence.runtime import ownership

    ownership.violations.clear()
    yield
    found = list(ownership.violations)
    ownership.violations.clear()
    assert not found


@pytest.fixture(autouse=True)
def _no_real_time_priority() -> Iterator[None]:
    """Fail a test after which this process runs before all others, and so would everything that it starts."""
    yield
    if hasattr(os, "sched_getscheduler"):
        assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.fixture(scope="session")
def root() -> Path:
    """Root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real clips and model files, which is not part of the repository."""
    folder = Path(os.environ.get("TELEPRESENCE_SHARED", ROOT.parent / "shared"))
    if not (folder / "clips").is_dir():
        pytest.skip(f"needs the test material in {folder} (TELEPRESENCE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def models(shared: Path) -> Path:
    """Folder of MediaPipe's model files."""
    return shared / "models"


@pytest.fixture(scope="session")
def face_models(models: Path) -> FaceModels:
    """MediaPipe's face models, run by LiteRT."""
    from telepresence.tracking.face_models import FaceModels

    return FaceModels(models)


@pytest.fixture(scope="session")
def vision(models: Path) -> None:
    """Skips the test unless MediaPipe's package for browsers is available or can be downloaded."""
    from insta_runtime.errors import UserError
    from telepresence.tracking.model_files import vision_path

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
            return patient(browser)

        yield launch


def patient(browser: Browser) -> Browser:
    """``browser`` with pages that wait `BROWSER_WAIT_MS` for elements and navigation: a busy machine fails no test."""
    new_context, new_page = browser.new_context, browser.new_page

    def patient_context(**options: Any) -> BrowserContext:
        context = new_context(**options)
        context.set_default_timeout(BROWSER_WAIT_MS)
        return context

    def patient_page(**options: Any) -> Page:
        page = new_page(**options)
        page.set_default_timeout(BROWSER_WAIT_MS)
        return page

    browser.new_context, browser.new_page = patient_context, patient_page  # type: ignore[method-assign]
    return browser


@pytest.fixture
def chromium(launch_chromium: Callable[..., Browser]) -> Browser:
    """A headless Chromium with an empty profile."""
    return launch_chromium()


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., RunningDaemon]]:
    """``start_daemon("--source", "synthetic")``: the daemon on a free port, once ``/healthz`` answers.

    ``program`` replaces ``[python, -m, telepresence]``, ``cwd`` and ``env`` go to the process.
    """
    running: list[RunningDaemon] = []

    def start(*arguments: str, program: tuple[str, ...] | None = None, **options: Any) -> RunningDaemon:
        log = tmp_path / f"daemon{len(running)}.log"
        daemon = running_daemon.start_daemon(log, arguments, program, **options)
        running.append(daemon)
        running_daemon.wait_for_address(daemon)
        return daemon

    yield start
    try:
        for daemon in running:
            daemon.stop()
    finally:
        for daemon in running:
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait()
