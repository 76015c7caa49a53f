"""The running daemon in a real browser: it displays the actor, then the person before the browser's camera."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from insta_runtime.types import Bytes
from tests.support.small_call import FULL_SIZE_CALL, as_options

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


GRAB = """() => {
    const video = document.getElementById('avatar');
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext('2d').drawImage(video, 0, 0);
    return canvas.toDataURL('image/png').split(',')[1];
}"""


def grab(page: Page) -> Bytes:
    """Image that the page displays now: (H, W, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(page.evaluate(GRAB)))).convert("RGB"))


def grab_when(page: Page, condition: Callable[[Bytes], bool]) -> Bytes:
    """The first image on the page that fulfils ``condition``."""
    end = time.monotonic() + 120
    while not condition(image := grab(page)):
        assert time.monotonic() < end, "no such image is displayed"
        time.sleep(0.2)
    return image


def difference(one: Bytes, other: Bytes) -> float:
    """Mean absolute difference of two images of the same size."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def watching(page: Page) -> None:
    """Wait until the page displays 512 x 512 frames."""
    end = time.monotonic() + 120
    while page.evaluate("document.getElementById('avatar').videoWidth") != 512:
        assert time.monotonic() < end, "no frame arrives"
        time.sleep(0.1)


def film(clip: Path, target: Path) -> list[Bytes]:
    """Write the first second of a clip as the .y4m file that Chromium plays as its camera; returns its frames."""
    import av

    with av.open(str(clip)) as source, av.open(str(target), "w", format="yuv4mpegpipe") as out:
        frames = [frame for _, frame in zip(range(30), source.decode(video=0), strict=False)]
        stream = out.add_stream("wrapped_avframe", rate=30)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
        for frame in frames:
            out.mux(stream.encode(frame.reformat(format="yuv420p")))
        out.mux(stream.encode())
    return [frame.to_ndarray(format="rgb24") for frame in frames]


def skin(picture: Bytes) -> np.ndarray:
    """Median colour of the middle of a face that fills about a third of a square image."""
    side = picture.shape[0]
    middle = picture[int(0.42 * side) : int(0.6 * side), int(0.42 * side) : int(0.58 * side)]
    return np.median(middle.reshape(-1, 3), axis=0)


def test_the_actor_then_a_real_face_before_the_browsers_camera(
    start_daemon: Callable[..., Any],
    launch_chromium: Callable[..., Browser],
    shared: Path,
    models: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    pictures = film(shared / "clips" / "d9.mp4", tmp_path / "camera.y4m")
    browser = launch_chromium(
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={tmp_path / 'camera.y4m'}",
    )
    daemon = start_daemon(
        "--source=synthetic", f"--models={models}", f"--avatar={tmp_path / 'avatar'}", *as_options(FULL_SIZE_CALL)
    )
    page = browser.new_page()
    page.goto(f"{daemon.address}/")
    watching(page)
    card = grab(page)
    assert card.mean() > 10

    home = daemon.wait_until(lambda status: status["mesh_psnr_db"] is not None)

    def shows_face(image: Bytes) -> bool:
        red, _, blue = skin(image)
        return bool(difference(image, card) > 3 and red > blue + 15)

    actor = grab_when(page, shows_face)

    page.get_by_role("button", name="Use my camera").click()
    page.get_by_role("button", name="Agree and start").click()
    guest = daemon.wait_until(lambda status: status["source"] == "browser" and status["mesh_psnr_db"] is not None)
    assert guest["avatar"] != home["avatar"]
    assert guest["errors"] == []
    grab_when(page, lambda image: np.abs(skin(image) - skin(pictures[0])).max() < 60 and difference(image, actor) > 3)

    page.get_by_role("button", name="Stop using my camera").click()
    back = daemon.wait_until(lambda status: status["source"] == "synthetic")
    assert back["avatar"] == home["avatar"]
    assert back["steps"] >= home["steps"]

    page.get_by_role("button", name="Use my camera").click()  # consent was given before
    again = daemon.wait_until(lambda status: status["source"] == "browser" and status["camera_fps"] > 0.0)
    assert again["avatar"] == guest["avatar"]
    request.getfixturevalue("vision")
    # The avatar is known: from here on the images stay in the browser, and landmarks drive the avatar.
    page.get_by_role("button", name="Keep my video on this device").click()
    page.wait_for_function("() => !document.querySelector('#kept').hidden || trouble.textContent", timeout=120_000)
    assert page.locator("#trouble").text_content() == ""
    taken, private = -1, daemon.wait_until(lambda status: status["camera_fps"] > 0.0)
    end = time.monotonic() + 120
    while private["frame_filter"]["accepted"] != taken:  # images that were on their way may still be learned
        assert time.monotonic() < end, "nothing is learned from frames without images"
        taken = private["frame_filter"]["accepted"]
        time.sleep(3.0)
        private = daemon.wait_until(lambda status: status["tracking"]["state"] == "tracking")
    assert private["source"] == "browser"
    assert private["camera_fps"] > 0.0
    assert private["errors"] == []
    assert private["subject"]["residual_mm"] < 1.15, "the identity is still verified"
    page.locator("#avatar").focus()
    page.keyboard.press("ArrowRight")
    daemon.wait_until(lambda status: status["orbit"]["yaw"] > 0.0)
    page.keyboard.press("Home")
    page.get_by_role("button", name="Calibrate again").click()
    daemon.wait_until(lambda status: [event["kind"] for event in status["events"]] == ["calibration"])
    daemon.wait_until(lambda status: status["tracking"]["state"] == "tracking")
