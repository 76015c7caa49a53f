"""A media server with a moving test pattern, and what is needed to look at it through a browser."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

from insta_runtime.errors import UserError
from telepresence.display.backgrounds import Backgrounds
from telepresence.runtime.audio import SoundBus
from telepresence.runtime.frames import CameraFrame, ShownFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.streaming import Controls, MediaServer, StreamHooks, StreamSettings
from telepresence.streaming.access_settings import AccessSettings
from telepresence.tracking.browser_files import vision_file

SIZE = 512


def pattern(index: int) -> np.ndarray:
    """(512, 512, 3) uint8: sliding colours, and corners that tell left from right and red from blue."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    phase = 2 * np.pi * (x + 3 * index) / SIZE
    picture = np.stack([128 + 80 * np.sin(phase), 60 + 120 * y / SIZE, 128 + 80 * np.cos(phase)], -1)
    picture[:96, :96] = (200, 40, 40)
    picture[:96, -96:] = (40, 180, 60)
    picture[-96:, :96] = (40, 60, 200)
    return picture.astype(np.uint8)


@cache
def film() -> list[np.ndarray]:
    """The pattern in motion; the last picture leads on to the first."""
    return [pattern(8 * i) for i in range(64)]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


PIXELS = """selector => {
    const video = document.querySelector(selector), canvas = document.createElement('canvas');
    canvas.width = video.videoWidth; canvas.height = video.videoHeight;
    canvas.getContext('2d').drawImage(video, 0, 0);
    return canvas.toDataURL('image/png').split(',')[1];
}"""


class Studio:
    """A running server, fed with the pattern at 30 pictures a second; remembers what it showed and what it was told."""

    def __init__(self, **settings: Any) -> None:
        self.status: dict[str, Any] = {"state": "waiting"}
        self.camera: Mailbox[CameraFrame] = Mailbox("camera")
        self.camera_events: list[bool] = []
        self.recent: deque[np.ndarray] = deque(maxlen=90)
        self.backgrounds = Backgrounds("torso")
        self.answers: list[bool] = []  # to the question whose face it is, which is asked while the status says so
        self.sound = SoundBus()
        self.asked: list[tuple[Any, ...]] = []  # over a data channel
        self.refuses: str | None = None  # why what is asked cannot be done
        self.known = False  # whether landmarks are enough
        self.models: Path | None = None
        hooks = StreamHooks(
            lambda: {"background": str(self.backgrounds.chosen), **self.status},
            lambda: "up 1\n",
            self.camera,
            self.camera_events.append,
            lambda: {"background": str(self.backgrounds.chosen), "choices": self.backgrounds.choices},
            self.backgrounds.choose,
            self._answer,
            controls=Controls(
                freeze=partial(self._ask, "freeze"),
                mute=partial(self._ask, "mute"),
                recalibrate=partial(self._ask, "recalibrate"),
                orbit=partial(self._ask, "orbit"),
                withhold=partial(self._ask, "withhold"),
            ),
            vision=lambda name: vision_file(name, self.models),
            sound=self.sound,
        )
        # A test asks faster than people.  To a browser that gets too little of a busy machine its link looks thin.
        settings = {"port": 0, "access": AccessSettings(offers=100_000), "adapt": False, **settings}
        self.server = MediaServer(StreamSettings(**settings), hooks)
        self._going = True
        self._feeder = threading.Thread(target=self._feed)

    def _answer(self, same: bool) -> None:
        if not self.status.get("person", {}).get("asked"):
            raise UserError("nobody asks who this is")
        self.answers.append(same)
        self.status["person"] = {"asked": False}

    def _ask(self, *what: Any) -> None:
        if self.refuses is not None:
            raise UserError(self.refuses)
        if what[0] == "withhold" and not self.known:
            raise UserError("the avatar is not known yet")
        self.asked.append(what)
        if what[0] == "freeze":
            self.status["training"] = {"state": "frozen" if what[1] else "learning"}
        if what[0] == "mute":
            self.status["sound"] = {"muted": what[1]}

    def __enter__(self) -> Studio:
        self.server.start()
        self._feeder.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._feeder.join()
        self.server.stop()

    def _feed(self) -> None:
        loop = film()
        index = 0
        while self._going:
            self.recent.append(loop[index % 64])
            self.server.show(ShownFrame(index, time.monotonic_ns(), loop[index % 64]))
            index += 1
            time.sleep(1 / 30)

    @staticmethod
    def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Wait until ``condition`` holds, and give its value."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, "it never came to pass"
            time.sleep(0.02)
        return value

    @classmethod
    def watching(cls, page: Any, frames: int = 20) -> None:
        """Wait until the page has shown some pictures."""
        cls.until(lambda: page.evaluate("window.__stats ? window.__stats.frames : 0") > frames)

    @staticmethod
    def grab(page: Any, selector: str = "#avatar") -> np.ndarray:
        """(H, W, 3) uint8: what the video element shows now."""
        data = base64.b64decode(page.evaluate(PIXELS, selector))
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    psnr = staticmethod(psnr)

    def likeness(self, picture: np.ndarray) -> float:
        """PSNR (dB) of ``picture`` against the most similar of the pictures shown lately."""
        return max(psnr(picture, shown) for shown in tuple(self.recent))


@pytest.fixture
def studio_at() -> type[Studio]:
    """Makes a studio with settings of the stream, to be entered."""
    return Studio


@pytest.fixture
def studio() -> Iterator[Studio]:
    with Studio() as studio:
        yield studio


@pytest.fixture
def studio_type() -> type[Studio]:
    """For tests that want a studio with settings of their own."""
    return Studio


@pytest.fixture
def call_daemon() -> Callable[..., Any]:
    """``call_daemon(address, labels, camera=False)``: open data channels of a call, without a browser."""
    from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

    @asynccontextmanager
    async def call(address: str, labels: tuple[str, ...], camera: bool = False) -> AsyncIterator[list[Any]]:
        pc = call.last = RTCPeerConnection(RTCConfiguration(iceServers=[]))  # type: ignore[attr-defined]
        pc.addTransceiver("video", direction="sendrecv" if camera else "recvonly")
        channels = [pc.createDataChannel(label) for label in labels]
        try:
            await pc.setLocalDescription(await pc.createOffer())
            async with (
                aiohttp.ClientSession() as http,
                http.post(
                    f"{address}call", data=pc.localDescription.sdp, headers={"Content-Type": "application/sdp"}
                ) as answer,
            ):
                assert answer.status == 201, await answer.text()
                await pc.setRemoteDescription(RTCSessionDescription(await answer.text(), "answer"))
            for _ in range(200):
                if channels[0].readyState == "open":
                    break
                await asyncio.sleep(0.05)
            yield channels
        finally:
            await pc.close()

    return call


@pytest.fixture(scope="session")
def camera_film(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A motion-JPEG file that Chromium plays as its camera, and the (480, 512, 3) pictures in it."""
    import av

    path = tmp_path_factory.mktemp("camera") / "film.mjpeg"
    pictures: list[np.ndarray] = []
    with av.open(str(shared / "clips" / "d9.mp4")) as clip, path.open("wb") as film:
        for frame in clip.decode(video=0):
            picture = frame.to_ndarray(format="rgb24")
            pictures.append(picture)
            Image.fromarray(picture).save(film, "JPEG", quality=92)
            if len(pictures) == 60:
                break
    return path, pictures
