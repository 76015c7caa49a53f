"""Virtual camera: the frames its driver receives, and the messages when there is none."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from telepresence.outputs.virtual_camera import INSTALL, VirtualCamera
from telepresence.runtime.frames import OutputFrame

pyvirtualcam = pytest.importorskip("pyvirtualcam")

SIDE = 96


def frame(value: int) -> OutputFrame:
    return OutputFrame(value, time.monotonic_ns(), np.full((SIDE, SIDE, 3), (value, 2 * value, 0), np.uint8))


def wait(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.01)


class FakeDriver:
    """Camera driver with the interface that pyvirtualcam expects."""

    def __init__(self, *, width: int, height: int, fps: float, fourcc: int, device: str | None) -> None:
        self.opened_with = width, height, fps, fourcc.to_bytes(4, "little")
        self.sent: list[np.ndarray] = []
        self.closed = self.unplugged = self.wrong = False
        DRIVERS.append(self)

    def send(self, pixels: np.ndarray) -> None:
        if self.unplugged:
            raise RuntimeError("Device is gone\nreally")
        if self.wrong:
            raise ValueError("no such pixel")
        self.sent.append(pixels.copy())

    def close(self) -> None:
        self.closed = True

    def device(self) -> str:
        return "/dev/video9"

    def native_fourcc(self) -> int | None:
        return None


DRIVERS: list[FakeDriver] = []


@pytest.fixture
def driver() -> Iterator[None]:
    known = dict(pyvirtualcam.camera.BACKENDS)
    pyvirtualcam.camera.BACKENDS.clear()
    pyvirtualcam.register_backend("test", FakeDriver)
    yield
    pyvirtualcam.camera.BACKENDS.clear()
    pyvirtualcam.camera.BACKENDS.update(known)


@pytest.mark.usefixtures("driver")
def test_the_driver_receives_the_newest_frame_repeatedly(caplog: pytest.LogCaptureFixture) -> None:
    camera = VirtualCamera(SIDE, 50, pytest.fail)
    with caplog.at_level(logging.INFO):
        camera.start()
    assert "/dev/video9" in caplog.text
    driver = DRIVERS[-1]
    assert driver.opened_with == (SIDE, SIDE, 50, b"raw ")  # RGB in libyuv
    assert camera.open
    camera.push_frame(frame(40))
    wait(lambda: len(driver.sent) > 3)
    np.testing.assert_array_equal(driver.sent[-1].reshape(SIDE, SIDE, 3)[5, 7], (40, 80, 0))
    camera.push_frame(frame(60))
    wait(lambda: driver.sent[-1][0] == 60)
    camera.stop()
    camera.stop()
    assert driver.closed
    assert not camera.open


@pytest.mark.usefixtures("driver")
def test_a_camera_that_is_unplugged_ends_with_one_line() -> None:
    lines: list[str] = []
    camera = VirtualCamera(SIDE, 50, lines.append)
    camera.start()
    camera.push_frame(frame(40))
    DRIVERS[-1].unplugged = True
    wait(lambda: not camera.open)
    camera.push_frame(frame(50))
    camera.stop()
    assert DRIVERS[-1].closed
    assert lines == ["it accepts no frames any more: device is gone"]


@pytest.mark.usefixtures("driver")
def test_a_bug_ends_the_camera_with_one_line_and_its_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []
    camera = VirtualCamera(SIDE, 50, lines.append)
    camera.start()
    DRIVERS[-1].wrong = True
    camera.push_frame(frame(40))
    wait(lambda: not camera.open)
    camera.push_frame(frame(50))
    camera.stop()
    assert DRIVERS[-1].closed
    assert lines == ["it has ended: ValueError: no such pixel"]
    assert caplog.text.count("Traceback") == 1


@pytest.mark.skipif(
    any(Path("/sys/class/video4linux").glob("*")) or sys.platform != "linux", reason="the machine has a video device"
)
def test_without_a_device_one_line_says_what_to_do() -> None:
    lines: list[str] = []
    camera = VirtualCamera(SIDE, 30, lines.append)
    camera.start()
    camera.push_frame(frame(40))
    assert not camera.open
    camera.stop()
    assert lines == [f"there is none: {INSTALL['linux']}"]


def test_without_the_package_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("telepresence.outputs.virtual_camera.find_spec", lambda _name: None)
    camera = VirtualCamera(SIDE, 30, lines.append)
    camera.start()
    camera.stop()
    (line,) = lines
    assert "pip install pyvirtualcam" in line
