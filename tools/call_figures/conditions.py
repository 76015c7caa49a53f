"""Under which conditions something is measured: before which camera, for how long, learning or not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from call_figures import film
from call_figures.daemon import Daemon, daemon, learned
from insta_runtime.files import atomic_path

FILM_S: Final = 20.0


@dataclass(frozen=True)
class Conditions:
    """``clip`` is the video of a face that the camera's film is made of, None: the synthetic actor.

    ``source`` None is the film as a file source.  Whatever is measured over time is measured for ``seconds`` after
    ``settle`` seconds.  ``more`` are further arguments of ``telepresence run``.
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
        """What ``--source`` is given."""
        return self.source or f"file:{self.video()}"

    def video(self) -> Path:
        """The numbered film with its beeps, as a file."""
        return self._film("mp4", film.write_beeping)

    def webcam(self) -> Path:
        """The same, mute, as Chromium takes it for its camera."""
        return self._film("mjpeg", film.write_camera)

    @contextmanager
    def call(
        self,
        *arguments: str,
        learned_first: bool = True,
        source: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> Iterator[Daemon]:
        """A daemon with an avatar that was learned before, or without any; it goes on learning if that is wanted."""
        if learned_first:
            avatar = learned(self.scratch, self.camera, *self.more)
        else:
            avatar = self.scratch / "new.avatar"
            shutil.rmtree(avatar, ignore_errors=True)
        more = (*self.more, *(() if self.learning else ("--freeze",)))
        given = ("--source", source or self.camera, "--avatar", str(avatar), *more, *arguments)
        with daemon(self.scratch, *given, environment=environment) as running:
            yield running

    def _film(self, suffix: str, write: film.Writer) -> Path:
        name = self.clip.stem if self.clip is not None else "actor"
        target = self.scratch / f"{name}.{suffix}"
        if not target.exists():
            with atomic_path(target, suffix=f".{suffix}") as part:
                write(self.clip, part, FILM_S)
        return target
