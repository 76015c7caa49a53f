"""A camera that other programs of this machine see, and that shows the avatar."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from telepresence.runtime.clock import LoopTimer
from telepresence.runtime.frames import OutputFrame
from telepresence.runtime.policy import one_line

if TYPE_CHECKING:
    from pyvirtualcam import Camera

log = logging.getLogger("telepresence")

JOIN_S: Final = 5.0
INSTALL: Final = {
    "linux": "load its module with 'modprobe v4l2loopback exclusive_caps=1' (Debian: v4l2loopback-dkms)",
    "darwin": "install OBS, and start its virtual camera once",
    "win32": "install OBS 26 or later",
}
"""What a system needs that has no virtual camera."""


class VirtualCamera:
    """Sends the newest picture ``fps`` times a second to the virtual camera of this machine, repeated where it stands.

    Where there is none, or none any more, one line says so and what to do, and the call goes on.
    """

    def __init__(self, side: int, fps: int, failed: Callable[[str], None]) -> None:
        """``side`` of the pictures, px; ``failed`` hears, at most once, why nothing is shown."""
        self._side, self._fps, self._failed = side, fps, failed
        self._newest: OutputFrame | None = None
        self._stopping = threading.Event()
        self._camera: Camera | None = None
        self._thread = threading.Thread(target=self._run, name="virtual camera", daemon=True)

    def start(self) -> None:
        """Open the camera, if there is one."""
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
        """Make ``frame`` what the camera sees; never waits, any thread."""
        self._newest = frame

    @property
    def open(self) -> bool:
        """Whether there is a camera that shows anything."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Close the camera; may be called twice, and without a start."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        camera = self._camera
        assert camera is not None, "it was opened"
        pace = LoopTimer(self._fps)
        try:
            while pace.wait(self._stopping):
                if self._newest is not None:
                    camera.send(self._newest.rgb)
        except (RuntimeError, OSError) as error:
            self._failed(f"it takes no pictures any more: {str(error).splitlines()[0].lower()}")
        except Exception as error:
            log.error("a bug has ended the virtual camera", exc_info=True, extra={"event": "stage_failed"})
            self._failed(f"it has ended: {one_line(error)}")
        finally:
            camera.close()
