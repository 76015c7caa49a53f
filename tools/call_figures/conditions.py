"""Conditions of a measurement: the camera, the duration, and whether the avatar learns meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from call_figures import camera_video
from call_figures.daemon import DaemonProcess, learned_avatar, stamped_daemon
from insta_runtime.files import atomic_path

VIDEO_S: Final = 20.0
"""Length of the test video in seconds."""


@dataclass(frozen=True)
class Conditions:
    """Everything that a measurement of a call depends on.

    Attributes:
        scratch: folder for videos, avatars and logs.
        clip: video of a face that the test video is made of; None uses the synthetic actor.
        source: value of ``--source``; None uses the test video as a file source.
        seconds: duration of what is measured over time.
        settle: seconds to wait before it is measured.
        learning: whether the avatar is trained during the call.
        more: further arguments of ``telepresence run``.
    """

    scratch: Path
    clip: Path | None
    source: str | None
    seconds: float
    settle: float
    learning: bool
    more: tuple[str, ...] = ()

    @property
    def camera(self) -> str:
        """Value of ``--source``."""
        return self.source or f"file:{self.video()}"

    def video(self) -> Path:
        """Path of the test video with numbers and beeps; it is written at the first use."""
        return self._test_video("mp4", camera_video.write_video_with_beeps)

    def webcam(self) -> Path:
        """Path of the same video without audio, in the format that Chromium plays as its camera."""
        return self._test_video("mjpeg", camera_video.write_camera_video)

    @contextmanager
    def call(
        self,
        *arguments: str,
        learned_first: bool = True,
        source: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> Iterator[DaemonProcess]:
        """Run the daemon with an avatar that was learned before (``learned_first``), or with none.

        Args:
            arguments: further arguments of ``telepresence run``.
            learned_first: start with an avatar that has been learned until it was live.
            source: value of ``--source`` in place of `camera`.
            environment: variables added to the environment of the daemon.
        """
        if learned_first:
            avatar = learned_avatar(self.scratch, self.camera, *self.more)
        else:
            avatar = self.scratch / "new.avatar"
            shutil.rmtree(avatar, ignore_errors=True)
        more = (*self.more, *(() if self.learning else ("--freeze",)))
        given = ("--source", source or self.camera, "--avatar", str(avatar), *more, *arguments)
        with stamped_daemon(self.scratch, *given, environment=environment) as running:
            yield running

    def _test_video(self, suffix: str, write: camera_video.Writer) -> Path:
        name = self.clip.stem if self.clip is not None else "actor"
        target = self.scratch / f"{name}.{suffix}"
        if not target.exists():
            with atomic_path(target, suffix=f".{suffix}") as part:
                write(self.clip, part, VIDEO_S)
        return target
