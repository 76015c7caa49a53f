"""Backgrounds: what can be chosen by whom, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from insta_runtime.errors import UserError
from insta_runtime.torso.layer import ROOM_SIDE, TorsoLayer
from insta_runtime.torso.motion import INPUTS, MotionModel
from insta_runtime.types import Camera, HeadState
from telepresence.config import load_config
from telepresence.display.backgrounds import Background, Backgrounds
from telepresence.display.cards import backdrop

SIDE = 32
CAMERA = Camera(40.0, 40.0, 16.0, 16.0, SIDE, SIDE)
STATE = HeadState.neutral(52)
STILL = MotionModel(np.zeros((INPUTS + 1, 4)), np.zeros(INPUTS), np.full(INPUTS, 50.0))


def torso(rows: int) -> TorsoLayer:
    """Torso layer that is red in the lowest ``rows`` of 32, before a blue room."""
    rgba = torch.zeros(4, 32, 32)
    rgba[[0, 3], 32 - rows :] = 1.0
    room = torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(3, ROOM_SIDE, ROOM_SIDE).contiguous()
    return TorsoLayer(rgba, room, STILL)


def shown(backgrounds: Backgrounds, layer: TorsoLayer | None) -> np.ndarray:
    found = backgrounds.compose(layer, STATE, CAMERA)
    return found().numpy() if callable(found) else found


@pytest.mark.parametrize(
    "text", ["torso", "calm", "room", "#a0b1c2", "torso+room", "torso+#a0b1c2", "torso+/a b+c.png"]
)
def test_a_background_is_parsed_and_written_the_same(text: str) -> None:
    background = Background.parse(text)
    assert str(background) == text
    assert background.torso == text.startswith("torso")
    assert Background.parse(str(background)) == background


@pytest.mark.parametrize("text", ["", "  ", "#12", "#12345g", "torso+", "torso+torso", "torso+#1"])
def test_invalid_backgrounds_are_refused_by_the_configuration(text: str) -> None:
    with pytest.raises(UserError, match="there is no background"):
        load_config("cpu", [f"run.background={text}"], "cpu")


def test_the_torso_is_drawn_where_it_holds_and_the_backdrop_otherwise() -> None:
    backgrounds = Backgrounds("torso")
    calm = backdrop(SIDE)
    np.testing.assert_array_equal(shown(backgrounds, None), calm)
    np.testing.assert_array_equal(shown(backgrounds, torso(0)), calm)
    picture = shown(backgrounds, torso(8))
    np.testing.assert_allclose(picture[26:], np.broadcast_to([1.0, 0.0, 0.0], (6, SIDE, 3)), atol=1e-5)
    np.testing.assert_allclose(picture[:20], calm[:20], atol=1e-5)


def test_room_colour_and_torso_go_together() -> None:
    backgrounds = Backgrounds("torso+room")
    np.testing.assert_allclose(shown(backgrounds, torso(8))[:20, :, 2], 1.0, atol=1e-5)
    np.testing.assert_array_equal(shown(backgrounds, None), backdrop(SIDE))  # no room is known yet
    backgrounds.choose("#ff8000")
    np.testing.assert_allclose(shown(backgrounds, torso(8)), np.full((SIDE, SIDE, 3), [1.0, 128 / 255, 0.0]), atol=1e-6)
    still = backgrounds.compose(torso(8), STATE, CAMERA)
    assert backgrounds.compose(torso(8), STATE, CAMERA) is still  # what does not change is not uploaded again


def test_an_image_file_is_read_once_and_only_the_command_line_names_files(tmp_path: Path) -> None:
    path = tmp_path / "beach.png"
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (0, 200, 100)
    Image.fromarray(wide).save(path)
    backgrounds = Backgrounds(f"torso+{path}")
    path.unlink()
    assert str(backgrounds.chosen) == "torso+picture"  # viewers do not get the path
    assert backgrounds.choices == ["calm", "room", "picture"]
    middle = shown(backgrounds, None)
    np.testing.assert_allclose(middle[10:20, 10:20], np.full((10, 10, 3), [0.0, 200 / 255, 100 / 255]), atol=0.02)
    backgrounds.choose("calm")
    backgrounds.choose("picture")
    for text in (str(path), "/etc/passwd", "torso+/etc/passwd", "picture+torso", "torso+x"):
        with pytest.raises(UserError, match="there is no background"):
            backgrounds.choose(text)
    with pytest.raises(UserError, match="there is no background"):
        Backgrounds("calm").choose("picture")


def test_files_that_are_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no background"):
        Backgrounds(str(tmp_path / "absent.png"))
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(UserError, match="cannot be read"):
        Backgrounds(str(text))
    with pytest.raises(UserError, match="cannot be read"):
        Backgrounds(f"torso+{tmp_path}")
    vast = tmp_path / "vast.png"
    Image.new("1", (20_000, 3_000)).save(vast)
    with pytest.raises(UserError, match="million pixels"):
        Backgrounds(str(vast))


def test_the_torso_stays_while_the_head_nods() -> None:
    layer = torso(8)
    backgrounds = Backgrounds("torso")
    first = shown(backgrounds, layer)
    nod = replace(STATE, rotation=np.array([np.pi - 0.3, 0.0, 0.0], np.float32), t_capture_ns=100_000_000)
    found = backgrounds.compose(layer, nod, CAMERA)
    assert callable(found)
    np.testing.assert_allclose(found().numpy(), first, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["2024-05-01T12:30:00.png", "http:.png", "-x.png", "%d.png", "torso+x.png", "脸 b.png"]
)
def test_an_image_is_read_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), (0, 255, 0)).save(tmp_path / name)
    given = f"torso+{name}" if name.startswith("torso") else name
    np.testing.assert_allclose(shown(Backgrounds(given), None)[4, 4], [0.0, 1.0, 0.0], atol=1e-5)
