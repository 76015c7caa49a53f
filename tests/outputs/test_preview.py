"""The preview window, without a screen."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from telepresence.frames import ShownFrame
from telepresence.outputs import PreviewWindow, preview
from telepresence.outputs.preview import MAX_SIDE
from telepresence.outputs.ring import SLOTS, PictureRing


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.001)


def shown(value: int = 90) -> ShownFrame:
    return ShownFrame(0, time.monotonic_ns(), np.full((64, 64, 3), value, np.uint8))


def test_ring_hands_over_the_newest_picture() -> None:
    writer = PictureRing(64)
    reader = PictureRing(64, writer.name)
    try:
        assert reader.read(0) is None
        rng = np.random.default_rng(0)
        pictures = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(2 * SLOTS)]
        for i, picture in enumerate(pictures):
            writer.write(picture, f"picture {i} ü")
        got = reader.read(0)
        assert got is not None
        assert got.sequence == len(pictures)
        assert got.text == f"picture {len(pictures) - 1} ü"
        np.testing.assert_array_equal(got.rgb, pictures[-1])
        assert reader.read(got.sequence) is None
    finally:
        reader.close()
        writer.close()
        writer.close()


def test_ring_thins_a_picture_that_is_too_large() -> None:
    ring = PictureRing(32)
    try:
        ring.write(np.full((64, 40, 3), 7, np.uint8), "x" * 1000)
        got = ring.read(0)
        assert got is not None
        assert got.rgb.shape == (32, 20, 3)
        assert (got.rgb == 7).all()
    finally:
        ring.close()


def test_a_reader_never_sees_half_a_picture() -> None:
    ring = PictureRing(64)
    going = True

    def write() -> None:
        value = 0
        while going:
            value = (value + 1) % 256
            ring.write(np.full((64, 64, 3), value, np.uint8), str(value))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        sequences = {0}

        def read() -> bool:
            picture = ring.read(max(sequences))
            if picture is not None:
                sequences.add(picture.sequence)
                assert np.unique(picture.rgb).tolist() == [int(picture.text)]
            return len(sequences) > 100

        until(read)
    finally:
        going = False
        writer.join()
        ring.close()


@pytest.mark.timeout(60)
def test_window_opens_survives_a_kill_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    quits: list[bool] = []
    window = PreviewWindow(lambda: quits.append(True))
    window.start()
    try:
        until(lambda: window.open)
        for value in range(30):
            window.show(shown(value), f"live, {value} fps")
            time.sleep(0.01)
        assert window.open
        assert window._process is not None
        assert window._process.pid is not None
        os.kill(window._process.pid, signal.SIGKILL)
        until(lambda: not window.open)
        window.show(shown(), "nobody sees this")
        assert quits == []
    finally:
        window.stop()
        window.stop()


@pytest.mark.timeout(60)
def test_window_draws_picture_and_text_and_q_quits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame = pytest.importorskip("pygame")
    ring = PictureRing(MAX_SIDE)
    ours, theirs = multiprocessing.Pipe()
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32] = (200, 30, 60)
    ring.write(picture, "live  30 fps  24.1 dB")
    seen: dict[str, Any] = {}

    def press_q(screen: Any, *_: Any) -> None:
        draw(screen, *_)
        seen["pixels"] = pygame.surfarray.array3d(screen).swapaxes(0, 1)
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_q))

    draw = preview._draw
    monkeypatch.setattr(preview, "_draw", press_q)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    try:
        preview._window(ring.name, theirs, "Telepresence")
        assert ours.poll(1.0)
        assert ours.recv() == ("quit", "")
    finally:
        ring.close()
    side = seen["pixels"].shape[0]
    np.testing.assert_allclose(seen["pixels"][side // 4, side // 2], (200, 30, 60), atol=2)
    band = seen["pixels"][-30:].astype(int)
    assert (band.min(-1) > 180).sum() > 50  # light letters


@pytest.mark.timeout(60)
def test_without_a_screen_one_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    monkeypatch.setenv("DISPLAY", ":987")
    window = PreviewWindow(lambda: None)
    with caplog.at_level(logging.INFO):
        window.start()
        until(lambda: caplog.records)
    window.show(shown())
    window.stop()
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("no preview: ")
    assert caplog.messages[0].endswith("the call goes on")


def test_without_pygame_one_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("telepresence.outputs.preview.find_spec", lambda _name: None)
    window = PreviewWindow(lambda: None)
    window.start()
    window.show(shown())
    window.stop()
    assert not window.open
    assert "pip install pygame-ce" in caplog.text
