"""Process of the preview window: displays the newest images until the window is closed or the daemon ends."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from telepresence.outputs.preview_image import CAPACITY, GAIN, ImageDifference, PreviewImage, PreviewView
from telepresence.outputs.shared_ring import SharedRing

if TYPE_CHECKING:
    import pygame

FIGURES_BYTES: Final = 4096
"""Maximum size in bytes of the status values, as JSON, that are displayed below the image."""
REFRESH: Final = 60
"""Number of times per second that the window checks for new images."""
RATE_S: Final = 2.0
"""Length in seconds of the sliding window over which frame rate and latency are measured."""
STALE_S: Final = 1.0
"""Age in seconds from which the last camera image and the last pair of images are no longer displayed."""
REMEMBERED: Final = 12
"""Number of newest camera images that are kept for pairing with the avatar frames rendered for them."""

SIDE: Final = 0.62
"""Width and height of the image in a new window, as a fraction of the screen's height."""
BAR: Final = 1 / 16
"""Height of the status bar, as a fraction of the window's shorter side."""
BAR_PX: Final = (30, 72)
"""Minimum and maximum height of the status bar in pixels."""

BACKGROUND: Final = (13, 15, 18)
"""Background colour of the window, 8-bit sRGB."""
INK: Final = (233, 236, 239)
"""Colour of important text, 8-bit sRGB."""
FAINT: Final = (139, 147, 156)
"""Colour of less important text, 8-bit sRGB."""
CHIP: Final = (38, 43, 50)
"""Background colour of the labels in the status bar, 8-bit sRGB."""
STATES: Final = {
    "live": (74, 201, 126),
    "learning": (236, 178, 74),
    "calibrating": (96, 165, 250),
}
"""Colour (8-bit sRGB) of the dot in the status bar by session state; `FAINT` for other states."""

KEYS: Final = (
    ("1 2 3 4", "avatar, camera, both, difference"),
    ("V", "next view"),
    ("M", "mute or unmute"),
    ("C", "calibrate again"),
    ("F", "freeze the avatar or continue training"),
    ("I", "show or hide the figures"),
    ("H", "show or hide this help"),
    ("Q", "end the call"),
)
"""(Key, meaning) of each command of the window, as displayed by the key H."""


class RingNames(NamedTuple):
    """Names of the shared memory rings read by the window: output frames, camera images, and status values."""

    shown: str
    camera: str
    figures: str


