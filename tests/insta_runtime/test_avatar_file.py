"""Avatar files: round trip, refusal of invalid files, and no loss when writing fails."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from insta_runtime.avatar import CELLS as STORED
from insta_runtime.avatar import FILE_NAME, Avatar, choose_device
from insta_runtime.avatar_file import previous, read, seal
from insta_runtime.avatar_migration import VERSION
from insta_runtime.config import OccupancyConfig
from insta_runtime.errors import UserError
from insta_runtime.field.expression_code import HEAD_WIDTH, ExpressionCode
from insta_runtime.render.renderer import Renderer
from tests.support.small_person import CPU, SMALL, camera, flame_head, neutral_shape, open_head, performance, pose

CELLS = STORED[0]
COARSE = replace(SMALL, occupancy=OccupancyConfig(resolution=16))

Header = dict[str, Any]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    shape = neutral_shape(open_head())
    shape[:3] = [0.5, -1.0, 1.5]
    avatar = Avatar.create(open_head(), shape, camera(48), COARSE, CPU)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        avatar.model.field.grid.table.copy_(torch.rand(avatar.model.field.grid.table.shape, generator=generator))
    avatar.model.occupancy.value[::3] = 0.0
    avatar.model.occupancy.load(avatar.model.occupancy.state())
    for state in performance(open_head(), 80):
        avatar.model.code.observe(state)
    avatar.calibration, avatar.seconds, avatar.steps = {"offsets": [0.25, None, "x"]}, 12.5, 340
    return avatar


@pytest.fixture
def saved(avatar: Avatar, tmp_path: Path) -> Path:
    """The file of the saved avatar."""
    avatar.save(tmp_path / "me")
    return tmp_path / "me" / FILE_NAME


def refused(path: Path) -> str:
    """The one-line error with which loading ``path`` fails."""
    with pytest.raises(UserError) as caught:
        Avatar.load(path, open_head(), CPU)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def tamper(file: Path, change: Callable[[Header, Tensors], object], *, sealed: bool = True) -> None:
    """Rewrite ``file`` with its header and tensors changed in place, and with a valid seal if ``sealed``."""
    with safe_open(file, "pt") as content:
        header: Header = json.loads(content.metadata()["header"])
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
    change(header, tensors)
    text = json.dumps(header)
    whole = all(tensor.dtype == torch.float32 for tensor in tensors.values())
    save_file(tensors, file, {"header": text} | ({"sha256": seal(text, tensors)} if sealed and whole else {}))


def test_round_trip_renders_the_same_picture(avatar: Avatar, saved: Path) -> None:
    state = pose(open_head(), jaw=0.5, yaw=0.2)
    truth = Renderer(avatar.model).render(state, camera(32)).rgba
    assert truth[..., 3].max() > 0.1
    for path in (saved, saved.parent):
        loaded = Avatar.load(path, open_head(), "cpu")
        np.testing.assert_array_equal(Renderer(loaded.model).render(state, camera(32)).rgba, truth)
        np.testing.assert_array_equal(loaded.model.shape, avatar.model.shape)
        assert loaded.model.config == COARSE
        assert loaded.camera == camera(48)
        assert loaded.calibration == avatar.calibration
        assert (loaded.seconds, loaded.steps) == (12.5, 340)


def test_the_range_of_expressions_is_stored(avatar: Avatar, saved: Path) -> None:
    loaded = Avatar.load(saved, open_head(), CPU)
    code = loaded.part(ExpressionCode)
    assert code is loaded.model.code
    assert code.reservoir.count == 80
    for state in (pose(open_head(), jaw=1.0, blink=0.3), pose(open_head(), smile=0.1)):
        np.testing.assert_allclose(code(state), avatar.model.code(state), atol=1e-6)


def test_an_avatar_without_expression_statistics_uses_raw_codes(saved: Path) -> None:
    def older(header: Header, tensors: Tensors) -> None:
        del header["config"]["conditioning"]
        for name in [name for name in tensors if name.startswith("expression.")]:
            del tensors[name]

    tamper(saved, older)
    code = Avatar.load(saved, open_head(), CPU).model.code
    state = pose(open_head(), jaw=1.0, smile=0.5)
    np.testing.assert_array_equal(code(state), code.raw(state))
    code.observe(pose(open_head()))
    np.testing.assert_array_equal(code.learned(code.raw(state)), code.raw(state))


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_not_utf8_load(avatar: Avatar, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/av\xff"))
    avatar.save(folder)
    assert read(folder / FILE_NAME).sha256 is not None
    assert Avatar.load(folder, open_head(), "cpu").steps == avatar.steps


def test_saving_again_keeps_the_previous_file_and_nothing_else(avatar: Avatar, saved: Path) -> None:
    first = saved.read_bytes()
    avatar.save(saved)
    assert saved.read_bytes() == first
    other = Avatar.load(saved, open_head(), CPU)
    other.steps = 341
    other.save(saved)
    assert Avatar.load(saved, open_head(), CPU).steps == 341
    assert previous(saved).read_bytes() == first
    assert sorted(path.name for path in saved.parent.iterdir()) == ["avatar.previous.safetensors", FILE_NAME]


def test_the_previous_file_replaces_a_damaged_one(
    avatar: Avatar, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    avatar.save(saved)
    for damage in (saved.read_bytes()[:-9], None):
        saved.unlink()
        if damage is not None:
            saved.write_bytes(damage)
        caplog.clear()
        loaded = Avatar.load(saved, open_head(), CPU)
        assert (loaded.steps, loaded.spoilt) == (340, True)
        assert [str(saved) in record.getMessage() for record in caplog.records] == [True], "one line"
    saved.write_bytes(b"damaged")
    before = previous(saved).read_bytes()
    loaded.save(saved)
    assert previous(saved).read_bytes() == before, "a damaged file does not replace an intact one"
    assert not Avatar.load(saved, open_head(), CPU).spoilt
    previous(saved).write_bytes(b"damaged")
    saved.write_bytes(b"damaged")
    assert str(saved) in refused(saved)


def test_avatars_of_the_first_version_are_loaded(avatar: Avatar, saved: Path) -> None:
    def older(header: Header, tensors: Tensors) -> None:
        header["version"] = 1
        del header["person"], header["consent"]
        tensors["density_net.0.weight"] = tensors["density_net.0.weight"][:, :-HEAD_WIDTH].contiguous()

    tamper(saved, older, sealed=False)
    loaded = Avatar.load(saved, open_head(), CPU)
    assert (loaded.steps, loaded.consent, loaded.sha256) == (340, False, None)
    loaded.save(saved)
    assert read(saved).header["version"] == VERSION


def test_consent_and_seal_are_kept(avatar: Avatar, saved: Path) -> None:
    loaded = Avatar.load(saved, open_head(), CPU)
    assert (loaded.consent, loaded.sha256) == (False, read(saved).sha256)
    loaded.consent = True
    loaded.save(saved)
    again = Avatar.load(saved, open_head(), CPU)
    assert (again.consent, again.sha256) == (True, loaded.sha256)


def test_a_changed_bit_is_detected(saved: Path) -> None:
    """Wherever one flips, or the file ends early, it is refused; or it says the same in other words."""
    data = saved.read_bytes()
    truth = read(saved)
    numbers = len(data) - sum(tensor.numel() * 4 for tensor in truth.tensors.values())

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(st.one_of(st.integers(0, numbers - 1), st.integers(0, len(data) - 1)), st.integers(0, 7), st.booleans())
    def flipped_or_cut(place: int, bit: int, cut: bool) -> None:
        saved.write_bytes(data[:place] if cut else data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :])
        try:
            content = read(saved)
        except UserError:
            content = None
        if content is None or content.sha256 is None:  # of these the bit was in the name of the seal
            refused(saved)
            return
        assert content.header == truth.header
        assert all(torch.equal(content.tensors[name], tensor) for name, tensor in truth.tensors.items())

    flipped_or_cut()


def test_the_newest_snapshot_is_saved(avatar: Avatar, saved: Path) -> None:
    other = Avatar.load(saved, open_head(), CPU)
    snapshot = {name: t.clone() for name, t in Renderer(other.model).model.field.state_dict().items()}
    snapshot["grid.table"].fill_(0.125)
    occupancy = {f"occupancy.{name}": t.clone() for name, t in other.model.occupancy.state().items()}
    other.update(snapshot | occupancy, 341)
    other.save(saved)
    again = Avatar.load(saved, open_head(), CPU)
    assert (again.model.field.grid.table == 0.125).all()
    assert (again.steps, again.seconds) == (341, 12.5)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, this is no avatar\n" * 20,
        np.random.default_rng(0).bytes(4096),
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
    ],
    ids=["empty", "text", "random", "huge header", "no tensors", "no table"],
)
def test_a_file_that_is_not_an_avatar_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / FILE_NAME
    file.write_bytes(content)
    assert str(file) in refused(file)


def test_an_absent_avatar_is_refused_with_a_hint(tmp_path: Path) -> None:
    assert "telepresence fit" in refused(tmp_path)
    assert "telepresence fit" in refused(tmp_path / "nowhere" / FILE_NAME)
    (tmp_path / FILE_NAME).mkdir()
    refused(tmp_path)


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved: Path, part: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * part)])
    refused(saved)


def test_another_head_is_refused_by_name(saved: Path) -> None:
    with pytest.raises(UserError, match=r"another head model.*open head.*--head"):
        Avatar.load(saved, flame_head(), CPU)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


TAMPERED: dict[str, Callable[[Header, Tensors], object]] = {
    "another version": lambda h, t: h.update(version=VERSION + 1),
    "a version of many lines": lambda h, t: h.update(version="1\n2\n" * 99),
    "a sealed file of the first version": lambda h, t: h.update(version=1),
    "another person": lambda h, t: h.update(person="0" * 16),
    "no person": lambda h, t: h.pop("person"),
    "no version": lambda h, t: h.pop("version"),
    "a head of many lines": lambda h, t: h.update(head={"sha256": "0", "name": "a\nb" * 999}),
    "no head": lambda h, t: h.update(head=None),
    "unknown setting": lambda h, t: h["config"]["warp"].update(wings=2),
    "unknown setting of many lines": lambda h, t: h["config"].update({"a\nb" * 999: 2}),
    "long setting": lambda h, t: h["config"]["warp"].update(cell="x" * 9999),
    "setting out of bounds": lambda h, t: h["config"]["learn"].update(rays=0),
    "huge setting": lambda h, t: h["config"]["learn"].update(replay_mb=10**30),
    "huge seed": lambda h, t: h["config"]["learn"].update(seed=10**30),
    "another field": lambda h, t: h["config"]["radiance"].update(levels=3),
    "huge field": lambda h, t: h["config"]["radiance"].update(levels=24, features=8, log2_entries=24),
    "another occupancy": lambda h, t: h["config"]["occupancy"].update(resolution=12),
    "no configuration": lambda h, t: h.update(config=None),
    "camera of words": lambda h, t: h["camera"].update(fx="wide"),
    "camera without focal length": lambda h, t: h["camera"].update(fx=0.0),
    "infinite camera": lambda h, t: h["camera"].update(cx=float("inf")),
    "camera with half a pixel": lambda h, t: h["camera"].update(width=48.5),
    "huge camera": lambda h, t: h["camera"].update(width=10**9),
    "camera without pixels": lambda h, t: h["camera"].update(height=0),
    "unknown camera": lambda h, t: h["camera"].update(k1=0.1),
    "no camera": lambda h, t: h.pop("camera"),
    "endless training": lambda h, t: h.update(steps=float("inf")),
    "steps of no number": lambda h, t: h.update(seconds=[]),
    "calibration of words": lambda h, t: h.update(calibration="perfect"),
    "no identity": lambda h, t: t.pop("shape"),
    "another identity": lambda h, t: t.update(shape=torch.zeros(3)),
    "no weights": lambda h, t: t.pop("grid.table"),
    "an additional tensor": lambda h, t: t.update(extra=torch.zeros(3)),
    "weights of another shape": lambda h, t: t.update({"grid.table": torch.zeros(3, 2)}),
    "weights that are no numbers": lambda h, t: t["grid.table"][5].fill_(torch.nan),
    "infinite weights": lambda h, t: t["density_net.0.weight"][0].fill_(torch.inf),
    "weights beyond float32": lambda h, t: t.update({"grid.table": t["grid.table"].double().add(1e300)}),
    "identity that is no number": lambda h, t: t["shape"].fill_(torch.nan),
    "no occupancy": lambda h, t: t.pop("occupancy.value"),
    "occupancy of another shape": lambda h, t: t.update({"occupancy.value": torch.zeros(1)}),
    "no cells": lambda h, t: t.pop(CELLS),
    "cells of whole numbers": lambda h, t: t.update({CELLS: t[CELLS].long()}),
    "cells of no grid": lambda h, t: t[CELLS].add_(16**3),
    "a negative cell": lambda h, t: t[CELLS][0].fill_(-1.0),
    "half a cell": lambda h, t: t[CELLS].add_(0.5),
    "a huge cell": lambda h, t: t[CELLS][-1].fill_(3e38),
    "a cell that is no number": lambda h, t: t[CELLS][0].fill_(torch.nan),
    "a cell twice": lambda h, t: t[CELLS][1].copy_(t[CELLS][0]),
    "cells in disorder": lambda h, t: t.update({CELLS: t[CELLS].flip(0)}),
    "cells in a table": lambda h, t: t.update({CELLS: t[CELLS][:, None]}),
    "more cells than values": lambda h, t: t.update({"occupancy.view_count": t["occupancy.view_count"][1:]}),
    "a triangle of no head": lambda h, t: t["occupancy.triangle"][3].fill_(1e6),
    "half a triangle": lambda h, t: t["occupancy.triangle"][3].add_(0.5),
    "no masks": lambda h, t: t.pop("occupancy.masks"),
    "masks beyond one": lambda h, t: t["occupancy.masks"][0].fill_(1.5),
    "masks of one number": lambda h, t: t.update({"occupancy.masks": t["occupancy.masks"][:, :1].contiguous()}),
    "a value for all cells": lambda h, t: t.update({"occupancy.value": torch.zeros(())}),
    "expressions without their mean": lambda h, t: t.pop("expression.mean"),
    "expressions with something else": lambda h, t: t.update({"expression.extra": torch.zeros(1)}),
    "expressions of another head": lambda h, t: t.update({"expression.states": torch.zeros(80, 5)}),
    "expressions without a count": lambda h, t: t["expression.count"].fill_(81.0),
    "half an expression": lambda h, t: t["expression.count"].fill_(79.5),
    "countless expressions": lambda h, t: t["expression.count"].fill_(-1.0),
    "huge expressions": lambda h, t: t["expression.states"].fill_(1e30),
    "expressions of no spread": lambda h, t: t["expression.spread"].fill_(0.0),
    "no cell": lambda h, t: t.update({name: t[name][:0] for name in list(t) if name.startswith("occupancy.")}),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED.keys())
def test_a_tampered_file_is_refused(saved: Path, change: Callable[[Header, Tensors], object]) -> None:
    tamper(saved, change)
    assert str(saved) in refused(saved)


OLDER: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "a wider network": (
        lambda t: t.update({"density_net.0.weight": torch.zeros(7, 5)}),
        "density_net.0.weight has the shape [7, 5], not ",
    ),
    "a network fewer": (lambda t: t.pop("density_net.0.weight"), "its field has no density_net.0.weight"),
    "a network more": (lambda t: t.update({"gaze_net.weight": torch.zeros(3)}), "its field has no use for gaze_net"),
    "no masks": (lambda t: t.pop("occupancy.masks"), "it has no occupancy.masks"),
    "no identity": (lambda t: t.pop("shape"), "it has no shape"),
}


@pytest.mark.parametrize(("change", "why"), OLDER.values(), ids=OLDER.keys())
def test_an_avatar_of_an_older_program_is_refused_with_what_to_do(
    saved: Path, change: Callable[[Tensors], object], why: str
) -> None:
    tamper(saved, lambda _, tensors: change(tensors))
    text = refused(saved)
    assert text.startswith(f"{saved} was saved by an incompatible version of the program ({why}")
    assert text.endswith(": open it with the version that saved it, or start a new avatar in another folder")
    assert "damaged" not in text
    tamper(saved, lambda header, _: header.update(version=1), sealed=False)
    why = why.replace("[7, 5]", f"[7, {5 + HEAD_WIDTH}]")  # the code of the first version is extended
    assert f"damaged or not an avatar file: {why}" in refused(saved), "without a seal damage cannot be excluded"


def test_cells_are_loaded_as_stored_whatever_the_rounding_of_this_machine(avatar: Avatar, saved: Path) -> None:
    """Candidate cells come from the file and are not computed again."""
    own = avatar.model.occupancy
    kept = torch.ones(len(own.cells), dtype=torch.bool).index_fill(0, torch.tensor([0, 7, 100]), False)

    def elsewhere(header: Header, tensors: Tensors) -> None:
        tensors.update({name: tensors[name][kept] for name in tensors if name.startswith("occupancy.")})

    tamper(saved, elsewhere)
    loaded = Avatar.load(saved, open_head(), CPU).model.occupancy
    assert torch.equal(loaded.cells, own.cells[kept])
    assert torch.equal(loaded.triangle, own.triangle[kept])
    assert torch.equal(loaded.masks, own.masks[kept])
    for name, truth in own.state().items():
        assert torch.equal(loaded.state()[name], truth[kept]), name


def test_a_header_that_is_no_json_object_is_refused(saved: Path) -> None:
    with safe_open(saved, "pt") as content:
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
    for text in ("", "{", "[]", "null", "[" * 200_000, '{"version": 1, "a": ' + "9" * 5000 + "}", " " * (1 << 21)):
        save_file(tensors, saved, {"header": text})
        refused(saved)
    save_file(tensors, saved)
    refused(saved)


def test_an_unwritable_path_is_a_user_error(avatar: Avatar, tmp_path: Path) -> None:
    file = tmp_path / "occupied"
    file.write_text("a file where a folder is wanted")
    for path in (file, file / "me", Path("/proc/nowhere")):
        with pytest.raises(UserError, match="cannot be written") as caught:
            avatar.save(path)
        assert "\n" not in str(caught.value)
    assert file.read_text() == "a file where a folder is wanted"


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_old_file(
    avatar: Avatar, saved: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    before = saved.read_bytes()
    other = Avatar.load(saved, open_head(), CPU)
    other.steps = 9999

    def fail(descriptor: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((UserError, KeyboardInterrupt)):
        other.save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [FILE_NAME]


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device cpu"):
            choose_device("cuda")
