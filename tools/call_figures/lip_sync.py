"""Lip sync of the stream alone: a pipeline of known delay stands in for tracking and rendering."""

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
from call_figures.camera_video import BEEP_EVERY, BEEP_HZ, BEEP_S, FPS
from call_figures.conditions import VIDEO_S, Conditions
from call_figures.delay import collect_painted_frames, video_behind_audio_ms
from call_figures.goals import Figures, Goal, spread
from telepresence.runtime.audio import RATE, AudioBus, AudioChunk
from telepresence.runtime.frames import CameraFrame, OutputFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.streaming import DaemonInterface, MediaServer, StreamSettings

PIPELINE_S: Final = (0.05, 0.15)
"""Delays that are measured, in seconds from the capture of a frame to its encoder."""

LENGTH: Final = round(VIDEO_S * FPS)
"""Frames after which the numbers start again at zero."""

AHEAD_S: Final = 0.2
"""Seconds by which a file source delivers its audio before the frames of the same time."""

CHUNK: Final = RATE // 50
"""Samples in one piece of audio: those of 20 ms."""

LOUD: Final = 0.05
"""Level above which the browser counts audio as a beep."""

PUBLISH: Final = Path(__file__).with_name("publish.js")
"""Script with which a page publishes numbered frames and beeps over WHIP."""


def measure_lip_sync(conditions: Conditions) -> tuple[Figures, list[Goal]]:
    """Milliseconds by which the browser paints a frame later than it plays the audio of the same time.

    Measured with the audio of a file and with that of a browser's microphone, at each delay of `PIPELINE_S`.
    """
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
    bus = AudioBus()
    server = MediaServer(StreamSettings(port=0), DaemonInterface(camera, bus))
    server.start()
    try:
        with chromium() as browser, _pipeline(server, camera, pipeline_s), _file_source(camera, bus, not microphone):
            if microphone:
                _publish(browser, server.address)
            page = observed(browser)
            watch(page, server.address)
            page.wait_for_timeout(1000 * conditions.settle)
            page.evaluate(f"async () => {{ window.listener = callFigures.listen({LOUD}); await listener.ready; }}")
            seen = collect_painted_frames(page, conditions, settle=1.0)
            return video_behind_audio_ms(seen, [received for received, _ in page.evaluate("listener.beeps")])
    finally:
        server.stop()


def _publish(browser: Browser, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    page.evaluate(PUBLISH.read_text(encoding="utf-8"))
    page.evaluate(f"publishNumbered({FPS}, {LENGTH}, {BEEP_EVERY})")


@contextmanager
def _pipeline(server: MediaServer, camera: Mailbox[CameraFrame], pipeline_s: float) -> Iterator[None]:
    """Send every camera frame to the encoder, ``pipeline_s`` seconds after its capture, in a thread."""

    def run() -> None:
        while not camera.closed:
            frame = camera.get(0.2)
            if frame is not None:
                time.sleep(max(0.0, frame.t_capture_ns * 1e-9 + pipeline_s - time.monotonic()))
                rgb = frame.rgb.copy()
                barcode.write(rgb, barcode.SENT_TIME, time.time_ns() // 100_000)
                server.push_frame(OutputFrame(frame.frame_id, frame.t_capture_ns, rgb))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        camera.close()
        thread.join()


@contextmanager
def _file_source(camera: Mailbox[CameraFrame], bus: AudioBus, play: bool) -> Iterator[None]:
    """Deliver numbered frames and beeps like a file source, in two threads; nothing unless ``play``."""
    began = time.monotonic() + 0.5
    y, x = np.mgrid[0:512, 0:512]
    ground = np.stack([x // 3 + 40, y // 3 + 30, (x + y) // 6], -1).astype(np.uint8)

    def play_frames() -> None:
        number = 0
        while play and not camera.closed:
            due = began + number / FPS
            time.sleep(max(0.0, due - time.monotonic()))
            rgb = np.roll(ground, 4 * number, 1)
            barcode.write(rgb, barcode.SOURCE_FRAME, number % LENGTH)
            camera.put(CameraFrame(number, round(1e9 * due), rgb))
            number += 1

    def play_beeps() -> None:
        number = 0
        while play and not camera.closed:
            since = number * CHUNK / RATE
            time.sleep(max(0.0, began + since - AHEAD_S - time.monotonic()))
            t = since + np.arange(CHUNK) / RATE
            loud = t % (BEEP_EVERY / FPS) < BEEP_S
            wave = np.where(loud, 16_000 * np.sin(2 * np.pi * BEEP_HZ * t), 0.0).astype(np.int16)
            bus.play_source(AudioChunk(round(1e9 * (began + since)), np.stack([wave, wave], 1)))
            number += 1

    threads = [threading.Thread(target=run) for run in (play_frames, play_beeps)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        camera.close()
        for thread in threads:
            thread.join()
