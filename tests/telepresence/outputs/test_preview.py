"""The preview window, without a screen."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from insta_runtime.errors import UserError
from insta_runtime.types import Camera, HeadState, Observation
from telepresence.call.sinks import FrameSinks
from telepresence.measure.rehearsal.rehearsal_sink import RehearsalSink
from telepresence.outputs import PreviewCommand, PreviewWindow, window
from telepresence.outputs.preview_image import CAPACITY, GAIN, MAX_SIDE, ImageDifference, PreviewImage, PreviewView
from telepresence.outputs.shared_ring import SharedRing
from telepresence.outputs.window import FIGURES_BYTES, PreviewReceiver, RingNames
from telepresence.runtime.frames import OutputFrame, RenderInputs, TrackedFrame
from telepresence.streaming import StreamSettings
from tests.support.waiting import until

CAMERA = Camera(100.0, 100.0, 32.0, 32.0, 64, 64)


def plain(*colour: int, side: int = 64) -> Any:
    return np.full((side, side, 3), colour, np.uint8)


def head(t_capture_ns: int, *colour: int) -> OutputFrame:
    drawn = RenderInputs(HeadState.neutral(4).at(t_capture_ns), CAMERA, 0, 0.0)
    return OutputFrame(0, t_capture_ns, plain(*colour), True, drawn)


def seen(t_capture_ns: int, *colour: int, matte: int = 255) -> TrackedFrame:
    rgb = plain(*colour)
    state = HeadState.neutral(4).at(t_capture_ns)
    observation = Observation(0, rgb, np.full((64, 64), matte, np.uint8), CAMERA, state)
    return TrackedFrame(0, t_capture_ns, rgb, observation)


@pytest.fixture
def no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


# ---- images


def test_an_image_is_decoded_unchanged() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    matte = rng.integers(0, 256, (48, 64), dtype=np.uint8)
    for shot in (
        PreviewImage(123, rgb, matte, True),
        PreviewImage(-5, rgb[:, ::-1]),
        PreviewImage(0, rgb[::2], matte[::2]),
    ):
        ring = SharedRing(CAPACITY)
        try:
            ring.write(*shot.parts())
            record = ring.read(0)
            assert record is not None
            got = PreviewImage.read(record.data)
        finally:
            ring.close()
        assert (got.t_capture_ns, got.drawn) == (shot.t_capture_ns, shot.drawn)
        np.testing.assert_array_equal(got.rgb, shot.rgb)
        if shot.matte is None:
            assert got.matte is None
        else:
            np.testing.assert_array_equal(got.matte, shot.matte)


def test_an_image_that_is_too_large_is_subsampled() -> None:
    tall = PreviewImage(1, np.full((2 * MAX_SIDE, 100, 3), 7, np.uint8), np.full((2 * MAX_SIDE, 100), 9, np.uint8))
    parts = tall.parts()
    assert sum(len(part) if isinstance(part, bytes) else part.size for part in parts) <= CAPACITY
    got = PreviewImage.read(b"".join(part if isinstance(part, bytes) else part.tobytes() for part in parts))
    assert got.rgb.shape == (MAX_SIDE, 50, 3)
    assert (got.rgb == 7).all()
    assert got.matte is not None
    assert (got.matte == 9).all()


def test_the_difference_is_measured_on_the_head_only() -> None:
    shown = PreviewImage(1, plain(100, 110, 120), drawn=True)
    matte = np.zeros((64, 64), np.uint8)
    matte[:32] = 255
    other = plain(100, 110, 120)
    other[:32] = (105, 110, 100)
    other[32:] = 255  # background
    difference = ImageDifference.of(shown, PreviewImage(1, other, matte))
    np.testing.assert_allclose(difference.rgb[:32].reshape(-1, 3).mean(0), np.array([5, 0, 20]) * GAIN, atol=GAIN)
    assert not difference.rgb[32:].any()
    assert difference.psnr_db == pytest.approx(10 * np.log10(255**2 / ((5**2 + 20**2) / 3)), abs=0.01)
    whole = ImageDifference.of(shown, PreviewImage(1, other))
    assert whole.rgb[32:].min() == 255
    assert whole.psnr_db < difference.psnr_db


def test_images_of_different_sizes_can_be_compared() -> None:
    camera = PreviewImage(1, plain(100, 110, 120, side=32), np.full((32, 32), 255, np.uint8))
    difference = ImageDifference.of(PreviewImage(1, plain(100, 110, 120)), camera)
    assert difference.rgb.shape == (64, 64, 3)
    assert difference.psnr_db > 70.0


def test_an_empty_matte_gives_no_difference() -> None:
    matte = np.zeros((64, 64), np.uint8)
    difference = ImageDifference.of(PreviewImage(1, plain(1, 2, 3)), PreviewImage(1, plain(200, 200, 200), matte))
    assert not difference.rgb.any()
    assert np.isfinite(difference.psnr_db)


# ---- the window's process


@pytest.fixture
def rings() -> Iterator[tuple[SharedRing, ...]]:
    made = SharedRing(CAPACITY), SharedRing(CAPACITY), SharedRing(FIGURES_BYTES)
    yield made
    for ring in made:
        ring.close()


def names(rings: tuple[SharedRing, ...]) -> RingNames:
    return RingNames(*(ring.name for ring in rings))


def test_images_of_the_same_capture_time_are_paired(
    rings: tuple[SharedRing, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown, camera, figures = rings
    receiver = PreviewReceiver(names(rings))
    try:
        assert not receiver.refresh()
        for t in (10, 20, 30):
            camera.write(*PreviewImage(t, plain(t, 0, 0)).parts())
            assert receiver.refresh()
        shown.write(*PreviewImage(20, plain(0, 20, 0), drawn=True).parts())
        assert receiver.refresh()
        assert receiver.pair is not None
        assert (receiver.pair[0].rgb[0, 0].tolist(), receiver.pair[1].rgb[0, 0].tolist()) == ([0, 20, 0], [20, 0, 0])
        assert receiver.camera is not None
        assert receiver.camera.t_capture_ns == 30
        shown.write(*PreviewImage(30, plain(9, 9, 9)).parts())  # a card has no partner
        figures.write(json.dumps({"state": "live"}).encode())
        assert receiver.refresh()
        assert receiver.pair[0].t_capture_ns == 20
        assert receiver.figures == {"state": "live"}
        assert not receiver.refresh()
        now[0] += 0.9 * window.STALE_S
        camera.write(*PreviewImage(40, plain(40, 0, 0)).parts())
        shown.write(*PreviewImage(39, plain(0, 40, 0), drawn=True).parts())  # another driver
        assert receiver.refresh()
        assert receiver.pair is not None
        now[0] += 0.2 * window.STALE_S
        assert receiver.pair is None
        assert receiver.camera is not None
    finally:
        receiver.close()


def test_the_window_measures_rate_and_latency(rings: tuple[SharedRing, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    monkeypatch.setattr(time, "monotonic", lambda: now / 1e9)
    receiver = PreviewReceiver(names(rings))
    try:
        assert (receiver.fps, receiver.latency_ms) == (0.0, None)
        rings[0].write(*PreviewImage(time.monotonic_ns(), plain(1, 1, 1)).parts())
        receiver.refresh()
        assert (receiver.fps, receiver.latency_ms) == (0.0, None)  # a card
        for _ in range(4):
            rings[0].write(*PreviewImage(time.monotonic_ns() - 40_000_000, plain(1, 1, 1), drawn=True).parts())
            receiver.refresh()
        assert receiver.fps == 4 / window.RATE_S
        assert receiver.latency_ms == pytest.approx(40.0)
    finally:
        receiver.close()


def draw(painter: window.PreviewPainter, receiver: PreviewReceiver, size: tuple[int, int]) -> Any:
    import pygame

    pygame.display.init()
    pygame.font.init()
    screen = pygame.Surface(size)
    painter.draw(screen, receiver)
    return pygame.surfarray.array3d(screen).swapaxes(0, 1)


@pytest.mark.usefixtures("no_screen")
def test_every_view_is_drawn_at_every_size(rings: tuple[SharedRing, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "STALE_S", 60.0)
    receiver = PreviewReceiver(names(rings))
    painter = window.PreviewPainter()
    red, green, apart = (200, 30, 60), (30, 200, 60), (255, 255, 0)
    try:
        for view in PreviewView:  # before the first image
            painter.view = view
            assert draw(painter, receiver, (640, 700)).any()
        rings[1].write(*PreviewImage(5, plain(*green), np.full((64, 64), 255, np.uint8)).parts())
        rings[0].write(*PreviewImage(5, plain(*red), drawn=True).parts())
        receiver.refresh()

        def at(pixels: Any, x: float, y: float) -> Any:
            return pixels[int(y * len(pixels)), int(x * pixels.shape[1])]

        for size in ((640, 700), (1600, 500), (2560, 1440), (120, 90)):
            for view, colour in (
                (PreviewView.AVATAR, red),
                (PreviewView.CAMERA, green),
                (PreviewView.DIFFERENCE, apart),
            ):
                painter.view = view
                np.testing.assert_allclose(at(draw(painter, receiver, size), 0.5, 0.4), colour, atol=5)
            painter.view = PreviewView.BOTH
            pixels = draw(painter, receiver, size)
            wide = size[0] > size[1]
            np.testing.assert_allclose(at(pixels, 0.3 if wide else 0.5, 0.4 if wide else 0.25), green, atol=5)
            np.testing.assert_allclose(at(pixels, 0.7 if wide else 0.5, 0.4 if wide else 0.7), red, atol=5)
    finally:
        receiver.close()


@pytest.mark.usefixtures("no_screen")
def test_bar_and_key_list_can_be_switched_on(rings: tuple[SharedRing, ...]) -> None:
    receiver = PreviewReceiver(names(rings))
    painter = window.PreviewPainter()
    try:
        rings[0].write(*PreviewImage(5, plain(0, 0, 0), drawn=True).parts())

        def bright(**figures: Any) -> int:
            rings[2].write(json.dumps(figures).encode())
            receiver.refresh()
            pixels = draw(painter, receiver, (800, 860))
            return int((pixels[-50:].astype(int).min(-1) > 180).sum())  # light letters

        few = bright(state="learning")
        more = bright(state="learning", psnr_db=24.13, muted=True, frozen=True, viewers=2, driver="zmq")
        assert few > 50
        assert more > few + 200
        assert bright(state="live", notice="no face is known yet") > few
        painter.bar = False
        assert bright(state="live") == 0
        before = draw(painter, receiver, (800, 860))
        painter.keys = True
        after = draw(painter, receiver, (800, 860))
        assert (after[:800].astype(int).min(-1) > 100).sum() > (before[:800].astype(int).min(-1) > 100).sum() + 500
    finally:
        receiver.close()


@pytest.mark.usefixtures("no_screen")
def test_keys_reach_the_daemon_and_change_the_view(
    rings: tuple[SharedRing, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pygame

    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    pressed = iter("mcfi3vvvvhq")
    views: list[PreviewView] = []
    real = window.PreviewPainter.draw

    def then_press(painter: window.PreviewPainter, screen: Any, receiver: PreviewReceiver) -> None:
        real(painter, screen, receiver)
        views.append(painter.view)
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=ord(next(pressed))))

    monkeypatch.setattr(window.PreviewPainter, "draw", then_press)
    window.open_window(names(rings), theirs, "Telepresence")
    words = []
    while ours.poll(0.0):
        words.append(ours.recv()[0])
    assert words == ["opened", "mute", "calibrate", "freeze", "quit"]
    steps = [view for view, before in zip(views[1:], views, strict=False) if view is not before]
    assert steps == [PreviewView.BOTH, PreviewView.DIFFERENCE, PreviewView.AVATAR, PreviewView.CAMERA, PreviewView.BOTH]


# ---- the daemon's process


@pytest.mark.usefixtures("no_screen")
def test_killing_the_window_leaves_the_call_running() -> None:
    commands: list[PreviewCommand] = []
    preview = PreviewWindow(commands.append)
    streamed: list[OutputFrame] = []
    sinks = FrameSinks(RehearsalSink(StreamSettings(), streamed.append), preview)
    sinks.start()
    try:
        for t in range(30):
            sinks.push_camera_frame(seen(t, 90, 90, 90))
            sinks.push_frame(head(t, 90, 90, 90))
            sinks.push_status(time.monotonic(), lambda: {"state": "live", "training": {"state": "frozen"}})
            time.sleep(0.01)
        assert preview.open
        assert preview._process is not None
        assert preview._process.pid is not None
        os.kill(preview._process.pid, signal.SIGKILL)
        until(lambda: not preview.open)
        sinks.push_camera_frame(seen(99, 90, 90, 90))
        sinks.push_frame(head(99, 90, 90, 90))
        sinks.push_status(time.monotonic() + 9.0, lambda: pytest.fail("no window shows figures any more"))
        assert streamed[-1].t_capture_ns == 99
        assert commands == []
    finally:
        sinks.stop()
        sinks.stop()


@pytest.mark.usefixtures("no_screen")
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs shared memory with names in a folder")
def test_images_are_in_shared_memory_without_a_name() -> None:
    """A kill of the daemon and its helpers leaves no image in /dev/shm."""
    preview = PreviewWindow(lambda _: None)
    preview.start()
    try:
        files = [Path("/dev/shm") / ring.name for ring in preview._rings]
        preview.push_frame(head(0, 9, 9, 9))
        until(lambda: not any(file.exists() for file in files))
        preview.push_frame(head(1, 9, 9, 9))
        record = preview._rings[0].read(0)
        assert record is not None
        assert record.sequence == 1, "no image was written while the memory had a name"
    finally:
        preview.stop()


@pytest.mark.usefixtures("no_screen")
def test_a_hanging_window_delays_no_thread() -> None:
    preview = PreviewWindow(lambda _: None)
    preview.start()
    try:
        assert preview._process is not None
        assert preview._process.pid is not None
        os.kill(preview._process.pid, signal.SIGSTOP)
        handed_over = threading.Event()

        def hand_over() -> None:
            for t in range(500):
                preview.push_camera_frame(seen(t, 1, 2, 3))
                preview.push_frame(head(t, 1, 2, 3))
                preview.push_status({"state": "live"})
            handed_over.set()

        threading.Thread(target=hand_over, daemon=True).start()
        assert handed_over.wait(120.0)
    finally:
        preview.stop()
    assert not preview.open


def test_a_failed_command_is_shown_in_the_window() -> None:
    def refuse(_: PreviewCommand) -> None:
        raise UserError("no subject is known yet")

    preview = PreviewWindow(refuse)
    preview._rings = SharedRing(CAPACITY), SharedRing(CAPACITY), SharedRing(FIGURES_BYTES)
    ours, theirs = multiprocessing.Pipe()
    preview._process = multiprocessing.current_process()  # any running process
    listening = threading.Thread(target=preview._listen, args=(ours,), daemon=True)
    listening.start()
    try:
        theirs.send(("opened", ""))
        theirs.send(("calibrate", ""))
        until(lambda: preview._notice[0])
        preview.push_status(
            {"state": "live", "psnr_db": 20.5, "audio": {"muted": True}, "training": {"state": "frozen"}}
        )
        record = preview._rings[2].read(0)
        assert record is not None
        figures = json.loads(record.data)
        assert figures["notice"] == "no subject is known yet"
        assert (figures["state"], figures["psnr_db"], figures["muted"], figures["frozen"]) == (
            "live",
            20.5,
            True,
            True,
        )
    finally:
        theirs.close()
        listening.join(5.0)
        preview._process = None
        preview.stop()


def test_without_a_screen_one_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    monkeypatch.setenv("DISPLAY", ":987")
    preview = PreviewWindow(lambda _: None)
    with caplog.at_level(logging.INFO):
        preview.start()
        until(lambda: caplog.records)
    preview.push_frame(head(0, 1, 2, 3))
    preview.stop()
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("no preview: ")
    assert caplog.messages[0].endswith("the call continues")


def test_without_pygame_one_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("telepresence.outputs.preview.find_spec", lambda _name: None)
    preview = PreviewWindow(lambda _: None)
    preview.start()
    preview.push_frame(head(0, 1, 2, 3))
    preview.stop()
    assert not preview.open
    assert "pip install pygame-ce" in caplog.text
