"""A camera on this machine, through FFmpeg's capture devices (V4L2, AVFoundation, DirectShow)."""

from __future__ import annotations

import errno
import sys
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from insta_runtime.errors import UserError
from telepresence.runtime.frames import CameraFrame
from telepresence.runtime.mailbox import Mailbox

if TYPE_CHECKING:
    from av.container import InputContainer

_WISHES: tuple[dict[str, str], ...] = (
    {"video_size": "640x480", "framerate": "30", "input_format": "mjpeg"},
    {"video_size": "640x480", "framerate": "30"},
    {},
)
"""What to ask of the camera, the best first: compressed pictures need no more than USB 2 offers."""

_OTHERWISE = "plug one in, or use --source file:VIDEO or --source synthetic"


def capture_format() -> str:
    """FFmpeg's name for cameras on this system."""
    return {"darwin": "avfoundation", "win32": "dshow"}.get(sys.platform, "v4l2")


def default_webcam() -> str | None:
    """The device name of the first camera of this machine, None if there is none."""
    import av

    try:
        devices = av.enumerate_input_devices(capture_format())
    except (av.error.FFmpegError, ValueError, OSError):
        return None
    cameras = [d for d in devices if "video" in d.media_types] or ([] if sys.platform == "darwin" else devices)
    return _address(cameras[0].name) if cameras else None


def _address(device: str) -> str:
    """What FFmpeg opens for a device as a person names it (``0``, ``/dev/video0``, a camera's name)."""
    if sys.platform == "win32" and not device.startswith("video="):
        return f"video={device}"
    if sys.platform.startswith("linux") and device.isdigit():
        return f"/dev/video{device}"
    return device


class WebcamSource:
    """A webcam.

    A thread of its own takes every picture from the driver as it comes, so that the driver never hands out
    an old one; readers get the newest.
    """

    def __init__(self, device: str | None = None, *, capture: str | None = None) -> None:
        """Open ``device`` (the first camera if None) through FFmpeg's ``capture`` device (this system's if None).

        Raises UserError when there is no such camera, when it is taken, or when this user may not use it.
        """
        address = _address(device) if device else default_webcam()
        if address is None:
            raise UserError(f"no webcam found; {_OTHERWISE}")
        self._address = address
        self._container = _open(address, capture or capture_format())
        stream = self._container.streams.video[0]
        self.name = address
        self.fps = float(stream.average_rate or 30)
        self._mailbox: Mailbox[CameraFrame] = Mailbox("webcam")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._capture, name="webcam", daemon=True)
        self._thread.start()

    def _capture(self) -> None:
        import av

        try:
            for frame_id, frame in enumerate(self._container.decode(video=0)):
                if self._stopping.is_set():
                    break
                rgb = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
                self._mailbox.put(CameraFrame(frame_id, time.monotonic_ns(), rgb))
        except (av.error.FFmpegError, EOFError):
            pass  # unplugged; the reader is told below
        finally:
            self._mailbox.close()
            self._container.close()

    def read(self, timeout: float) -> CameraFrame | None:
        frame = self._mailbox.get(timeout)
        if frame is None and self._mailbox.closed and not self._stopping.is_set():
            raise UserError(f"webcam {self._address} stopped sending pictures; plug it in again")
        return frame

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=2.0)


def _open(address: str, capture: str) -> InputContainer:
    import av

    refusal: Exception | None = None
    for wish in _WISHES:
        try:
            container = av.open(address, format=capture, options={**wish, "fflags": "nobuffer"})
        except (av.error.FFmpegError, OSError, ValueError) as error:
            refusal = error
            if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EBUSY):
                break  # asking for another format will not help
            continue
        if container.streams.video:
            return container
        container.close()
    raise UserError(_explain(address, refusal))


def _explain(address: str, error: Exception | None) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EACCES, errno.EPERM):
        return f"webcam {address}: no permission; allow this user to use cameras (on Linux: usermod -aG video USER)"
    if number == errno.EBUSY:
        return f"webcam {address} is in use by another program; close that program, or name another webcam"
    if number == errno.ENOENT:
        return f"webcam {address}: no such device; {_OTHERWISE}"
    return f"webcam {address} cannot be opened as a camera; {_OTHERWISE}"
