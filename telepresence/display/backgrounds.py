"""What the learned head is put over: a torso, and behind it a calm backdrop, the room, a colour or a picture.

A background is written as ``torso``, ``calm``, ``room``, ``#rrggbb``, or the path of a picture; ``torso+room`` (or any
other in place of ``room``) puts the learned torso before it.  ``torso`` alone stands before the calm backdrop.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from insta_runtime.errors import UserError
from telepresence.display.cards import backdrop

if TYPE_CHECKING:
    import torch

    from insta_runtime.render.renderer import Painter
    from insta_runtime.torso.layer import TorsoLayer
    from insta_runtime.torso.motion import SlowPose
    from insta_runtime.types import Bytes, Camera, Float32, HeadState

CALM: Final = "calm"
ROOM: Final = "room"
TORSO: Final = "torso"
PICTURE: Final = "picture"
"""For viewers, who are told no paths: the picture that the daemon was started with."""

MAX_PIXELS: Final = 50_000_000
"""Of a picture file: a larger one is refused before it is unpacked."""
KEPT: Final = 2048
"""Largest side at which a picture is kept."""

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class Background:
    """``torso``: whether the learned torso is drawn; ``behind`` it: `CALM`, `ROOM`, a ``#rrggbb`` or a path."""

    torso: bool
    behind: str

    @staticmethod
    def parse(text: str) -> Background:
        """What ``text`` asks for.  UserError if that is nothing; a path is only looked at by `Backgrounds`."""
        first, plus, rest = text.strip().partition("+")
        torso = first.strip() == TORSO
        behind = (rest.strip() if plus else CALM) if torso else text.strip()
        if not behind or behind == TORSO or (behind.startswith("#") and not _COLOUR.fullmatch(behind)):
            raise UserError(
                f"there is no background {text!r}: take torso, calm, room, a colour such as #203040, the path of a"
                " picture, or torso+ and one of these"
            )
        return Background(torso, behind.lower() if behind.startswith("#") else behind)

    @property
    def has_picture(self) -> bool:
        """Whether ``behind`` is the path of a picture."""
        return self.behind not in (CALM, ROOM) and not self.behind.startswith("#")

    def __str__(self) -> str:
        if not self.torso:
            return self.behind
        return TORSO if self.behind == CALM else f"{TORSO}+{self.behind}"


class Backgrounds:
    """The background of a stream: `choose` from any thread, `under` from the one that renders."""

    def __init__(self, text: str) -> None:
        """``text`` as `Background.parse` reads it.  UserError for what is none, or a picture that cannot be read."""
        chosen = Background.parse(text)
        self._picture = _read(Path(chosen.behind)) if chosen.has_picture else None
        self._chosen = replace(chosen, behind=PICTURE) if chosen.has_picture else chosen
        self._slow: SlowPose | None = None
        self._still: tuple[str, int, torch.Tensor | None, Float32] | None = None
        self._uploaded: tuple[Float32, torch.Tensor] | None = None

    @property
    def chosen(self) -> Background:
        """What is shown; a picture goes by the name `PICTURE`."""
        return self._chosen

    @property
    def choices(self) -> list[str]:
        """Words for what may be behind the torso; a colour may, too."""
        return [CALM, ROOM, *([PICTURE] if self._picture is not None else [])]

    def choose(self, text: str) -> None:
        """Show another background from the next picture on.  UserError for anything but `choices` and colours."""
        chosen = Background.parse(text)
        if chosen.behind not in self.choices and not chosen.behind.startswith("#"):
            raise UserError(f"there is no background {text[:60]!r}: behind the torso may be {', '.join(self.choices)}")
        self._chosen = chosen

    def under(self, torso: TorsoLayer | None, state: HeadState, camera: Camera) -> Float32 | Painter:
        """What the head in ``state`` is put over, as ``camera`` (a square picture) sees it.

        An array (H, W, 3) in [0, 1], the same one while nothing changes, or who paints one.  Call it with every state
        that is shown: the torso follows the head's slow mean.
        """
        from insta_runtime.torso.motion import SlowPose, picture_pose

        self._slow = self._slow or SlowPose()
        inputs = self._slow.inputs(picture_pose(state, camera), state.t_capture_ns)
        chosen = self._chosen
        still = self._still_picture(chosen.behind, torso, camera.width)
        if torso is None or not (chosen.torso and torso.holds):
            return still
        device = torso.rgba.device
        return lambda: torso.draw(inputs, self._on_device(still, device))

    def _still_picture(self, behind: str, torso: TorsoLayer | None, side: int) -> Float32:
        """(side, side, 3), what does not move; the calm backdrop for a room that is not known yet."""
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
    """The middle square of a picture file, (S, S, 3) uint8, S at most `KEPT`.  UserError if it is none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"the background {path} has more than {MAX_PIXELS // 1_000_000} million pixels")
            upright = ImageOps.exif_transpose(image).convert("RGB")
            side = min(*upright.size, KEPT)
            return np.array(ImageOps.fit(upright, (side, side), Image.Resampling.LANCZOS))
    except FileNotFoundError:
        raise UserError(
            f"there is no background {str(path)!r}: take torso, calm, room, a colour such as #203040 or a picture file"
        ) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is no JPEG, PNG or WebP picture"
        raise UserError(f"the background {path} cannot be read: {reason}") from None
