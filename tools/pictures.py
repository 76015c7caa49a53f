"""Make the images of the documents: ``python tools/pictures.py [--avatar DIR] [--page-after SECONDS]``.

``docs/page.png`` is a screenshot of the daemon's page with the synthetic actor as the source.  ``docs/strip.png`` shows
held-back frames of the actor above, and below them the same frames rendered by an avatar (``telepresence fit synthetic
--out DIR``).
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from insta_runtime.avatar import Avatar
from insta_runtime.evaluation.protocol import split
from insta_runtime.render.renderer import Renderer
from telepresence.actor.actor import Actor
from telepresence.actor.performance import Performance
from telepresence.measure.offline.recordings import ACTOR_FPS, ACTOR_FRAMES

DOCS = Path(__file__).resolve().parent.parent / "docs"
SIDE = 320  # pixels of a rendered frame
WINDOW = (60, 24, 200, 236)  # left, top, width and height of the part that the strip shows
MOMENTS = 7  # frames of the strip


def strip(avatar_path: Path) -> None:
    """Write the strip: held-back frames of the actor above, the avatar below, over white."""
    actor = Actor()
    avatar = Avatar.load(avatar_path, actor.head, "cpu")
    renderer, performance = Renderer(avatar.model), Performance(actor.head.expression_names, 0)
    _, held = split(ACTOR_FRAMES, 0.125)
    rows: list[list[np.ndarray]] = [[], []]
    for number in np.linspace(held[0], held[-1], MOMENTS).round().astype(int):
        state = performance(number / ACTOR_FPS)
        camera = actor.camera(SIDE).cropped(*WINDOW)
        rgb, alpha = actor.render(state, camera)
        matte = alpha[..., None] / 255.0
        rows[0].append((rgb * matte + 255.0 * (1.0 - matte)).astype(np.uint8))
        rows[1].append(renderer.render(state, camera).over(np.ones(3, np.float32)))
    picture = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    Image.fromarray(picture).save(DOCS / "strip.png", optimize=True)


def page(seconds: float) -> None:
    """Write the screenshot of the page, ``seconds`` after the page was opened."""
    command = [sys.executable, "-m", "telepresence", "run", "--source", "synthetic", "--port", "0"]
    command += ["--avatar", "out/pictures.avatar", "--zmq", "tcp://127.0.0.1:5590"]
    shutil.rmtree("out/pictures.avatar", ignore_errors=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        address = next(word for line in daemon.stdout for word in line.split() if word.startswith("http"))
        try:
            with sync_playwright() as playwright:
                flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
                flags += ["--allow-loopback-in-peer-connection", "--disable-features=WebRtcHideLocalIpsWithMdns"]
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
                view = browser.new_page(viewport={"width": 1280, "height": 800})
                view.goto(address)
                time.sleep(seconds)
                view.screenshot(path=DOCS / "page.png")
                browser.close()
        finally:
            daemon.send_signal(signal.SIGINT)
            daemon.wait(60)


def main() -> None:
    """Parse the arguments and write the images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--avatar", type=Path, help="write the strip, with this avatar of the actor")
    parser.add_argument("--page-after", type=float, help="write the screenshot, so many seconds into the call")
    wanted = parser.parse_args()
    if wanted.avatar:
        strip(wanted.avatar)
    if wanted.page_after:
        page(wanted.page_after)


if __name__ == "__main__":
    main()
