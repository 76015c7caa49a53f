"""Paths of avatar folders, and loading of stored avatars and their calibration."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from insta_runtime.errors import UserError

if TYPE_CHECKING:
    from insta_runtime.avatar import Avatar
    from insta_runtime.head import HeadModel
    from telepresence.tracking.calibration import Calibration


def new_avatar_path() -> Path:
    """Unused path in the user's data folder for a new avatar, named by the date and time; nothing is created."""
    from platformdirs import user_data_path

    folder = user_data_path("telepresence") / "avatars"
    path = folder / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return path if not path.exists() else path.with_name(f"{path.name}_{os.getpid()}")


def stored_avatar(path: Path, head: HeadModel, device: str) -> Avatar | None:
    """Load the avatar in folder ``path``; None if there is none yet.  UserError if ``path`` is another kind of file."""
    from insta_runtime.avatar import Avatar, is_stored

    if is_stored(path):
        return Avatar.load(path, head, device)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is no avatar: give a folder, a new one or one that a call has saved")
    return None


def stored_calibration(avatar: Avatar | None) -> Calibration | None:
    """Calibration of subject and camera that was saved with ``avatar``; None without an avatar or a calibration."""
    from telepresence.tracking.calibration import Calibration

    known = avatar.calibration if avatar is not None else None
    return Calibration.from_json(json.dumps(known)) if known is not None else None
