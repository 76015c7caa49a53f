"""Migration of avatar files of older format versions to the present one, in memory; the file is not changed.

Version 1 had no seal, no consent and no fingerprint of the subject.  Version 2 named some tensors and one table of the
configuration otherwise than version 3.  Up to version 3 expression codes had no head part (version 4, the present one).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from insta_runtime import avatar_file
from insta_runtime.errors import UserError
from insta_runtime.field.radiance import with_head_part
from insta_runtime.head import fingerprint

VERSION: Final = 4
"""Format version of the avatar files that this program writes."""
OLDEST: Final = 1
"""Oldest format version that this program reads."""

RENAMED_TENSORS: Final = {
    "registration": "pose_refinement",
    "occupancy.seen": "occupancy.view_count",
    "occupancy.inside": "occupancy.matte_count",
    "occupancy.lit": "occupancy.visibility",
}
"""New names of tensors, by their names in versions 1 and 2."""
RENAMED_TABLES: Final = {"registration": "pose_refinement"}
"""New names of tables of the configuration, by their names in versions 1 and 2."""


def migrated(file: Path, contents: avatar_file.FileContents) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of an avatar file, converted from an older format version to the present one.

    Raises UserError, naming ``file``, if the format version is unknown or the file lacks its seal.
    """
    header, tensors = dict(contents.header), dict(contents.tensors)
    version = header.get("version")
    if type(version) is not int or not OLDEST <= version <= VERSION or (version == 1 and contents.sha256 is not None):
        raise UserError(
            f"{file} has avatar format {avatar_file.brief(version)}; this program reads {OLDEST} to {VERSION}:"
            " open it with the version of the program that saved it"
        )
    if version > 1 and contents.sha256 is None:
        raise avatar_file.damaged(file, "it has no seal")
    if version == 1:
        header |= {"consent": False}
        if "shape" in tensors:
            header["person"] = fingerprint(tensors["shape"].numpy().astype(np.float32))
    if version < 3:
        tensors = {RENAMED_TENSORS.get(name, name): tensor for name, tensor in tensors.items()}
        if "occupancy.visibility" not in tensors and "occupancy.value" in tensors:
            tensors["occupancy.visibility"] = torch.ones_like(tensors["occupancy.value"])
        if isinstance(config := header.get("config"), dict):
            header["config"] = {RENAMED_TABLES.get(name, name): table for name, table in config.items()}
    if version < 4:
        tensors = with_head_part(tensors)
    header["version"] = VERSION
    return header, tensors
