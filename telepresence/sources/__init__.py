"""Where pictures come from: ``synthetic``, ``webcam[:DEVICE]``, ``file:PATH``, ``tracked:DIR``, ``browser``."""

from __future__ import annotations

from pathlib import Path

from insta_runtime.errors import UserError
from telepresence.runtime.audio import Ear
from telepresence.runtime.frames import CameraFrame
from telepresence.runtime.mailbox import Mailbox
from telepresence.sources.source import Identity, Informed, Source

__all__ = ["SPECS", "Identity", "Informed", "Source", "open_source"]

SPECS = "synthetic, webcam, webcam:DEVICE, file:PATH, tracked:DIR or browser"


def open_source(spec: str, *, browser: Mailbox[CameraFrame] | None = None, hear: Ear | None = None) -> Source:
    """The source that ``spec`` names.

    ``browser`` is the mailbox that the ``browser`` source reads; ``hear`` is told the sound of a source that has any.
    Only the chosen source is imported.  Raises UserError if there is no such source, or if it cannot be opened.
    """
    kind, _, argument = spec.partition(":")
    if kind == "synthetic" and not argument:
        from telepresence.sources.synthetic import SyntheticSource

        return SyntheticSource()
    if kind == "webcam":
        from telepresence.sources.webcam import WebcamSource

        return WebcamSource(argument or None)
    if kind == "file" and argument:
        from telepresence.sources.video import VideoSource

        return VideoSource(Path(argument).expanduser(), hear)
    if kind == "tracked" and argument:
        from telepresence.sources.tracked import TrackedSource

        return TrackedSource(Path(argument).expanduser())
    if kind == "browser" and not argument and browser is not None:
        from telepresence.sources.browser import MailboxSource

        return MailboxSource(browser)
    raise UserError(f"no source is called {spec!r}; use {SPECS}")
