"""A local camera, through FFmpeg's capture devices (V4L2, AVFoundation, DirectShow)."""

from __future__ import annotations

import errno
import sys
import threading
import time
from typing import TYPE_CHECKING

from insta_runtime.errors import UserError
from telepresence.runtime.frames import CameraFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.sources.colour import SrgbConverter

if TYPE_CHECKING:
    from av.container import InputContainer

_CAPTURE_OPTIONS: tuple[dict[str, str], ...] = (
    {"video_size": "640x480", "framerate": "30", "input_format": "mjpeg"},
    {"video_size": "640x480", "framerate": "30"},
    {},
)
"""Capture options to try, the best first: compressed frames fit into the bandwidth of USB 2."""

_ALTERNATIVE = "plug one in, or use --source file:VIDEO or --source synthetic"


def capture_format() -> str:
    """Name of FFmpeg's input format for cameras on this system."""
    return {"darwin": "avfoundation", "win32": "dshow"}.get(sys.platform, "v4l2")


def default_webcam() -> str | None:
    """Device name of the first camera of this machine; None if there is none."""
    import av

    try:
        devices = av.enumerate_input_devices(capture_format())
    except (av.error.FFmpegError, ValueError, OSError):
        return None
    cameras = [d for d in devices if "video" in d.media_types] or ([] if sys.platform == "darwin" else devices)
    return _address(cameras[0].name) if cameras else None


def _address(device: str) -> str:
    """FFmpeg's address of a device given as number, path or name (``0``, ``/dev/video0``, a camera's name)."""
    if sys.platform == "win32" and not device.startswith("video="):
        return f"video={device}"
    if sys.platform.startswith("linux") and device.isdigit():
        return f"/dev/video{device}"
    return device


class WebcamSource:
    """A local webcam.

    A separate thread reads every frame as the driver delivers it, so that frames never wait in the driver's queue;
    `read` returns the newest one.
    """

    def __init__(self, device: str | None = None, *, capture: str | None = None) -> None:
        """Open ``device`` (None: the first camera) through FFmpeg's input format ``capture`` (None: this system's).

        Raises UserError if there is no such camera, it is in use, or this user has no permission to use it.
        """
        address = _address(device) if device else default_webcam()
        if address is None:
            raise UserError(f"no webcam found: {_ALTERNATIVE}")
        self._address = address
        self._container = _open(address, capture or capture_format())
        stream = self._container.streams.video[0]
        self.name = address
        self.fps = float(stream.average_rate or 30)
        self._mailbox: Mailbox[CameraFrame] = Mailbox("webcam")
        self._refusal: str | None = None  # why the frames cannot be used
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._capture, name="webcam", daemon=True)
        self._thread.start()

    def _capture(self) -> None:
        import av

        colours = SrgbConverter()
        try:
            for frame_id, frame in enumerate(self._container.decode(video=0)):
                if self._stopping.is_set():
                    break
                self._mailbox.put(CameraFrame(frame_id, time.monotonic_ns(), colours.convert(frame)))
        except UserError as error:
            self._refusal = f"webcam {self._address}: {error}"
        except (av.error.FFmpegError, EOFError):
            pass  # unplugged; read() raises the error
        finally:
            self._mailbox.close()
            self._container.close()

    def read(self, timeout: float) -> CameraFrame | None:
        """Newest frame that was not read yet; None after ``timeout`` seconds.  UserError once the camera has ended."""
        frame = self._mailbox.get(timeout)
        if frame is None and self._mailbox.closed and not self._stopping.is_set():
            raise UserError(self._refusal or f"webcam {self._address} stopped sending frames: plug it in again")
        return frame

    def close(self) -> None:
        """Stop the capture thread and release the camera."""
        self._stopping.set()
        self._thread.join(timeout=2.0)


def _open(address: str, capture: str) -> InputContainer:
    import av

    refusal: Exception | None = None
    for options in _CAPTURE_OPTIONS:
        try:
            container = av.open(address, format=capture, options={**options, "fflags": "nobuffer"})
        except (av.error.FFmpegError, OSError, ValueError) as error:
            refusal = error
            if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EBUSY):
                break  # other options would fail alike
            continue
        if container.streams.video:
            return container
        container.close()
    raise UserError(_explain(address, refusal))


def _explain(address: str, error: Exception | None) -> str:
    """One-line error message for a camera that could not be opened."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EACCES, errno.EPERM):
        return f"webcam {address}: no permission: allow this user to use cameras (on Linux: usermod -aG video USER)"
    if number == errno.EBUSY:
        return f"webcam {address} is in use by another program: close that program, or name another webcam"
    if number == errno.ENOENT:
        return f"webcam {address}: no such device: {_ALTERNATIVE}"
    return f"webcam {address} cannot be opened as a camera: {_ALTERNATIVE}"
