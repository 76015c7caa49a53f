"""Selection of a source by its specification, errors of webcams, and the browser's mailbox."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest

from insta_runtime.errors import UserError
from telepresence.runtime.frames import CameraFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.sources import open_source
from telepresence.sources.browser import BrowserSource


@pytest.mark.parametrize("spec", ["", "camera", "file:", "synthetic:9", "browser", "browser:x", "FILE:a.mp4"])
def test_an_unknown_source_gives_a_one_line_error(spec):
    with pytest.raises(UserError, match="webcam:DEVICE"):
        open_source(spec)


def test_the_browser_source_returns_the_newest_frame():
    mailbox: Mailbox[CameraFrame] = Mailbox("browser")
    source = open_source("browser", browser=mailbox)
    assert isinstance(source, BrowserSource)
    assert source.read(0.01) is None
    for i in range(3):
        mailbox.put(CameraFrame(i, i, np.zeros((2, 2, 3), np.uint8)))
    frame = source.read(0.01)
    assert frame is not None
    assert frame.frame_id == 2
    assert source.read(0.01) is None
    source.close()
    assert not mailbox.closed


def test_a_missing_webcam_is_named():
    pytest.importorskip("av")
    with pytest.raises(UserError, match="synthetic") as caught:
        open_source("webcam:/dev/video97")
    assert "/dev/video97" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="device files exist on Linux only")
def test_a_file_that_is_not_a_camera_is_refused(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "video0"
    path.write_bytes(b"not a camera")
    with pytest.raises(UserError, match="camera"):
        open_source(f"webcam:{path}")


def test_a_machine_without_webcam_gives_an_error():
    pytest.importorskip("av")
    from telepresence.sources.webcam import default_webcam

    device = default_webcam()
    if device is not None:
        pytest.skip("this machine has a webcam")
    with pytest.raises(UserError, match="no webcam found"):
        open_source("webcam")


def read_to_the_end(source):
    while source.read(5.0) is not None:
        pass


def test_capturing_returns_the_newest_frame_and_the_end_is_an_error():
    """FFmpeg's test pattern in place of a camera: the same demuxing, another device."""
    pytest.importorskip("av")
    from telepresence.sources.webcam import WebcamSource

    source = WebcamSource("testsrc=size=160x120:rate=30:duration=3,realtime", capture="lavfi")
    first = source.read(60.0)
    assert first is not None
    before, second = first, first
    while second.frame_id - before.frame_id < 4:  # frames that were not read in time are dropped
        time.sleep(0.3)
        before, newest = second, source.read(60.0)
        assert newest is not None
        second = newest
    assert first.rgb.shape == (120, 160, 3)
    assert second.t_capture_ns > first.t_capture_ns
    with pytest.raises(UserError, match="stopped sending"):
        read_to_the_end(source)
    source.close()
    source.close()
