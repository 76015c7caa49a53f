"""Naming a source, the webcam's refusals, and the browser's mailbox."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest

from insta_runtime.errors import UserError
from telepresence.runtime.frames import CameraFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.sources import open_source
from telepresence.sources.browser import MailboxSource


@pytest.mark.parametrize("spec", ["", "camera", "file:", "synthetic:9", "browser", "browser:x", "FILE:a.mp4"])
def test_an_unknown_source_gets_one_line(spec):
    with pytest.raises(UserError, match="webcam:DEVICE"):
        open_source(spec)


def test_the_browser_source_hands_out_the_newest_picture():
    mailbox: Mailbox[CameraFrame] = Mailbox("browser")
    source = open_source("browser", browser=mailbox)
    assert isinstance(source, MailboxSource)
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="device files are a Linux matter")
def test_what_is_no_camera_is_refused(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "video0"
    path.write_bytes(b"not a camera")
    with pytest.raises(UserError, match="camera"):
        open_source(f"webcam:{path}")


def test_no_webcam_is_an_error_and_any_webcam_has_a_name():
    pytest.importorskip("av")
    from telepresence.sources.webcam import default_webcam

    device = default_webcam()
    if device is not None:
        pytest.skip("this machine has a webcam; nothing to refuse")
    with pytest.raises(UserError, match="no webcam found"):
        open_source("webcam")


def read_to_the_end(source):
    while source.read(5.0) is not None:
        pass


def test_capturing_gives_the_newest_picture_and_an_end_is_an_error():
    """FFmpeg's test pattern stands where the camera would: the same demuxing, another device."""
    pytest.importorskip("av")
    from telepresence.sources.webcam import WebcamSource

    source = WebcamSource("testsrc=size=160x120:rate=30:duration=0.7,realtime", capture="lavfi")
    first = source.read(2.0)
    time.sleep(0.3)
    second = source.read(2.0)
    assert first is not None
    assert second is not None
    assert first.rgb.shape == (120, 160, 3)
    assert second.frame_id - first.frame_id >= 4
    assert second.t_capture_ns > first.t_capture_ns
    with pytest.raises(UserError, match="stopped sending"):
        read_to_the_end(source)
    source.close()
    source.close()
