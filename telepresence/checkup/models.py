"""Probe of the model files of face tracking."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from telepresence.checkup.finding import Finding


def model_files(given: Path | None) -> Iterator[Finding]:
    """MediaPipe's model files in the folder ``given`` (if any) and the user's cache, and their checksums."""
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
            advice = f"downloaded at first use; without network, copy {file.address} to {place} or use --models DIR"
            yield Finding(topic, f"{file.name} is not downloaded yet", ok=None, advice=advice)
        elif hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
            yield Finding(
                topic,
                f"{path} has the wrong checksum",
                ok=False,
                advice="delete it; it is downloaded again at the next use",
            )
        else:
            yield Finding(topic, str(path))
