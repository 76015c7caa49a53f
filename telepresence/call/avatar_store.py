"""Folders of avatars: where a new one is created, and what a stored one contains."""

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
    """Path of a new avatar in the user's data folder, named by date and time."""
    from platformdirs import user_data_path

    folder = user_data_path("telepresence") / "avatars"
    path = folder / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return path if not path.exists() else path.with_name(f"{path.name}_{os.getpid()}")


def stored_avatar(path: Path, head: HeadModel, device: str) -> Avatar | None:
    """Load the avatar at ``path``; None if the path does not exist.  UserError if it is something else."""
    from insta_runtime.avatar import Avatar, is_stored

    if is_stored(path):
        return Avatar.load(path, head, device)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is no avatar: give a folder, a new one or one that a call has saved")
    return None


def stored_calibration(avatar: Avatar | None) -> Calibration | None:
    """Calibration of subject and camera that was saved with ``avatar``; None if there is none."""
    from telepresence.tracking.calibration import Calibration

    known = avatar.calibration if avatar is not None else None
    return Calibration.from_json(json.dumps(known)) if known is not None else None
