"""Parsers of Live Link Face, VMC and OpenSeeFace packets, and conversion of their faces to head states."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insta_runtime.errors import UserError
from insta_runtime.geometry import axis_angle, rotation_matrix
from insta_runtime.head import HeadModel, load_head
from insta_runtime.types import Float64
from telepresence.drivers import osc
from telepresence.drivers.arkit import (
    GAZE_RAD,
    ArkitFace,
    face_to_head_state,
    gaze_from_units,
    head_rotation,
    units_from_gaze,
)
from telepresence.drivers.livelink import LiveLinkReader
from telepresence.drivers.openseeface import RECORD, OpenSeeFaceReader
from telepresence.drivers.udp_bridge import BRIDGES, PacketReader
from telepresence.drivers.vmc import VmcReader
from tests.support import face_packets as packets

AHEAD = np.diag([1.0, -1.0, -1.0])
TURN_LEFT = rotation_matrix(np.array([0.0, 0.3, 0.0]))
LOOK_UP = rotation_matrix(np.array([-0.2, 0.0, 0.0]))
LIFT_LEFT = rotation_matrix(np.array([0.0, 0.0, 0.25]))


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


def seen(reader: PacketReader, packet: bytes) -> ArkitFace:
    face = reader.read(packet)
    assert face is not None
    return face


# ---- Live Link Face


def test_live_link_has_every_unit_of_the_open_head(head: HeadModel) -> None:
    values = {name: (index + 1) / 100 for index, name in enumerate(packets.LIVELINK[:52])}
    face = seen(LiveLinkReader(), packets.livelink(values))
    assert set(face.weights) == set(head.expression_names)
    for name, weight in values.items():
        assert face.weights[name[0].lower() + name[1:]] == pytest.approx(weight)
    state = face_to_head_state(face, head)
    assert state.expression[head.expression_names.index("jawOpen")] == pytest.approx(values["JawOpen"])
    assert face.sent_s == pytest.approx((1000 + 0.25) / 60)


@pytest.mark.parametrize(
    ("angles", "turn"),
    [({"HeadYaw": 0.3}, TURN_LEFT), ({"HeadPitch": 0.2}, LOOK_UP), ({"HeadRoll": 0.25}, LIFT_LEFT), ({}, np.eye(3))],
)
def test_live_link_rotates_the_head(angles: dict[str, float], turn: Float64, head: HeadModel) -> None:
    face = seen(LiveLinkReader(), packets.livelink(angles))
    np.testing.assert_allclose(rotation_matrix(face_to_head_state(face, head).rotation), AHEAD @ turn, atol=1e-6)


def test_live_link_without_a_face_gives_none() -> None:
    assert LiveLinkReader().read(packets.livelink(face=False)) is None


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x05" + packets.livelink()[1:],
        packets.livelink()[:-1],
        packets.livelink() + b"\0",
        packets.livelink()[:20],
        packets.livelink()[:3],
        packets.livelink(device=b"x" * 1000),
        b"\x06" + struct.pack("!i", -1) + packets.livelink()[5:],
        packets.livelink(dict.fromkeys(packets.LIVELINK, math.nan)),
    ],
)
def test_malformed_live_link_packets_are_refused(packet: bytes) -> None:
    with pytest.raises(UserError, match="malformed"):
        LiveLinkReader().read(packet)


# ---- VMC


def unity(axis: str, angle: float) -> tuple[float, float, float, float]:
    """Quaternion about one of Unity's axes (x to the avatar's right, y up, z forward, left-handed)."""
    half = math.sin(angle / 2)
    return (*(half if name == axis else 0.0 for name in "xyz"), math.cos(angle / 2))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("quaternion", "turn"),
    [
        (unity("y", -0.3), TURN_LEFT),  # in Unity a rotation about y is to the right
        (unity("x", -0.2), LOOK_UP),  # about x, down
        (unity("z", -0.25), LIFT_LEFT),  # about z, from right to up: the right side rises
    ],
)
def test_vmc_rotates_the_head(quaternion: tuple[float, float, float, float], turn: Float64) -> None:
    face = seen(VmcReader(), packets.vmc(bones={"Head": quaternion}))
    assert face.turn is not None
    np.testing.assert_allclose(face.turn, turn, atol=1e-6)


def test_vmc_multiplies_the_rotations_of_chest_neck_and_head() -> None:
    face = seen(
        VmcReader(), packets.vmc(bones={name: unity("y", -0.1) for name in ("Chest", "Neck", "Head", "LeftHand")})
    )
    assert face.turn is not None
    np.testing.assert_allclose(face.turn, TURN_LEFT, atol=1e-6)


def test_vmc_blend_shapes_take_effect_with_apply_and_names_ignore_case() -> None:
    reader = VmcReader()
    assert reader.read(packets.osc("/VMC/Ext/Blend/Val", "JawOpen", 0.5)) is None
    face = seen(reader, packets.osc("/VMC/Ext/Blend/Apply"))
    assert face.weights == {"jawOpen": 0.5}
    face = seen(reader, packets.vmc({"browinnerup": 0.25, "A": 1.0}))
    assert face.weights == {"jawOpen": 0.5, "browInnerUp": 0.25}


def test_vmc_presets_are_used_without_arkit_blend_shapes() -> None:
    face = seen(VmcReader(), packets.vmc({"Blink_L": 1.0, "O": 0.5, "Joy": 0.0, "Whatever": 1.0}))
    assert face.weights["eyeBlinkLeft"] == 1.0
    assert face.weights.get("eyeBlinkRight", 0.0) == 0.0
    assert 0.0 < face.weights["mouthFunnel"] < 0.5
    assert seen(VmcReader(), packets.vmc({"blinkRight": 1.0})).weights == {"eyeBlinkRight": 1.0}


def test_vmc_with_one_message_per_packet_gives_one_face_per_frame() -> None:
    reader = VmcReader()
    head = packets.osc("/VMC/Ext/Bone/Pos", "Head", 0.0, 1.5, 0.0, *unity("y", -0.3))
    assert reader.read(head) is None
    assert seen(reader, packets.osc("/VMC/Ext/Blend/Apply")).turn is not None
    assert reader.read(head) is None
    assert seen(reader, packets.osc("/VMC/Ext/T", 1.0)).turn is not None
    assert reader.read(packets.osc("/VMC/Ext/T", 1.1)) is None


def test_vmc_gaze_comes_from_the_eye_bones() -> None:
    face = seen(VmcReader(), packets.vmc(bones={"LeftEye": unity("y", -0.2), "RightEye": unity("x", -0.1)}))
    assert face.gaze is not None
    np.testing.assert_allclose(face.gaze, [[0.2, 0.0], [0.0, 0.1]], atol=1e-6)


def test_vmc_without_tracking_gives_none() -> None:
    reader = VmcReader()
    assert reader.read(packets.vmc({"A": 1.0}, status=(0,))) is None
    assert reader.read(packets.vmc({"A": 1.0}, status=(1, 3, 0, 0))) is None
    assert reader.read(packets.vmc({"A": 1.0}, status=(1, 3, 0, 1))) is not None


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"/VMC",
        b"#bundle\0",
        b"VMC\0,\0\0\0",
        packets.osc("/VMC/Ext/Blend/Val", "JawOpen"),
        packets.osc("/VMC/Ext/Blend/Val", 1, 0.5),
        packets.osc("/VMC/Ext/Blend/Val", "JawOpen", math.nan),
        packets.osc("/VMC/Ext/Bone/Pos", "Head", *[0.0] * 7),
        b"#bundle\0" + bytes(8) + struct.pack(">i", -4),
        b"#bundle\0" + bytes(8) + struct.pack(">i", 2**31 - 4),
        packets.osc("/VMC/Ext/T", "text").replace(b",s", b",q"),
        b"/VMC/Ext/T\0\0,b\0\0" + struct.pack(">i", -1),
    ],
)
def test_malformed_vmc_packets_are_refused(packet: bytes) -> None:
    with pytest.raises(UserError, match="malformed"):
        VmcReader().read(packet)


def test_osc_bundles_nest_to_any_depth_and_the_messages_that_are_read_are_limited() -> None:
    nested = packets.osc("/x", 1)
    for _ in range(2000):
        nested = packets.bundle(packets.osc("/y"), nested)
    assert len(nested) <= 65_535
    assert osc.parse_packet(nested, {"/x"}) == [osc.OscMessage("/x", (1,))]
    many = packets.bundle(*[packets.osc("/x")] * (osc.MESSAGES + 1))
    assert osc.parse_packet(many, {"/y"}) == []
    with pytest.raises(UserError, match="more than"):
        osc.parse_packet(many, {"/x"})


def test_osc_messages_of_nested_bundles_keep_their_order() -> None:
    one, two, three = (packets.osc("/x", number) for number in (1, 2, 3))
    found = osc.parse_packet(packets.bundle(one, packets.bundle(two), three), {"/x"})
    assert [message.values for message in found] == [(1,), (2,), (3,)]


def test_vmc_stores_a_limited_number_of_names() -> None:
    reader = VmcReader()
    for start in range(0, 5000, 500):
        reader.read(packets.vmc({f"shape{start + index}": 1.0 for index in range(500)}))
    assert len(reader._shapes) + len(reader._pending) < 1000


# ---- OpenSeeFace


@pytest.mark.parametrize("turn", [np.eye(3), TURN_LEFT, LOOK_UP, LIFT_LEFT, TURN_LEFT @ LOOK_UP @ LIFT_LEFT])
def test_openseeface_rotates_the_head(turn: Float64) -> None:
    packet = packets.openseeface(AHEAD @ turn)
    assert len(packet) == RECORD == 1785
    face = seen(OpenSeeFaceReader(), packet)
    assert face.turn is not None
    np.testing.assert_allclose(face.turn, turn, atol=1e-6)


def test_openseeface_rotations_agree_with_our_tracker_on_a_recording() -> None:
    """Quaternions that facetracker.py sent for a clip, and head rotations that our tracker found in it."""
    recorded = {
        (0.6875, 0.7118, 0.0901, 0.1125): (0.029, -0.287, 0.054),
        (0.7137, 0.6658, -0.1476, -0.16): (0.056, 0.222, -0.064),
        (0.694, 0.7063, 0.1235, -0.0653): (-0.242, -0.133, 0.012),
        (0.7222, 0.683, -0.082, -0.0721): (0.081, 0.066, -0.072),
        (0.7703, 0.6346, -0.0393, -0.0488): (0.004, 0.04, -0.19),
        (0.6648, 0.7428, 0.0602, 0.0514): (-0.015, -0.168, 0.125),
    }
    turns = []
    for quaternion in recorded:
        packet = bytearray(packets.openseeface(AHEAD))
        packet[33:49] = struct.pack("<4f", *quaternion)
        face = seen(OpenSeeFaceReader(), bytes(packet))
        assert face.turn is not None
        turns.append(axis_angle(face.turn))
    for axis in range(3):
        theirs, ours = np.array(turns)[:, axis], np.array(list(recorded.values()))[:, axis]
        assert np.corrcoef(theirs, ours)[0, 1] > 0.8
        assert 0.5 < np.polyfit(ours, theirs, 1)[0] < 2.0


def test_openseeface_gives_eyelids_gaze_and_units() -> None:
    left = (math.sin(0.2), 0.0, math.cos(0.2))
    up = (0.0, math.sin(0.1), math.cos(0.1))
    features = {
        "mouth_open": 0.8,
        "mouth_corner_updown_l": -0.4,
        "mouth_corner_updown_r": 0.3,
        "eyebrow_updown_l": 0.5,
        "eyebrow_updown_r": -0.5,
        "mouth_wide": -0.6,
    }
    face = seen(
        OpenSeeFaceReader(), packets.openseeface(AHEAD, open_eyes=(0.9, 0.25), looks=(up, left), features=features)
    )
    assert face.gaze is not None
    np.testing.assert_allclose(face.gaze, [[0.2, 0.0], [0.0, 0.1]], atol=1e-5)
    expected = {
        "eyeBlinkLeft": 0.75,
        "eyeBlinkRight": 0.1,
        "jawOpen": 0.8,
        "browOuterUpLeft": 0.5,
        "browDownRight": 0.5,
        "mouthPucker": 0.6,
        "mouthSmileLeft": 0.4,
        "mouthFrownRight": 0.3,
        "eyeLookOutLeft": 0.2 / GAZE_RAD,
        "eyeLookUpRight": 0.1 / GAZE_RAD,
        "eyeLookInLeft": 0.0,
    }
    for name, weight in expected.items():
        assert face.weights[name] == pytest.approx(weight, abs=1e-4), name


def test_openseeface_uses_the_first_face_and_its_position() -> None:
    near, far = packets.openseeface(AHEAD, face=1), packets.openseeface(AHEAD @ TURN_LEFT, face=0)
    face = seen(OpenSeeFaceReader(), near + far)
    assert face.turn is not None
    np.testing.assert_allclose(face.turn, TURN_LEFT, atol=1e-6)
    here = seen(OpenSeeFaceReader(), packets.openseeface(AHEAD, translation=(0.0, 0.0, -3.0))).place
    there = seen(OpenSeeFaceReader(), packets.openseeface(AHEAD, translation=(-0.5, -1.0, -4.0))).place
    assert here is not None
    assert there is not None
    np.testing.assert_allclose(there - here, 0.16 * np.array([1.0, 0.5, 1.0]), atol=1e-6)  # right, down, away


def test_openseeface_without_a_fit_gives_none() -> None:
    assert OpenSeeFaceReader().read(packets.openseeface(AHEAD, fitted=False)) is None


@pytest.mark.parametrize(
    "packet",
    [b"", bytes(1784), bytes(1729), bytes(1785 * 41), b"\xff" * 1785, bytes(1785)[:-1]],
)
def test_malformed_openseeface_packets_are_refused(packet: bytes) -> None:
    with pytest.raises(UserError, match="malformed"):
        OpenSeeFaceReader().read(packet)


# ---- all protocols


def test_gaze_and_units_convert_both_ways() -> None:
    gaze = np.array([[0.3, -0.1], [-0.2, 0.25]])
    np.testing.assert_allclose(gaze_from_units(units_from_gaze(gaze)), gaze, atol=1e-9)


def test_the_eyes_of_a_state_rotate_as_the_units_say(head: HeadModel) -> None:
    left = face_to_head_state(ArkitFace({"eyeLookOutLeft": 0.5, "eyeLookInRight": 0.5}), head)
    for eye in left.eye_pose:
        np.testing.assert_allclose(rotation_matrix(eye)[:, 2], [math.sin(0.305), 0.0, math.cos(0.305)], atol=1e-5)
    up = face_to_head_state(ArkitFace({"eyeLookUpLeft": 0.5, "eyeLookUpRight": 0.5}), head)
    assert rotation_matrix(up.eye_pose[0])[1, 2] > 0.1


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_a_head_rotation_is_a_rotation(yaw: float, pitch: float, roll: float) -> None:
    turn = head_rotation(yaw, pitch, roll)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1.0)


GOOD = {
    "livelink": packets.livelink({"JawOpen": 0.5, "HeadYaw": 0.1}),
    "vmc": packets.vmc({"JawOpen": 0.5}, {"Head": unity("y", 0.1), "LeftEye": unity("x", 0.1)}),
    "openseeface": packets.openseeface(AHEAD, features={"mouth_open": 0.5}),
}


@pytest.mark.parametrize("name", BRIDGES)
@given(data=st.data())
def test_no_packet_raises_anything_but_a_user_error(name: str, data: st.DataObject) -> None:
    """Random bytes, and valid packets that are altered, truncated or repeated; every face gives a valid state."""
    good = GOOD[name]
    packet = data.draw(st.one_of(st.binary(max_size=400), st.just(good)))
    for _ in range(data.draw(st.integers(0, 4))):
        start, end = sorted((data.draw(st.integers(0, len(packet))), data.draw(st.integers(0, len(packet)))))
        packet = packet[:start] + data.draw(st.binary(max_size=8)) + packet[data.draw(st.sampled_from((start, end))) :]
    reader = BRIDGES[name][0]()
    for chunk in (packet, good, packet):
        try:
            face = reader.read(chunk)
        except UserError:
            continue
        if face is not None:
            state = face_to_head_state(face, HEAD)
            assert all(np.isfinite(array).all() for array in state.arrays().values())
            assert state.expression.min() >= 0.0
            assert state.expression.max() <= 1.0


HEAD = load_head()