def open_window(rings: RingNames, pipe: Connection, title: str) -> None:
    """Open the preview window and run it until it is closed, or ``pipe`` receives anything or ends.

    ``("opened", "")`` is sent through ``pipe`` once the rings are open, then commands as ``(command, "")``; only
    ``("failed", reason)`` if no window can be opened.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_WINDOWS_DPI_AWARENESS", "permonitorv2")
    import signal

    import pygame

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C in the terminal is the daemon's to handle
    try:
        pygame.display.init()
        pygame.font.init()
        side = round(SIDE * pygame.display.get_desktop_sizes()[0][1])
        window = pygame.Window(title, (side, side + _bar_height(side, side)), resizable=True, allow_high_dpi=True)
    except pygame.error as error:
        pipe.send(("failed", f"no window can be opened here ({str(error).lower()})"))
        return
    receiver = PreviewReceiver(rings)
    try:
        pipe.send(("opened", ""))
        _run(window, receiver, pipe)
    except (EOFError, OSError):  # the daemon has ended
        pass
    finally:
        receiver.close()
        pygame.quit()


class PreviewReceiver:
    """Reads images and status values from the shared rings, and pairs avatar frames with their camera images.

    Attributes:
        shown: newest output frame; None before the first.
        figures: newest status values, by name; empty before the first.
    """

    def __init__(self, rings: RingNames) -> None:
        self._rings = SharedRing(CAPACITY, rings.shown), SharedRing(CAPACITY, rings.camera)
        self._figures_ring = SharedRing(FIGURES_BYTES, rings.figures)
        self._sequences = [0, 0, 0]
        self._camera_images: deque[PreviewImage] = deque(maxlen=REMEMBERED)
        self._camera_at = 0.0
        self._drawn: deque[tuple[float, float]] = deque()  # (monotonic second, age in s) of rendered heads
        self.shown: PreviewImage | None = None
        self._pair: tuple[PreviewImage, PreviewImage] | None = None
        self._paired_at = 0.0
        self.figures: dict[str, Any] = {}

    def refresh(self, camera: bool = True) -> bool:
        """Read new images and status values; True if the window must be redrawn.

        ``camera``: whether the current view displays camera images.
        """
        fresh = False
        if (data := self._next(1, self._rings[1])) is not None:
            self._camera_images.append(PreviewImage.read(data))
            self._camera_at, fresh = time.monotonic(), camera
        if (data := self._next(0, self._rings[0])) is not None:
            self.shown, fresh = PreviewImage.read(data), True
            if self.shown.drawn:
                self._drawn.append((time.monotonic(), (time.monotonic_ns() - self.shown.t_capture_ns) / 1e9))
        if (data := self._next(2, self._figures_ring)) is not None:
            self.figures, fresh = json.loads(data), True
        if fresh and self.shown is not None:
            matching = (image for image in self._camera_images if image.t_capture_ns == self.shown.t_capture_ns)
            partner = next(matching, None) if self.shown.drawn else None
            if partner is not None:
                self._pair, self._paired_at = (self.shown, partner), time.monotonic()
        while self._drawn and self._drawn[0][0] < time.monotonic() - RATE_S:
            self._drawn.popleft()
        return fresh

    @property
    def camera(self) -> PreviewImage | None:
        """The newest camera image; None if it is older than `STALE_S`."""
        fresh = self._camera_images and time.monotonic() - self._camera_at < STALE_S
        return self._camera_images[-1] if fresh else None

    @property
    def pair(self) -> tuple[PreviewImage, PreviewImage] | None:
        """(Rendered head, camera image) of the newest common capture time; None if older than `STALE_S`."""
        return self._pair if time.monotonic() - self._paired_at < STALE_S else None

    @property
    def fps(self) -> float:
        """Rendered heads received per second, over the last `RATE_S` seconds."""
        return len(self._drawn) / RATE_S

    @property
    def latency_ms(self) -> float | None:
        """Median time from capture to this window in ms, over the last `RATE_S`; None without a rendered head."""
        ages = sorted(age for _, age in self._drawn)
        return 1000.0 * ages[len(ages) // 2] if ages else None

    def close(self) -> None:
        """Release the shared rings."""
        for ring in (*self._rings, self._figures_ring):
            ring.close()

    def _next(self, number: int, ring: SharedRing) -> bytes | None:
        message = ring.read(self._sequences[number])
        if message is None:
            return None
        self._sequences[number] = message.sequence
        return message.data


def _run(window: pygame.Window, receiver: PreviewReceiver, pipe: Connection) -> None:
    import pygame

    clock = pygame.time.Clock()
    painter = PreviewPainter()
    commands = {pygame.K_m: "mute", pygame.K_c: "calibrate", pygame.K_f: "freeze", pygame.K_q: "quit"}
    views = dict(zip((pygame.K_1, pygame.K_2, pygame.K_3, pygame.K_4), PreviewView, strict=True))
    stale = True

    def set_view(view: PreviewView) -> None:
        if (view is PreviewView.BOTH) is not (painter.view is PreviewView.BOTH):
            _widen(window, 2.0 if view is PreviewView.BOTH else 0.5)
        painter.view = view

    while not pipe.poll():  # a message from the daemon or the end of the pipe: both close the window
        for event in pygame.event.get():
            if event.type in (pygame.QUIT, pygame.WINDOWCLOSE):
                return
            if event.type == pygame.KEYDOWN:
                if (command := commands.get(event.key)) is not None:
                    pipe.send((command, ""))
                    if command == "quit":
                        return
                elif event.key in views:
                    set_view(views[event.key])
                elif event.key == pygame.K_v:
                    every = list(PreviewView)
                    set_view(every[(every.index(painter.view) + 1) % len(every)])
                elif event.key == pygame.K_i:
                    painter.bar = not painter.bar
                elif event.key == pygame.K_h:
                    painter.keys = not painter.keys
            stale = True
        if receiver.refresh(camera=painter.view in (PreviewView.CAMERA, PreviewView.BOTH)) or stale:
            painter.draw(window.get_surface(), receiver)
            window.flip()
            stale = False
        clock.tick(REFRESH)


class PreviewPainter:
    """Draws the contents of the preview window.

    Attributes:
        view: images that are displayed.
        bar: whether the status bar is displayed.
        keys: whether the list of key commands is displayed.
    """

    def __init__(self) -> None:
        self.view = PreviewView.AVATAR
        self.bar = True
        self.keys = False
        self._fonts: dict[int, pygame.font.Font] = {}

    def draw(self, screen: pygame.Surface, receiver: PreviewReceiver) -> None:
        """Draw the whole window to ``screen``, with the newest images and status values of ``receiver``."""
        import pygame

        screen.fill(BACKGROUND)
        width, height = screen.get_size()
        unit = _bar_height(width, height)
        room = pygame.Rect(0, 0, width, height - unit if self.bar else height)
        if self.view is PreviewView.BOTH:
            beside = room.width >= room.height
            half = pygame.Rect(0, 0, room.width // 2, room.height) if beside else room.move(0, 0)
            half.height = room.height if beside else room.height // 2
            other = half.move(half.width, 0) if beside else half.move(0, half.height)
            self._draw_camera(screen, half, receiver, unit)
            self._draw_avatar(screen, other, receiver, unit)
        elif self.view is PreviewView.CAMERA:
            self._draw_camera(screen, room, receiver, unit)
        elif self.view is PreviewView.DIFFERENCE:
            self._draw_difference(screen, room, receiver, unit)
        else:
            self._draw_avatar(screen, room, receiver, unit)
        if self.bar:
            self._draw_figures(screen, pygame.Rect(0, height - unit, width, unit), receiver)
        if self.keys:
            self._draw_help(screen, room, unit)

    def _draw_avatar(self, screen: pygame.Surface, room: pygame.Rect, receiver: PreviewReceiver, unit: int) -> None:
        tag = "avatar" if self.view is PreviewView.BOTH else ""
        self._draw_image(screen, room, receiver.shown, tag, "waiting for the first frame", unit)

    def _draw_camera(self, screen: pygame.Surface, room: pygame.Rect, receiver: PreviewReceiver, unit: int) -> None:
        self._draw_image(screen, room, receiver.camera, "camera", "no camera image", unit)

    def _draw_difference(self, screen: pygame.Surface, room: pygame.Rect, receiver: PreviewReceiver, unit: int) -> None:
        image, tag = None, ""
        if (pair := receiver.pair) is not None:
            difference = ImageDifference.of(*pair)
            image = PreviewImage(0, difference.rgb)
            tag = f"difference x {GAIN}   {difference.psnr_db:.1f} dB"
        self._draw_image(screen, room, image, tag, "nothing to compare: the camera does not drive the avatar", unit)

    def _draw_image(
        self, screen: pygame.Surface, room: pygame.Rect, image: PreviewImage | None, tag: str, otherwise: str, unit: int
    ) -> None:
        """Draw an image as large as possible, centred, with a tag in its corner; without an image, a text."""
        import pygame

        if image is None:
            words = self._text(otherwise, unit, FAINT)
            screen.blit(words, words.get_rect(center=room.center))
            return
        height, width = image.rgb.shape[:2]
        scale = min(room.width / width, room.height / height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        scaled = pygame.image.frombuffer(image.rgb.tobytes(), (width, height), "RGB").convert(screen)
        place = pygame.Rect((0, 0), size)
        place.center = room.center
        screen.blit(pygame.transform.smoothscale(scaled, size), place)
        if tag:
            words = self._text(tag, unit, INK)
            chip = words.get_rect().inflate(unit * 3 // 5, unit // 4)
            chip.topleft = (place.left + unit // 3, place.top + unit // 3)
            self._draw_plate(screen, chip, unit // 4, 190)
            screen.blit(words, words.get_rect(center=chip.center))

    def _draw_figures(self, screen: pygame.Surface, bar: pygame.Rect, receiver: PreviewReceiver) -> None:
        import pygame

        figures, unit = receiver.figures, bar.height
        gap, middle = unit // 2, bar.centery
        if notice := figures.get("notice"):
            words = self._text(str(notice), unit, INK)
            if words.get_width() > bar.width - gap:
                words = self._text(str(notice), round(unit * (bar.width - gap) / words.get_width()), INK)
            screen.blit(words, words.get_rect(center=bar.center))
            return
        state = str(figures.get("state") or "starting")
        pygame.draw.circle(screen, STATES.get(state, FAINT), (bar.left + gap + unit // 8, middle), unit // 8)
        left = self._draw_text(screen, state, bar.left + gap + unit // 2, middle, unit, INK) + gap
        latency, psnr = receiver.latency_ms, figures.get("psnr_db")
        known = [f"{receiver.fps:.0f} fps"]
        known += [f"{latency:.0f} ms"] if latency is not None else []
        known += [f"{psnr:.1f} dB"] if psnr is not None else []
        for text in known:
            left = self._draw_text(screen, text, left, middle, unit, FAINT) + gap
        right = bar.right - gap // 2
        chips = [name for name in ("muted", "frozen") if figures.get(name)]
        chips += [_driver_text(figures.get("driver")), _viewers_text(figures.get("viewers"))]
        for text in ["H: keys", *(chip for chip in chips if chip)]:
            words = self._text(text, unit, INK)
            chip = words.get_rect().inflate(gap, unit // 5)
            chip.midright = (right, middle)
            if chip.left < left:
                break
            pygame.draw.rect(screen, CHIP, chip, border_radius=unit // 4)
            screen.blit(words, words.get_rect(center=chip.center))
            right = chip.left - gap // 3

    def _draw_help(self, screen: pygame.Surface, room: pygame.Rect, unit: int) -> None:
        import pygame

        lines = [(self._text(key, unit, INK), self._text(meaning, unit, FAINT)) for key, meaning in KEYS]
        column = max(key.get_width() for key, _ in lines) + unit
        width = column + max(meaning.get_width() for _, meaning in lines)
        step = round(lines[0][0].get_height() * 1.6)
        plate = pygame.Rect(0, 0, width + 2 * unit, step * len(lines) + unit)
        plate.center = room.center
        self._draw_plate(screen, plate, unit // 3, 225)
        for row, (key, meaning) in enumerate(lines):
            y = plate.top + unit // 2 + row * step + step // 2
            screen.blit(key, key.get_rect(midleft=(plate.left + unit, y)))
            screen.blit(meaning, meaning.get_rect(midleft=(plate.left + unit + column, y)))

    def _draw_plate(self, screen: pygame.Surface, place: pygame.Rect, radius: int, opacity: int) -> None:
        import pygame

        plate = pygame.Surface(place.size, pygame.SRCALPHA)
        pygame.draw.rect(plate, (*BACKGROUND, opacity), plate.get_rect(), border_radius=radius)
        screen.blit(plate, place)

    def _draw_text(self, screen: pygame.Surface, text: str, left: int, middle: int, unit: int, ink: Any) -> int:
        """Write ``text`` and return the position of its right end."""
        words = self._text(text, unit, ink)
        screen.blit(words, words.get_rect(midleft=(left, middle)))
        return left + words.get_width()

    def _text(self, text: str, unit: int, ink: Any) -> pygame.Surface:
        import pygame

        size = max(8, round(unit * 0.52))
        if size not in self._fonts:
            self._fonts[size] = pygame.font.Font(None, size)
        return self._fonts[size].render(text, True, ink)


def _widen(window: pygame.Window, factor: float) -> None:
    """Double or halve the window's width for two images, if it is about square then and the screen is wide enough."""
    import pygame

    width, height = window.size
    alike = 0.5 < (width * factor if factor < 1.0 else width) / height < 1.5
    new = round(width * factor)
    screen = pygame.display.get_desktop_sizes()[0][0]
    if alike and new <= screen:
        x, y = window.position
        window.size = (new, height)
        window.position = (min(max(x + (width - new) // 2, 0), screen - new), y)


def _bar_height(width: int, height: int) -> int:
    """Height of the bar in screen pixels, so that it looks the same at any pixel density."""
    return round(min(max(BAR * min(width, height), BAR_PX[0]), BAR_PX[1]))


def _viewers_text(viewers: Any) -> str:
    return "" if not viewers else "1 viewer" if viewers == 1 else f"{viewers} viewers"


def _driver_text(driver: Any) -> str:
    if driver in (None, "tracker"):
        return ""
    return "idle" if driver == "idle" else f"driven by {driver}"
