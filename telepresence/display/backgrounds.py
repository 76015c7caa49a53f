"""Backgrounds of the rendered head: the learned torso before a backdrop, the learned room, a colour or an image file.

A background is written as ``torso``, ``calm``, ``room``, ``#rrggbb`` or the path of an image file.  ``torso+room`` (or
another background in place of ``room``) renders the learned torso before it; ``torso`` alone is the same as
``torso+calm``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from insta_runtime.errors import UserError
from telepresence.display.cards import backdrop
from telepresence.runtime.ownership import any_thread, owned_by

if TYPE_CHECKING:
    import torch

    from insta_runtime.render.renderer import BackgroundRenderer
    from insta_runtime.torso.layer import TorsoLayer
    from insta_runtime.torso.motion import SlowPose
    from insta_runtime.types import Bytes, Camera, Float32, HeadState

CALM: Final = "calm"
"""Name of the default backdrop, a dark vignette (`telepresence.display.cards.backdrop`)."""
ROOM: Final = "room"
"""Name of the image of the room that was learned from the camera frames."""
TORSO: Final = "torso"
"""Name of the torso that was learned from the camera frames."""
PICTURE: Final = "picture"
"""Name that stands for the image file given at the start of the daemon, so that viewers do not receive its path."""

MAX_PIXELS: Final = 50_000_000
"""Maximum number of pixels of an image file; a larger one is refused before it is decoded."""
MAX_SIDE: Final = 2048
"""Maximum side in pixels of a background image; larger ones are downscaled."""

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class Background:
    """Choice of a background.

    Attributes:
        torso: whether the learned torso is rendered.
        behind: background behind the torso: `CALM`, `ROOM`, `PICTURE`, a colour ``#rrggbb`` or the path of an image
            file.
    """

    torso: bool
    behind: str

    @staticmethod
    def parse(text: str) -> Background:
        """Parse a background such as ``torso+#203040``.  UserError if the syntax is invalid; a path is not opened."""
        first, plus, rest = text.strip().partition("+")
        torso = first.strip() == TORSO
        behind = (rest.strip() if plus else CALM) if torso else text.strip()
        if not behind or behind == TORSO or (behind.startswith("#") and not _COLOUR.fullmatch(behind)):
            raise UserError(
                f"there is no background {text!r}: give torso, calm, room, a colour such as #203040, the path of an"
                " image file, or torso+ and one of these"
            )
        return Background(torso, behind.lower() if behind.startswith("#") else behind)

    @property
    def has_picture(self) -> bool:
        """Whether ``behind`` is an image: the path of a file, or `PICTURE`."""
        return self.behind not in (CALM, ROOM) and not self.behind.startswith("#")

    def __str__(self) -> str:
        if not self.torso:
            return self.behind
        return TORSO if self.behind == CALM else f"{TORSO}+{self.behind}"


@owned_by("render")
class Backgrounds:
    """Background of the rendered frames, which users can change during the call; composes it for each frame."""

    def __init__(self, text: str) -> None:
        """``text`` is a background for `Background.parse`.  UserError if it is invalid or its file cannot be read."""
        chosen = Background.parse(text)
        self._picture = _read(Path(chosen.behind)) if chosen.has_picture else None
        self._chosen = replace(chosen, behind=PICTURE) if chosen.has_picture else chosen
        self._slow: SlowPose | None = None
        self._still: tuple[str, int, torch.Tensor | None, Float32] | None = None
        self._uploaded: tuple[Float32, torch.Tensor] | None = None

    @property
    @any_thread
    def chosen(self) -> Background:
        """The background in use; an image file is named `PICTURE`."""
        return self._chosen

    @property
    @any_thread
    def choices(self) -> list[str]:
        """Names of the available backgrounds behind the torso, besides colours."""
        return [CALM, ROOM, *([PICTURE] if self._picture is not None else [])]

    @any_thread
    def choose(self, text: str) -> None:
        """Use the background ``text`` from the next frame on: one of `choices` or a colour, also after ``torso+``.

        UserError for any other text, so that viewers cannot open files.
        """
        chosen = Background.parse(text)
        if chosen.behind not in self.choices and not chosen.behind.startswith("#"):
            raise UserError(
                f"there is no background {text[:60]!r}: give {', '.join(self.choices)} or a colour, also after torso+"
            )
        self._chosen = chosen

    def compose(self, torso: TorsoLayer | None, state: HeadState, camera: Camera) -> Float32 | BackgroundRenderer:
        """Background for a head in ``state``, for the square image of ``camera``.

        Returns an array (H, W, 3) in [0, 1], the same object while nothing changes, or a function that renders the
        background with the torso.  Call it with every state that is rendered, because the torso follows a slow running
        mean of the head pose.  ``torso`` None: none is learned yet.
        """
        from insta_runtime.torso.motion import SlowPose, picture_pose

        self._slow = self._slow or SlowPose()
        inputs = self._slow.inputs(picture_pose(state, camera), state.t_capture_ns)
        chosen = self._chosen
        still = self._still_image(chosen.behind, torso, camera.width)
        if torso is None or not (chosen.torso and torso.is_visible):
            return still
        device = torso.rgba.device
        return lambda: torso.draw(inputs, self._on_device(still, device))

    def _still_image(self, behind: str, torso: TorsoLayer | None, side: int) -> Float32:
        """Image (side, side, 3) behind the torso; the backdrop in place of a room that is not learned yet."""
        room = torso.room if behind == ROOM and torso is not None else None
        if self._still is None or self._still[:2] != (behind, side) or self._still[2] is not room:
            self._still = behind, side, room, self._make(behind, torso, side)
        return self._still[3]

    def _make(self, behind: str, torso: TorsoLayer | None, side: int) -> Float32:
        if behind.startswith("#"):
            colour = [int(behind[i : i + 2], 16) / 255.0 for i in (1, 3, 5)]
            return np.full((side, side, 3), colour, dtype=np.float32)
        if behind == PICTURE and self._picture is not None:
            from PIL import Image

            picture = Image.fromarray(self._picture).resize((side, side), Image.Resampling.LANCZOS)
            return np.asarray(picture, dtype=np.float32) / np.float32(255.0)
        if behind == ROOM and torso is not None:
            return torso.room_picture(side).cpu().numpy()
        return backdrop(side)

    def _on_device(self, still: Float32, device: torch.device) -> torch.Tensor:
        import torch

        if self._uploaded is None or self._uploaded[0] is not still or self._uploaded[1].device != device:
            self._uploaded = still, torch.from_numpy(still).to(device)
        return self._uploaded[1]


def _read(path: Path) -> Bytes:
    """Central square of an image file, (S, S, 3) uint8, S at most `MAX_SIDE`.  UserError if it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"the background {path} has more than {MAX_PIXELS // 1_000_000} million pixels")
            upright = ImageOps.exif_transpose(image).convert("RGB")
            side = min(*upright.size, MAX_SIDE)
            return np.array(ImageOps.fit(upright, (side, side), Image.Resampling.LANCZOS))
    except FileNotFoundError:
        raise UserError(
            f"there is no background {str(path)!r}: give torso, calm, room, a colour such as #203040 or an image file"
        ) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is no JPEG, PNG or WebP file"
        raise UserError(f"the background {path} cannot be read: {reason}") from None
