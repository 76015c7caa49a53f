"""Cards and the backdrop."""

from __future__ import annotations

import numpy as np

from telepresence.display.cards import backdrop, card


def test_a_card_is_an_image_and_depends_on_its_text() -> None:
    one = card("Waiting for a face", "Look into the camera.", 512)
    two = card("Camera lost", "Plug it in again. " * 40, 512)
    assert one.shape == two.shape == (512, 512, 3)
    assert one.dtype == np.uint8
    assert (one != two).any()
    assert one.max() > 200  # ink
    assert one.mean() > 20  # never a black picture


def test_the_backdrop_is_calm_at_any_size() -> None:
    for side in (64, 512):
        picture = backdrop(side)
        assert picture.shape == (side, side, 3)
        assert 0.0 <= picture.min() <= picture.max() < 0.5
        assert np.abs(np.diff(picture, axis=0)).max() < 0.03
