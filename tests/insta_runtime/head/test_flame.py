"""FLAME files as pickle and npz, and invalid or malicious files."""

from __future__ import annotations

import os
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from insta_runtime.errors import UserError
from insta_runtime.head import HeadModel, load_head
from insta_runtime.head.model import EYE_LEFT, EYE_RIGHT, REGIONS, SKIN
from insta_runtime.head.pickles import read_pickle
from tests.support.flame_layout import flame_layout, write_npz, write_pickle


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return flame_layout()


@pytest.fixture(scope="module")
def pickled(arrays, tmp_path_factory) -> Path:
    return write_pickle(tmp_path_factory.mktemp("flame") / "generic_model.pkl", arrays)


@pytest.fixture(scope="module")
def head(pickled) -> HeadModel:
    return load_head(pickled)


def test_pickle_and_npz_give_the_same_head(arrays, head, tmp_path):
    other = load_head(write_npz(tmp_path / "flame.npz", arrays))
    for field in ("template", "shape_dirs", "expression_dirs", "pose_dirs", "joints", "skin_weights", "faces"):
        assert np.array_equal(getattr(head, field), getattr(other, field)), field
    assert head.sha256 != other.sha256, "the hash is that of the file"


def test_layout(arrays, head):
    assert head.basis == "flame"
    assert head.template.shape == (5023, 3)
    assert head.faces.shape == (9976, 3)
    assert head.shape_dirs.shape == (300, 5023, 3)
    assert head.expression_dirs.shape == (100, 5023, 3)
    assert head.pose_dirs.shape == (36, 5023, 3)
    assert len(head.expression_names) == 100
    assert np.array_equal(head.expression_dirs[7], arrays["shapedirs"][:, :, 307].astype(np.float32))
    assert np.allclose(head.joints, arrays["J_regressor"] @ arrays["v_template"], atol=1e-6)
    moved = arrays["v_template"] + arrays["shapedirs"][:, :, 11]
    assert np.allclose(head.joints + head.joint_shape_dirs[11], arrays["J_regressor"] @ moved, atol=1e-6)


def test_parts_and_regions_are_derived_from_the_mesh(head):
    original = load_head()
    counts = [(head.face_group == group).sum() for group in (SKIN, EYE_LEFT, EYE_RIGHT)]
    assert sum(counts) == 9976
    assert min(counts[1:]) > 100
    assert set(head.masks) == set(REGIONS)
    skin = original.vertex_group() == SKIN
    where = {tuple(p): i for i, p in enumerate(original.template[skin])}
    pairs = np.array([(i, where[tuple(p)]) for i, p in enumerate(head.template) if tuple(p) in where])
    for region in REGIONS:
        guess, truth = head.masks[region][pairs[:, 0]] > 0.5, original.masks[region][skin][pairs[:, 1]] > 0.5
        assert (guess & truth).sum() > 0.4 * (guess | truth).sum(), region


def test_lids_close_the_opening(head):
    for side, joint in enumerate(head.joints[3:]):
        skin = head.vertex_group() == SKIN

        def opening(vertices: np.ndarray, joint: np.ndarray = joint, skin: np.ndarray = skin) -> float:
            x, y, z = (vertices - joint).T
            elevation = np.arctan2(y, z)
            lid = skin & (np.abs(x) < 0.003) & (np.hypot(y, z) < 0.025) & (np.abs(elevation) < 0.6)
            return float(np.diff(np.sort(elevation[lid])).max())

        before, after = opening(head.template), opening(head.template + head.eyelid_dirs[side])
        assert after < 0.5 * before


def test_python_2_arrays(tmp_path):
    """An array as Python 2 wrote it: its bytes are a str."""
    values = np.array([[1.5, -2.0, 1e-3], [3.0, 0.0, 7.0]])
    data = values.tobytes()
    text = (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(data)) + data + b"tbs."
    )
    assert np.array_equal(pickle.loads(text, encoding="latin1")["a"], values), "the test's own bytes are right"
    assert np.array_equal(read_pickle(_write(tmp_path / "two.pkl", text))["a"], values)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_plain_pickles_of_any_protocol(protocol, tmp_path):
    content = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.arange(3, dtype=np.uint32), "note": "text"}
    path = tmp_path / "some.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_pickle(path)
    assert set(read) == {"a", "b"}
    assert np.array_equal(read["a"], content["a"])
    assert np.array_equal(read["b"], content["b"])


class Harm:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


class Harm2(Harm):
    def __reduce__(self):
        return (eval, (f"open({str(self.target)!r}, 'w')",))


class Harm3(Harm):
    def __reduce__(self):
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("harm", [Harm, Harm2, Harm3])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_would_run_code_is_refused(harm, protocol, tmp_path):
    path, target = tmp_path / "flame.pkl", tmp_path / "harm"
    path.write_bytes(pickle.dumps({"v_template": harm(target)}, protocol=protocol))
    with pytest.raises(UserError, match=r"refers to .* not allowed") as refusal:
        load_head(path)
    assert "\n" not in str(refusal.value)
    assert not target.exists()


def _object_npz(path: Path) -> Path:
    np.savez(path, v_template=np.array([{"a": 1}], dtype=object))
    return path


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda p: p / "missing.pkl", id="missing"),
        pytest.param(lambda p: p, id="folder"),
        pytest.param(lambda p: _write(p / "empty.pkl", b""), id="empty"),
        pytest.param(lambda p: _write(p / "text.pkl", b"hello, I am a text file\n"), id="text"),
        pytest.param(lambda p: _write(p / "text.obj", b"v 0 0 0\n"), id="obj"),
        pytest.param(lambda p: _write(p / "list.pkl", pickle.dumps([1, 2])), id="list"),
        pytest.param(lambda p: _write(p / "other.pkl", pickle.dumps({"v_template": np.zeros((7, 3))})), id="no head"),
        pytest.param(lambda p: _write(p / "cut.npz", b"PK\x03\x04 and then nothing"), id="cut npz"),
        pytest.param(lambda p: write_npz(p / "small.npz", {"v_template": np.zeros((7, 3))}), id="other npz"),
        pytest.param(lambda p: write_npz(p / "meta.npz", {"meta": np.array("{}")}), id="empty open head"),
        pytest.param(lambda p: _object_npz(p / "objects.npz"), id="npz of objects"),
    ],
)
def test_invalid_head_files_give_a_one_line_error(make, tmp_path):
    path = make(tmp_path)
    with pytest.raises(UserError) as refusal:
        load_head(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("key", "spoil"),
    [
        ("v_template", lambda a: np.where(np.arange(a.size).reshape(a.shape) == 5, np.nan, a)),
        ("f", lambda a: a + 10),
        ("weights", lambda a: a * 2.0),
        ("shapedirs", lambda a: a[..., :150]),
        ("kintree_table", lambda a: a[:, ::-1]),
    ],
)
def test_a_damaged_head_is_refused(key, spoil, arrays, tmp_path):
    path = write_npz(tmp_path / "flame.npz", arrays | {key: spoil(arrays[key])})
    with pytest.raises(UserError, match="not a"):
        load_head(path)


def test_no_other_package_is_imported(pickled):
    before = set(sys.modules)
    read_pickle(pickled)
    assert not {name for name in set(sys.modules) - before if name.startswith(("scipy", "chumpy"))}
