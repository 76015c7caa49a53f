"""A window on this machine that shows what the viewers see.

It lives in a process of its own, as its toolkit wants the main thread on some systems and must not be able to take the
call down; pictures reach it through shared memory, its words come back through a pipe.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from telepresence.frames import ShownFrame
from telepresence.outputs.ring import PictureRing

if TYPE_CHECKING:
    import pygame

log = logging.getLogger(__name__)

MAX_SIDE = 1024
WINDOW = (640, 640)
REFRESH = 60  # looks for a new picture a second
JOIN_S = 3.0

BACKGROUND = (13, 15, 18)
INK = (233, 236, 239)


class PreviewWindow:
    """Shows pictures in a resizable window.  ``q`` in it asks for the end of the call; closing it only closes it."""

    def __init__(self, on_quit: Callable[[], None], title: str = "Telepresence") -> None:
        """``on_quit`` is called on a thread of the window's own, at most once."""
        self._on_quit = on_quit
        self._title = title
        self._lock = threading.Lock()  # between `show` and `stop`
        self._ring: PictureRing | None = None
        self._process: multiprocessing.process.BaseProcess | None = None
        self._words: Connection | None = None
        self._listener: threading.Thread | None = None
        self._stopping = False

    def start(self) -> None:
        """Open the window.  Where there is no pygame or no screen, one line says so in the log and all goes on."""
        if find_spec("pygame") is None:
            log.warning("no preview: pygame-ce is not installed (pip install pygame-ce); the call goes on")
            return
        context = multiprocessing.get_context("spawn")
        self._ring = PictureRing(MAX_SIDE)
        self._words, theirs = context.Pipe()
        self._process = context.Process(
            target=_window, args=(self._ring.name, theirs, self._title), name="preview", daemon=True
        )
        self._process.start()
        theirs.close()
        self._listener = threading.Thread(target=self._listen, args=(self._words,), name="preview", daemon=True)
        self._listener.start()

    @property
    def open(self) -> bool:
        """Whether the window's process runs."""
        return self._process is not None and self._process.is_alive()

    def show(self, frame: ShownFrame, hud: str = "") -> None:
        """Make ``frame`` the picture in the window, with the line ``hud`` at its foot; nothing without a window."""
        with self._lock:
            if self._ring is not None and self.open:
                self._ring.write(frame.rgb, hud)

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
            if self._ring is not None:
                self._ring.close()
                self._ring = None

    def _listen(self, words: Connection) -> None:
        try:
            while True:
                word, text = words.recv()
                if word == "quit":
                    self._on_quit()
                elif word == "failed":
                    log.warning("no preview: %s; the call goes on", text)
                    return
        except (EOFError, OSError):
            if not self._stopping:
                log.info("the preview window is closed; the call goes on")


def _window(ring_name: str, words: Connection, title: str) -> None:
    """The process of the window: draws the newest picture until it is closed or the daemon is gone."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import signal

    import pygame

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C in the terminal is the daemon's to handle
    ring = PictureRing(MAX_SIDE, ring_name)
    try:
        pygame.display.init()
        pygame.font.init()
        pygame.display.set_caption(title)
        screen = pygame.display.set_mode(WINDOW, pygame.RESIZABLE)
    except pygame.error as error:
        words.send(("failed", f"no window can be opened here ({str(error).lower()})"))
        return
    try:
        _draw_until_closed(ring, words, screen)
    finally:
        pygame.quit()
        ring.close()


def _draw_until_closed(ring: PictureRing, words: Connection, screen: pygame.Surface) -> None:
    import pygame

    clock = pygame.time.Clock()
    font = pygame.font.Font(None, 24)
    sequence = 0
    picture: pygame.Surface | None = None
    text = "waiting for the first picture"
    stale = True
    while not words.poll():  # a word from the daemon, or the end of the pipe: either way, close
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                return
            if event.type == pygame.KEYDOWN and event.key == pygame.K_q:
                words.send(("quit", ""))
                return
            if event.type in (pygame.VIDEORESIZE, pygame.VIDEOEXPOSE):
                stale = True  # pygame has resized the screen's surface in place
        newest = ring.read(sequence)
        if newest is not None:
            sequence, text = newest.sequence, newest.text
            height, width = newest.rgb.shape[:2]
            picture = pygame.image.frombuffer(newest.rgb.tobytes(), (width, height), "RGB")
        if newest is not None or stale:
            _draw(screen, picture, text, font)
            pygame.display.flip()
            stale = False
        clock.tick(REFRESH)


def _draw(screen: pygame.Surface, picture: pygame.Surface | None, text: str, font: pygame.font.Font) -> None:
    """The picture as large as it fits, centred, and the text on a dark band at the foot."""
    import pygame

    screen.fill(BACKGROUND)
    width, height = screen.get_size()
    if picture is not None:
        scale = min(width / picture.get_width(), height / picture.get_height())
        size = (max(1, round(picture.get_width() * scale)), max(1, round(picture.get_height() * scale)))
        screen.blit(pygame.transform.smoothscale(picture, size), ((width - size[0]) // 2, (height - size[1]) // 2))
    if text:
        line = font.render(text, True, INK)
        band = pygame.Surface((width, line.get_height() + 16), pygame.SRCALPHA)
        band.fill((*BACKGROUND, 190))
        screen.blit(band, (0, height - band.get_height()))
        screen.blit(line, (12, height - band.get_height() + 8))
