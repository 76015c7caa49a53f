"""Sources of camera frames: ``synthetic``, ``webcam[:DEVICE]``, ``file:PATH``, ``tracked:DIR``, ``browser``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from insta_runtime.errors import UserError
from telepresence.runtime.audio import AudioListener
from telepresence.runtime.frames import CameraFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.sources.source import GroundTruthSource, Source, SourceIdentity

__all__ = ["SPECS", "GroundTruthSource", "Source", "SourceIdentity", "open_source"]

SPECS = "synthetic, webcam, webcam:DEVICE, file:PATH, tracked:DIR or browser"
"""Specifications that `open_source` accepts, for error messages."""


def open_source(
    spec: str,
    *,
    browser: Mailbox[CameraFrame] | None = None,
    on_audio: AudioListener | None = None,
    on_silence: Callable[[str], None] | None = None,
) -> Source:
    """Open the source of camera frames that ``spec`` names; only its module is imported.

    Args:
        spec: one of `SPECS`.
        browser: mailbox with the frames of a browser's camera, for the source ``browser``.
        on_audio: called with the audio of sources that have any.
        on_silence: called with the reason if the source has audio that cannot be decoded.

    Raises UserError if the source does not exist or cannot be opened.
    """
    kind, _, argument = spec.partition(":")
    if kind == "synthetic" and not argument:
        from telepresence.sources.synthetic import SyntheticSource

        return SyntheticSource()
    if kind == "webcam":
        from telepresence.sources.webcam import WebcamSource

        return WebcamSource(argument or None)
    if kind == "file" and argument:
        from telepresence.sources.video_file import VideoSource

        return VideoSource(Path(argument).expanduser(), on_audio, on_silence)
    if kind == "tracked" and argument:
        from telepresence.sources.tracked_folder import TrackedSource

        return TrackedSource(Path(argument).expanduser())
    if kind == "browser" and not argument and browser is not None:
        from telepresence.sources.browser import BrowserSource

        return BrowserSource(browser)
    raise UserError(f"unknown source {spec!r}: use {SPECS}")
