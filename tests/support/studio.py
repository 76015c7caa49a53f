"""A running media server that streams a moving test pattern, for tests with a browser or a WebRTC peer."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from insta_runtime.errors import UserError
from telepresence.display.backgrounds import Backgrounds
from telepresence.runtime.audio import AudioBus
from telepresence.runtime.frames import CameraFrame, OutputFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.streaming import DaemonInterface, MediaServer, StreamSettings
from telepresence.streaming.http.settings import AccessSettings
from telepresence.tracking.browser_files import vision_file
from tests.support.waiting import until

SIZE = 512

READ_PIXELS = """selector => {
    const video = document.querySelector(selector), canvas = document.createElement('canvas');
    canvas.width = video.videoWidth; canvas.height = video.videoHeight;
    canvas.getContext('2d').drawImage(video, 0, 0);
    return canvas.toDataURL('image/png').split(',')[1];
}"""


def pattern(index: int) -> np.ndarray:
    """(512, 512, 3) uint8: sliding colours, with corners that tell left from right and red from blue."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    phase = 2 * np.pi * (x + 3 * index) / SIZE
    image = np.stack([128 + 80 * np.sin(phase), 60 + 120 * y / SIZE, 128 + 80 * np.cos(phase)], -1)
    image[:96, :96] = (200, 40, 40)
    image[:96, -96:] = (40, 180, 60)
    image[-96:, :96] = (40, 60, 200)
    return image.astype(np.uint8)


@cache
def film() -> list[np.ndarray]:
    """64 images of the pattern in motion, which can be repeated without a jump."""
    return [pattern(8 * i) for i in range(64)]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images, dB."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


class Studio:
    """A running media server, fed with the pattern 30 times a second; records the commands that reach its daemon.

    Attributes:
        status: JSON object of `GET /status`, without the background.
        camera: mailbox of browser camera frames; camera_events: True at each begin of a camera, False at its end.
        recent: the newest 90 images that were streamed.
        answers: answers to the question whose face it is, which is open while ``status`` says so.
        commands: commands of data channels, like ``("freeze", True)``.
        refusal: text with which every command is refused; None: commands are carried out.
        landmarks_allowed: whether landmarks are enough to track the subject.
        models: folder with the files of MediaPipe.
    """

    def __init__(self, **settings: Any) -> None:
        """``settings``: fields of `StreamSettings`."""
        self.status: dict[str, Any] = {"state": "waiting"}
        self.camera: Mailbox[CameraFrame] = Mailbox("camera")
        self.camera_events: list[bool] = []
        self.recent: deque[np.ndarray] = deque(maxlen=90)
        self.backgrounds = Backgrounds("torso")
        self.answers: list[bool] = []
        self.audio = AudioBus()
        self.commands: list[tuple[Any, ...]] = []
        self.refusal: str | None = None
        self.landmarks_allowed = False
        self.models: Path | None = None
        # Tests send more requests than people do.  On a busy machine a browser takes its connection for a narrow one.
        settings = {"port": 0, "access": AccessSettings(offers=100_000), "adapt": False, **settings}
        self.server = MediaServer(StreamSettings(**settings), _StudioDaemon(self))
        self._running = True
        self._feeder = threading.Thread(target=self._feed)

    def __enter__(self) -> Studio:
        self.server.start()
        self._feeder.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._feeder.join()
        self.server.stop()

    def _feed(self) -> None:
        images = film()
        index = 0
        while self._running:
            self.recent.append(images[index % 64])
            self.server.push_frame(OutputFrame(index, time.monotonic_ns(), images[index % 64]))
            index += 1
            time.sleep(1 / 30)

    @staticmethod
    def until(condition: Callable[[], Any], seconds: float = 120.0, what: object = "the condition") -> Any:
        """`waiting.until` with pauses that leave the processor to the server and the browser."""
        return until(condition, seconds, what, pause=0.02)

    @classmethod
    def watching(cls, page: Any, frames: int = 20) -> None:
        """Wait until the page has shown more than ``frames`` frames."""
        cls.until(lambda: page.evaluate("window.__stats ? window.__stats.frames : 0") > frames)

    @staticmethod
    def grab(page: Any, selector: str = "#avatar") -> np.ndarray:
        """(H, W, 3) uint8: the frame that the video element shows now."""
        data = base64.b64decode(page.evaluate(READ_PIXELS, selector))
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    psnr = staticmethod(psnr)

    def likeness(self, image: np.ndarray) -> float:
        """PSNR (dB) of ``image`` against the most similar of the recently streamed images."""
        return max(psnr(image, shown) for shown in tuple(self.recent))


class _StudioDaemon(DaemonInterface):
    """The daemon of a `Studio`: records commands in it, and reads its status from it."""

    def __init__(self, studio: Studio) -> None:
        super().__init__(studio.camera, studio.audio)
        self._studio = studio

    def status(self) -> Mapping[str, Any]:
        return {"background": str(self._studio.backgrounds.chosen), **self._studio.status}

    def metrics(self) -> str:
        return "up 1\n"

    def on_browser_camera(self, active: bool) -> None:
        self._studio.camera_events.append(active)

    def background(self) -> Mapping[str, Any]:
        backgrounds = self._studio.backgrounds
        return {"background": str(backgrounds.chosen), "choices": backgrounds.choices}

    def choose_background(self, text: str) -> None:
        self._studio.backgrounds.choose(text)

    def answer_identity(self, same: bool) -> None:
        if not self._studio.status.get("subject", {}).get("question_open"):
            raise UserError("the identity is not in question")
        self._studio.answers.append(same)
        self._studio.status["subject"] = {"question_open": False}

    def freeze(self, on: bool) -> None:
        self._record("freeze", on)
        self._studio.status["training"] = {"state": "frozen" if on else "learning"}

    def mute(self, on: bool) -> None:
        self._record("mute", on)
        self._studio.status["audio"] = {"muted": on}

    def recalibrate(self) -> None:
        self._record("recalibrate")

    def orbit(self, yaw: float, pitch: float) -> None:
        self._record("orbit", yaw, pitch)

    def withhold(self) -> None:
        if self._studio.refusal is None and not self._studio.landmarks_allowed:
            raise UserError("the avatar is not known yet")
        self._record("withhold")

    def tracking_file(self, name: str) -> bytes:
        return vision_file(name, self._studio.models)

    def _record(self, *command: Any) -> None:
        if self._studio.refusal is not None:
            raise UserError(self._studio.refusal)
        self._studio.commands.append(command)


class DataChannelCalls:
    """Opens calls with data channels, without a browser.

    Attributes:
        last: the peer connection of the newest call.
    """

    last: Any = None

    @asynccontextmanager
    async def __call__(self, address: str, labels: tuple[str, ...], camera: bool = False) -> AsyncIterator[list[Any]]:
        """Data channels named ``labels`` of a call at ``address``; ``camera``: the peer can send video, too."""
        from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

        pc = self.last = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        pc.addTransceiver("video", direction="sendrecv" if camera else "recvonly")
        channels = [pc.createDataChannel(label) for label in labels]
        try:
            await pc.setLocalDescription(await pc.createOffer())
            headers = {"Content-Type": "application/sdp"}
            async with (
                aiohttp.ClientSession() as http,
                http.post(f"{address}call", data=pc.localDescription.sdp, headers=headers) as answer,
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
