"""A window on this machine that shows what the viewers see, beside what the camera sees.

It lives in a process of its own, as its toolkit wants the main thread on some systems and must not be able to take the
call down; pictures and figures reach it through shared memory, its words come back through a pipe.
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
from telepresence.outputs.shared_ring import SharedRing
from telepresence.outputs.preview_image import CAPACITY, PreviewImage
from telepresence.outputs.window import FIGURES_BYTES, RingNames, open_window
from telepresence.runtime.frames import OutputFrame, TrackedFrame

log = logging.getLogger(__name__)

JOIN_S: Final = 3.0
NOTICE_S: Final = 4.0
"""For so long the window says why something that was asked for cannot be."""


class PreviewCommand(StrEnum):
    """What a key in the window asks of the call."""

    QUIT = "quit"
    MUTE = "mute"  # or be heard again
    CALIBRATE = "calibrate"
    FREEZE = "freeze"  # or learn on


class PreviewWindow:
    """Shows the newest pictures and figures in a resizable window; whoever hands them over never waits for it.

    `show` belongs to the render thread, `see` to the tracking thread, `tell` to the supervisor.  Closing the window
    only closes it.
    """

    def __init__(self, wish: Callable[[PreviewCommand], None], title: str = "Telepresence") -> None:
        """``wish`` is called on a thread of the window's own; UserError says why it cannot be granted."""
        self._wish = wish
        self._title = title
        self._lock = threading.Lock()  # between whoever hands something over and `stop`
        self._rings: tuple[SharedRing, ...] = ()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._words: Connection | None = None
        self._listener: threading.Thread | None = None
        self._notice = ("", 0.0)
        self._stopping = False

    def start(self) -> None:
        """Open the window.  Where there is no pygame or no screen, one line says so in the log and all goes on."""
        if find_spec("pygame") is None:
            log.warning("no preview: pygame-ce is not installed (pip install pygame-ce); the call goes on")
            return
        context = multiprocessing.get_context("spawn")
        self._rings = (SharedRing(CAPACITY), SharedRing(CAPACITY), SharedRing(FIGURES_BYTES))
        self._words, theirs = context.Pipe()
        rings = RingNames(*(ring.name for ring in self._rings))
        self._process = context.Process(
            target=open_window, args=(rings, theirs, self._title), name="preview", daemon=True
        )
        self._process.start()
        theirs.close()
        self._listener = threading.Thread(target=self._listen, args=(self._words,), name="preview", daemon=True)
        self._listener.start()

    @property
    def open(self) -> bool:
        """Whether the window's process runs."""
        return self._process is not None and self._process.is_alive()

    def push_frame(self, frame: OutputFrame) -> None:
        """``frame`` is what viewers see now."""
        self._write(0, PreviewImage(frame.t_capture_ns, frame.rgb, drawn=frame.render_inputs is not None).parts())

    def push_camera_frame(self, tracked: TrackedFrame) -> None:
        """``tracked`` is what the camera sees now."""
        observation = tracked.observation
        matte = observation.alpha if observation is not None else None
        self._write(1, PreviewImage(tracked.t_capture_ns, tracked.crop_rgb, matte).parts())

    def push_status(self, status: Mapping[str, Any]) -> None:
        """How the call stands, by the names of `/status`; for the line below the pictures."""
        text, until = self._notice
        figures = {name: status.get(name) for name in ("state", "psnr_db", "viewers", "driver")}
        figures["frozen"] = status.get("training", {}).get("state") == "frozen"
        figures["muted"] = (status.get("sound") or {}).get("muted")
        figures["notice"] = text if time.monotonic() < until else None
        self._write(2, (json.dumps(figures).encode(),))

    def stop(self) -> None:
        """Close the window; may be called twice."""
        self._stopping = True
        if self._words is not None:
            with suppress(OSError):
                self._words.send("stop")
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
            if self._rings and self.open:
                self._rings[ring].write(*parts)

    def _listen(self, words: Connection) -> None:
        try:
            while True:
                word, text = words.recv()
                if word == "failed":
                    log.warning("no preview: %s; the call goes on", text)
                    return
                self._grant(PreviewCommand(word))
        except (EOFError, OSError):
            if not self._stopping:
                log.info("the preview window is closed; the call goes on")

    def _grant(self, wish: PreviewCommand) -> None:
        self._stopping = self._stopping or wish is PreviewCommand.QUIT
        try:
            self._wish(wish)
        except UserError as error:
            self._notice = (str(error), time.monotonic() + NOTICE_S)
