"""Sound beside picture through the stream alone: what takes the place of tracking and rendering takes a known time."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from playwright.sync_api import Browser

from call_figures import barcode
from call_figures.browser import chromium, observed, watch
from call_figures.conditions import FILM_S, Conditions
from call_figures.delay import offsets, painted
from call_figures.film import BEEP_EVERY, BEEP_HZ, BEEP_S, FPS
from call_figures.goals import Figures, Goal, spread
from telepresence.runtime.audio import RATE, SoundBus, SoundChunk
from telepresence.runtime.frames import CameraFrame, ShownFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.streaming import MediaServer, StreamHooks, StreamSettings

PIPELINE_S: Final = (0.05, 0.15)
"""From a picture's capture until it is handed to the encoder."""
LENGTH: Final = round(FILM_S * FPS)
AHEAD_S: Final = 0.2  # by which a file source tells its sound early
CHUNK: Final = RATE // 50
LOUD: Final = 0.05
PUBLISH: Final = Path(__file__).with_name("publish.js")


def lips(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """How much later the picture is painted than the sound that belongs to it is heard; of a file, of a microphone."""
    figures: Figures = {}
    goals = []
    for source in ("file", "microphone"):
        for pipeline_s in PIPELINE_S:
            name = f"{source}, pipeline of {1000 * pipeline_s:.0f} ms"
            behind = _measure(conditions, pipeline_s, source == "microphone")
            figures[name] = spread(behind) | {"sd": round(statistics.pstdev(behind), 1) if behind else None}
            middle = figures[name]["p50"]
            goals.append(Goal(name, abs(middle) if middle is not None else None, 45.0, 20.0, " ms"))
    return figures, goals


def _measure(conditions: Conditions, pipeline_s: float, microphone: bool) -> list[float]:
    camera: Mailbox[CameraFrame] = Mailbox("camera")
    bus = SoundBus()
    server = MediaServer(StreamSettings(port=0), StreamHooks(camera=camera, sound=bus))
    server.start()
    try:
        with chromium() as browser, _pictures(server, camera, pipeline_s), _film(camera, bus, play=not microphone):
            if microphone:
                _publish(browser, server.address)
            page = observed(browser)
            watch(page, server.address)
            page.wait_for_timeout(1000 * conditions.settle)
            page.evaluate(f"async () => {{ window.ear = callFigures.listen({LOUD}); await ear.ready; }}")
            seen = painted(page, conditions, settle=1.0)
            return offsets(seen, [in_hand for in_hand, _output in page.evaluate("ear.heard")])
    finally:
        server.stop()


def _publish(browser: Browser, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    page.evaluate(PUBLISH.read_text(encoding="utf-8"))
    page.evaluate(f"publishNumbered({FPS}, {LENGTH}, {BEEP_EVERY})")


@contextmanager
def _pictures(server: MediaServer, camera: Mailbox[CameraFrame], pipeline_s: float) -> Iterator[None]:
    """What the camera sees is shown, ``pipeline_s`` after it was captured."""

    def run() -> None:
        while not camera.closed:
            frame = camera.get(0.2)
            if frame is not None:
                time.sleep(max(0.0, frame.t_capture_ns * 1e-9 + pipeline_s - time.monotonic()))
                rgb = frame.rgb.copy()
                barcode.write(rgb, barcode.SHOWN, time.time_ns() // 100_000)
                server.show(ShownFrame(frame.frame_id, frame.t_capture_ns, rgb))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        camera.close()
        thread.join()


@contextmanager
def _film(camera: Mailbox[CameraFrame], bus: SoundBus, play: bool) -> Iterator[None]:
    """Numbered pictures and beeps as of a file source; nothing unless it is to ``play``."""
    began = time.monotonic() + 0.5
    y, x = np.mgrid[0:512, 0:512]
    ground = np.stack([x // 3 + 40, y // 3 + 30, (x + y) // 6], -1).astype(np.uint8)

    def pictures() -> None:
        number = 0
        while play and not camera.closed:
            due = began + number / FPS
            time.sleep(max(0.0, due - time.monotonic()))
            rgb = np.roll(ground, 4 * number, 1)
            barcode.write(rgb, barcode.SOURCE, number % LENGTH)
            camera.put(CameraFrame(number, round(1e9 * due), rgb))
            number += 1

    def beeps() -> None:
        number = 0
        while play and not camera.closed:
            since = number * CHUNK / RATE
            time.sleep(max(0.0, began + since - AHEAD_S - time.monotonic()))
            t = since + np.arange(CHUNK) / RATE
            loud = t % (BEEP_EVERY / FPS) < BEEP_S
            wave = np.where(loud, 16_000 * np.sin(2 * np.pi * BEEP_HZ * t), 0.0).astype(np.int16)
            bus.play(SoundChunk(round(1e9 * (began + since)), np.stack([wave, wave], 1)))
            number += 1

    threads = [threading.Thread(target=run) for run in (pictures, beeps)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        camera.close()
        for thread in threads:
            thread.join()
