"""Fixtures for tests of the media server: a running server with a test pattern, data channels, a camera film."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.studio import DataChannelCalls, Studio


@pytest.fixture
def studio() -> Iterator[Studio]:
    """A running `Studio` with default settings."""
    with Studio() as studio:
        yield studio


@pytest.fixture
def studio_type() -> type[Studio]:
    """Class `Studio`, for tests that choose the settings of the stream."""
    return Studio


@pytest.fixture
def call_daemon() -> DataChannelCalls:
    """``call_daemon(address, labels, camera=False)``: open data channels of a call, without a browser."""
    return DataChannelCalls()


@pytest.fixture(scope="session")
def camera_film(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A motion-JPEG file that Chromium plays as its camera, and the (480, 512, 3) images in it."""
    import av

    path = tmp_path_factory.mktemp("camera") / "film.mjpeg"
    images: list[np.ndarray] = []
    with av.open(str(shared / "clips" / "d9.mp4")) as clip, path.open("wb") as film:
        for frame in clip.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            images.append(image)
            Image.fromarray(image).save(film, "JPEG", quality=92)
            if len(images) == 60:
                break
    return path, images
