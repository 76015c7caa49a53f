"""Preview window: displays the avatar and the camera frames of a call on this computer.

The window runs in a separate process, since its toolkit needs the main thread on some systems and must not be able to
end the call.  Frames and status values are sent to it through shared memory; its key commands come back
through a pipe.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any, Final

from insta_runtime.errors import UserError
from telepresence.outputs.preview_image import CAPACITY, PreviewImage
from telepresence.outputs.shared_ring import SharedRing
from telepresence.outputs.window import FIGURES_BYTES, RingNames, open_window
from telepresence.runtime.frames import OutputFrame, TrackedFrame

log = logging.getLogger(__name__)

JOIN_S: Final = 3.0
"""Maximum seconds to wait for the end of the window's process, and of the thread that reads its commands."""
NOTICE_S: Final = 4.0
"""Seconds for which the window displays why a command failed."""


class PreviewCommand(StrEnum):
    """Command to the call that is sent by pressing a key in the preview window."""

    QUIT = "quit"
    MUTE = "mute"  # or unmute
    CALIBRATE = "calibrate"
    FREEZE = "freeze"  # or continue training


class PreviewWindow:
    """Resizable window with the newest output frame, camera frame and status values; the push methods never block.

    `push_frame` is called by the render thread, `push_camera_frame` by the tracking thread, `push_status` by the
    supervisor thread.  Closing the window does not end the call.
    """

    def __init__(self, on_command: Callable[[PreviewCommand], None], title: str = "Telepresence") -> None:
        """``on_command`` is called on a separate thread; a UserError that it raises is displayed in the window."""
        self._on_command = on_command
        self._title = title
        self._lock = threading.Lock()  # keeps `stop` from closing a ring that is being written
        self._rings: tuple[SharedRing, ...] = ()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._listener: threading.Thread | None = None
        self._notice = ("", 0.0)
        self._stopping = False
        self._hidden = False  # the window has opened the rings, and their names are gone

    def start(self) -> None:
        """Open the window.  Without pygame or a screen a warning is logged, and there is no window."""
        if find_spec("pygame") is None:
            log.warning("no preview: pygame-ce is not installed (pip install pygame-ce); the call continues")
            return
        context = multiprocessing.get_context("spawn")
        self._rings = (SharedRing(CAPACITY), SharedRing(CAPACITY), SharedRing(FIGURES_BYTES))
        self._pipe, theirs = context.Pipe()
        rings = RingNames(*(ring.name for ring in self._rings))
        self._process = context.Process(
            target=open_window, args=(rings, theirs, self._title), name="preview", daemon=True
        )
        self._process.start()
        theirs.close()
        self._listener = threading.Thread(target=self._listen, args=(self._pipe,), name="preview", daemon=True)
        self._listener.start()

    @property
    def open(self) -> bool:
        """Whether the window's process is running."""
        return self._process is not None and self._process.is_alive()

    def push_frame(self, frame: OutputFrame) -> None:
        """Display an output frame, as viewers receive it."""
        self._write(0, PreviewImage(frame.t_capture_ns, frame.rgb, drawn=frame.render_inputs is not None).parts())

    def push_camera_frame(self, tracked: TrackedFrame) -> None:
        """Display the tracked crop of a camera frame."""
        observation = tracked.observation
        matte = observation.alpha if observation is not None else None
        self._write(1, PreviewImage(tracked.t_capture_ns, tracked.crop_rgb, matte).parts())

    def push_status(self, status: Mapping[str, Any]) -> None:
        """Display status values below the image; ``status`` is the JSON object of `/status`."""
        text, until = self._notice
        figures = {name: status.get(name) for name in ("state", "psnr_db", "viewers", "driver")}
        figures["frozen"] = status.get("training", {}).get("state") == "frozen"
        figures["muted"] = (status.get("audio") or {}).get("muted")
        figures["notice"] = text if time.monotonic() < until else None
        self._write(2, (json.dumps(figures).encode(),))

    def stop(self) -> None:
        """Close the window; may be called twice."""
        self._stopping = True
        if self._pipe is not None:
            with suppress(OSError):
                self._pipe.send("stop")
        if self._process is not None:
            self._process.join(JOIN_S)
            if self._process.is_alive():
                self._process.kill()
                self._process.join(JOIN_S)
        if self._listener is not None and self._listener is not threading.current_thread():
            self._listener.join(JOIN_S)
        with self._lock:
            for ring in self._rings:
                ring.close()
            self._rings = ()

    def _write(self, ring: int, parts: tuple[Any, ...]) -> None:
        with self._lock:
            if self._hidden and self._rings and self.open:
                self._rings[ring].write(*parts)

    def _hide_rings(self) -> None:
        """Let images into the rings, which no other process can open and no kill can leave behind from now on."""
        with self._lock:
            for ring in self._rings:
                ring.hide()
            self._hidden = True

    def _listen(self, pipe: Connection) -> None:
        try:
            while True:
                command, text = pipe.recv()
                if command == "failed":
                    log.warning("no preview: %s; the call continues", text)
                    return
                if command == "opened":
                    self._hide_rings()
                    continue
                self._run_command(PreviewCommand(command))
        except (EOFError, OSError):
            if not self._stopping:
                log.info("the preview window is closed; the call continues")

    def _run_command(self, command: PreviewCommand) -> None:
        self._stopping = self._stopping or command is PreviewCommand.QUIT
        try:
            self._on_command(command)
        except UserError as error:
            self._notice = (str(error), time.monotonic() + NOTICE_S)
