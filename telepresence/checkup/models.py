"""The model files of tracking."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from telepresence.checkup.finding import Finding


def model_files(given: Path | None) -> Iterator[Finding]:
    """``given`` is a folder to look in before the user's cache."""
    from telepresence.tracking.model_files import (
        LANDMARKER,
        SEGMENTER,
        SEGMENTER_LANDSCAPE,
        SEGMENTER_SQUARE,
        VISION,
        ModelFile,
        model_cache,
    )

    folders = [folder for folder in (given, model_cache()) if folder is not None]
    kinds: dict[str, tuple[ModelFile, ...]] = {
        "face landmarks": (LANDMARKER,),
        "matte": (SEGMENTER, SEGMENTER_SQUARE, SEGMENTER_LANDSCAPE),
        "browser tracking": (VISION,),
    }
    for topic, files in kinds.items():
        places = [(folder / file.name, file) for folder in folders for file in files]
        path, file = next(((path, file) for path, file in places if path.is_file()), (None, files[0]))
        if path is None:
            place = model_cache() / file.name
            advice = f"fetched at first use; without network put {file.address} at {place}, or name --models DIR"
            yield Finding(topic, f"{file.name} is not here yet", ok=None, advice=advice)
        elif hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
            yield Finding(
                topic, f"{path} is not the expected file", ok=False, advice="delete it: a good one is fetched"
            )
        else:
            yield Finding(topic, str(path))
