"""Virtual camera: offers the rendered avatar to other programs on this computer as a camera device."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from telepresence.runtime.clock import LoopTimer
from telepresence.runtime.failure_policy import one_line
from telepresence.runtime.frames import OutputFrame

if TYPE_CHECKING:
    from pyvirtualcam import Camera

log = logging.getLogger("telepresence")

JOIN_S: Final = 5.0
"""Maximum seconds to wait for the virtual camera's thread to end."""
INSTALL: Final = {
    "linux": "load its module with 'modprobe v4l2loopback exclusive_caps=1' (Debian: v4l2loopback-dkms)",
    "darwin": "install OBS, and start its virtual camera once",
    "win32": "install OBS 26 or later",
}
"""Instruction how to install a virtual camera, by value of ``sys.platform``."""


class VirtualCamera:
    """Sends the newest output frame to a virtual camera device at a fixed rate, repeating it if needed.

    Without such a device, or when it fails, ``failed`` is called with a message, and the call continues.
    """

    def __init__(self, side: int, fps: int, failed: Callable[[str], None]) -> None:
        """``side`` is the width and height of the frames in pixels, ``fps`` the rate at which they are sent.

        ``failed`` is called at most once, with an error message.
        """
        self._side, self._fps, self._failed = side, fps, failed
        self._newest: OutputFrame | None = None
        self._stopping = threading.Event()
        self._camera: Camera | None = None
        self._thread = threading.Thread(target=self._run, name="virtual camera", daemon=True)

    def start(self) -> None:
        """Open the device and start sending frames; if there is no device, ``failed`` is called instead."""
        if find_spec("pyvirtualcam") is None:
            return self._failed("there is none: the Python package is not installed (pip install pyvirtualcam)")
        from pyvirtualcam import Camera

        try:
            self._camera = Camera(self._side, self._side, self._fps)
        except (RuntimeError, OSError):  # RuntimeError: no backend found a device
            return self._failed(f"there is none: {INSTALL.get(sys.platform, 'this system is not known to have any')}")
        log.info("the avatar is the camera %s", self._camera.device, extra={"event": "virtual_camera"})
        return self._thread.start()

    def push_frame(self, frame: OutputFrame) -> None:
        """Set the frame that the camera sends; never waits, may be called from any thread."""
        self._newest = frame

    @property
    def open(self) -> bool:
        """Whether the camera is open and sends frames."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Close the device.  May be called twice, and before `start`."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        camera = self._camera
        assert camera is not None, "the camera is opened before the thread starts"
        timer = LoopTimer(self._fps)
        try:
            while timer.wait(self._stopping):
                if self._newest is not None:
                    camera.send(self._newest.rgb)
        except (RuntimeError, OSError) as error:
            self._failed(f"it accepts no frames any more: {str(error).splitlines()[0].lower()}")
        except Exception as error:
            log.error("the virtual camera failed because of a bug", exc_info=True, extra={"event": "stage_failed"})
            self._failed(f"it has ended: {one_line(error)}")
        finally:
            camera.close()
